//! Conditions, briefs and what they follow from; convergence is tested in `tests/integration/convergence.rs`.

use std::{collections::BTreeSet, sync::Arc};

use super::{
    briefs::Trust,
    withdrawals::{Withdrawals, withdrawals},
    *,
};
use crate::{
    api::{FederationPartner, TrustedServer},
    identity::{DnsName, Identity, SpiffeId},
    pki::{
        authority::Validity,
        crl::Reason,
        ledger::{Holder, Ledger, Owner, Record},
        register::{Listed, Published, digest},
        rotation::{Member, State},
    },
    topology::{Declared, facts::PodFacts},
};

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// When every server here was created.
pub(super) fn created() -> Timestamp {
    "2026-01-01T00:00:00Z".parse().unwrap()
}

fn domain() -> TrustDomain {
    serde_saphyr::from_str(
        "{apiVersion: entente.dev/v1alpha1, kind: TrustDomain, metadata: {name: contoso, uid: d1, generation: 1},
          spec: {spiffeTrustDomain: contoso.example, dnsSuffixes: [contoso.example]}}",
    )
    .unwrap()
}

pub(super) fn server(name: &str, ports: &str) -> TrustedServer {
    serde_saphyr::from_str(&format!(
        "{{apiVersion: entente.dev/v1alpha1, kind: TrustedServer,
           metadata: {{name: {name}, namespace: shop, uid: u-{name}, generation: 1, creationTimestamp: '{}'}},
           spec: {{selector: {{matchLabels: {{app: {name}}}}}, serviceAccountName: {name}, ports: {ports}}}}}",
        created()
    ))
    .unwrap()
}

pub(super) fn pod(app: &str) -> PodFacts {
    PodFacts {
        namespace: "shop".into(),
        name: format!("{app}-1"),
        uid: format!("pod-{app}"),
        labels: BTreeMap::from([("app".into(), app.into())]),
        service_account: app.into(),
        injected: true,
        ..PodFacts::default()
    }
}

fn revision_of(domain: &str, revision: u64) -> Cursor {
    Cursor { domain: domain.to_owned(), revision, hash: String::new() }
}

fn revision(number: u64) -> Cursor {
    revision_of("d1", number)
}

fn authority() -> AuthoritySeen {
    let validity = |end| Validity { not_before: at(0), not_after: at(end) };
    let key_id = "aa".to_owned();
    let member = Member { key_id: key_id.clone(), root_sha256: "bb".into(), state: State::Active, since: at(0) };
    AuthoritySeen::Sound(AuthorityFacts {
        members: vec![MemberFacts {
            member,
            root_pem: "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n".into(),
            root: validity(10_000_000),
            root_life: validity(10_000_000),
            issuer: validity(1_000_000),
            permitted: ["contoso.example", "cluster.local", "svc"].map(|name| DnsName::parse(name).unwrap()).into(),
            managed: true,
            fingerprint: String::new(),
        }],
        removed: vec![],
        rotated_at: at(0),
        crl: Published {
            number: 1,
            this_update: -300,
            next_update: 1_000_000,
            issuers: vec![key_id],
            digest: digest(&Listed::new()),
            ..Published::default()
        },
        crl_pem: "".into(),
    })
}

pub(super) fn world(servers: Vec<TrustedServer>, pods: Vec<PodFacts>) -> World {
    let namespaces = BTreeMap::from([("shop".into(), Some("contoso".into()))]);
    World {
        declared: Declared { domains: vec![domain()], servers, namespaces, pods, ..Declared::default() },
        authorities: BTreeMap::from([("contoso".into(), authority())]),
        ..World::default()
    }
}

/// Applies the status steps of plans until there are none.
pub(super) fn settle(world: &mut World, now: Timestamp) -> Plan {
    for _ in 0..8 {
        let (topology, problems) = Topology::resolve(&world.declared);
        let next = plan(&topology, &problems, world, now);
        for uid in &next.behind {
            world.behind_since.entry(uid.clone()).or_insert(now);
        }
        if next.steps.is_empty() {
            return next;
        }
        for step in next.steps {
            match step {
                Step::ServerStatus { key, status, .. } => {
                    let same = |one: &&mut TrustedServer| one.metadata.name.as_ref() == Some(&key.name);
                    world.declared.servers.iter_mut().find(same).unwrap().status = Some(*status);
                }
                Step::DomainStatus { status, .. } => world.declared.domains[0].status = Some(*status),
                Step::PartnerStatus { key, status, .. } => {
                    let same = |one: &&mut FederationPartner| one.metadata.name.as_ref() == Some(&key.name);
                    world.declared.partners.iter_mut().find(same).unwrap().status = Some(*status);
                }
                Step::WritePartners { namespace, data, .. } => drop(world.partner_bundles.insert(namespace, data)),
                Step::DeletePartners { namespace } => drop(world.partner_bundles.remove(&namespace)),
                Step::WriteBundle { namespace, data, .. } => drop(world.bundles.insert(namespace, data)),
                Step::Hold { key, finalizers, .. } => {
                    let servers = world.declared.servers.iter_mut().map(|one| {
                        let key = Key::Server(ServerKey::of(one));
                        (key, &mut one.metadata)
                    });
                    let partners = world.declared.partners.iter_mut().map(|one| {
                        let key = Key::Partner(PartnerKey::of(one));
                        (key, &mut one.metadata)
                    });
                    let held = servers.chain(partners).find(|(own, _)| *own == key).unwrap().1;
                    held.finalizers = Some(finalizers);
                }
                Step::Revoke { ledger, marks, .. } => {
                    let seen = world.ledgers.get_mut(&ledger).unwrap();
                    let mut record = (**seen.ledger.as_ref().unwrap()).clone();
                    record.revoke(&marks, now);
                    seen.ledger = Some(Arc::new(record));
                }
                Step::PublishLists { lists, .. } => {
                    let Some(AuthoritySeen::Sound(facts)) = world.authorities.get_mut("contoso") else {
                        unreachable!()
                    };
                    facts.crl.number += 1;
                    facts.crl.digest = digest(&lists.listed);
                    facts.crl.entries = lists.listed.values().map(BTreeSet::len).sum();
                    facts.crl.this_update = now.as_second() - 300;
                }
                other => unreachable!("{other:?}"),
            }
        }
    }
    unreachable!("the plan is never empty")
}

pub(super) fn record(number: u8, pod: &str, end: i64) -> Record {
    Record {
        serial: Serial::from_random([number; 16]),
        holder: Holder::Pod(pod.to_owned()),
        key: number.to_string(),
        names: "n".into(),
        issuer: "aa".into(),
        validity: Validity { not_before: at(0), not_after: at(end) },
        recorded: at(100),
        revoked: None,
    }
}

pub(super) fn ledger(server: &ServerKey, records: &[Record]) -> LedgerSeen {
    let id = SpiffeId::new(&DnsName::parse("contoso.example").unwrap(), &server.namespace, &server.name).unwrap();
    let owner = Owner { id, uid: format!("u-{}", server.name), created: created() };
    let mut ledger = Ledger::default();
    for record in records {
        ledger.append(&owner, record.clone(), at(100)).unwrap();
    }
    LedgerSeen { server: server.clone(), ledger: Some(Arc::new(ledger)) }
}

pub(super) fn condition(world: &World, name: &str, kind: &str) -> (String, String) {
    let object = world.declared.servers.iter().find(|one| one.metadata.name.as_deref() == Some(name)).unwrap();
    let conditions = &object.status.as_ref().unwrap().conditions;
    let found = conditions.iter().find(|one| one.type_ == kind).unwrap();
    (found.status.clone(), found.reason.clone())
}

pub(super) fn is(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

/// The sidecar of `app` has its current brief in force.
pub(super) fn follow(world: &mut World, app: &str, now: Timestamp) {
    let (topology, _) = Topology::resolve(&world.declared);
    let (server, pod) = topology.pod(&format!("pod-{app}")).unwrap();
    let revision = published(&topology, world, "contoso").unwrap();
    let taken = withdrawals(&topology, world, topology.domain("contoso").unwrap(), now);
    let trust = Trust::of(usable(world, "contoso"), &taken, &topology, Some(server));
    let partners = partners::told(&topology, server, now);
    let brief = briefs::brief_of(&topology, server, pod, (&trust, &partners), revision);
    let seen = ProxySeen {
        cursor: Some(brief.cursor),
        connected: true,
        leaf_not_before: Some(now),
        leaf_not_after: Some(at(now.as_second() + 1000)),
        ..ProxySeen::default()
    };
    world.proxies.insert(pod.uid.clone(), seen);
}

#[test]
fn the_first_visit_says_that_nothing_is_known_yet() {
    let world = world(vec![server("web", "[]")], vec![]);
    let (topology, problems) = Topology::resolve(&world.declared);
    let steps = plan(&topology, &problems, &world, at(100)).steps;
    let first = steps.iter().find_map(|step| match step {
        Step::ServerStatus { status, .. } => Some(status),
        _ => None,
    });
    let conditions = &first.unwrap().conditions;
    assert_eq!(conditions.len(), 6);
    assert!(conditions.iter().all(|one| one.status == "Unknown" && one.observed_generation == Some(1)));
}

#[test]
fn a_server_becomes_ready_step_by_step_and_says_what_is_missing() {
    let mut world = world(vec![server("web", "[]")], vec![]);
    settle(&mut world, at(100));
    assert_eq!(condition(&world, "web", "Ready"), is("False", "NoPods"));
    world.declared.pods = vec![PodFacts { injected: false, ..pod("web") }];
    settle(&mut world, at(100));
    assert_eq!(condition(&world, "web", "Ready"), is("False", "PodsWithoutProxy"));
    world.declared.pods = vec![PodFacts { service_account: "thief".into(), ..pod("web") }];
    settle(&mut world, at(100));
    assert_eq!(condition(&world, "web", "CertificatesIssued"), is("False", "ServiceAccountMismatch"));
    world.declared.pods = vec![pod("web")];
    settle(&mut world, at(100));
    assert_eq!(condition(&world, "web", "CertificatesIssued"), is("False", "Pending"));
    assert_eq!(condition(&world, "web", "TrustLoaded"), is("False", "ProxyDisconnected"));
    follow(&mut world, "web", at(100));
    settle(&mut world, at(100));
    assert_eq!(condition(&world, "web", "Ready"), is("True", "Ready"));
    settle(&mut world, at(700));
    assert_eq!(condition(&world, "web", "CertificatesIssued"), is("False", "RenewalOverdue"));
}

#[test]
fn pods_without_sidecar_are_told_of_once() {
    let mut world = world(vec![server("web", "[]")], vec![PodFacts { injected: false, ..pod("web") }]);
    settle(&mut world, at(100));
    let status = world.declared.servers[0].status.clone().unwrap();
    let (topology, _) = Topology::resolve(&world.declared);
    let told = |world: &World, status: &TrustedServerStatus| {
        let key = ServerKey { namespace: "shop".into(), name: "web".into() };
        let step = Step::ServerStatus { key, version: None, status: Box::new(status.clone()) };
        news(&step, world, &topology).into_iter().map(|news| news.note).collect::<Vec<_>>()
    };
    assert_eq!(told(&world, &status), Vec::<String>::new());
    world.declared.servers[0].status = None;
    assert!(told(&world, &status)[0].contains("web-1"));
    assert_eq!(told(&world, &TrustedServerStatus::default()), Vec::<String>::new());
}

#[test]
fn a_sidecar_may_be_behind_for_five_seconds_and_a_change_elsewhere_is_none_of_its_business() {
    let mut world = world(vec![server("web", "[]"), server("api", "[]")], vec![pod("web"), pod("api")]);
    settle(&mut world, at(100));
    for app in ["web", "api"] {
        follow(&mut world, app, at(100));
    }
    world.behind_since.clear();
    settle(&mut world, at(100));
    world.declared.servers[1] =
        TrustedServer { status: world.declared.servers[1].status.clone(), ..server("api", "[{name: a, port: 80}]") };
    world.declared.servers[1].metadata.generation = Some(2);
    let waiting = settle(&mut world, at(101));
    assert_eq!(waiting.behind, BTreeSet::from(["pod-api".to_owned()]));
    assert_eq!(waiting.wake_at, Some(at(106)));
    assert_eq!(condition(&world, "api", "TrustLoaded"), is("True", "Loaded"));
    settle(&mut world, at(106));
    assert_eq!(condition(&world, "api", "TrustLoaded"), is("False", "AckPending"));
    assert_eq!(condition(&world, "web", "Ready"), is("True", "Ready"));
}

#[test]
fn the_revision_grows_with_declarations_only_and_briefs_wait_for_it() {
    let mut world = world(vec![server("web", "[]")], vec![]);
    settle(&mut world, at(100));
    let revision = |world: &World| world.declared.domains[0].status.as_ref().unwrap().topology_revision;
    assert_eq!(revision(&world), 1);
    world.declared.pods = vec![pod("web")];
    settle(&mut world, at(100));
    assert_eq!(revision(&world), 1);
    world.declared.servers[0].metadata.generation = Some(2);
    let (topology, _) = Topology::resolve(&world.declared);
    assert_eq!(published(&topology, &world, "contoso"), None, "what nobody published is not served");
    settle(&mut world, at(100));
    assert_eq!(revision(&world), 2);
    assert_eq!(published(&topology, &world, "contoso"), Some(revision_of("d1", 2)));
}

fn trust(topology: &Topology, world: &World) -> Trust {
    Trust::of(usable(world, "contoso"), &Withdrawals::default(), topology, None)
}

#[test]
fn a_brief_says_what_its_server_declares_and_a_withdrawn_one_admits_nobody() {
    let ports = "[{name: a, port: 80, targetPort: 8080, allowFrom: [{server: {name: api}}]}, {name: u, port: 53, protocol: UDP, mode: Plaintext}]";
    let world = world(vec![server("web", ports), server("api", "[]")], vec![pod("web")]);
    let (topology, _) = Topology::resolve(&world.declared);
    let (web, pod) = topology.pod("pod-web").unwrap();
    let brief = briefs::brief_of(
        &topology,
        web,
        pod,
        (&trust(&topology, &world), &partners::Federation::default()),
        revision(7),
    );
    assert_eq!((brief.cursor.revision, brief.ports.len()), (7, 1), "UDP is no port of the proxy");
    let allowed: Vec<&str> = brief.ports[0].allow.servers.iter().map(|one| one.id.server()).collect();
    assert_eq!(allowed, ["api", "web"]);
    assert_eq!(brief.scope("internal").unwrap().anchors.len(), 1);
    let later = briefs::brief_of(
        &topology,
        web,
        pod,
        (&trust(&topology, &world), &partners::Federation::default()),
        revision(8),
    );
    assert_eq!(later.cursor.hash, brief.cursor.hash, "the hash does not move with the revision");
    let identity = Identity {
        id: web.id.clone(),
        dns_names: web.names.clone(),
        pod_uid: Some(pod.uid.clone()),
        serial: vec![1],
        issuer: None,
        not_before: at(0),
        not_after: at(9),
    };
    let gone = briefs::withdrawn(&identity, &trust(&topology, &world), revision(9));
    assert!(gone.port(80).is_err() && gone.ports.is_empty());
    assert_eq!(gone.scope("internal").unwrap().anchors.len(), 1, "it can be put in force like any other");
}

#[test]
fn a_withdrawal_is_effective_when_every_sidecar_has_acknowledged_it_and_what_it_cut_is_counted_once() {
    let mut world =
        world(vec![server("web", "[{name: a, port: 80}]"), server("api", "[]")], vec![pod("web"), pod("api")]);
    for (number, name) in [(1, "web"), (2, "api")] {
        let key = ServerKey { namespace: "shop".into(), name: name.into() };
        world.ledgers.insert(name.into(), ledger(&key, &[record(number, &format!("pod-{name}"), 10_000)]));
    }
    settle(&mut world, at(200));
    let follow_all = |world: &mut World, second| {
        for app in ["web", "api"] {
            follow(world, app, at(second));
        }
        settle(world, at(second));
    };
    follow_all(&mut world, 200);
    assert_eq!(condition(&world, "web", "Ready"), is("True", "Ready"));
    world.declared.servers[0].spec.state = crate::api::ServerState::Suspended;
    world.declared.servers[0].metadata.generation = Some(2);
    settle(&mut world, at(210));
    assert_eq!(condition(&world, "web", "Ready"), is("False", "Suspended"));
    assert_eq!(condition(&world, "web", "RevocationEffective"), is("False", "AckPending"));
    assert_eq!(condition(&world, "api", "RevocationEffective"), is("True", "Effective"));
    // web's own sidecar follows, and says what it cut; api's has not heard of it yet.
    follow(&mut world, "web", at(211));
    let api = SpiffeId::parse("spiffe://contoso.example/ns/shop/server/api").unwrap();
    let web = SpiffeId::parse("spiffe://contoso.example/ns/shop/server/web").unwrap();
    world.proxies.get_mut("pod-web").unwrap().cut.insert(api, 3);
    settle(&mut world, at(211));
    let status = |world: &World| world.declared.servers[0].status.clone().unwrap().revocation;
    assert_eq!(
        (status(&world).pending, status(&world).last_effective_time, status(&world).connections_cut),
        (1, None, 3)
    );
    follow(&mut world, "api", at(212));
    world.proxies.get_mut("pod-api").unwrap().cut.insert(web, 3);
    settle(&mut world, at(212));
    let revocation = status(&world);
    assert_eq!((revocation.pending, revocation.connections_cut), (0, 3), "each connection has two ends");
    assert_eq!(revocation.last_effective_time.map(|time| time.0), Some(at(212)));
    assert_eq!(condition(&world, "web", "RevocationEffective"), is("True", "Effective"));
}

#[test]
fn a_ledger_outlives_its_server_until_its_last_certificate_has_ended() {
    let mut world = world(vec![], vec![]);
    settle(&mut world, at(100));
    let server = ServerKey { namespace: "shop".into(), name: "gone".into() };
    world.ledgers.insert("entente-ledger-1".into(), ledger(&server, &[record(1, "pod-gone", 200)]));
    settle(&mut world, at(150));
    let steps = |world: &World, now| {
        let (topology, problems) = Topology::resolve(&world.declared);
        plan(&topology, &problems, world, now).steps
    };
    assert_eq!(steps(&world, at(150)), []);
    let record = world.ledgers["entente-ledger-1"].ledger.as_ref().unwrap().records()[0].clone();
    assert_eq!(record.revoked, Some((at(150), Reason::ServerDeleted)));
    let end = record.listed_until();
    assert!(!steps(&world, end).contains(&Step::DeleteLedger { name: "entente-ledger-1".into() }));
    let after = Timestamp::from_second(end.as_second() + 1).unwrap();
    assert!(steps(&world, after).contains(&Step::DeleteLedger { name: "entente-ledger-1".into() }));
}
