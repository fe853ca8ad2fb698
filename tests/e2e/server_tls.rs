//! ServerTLS: the server proves itself to clients from outside, by its DNS name, under the public bundle.

use std::process::Command;

use crate::{
    cluster::{Place, node, until},
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

/// A Secret of type kubernetes.io/tls with a certificate for `name` that nobody of ours signed, and the certificate.
fn foreign(name: &str) -> (String, String) {
    let folder = node().join(format!("tls-{name}"));
    std::fs::create_dir_all(&folder).unwrap();
    let path = |file: &str| folder.join(file).to_str().unwrap().to_owned();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", &format!("/CN={name}"), "-addext", &format!("subjectAltName=DNS:{name}")])
        .args(["-keyout", &path("tls.key"), "-out", &path("tls.crt")])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let [key, certificate] = ["tls.key", "tls.crt"].map(|file| std::fs::read_to_string(path(file)).unwrap());
    let _ = std::fs::remove_dir_all(&folder);
    let indent = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
    let secret = format!(
        "apiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {{name: public}}\nstringData:\n  tls.crt: |\n{}  tls.key: |\n{}",
        indent(&certificate),
        indent(&key)
    );
    (secret, certificate)
}

#[test]
fn a_server_tls_port_shows_the_certificate_of_another_authority_where_the_server_names_one_and_follows_it() {
    let place = Place::new("public");
    let name = "www.outside.example";
    let (secret, first) = foreign(name);
    place.apply(&secret);
    place.apply(&server(
        "web",
        &web(8080, "hello"),
        "[{name: https, port: 8443, targetPort: 8080, mode: ServerTLS}]",
        "  certificate: {serverSecretName: public}",
    ));
    place.apply(&service("web", 443, 8080));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["web", "client"]);
    let call = |root: &str| {
        let line = format!(
            "cat > /tmp/ca.crt <<'EOF'\n{root}EOF\ncurl -sS --max-time 10 --cacert /tmp/ca.crt --connect-to {name}:443:web:443 https://{name}/"
        );
        place.run("deploy/client", &line)
    };
    let good = call(&first);
    assert_eq!(good.out, "hello\n", "{}", good.err);
    let (secret, second) = foreign(name);
    place.apply(&secret);
    // The kubelet brings it into the pod within two minutes.
    until(150, "the next certificate is shown", || {
        let said = call(&second);
        if said.out == "hello\n" { Ok(()) } else { Err(said.err) }
    });
    assert!(!call(&first).ok, "the first one is shown no more");
}
