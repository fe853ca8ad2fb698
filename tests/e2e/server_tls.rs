//! ServerTLS: the server proves itself to clients from outside, by its DNS name, under the public bundle.

use crate::{
    cluster::{Place, until},
    workloads::{IDLE, server, service, web},
};

#[test]
fn a_client_with_the_bundle_and_the_right_name_gets_through_and_no_other() {
    let place = Place::new("server-tls");
    place.apply(&server(
        "web",
        &web(8080, "hello"),
        "[{name: https, port: 8443, targetPort: 8080, mode: ServerTLS}]",
        "  dnsNames: [shop.contoso.example]",
    ));
    place.apply(&service("web", 443, 8080));
    place.apply(&server("client", IDLE, "[]", ""));
    until(20, "the public bundle", || {
        let said = place.kubectl(&["get", "configmap", "entente-trust-bundle"]);
        if said.ok { Ok(()) } else { Err(said.err) }
    });
    place.apply(
        "apiVersion: v1
kind: Pod
metadata: {name: visitor}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: trust, configMap: {name: entente-trust-bundle}}]
  containers:
  - {name: app, image: 'registry.local/tools:dev', imagePullPolicy: IfNotPresent, command: [sleep, infinity], volumeMounts: [{name: trust, mountPath: /trust}]}",
    );
    place.ready(&["web", "client"]);
    let wait = place.kubectl(&["wait", "--for=condition=Ready", "pod/visitor", "--timeout=60s"]);
    assert!(wait.ok, "{}", wait.err);
    let pem = place.run("pod/visitor", "cat /trust/ca.crt").out;
    let copy = place.run("deploy/client", &format!("cat > /tmp/ca.crt <<'EOF'\n{pem}\nEOF"));
    assert!(copy.ok, "{}", copy.err);
    for (from, bundle) in [("pod/visitor", "/trust/ca.crt"), ("deploy/client", "/tmp/ca.crt")] {
        let call = |arguments: &str| place.run(from, &format!("curl -sS --max-time 10 {arguments}"));
        let good = call(&format!("--cacert {bundle} https://web.{}.svc.cluster.local/", place.name));
        assert_eq!(good.out, "hello\n", "{from}: {}", good.err);
        let named = call(&format!(
            "--cacert {bundle} --connect-to shop.contoso.example:443:web:443 https://shop.contoso.example/"
        ));
        assert_eq!(named.out, "hello\n", "{from}, by its declared name: {}", named.err);
        let wrong = call(&format!(
            "--cacert {bundle} --connect-to else.contoso.example:443:web:443 https://else.contoso.example/"
        ));
        assert!(!wrong.ok && wrong.err.contains("SSL"), "{from}: a wrong name was accepted: {}", wrong.out);
        let blind = call(&format!("https://web.{}.svc.cluster.local/", place.name));
        assert!(!blind.ok && blind.err.contains("SSL"), "{from}: accepted without our CA: {}", blind.out);
    }
}
