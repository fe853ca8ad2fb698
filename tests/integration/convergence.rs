//! The leader's loop against a cluster that is a map: writes are lost, refused and repeated, reads are old, the leader
//! dies before and after any step; when the faults end, the world is as declared and stays so.

mod map;
mod partners;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use entente::{
    api::{ServerState, TrustDomain, TrustedServer},
    controller::{Memory, round},
    identity::DnsName,
    pki::{
        authority::{Authority, Serial, Validity},
        ledger::{Holder, Record},
    },
    plan::{
        self, LedgerSeen, ProxySeen, World,
        briefs::{self, Trust},
        published,
        secrets::SecretSeen,
        usable,
        withdrawals::withdrawals,
    },
    topology::{Key, Server, ServerKey, Topology, endpoint, facts::PodFacts},
};
use futures::executor::block_on;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use self::map::{Held, Map, serial};

/// Our own bundle endpoint.
fn own_endpoint() -> ServerKey {
    endpoint::key("entente-system", "contoso")
}

/// Seconds that a certificate lives here.
const LIFE: i64 = 90;

fn domain() -> TrustDomain {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "entente.dev/v1alpha1", "kind": "TrustDomain", "metadata": {"name": "contoso"},
        "spec": {"spiffeTrustDomain": "contoso.example", "dnsSuffixes": ["contoso.example"], "edgeNamespaces": ["ns0"],
                 "rotation": {"minTrustedSeconds": 10},
                 "authority": {"managed": {"issuerLifetimeDays": 2, "rootLifetimeDays": 400}}},
    }))
    .unwrap()
}

fn server(namespace: &str, name: &str, created: Timestamp, version: u64) -> TrustedServer {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "entente.dev/v1alpha1", "kind": "TrustedServer",
        "metadata": {"name": name, "namespace": namespace, "uid": format!("u{version}"), "generation": 1,
                     "resourceVersion": version.to_string(), "creationTimestamp": created.to_string()},
        "spec": {"selector": {"matchLabels": {"app": name}}, "serviceAccountName": name,
                 "ports": [{"name": "a", "port": 80}]},
    }))
    .unwrap()
}

fn key_of(server: &TrustedServer) -> ServerKey {
    let meta = &server.metadata;
    ServerKey { namespace: meta.namespace.clone().unwrap(), name: meta.name.clone().unwrap() }
}

fn pod(namespace: &str, app: &str, number: u64) -> PodFacts {
    PodFacts {
        namespace: namespace.into(),
        name: format!("{app}-{number}"),
        uid: format!("pod-{number}"),
        labels: BTreeMap::from([("app".into(), app.into())]),
        service_account: app.into(),
        injected: true,
        ..PodFacts::default()
    }
}

/// One random edit by users and by Kubernetes itself.
fn life(map: &Map) {
    let (kind, place, number) = {
        let mut dice = map.dice.lock().unwrap();
        (dice.below(16), dice.below(3), dice.below(6))
    };
    let (namespace, name, now) = (format!("ns{place}"), format!("s{number}"), map.now());
    map.edit(|held| {
        held.version += 1;
        let version = held.version;
        let declared = &mut held.world.declared;
        match kind {
            0 => drop(declared.namespaces.insert(namespace, Some("contoso".into()))),
            1 => drop(declared.namespaces.insert(namespace, None)),
            2 | 3 => {
                let mut new = server(&namespace, &name, now, version);
                if number > 2 {
                    partners::at_the_edge(&mut new, number);
                }
                if !declared.servers.iter().any(|one| key_of(one) == key_of(&new)) {
                    declared.servers.push(new);
                }
            }
            4 => {
                let in_place = |one: &TrustedServer| one.metadata.namespace.as_deref() == Some(&namespace);
                declared.servers.retain(|one| {
                    !in_place(one) || one.metadata.finalizers.as_ref().is_some_and(|held| !held.is_empty())
                });
                for one in declared.servers.iter_mut().filter(|one| in_place(one)) {
                    one.metadata.deletion_timestamp = Some(Time(now));
                    one.metadata.resource_version = Some(version.to_string());
                }
            }
            5 | 6 => {
                let owner = declared.servers.get(number as usize % declared.servers.len().max(1)).map(key_of);
                declared.pods.extend(owner.map(|owner| pod(&owner.namespace, &owner.name, version)));
            }
            7 => declared.pods.truncate(number as usize),
            9 => {
                if let Some(domain) = declared.domains.first_mut() {
                    domain.spec.rotation.requested_at = Some(Time(now));
                    touch(&mut domain.metadata, version);
                }
            }
            10 => {
                if let Some(one) = declared.servers.last_mut() {
                    one.spec.state = match one.spec.state {
                        ServerState::Active => ServerState::Suspended,
                        ServerState::Suspended => ServerState::Active,
                    };
                    touch(&mut one.metadata, version);
                }
            }
            11 => {
                if let Some(one) = declared.servers.first_mut() {
                    one.spec.revoke_issued_before = Some(Time(now));
                    touch(&mut one.metadata, version);
                }
            }
            12.. => partners::life(declared, (&namespace, number, kind), now, version),
            _ => {
                if let Some(one) = declared.servers.first_mut() {
                    touch(&mut one.metadata, version);
                }
            }
        }
    });
}

/// Every pod whose certificate is past its half, or who has none, gets the next one.
fn renew(map: &Map) {
    map.edit(|held| {
        let half = Timestamp::from_second(map.now().as_second() + LIFE / 2).unwrap();
        for pod in held.world.declared.pods.clone() {
            let fresh = |record: &Record| {
                record.holder == Holder::Pod(pod.uid.clone())
                    && record.revoked.is_none()
                    && record.validity.not_after > half
            };
            let ledgers = held.world.ledgers.values().filter_map(|seen| seen.ledger.as_ref());
            if !ledgers.flat_map(|ledger| ledger.records()).any(fresh) {
                held.version += 1;
                let number = held.version;
                issue(held, map, &pod, number);
            }
        }
    });
}

fn touch(meta: &mut ObjectMeta, version: u64) {
    meta.generation = meta.generation.map(|generation| generation + 1);
    meta.resource_version = Some(version.to_string());
}

/// A replica signs for a pod, as it sees the world: the record first, under the authority that is active.
fn issue(held: &mut Held, map: &Map, pod: &PodFacts, number: u64) {
    let (topology, _) = Topology::resolve(&held.world.declared);
    if let Ok(server) = topology.attest(pod) {
        record(held, map.now(), server, (Holder::Pod(pod.uid.clone()), number));
    }
}

/// Puts a record into the ledger of `server`, if somebody can sign.
fn record(held: &mut Held, now: Timestamp, server: &Server, (holder, number): (Holder, u64)) -> Option<Serial> {
    let authority = held.registers.get("contoso")?.load(now).unwrap().active;
    let end = Timestamp::from_second(now.as_second() + LIFE).unwrap();
    let record = Record {
        serial: serial(number, 9),
        holder,
        key: number.to_string(),
        names: "n".into(),
        issuer: authority.key_id().to_owned(),
        validity: Validity { not_before: now, not_after: end },
        recorded: now,
        revoked: None,
    };
    let name = format!("ledger-{}-{}", server.key.namespace, server.key.name);
    let mut ledger = held.world.ledgers.get(&name).and_then(|seen| seen.ledger.as_deref().cloned()).unwrap_or_default();
    let serial = record.serial;
    ledger.append(&server.owner(), record, now).unwrap();
    let seen = LedgerSeen { server: server.key.clone(), ledger: Some(Arc::new(ledger)) };
    held.world.ledgers.insert(name, seen);
    Some(serial)
}

/// Some sidecars, or all of them, take over what they would be told now.
fn sidecars_follow(map: &Map, all: bool) {
    map.edit(|held| {
        let (topology, _) = Topology::resolve(&held.world.declared);
        let world = World { authorities: map.seen(held).authorities, ..held.world.clone() };
        let now = map.now();
        let seen: Vec<(String, ProxySeen, Vec<String>)> = topology
            .pods()
            .filter(|_| all || map.dice.lock().unwrap().one_in(3))
            .filter_map(|(key, pod)| {
                let server = topology.server(key)?;
                let revision = published(&topology, &world, &server.domain)?;
                let taken = withdrawals(&topology, &world, topology.domain(&server.domain)?, now);
                let trust = Trust::of(usable(&world, &server.domain), &taken, &topology, Some(server));
                let partners = plan::partners::told(&topology, server, now);
                let brief = briefs::brief_of(&topology, server, pod, (&trust, &partners), revision);
                let end = Timestamp::from_second(now.as_second() + 86_400).ok()?;
                let seen = ProxySeen {
                    cursor: Some(brief.cursor.clone()),
                    connected: true,
                    leaf_not_before: Some(now),
                    leaf_not_after: Some(end),
                    ..ProxySeen::default()
                };
                let issuers = brief.scopes[0].issuers.clone();
                Some((pod.uid.clone(), seen, issuers))
            })
            .collect();
        for (uid, seen, issuers) in seen {
            held.acknowledged.insert(uid.clone(), issuers);
            held.world.proxies.insert(uid, seen);
        }
    });
}

/// Rounds until a plan is empty; the number of rounds is bounded.
fn settle(map: &Map, seed: u64) {
    let mut memory = Memory::default();
    for _ in 0..60 {
        sidecars_follow(map, true);
        let steps = block_on(round(map, &mut memory, map.now())).unwrap_or(1);
        if steps == 0 {
            return;
        }
    }
    panic!("seed {seed}: the plan is never empty");
}

fn run(seed: u64) {
    let map = Map::new(seed);
    map.edit(|held| {
        held.world.first_domain = Some(domain());
        let all = ["ns0", "ns1", "ns2"].map(|name| (name.to_owned(), Some("contoso".to_owned())));
        held.world.declared.namespaces = all.into();
        held.world.secrets.insert(own_endpoint(), SecretSeen::Absent);
        held.world.declared.bundle_endpoint = seed.is_multiple_of(3).then(|| own_endpoint().namespace);
    });
    let mut memory = Memory::default();
    for turn in 0..40 {
        life(&map);
        if turn == 20 && seed.is_multiple_of(6) {
            map.edit(|held| held.world.declared.bundle_endpoint = None);
        }
        renew(&map);
        if map.dice.lock().unwrap().one_in(2) {
            sidecars_follow(&map, false);
        }
        let seconds = map.dice.lock().unwrap().below(40);
        map.advance(i64::try_from(seconds).unwrap());
        // A fault ends the round as a kill would: what was planned is forgotten.
        let _ = block_on(round(&map, &mut memory, map.now()));
        if map.fault(5) {
            memory = Memory::default();
        }
    }
    *map.faults.lock().unwrap() = false;
    // Past the end of every certificate, and past the time that a revoked one stays listed.
    for _ in 0..6 {
        map.advance(700);
        settle(&map, seed);
    }
    judge(&map, seed);
    let before = *map.written.lock().unwrap();
    settle(&map, seed);
    assert_eq!(*map.written.lock().unwrap(), before, "seed {seed}: stable means that nothing more is written");
}

/// The world is as declared: nothing lost, nothing double, nothing orphaned.
fn judge(map: &Map, seed: u64) {
    let held = map.held.lock().unwrap();
    let world = map.seen(&held);
    assert_eq!(world.declared.domains.len(), 1, "seed {seed}: one domain");
    assert!(map.roots.lock().unwrap().values().all(|roots| roots.len() == 1), "seed {seed}: one root, for ever");
    let joined: BTreeSet<&String> =
        world.declared.namespaces.iter().filter(|(_, label)| label.is_some()).map(|(name, _)| name).collect();
    assert_eq!(world.bundles.keys().collect::<BTreeSet<_>>(), joined, "seed {seed}: bundles where they belong");
    let endpoint = world.declared.bundle_endpoint.is_some().then(own_endpoint);
    let servers: BTreeSet<ServerKey> = world.declared.servers.iter().map(key_of).chain(endpoint.clone()).collect();
    assert!(world.ledgers.values().all(|ledger| servers.contains(&ledger.server)), "seed {seed}: no orphaned ledger");
    let register = &held.registers["contoso"];
    assert_eq!(register.load(map.now()).unwrap().members.len(), 1, "seed {seed}: every rotation comes to its end");
    let marked = |record: &Record| record.revoked.is_some() || record.validity.not_after < map.now();
    let records = world.ledgers.values().filter_map(|seen| seen.ledger.as_ref()).flat_map(|ledger| ledger.records());
    let mut serials: Vec<Serial> = records.clone().map(|record| record.serial).collect();
    let count = serials.len();
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), count, "seed {seed}: no serial twice");
    let own = endpoint.and_then(|key| world.ledgers.values().find(|seen| seen.server == key)?.ledger.clone());
    let renewed = |record: &Record| own.as_ref().is_some_and(|own| own.records().contains(record));
    assert!(
        records.clone().all(|record| marked(record) || renewed(record)),
        "seed {seed}: what nobody renews ends or is taken back"
    );
    if world.declared.bundle_endpoint.is_some() {
        let Some(SecretSeen::Ours { serial, .. }) = world.secrets.get(&own_endpoint()) else {
            panic!("seed {seed}: the endpoint has a certificate");
        };
        let shown = |record: &&Record| record.serial.to_string() == *serial && record.is_live(map.now());
        assert!(own.unwrap().records().iter().any(|record| shown(&record)), "seed {seed}: and it is in the ledger");
    }
    let (topology, problems) = Topology::resolve(&world.declared);
    let status = world.declared.domains[0].status.clone().unwrap();
    assert_eq!(status.topology_digest, topology.domain("contoso").unwrap().digest, "seed {seed}: published");
    for object in &world.declared.servers {
        let key = key_of(object);
        let status = object.status.clone().unwrap_or_default();
        let is = |kind: &str| status.conditions.iter().find(|one| one.type_ == kind).map(|one| one.status.clone());
        let sound = !problems.iter().any(|(owner, _)| *owner == Key::Server(key.clone()));
        assert_eq!(is("Accepted").as_deref(), Some(if sound { "True" } else { "False" }), "seed {seed}: {key}");
        let pods = topology.pods_of(&key).count();
        let ready = sound && pods > 0 && object.spec.state == ServerState::Active;
        assert_eq!(is("Ready").as_deref() == Some("True"), ready, "seed {seed}: {key} with {pods} pods");
    }
    partners::judge(&world, (&topology, &problems), map.now(), seed);
}

/// Ten thousand histories before a release, a sample of them at every change.
fn histories() -> u64 {
    if option_env_is_set("ENTENTE_LONG") { 10_000 } else { 300 }
}

#[allow(clippy::disallowed_methods, reason = "how much to test is said from outside")]
fn option_env_is_set(name: &str) -> bool {
    std::env::var(name).is_ok()
}

#[test]
fn whatever_is_lost_stale_or_killed_the_world_becomes_as_declared_and_stays_so() {
    for seed in 0..histories() {
        run(seed);
    }
}

/// The authority that signs.
fn active(map: &Map) -> Arc<Authority> {
    map.held.lock().unwrap().registers["contoso"].load(map.now()).unwrap().active
}

#[test]
fn an_issuer_is_renewed_at_half_its_life_and_when_the_domain_gets_another_name() {
    let map = Map::new(1);
    *map.faults.lock().unwrap() = false;
    map.edit(|held| held.world.first_domain = Some(domain()));
    settle(&map, 1);
    let key = |map: &Map| active(map).key_id().to_owned();
    let first = key(&map);
    map.advance(86_400 + 600);
    settle(&map, 1);
    let second = key(&map);
    assert_ne!(first, second);
    map.edit(|held| {
        let domain = &mut held.world.declared.domains[0];
        domain.spec.dns_suffixes.push("fabrikam.example".into());
        domain.metadata.generation = Some(2);
    });
    settle(&map, 1);
    let authority = active(&map);
    assert!(authority.permitted().contains(&DnsName::parse("fabrikam.example").unwrap()));
    assert_ne!(authority.key_id(), second);
}

#[test]
fn a_lost_authority_is_named_and_never_made_again() {
    let map = Map::new(2);
    *map.faults.lock().unwrap() = false;
    map.edit(|held| held.world.first_domain = Some(domain()));
    settle(&map, 2);
    map.edit(|held| held.registers.clear());
    settle(&map, 2);
    let held = map.held.lock().unwrap();
    assert!(held.registers.is_empty());
    let conditions = held.world.declared.domains[0].status.clone().unwrap().conditions;
    let ready = conditions.iter().find(|one| one.type_ == "Ready").unwrap();
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "AuthorityLost"));
}

/// A domain that has settled, with one pod that holds a certificate.
fn settled(seed: u64) -> Map {
    let map = Map::new(seed);
    *map.faults.lock().unwrap() = false;
    map.edit(|held| held.world.first_domain = Some(domain()));
    settle(&map, seed);
    map
}

/// `status/reason` of a condition of the domain.
fn condition(map: &Map, kind: &str) -> String {
    let held = map.held.lock().unwrap();
    let conditions = held.world.declared.domains[0].status.clone().unwrap().conditions;
    let found = conditions.iter().find(|one| one.type_ == kind).unwrap();
    format!("{}/{}", found.status, found.reason)
}

#[test]
fn another_authority_in_the_place_of_ours_signs_nothing_and_ours_goes_on_when_it_is_back() {
    let (map, other) = (settled(3), settled(4));
    let ours = map.held.lock().unwrap().registers["contoso"].clone();
    let theirs = other.held.lock().unwrap().registers["contoso"].clone();
    map.edit(|held| drop(held.registers.insert("contoso".into(), theirs.clone())));
    settle(&map, 3);
    assert_eq!(condition(&map, "AuthorityReady"), "False/AuthorityReplaced");
    assert_eq!(map.held.lock().unwrap().registers["contoso"], theirs, "nothing is written into a stranger");
    map.edit(|held| drop(held.registers.insert("contoso".into(), ours)));
    settle(&map, 3);
    assert_eq!(condition(&map, "Ready"), "True/Ready");
}

#[test]
fn an_older_copy_of_the_register_goes_on_past_every_number_that_was_published() {
    let map = settled(5);
    let older = map.held.lock().unwrap().registers["contoso"].clone();
    for _ in 0..3 {
        map.advance(7_200);
        settle(&map, 5);
    }
    let number = |map: &Map| map.held.lock().unwrap().registers["contoso"].published().number;
    let highest = number(&map);
    assert!(highest >= older.published().number + 3, "lists are signed anew in time");
    map.edit(|held| drop(held.registers.insert("contoso".into(), older)));
    settle(&map, 5);
    assert!(number(&map) > highest);
    assert_eq!(condition(&map, "Ready"), "True/Ready");
}

#[test]
fn clocks_that_step_lose_nothing_and_bring_no_storm_of_writes() {
    for step in [120, -120, 90_000, -90_000] {
        let map = settled(6);
        // Older than any step, so that the authority's own beginning is not in question.
        for _ in 0..4 {
            map.advance(25_000);
            settle(&map, 6);
        }
        let (key, before) = (active(&map).key_id().to_owned(), *map.written.lock().unwrap());
        map.advance(step);
        settle(&map, 6);
        let writes = *map.written.lock().unwrap() - before;
        assert!(writes <= 8, "{step}: {writes} writes");
        assert_eq!(condition(&map, "RevocationPublished"), "True/Published", "{step}");
        map.advance(-step);
        settle(&map, 6);
        assert_eq!(condition(&map, "Ready"), "True/Ready", "{step}");
        if step < 90_000 {
            assert_eq!(active(&map).key_id(), key, "{step}: nothing is rotated for it");
        }
    }
}
