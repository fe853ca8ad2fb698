//! What a partner means, and what each mistake costs: itself, and the servers that name it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use rcgen::KeyPair;

use super::MAX_PARTNERS;
use crate::{
    api::{FederationPartner, TrustDomain, TrustedServer},
    pki::{
        self,
        lists::{List, tests::Signer},
        roots::{
            key_of,
            tests::{authority, authority_of, leaf},
        },
    },
    topology::{
        Declared, Key, PartnerKey, Problem, ServerKey, Topology,
        kept::{Failure, Kept, KeptList, KeptSeen},
    },
};

const EDGE: &str = "edge";

fn domain(edge_namespaces: &str) -> TrustDomain {
    serde_saphyr::from_str(&format!(
        "{{apiVersion: entente.dev/v1alpha1, kind: TrustDomain, metadata: {{name: contoso, uid: d1, generation: 1}},
           spec: {{spiffeTrustDomain: contoso.example, dnsSuffixes: [contoso.test], edgeNamespaces: {edge_namespaces}}}}}"
    ))
    .unwrap()
}

/// A partner of namespace `edge`, created at second `age`, with these domains and these roots.
fn partner(name: &str, age: i64, domains: &str, roots: &str) -> FederationPartner {
    let created = Timestamp::from_second(age).unwrap();
    let mut object: FederationPartner = serde_saphyr::from_str(&format!(
        "{{apiVersion: entente.dev/v1alpha1, kind: FederationPartner,
           metadata: {{name: {name}, namespace: edge, uid: u-{name}, generation: 1, creationTimestamp: '{created}'}},
           spec: {{domains: {domains}, trust: {{}}}}}}"
    ))
    .unwrap();
    object.spec.trust.ca_bundle = Some(roots.to_owned());
    object
}

fn server(name: &str, role: &str, allow_from: &str) -> TrustedServer {
    serde_saphyr::from_str(&format!(
        "{{apiVersion: entente.dev/v1alpha1, kind: TrustedServer,
           metadata: {{name: {name}, namespace: edge, uid: u-{name}, generation: 1}},
           spec: {{role: {role}, selector: {{matchLabels: {{app: {name}}}}}, serviceAccountName: {name},
                  ports: [{{name: sip, port: 5061, targetPort: 5060, allowFrom: {allow_from}}}, {{name: web, port: 443}}]}}}}"
    ))
    .unwrap()
}

fn declared(servers: Vec<TrustedServer>, partners: Vec<FederationPartner>) -> Declared {
    let namespaces = [EDGE, "shop"].map(|name| (name.to_owned(), Some("contoso".to_owned())));
    Declared {
        domains: vec![domain("[edge]")],
        servers,
        partners,
        namespaces: BTreeMap::from(namespaces),
        ..Declared::default()
    }
}

fn key(name: &str) -> PartnerKey {
    PartnerKey { namespace: EDGE.into(), name: name.into() }
}

fn server_key(name: &str) -> ServerKey {
    ServerKey { namespace: EDGE.into(), name: name.into() }
}

fn reasons(problems: &[(Key, Problem)], owner: &Key) -> Vec<&'static str> {
    problems.iter().filter(|(one, _)| one == owner).map(|(_, problem)| problem.reason()).collect()
}

fn of(problems: &[(Key, Problem)], name: &str) -> Vec<&'static str> {
    reasons(problems, &Key::Partner(key(name)))
}

#[test]
fn a_partner_means_its_names_and_its_roots_and_edge_servers_may_list_it() {
    let roots = format!("{}{}", authority("late", 0, 9_000), authority("soon", 0, 1_000));
    let entries = "[{partner: {name: fabrikam}, targetPort: 5070}, {server: {name: inside, namespace: shop}}]";
    let mut inside = server("inside", "Internal", "[]");
    inside.metadata.namespace = Some("shop".into());
    let world = declared(
        vec![server("gate", "Edge", entries), inside],
        vec![partner("fabrikam", 1, "[fabrikam.example, fabrikam.test]", &roots)],
    );
    let (topology, problems) = Topology::resolve(&world);
    assert_eq!(problems, vec![]);
    let fabrikam = topology.partner(&key("fabrikam")).unwrap();
    assert_eq!(fabrikam.names.domains.len(), 2);
    assert!(fabrikam.roots[0].subject.contains("soon"), "the first to end is in front");
    let gate = topology.server(&server_key("gate")).unwrap();
    let allow = &gate.ports[0].allow;
    let named: Vec<_> = allow.partners.iter().map(|entry| (entry.name.as_str(), entry.target_port)).collect();
    assert_eq!(named, [("fabrikam", Some(5070))]);
    let servers: Vec<_> = allow.servers.iter().map(|entry| entry.id.server()).collect();
    assert_eq!(servers, ["gate", "inside"]);
    let open = &gate.ports[1].allow;
    assert!(!open.all_declared && open.servers.len() == 1, "AllDeclared is not for Edge servers");
    assert_eq!(topology.domain("contoso").unwrap().edges.iter().map(|id| id.server()).collect::<Vec<_>>(), ["gate"]);
}

#[test]
fn names_that_overlap_ours_or_an_older_partners_are_refused_either_way_round_and_by_whole_labels() {
    let root = authority("root", 0, 9);
    for (domain, fine) in [
        ("contoso.example", false),
        ("sip.contoso.example", false),
        ("example", false),
        ("contoso.test", false),
        ("svc.cluster.local", false),
        ("local", false),
        ("litware.example", false),
        ("a.litware.example", false),
        ("notcontoso.example", true),
        ("contoso.example.org", true),
        ("biglitware.example", true),
    ] {
        let older = partner("litware", 1, "[litware.example]", &root);
        let newer = partner("fabrikam", 2, &format!("[{domain}, fabrikam.test]"), &root);
        let (topology, problems) = Topology::resolve(&declared(vec![], vec![newer, older]));
        let wanted: &[&str] = if fine { &[] } else { &["DomainOverlap"] };
        assert_eq!(of(&problems, "fabrikam"), wanted, "{domain}");
        assert_eq!(of(&problems, "litware"), Vec::<&str>::new(), "{domain}");
        let kept = topology.partner(&key("fabrikam")).unwrap().names.domains.len();
        assert_eq!(kept, if fine { 2 } else { 1 }, "{domain}: the rest goes on");
    }
}

#[test]
fn each_mistake_has_its_reason_and_changes_only_the_partner_and_who_names_it() {
    let own = KeyPair::generate().unwrap();
    let ours = authority_of(&own, "ours", (0, 9));
    let good = authority("good", 0, 9);
    let mut pinned = partner("bad", 2, "[bad.example]", &good);
    pinned.spec.public_key_pins = vec![format!("{}=", "A".repeat(43)), format!("{}B=", "A".repeat(42))];
    let cases = [
        (pinned, "InvalidPin"),
        (partner("bad", 2, "[contoso.example]", &good), "DomainOverlap"),
        (partner("bad", 2, "[bad.example]", &leaf("bad.example")), "NotACA"),
        (partner("bad", 2, "[bad.example]", &ours), "AnchorIsOurs"),
        (partner("bad", 2, "[bad.example]", &authority_of(&own, "another name", (0, 99))), "AnchorIsOurs"),
        (partner("bad", 2, "[bad.example]", "nonsense"), "Unreadable"),
        (partner("bad", 2, "[bad.example]", ""), "Unreadable"),
    ];
    for (bad, reason) in cases {
        let servers = vec![
            server("gate", "Edge", "[{partner: {name: litware}}]"),
            server("other", "Edge", "[{partner: {name: bad}}, {partner: {name: litware}}]"),
        ];
        let mut world = declared(servers, vec![partner("litware", 1, "[litware.example]", &good), bad]);
        world.own_keys.extend(key_of(&pki::certificate(&ours).unwrap()));
        let (topology, problems) = Topology::resolve(&world);
        assert_eq!(of(&problems, "bad"), [reason]);
        assert_eq!(reasons(&problems, &Key::Server(server_key("other"))), ["UnknownPartner"], "{reason}");
        assert_eq!(problems.len(), 2, "{reason}: {problems:?}");
        assert!(topology.partner(&key("bad")).is_none(), "{reason}");
        let other = &topology.server(&server_key("other")).unwrap().ports[0].allow;
        assert_eq!(other.partners.len(), 1, "{reason}: what is right about the server goes on");
    }
}

#[test]
fn a_bad_root_costs_itself_and_the_others_go_on() {
    let mixed = format!("{}{}", authority("good", 0, 9), leaf("fabrikam.example"));
    let world = declared(vec![], vec![partner("fabrikam", 1, "[fabrikam.example]", &mixed)]);
    let (topology, problems) = Topology::resolve(&world);
    assert_eq!(of(&problems, "fabrikam"), ["NotACA"]);
    assert_eq!(topology.partner(&key("fabrikam")).unwrap().roots.len(), 1);
}

#[test]
fn partners_and_edge_servers_are_in_edge_namespaces_only() {
    let root = authority("root", 0, 9);
    let mut world = declared(
        vec![server("gate", "Edge", "[]"), server("inside", "Internal", "[{partner: {name: fabrikam}}]")],
        vec![partner("fabrikam", 1, "[fabrikam.example]", &root)],
    );
    let (_, problems) = Topology::resolve(&world);
    assert_eq!(
        reasons(&problems, &Key::Server(server_key("inside"))),
        ["UnknownPartner"],
        "only Edge servers list one"
    );
    world.domains = vec![domain("[elsewhere]")];
    let (topology, problems) = Topology::resolve(&world);
    assert_eq!(of(&problems, "fabrikam"), ["NotEdgeNamespace"]);
    assert_eq!(reasons(&problems, &Key::Server(server_key("gate"))), ["EdgeNotAllowedHere"]);
    assert!(topology.server(&server_key("gate")).is_none() && topology.server(&server_key("inside")).is_some());
    world.namespaces.insert(EDGE.into(), None);
    assert_eq!(of(&Topology::resolve(&world).1, "fabrikam"), ["NoTrustDomain"]);
}

#[test]
fn a_partner_of_another_namespace_takes_nothing_away() {
    let root = authority("root", 0, 9);
    let mut elsewhere = partner("fabrikam", 1, "[fabrikam.example]", &root);
    elsewhere.metadata.namespace = Some("shop".into());
    let gate = server("gate", "Edge", "[{partner: {name: other}}]");
    let mut world = declared(vec![gate], vec![elsewhere, partner("other", 2, "[fabrikam.example]", &root)]);
    world.domains = vec![domain("[edge, shop]")];
    let (topology, problems) = Topology::resolve(&world);
    assert_eq!((problems, topology.partners().count()), (vec![], 2));
    world.servers = vec![server("gate", "Edge", "[{partner: {name: fabrikam}}]")];
    let (_, problems) = Topology::resolve(&world);
    assert_eq!(reasons(&problems, &Key::Server(server_key("gate"))), ["UnknownPartner"], "nor is it listed here");
}

#[test]
fn a_callers_own_local_port_must_be_no_other_ports_number() {
    for (number, fine) in [(5070, true), (5060, true), (5061, true), (443, false)] {
        let entries = format!("[{{server: {{name: other}}, targetPort: {number}}}]");
        let world = declared(vec![server("gate", "Edge", &entries), server("other", "Internal", "[]")], vec![]);
        let (topology, problems) = Topology::resolve(&world);
        let wanted: &[&str] = if fine { &[] } else { &["TargetPortConflict"] };
        assert_eq!(reasons(&problems, &Key::Server(server_key("gate"))), wanted, "{number}");
        let allow = &topology.server(&server_key("gate")).unwrap().ports[0].allow;
        assert_eq!(allow.servers.iter().any(|entry| entry.target_port == Some(number)), fine, "{number}");
    }
}

/// Keeps `record` as what the sources of `object` said.
fn keep(world: &mut Declared, name: &str, record: Kept) {
    let seen = KeptSeen { record: Some(record.into()), ..KeptSeen::default() };
    world.kept.insert(key(name), seen);
}

#[test]
fn roots_of_another_source_count_as_they_were_kept_for_this_very_object_and_move_the_digest() {
    let mut object = partner("fabrikam", 1, "[fabrikam.example]", "");
    object.spec.trust = serde_saphyr::from_str("{configMapRef: {name: roots, key: ca.crt}}").unwrap();
    let mut world = declared(vec![], vec![object.clone()]);
    assert_eq!(of(&Topology::resolve(&world).1, "fabrikam"), ["Unreadable"]);
    let mut digest = |record: Kept| {
        keep(&mut world, "fabrikam", record);
        let (topology, problems) = Topology::resolve(&world);
        (topology.domain("contoso").unwrap().digest.clone(), of(&problems, "fabrikam").len())
    };
    let held = |pem: &str| Kept { pem: pem.to_owned(), ..Kept::of(&object) };
    let (one, two) = (authority("one", 0, 9), authority("two", 0, 9));
    let first = digest(held(&one));
    assert_eq!(first.1, 0);
    assert_ne!(digest(held(&two)).0, first.0);
    let failing = Kept { failure: Some(Failure::fetch("it is gone")), ..held(&one) };
    assert_eq!(digest(failing), (first.0, 0), "what was good stays while its source is broken");
    for foreign in [Kept { uid: "another".into(), ..held(&one) }, Kept { source: "caBundle".into(), ..held(&one) }] {
        assert_eq!(digest(foreign).1, 1, "nobody inherits");
    }
}

#[test]
fn a_slip_in_the_object_itself_costs_none_of_the_roots_that_were_good() {
    let good = authority("good", 0, 9);
    for garbage in ["nonsense", leaf("www.fabrikam.example").as_str()] {
        let object = partner("fabrikam", 1, "[fabrikam.example]", garbage);
        let mut world = declared(vec![], vec![object.clone()]);
        assert!(Topology::resolve(&world).0.partner(&key("fabrikam")).is_none());
        keep(&mut world, "fabrikam", Kept { pem: good.clone(), ..Kept::of(&object) });
        let (topology, problems) = Topology::resolve(&world);
        assert!(topology.partner(&key("fabrikam")).unwrap().roots[0].subject.contains("good"));
        assert_eq!(of(&problems, "fabrikam").len(), 1, "and it says what is wrong");
        let other = FederationPartner { metadata: ObjectMeta { uid: Some("new".into()), ..object.metadata }, ..object };
        world.partners = vec![other];
        assert!(Topology::resolve(&world).0.partner(&key("fabrikam")).is_none(), "another object has none of it");
    }
}

#[test]
fn the_web_pki_vouches_for_named_servers_alone_and_for_nobody_without_names() {
    let mut object = partner("fabrikam", 1, "[fabrikam.example]", "");
    object.spec.trust = serde_saphyr::from_str("{publicCA: {}}").unwrap();
    let world = declared(vec![], vec![object.clone()]);
    assert_eq!(of(&Topology::resolve(&world).1, "fabrikam"), ["ServerNamesRequired"]);
    object.spec.server_names = vec!["sip.fabrikam.example".into()];
    let (topology, problems) = Topology::resolve(&declared(vec![], vec![object]));
    let fabrikam = topology.partner(&key("fabrikam")).unwrap();
    assert_eq!((problems.len(), fabrikam.names.web, fabrikam.roots.len()), (0, true, 0));
}

#[test]
fn identities_of_a_trust_domain_are_one_partners_and_never_ours() {
    let with = |name: &str, age: i64, domains: &str, trust_domain: &str| {
        let mut object = partner(name, age, domains, "");
        object.spec.trust = serde_saphyr::from_str(&format!(
            "{{spiffeEndpoint: {{url: 'https://x.example', spiffeTrustDomain: {trust_domain}, profile: HTTPSWeb}}}}"
        ))
        .unwrap();
        object
    };
    let objects = vec![
        with("ours", 1, "[fabrikam.example]", "contoso.example"),
        with("theirs", 2, "[litware.example]", "litware.example"),
        with("again", 3, "[tailspin.example]", "litware.example"),
    ];
    let mut world = declared(vec![], objects.clone());
    for object in &objects {
        keep(
            &mut world,
            object.metadata.name.as_ref().unwrap(),
            Kept { pem: authority("r", 0, 9), ..Kept::of(object) },
        );
    }
    let (topology, problems) = Topology::resolve(&world);
    assert_eq!(topology.partners().map(|partner| partner.key.name.as_str()).collect::<Vec<_>>(), ["theirs"]);
    let fabrikam = topology.partner(&key("theirs")).unwrap();
    assert_eq!(fabrikam.names.trust_domain.as_ref().unwrap().as_str(), "litware.example");
    assert_eq!((of(&problems, "ours"), of(&problems, "again")), (vec!["DomainOverlap"], vec!["DomainOverlap"]));
}

#[test]
fn lists_count_for_roots_that_are_there_each_with_its_own_end_and_none_at_all_refuses_or_admits_as_declared() {
    let signer = Signer::new("fabrikam");
    let mut object = partner("fabrikam", 1, "[fabrikam.example]", &signer.root);
    let revocation =
        |world: &Declared| Topology::resolve(world).0.partner(&key("fabrikam")).unwrap().revocation.clone();
    let mut world = declared(vec![], vec![object.clone()]);
    assert_eq!(revocation(&world), None, "it publishes none");
    object.spec.revocation.crl_urls = vec!["http://crl.example".into()];
    world.partners = vec![object.clone()];
    assert!(revocation(&world).unwrap().serials.is_empty(), "nobody is known to be good");
    object.spec.revocation.on_stale = crate::api::OnStale::Allow;
    world.partners = vec![object.clone()];
    assert_eq!(revocation(&world), None);
    let mut record = Kept::of(&object);
    let list = List {
        number: Some("0a".into()),
        this_update: 5,
        next_update: 100,
        serials: vec!["07".into()],
        pem: "p".into(),
    };
    for issuer in [signer.root().key_id, "of a root that is gone".to_owned()] {
        record.lists.insert(issuer, KeptList { source: "http://crl.example".into(), list: list.clone() });
    }
    keep(&mut world, "fabrikam", record);
    let found = revocation(&world).unwrap();
    assert_eq!((found.number, found.this_update, found.next_update), (10, 5, 100 + 86_400));
    let issuer = signer.root().key_id;
    assert_eq!(found.next_updates, BTreeMap::from([(issuer.clone(), 100 + 86_400)]));
    assert_eq!(found.serials, BTreeMap::from([(issuer, vec!["07".to_owned()])]));
}

#[test]
fn of_two_partners_that_came_in_the_same_second_the_accepted_one_keeps_its_names() {
    let root = authority("root", 0, 9);
    let mut holder = partner("zz-holder", 1, "[fabrikam.example]", &root);
    let state = crate::api::conditions::State::good("Accepted", "Accepted", "");
    let conditions = crate::api::conditions::write(&[state], &[], Some(1), Timestamp::UNIX_EPOCH);
    holder.status = Some(crate::api::FederationPartnerStatus { conditions, ..Default::default() });
    let rival = partner("aa-rival", 1, "[fabrikam.example]", &root);
    let mut world = declared(vec![], vec![rival, holder]);
    let first = Topology::resolve(&world);
    assert_eq!(of(&first.1, "aa-rival"), ["DomainOverlap"]);
    assert_eq!(of(&first.1, "zz-holder"), Vec::<&str>::new());
    world.partners.reverse();
    assert_eq!(Topology::resolve(&world), first, "the order of the input does not matter");
}

#[test]
fn the_partners_of_a_namespace_are_bounded_and_the_older_ones_keep_their_place() {
    let root = authority("root", 0, 9);
    let many =
        |count: i64| (0..count).map(|age| partner(&format!("p{age:03}"), age, &format!("[p{age}.example]"), &root));
    let most = i64::try_from(MAX_PARTNERS).unwrap();
    let world = declared(vec![], many(most + 1).collect());
    let (topology, problems) = Topology::resolve(&world);
    assert_eq!(topology.partners().count(), MAX_PARTNERS);
    assert_eq!(of(&problems, &format!("p{most:03}")), ["TooManyPartners"]);
    assert_eq!(problems.len(), 1);
}

#[test]
fn a_servers_own_name_is_no_host_beside_the_topology() {
    let hosts =
        "outbound: {extra: [{host: api.example.com, ports: [443]}, {host: gate.edge.contoso.example, ports: [443]}]}";
    let mut caller = server("caller", "Internal", "[]");
    caller.spec.outbound = serde_saphyr::from_str::<BTreeMap<String, crate::api::OutboundSpec>>(hosts)
        .unwrap()
        .remove("outbound")
        .unwrap();
    let world = declared(vec![caller, server("gate", "Edge", "[]")], vec![]);
    let (topology, problems) = Topology::resolve(&world);
    assert_eq!(reasons(&problems, &Key::Server(server_key("caller"))), ["HostIsDeclared"]);
    let egress = &topology.server(&server_key("caller")).unwrap().egress;
    let named: Vec<_> = egress.hosts.iter().map(|host| (host.host.as_str(), host.ports.as_slice())).collect();
    assert_eq!(named, [("api.example.com", &[443_u16][..])]);
}
