//! One wrong object says what is wrong with it; everything else goes on.

use crate::{
    cluster::{Place, kubectl, must, namespace, until},
    workloads::{IDLE, account, declared, deployment, server, service, web},
};

#[test]
fn a_pod_with_the_right_labels_and_the_wrong_service_account_gets_no_certificate_and_the_object_says_so() {
    let place = Place::new("account");
    place.apply(&declared("web", "[]", ""));
    place.apply(&account("web"));
    place.apply(&account("thief"));
    place.apply(&deployment("web", "thief", IDLE));
    let found = place.condition_is("web", "CertificatesIssued", "False/ServiceAccountMismatch");
    assert!(found.contains("ServiceAccount web"), "{found}");
    let pod = until(30, "the pod", || {
        let pod = place.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}"]);
        if pod.out.is_empty() { Err(pod.err) } else { Ok(pod.out) }
    });
    place.logged(&pod, &["ServiceAccountMismatch"]);
    assert_eq!(place.must(&["get", "trustedserver", "web", "-o", "jsonpath={.status.certificates.live}"]), "0");
}

#[test]
fn what_is_wrong_stands_in_the_objects_own_condition_and_all_others_keep_working() {
    let place = Place::new("wrong");
    place.apply(&server("web", &web(8080, "hello"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&service("web", 80, 8080));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["web", "client"]);
    place.apply(&declared("twin", "[]", "").replace("{app: twin}", "{app: web}"));
    place.apply(&declared("lonely", "[{name: a, port: 1, allowFrom: [{server: {name: ghost}}]}]", ""));
    place.apply(&declared("stray", "[]", "  dnsNames: [www.elsewhere.example]"));
    let name = format!("www-{}.contoso.example", std::process::id());
    place.apply(&declared("owner", "[]", &format!("  dnsNames: [{name}]")));
    place.condition_is("owner", "Accepted", "True/");
    place.apply(&declared("rival", "[]", &format!("  dnsNames: [{name}]")));
    assert!(place.condition_is("twin", "Accepted", "False/SelectorOverlap").contains("web"));
    assert!(place.condition_is("lonely", "Accepted", "False/UnknownPeer").contains("ghost"));
    assert!(place.condition_is("stray", "Accepted", "False/NameOutsideDomain").contains("contoso.example"));
    assert!(place.condition_is("rival", "Accepted", "False/NameConflict").contains("owner"));
    assert!(place.condition("twin", "Ready").starts_with("False/SelectorOverlap"));
    for (good, condition) in [("web", "Ready"), ("client", "Ready"), ("owner", "Accepted")] {
        assert!(place.condition(good, condition).starts_with("True/"), "{good}: {}", place.condition(good, condition));
    }
    assert_eq!(place.run("deploy/client", "curl -sS --max-time 10 http://web/").out, "hello\n");
}

#[test]
fn the_api_server_refuses_what_cannot_be_right_and_says_what_is_allowed() {
    let place = Place::new("schema");
    let check = |yaml: &str, words: &str| {
        let said = place.try_apply(yaml);
        assert!(!said.ok && said.err.contains(words), "wanted {words:?}: {}{}", said.out, said.err);
    };
    check(&declared("a", "[]", "").replace("{matchLabels: {app: a}}", "{}"), "selector must name at least one label");
    check(
        &declared("a", "[{name: a, port: 1}, {name: b, port: 2, targetPort: 1}]", ""),
        "no other port of this server uses",
    );
    check(&declared("a", "[{name: a, port: 1, protocol: UDP}]", ""), "UDP must have mode Plaintext");
    check(
        &declared("a", "[{name: a, port: 1, mode: ServerTLS, allowFrom: []}]", ""),
        "allowFrom must not be set unless",
    );
    check(&declared("a", "[{name: a, port: 15006}]", ""), "must not be one of the sidecar's own");
    check(&declared("a", "[{name: a, port: 70000}]", ""), "65535");
    check(&declared("a", "[]", "  dnsNames: ['*.contoso.example']"), "dnsNames");
    check(&declared("a", "[]", "  outbound: {extra: [{ports: [1]}]}"), "exactly one of cidr, service and host");
    check(&declared("a", "[]", "  outbound: {extra: [{host: a.example}]}"), "ports must not be empty with host");
    check(&declared("a", "[{name: a, port: 1, alpn: [h2]}]", ""), "must not be set unless mode is ServerTLS");
    check(&declared("a.b", "[]", ""), "metadata.name must be a DNS label");
    check(&declared("a", "[]", "  state: Sleeping"), "Suspended");
    check(&declared("a", "[]", "  revokeIssuedBefore: yesterday"), "revokeIssuedBefore");
    check(&declared("a", "[]", "  certificate: {secretName: Not_A_Name}"), "secretName");
    let domain = |spec: &str| {
        let patch = format!("{{\"spec\":{spec}}}");
        kubectl(&["patch", "trustdomain", "contoso", "--type=merge", "--dry-run=server", "-p", &patch]).err
    };
    for (spec, words) in [
        (r#"{"authority":{"managed":{},"secretRef":{"name":"a"}}}"#, "exactly one of managed and secretRef"),
        (r#"{"authority":{"managed":null}}"#, "exactly one of managed and secretRef"),
        (r#"{"revocation":{"serials":["not hex"]}}"#, "serials"),
        (r#"{"revocation":{"onPeerExpiry":"Never"}}"#, "Reprove"),
        (r#"{"rotation":{"startAtLifetimePercent":99}}"#, "90"),
        (r#"{"rotation":{"rollBackTo":"XYZ"}}"#, "rollBackTo"),
    ] {
        let said = domain(spec);
        assert!(said.contains(words), "{spec}: wanted {words:?}: {said}");
    }
    let partner = |spec: &str| {
        format!(
            "apiVersion: entente.dev/v1alpha1\nkind: FederationPartner\nmetadata: {{name: p}}\nspec: {{domains: [p.example], {spec}}}"
        )
    };
    for (spec, words) in [
        ("trust: {}", "exactly one of caBundle, configMapRef, spiffeEndpoint and publicCA"),
        ("trust: {caBundle: x, publicCA: {}}", "exactly one of caBundle, configMapRef, spiffeEndpoint and publicCA"),
        ("trust: {publicCA: {}}", "serverNames must not be empty with trust.publicCA"),
        ("trust: {caBundle: x}, serverNames: [a.example]", "must be one of domains or lie below one"),
        ("trust: {caBundle: x}, edges: [{host: a.example, port: 1}]", "its certificate must carry it"),
        ("trust: {caBundle: x}, minTLSVersion: '1.1'", "minTLSVersion"),
        (
            "trust: {spiffeEndpoint: {url: 'https://a/', spiffeTrustDomain: a.example, profile: HTTPSSPIFFE}}",
            "endpointSPIFFEID must be set with profile HTTPSSPIFFE",
        ),
        ("trust: {spiffeEndpoint: {url: 'http://a/', spiffeTrustDomain: a.example, profile: HTTPSWeb}}", "url"),
    ] {
        check(&partner(spec), words);
    }
    place.apply(&declared("a", "[]", ""));
    let said = kubectl(&["get", "trustdomain", "contoso", "-o", "name"]);
    assert!(said.ok, "{}", said.err);
    let patch =
        ["patch", "trustdomain", "contoso", "--type=merge", "-p", "{\"spec\":{\"spiffeTrustDomain\":\"x.example\"}}"];
    assert!(kubectl(&patch).err.contains("must not change"));
}

#[test]
fn a_namespace_without_the_label_gives_no_identity() {
    let place = Place::new("outside");
    let outside = format!("{}-out", place.name);
    namespace(&outside, None);
    let object = declared("web", "[]", "").replace("metadata: {", &format!("metadata: {{namespace: {outside}, "));
    crate::cluster::apply(&object);
    until(20, "the condition", || {
        let template = "jsonpath={.status.conditions[?(@.type==\"Accepted\")].reason}";
        let reason = must(&["-n", &outside, "get", "trustedserver", "web", "-o", template]);
        if reason == "NoTrustDomain" { Ok(()) } else { Err(reason) }
    });
    let _ = kubectl(&["delete", "namespace", &outside, "--wait=false"]);
}
