//! Our own bundle endpoint on the real node: what others fetch, and by which identity it proves itself.

use crate::cluster::{Place, SYSTEM, in_node, must, until};

/// `https://` of the endpoint's Service, and curl's way to call it by the name `host`.
fn fetch(host: &str, path: &str) -> String {
    let ip = must(&["-n", SYSTEM, "get", "service", "entente-bundle", "-o", "jsonpath={.spec.clusterIP}"]);
    let resolve = format!("{host}:8443:{ip}");
    // The identity is looked at by OpenSSL below; a SPIFFE ID means nothing to curl.
    let url = format!("https://{host}:8443/{path}");
    in_node("curl", &["-sk", "--max-time", "5", "--resolve", &resolve, "-w", "%{http_code}", &url]).out
}

/// What OpenSSL says of the certificate that is shown for `host`, judged by `roots`.
fn shown(host: &str, roots: &str) -> String {
    let ip = must(&["-n", SYSTEM, "get", "service", "entente-bundle", "-o", "jsonpath={.spec.clusterIP}"]);
    let file = crate::cluster::node().join(format!("{host}.crt"));
    std::fs::write(&file, roots).unwrap();
    let line = format!(
        "openssl s_client -connect {ip}:8443 -servername {host} -CAfile {} </dev/null 2>&1 | tee /dev/stderr \
         | openssl x509 -noout -ext subjectAltName 2>/dev/null",
        file.display()
    );
    let said = in_node("sh", &["-c", &line]);
    let _ = std::fs::remove_file(file);
    said.out + &said.err
}

#[test]
fn each_domains_bundle_is_served_under_an_identity_of_that_domain_which_is_recorded_and_goes_with_it() {
    let place = Place::with_domain("bundled", "leaf: {lifetimeSeconds: 3600, clockSkewSeconds: 30}");
    let id = format!("spiffe://bundled.example/ns/{SYSTEM}/server/bundle-bundled");
    until(60, "the domain's certificate is shown", || {
        let roots = place.bundle("ca.crt");
        let said = shown("bundle.bundled.example", &roots);
        let proven = said.contains(&format!("URI:{id}")) && said.contains("Verify return code: 0 (ok)");
        if proven && !roots.is_empty() { Ok(()) } else { Err(said.chars().take(600).collect()) }
    });
    let told = fetch("bundle.bundled.example", "bundled.example/bundle.json");
    let (bundle, status) = told.split_at(told.len() - 3);
    let parsed: serde_json::Value = serde_json::from_str(bundle).unwrap();
    assert_eq!((status, parsed["keys"][0]["use"].as_str()), ("200", Some("x509-svid")), "{told}");
    assert_eq!(fetch("bundle.bundled.example", "bundled.example/ca.crt"), place.bundle("ca.crt") + "200");
    assert!(fetch("bundle.bundled.example", "nobody.example/bundle.json").ends_with("404"));
    // Another domain's name is answered with that domain's certificate.
    let said = shown("bundle.contoso.example", &place.bundle("ca.crt"));
    assert!(said.contains("URI:spiffe://contoso.example/") && !said.contains("Verify return code: 0"), "{said}");
    // It is on record like any other, and nobody's status counts it.
    let template = "jsonpath={range .items[*]}{.metadata.annotations.entente\\.dev/server}{\"\\n\"}{end}";
    let ledgers = must(&["-n", SYSTEM, "get", "configmaps", "-l", "entente.dev/part=ledger", "-o", template]);
    assert!(ledgers.lines().any(|line| line == format!("{SYSTEM}/bundle-bundled")), "{ledgers}");
    let total = must(&["get", "trustdomain", "bundled", "-o", "jsonpath={.status.servers.total}"]);
    assert_eq!(total, "0");
    must(&["delete", "trustdomain", "bundled"]);
    until(60, "its Secret goes with the domain", || {
        let found = must(&["-n", SYSTEM, "get", "secrets", "-o", "name"]);
        if found.contains("entente-bundle-bundled") { Err(found) } else { Ok(()) }
    });
}
