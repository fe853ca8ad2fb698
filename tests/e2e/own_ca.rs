//! An authority of one's own: followed when it changes, and harmless when it is broken.

use std::{path::Path, process::Command};

use crate::{
    cluster::{Place, SYSTEM, apply, kubectl, must, node, until},
    rotation::{condition, states},
    workloads::{IDLE, server, service, web},
};

const DOMAIN: &str = "own-ca";
const SECRET: &str = "own-ca";

/// The Secret that the example's script makes in `folder` of the node's own folder.
fn made(folder: &str) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/bring-your-own-ca/make-ca.sh");
    let out = Command::new(script)
        .arg(node().join(folder))
        .env("NAME", SECRET)
        .env("NAMESPACE", SYSTEM)
        .env("SUFFIX", format!("{DOMAIN}.example"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn ready_is(expected: &str) -> String {
    until(30, &format!("the domain has AuthorityReady={expected}"), || {
        let found = condition(DOMAIN, "AuthorityReady");
        if found.starts_with(expected) { Ok(found) } else { Err(found) }
    })
}

struct Removed;

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = kubectl(&["-n", SYSTEM, "delete", "secret", SECRET]);
        for folder in ["ca-one", "ca-two"] {
            let _ = std::fs::remove_dir_all(node().join(folder));
        }
    }
}

#[test]
fn an_authority_of_ones_own_signs_is_followed_to_another_root_and_does_no_harm_when_it_is_broken() {
    let place = Place::with_domain(
        DOMAIN,
        &format!(
            "leaf: {{lifetimeSeconds: 120, clockSkewSeconds: 30}}, rotation: {{minTrustedSeconds: 3}}, authority: {{secretRef: {{name: {SECRET}}}}}"
        ),
    );
    let _removed = Removed;
    let _ = kubectl(&["-n", SYSTEM, "delete", "secret", SECRET]);
    ready_is("False/SuppliedAuthorityBroken/");
    apply(&made("ca-one"));
    ready_is("True/");
    place.apply(&server("web", &web(8080, "hello"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&service("web", 80, 8080));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["web", "client"]);
    let call = || place.run("deploy/client", "curl -sS --max-time 5 http://web/");
    assert_eq!(call().out, "hello\n");
    let first = place.bundle("ca.crt");
    assert_eq!(place.bundle("crl.pem").matches("BEGIN X509 CRL").count(), 2, "the issuer's list and the root's");

    // Another root: both are trusted, then the new one alone.
    apply(&made("ca-two"));
    until(60, "both roots are trusted", || {
        let roots = place.bundle("ca.crt");
        if roots.contains(first.trim()) && roots.matches("BEGIN CERTIFICATE").count() == 2 {
            Ok(())
        } else {
            Err(roots)
        }
    });
    until(200, "the first one is removed", || {
        let now = states(DOMAIN);
        let done = condition(DOMAIN, "RotationComplete").starts_with("True/") && now.contains("Removed:");
        if done { Ok(()) } else { Err(format!("{now} {}", condition(DOMAIN, "RotationComplete"))) }
    });
    assert!(!place.bundle("ca.crt").contains(first.trim()));
    assert_eq!(call().out, "hello\n");

    // Broken in every way: said, and nothing else.
    let signing = states(DOMAIN);
    let good = must(&["-n", SYSTEM, "get", "secret", SECRET, "-o", "yaml"]);
    let other = made("ca-one");
    let key = other.split("tls.key: |").nth(1).unwrap().split("  ca.crt").next().unwrap();
    let stolen = format!("stringData:\n  tls.key: |{key}");
    for (what, patch) in
        [("a key of another certificate", stolen), ("no certificate", "stringData: {tls.crt: nonsense}".to_owned())]
    {
        let file = node().join("ca-one/patch.yaml");
        std::fs::write(&file, &patch).unwrap();
        must(&["-n", SYSTEM, "patch", "secret", SECRET, "--patch-file", file.to_str().unwrap()]);
        let said = ready_is("False/SuppliedAuthorityBroken/");
        assert!(said.contains("goes on signing"), "{what}: {said}");
        place.must(&["rollout", "restart", "deployment/client"]);
        place.must(&["rollout", "status", "deployment/client", "--timeout=60s"]);
        assert_eq!(call().out, "hello\n", "{what}");
        assert_eq!(states(DOMAIN), signing, "{what}");
    }
    must(&["-n", SYSTEM, "delete", "secret", SECRET]);
    ready_is("False/SuppliedAuthorityBroken/");
    let good: String = good
        .lines()
        .filter(|line| !line.contains("resourceVersion:") && !line.contains("uid:"))
        .map(|line| format!("{line}\n"))
        .collect();
    apply(&good);
    ready_is("True/");
    assert_eq!(states(DOMAIN), signing);
    assert_eq!(call().out, "hello\n");
}
