use std::{collections::BTreeSet, sync::atomic::AtomicUsize};

use super::*;
use crate::{
    brief::{
        Allow, Brief, Cursor, Egress, EgressNetwork, Mode, Port, Revocation, Route, RouteCursor, RouteDelta, Scope,
        ScopeNames, Standing, VERSION, Withdrawal,
    },
    identity::{Identity, Peer},
    pki::{
        revocation::View,
        verify::{Anchors, Partners, Proven},
    },
    proxy::routes::Routes,
    refusal::{ReadyDetail, ServerDetail, WithdrawnDetail},
};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn id(server: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://contoso.example/ns/sip/server/{server}")).unwrap()
}

/// A leaf of the pod `server`, valid from second 100 to `until`.
fn identity(server: &str, serial: u8, until: i64) -> Identity {
    Identity {
        id: id(server),
        dns_names: BTreeSet::new(),
        pod_uid: Some(server.to_owned()),
        serial: vec![serial],
        issuer: Some("aa".to_owned()),
        not_before: at(100),
        not_after: at(until),
    }
}

/// Proven at second 100.
fn proof(identity: Identity) -> Proof {
    let valid_until = identity.not_after;
    Proof::new(Proven { peer: Arc::new(Peer::Server(identity)), valid_until }, at(1_000), at(100))
}

fn caller(server: &str, port: u16) -> Basis {
    Basis::Caller { proof: proof(identity(server, 1, 500)), port, own_port: None, shown: None }
}

fn called(address: &str, mode: Mode) -> Basis {
    called_by(address, mode, None)
}

fn called_by(address: &str, mode: Mode, proof: Option<Proof>) -> Basis {
    Basis::Server { address: address.parse().unwrap(), server: id("callee"), mode, pod: None, proof }
}

fn egress(address: &str) -> Basis {
    Basis::Egress { address: address.parse().unwrap() }
}

/// Revokes `serials`, withdraws `withdrawn`, and knows the issuers `issuers`.
fn judge(issuers: &[&str], serials: &[&str], withdrawn: &[&str]) -> Judge {
    let port = |port, mode, servers| Port {
        name: format!("port-{port}"),
        port,
        target_port: port,
        mode,
        allow: Allow::servers(servers),
        server_tls: None,
    };
    let all = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let withdrawal =
        |name: &&str| Withdrawal { id: id(name), starting_before: 101, reason: WithdrawnDetail::IssuedBefore };
    let revocation = Revocation {
        number: 1,
        this_update: 0,
        next_update: 0,
        next_updates: BTreeMap::new(),
        serials: BTreeMap::from([("aa".to_owned(), all(serials))]),
        withdrawn: withdrawn.iter().map(withdrawal).collect(),
        on_stale: crate::brief::OnStale::Deny,
    };
    let scope = Scope {
        id: "internal".to_owned(),
        names: ScopeNames::Servers,
        anchors: vec![],
        issuers: all(issuers),
        revocation: Some(revocation),
    };
    let view = View::of(&scope).unwrap();
    let brief = Brief {
        version: VERSION,
        cursor: Cursor::default(),
        identity: id("own"),
        standing: Standing::Active,
        names: vec![],
        lifetime_seconds: 3600,
        issuer: String::new(),
        renew_within_seconds: 0,
        on_peer_expiry: OnPeerExpiry::default(),
        ports: vec![port(1, Mode::MutualTls, vec![id("friend")]), port(2, Mode::ServerTls, vec![])],
        edges: vec![],
        egress: Egress {
            unrestricted: false,
            networks: vec![EgressNetwork { cidr: "192.0.2.0/24".parse().unwrap(), ports: vec![443] }],
            hosts: vec![],
        },
        scopes: vec![scope],
        drain_seconds: 30,
        partners: vec![],
        web_roots: vec![],
    };
    Judge {
        brief,
        anchors: Anchors::default(),
        view,
        partners: Partners::default(),
        chains: crate::proxy::chains::Chains::default(),
    }
}

fn table() -> Arc<Table> {
    let route = |address: &str, server| Route {
        address: address.parse().unwrap(),
        server: id(server),
        pod: None,
        sidecar: true,
        ports: BTreeMap::from([(5, Mode::MutualTls)]),
        names: vec![],
    };
    let routes = Routes::default();
    let put = vec![route("10.0.0.1", "callee"), route("10.0.0.2", "other")];
    let cursor = RouteCursor { epoch: 1, version: 1 };
    routes.apply(RouteDelta { cursor, reset: true, on_demand: false, put, remove: vec![] });
    routes.table()
}

#[test]
fn each_basis_holds_exactly_while_brief_and_routes_say_so() {
    let (judge, table) = (judge(&["aa"], &[], &[]), table());
    for (basis, expected) in [
        (caller("friend", 1), Ok(())),
        (caller("stranger", 1), Err(Refusal::NotInTopology)),
        (caller("friend", 9), Err(Refusal::PortNotAllowed)),
        (caller("friend", 2), Err(Refusal::NotInTopology)),
        (Basis::Anybody { port: 2, mode: Mode::ServerTls, known: None }, Ok(())),
        (Basis::Anybody { port: 2, mode: Mode::Plaintext, known: None }, Err(Refusal::PortNotAllowed)),
        (Basis::Anybody { port: 1, mode: Mode::ServerTls, known: None }, Err(Refusal::PortNotAllowed)),
        (called("10.0.0.1:5", Mode::MutualTls), Ok(())),
        (called("10.0.0.1:5", Mode::Plaintext), Err(Refusal::PortNotAllowed)),
        (called("10.0.0.1:6", Mode::MutualTls), Err(Refusal::PortNotAllowed)),
        (called("10.0.0.2:5", Mode::MutualTls), Err(Refusal::WrongServer(ServerDetail::Uri))),
        (called("10.0.0.3:5", Mode::MutualTls), Ok(())),
        (egress("192.0.2.7:443"), Ok(())),
        (egress("192.0.2.7:80"), Err(Refusal::DestinationNotDeclared)),
        (egress("240.61.0.1:443"), Err(Refusal::DestinationNotDeclared)),
    ] {
        assert_eq!(still_admitted(&basis, &judge, &table, at(200)), expected, "{basis:?}");
    }
}

#[test]
fn nothing_holds_for_a_withdrawn_server() {
    let mut judge = judge(&["aa"], &[], &[]);
    judge.brief.standing = Standing::Withdrawn;
    for basis in [caller("friend", 1), called("10.0.0.1:5", Mode::MutualTls), egress("192.0.2.7:443")] {
        let expected = Err(Refusal::NotReady(ReadyDetail::Withdrawn));
        assert_eq!(still_admitted(&basis, &judge, &table(), at(200)), expected);
    }
}

#[test]
fn what_was_proven_first_and_last_must_both_stand_in_both_directions() {
    let renewed = |serial| {
        let mut proof = proof(identity("friend", 1, 500));
        proof.renew(&Proof { proven: at(300), ..self::proof(identity("friend", serial, 900)) });
        proof
    };
    let withdrawn = Err(Refusal::Withdrawn(WithdrawnDetail::IssuedBefore));
    for (judge, now, expected) in [
        (judge(&["aa"], &[], &[]), 400, Ok(())),
        (judge(&["aa"], &["01"], &[]), 400, Err(Refusal::Revoked)),
        (judge(&["aa"], &["02"], &[]), 400, Err(Refusal::Revoked)),
        (judge(&["aa"], &["03"], &["stranger"]), 400, Ok(())),
        (judge(&["aa"], &[], &["friend"]), 400, withdrawn),
        (judge(&["bb"], &[], &[]), 400, Err(Refusal::IssuerNotCurrent)),
        (judge(&["bb"], &[], &[]), 901, Ok(())),
    ] {
        let inbound = Basis::Caller { proof: renewed(2), port: 1, own_port: None, shown: None };
        let outbound = called_by("10.0.0.1:5", Mode::MutualTls, Some(renewed(2)));
        for basis in [inbound, outbound] {
            assert_eq!(still_admitted(&basis, &judge, &table(), at(now)), expected, "at {now}: {basis:?}");
        }
    }
}

#[test]
fn revocation_is_judged_before_topology() {
    let judge = judge(&["aa"], &["01"], &[]);
    assert_eq!(still_admitted(&caller("stranger", 1), &judge, &table(), at(200)), Err(Refusal::Revoked));
    let basis = called_by("10.0.0.2:5", Mode::MutualTls, Some(proof(identity("callee", 1, 500))));
    assert_eq!(still_admitted(&basis, &judge, &table(), at(200)), Err(Refusal::Revoked));
}

#[test]
fn a_rejudgement_ends_exactly_the_connections_that_no_longer_hold() {
    let registry = Arc::new(Registry::default());
    let mut stays = registry.enter(caller("friend", 1));
    let mut ends = registry.enter(caller("stranger", 1));
    assert_eq!(registry.count(), [2, 0]);
    let judge = judge(&["aa"], &[], &[]);
    assert_eq!(registry.rejudge(&judge, &table(), at(200)), 1);
    assert_eq!(ends.killed.try_recv(), Ok(Refusal::NotInTopology));
    assert!(stays.killed.try_recv().is_err());
    assert_eq!(registry.rejudge(&judge, &table(), at(200)), 0, "ended once");
    drop((stays, ends));
    assert_eq!(registry.count(), [0, 0]);
}

#[test]
fn exactly_one_of_20_000_connections_is_cut_by_its_serial() {
    let registry = Arc::new(Registry::default());
    let enter = |serial: u32| {
        let identity = Identity { serial: serial.to_be_bytes()[1..].to_vec(), ..identity("friend", 0, 500) };
        registry.enter(Basis::Caller { proof: proof(identity), port: 1, own_port: None, shown: None })
    };
    let mut places: Vec<_> = (0x1_0000..0x1_0000 + 20_000).map(enter).collect();
    let mut judge = judge(&["aa"], &["010007"], &[]);
    let strangers = Allow::servers((0..200).map(|number| id(&format!("stranger-{number}")))).servers;
    judge.brief.ports[0].allow.servers.splice(0..0, strangers);
    let begun = std::time::Instant::now();
    assert_eq!(registry.rejudge(&judge, &table(), at(200)), 1);
    eprintln!("20,000 connections re-judged in {:?}", begun.elapsed());
    let cut: Vec<_> = (0..places.len()).filter(|index| places[*index].killed.try_recv().is_ok()).collect();
    assert_eq!(cut, [7]);
}

#[test]
fn the_end_of_a_peers_certificate_is_the_end_of_its_connections_as_the_policy_says() {
    let bare = || {
        let identity = Identity { pod_uid: None, ..identity("friend", 1, 500) };
        Basis::Caller { proof: proof(identity), port: 1, own_port: None, shown: None }
    };
    let callee = || called_by("10.0.0.1:5", Mode::MutualTls, Some(proof(identity("callee", 1, 500))));
    use OnPeerExpiry::{Cut, Keep, Reprove};
    for (policy, now, expected) in [
        (Keep, 10_000, 0),
        // Proven at 100, over at 500: those that are cut are ended over the last 30 seconds.
        (Cut, 469, 0),
        (Cut, 500, 3),
        (Reprove, 469, 0),
        (Reprove, 499, 1),
        (Reprove, 500, 3),
    ] {
        let registry = Arc::new(Registry::default());
        // The second number of a registry falls into the first second of the 30.
        let _places = [registry.enter(callee()), registry.enter(bare()), registry.enter(caller("friend", 1))];
        let _other = registry.enter(egress("192.0.2.7:443"));
        assert_eq!(registry.expire(policy, at(now)), expected, "{policy:?} at {now}");
    }
}

#[test]
fn connections_that_end_with_one_certificate_do_not_end_in_one_moment() {
    let registry = Arc::new(Registry::default());
    let _places: Vec<_> = (0..1_000).map(|_| registry.enter(caller("friend", 1))).collect();
    let ended: Vec<_> = (470..=500).map(|second| registry.expire(OnPeerExpiry::Cut, at(second))).collect();
    assert_eq!(ended.iter().sum::<usize>(), 1_000);
    assert!(ended.iter().all(|count| *count < 50), "{ended:?}");
}

#[test]
fn a_clock_that_steps_over_the_end_ends_what_is_over_at_once() {
    let registry = Arc::new(Registry::default());
    let _place = registry.enter(caller("friend", 1));
    assert_eq!(registry.expire(OnPeerExpiry::Reprove, at(200)), 0);
    assert_eq!(registry.expire(OnPeerExpiry::Reprove, at(200 + 25 * 3600)), 1);
}

#[test]
fn a_pod_is_due_once_for_all_its_connections_at_70_to_80_percent_of_the_nearer_deadline() {
    let registry = Arc::new(Registry::default());
    let connect = |ours_until| {
        let proof = Proof { ours_until: at(ours_until), ..proof(identity("callee", 1, 500)) };
        registry.enter(called_by("10.0.0.1:5", Mode::MutualTls, Some(proof)))
    };
    let _places = [connect(400), connect(300), connect(800)];
    let _inbound = registry.enter(caller("friend", 1));
    // Ours ends first, at 300, and was shown at 100.
    assert_eq!(registry.due(at(239)).len(), 0);
    let due = registry.due(at(260));
    assert_eq!(due.keys().collect::<Vec<_>>(), ["callee"]);
    assert_eq!(due["callee"].deadline(), at(300));
    assert_eq!(due["callee"].dialled.len(), 1);
}

#[test]
fn a_re_proof_moves_the_deadlines_of_that_pod_and_direction_and_no_other() {
    let registry = Arc::new(Registry::default());
    let mut moved = registry.enter(caller("friend", 1));
    let mut other = registry.enter(caller("stranger", 1));
    let mut outbound =
        registry.enter(called_by("10.0.0.1:5", Mode::MutualTls, Some(proof(identity("friend", 1, 500)))));
    let newer = Proof { proven: at(400), ..proof(identity("friend", 2, 900)) };
    let place = registry.enter(Basis::Caller { proof: newer, port: 1, own_port: None, shown: None });
    assert_eq!(registry.reproved(&place), Some(1));
    drop(place);
    assert_eq!(registry.expire(OnPeerExpiry::Reprove, at(500)), 2);
    assert!(moved.killed.try_recv().is_err());
    assert_eq!(other.killed.try_recv(), Ok(Refusal::Expired));
    assert_eq!(outbound.killed.try_recv(), Ok(Refusal::Expired));
    // The certificate that counts now is the later one.
    assert_eq!(registry.rejudge(&judge(&["aa"], &["02"], &[]), &table(), at(600)), 1);
    assert_eq!(moved.killed.try_recv(), Ok(Refusal::Revoked));
}

#[test]
fn a_proof_that_was_just_taken_back_moves_nothing() {
    let registry = Arc::new(Registry::default());
    let mut open = registry.enter(caller("friend", 1));
    let place = registry.enter(Basis::Caller {
        proof: proof(identity("friend", 2, 900)),
        port: 1,
        own_port: None,
        shown: None,
    });
    assert_eq!(registry.rejudge(&judge(&["aa"], &["02"], &[]), &table(), at(200)), 1);
    assert_eq!(registry.reproved(&place), None);
    assert!(open.killed.try_recv().is_err());
    assert_eq!(registry.expire(OnPeerExpiry::Reprove, at(500)), 2 - 1);
}

#[test]
fn a_re_proof_waits_for_our_own_renewal_where_only_that_can_help() {
    let pair = |until, ours_until| Pair {
        server: id("callee"),
        proven: at(0),
        until: at(until),
        ours_until: at(ours_until),
        dialled: BTreeSet::new(),
    };
    assert!(!pair(200, 100).is_worth_it(at(100)), "the same certificate again");
    assert!(pair(200, 100).is_worth_it(at(150)));
    assert!(pair(100, 200).is_worth_it(at(200)), "the peer's may be a new one");
}

/// One side of a connection: its clock, its leaf, when that is renewed.
struct Side {
    registry: Arc<Registry>,
    clock: i64,
    serial: u8,
    until: i64,
    renew: i64,
    blocked: bool,
}

const LIFE: i64 = 86_400;
/// The simulated clock goes on so many seconds at a time.
const STEP: i64 = 60;

impl Side {
    /// Its leaf is `age` seconds old at second 0.
    fn new(clock: i64, age: i64) -> Self {
        let mut side = Self { registry: Arc::default(), clock, serial: 0, until: 0, renew: 0, blocked: false };
        side.issue(-age);
        side
    }

    fn issue(&mut self, now: i64) {
        self.serial += 1;
        self.until = now + LIFE;
        self.renew = now + LIFE * 33 / 100 + i64::from(self.serial) * LIFE / 1_000;
    }

    /// What it shows, as `judge` with its own clock sees it.
    fn shown_to(&self, judge: &Self, now: i64) -> Proof {
        let valid_until = at(self.until);
        let identity = Identity { not_after: valid_until, ..identity("pod", self.serial, self.until) };
        Proof::new(
            Proven { peer: Arc::new(Peer::Server(identity)), valid_until },
            at(judge.until),
            at(now + judge.clock),
        )
    }

    fn expire(&self, now: i64) -> usize {
        self.registry.expire(OnPeerExpiry::Reprove, at(now + self.clock))
    }
}

fn at_caller(proof: Proof) -> Basis {
    called_by("10.0.0.1:5", Mode::MutualTls, Some(proof))
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
    #[test]
    fn a_connection_lives_through_three_leaves_on_clocks_that_differ_and_ends_with_the_last_one_that_could_be_shown(
        ages in [0..LIFE * 2 / 5, 0..LIFE * 2 / 5],
        clocks in [-120_i64..120, -120_i64..120],
        blocks_the_caller: bool,
    ) {
        // Far from the beginning of time, where clocks may lag.
        let start = 1_000_000;
        let (mut caller, mut callee) = (Side::new(clocks[0], ages[0] - start), Side::new(clocks[1], ages[1] - start));
        let _inbound = callee.registry.enter(Basis::Caller { proof: caller.shown_to(&callee, start), port: 1, own_port: None, shown: None });
        let _outbound = caller.registry.enter(at_caller(callee.shown_to(&caller, start)));
        let mut reproofs = 0;
        for now in (start..).step_by(usize::try_from(STEP).unwrap()) {
            let over = now >= start + 3 * LIFE;
            caller.blocked |= over && blocks_the_caller;
            callee.blocked |= over && !blocks_the_caller;
            for side in [&mut caller, &mut callee] {
                if side.renew <= now && !side.blocked {
                    side.issue(now);
                }
            }
            let ended = [caller.expire(now), callee.expire(now)];
            if ended != [0, 0] {
                let (judge, shown, expected) =
                    if blocks_the_caller { (&callee, &caller, [0, 1]) } else { (&caller, &callee, [1, 0]) };
                proptest::prop_assert!(over, "cut after {} s", now - start);
                proptest::prop_assert_eq!(ended, expected);
                let late = now + judge.clock - shown.until;
                proptest::prop_assert!((0..STEP).contains(&late), "{late} s after the end of what was shown");
                proptest::prop_assert!(reproofs <= 30, "{reproofs} re-proofs");
                break;
            }
            let due = caller.registry.due(at(now + caller.clock));
            if due.get("pod").is_some_and(|pair| pair.is_worth_it(at(caller.until))) {
                reproofs += 1;
                let shown = Basis::Caller { proof: caller.shown_to(&callee, now), port: 1, own_port: None, shown: None };
                let place = callee.registry.enter(shown);
                assert_eq!(callee.registry.reproved(&place), Some(1));
                let place = caller.registry.enter(at_caller(callee.shown_to(&caller, now)));
                assert_eq!(caller.registry.reproved(&place), Some(1));
            }
        }
    }
}

/// A handshake under generation 1 and a swap to generation 2, which admits nobody, in every order of their steps.
#[test]
fn no_order_of_a_handshake_and_a_swap_leaves_open_what_the_new_generation_does_not_admit() {
    const EVERY_ORDER: Option<usize> = None;
    /// Orders in which the handshake was refused, and in which it was admitted and then cut.
    static SEEN: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
    shuttle::check_dfs(
        || {
            let registry = Arc::new(Registry::default());
            let in_force = Arc::new(shuttle::sync::Mutex::new(Arc::new(1)));
            let admitted_by = in_force.lock().unwrap().clone();
            let swap = shuttle::thread::spawn({
                let (registry, in_force) = (registry.clone(), in_force.clone());
                move || {
                    *in_force.lock().unwrap() = Arc::new(2);
                    shuttle::thread::yield_now();
                    registry.end_all(Refusal::Revoked)
                }
            });
            let enter = || {
                shuttle::thread::yield_now();
                registry.enter(caller("friend", 1))
            };
            let look = || Ok(in_force.lock().unwrap().clone());
            let again = |generation: &i32| if *generation == 2 { Err(Refusal::Revoked) } else { Ok(()) };
            let place = admit(enter, &admitted_by, look, again);
            swap.join().unwrap();
            SEEN[usize::from(place.is_ok())].fetch_add(1, Ordering::Relaxed);
            if let Ok(mut place) = place {
                assert_eq!(place.killed.try_recv(), Ok(Refusal::Revoked), "it is open under a generation that refuses");
            }
        },
        EVERY_ORDER,
    );
    let seen = [SEEN[0].load(Ordering::Relaxed), SEEN[1].load(Ordering::Relaxed)];
    eprintln!("{} orders explored: refused in {}, cut in {}", seen[0] + seen[1], seen[0], seen[1]);
    assert!(seen.iter().all(|orders| *orders > 0), "{seen:?}");
}
