//! Another organisation at the edge: its own authority, its own names, one server of ours, and nothing behind it.

use std::{
    process::{Child, ChildStdin},
    time::Duration,
};

use crate::{
    cluster::{Place, amount, create, until},
    organisation::{Organisation, ends},
    workloads::{IDLE, partner, server, service, web},
};

const DOMAIN: &str = "federated";
const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_partner_reaches_the_edge_server_that_lists_it_under_its_own_names_and_nothing_else() {
    let place = Place::at_the_edge(DOMAIN);
    let fabrikam = Organisation::new("Fabrikam", DOMAIN);
    place.apply(&partner("fabrikam", "", &fabrikam.root()));
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
    place.partner_is("Ready", "True/");
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
    place.partner_is("Ready", "False/Suspended");
    place.must(&["patch", "federationpartner", "fabrikam", "--type=merge", "-p", r#"{"spec": {"state": "Active"}}"#]);
    until(10, "it may call again", || {
        let answer = fabrikam.calls(&sip, &gate);
        if answer.ends_with("theirs") { Ok(()) } else { Err(answer) }
    });
}

/// A connection of a partner that stays open until somebody ends it.
struct Held {
    child: Child,
    _stdin: ChildStdin,
}

impl Held {
    fn open(organisation: &Organisation, name: &str, to: &str) -> Self {
        let mut child = organisation.dials(name, to);
        let stdin = child.stdin.take().unwrap();
        assert_eq!(ends(&mut child, Duration::from_secs(2)), None, "{name} is let in");
        Self { child, _stdin: stdin }
    }

    fn ended(&mut self, what: &str) -> Duration {
        let took = ends(&mut self.child, Duration::from_secs(20)).unwrap_or_else(|| panic!("{what}: it is not cut"));
        eprintln!("{what}: its connection ended {took:.2?} after kubectl");
        took
    }

    fn is_open(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn thousands_of_broken_partners_delay_no_other_partners_end() {
    let place = Place::at_the_edge("crowded");
    let fabrikam = Organisation::new("Fabrikam", "crowded");
    place.apply(&partner("fabrikam", "", &fabrikam.root()));
    let ports = "[{name: sip, port: 5061, targetPort: 8080, allowFrom: [{partner: {name: fabrikam}}]}]";
    place.apply(&server("gate", &web(8080, "gate"), ports, "  role: Edge"));
    place.apply(&service("gate", 5061, 5061));
    place.ready(&["gate"]);
    fabrikam.trusts(&place.bundle("ca.crt"));
    let gate = format!("{}:5061", place.must(&["get", "pod", &place.pod("gate"), "-o", "jsonpath={.status.podIP}"]));
    let sip = fabrikam.certifies("sip.fabrikam.example");
    let mut held = Held::open(&fabrikam, &sip, &gate);
    let many = amount(2_000, 300);
    let one = |number: u64| {
        let object = partner(&format!("p{number}"), "", "nonsense");
        object.replacen("metadata: {", &format!("metadata: {{namespace: {}, ", place.name), 1)
    };
    create(&(0..many).map(one).collect::<Vec<_>>().join("\n---\n"));
    let patch = r#"{"spec": {"state": "Suspended"}}"#;
    place.must(&["patch", "federationpartner", "fabrikam", "--type=merge", "-p", patch]);
    held.ended(&format!("suspended among {many} that are nothing but mistakes"));
    place.partner_is("Ready", "False/Suspended");
}

#[test]
fn what_a_partner_loses_cuts_its_own_connections_and_neither_a_neighbours_nor_by_its_mistakes() {
    let place = Place::at_the_edge("withdrawn");
    let (fabrikam, litware) = (Organisation::new("Fabrikam", "withdrawn"), Organisation::new("Litware", "withdrawn"));
    place.apply(&partner(
        "fabrikam",
        "  revocation: {configMapRef: {name: lists, key: list.pem}, onStale: Allow}",
        &fabrikam.root(),
    ));
    place.apply(&partner("litware", "", &litware.root()));
    let allowed = "allowFrom: [{partner: {name: fabrikam}}, {partner: {name: litware}}]";
    let ports = format!("[{{name: sip, port: 5061, targetPort: 8080, {allowed}}}]");
    place.apply(&server("gate", &web(8080, "gate"), &ports, "  role: Edge"));
    place.apply(&service("gate", 5061, 5061));
    place.ready(&["gate"]);
    let gate = format!("{}:5061", place.must(&["get", "pod", &place.pod("gate"), "-o", "jsonpath={.status.podIP}"]));
    for organisation in [&fabrikam, &litware] {
        organisation.trusts(&place.bundle("ca.crt"));
    }
    let patch = |spec: serde_json::Value| {
        let text = serde_json::json!({ "spec": spec }).to_string();
        place.must(&["patch", "federationpartner", "fabrikam", "--type=merge", "-p", &text]);
    };
    let neighbour = litware.certifies("sip.litware.example");
    let mut neighbour = Held::open(&litware, &neighbour, &gate);

    // Other roots: what the old one vouched for ends, what the new one does comes in.
    let first = fabrikam.certifies("sip.fabrikam.example");
    let mut held = Held::open(&fabrikam, &first, &gate);
    fabrikam.changes_its_root();
    patch(serde_json::json!({"trust": {"caBundle": fabrikam.root()}}));
    held.ended("rotated");
    let second = fabrikam.certifies("next.fabrikam.example");
    until(10, "the new root vouches", || {
        if fabrikam.calls(&second, &gate).trim_end().ends_with("gate") { Ok(()) } else { Err(place.picture()) }
    });

    // Taken back by its own authority: exactly that certificate.
    let other = fabrikam.certifies("other.fabrikam.example");
    let (mut revoked, mut kept) = (Held::open(&fabrikam, &second, &gate), Held::open(&fabrikam, &other, &gate));
    let list = fabrikam.revokes(&second).replace('\n', "\n    ");
    place.apply(&format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: lists}}\ndata:\n  list.pem: |\n    {list}"
    ));
    revoked.ended("revoked by its list, which is read every ten seconds");
    assert!(kept.is_open(), "the list names one certificate");
    assert_eq!(fabrikam.calls(&second, &gate), "");
    assert!(place.refusals(&place.pod("gate"), "inbound", "Revoked") >= 1);

    // Garbage instead of roots, beside partners that are nothing but mistakes: what was good stays.
    patch(serde_json::json!({"trust": {"caBundle": "nonsense"}}));
    place.apply(&partner("broken", "", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"));
    place.apply(
        "apiVersion: entente.dev/v1alpha1
kind: FederationPartner
metadata: {name: away}
spec:
  domains: [away.example]
  trust: {spiffeEndpoint: {url: 'https://nobody.example/', spiffeTrustDomain: away.example, profile: HTTPSWeb}}",
    );
    place.partner_is("TrustFresh", "False/FetchFailed");
    assert!(kept.is_open() && neighbour.is_open());
    assert!(fabrikam.calls(&other, &gate).trim_end().ends_with("gate"), "{}", place.picture());

    // The end of the contract, to the second.
    let end = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() + 4;
    let end = jiff::Timestamp::from_second(i64::try_from(end).unwrap()).unwrap();
    patch(serde_json::json!({"validUntil": end.to_string()}));
    kept.ended("its contract ended four seconds after");
    place.partner_is("Ready", "False/");
    assert_eq!(fabrikam.calls(&other, &gate), "");
    assert!(place.refusals(&place.pod("gate"), "inbound", "PartnerExpired") >= 1);
    assert!(neighbour.is_open(), "the neighbour noticed nothing");
    assert!(litware.calls("sip.litware.example", &gate).trim_end().ends_with("gate"));
}
