//! Everything undeclared is refused, each with its reason in log, metric and Event.

use crate::{
    cluster::{Place, kubectl, must, namespace},
    workloads::{IDLE, declared, idle_pod, server, service, web},
};

/// A server that only `friend` may call, with a declared stranger and an undeclared intruder beside it.
fn scene(test: &str) -> (Place, String, String) {
    let place = Place::new(test);
    let allow = "[{name: http, port: 8080, allowFrom: [{server: {name: friend}}]}]";
    place.apply(&server("web", &web(8080, "hello"), allow, ""));
    place.apply(&service("web", 80, 8080));
    place.apply(&server("friend", IDLE, "[]", ""));
    place.apply(&server("stranger", IDLE, "[]", ""));
    place.apply(&idle_pod("intruder"));
    place.ready(&["web", "friend", "stranger"]);
    let wait = place.kubectl(&["wait", "--for=condition=Ready", "pod/intruder", "--timeout=60s"]);
    assert!(wait.ok, "{}", wait.err);
    let pod = place.pod("web");
    let address = place.must(&["get", "pod", &pod, "-o", "jsonpath={.status.podIP}"]);
    (place, pod, address)
}

/// Checks that a refusal of `code` at `pod` of `server` is told in log, metric and Event.
fn told(place: &Place, server: &str, pod: &str, direction: &str, code: &str) {
    place.logged(pod, &["access", code]);
    assert!(place.refusals(pod, direction, code) > 0, "no metric of {code} at {pod}");
    place.refusal_event(server, code);
}

#[test]
fn an_undeclared_pod_is_refused_in_plaintext_and_with_any_certificate_but_ours() {
    let (place, pod, address) = scene("intruder");
    assert_eq!(place.run("deploy/friend", "curl -sS --max-time 10 http://web/").out, "hello\n");
    let said = place.run("pod/intruder", &format!("curl -sS --max-time 5 http://{address}:8080/"));
    assert!(!said.ok && !said.out.contains("hello"), "plaintext got through: {}", said.out);
    told(&place, "web", &pod, "inbound", "NotTls");
    let client = "timeout 5 openssl s_client -connect ADDRESS:8080 -tls1_3 ARGUMENTS -quiet </tmp/request 2>&1";
    let setup = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' > /tmp/request
        printf 'subjectAltName=URI:spiffe://contoso.example/ns/x/server/friend\nextendedKeyUsage=clientAuth\n' > /tmp/ext
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /tmp/self.key -out /tmp/self.crt -days 2 -subj /CN=self -addext 'subjectAltName=URI:spiffe://contoso.example/ns/x/server/friend' -addext extendedKeyUsage=clientAuth 2>/dev/null
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /tmp/ca.key -out /tmp/ca.crt -days 2 -subj /CN=other 2>/dev/null
        openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout /tmp/other.key -subj /CN=x 2>/dev/null | openssl x509 -req -CA /tmp/ca.crt -CAkey /tmp/ca.key -CAcreateserial -days 2 -out /tmp/other.crt -extfile /tmp/ext 2>/dev/null";
    let said = place.run("pod/intruder", setup);
    assert!(said.ok, "{}", said.err);
    let cases = [
        ("", "NoCertificate"),
        ("-cert /tmp/self.crt -key /tmp/self.key", "UntrustedRoot"),
        ("-cert /tmp/other.crt -key /tmp/other.key -cert_chain /tmp/ca.crt", "UntrustedRoot"),
    ];
    for (arguments, code) in cases {
        let before = place.refusals(&pod, "inbound", code);
        let line = client.replace("ADDRESS", &address).replace("ARGUMENTS", arguments);
        let said = place.run("pod/intruder", &line);
        assert!(!said.out.contains("hello"), "{arguments}: {}", said.out);
        told(&place, "web", &pod, "inbound", code);
        assert!(place.refusals(&pod, "inbound", code) > before, "{arguments}: not counted as {code}");
    }
}

#[test]
fn a_declared_server_that_allow_from_does_not_name_is_refused() {
    let (place, pod, _) = scene("stranger");
    let said = place.run("deploy/stranger", "curl -sS --max-time 5 http://web/");
    assert!(!said.ok && said.out.is_empty(), "{}", said.out);
    told(&place, "web", &pod, "inbound", "NotInTopology");
    told(&place, "stranger", &place.pod("stranger"), "outbound", "PeerRefused");
}

#[test]
fn an_undeclared_port_and_an_undeclared_address_are_refused_where_they_are_dialled_and_where_they_arrive() {
    let (place, pod, address) = scene("ports");
    // The caller's own sidecar knows which ports the server declares.
    let said = place.run("deploy/friend", &format!("curl -sS --max-time 5 http://{address}:9999/"));
    assert!(!said.ok, "{}", said.out);
    told(&place, "friend", &place.pod("friend"), "outbound", "PortNotAllowed");
    // Somebody without a sidecar dials it directly.
    let said = place.run("pod/intruder", &format!("curl -sS --max-time 5 http://{address}:9999/"));
    assert!(!said.ok, "{}", said.out);
    told(&place, "web", &pod, "inbound", "PortNotAllowed");
    // A declared server calls somebody who is not declared.
    let intruder = place.must(&["get", "pod", "intruder", "-o", "jsonpath={.status.podIP}"]);
    let said = place.run("deploy/friend", &format!("curl -sS --max-time 5 http://{intruder}:80/"));
    assert!(!said.ok, "{}", said.out);
    told(&place, "friend", &place.pod("friend"), "outbound", "DestinationNotDeclared");
}

#[test]
fn extra_destinations_may_be_called_as_they_are_and_undeclared_udp_is_dropped() {
    let place = Place::new("extra");
    let outside = format!("{}-out", place.name);
    namespace(&outside, None);
    let listener = idle_pod("listener").replace(
        "sleep, infinity",
        "sh, -c, 'socat TCP-LISTEN:7000,fork,reuseaddr SYSTEM:\"echo plain\" & exec socat -u UDP-RECV:7001 OPEN:/tmp/udp,creat,append'",
    );
    crate::cluster::apply(&listener.replace("{name: listener}", &format!("{{name: listener, namespace: {outside}}}")));
    let wait = kubectl(&["-n", &outside, "wait", "--for=condition=Ready", "pod/listener", "--timeout=60s"]);
    assert!(wait.ok, "{}", wait.err);
    let address = must(&["-n", &outside, "get", "pod", "listener", "-o", "jsonpath={.status.podIP}"]);
    let extra = format!(
        "  outbound: {{extra: [{{cidr: {address}/32, ports: [7000]}}, {{service: {{name: kubernetes, namespace: default}}}}]}}"
    );
    place.apply(&server("client", IDLE, "[]", &extra));
    place.ready(&["client"]);
    let said = place.run("deploy/client", &format!("timeout 5 socat -u TCP:{address}:7000 -"));
    assert_eq!(said.out, "plain\n", "{}", said.err);
    let said = place.run("deploy/client", "curl -sk --max-time 5 https://kubernetes.default/version");
    assert!(said.out.contains("gitVersion"), "{}{}", said.out, said.err);
    let said = place.run("deploy/client", &format!("curl -sS --max-time 3 http://{address}:7002/"));
    assert!(!said.ok, "{}", said.out);
    place.logged(&place.pod("client"), &["access", ":7002", "DestinationNotDeclared"]);
    let _ = place.run("deploy/client", &format!("echo leaked | timeout 2 socat -u - UDP:{address}:7001"));
    let leaked = kubectl(&["-n", &outside, "exec", "listener", "--", "sh", "-c", "cat /tmp/udp 2>/dev/null"]);
    assert!(!leaked.out.contains("leaked"), "undeclared UDP left the pod");
    let _ = kubectl(&["delete", "namespace", &outside, "--wait=false"]);
}

#[test]
fn a_pod_cannot_turn_its_own_protection_off() {
    let place = Place::new("admission");
    place.apply(&declared("web", "[]", ""));
    let pod = |name: &str, spec: &str, container: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: web}}}}\nspec:\n  {spec}\n  containers:\n  - {{name: app, image: 'registry.local/tools:dev', imagePullPolicy: IfNotPresent, command: [sleep, infinity]{container}}}"
        )
    };
    let cases = [
        ("host", "hostNetwork: true", ""),
        ("pid", "hostPID: true", ""),
        ("shared", "shareProcessNamespace: true", ""),
        ("privileged", "restartPolicy: Always", ", securityContext: {privileged: true}"),
        ("uid", "restartPolicy: Always", ", securityContext: {runAsUser: 5061}"),
        ("capability", "restartPolicy: Always", ", securityContext: {capabilities: {add: [NET_ADMIN]}}"),
    ];
    for (name, spec, container) in cases {
        let said = place.try_apply(&pod(name, spec, container));
        assert!(!said.ok && said.err.contains("TrustedServer"), "{name} was let in: {}{}", said.out, said.err);
    }
}
