//! Software that holds its key itself talks with declared servers, both ways, without a sidecar.

use crate::{
    cluster::{apply, kubectl, must, until},
    workloads::declared,
};

const NAMESPACE: &str = "own-key";

struct Removed;

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]);
    }
}

fn run(pod: &str, line: &str) -> crate::cluster::Said {
    kubectl(&["-n", NAMESPACE, "exec", pod, "-c", "app", "--", "sh", "-c", line])
}

fn secret(name: &str, path: &str) -> String {
    kubectl(&["-n", NAMESPACE, "get", "secret", name, "-o", &format!("jsonpath={path}")]).out
}

#[test]
fn an_nginx_and_an_openssl_client_with_keys_of_their_own_talk_with_sidecars_both_ways() {
    let _removed = Removed;
    let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/own-key");
    must(&["apply", "-f", example.to_str().unwrap()]);
    for server in ["relay", "probe", "caller"] {
        let said = kubectl(&[
            "-n",
            NAMESPACE,
            "wait",
            "--for=condition=Ready",
            &format!("trustedserver/{server}"),
            "--timeout=90s",
        ]);
        assert!(
            said.ok,
            "{server}: {} {}",
            said.err,
            kubectl(&["-n", NAMESPACE, "get", "ts", server, "-o", "yaml"]).out
        );
    }
    must(&["-n", NAMESPACE, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"]);
    let containers = must(&["-n", NAMESPACE, "get", "pod", "relay", "-o", "jsonpath={.spec.initContainers[*].name}"]);
    assert_eq!(containers, "", "no sidecar where the software holds the key");
    until(30, "a sidecar calls nginx", || {
        let said = run("caller", "curl -sS --max-time 5 http://relay:8443/");
        if said.out == "relayed for SUCCESS\n" { Ok(()) } else { Err(format!("{} {}", said.out, said.err)) }
    });
    // The kubelet brings Secret and ConfigMap into the pod after a while.
    until(120, "OpenSSL calls a sidecar", || {
        let said = run("probe", "timeout 10 /etc/probe/call.sh");
        if said.out.contains("called by name") { Ok(()) } else { Err(format!("{} {}", said.out, said.err)) }
    });

    // A Secret that somebody removes comes back; one that is not ours stays as it is.
    let before = secret("relay-tls", "{.data.tls\\.crt}");
    must(&["-n", NAMESPACE, "delete", "secret", "relay-tls"]);
    until(90, "it is written again", || {
        let now = secret("relay-tls", "{.data.tls\\.crt}");
        if !now.is_empty() && now != before { Ok(()) } else { Err("missing".to_owned()) }
    });
    must(&["-n", NAMESPACE, "create", "secret", "generic", "mine", "--from-literal=a=b"]);
    let squatter = declared("squatter", "[]", "  certificate: {secretName: mine}");
    apply(&squatter.replacen("metadata: {", &format!("metadata: {{namespace: {NAMESPACE}, "), 1));
    until(30, "it is said", || {
        let template = "jsonpath={.status.conditions[?(@.type==\"CertificatesIssued\")].reason}";
        let said = kubectl(&["-n", NAMESPACE, "get", "trustedserver", "squatter", "-o", template]).out;
        if said == "SecretExists" { Ok(()) } else { Err(said) }
    });
    assert_eq!(secret("mine", "{.data.a}"), "Yg==");
}
