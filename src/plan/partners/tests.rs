//! Who is told of a partner, when, and what its status says.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::*;
use crate::{
    api::{FederationPartner, PartnerState, TrustedServer},
    brief::{Brief, Cursor, INTERNAL, PartnerContact},
    identity::DnsName,
    pki::roots::tests::authority,
    plan::{
        briefs::{self, Trust},
        news,
        tests::{at, condition, follow, is, pod, server, settle, world},
    },
    refusal::Refusal,
    topology::facts::PodFacts,
};

fn partner(name: &str, roots: &str) -> FederationPartner {
    let mut object: FederationPartner = serde_saphyr::from_str(&format!(
        "{{apiVersion: entente.dev/v1alpha1, kind: FederationPartner,
           metadata: {{name: {name}, namespace: shop, uid: u-{name}, generation: 1}},
           spec: {{domains: [{name}.example], trust: {{}}}}}}"
    ))
    .unwrap();
    object.spec.trust.ca_bundle = Some(roots.to_owned());
    object
}

/// An Edge server that lists fabrikam, one that does not, and one inside; in an edge namespace.
fn edges(roots: &str) -> World {
    let lists = "[{name: sip, port: 5061, allowFrom: [{partner: {name: fabrikam}}]}]";
    let mut servers = vec![server("gate", lists), server("door", "[{name: sip, port: 5061}]"), server("web", "[]")];
    for server in &mut servers[..2] {
        server.spec.role = Role::Edge;
    }
    let mut world = world(servers, vec![pod("gate"), pod("door"), pod("web")]);
    world.declared.domains[0].spec.edge_namespaces = vec!["shop".into()];
    world.declared.partners = vec![partner("fabrikam", roots)];
    world
}

fn brief(world: &World, app: &str, second: i64) -> Brief {
    let (topology, _) = Topology::resolve(&world.declared);
    let (server, pod) = topology.pod(&format!("pod-{app}")).unwrap();
    let partners = told(&topology, server, at(second));
    briefs::brief_of(&topology, server, pod, (&Trust::default(), &partners), Cursor::default())
}

fn ids(brief: &Brief) -> Vec<&str> {
    brief.scopes.iter().map(|scope| scope.id.as_str()).collect()
}

fn of_partner(world: &World, kind: &str) -> (String, String) {
    let conditions = &world.declared.partners[0].status.as_ref().unwrap().conditions;
    let found = conditions.iter().find(|one| one.type_ == kind).unwrap();
    (found.status.clone(), found.reason.clone())
}

/// Every sidecar has what it is told in force.
fn everybody_follows(world: &mut World) {
    for app in ["gate", "door", "web"] {
        follow(world, app, at(100));
    }
    world.behind_since.clear();
}

#[test]
fn only_edge_servers_whose_ports_list_a_partner_are_told_of_it() {
    let world = edges(&authority("fabrikam", 0, 1_000));
    let gate = brief(&world, "gate", 100);
    assert_eq!(ids(&gate), [INTERNAL, "partner/fabrikam"]);
    let scope = gate.scope("partner/fabrikam").unwrap();
    assert_eq!((scope.anchors.len(), scope.issuers.len(), scope.revocation.is_none()), (1, 0, true));
    let ScopeNames::Partner(names) = &scope.names else { unreachable!() };
    assert_eq!(names.domains, [DnsName::parse("fabrikam.example").unwrap()]);
    assert_eq!(gate.ports[0].allow.partners.len(), 1);
    for app in ["door", "web"] {
        assert_eq!(ids(&brief(&world, app, 100)), [INTERNAL], "{app}");
    }
}

#[test]
fn of_a_partner_that_is_suspended_or_past_its_contract_no_brief_holds_a_root() {
    let mut world = edges(&format!("{}{}", authority("first", 0, 500), authority("second", 0, 1_000)));
    let stands = |world: &World, second| {
        let brief = brief(world, "gate", second);
        (brief.scope("partner/fabrikam").unwrap().anchors.len(), brief.link("fabrikam").unwrap().standing)
    };
    assert_eq!(stands(&world, 500), (2, PartnerStanding::Active));
    assert_eq!(stands(&world, 501), (1, PartnerStanding::Active), "one that has ended is dropped");
    assert_eq!(stands(&world, 1_001), (0, PartnerStanding::Active));
    world.declared.partners[0].spec.valid_until = Some(Time(at(300)));
    assert_eq!(stands(&world, 299), (2, PartnerStanding::Active));
    assert_eq!(stands(&world, 300), (0, PartnerStanding::Expired));
    world.declared.partners[0].spec.valid_until = None;
    world.declared.partners[0].spec.state = PartnerState::Suspended;
    assert_eq!(stands(&world, 100), (0, PartnerStanding::Suspended));
}

#[test]
fn edge_servers_stand_outside_all_declared_and_whoever_says_it_knows_them() {
    let mut world = edges(&authority("fabrikam", 0, 1_000));
    world.declared.servers[2] = server("web", "[{name: http, port: 80}]");
    let web = brief(&world, "web", 100);
    assert!(web.ports[0].allow.all_declared);
    assert_eq!(web.edges.iter().map(|id| id.server()).collect::<Vec<_>>(), ["door", "gate"]);
    let door = brief(&world, "door", 100);
    assert!(!door.ports[0].allow.all_declared && door.edges.is_empty());
}

#[test]
fn a_partner_becomes_ready_when_every_edge_sidecar_has_it_and_says_what_is_missing() {
    let mut world = edges(&authority("fabrikam", 0, 1_000));
    settle(&mut world, at(100));
    assert_eq!(of_partner(&world, "Accepted"), is("True", "Accepted"));
    assert_eq!(of_partner(&world, "AnchorsValid"), is("True", "Valid"));
    assert_eq!(of_partner(&world, "Ready"), is("False", "AckPending"));
    everybody_follows(&mut world);
    let waiting = settle(&mut world, at(100));
    assert_eq!(of_partner(&world, "Ready"), is("True", "Ready"));
    assert_eq!(condition(&world, "gate", "Ready"), is("True", "Ready"));
    assert!(waiting.wake_at.is_some_and(|wake| wake <= at(1_001)), "its end is a reason to look again");
    let status = world.declared.partners[0].status.clone().unwrap();
    assert_eq!((status.anchors.len(), status.distribution.edges, status.distribution.current), (1, 2, 2));
    let counts = world.declared.domains[0].status.clone().unwrap();
    assert_eq!((counts.servers.edge, counts.partners.total, counts.partners.ready), (2, 1, 1));

    world.declared.partners[0].spec.state = PartnerState::Suspended;
    world.declared.partners[0].metadata.generation = Some(2);
    settle(&mut world, at(110));
    assert_eq!(of_partner(&world, "Ready"), is("False", "Suspended"));
    settle(&mut world, at(116));
    assert_eq!(of_partner(&world, "Distributed"), is("False", "AckPending"), "the gate has it still in force");
    assert_eq!(condition(&world, "web", "TrustLoaded"), is("True", "Loaded"), "it is none of the others' business");
    assert_eq!(condition(&world, "door", "TrustLoaded"), is("True", "Loaded"));
    follow(&mut world, "gate", at(116));
    settle(&mut world, at(116));
    assert_eq!(of_partner(&world, "Distributed"), is("True", "Distributed"));
}

#[test]
fn a_partner_says_when_its_contract_or_its_roots_end_or_begin() {
    let mut world = edges(&authority("fabrikam", 200, 1_000));
    settle(&mut world, at(100));
    assert_eq!(of_partner(&world, "AnchorsValid"), is("False", "NotYetValid"));
    settle(&mut world, at(1_001));
    assert_eq!(of_partner(&world, "AnchorsValid"), is("False", "AllExpired"));
    world.declared.partners[0].spec.valid_until = Some(Time(at(300)));
    settle(&mut world, at(300));
    assert_eq!(of_partner(&world, "Ready"), is("False", "ContractEnded"));
    world.declared.partners[0].spec.domains = vec!["contoso.example".into()];
    settle(&mut world, at(300));
    assert_eq!(of_partner(&world, "Ready"), is("False", "DomainOverlap"));
    assert_eq!(of_partner(&world, "AnchorsValid"), is("Unknown", "NotAccepted"));
    assert_eq!(condition(&world, "gate", "Accepted"), is("False", "UnknownPartner"));
    assert_eq!(condition(&world, "door", "Accepted"), is("True", "Accepted"));
}

#[test]
fn the_roots_of_partners_stand_in_a_config_map_as_long_as_they_are_trusted() {
    let roots = authority("fabrikam", 0, 1_000);
    let mut world = edges(&roots);
    world.declared.namespaces.insert("inside".into(), Some("contoso".into()));
    settle(&mut world, at(100));
    let held = |world: &World| world.partner_bundles.get("shop").map(|data| data.keys().cloned().collect::<Vec<_>>());
    assert_eq!(world.partner_bundles.len(), 1, "nowhere but in the edge namespace");
    assert_eq!(held(&world), Some(vec!["fabrikam.crt".to_owned()]));
    world.partner_bundles.get_mut("shop").unwrap().insert("stranger.crt".into(), roots.clone());
    settle(&mut world, at(100));
    assert_eq!(held(&world), Some(vec!["fabrikam.crt".to_owned()]), "what somebody added is taken out");
    world.declared.partners.push(partner("litware", &roots));
    settle(&mut world, at(100));
    assert_eq!(held(&world).map(|keys| keys.len()), Some(2));
    world.declared.partners.pop();
    world.declared.partners[0].spec.state = PartnerState::Suspended;
    settle(&mut world, at(100));
    assert_eq!(held(&world), None);
}

#[test]
fn new_roots_and_roots_that_have_ended_are_told_of() {
    let mut world = edges(&authority("first", 0, 200));
    settle(&mut world, at(100));
    let told = |world: &World, second| {
        let (topology, problems) = Topology::resolve(&world.declared);
        let steps = crate::plan::plan(&topology, &problems, world, at(second)).steps;
        steps.iter().flat_map(|step| news(step, world, &topology)).map(|news| news.reason).collect::<Vec<_>>()
    };
    assert_eq!(told(&world, 100), Vec::<&str>::new());
    assert_eq!(told(&world, 201), ["PartnerTrustStale"]);
    world.declared.partners[0].spec.trust.ca_bundle = Some(authority("second", 0, 900));
    assert_eq!(told(&world, 100), ["PartnerTrustUpdated"]);
}

#[test]
fn while_a_change_waits_to_be_published_what_it_takes_is_gone_and_what_it_adds_is_not_there() {
    let gate = {
        let (topology, _) = Topology::resolve(&edges(&authority("fabrikam", 0, 1_000)).declared);
        topology.pod("pod-gate").unwrap().0.clone()
    };
    let (one, two) = (authority("one", 0, 1_000), authority("two", 0, 1_000));
    let scope_of = |roots: &str, names: &str| {
        let mut world = edges(roots);
        let spec = &mut world.declared.partners[0].spec;
        let names: BTreeMap<String, Vec<String>> = serde_saphyr::from_str(names).unwrap();
        spec.domains = names["domains"].clone();
        spec.server_names = names.get("serverNames").cloned().unwrap_or_default();
        let (topology, _) = Topology::resolve(&world.declared);
        told(&topology, topology.pod("pod-gate").unwrap().0, at(100))
    };
    let said = |both: Federation| -> Vec<(usize, Vec<String>, Vec<String>)> {
        let text = |names: &[DnsName]| names.iter().map(ToString::to_string).collect();
        let one = |scope: Scope| match scope.names {
            ScopeNames::Partner(names) => (scope.anchors.len(), text(&names.domains), text(&names.server_names)),
            ScopeNames::Servers => unreachable!(),
        };
        both.scopes.into_iter().map(one).collect()
    };
    let (both, a, ab) = (format!("{one}{two}"), "{domains: [a.example]}", "{domains: [a.example, b.example]}");
    let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let exact = "{domains: [a.example], serverNames: [x.a.example, y.a.example]}";
    let cases = [
        ((&both, ab), (&one, ab), vec![(1, names(&["a.example", "b.example"]), vec![])]),
        ((&one, a), (&both, ab), vec![(1, names(&["a.example"]), vec![])]),
        ((&one, ab), (&one, a), vec![(1, names(&["a.example"]), vec![])]),
        ((&one, a), (&two, a), vec![(0, names(&["a.example"]), vec![])]),
        ((&one, "{domains: [b.example]}"), (&one, a), vec![]),
        ((&one, a), (&one, exact), vec![(1, names(&["a.example"]), names(&["x.a.example", "y.a.example"]))]),
        ((&one, exact), (&one, a), vec![(1, names(&["a.example"]), names(&["x.a.example", "y.a.example"]))]),
    ];
    for (published, now, wanted) in cases {
        assert_eq!(said(common(scope_of(published.0, published.1), &scope_of(now.0, now.1), &gate)), wanted);
    }
    assert_eq!(said(common(scope_of(&one, a), &Federation::default(), &gate)), vec![], "whoever is deleted is gone");
    let suspended = |standing| {
        let mut told = scope_of(&one, a);
        told.links[0].standing = standing;
        told
    };
    for (published, now) in [
        (PartnerStanding::Active, PartnerStanding::Suspended),
        (PartnerStanding::Suspended, PartnerStanding::Active),
        (PartnerStanding::Active, PartnerStanding::Expired),
    ] {
        let both = common(suspended(published), &suspended(now), &gate);
        assert_ne!(both.links[0].standing, PartnerStanding::Active, "{published:?}, {now:?}");
    }
}

#[test]
fn roots_of_the_web_pki_are_told_to_servers_that_list_such_a_partner_and_to_nobody_else() {
    let mut world = edges("");
    world.declared.web_roots = ["a root".to_owned()].into();
    let object = &mut world.declared.partners[0];
    object.spec.trust = serde_saphyr::from_str("{publicCA: {}}").unwrap();
    object.spec.server_names = vec!["sip.fabrikam.example".into()];
    let gate = brief(&world, "gate", 0);
    assert_eq!(gate.web_roots, ["a root"]);
    let scope = gate.scopes.iter().find(|scope| scope.id == partner_scope("fabrikam")).unwrap();
    assert!(scope.anchors.is_empty() && matches!(&scope.names, ScopeNames::Partner(names) if names.web));
    for other in ["door", "web"] {
        assert!(brief(&world, other, 0).web_roots.is_empty(), "{other}");
    }
    world.declared.partners[0].spec.state = PartnerState::Suspended;
    assert!(brief(&world, "gate", 0).web_roots.is_empty());
}

#[test]
fn what_a_partner_took_back_is_told_before_the_rest_of_a_change_is_published() {
    let mut world = edges(&authority("root", 0, 9_000));
    world.declared.partners[0].spec.revocation.crl_urls = vec!["http://crl.example".into()];
    let (topology, _) = Topology::resolve(&world.declared);
    let gate = topology.servers().find(|server| server.key.name == "gate").unwrap();
    let now = told(&topology, gate, at(0));
    let mut published = now.clone();
    published.scopes[0].revocation = None;
    assert!(common(published.clone(), &now, gate).scopes[0].revocation.is_some(), "lists count at once");
    assert!(common(now, &published, gate).scopes[0].revocation.is_some(), "and stop to count when that is published");
}

/// SplitMix64: a seed is a world.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

const PLACES: [&str; 3] = ["n0", "n1", "n2"];

/// Servers of both roles and partners, in edge namespaces and elsewhere, naming each other as they like.
fn random(seed: u64, roots: &[String]) -> World {
    let mut dice = Dice(seed);
    let mut world = world(vec![], vec![]);
    world.declared.namespaces = PLACES.iter().map(|place| ((*place).to_owned(), Some("contoso".to_owned()))).collect();
    world.declared.domains[0].spec.edge_namespaces =
        PLACES.iter().filter(|_| dice.below(3) > 0).map(|place| (*place).to_owned()).collect();
    for number in 0..6 {
        let entries: Vec<String> =
            (0..dice.below(3)).map(|_| format!("{{partner: {{name: {}}}}}", dice.pick(&["p0", "p1", "p2"]))).collect();
        let allow = if dice.below(3) == 0 { String::new() } else { format!(", allowFrom: [{}]", entries.join(", ")) };
        let mut one: TrustedServer = server(&format!("s{number}"), &format!("[{{name: a, port: 80{allow}}}]"));
        one.metadata.namespace = Some(dice.pick(&PLACES).to_owned());
        one.spec.role = if dice.below(2) == 0 { Role::Edge } else { Role::Internal };
        let place = one.metadata.namespace.clone().unwrap();
        world.declared.pods.push(PodFacts { namespace: place, ..pod(&format!("s{number}")) });
        world.declared.servers.push(one);
    }
    for number in 0..4 {
        let mut one = partner(&format!("p{}", number % 3), &roots[usize::try_from(dice.below(3)).unwrap()]);
        one.metadata.namespace = Some(dice.pick(&PLACES).to_owned());
        one.metadata.uid = Some(format!("u{number}"));
        if dice.below(3) == 0 {
            one.spec.edges = vec![crate::api::PartnerEdge { host: format!("sip.{}", one.spec.domains[0]), port: 5061 }];
        }
        one.spec.state = if dice.below(4) == 0 { PartnerState::Suspended } else { PartnerState::Active };
        if dice.below(4) == 0 {
            one.spec.domains = vec![dice.pick(&["contoso.example", "p0.example", "example"]).to_owned()];
        }
        let same = |other: &FederationPartner| PartnerKey::of(other) == PartnerKey::of(&one);
        if !world.declared.partners.iter().any(same) {
            world.declared.partners.push(one);
        }
    }
    world
}

/// Scopes of the partners of a namespace that may be called.
fn callable_here(world: &World, namespace: &str) -> Vec<String> {
    let here = world.declared.partners.iter().filter(|one| one.metadata.namespace.as_deref() == Some(namespace));
    here.filter(|one| !one.spec.edges.is_empty()).map(|one| partner_scope(&PartnerKey::of(one).name)).collect()
}

#[test]
fn in_no_topology_is_an_internal_server_told_of_a_partner_and_an_edge_server_only_of_those_it_meets() {
    let roots = [authority("a", 0, 150), authority("b", 0, 1_000), "nonsense".to_owned()];
    let (mut scopes, mut internal) = (0, 0);
    for seed in 0..500 {
        let world = random(seed, &roots);
        let (topology, _) = Topology::resolve(&world.declared);
        let edge_namespaces = &topology.domain("contoso").unwrap().edge_namespaces;
        for (key, pod) in topology.pods() {
            let server = topology.server(key).unwrap();
            let partners = told(&topology, server, at(200));
            let brief = briefs::brief_of(&topology, server, pod, (&Trust::default(), &partners), Cursor::default());
            let ids: BTreeSet<String> = brief.scopes.iter().skip(1).map(|scope| scope.id.clone()).collect();
            let entries = brief.ports.iter().flat_map(|port| &port.allow.partners);
            let callable = |link: &&PartnerLink| !link.edges.is_empty();
            let called = brief.partners.iter().filter(callable).map(|link| link.name.as_str());
            let met = entries.map(|entry| entry.name.as_str()).chain(called).map(partner_scope);
            assert_eq!(ids, met.collect(), "seed {seed}: {key}");
            let linked: BTreeSet<String> = brief.partners.iter().map(|link| partner_scope(&link.name)).collect();
            assert_eq!(ids, linked, "seed {seed}: {key}");
            let may = server.role == Role::Edge && edge_namespaces.contains(&key.namespace);
            assert!(may || ids.is_empty(), "seed {seed}: {key}");
            let object = world.declared.server(key).unwrap();
            let lists: BTreeSet<String> = object
                .spec
                .ports
                .iter()
                .flat_map(|port| port.allow_from.iter().flatten())
                .filter_map(|entry| Some(partner_scope(&entry.partner.as_ref()?.name)))
                .chain(callable_here(&world, &key.namespace))
                .collect();
            assert!(ids.is_subset(&lists), "seed {seed}: {key}");
            for scope in brief.scopes.iter().skip(1) {
                let name = scope.id.split_once('/').unwrap().1.to_owned();
                let partner = topology.partner(&PartnerKey { namespace: key.namespace.clone(), name }).unwrap();
                let trusted = partner.standing(at(200)) == PartnerStanding::Active;
                assert!((trusted || scope.anchors.is_empty()) && !scope.anchors.contains(&roots[0]), "seed {seed}");
            }
            scopes += ids.len();
            internal += usize::from(server.role == Role::Internal);
        }
    }
    assert!(scopes > 40 && internal > 500, "the worlds are not empty: {scopes}, {internal}");
}

#[test]
fn an_edge_server_is_told_where_a_partner_is_and_may_call_it_without_being_called() {
    let mut world = edges(&authority("fabrikam", 0, 1_000));
    let spec: crate::api::FederationPartnerSpec = serde_saphyr::from_str(
        "{domains: [fabrikam.example], trust: {}, minTLSVersion: '1.2', presentSecretName: shown,
          edges: [{host: sip.fabrikam.example, port: 5061}, {host: sip.litware.example, port: 5061}],
          limits: {maxConnections: 7}}",
    )
    .unwrap();
    let trust = std::mem::take(&mut world.declared.partners[0].spec.trust);
    world.declared.partners[0].spec = crate::api::FederationPartnerSpec { trust, ..spec };
    for app in ["gate", "door"] {
        let link = brief(&world, app, 100).partners.remove(0);
        assert_eq!(link.edges.len(), 1, "{app}: a host outside its domains could never prove itself");
        assert_eq!((link.edges[0].host.as_str(), link.edges[0].port), ("sip.fabrikam.example", 5061));
        assert_eq!((link.tls12, link.presents, link.max_connections, link.handshakes_per_second), (true, true, 7, 10));
    }
    assert_eq!(brief(&world, "web", 100).partners, vec![]);
    let (topology, _) = Topology::resolve(&world.declared);
    let secrets = |app: &str| presented(&topology, topology.pod(&format!("pod-{app}")).unwrap().0);
    assert_eq!(secrets("door"), BTreeMap::from([("fabrikam".to_owned(), "shown".to_owned())]));
    assert_eq!(secrets("web"), BTreeMap::new());
}

#[test]
fn a_call_that_failed_is_against_a_partner_and_one_that_was_never_tried_is_not() {
    let mut world = edges(&authority("fabrikam", 0, 1_000));
    settle(&mut world, at(100));
    everybody_follows(&mut world);
    settle(&mut world, at(100));
    assert_eq!(of_partner(&world, "Reachable"), is("Unknown", "NotTried"));
    assert_eq!(of_partner(&world, "Ready"), is("True", "Ready"));
    let timeout = Refusal::Timeout(crate::refusal::TimeoutDetail::Connect);
    for (pod, second, refused, wanted) in [
        ("pod-gate", 110, None, is("True", "Verified")),
        ("pod-door", 120, Some(Refusal::DialFailed), is("False", "DialFailed")),
        ("pod-gate", 130, Some(timeout), is("False", "DialFailed")),
        ("pod-gate", 140, Some(Refusal::NameOutOfScope), is("False", "NameOutOfScope")),
        ("pod-gate", 120, None, is("False", "DialFailed")),
        ("pod-door", 150, None, is("True", "Verified")),
    ] {
        let contact = PartnerContact { at: second, refused };
        world.proxies.get_mut(pod).unwrap().contacts.insert("fabrikam".to_owned(), contact);
        settle(&mut world, at(200));
        assert_eq!(of_partner(&world, "Reachable"), wanted, "{pod} at {second}");
        assert_eq!(of_partner(&world, "Ready").0, wanted.0);
    }
}

#[test]
fn a_deleted_partner_stays_until_no_edge_sidecar_that_can_be_reached_trusts_it() {
    let mut world = edges(&authority("fabrikam", 0, 1_000));
    settle(&mut world, at(100));
    everybody_follows(&mut world);
    settle(&mut world, at(100));
    let held = |world: &World| world.declared.partners[0].metadata.finalizers.clone().unwrap_or_default();
    assert_eq!(held(&world), ["entente.dev/withdrawal"]);
    world.declared.partners[0].metadata.deletion_timestamp = Some(Time(at(110)));
    settle(&mut world, at(110));
    assert_eq!(held(&world), ["entente.dev/withdrawal"], "the gate has it still in force");
    assert_eq!(ids(&brief(&world, "gate", 110)), [INTERNAL], "though nobody is told of it any more");
    let mut unreachable = world.clone();
    follow(&mut world, "gate", at(110));
    settle(&mut world, at(110));
    assert_eq!(held(&world), Vec::<String>::new());
    unreachable.proxies.get_mut("pod-gate").unwrap().connected = false;
    settle(&mut unreachable, at(120));
    settle(&mut unreachable, at(126));
    assert_eq!(held(&unreachable), Vec::<String>::new(), "nobody waits for a sidecar that cannot be reached");
}

#[test]
fn what_a_domain_says_waits_for_nobodys_status_however_many_partners_are_nothing_but_mistakes() {
    let mut world = edges(&authority("fabrikam", 0, 1_000));
    let bad = |number: i32| {
        let mut one = partner(&format!("p{number}"), "nonsense");
        one.metadata.namespace = Some(["shop", "elsewhere"][usize::from(number % 2 == 0)].to_owned());
        one.spec.domains = vec!["contoso.example".into()];
        one
    };
    world.declared.partners.extend((0..3_000).map(bad));
    let (topology, problems) = Topology::resolve(&world.declared);
    let steps = crate::plan::plan(&topology, &problems, &world, at(100)).steps;
    let domain = steps.iter().position(|step| matches!(step, Step::DomainStatus { .. })).unwrap();
    let first = steps.iter().position(|step| matches!(step, Step::PartnerStatus { .. })).unwrap();
    assert!(domain < first);
    settle(&mut world, at(100));
    assert_eq!(of_partner(&world, "Accepted"), is("True", "Accepted"));
}
