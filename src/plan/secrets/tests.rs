//! When the Secret of a server is written, and when it is left alone.

use super::*;
use crate::{
    pki::rotation::State,
    plan::{
        AuthoritySeen, Step,
        tests::{at, ledger, record, server, world},
    },
    topology::ServerKey,
};

fn key() -> ServerKey {
    ServerKey { namespace: "shop".into(), name: "web".into() }
}

/// web takes its key from Secret `web-tls`; its certificate 1 was recorded at 100 and ends at 3100.
fn shop() -> World {
    let mut web = server("web", "[{name: a, port: 80}]");
    web.spec.certificate.secret_name = "web-tls".into();
    let mut world = world(vec![web], vec![]);
    let record = Record { holder: Holder::Secret("web-tls".into()), ..record(1, "", 3_100) };
    world.ledgers.insert("ledger-web".into(), ledger(&key(), &[record]));
    world
}

fn made_for(world: &World) -> String {
    let (topology, _) = Topology::resolve(&world.declared);
    fingerprint(&topology, topology.server(&key()).unwrap(), usable(world, "contoso").unwrap())
}

fn ours(world: &World, serial: u8) -> SecretSeen {
    SecretSeen::Ours { serial: record(serial, "", 0).serial.to_string(), fingerprint: made_for(world) }
}

/// Whether it is written at that second, and when to look again.
fn written(world: &World, second: i64) -> (bool, Option<Timestamp>) {
    let (topology, _) = Topology::resolve(&world.declared);
    let mut plan = Plan::default();
    write(&topology, topology.domain("contoso").unwrap(), world, at(second), &mut plan);
    (plan.steps.iter().any(|step| matches!(step, Step::WriteSecret { .. })), plan.wake_at)
}

#[test]
fn a_secret_is_written_when_it_is_missing_due_or_not_for_what_is_declared_and_never_over_somebody_elses() {
    let mut world = shop();
    assert_eq!(written(&world, 200), (false, None), "nobody has looked yet");
    for (seen, second, expected) in [
        (SecretSeen::Absent, 200, (true, None)),
        (SecretSeen::Foreign, 200, (false, None)),
        (SecretSeen::Denied, 200, (false, None)),
        (ours(&world, 1), 200, (false, Some(at(1_100)))),
        (ours(&world, 1), 1_100, (true, None)),
        (ours(&world, 2), 200, (true, None)),
    ] {
        world.secrets.insert(key(), seen.clone());
        assert_eq!(written(&world, second), expected, "{seen:?} at {second}");
    }
    let before = ours(&world, 1);
    world.secrets.insert(key(), before);
    world.declared.servers[0].spec.dns_names.push("www.contoso.example".into());
    assert!(written(&world, 200).0, "it gets another name");
    world.declared.servers[0].spec.state = crate::api::ServerState::Suspended;
    assert!(!written(&world, 200).0, "a suspended server gets nothing");
}

#[test]
fn a_rotation_waits_for_secrets_too() {
    let mut world = shop();
    let waiting = |world: &World| {
        let (topology, _) = Topology::resolve(&world.declared);
        outdated(&topology, world, topology.domain("contoso").unwrap()).len()
    };
    let seen = ours(&world, 1);
    world.secrets.insert(key(), seen);
    assert_eq!(waiting(&world), 0);
    let Some(AuthoritySeen::Sound(facts)) = world.authorities.get_mut("contoso") else { unreachable!() };
    let mut next = facts.members[0].clone();
    next.member.root_sha256 = "cc".into();
    next.member.state = State::Prepared;
    facts.members.push(next);
    assert_eq!(waiting(&world), 1);
    world.secrets.insert(key(), SecretSeen::Denied);
    assert_eq!(waiting(&world), 0, "what may not be written holds nobody up");
}

#[test]
fn our_bundle_endpoint_gets_its_secret_as_a_server_does_and_no_status_counts_it() {
    let mut world = world(vec![server("web", "[]")], vec![]);
    world.declared.bundle_endpoint = Some("entente-system".into());
    let own = crate::topology::endpoint::key("entente-system", "contoso");
    assert_eq!(written(&world, 200), (false, None), "nobody has looked yet");
    world.secrets.insert(own.clone(), SecretSeen::Absent);
    assert!(written(&world, 200).0);
    let (topology, problems) = Topology::resolve(&world.declared);
    let endpoint = topology.holder(&own).unwrap();
    let made_for = fingerprint(&topology, endpoint, usable(&world, "contoso").unwrap());
    let held = Record { holder: Holder::Secret("entente-bundle-contoso".into()), ..record(1, "", 3_100) };
    let serial = held.serial.to_string();
    world.ledgers.insert("ledger".into(), ledger(&own, &[held]));
    world.secrets.insert(own, SecretSeen::Ours { serial, fingerprint: made_for });
    assert_eq!(written(&world, 200), (false, Some(at(1_100))));
    assert!(written(&world, 1_100).0, "it is renewed at a third of its life");
    let plan = crate::plan::plan(&topology, &problems, &world, at(200));
    let total = plan.steps.iter().find_map(|step| match step {
        Step::DomainStatus { status, .. } => Some(status.servers.total),
        _ => None,
    });
    assert_eq!(total, Some(1));
}
