//! Another organisation at the edge: its own authority, its own names, one server of ours, and nothing behind it.

use std::time::Duration;

use crate::{
    cluster::{Place, must, until},
    organisation::{Organisation, ends},
    workloads::{IDLE, server, service, web},
};

const DOMAIN: &str = "federated";
const SOON: Duration = Duration::from_secs(10);

fn partner(root: &str) -> String {
    let root = root.replace('\n', "\n      ");
    format!(
        "apiVersion: entente.dev/v1alpha1
kind: FederationPartner
metadata: {{name: fabrikam}}
spec:
  domains: [fabrikam.example]
  trust:
    caBundle: |
      {root}"
    )
}

fn partner_is(place: &Place, kind: &str, expected: &str) {
    until(30, &format!("the partner has {kind}={expected}"), || {
        let path = |field: &str| format!("{{.status.conditions[?(@.type==\"{kind}\")].{field}}}");
        let template = format!("jsonpath={}/{}/{}", path("status"), path("reason"), path("message"));
        let found = place.kubectl(&["get", "federationpartner", "fabrikam", "-o", &template]).out;
        if found.starts_with(expected) { Ok(()) } else { Err(found) }
    });
}

#[test]
fn a_partner_reaches_the_edge_server_that_lists_it_under_its_own_names_and_nothing_else() {
    let place = Place::with_domain(DOMAIN, "leaf: {lifetimeSeconds: 3600, clockSkewSeconds: 30}");
    let edges = format!("{{\"spec\": {{\"edgeNamespaces\": [\"{}\"]}}}}", place.name);
    must(&["patch", "trustdomain", DOMAIN, "--type=merge", "-p", &edges]);
    let fabrikam = Organisation::new("Fabrikam", DOMAIN);
    place.apply(&partner(&fabrikam.root()));
    let two = web(8080, "ours").replacen(
        "server {",
        "server { listen 8081; location / { return 200 'theirs'; } } server {",
        1,
    );
    let allowed = "allowFrom: [{partner: {name: fabrikam}, targetPort: 8081}, {server: {name: client}}]";
    place.apply(&server(
        "gate",
        &two,
        &format!("[{{name: sip, port: 5061, targetPort: 8080, {allowed}}}]"),
        "  role: Edge",
    ));
    place.apply(&service("gate", 5061, 5061));
    place.apply(&server("inside", &web(8080, "inside"), "[{name: http, port: 80, targetPort: 8080}]", ""));
    place.apply(&server("client", IDLE, "[]", ""));
    place.ready(&["gate", "inside", "client"]);
    partner_is(&place, "Ready", "True/");
    fabrikam.trusts(&place.bundle("ca.crt"));
    let address = |app: &str| place.must(&["get", "pod", &place.pod(app), "-o", "jsonpath={.status.podIP}"]);
    let (gate, inside) = (format!("{}:5061", address("gate")), format!("{}:8080", address("inside")));

    let sip = fabrikam.certifies("sip.fabrikam.example");
    assert!(fabrikam.calls(&sip, &gate).ends_with("theirs"), "{}", place.picture());
    assert_eq!(place.run("deploy/client", "curl -sS --max-time 5 http://gate:5061/").out, "ours\n");

    let ours = fabrikam.certifies("gate.federated.example");
    assert_eq!(fabrikam.calls(&ours, &gate), "", "its authority does not speak for us");
    assert_eq!(fabrikam.calls(&sip, &inside), "", "nobody inside has heard of it");
    assert_eq!(place.refusals(&place.pod("gate"), "inbound", "NameOutOfScope"), 1);
    assert!(place.refusals(&place.pod("inside"), "inbound", "UntrustedRoot") >= 1);

    // What is open ends with the partner's standing, and it may come back.
    let mut held = fabrikam.dials(&sip, &gate);
    let stdin = held.stdin.take().unwrap();
    assert_eq!(ends(&mut held, Duration::from_secs(2)), None, "it is open");
    place.must(&[
        "patch",
        "federationpartner",
        "fabrikam",
        "--type=merge",
        "-p",
        r#"{"spec": {"state": "Suspended"}}"#,
    ]);
    let took = ends(&mut held, SOON).expect("a suspended partner is cut");
    drop(stdin);
    eprintln!("a suspended partner's connection ended {took:.2?} after kubectl patch");
    assert_eq!(fabrikam.calls(&sip, &gate), "");
    partner_is(&place, "Ready", "False/Suspended");
    place.must(&["patch", "federationpartner", "fabrikam", "--type=merge", "-p", r#"{"spec": {"state": "Active"}}"#]);
    until(10, "it may call again", || {
        let answer = fabrikam.calls(&sip, &gate);
        if answer.ends_with("theirs") { Ok(()) } else { Err(answer) }
    });
}
