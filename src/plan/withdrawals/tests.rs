//! Every way to lose what one holds, and who is told.

use super::*;
use crate::{
    api::TrustedServer,
    pki::ledger::Owner,
    plan::{
        LedgerSeen,
        tests::{at, created, ledger, pod, record, server, world},
    },
    topology::facts::PodFacts,
};

fn key(name: &str) -> ServerKey {
    ServerKey { namespace: "shop".into(), name: name.into() }
}

/// web and api, a pod each, both with a certificate recorded at 100.
fn shop() -> World {
    let mut world =
        world(vec![server("web", "[{name: a, port: 80}]"), server("api", "[]")], vec![pod("web"), pod("api")]);
    for (number, name) in [(1, "web"), (2, "api")] {
        let records = [record(number, &format!("pod-{name}"), 10_000)];
        world.ledgers.insert(format!("ledger-{name}"), ledger(&key(name), &records));
    }
    world
}

fn object<'a>(world: &'a mut World, name: &str) -> &'a mut TrustedServer {
    world.declared.servers.iter_mut().find(|one| one.metadata.name.as_deref() == Some(name)).unwrap()
}

fn taken(world: &World, second: i64) -> Withdrawals {
    let (topology, _) = Topology::resolve(&world.declared);
    withdrawals(&topology, world, topology.domain("contoso").unwrap(), at(second))
}

/// Why web's one certificate is taken back, and what is said of web as a whole.
fn fate(world: &World, second: i64) -> (Option<Reason>, Option<(i64, WithdrawnDetail)>) {
    let all = taken(world, second);
    let Some(web) = all.of(&key("web")) else { return (None, None) };
    let whole = web.withdrawal.as_ref().map(|one| (one.starting_before, one.reason));
    (web.marks.first().map(|(_, reason)| *reason), whole)
}

#[test]
fn each_way_to_lose_a_certificate_has_its_own_reason() {
    type Case = (&'static str, fn(&mut World), Option<Reason>, Option<(i64, WithdrawnDetail)>);
    let cases: [Case; 12] = [
        ("nothing", |_| (), None, None),
        (
            "suspended",
            |world| object(world, "web").spec.state = crate::api::ServerState::Suspended,
            Some(Reason::Suspended),
            Some((FOR_EVER, WithdrawnDetail::Suspended)),
        ),
        (
            "being deleted",
            |world| object(world, "web").metadata.deletion_timestamp = Some(crate::api::conditions::seconds(at(100))),
            Some(Reason::ServerDeleted),
            Some((FOR_EVER, WithdrawnDetail::Deleted)),
        ),
        (
            "deleted",
            |world| world.declared.servers.retain(|one| one.metadata.name.as_deref() != Some("web")),
            Some(Reason::ServerDeleted),
            Some((FOR_EVER, WithdrawnDetail::Deleted)),
        ),
        (
            "created anew",
            |world| object(world, "web").metadata.uid = Some("another".into()),
            Some(Reason::ServerDeleted),
            Some((1, WithdrawnDetail::Deleted)),
        ),
        (
            "namespace left",
            |world| drop(world.declared.namespaces.insert("shop".into(), None)),
            Some(Reason::ServerDeleted),
            Some((FOR_EVER, WithdrawnDetail::Deleted)),
        ),
        (
            "issued before",
            |world| object(world, "web").spec.revoke_issued_before = Some(crate::api::conditions::seconds(at(101))),
            Some(Reason::IssuedBefore),
            Some((101 - 300, WithdrawnDetail::IssuedBefore)),
        ),
        (
            "issued after that moment",
            |world| object(world, "web").spec.revoke_issued_before = Some(crate::api::conditions::seconds(at(100))),
            None,
            None,
        ),
        (
            "a moment to come",
            |world| object(world, "web").spec.revoke_issued_before = Some(crate::api::conditions::seconds(at(901))),
            None,
            None,
        ),
        (
            "stolen key",
            |world| {
                let serial = record(1, "", 0).serial.to_string().to_uppercase();
                world.declared.domains[0].spec.revocation.serials = vec![serial];
            },
            Some(Reason::KeyCompromise),
            None,
        ),
        (
            "broken for a moment",
            |world| object(world, "web").spec.selector = crate::api::PodSelector::default(),
            None,
            None,
        ),
        (
            "unreadable",
            |world| {
                world.declared.servers.retain(|one| one.metadata.name.as_deref() != Some("web"));
                world.unreadable.push((Key::Server(key("web")), "no YAML".into()));
            },
            None,
            None,
        ),
    ];
    for (what, change, reason, whole) in cases {
        let mut world = shop();
        change(&mut world);
        assert_eq!(fate(&world, 900), (reason, whole), "{what}");
        assert_eq!(taken(&world, 900).of(&key("api")).is_some(), what == "namespace left", "{what}: api");
    }
}

#[test]
fn who_still_sees_the_server_before_takes_nothing_back_of_the_one_that_was_created_anew() {
    let earlier = crate::api::conditions::seconds(at(50));
    let mut world = shop();
    let before = object(&mut world, "web");
    before.metadata.uid = Some("before".into());
    before.metadata.creation_timestamp = Some(earlier.clone());
    assert_eq!(fate(&world, 900), (None, None));
    object(&mut world, "web").spec.state = crate::api::ServerState::Suspended;
    assert_eq!(fate(&world, 900), (None, None), "what befalls the one before");
    object(&mut world, "web").metadata.deletion_timestamp = Some(earlier);
    assert_eq!(fate(&world, 900), (None, None), "and its end");
}

#[test]
fn pods_that_are_gone_are_taken_back_together_after_a_minute_and_never_by_a_list_that_lags() {
    let mut world = shop();
    world.declared.pods.clear();
    assert_eq!(gone(&world), ["pod-api".to_owned(), "pod-web".to_owned()].into());
    assert_eq!(fate(&world, 900), (None, None), "nobody has watched it be gone yet");
    world.gone_since.insert("pod-web".into(), at(840));
    assert_eq!(fate(&world, 899), (None, None));
    assert_eq!(fate(&world, 900), (Some(Reason::PodGone), None));
    assert!(taken(&world, 900).of(&key("api")).is_none());
    world.gone_since.insert("pod-api".into(), at(890));
    assert!(taken(&world, 900).of(&key("api")).is_some(), "it leaves with the other");
    world.gone_since.insert("pod-api".into(), at(895));
    assert!(taken(&world, 900).of(&key("api")).is_none(), "too fresh to be sure");
    world.declared.pods.push(PodFacts { ending: true, ..pod("web") });
    assert_eq!(fate(&world, 900), (None, None), "a pod that ends is still there");
}

#[test]
fn single_certificates_are_told_to_those_who_may_meet_and_whole_servers_to_everybody() {
    let mut world = shop();
    world.declared.servers.push(server("far", "[{name: a, port: 80, allowFrom: []}]"));
    world.declared.domains[0].spec.topology.default_peers = crate::api::DefaultPeers::ExplicitOnly;
    object(&mut world, "api").spec.ports = object(&mut world, "web").spec.ports.clone();
    object(&mut world, "api").spec.ports[0].allow_from =
        Some(vec![serde_saphyr::from_str("{server: {name: web}}").unwrap()]);
    world.gone_since.insert("pod-web".into(), at(800));
    world.declared.pods.retain(|one| one.name != "web-1");
    let told = |world: &World, name: &str| {
        let (topology, _) = Topology::resolve(&world.declared);
        let (serials, withdrawn) = taken(world, 900).told(&topology, topology.server(&key(name)));
        (serials.values().map(BTreeSet::len).sum::<usize>(), withdrawn.len())
    };
    assert_eq!([told(&world, "web"), told(&world, "api"), told(&world, "far")], [(1, 0), (1, 0), (0, 0)]);
    object(&mut world, "web").spec.state = crate::api::ServerState::Suspended;
    assert_eq!([told(&world, "api"), told(&world, "far")], [(0, 1), (0, 1)]);
}

#[test]
fn lists_say_what_ledgers_say_and_a_listed_serial_that_nobody_knows_counts_against_every_issuer() {
    let mut world = shop();
    object(&mut world, "web").spec.state = crate::api::ServerState::Suspended;
    assert_eq!(taken(&world, 900).listed(), Listed::new(), "what is not written down yet has no time");
    let marks = taken(&world, 900).of(&key("web")).unwrap().marks.clone();
    let seen = world.ledgers.get_mut("ledger-web").unwrap();
    let mut written = (**seen.ledger.as_ref().unwrap()).clone();
    written.revoke(&marks, at(900));
    seen.ledger = Some(std::sync::Arc::new(written));
    let revoked = Revoked { serial: record(1, "", 0).serial, at: at(900), reason: Reason::Suspended };
    assert_eq!(taken(&world, 950).listed(), Listed::from([("aa".into(), BTreeSet::from([revoked]))]));
    object(&mut world, "web").spec.state = crate::api::ServerState::Active;
    assert_eq!(taken(&world, 950).listed().len(), 1, "what was taken back does not come back");
    world.declared.domains[0].spec.revocation.serials = vec!["41:41".into(), "4F".repeat(16)];
    assert_eq!(taken(&world, 950).listed()["aa"].len(), 2, "only a serial that ours can have");
}

#[test]
fn a_sidecar_is_told_no_more_than_it_can_hold_and_what_somebody_decided_first() {
    let mut world = shop();
    let many = |index: u8, count: usize| {
        let mut ledger = Ledger::default();
        let id = SpiffeId::parse("spiffe://contoso.example/ns/shop/server/web").unwrap();
        let owner = Owner { id, uid: "u-web".into(), created: created() };
        for number in 0..count {
            let mut bytes = [index; 16];
            bytes[8..].copy_from_slice(&(number as u64).to_be_bytes());
            let holder = Holder::Pod(number.to_string());
            let one = Record { serial: Serial::from_random(bytes), holder, ..record(1, "", 10_000) };
            ledger.append(&owner, one, at(100)).unwrap();
        }
        ledger
    };
    // Six ledgers of one server do not exist; they stand for a busy day.
    for index in 0..6 {
        let mut ledger = many(index, 4_000);
        let reason = if index == 5 { Reason::KeyCompromise } else { Reason::PodGone };
        let marks: Vec<_> = ledger.records().iter().map(|record| (record.serial, reason)).collect();
        ledger.revoke(&marks, at(200 + i64::from(index)));
        let seen = LedgerSeen { server: key("web"), ledger: Some(std::sync::Arc::new(ledger)) };
        world.ledgers.insert(format!("ledger-{index}"), seen);
    }
    let (topology, _) = Topology::resolve(&world.declared);
    let (serials, _) = taken(&world, 900).told(&topology, None);
    assert_eq!(serials.values().map(BTreeSet::len).sum::<usize>(), MAX_SERIALS);
    let decided = world.ledgers["ledger-5"].ledger.as_ref().unwrap();
    assert!(decided.records().iter().all(|record| serials["aa"].contains(&record.serial)));
}

#[test]
fn what_our_bundle_endpoint_holds_stays_while_it_is_served_and_is_taken_back_when_it_is_not() {
    let mut world = shop();
    let own = crate::topology::endpoint::key("entente-system", "contoso");
    let held = Record { holder: Holder::Secret("entente-bundle-contoso".into()), ..record(7, "", 10_000) };
    world.ledgers.insert("ledger-own".into(), ledger(&own, &[held]));
    world.declared.domains[0].metadata.uid = Some("u-bundle-contoso".into());
    let fate = |world: &World| {
        let all = taken(world, 900);
        all.of(&own).map(|own| (own.marks.len(), own.withdrawal.as_ref().map(|one| one.reason)))
    };
    let removed = |world: &World, second: i64| {
        let (topology, problems) = Topology::resolve(&world.declared);
        let plan = crate::plan::plan(&topology, &problems, world, at(second));
        let gone =
            |step: &crate::plan::Step| matches!(step, crate::plan::Step::DeleteLedger { name } if name == "ledger-own");
        plan.steps.iter().any(gone)
    };
    let gone = Some((1, Some(WithdrawnDetail::Deleted)));
    assert_eq!(fate(&world), gone, "no endpoint is served");
    world.declared.bundle_endpoint = Some("entente-system".into());
    assert_eq!((fate(&world), removed(&world, 900), removed(&world, 20_000)), (None, false, false));
    let serial = record(7, "", 0).serial.to_string();
    let mut stolen = world.clone();
    stolen.declared.domains[0].spec.revocation.serials = vec![serial];
    assert_eq!(fate(&stolen), Some((1, None)), "a single one is taken back like any other");
    let mut anew = world.clone();
    anew.declared.domains[0].metadata.uid = Some("another".into());
    anew.declared.domains[0].metadata.creation_timestamp = Some(crate::api::conditions::seconds(at(2_000_000_000)));
    assert_eq!(fate(&anew), gone, "another domain of that name inherits nothing");
    assert!(removed(&anew, 20_000));
    world.declared.bundle_endpoint = None;
    assert_eq!((fate(&world), removed(&world, 900), removed(&world, 20_000)), (gone, false, true));
}
