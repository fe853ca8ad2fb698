//! What a user writes, and what it comes to mean. Fixtures are YAML as in a manifest.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::topology::facts::TargetPort;

fn domain(yaml: &str) -> TrustDomain {
    serde_saphyr::from_str(yaml).unwrap()
}

fn contoso() -> TrustDomain {
    domain(
        "{apiVersion: entente.dev/v1alpha1, kind: TrustDomain, metadata: {name: contoso, uid: d1, generation: 1},
          spec: {spiffeTrustDomain: contoso.example, dnsSuffixes: [contoso.example]}}",
    )
}

/// A server of namespace `shop`, selecting `app: NAME`, created at second `age`; `more` is further YAML of the spec.
fn server(name: &str, age: i64, more: &str) -> TrustedServer {
    let created = Timestamp::from_second(age).unwrap();
    serde_saphyr::from_str(&format!(
        "apiVersion: entente.dev/v1alpha1
kind: TrustedServer
metadata: {{name: {name}, namespace: shop, uid: u-{name}, generation: 1, creationTimestamp: '{created}'}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  serviceAccountName: {name}
{more}"
    ))
    .unwrap()
}

fn pod(name: &str, app: &str, number: u8) -> PodFacts {
    PodFacts {
        namespace: "shop".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
        labels: BTreeMap::from([("app".into(), app.into())]),
        service_account: app.into(),
        addresses: BTreeSet::from([IpAddr::from([10, 0, 0, number])]),
        injected: true,
        ..PodFacts::default()
    }
}

fn service(name: &str, app: &str, ports: &[(u16, TargetPort)]) -> ServiceFacts {
    ServiceFacts {
        namespace: "shop".into(),
        name: name.into(),
        selector: BTreeMap::from([("app".into(), app.into())]),
        addresses: BTreeSet::from([IpAddr::from([10, 96, 0, 1])]),
        ports: ports.to_vec(),
    }
}

fn declared(servers: Vec<TrustedServer>) -> Declared {
    Declared {
        domains: vec![contoso()],
        servers,
        namespaces: BTreeMap::from([("shop".into(), Some("contoso".into())), ("outside".into(), None)]),
        ..Declared::default()
    }
}

fn key(name: &str) -> ServerKey {
    ServerKey { namespace: "shop".into(), name: name.into() }
}

fn reasons(problems: &[(Key, Problem)], name: &str) -> Vec<&'static str> {
    let own = problems.iter().filter(|(owner, _)| *owner == Key::Server(key(name)));
    own.map(|(_, problem)| problem.reason()).collect()
}

#[test]
fn a_server_means_an_identity_its_names_and_who_may_call_it() {
    let ports = "  dnsNames: [fe.contoso.example]
  ports:
  - {name: sip, port: 5061, targetPort: 5060, allowFrom: [{server: {name: web}}]}
  - {name: open, port: 80}
  - {name: nobody, port: 81, allowFrom: []}";
    let (topology, problems) = Topology::resolve(&declared(vec![server("fe", 1, ports), server("web", 2, "")]));
    assert_eq!(problems, vec![]);
    let fe = topology.server(&key("fe")).unwrap();
    assert_eq!(fe.id.to_string(), "spiffe://contoso.example/ns/shop/server/fe");
    let names: Vec<String> = fe.names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["fe.contoso.example", "fe.shop.contoso.example"]);
    let allowed = |port: usize| {
        let allow = &fe.ports[port].allow;
        (allow.all_declared, allow.servers.iter().map(|one| one.id.server().to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(allowed(0), (false, vec!["fe".to_owned(), "web".to_owned()]));
    assert_eq!(allowed(1), (true, vec![]));
    assert_eq!(allowed(2), (false, vec![]));
}

#[test]
fn one_bad_object_never_stops_the_rest() {
    let bad = "  dnsNames: [elsewhere.example]
  ports: [{name: a, port: 80, allowFrom: [{server: {name: ghost}}]}]
  outbound: {extra: [{cidr: nonsense}, {service: {name: missing}}]}";
    let mut empty = server("empty", 3, "");
    empty.spec.selector = crate::api::PodSelector::default();
    let mut stray = server("stray", 4, "");
    stray.metadata.namespace = Some("outside".into());
    let world = declared(vec![server("good", 1, ""), server("bad", 2, bad), empty, stray]);
    let (topology, problems) = Topology::resolve(&world);
    assert_eq!(reasons(&problems, "good"), Vec::<&str>::new());
    let mut found = reasons(&problems, "bad");
    found.sort_unstable();
    assert_eq!(found, ["InvalidNetwork", "NameOutsideDomain", "UnknownPeer", "UnknownService"]);
    assert_eq!(reasons(&problems, "empty"), ["InvalidSelector"]);
    assert!(topology.server(&key("good")).is_some() && topology.server(&key("bad")).is_some());
    assert!(topology.server(&key("empty")).is_none());
    assert!(problems.iter().any(|(_, problem)| problem.reason() == "NoTrustDomain"));
}

#[test]
fn the_older_server_keeps_a_name_and_a_pod_that_two_claim() {
    let name = "  dnsNames: [www.contoso.example]";
    let mut newer = server("newer", 2, name);
    newer.spec.selector.match_labels = BTreeMap::from([("app".into(), "older".into())]);
    let mut world = declared(vec![newer, server("older", 1, name)]);
    world.pods = vec![pod("a", "older", 1)];
    let (topology, problems) = Topology::resolve(&world);
    assert_eq!(reasons(&problems, "newer"), ["NameConflict", "SelectorOverlap"]);
    assert_eq!(reasons(&problems, "older"), Vec::<&str>::new());
    assert_eq!(topology.pod("uid-a").unwrap().0.key, key("older"));
    assert!(topology.server(&key("older")).unwrap().names.iter().any(|name| name.as_str() == "www.contoso.example"));
}

#[test]
fn of_two_that_came_in_the_same_second_the_accepted_one_keeps_its_name() {
    let name = "  dnsNames: [www.contoso.example]";
    let mut holder = server("zz-holder", 1, name);
    let state = crate::api::conditions::State::good("Accepted", "Accepted", "");
    let conditions = crate::api::conditions::write(&[state], &[], Some(1), Timestamp::UNIX_EPOCH);
    holder.status = Some(crate::api::TrustedServerStatus { conditions, ..Default::default() });
    let (_, problems) = Topology::resolve(&declared(vec![server("aa-rival", 1, name), holder]));
    assert_eq!(reasons(&problems, "aa-rival"), ["NameConflict"]);
    assert_eq!(reasons(&problems, "zz-holder"), Vec::<&str>::new());
}

#[test]
fn nobody_claims_the_topology_name_of_another_server() {
    let claim = "  dnsNames: [fe.shop.contoso.example]";
    let (topology, problems) = Topology::resolve(&declared(vec![server("thief", 1, claim)]));
    assert_eq!(reasons(&problems, "thief"), ["NameConflict"]);
    assert_eq!(topology.server(&key("thief")).unwrap().names.len(), 1);
}

#[test]
fn a_pod_is_a_server_by_its_labels_and_its_service_account_both() {
    let (topology, _) = Topology::resolve(&declared(vec![server("web", 1, "")]));
    assert!(topology.attest(&pod("a", "web", 1)).is_ok());
    let forged = PodFacts { service_account: "default".into(), ..pod("b", "web", 2) };
    assert_eq!(topology.attest(&forged).unwrap_err().code(), "ServiceAccountMismatch");
    assert_eq!(topology.attest(&pod("c", "other", 3)).unwrap_err().code(), "NoMatchingServer");
    let elsewhere = PodFacts { namespace: "outside".into(), ..pod("d", "web", 4) };
    assert_eq!(topology.attest(&elsewhere).unwrap_err().code(), "NoMatchingServer");
}

#[test]
fn a_service_port_must_lead_to_a_declared_port_of_one_server() {
    let ports = "  ports: [{name: http, port: 80, targetPort: 8080}]";
    let mut world = declared(vec![server("web", 1, ports), server("api", 2, ports)]);
    let mut named = pod("a", "web", 1);
    named.named_ports.insert("http".into(), 8080);
    world.pods = vec![named];
    let leads = |port, target| (port, target);
    world.services = vec![service(
        "web",
        "web",
        &[
            leads(80, TargetPort::Named("http".into())),
            leads(81, TargetPort::Number(80)),
            leads(82, TargetPort::Number(9)),
        ],
    )];
    let (topology, problems) = Topology::resolve(&world);
    assert_eq!(reasons(&problems, "web"), ["ServicePortMismatch"]);
    let (owner, _, ports) = topology.services().next().unwrap();
    assert_eq!((owner, ports.keys().copied().collect::<Vec<_>>()), (&key("web"), vec![80, 81]));
    let server = topology.server(&key("web")).unwrap();
    let names: Vec<String> = topology.names_of_server(server).iter().map(ToString::to_string).collect();
    assert!(names.contains(&"web.shop.svc.cluster.local".to_owned()) && names.contains(&"web.shop.svc".to_owned()));
}

#[test]
fn a_service_over_two_servers_leads_nowhere() {
    let mut world = declared(vec![server("web", 1, ""), server("api", 2, "")]);
    let tier = |mut pod: PodFacts| {
        pod.labels.insert("tier".into(), "all".into());
        pod
    };
    world.pods = vec![tier(pod("a", "web", 1)), tier(pod("b", "api", 2))];
    world.services = vec![ServiceFacts {
        selector: BTreeMap::from([("tier".into(), "all".into())]),
        ..service("both", "", &[(80, TargetPort::Number(80))])
    }];
    let (topology, problems) = Topology::resolve(&world);
    assert_eq!(topology.services().count(), 0);
    assert_eq!(reasons(&problems, "web"), ["ServiceSpansServers"]);
    assert_eq!(reasons(&problems, "api"), ["ServiceSpansServers"]);
}

#[test]
fn a_member_of_a_stateful_set_has_its_own_name() {
    let mut world = declared(vec![server("db", 1, "  ports: [{name: db, port: 6379}]")]);
    let member = PodFacts { member: Some(("db-0".into(), "db".into())), ..pod("db-0", "db", 1) };
    world.pods = vec![member];
    world.services = vec![ServiceFacts { addresses: BTreeSet::new(), ..service("db", "db", &[]) }];
    let (topology, _) = Topology::resolve(&world);
    let (server, pod) = topology.pod("uid-db-0").unwrap();
    let names = topology.names_of(server, pod);
    assert!(names.iter().any(|name| name.as_str() == "db-0.db.shop.svc.cluster.local"));
    assert!(names.iter().any(|name| name.as_str() == "db.shop.svc.cluster.local"));
}

#[test]
fn the_order_of_the_input_does_not_matter() {
    let name = "  dnsNames: [www.contoso.example]";
    let mut world = declared(vec![server("a", 1, name), server("b", 1, name), server("c", 3, name)]);
    world.pods = vec![pod("a", "a", 1), pod("b", "b", 2)];
    let first = Topology::resolve(&world);
    world.servers.reverse();
    world.pods.reverse();
    assert_eq!(Topology::resolve(&world), first);
}

#[test]
fn the_digest_follows_declarations_and_not_addresses() {
    let mut world = declared(vec![server("a", 1, "")]);
    let digest = |world: &Declared| Topology::resolve(world).0.domain("contoso").unwrap().digest.clone();
    let first = digest(&world);
    world.pods = vec![pod("a", "a", 1)];
    assert_eq!(digest(&world), first);
    world.servers[0].metadata.generation = Some(2);
    assert_ne!(digest(&world), first);
}

#[test]
fn two_domains_with_one_name_are_settled_by_age() {
    let mut world = declared(vec![]);
    let mut newer = contoso();
    newer.metadata.name = Some("other".into());
    newer.metadata.uid = Some("d2".into());
    world.domains.push(newer);
    let (topology, problems) = Topology::resolve(&world);
    assert_eq!(topology.domains().count(), 1);
    assert_eq!(problems[0].1.reason(), "TrustDomainConflict");
}

#[test]
fn a_port_of_server_tls_says_how_clients_are_met_and_no_other_does() {
    let ports = "  ports:
  - {name: web, port: 443, mode: ServerTLS, alpn: [h2], minTLSVersion: '1.2', clientCertificate: Optional}
  - {name: plain, port: 444, mode: ServerTLS}
  - {name: mutual, port: 445}";
    let (topology, problems) = Topology::resolve(&declared(vec![server("web", 1, ports)]));
    assert_eq!(problems, vec![]);
    let found = &topology.servers().next().unwrap().ports;
    let met: Vec<_> = found.iter().map(|port| port.server_tls.clone()).collect();
    let lenient = ServerTls { alpn: vec!["h2".into()], tls12: true, client_certificate: true };
    assert_eq!(met, [Some(lenient), Some(ServerTls::default()), None]);
}

#[test]
fn a_bundle_endpoint_of_ours_is_there_where_it_is_asked_for_and_is_no_server() {
    let mut world = declared(vec![server("web", 1, "  ports: [{name: a, port: 80}]")]);
    world.pods =
        vec![pod("web-1", "web", 1), PodFacts { namespace: "entente-system".into(), ..pod("controller", "", 2) }];
    let (before, _) = Topology::resolve(&world);
    assert_eq!(before.endpoints().count(), 0);
    world.bundle_endpoint = Some("entente-system".into());
    let (after, problems) = Topology::resolve(&world);
    assert_eq!(problems, vec![]);
    let own = after.endpoints().next().unwrap();
    assert_eq!(own.id.to_string(), "spiffe://contoso.example/ns/entente-system/server/bundle-contoso");
    assert_eq!((own.uid.as_str(), own.secret_name.as_deref()), ("d1", Some("entente-bundle-contoso")));
    assert_eq!(
        own.names.iter().map(DnsName::as_str).collect::<Vec<_>>(),
        ["bundle-contoso.entente-system.contoso.example"]
    );
    assert_eq!((after.server(&own.key), after.holder(&own.key)), (None, Some(own)));
    assert_eq!(Topology { endpoints: BTreeMap::new(), ..after.clone() }, before, "nothing else is different");
}

#[test]
fn a_bundle_endpoint_shares_neither_name_nor_secret_with_a_server_and_the_domain_says_so() {
    let elsewhere = |name: &str| {
        let mut object = server(name, 1, "");
        object.metadata.namespace = Some("entente-system".into());
        object
    };
    let mut ending = elsewhere("bundle-contoso");
    ending.metadata.deletion_timestamp = Some(crate::api::conditions::seconds(Timestamp::UNIX_EPOCH));
    let mut thief = elsewhere("thief");
    thief.spec.certificate.secret_name = "entente-bundle-contoso".into();
    for other in [elsewhere("bundle-contoso"), ending, thief] {
        for joined in [None, Some("contoso".to_owned())] {
            let mut world = declared(vec![other.clone()]);
            world.bundle_endpoint = Some("entente-system".into());
            world.namespaces.insert("entente-system".into(), joined);
            let (topology, problems) = Topology::resolve(&world);
            assert_eq!(topology.endpoints().count(), 0);
            let said = problems.iter().filter(|(key, _)| *key == Key::Domain("contoso".into()));
            assert_eq!(said.map(|(_, problem)| problem.reason()).collect::<Vec<_>>(), ["EndpointTaken"]);
        }
    }
    let name = "  dnsNames: [bundle-contoso.entente-system.contoso.example]";
    let mut world = declared(vec![elsewhere("other"), server("web", 1, name)]);
    world.bundle_endpoint = Some("entente-system".into());
    let (topology, problems) = Topology::resolve(&world);
    assert_eq!((topology.endpoints().count(), reasons(&problems, "web")), (1, vec!["NameConflict"]));
    let mut long = contoso();
    long.metadata.name = Some("c".repeat(60));
    world.domains = vec![long];
    let (topology, problems) = Topology::resolve(&world);
    assert_eq!((topology.endpoints().count(), topology.domains().count()), (0, 1));
    assert!(problems.iter().any(|(key, problem)| matches!(key, Key::Domain(_)) && problem.reason() == "InvalidName"));
}
