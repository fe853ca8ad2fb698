//! A connection lives exactly as long as its peer can show a valid certificate, as the policy says.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use entente::{
    brief::{ALPN_REPROVE, Mode, OnPeerExpiry},
    telemetry,
};
use jiff::SignedDuration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::harness::{Plan, Seen, Sidecar, address, control, echo, read_out};
use crate::support::{
    applications::{Application, Behaviour},
    control::Server,
    domain::instant,
    eventually, soon, wire,
};

const NAME: &str = "server.sip.contoso.example";
/// Lifetime of leaves, in seconds: the clock is looked at every second, and certificates count whole ones.
const LIFE: u32 = 6;
/// A step of the test that takes longer than this shows that the machine is busy with something else.
const STALL: Duration = Duration::from_millis(300);

struct Pair {
    control: Arc<Server>,
    application: Application,
    server: Sidecar,
    client: Sidecar,
}

/// Leaves of `life` seconds for the caller and for the callee, under `policy`. The client dials `service` where it is
/// given, behind which the server is.
async fn pair(policy: OnPeerExpiry, (caller, callee): (u32, u32), through_a_service: bool) -> Pair {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let set = move |brief: &mut entente::brief::Brief| brief.on_peer_expiry = policy;
    let server = Plan::new(&control, "server", ip).port(Mode::MutualTls, application.address).brief(set).lives(callee);
    let server = server.start().await;
    let (id, own) = (control.domain.id("server"), server.inbound[0]);
    let dialled = if through_a_service { service(own).await } else { own };
    let client = Plan::new(&control, "client", address())
        .calls(dialled, &id, Mode::MutualTls)
        .brief(set)
        .lives(caller)
        .start()
        .await;
    control.route(&client.home.uid, own, &id, Mode::MutualTls);
    control.owned(&client.home.uid, own.ip(), &server.home.uid);
    Pair { control, application, server, client }
}

/// An address and port that lead elsewhere, as a Service's do.
async fn service(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((address(), 0)).await.unwrap();
    let there = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut to = TcpStream::connect(to).await.unwrap();
                let copied = tokio::io::copy_bidirectional(&mut from, &mut to).await;
                if copied.is_err() {
                    let _ = (from.set_zero_linger(), to.set_zero_linger());
                }
            });
        }
    });
    there
}

impl Pair {
    async fn connect(&self) -> TcpStream {
        let mut open = self.client.open(0).await;
        echo(&mut open, b"open").await.unwrap();
        open
    }

    /// Says a word again and again until the clock shows `second`. `false` = this machine stood still meanwhile, so
    /// that nothing follows from a connection that ended.
    async fn talks_until(&self, open: &mut TcpStream, second: i64) -> bool {
        let mut stood_still = false;
        while telemetry::now().as_second() < second {
            let begun = Instant::now();
            let talked = echo(open, b"still here").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            stood_still |= begun.elapsed() > STALL;
            match talked {
                Ok(()) => {}
                Err(_) if stood_still => return false,
                Err(error) => panic!("the connection ended: {error}"),
            }
        }
        true
    }

    async fn reproofs(&self, sidecar: &Sidecar, direction: &str, outcome: &str) -> f64 {
        let series = format!("entente_reproofs_total{{direction=\"{direction}\",outcome=\"{outcome}\"}}");
        sidecar.metric(&series).await
    }
}

/// Three lifetimes, then the renewal of one side is blocked, and the other side ends the connection in time.
async fn three_lifetimes_and_an_end(blocked: fn(&Pair) -> &Sidecar, ends: fn(&Pair) -> &Sidecar, direction: &str) {
    let (pair, mut open, opened) = loop {
        let pair = pair(OnPeerExpiry::Reprove, (LIFE, LIFE), true).await;
        let mut open = pair.connect().await;
        let opened = telemetry::now().as_second();
        if pair.talks_until(&mut open, opened + 3 * i64::from(LIFE)).await {
            break (pair, open, opened);
        }
        eprintln!("the machine stood still for longer than such short leaves can bear; once more");
    };
    assert!(pair.reproofs(&pair.client, "outbound", "reproved").await >= 3.0);
    assert!(pair.reproofs(&pair.server, "inbound", "reproved").await >= 3.0);
    assert_eq!(pair.application.accepted(), 1, "a re-proof dials no application");

    let uid = blocked(&pair).home.uid.clone();
    let last = pair.control.change(|world| {
        let pod = world.pods.get_mut(&uid).unwrap();
        pod.uncertified = Some("RateLimited");
        pod.certificates
    });
    assert_eq!(read_out(&mut open).await.1, Seen::Reset);
    // What it could show last ends at most one lifetime after it was issued.
    let ended = telemetry::now().as_second();
    ends(&pair).refused(direction, "Expired", 1).await;
    let reported = pair.control.look(|world| {
        let refusals = &world.pods[&ends(&pair).home.uid].refusals;
        refusals.iter().any(|told| told.reason.code() == "Expired" && told.cut)
    });
    assert!(reported, "reported as cut");
    eprintln!("ended {} s after the renewal was blocked, {last} certificates", ended - opened - 3 * i64::from(LIFE));
}

#[tokio::test]
async fn a_connection_outlives_three_leaves_and_ends_with_the_callers_last_one() {
    three_lifetimes_and_an_end(|pair| &pair.client, |pair| &pair.server, "inbound").await;
}

#[tokio::test]
async fn a_connection_outlives_three_leaves_and_ends_with_the_callees_last_one() {
    three_lifetimes_and_an_end(|pair| &pair.server, |pair| &pair.client, "outbound").await;
}

#[tokio::test]
async fn under_cut_a_connection_ends_with_its_peers_certificate() {
    let pair = pair(OnPeerExpiry::Cut, (LIFE, 3600), false).await;
    let mut open = pair.connect().await;
    assert_eq!(read_out(&mut open).await.1, Seen::Reset);
    pair.server.refused("inbound", "Expired", 1).await;
    assert_eq!(pair.reproofs(&pair.client, "outbound", "reproved").await, 0.0);
    // A re-proof, could somebody make one, moves nothing under this policy: a new connection is what is wanted.
    pair.connect().await;
}

#[tokio::test]
async fn under_keep_a_connection_outlives_its_peers_certificate_and_ends_when_that_is_taken_back() {
    let pair = pair(OnPeerExpiry::Keep, (LIFE, LIFE), false).await;
    let first = pair.control.serial(&pair.client.home.uid);
    let mut open = pair.connect().await;
    let opened = telemetry::now().as_second();
    assert!(pair.talks_until(&mut open, opened + i64::from(LIFE) + 2).await);
    assert_eq!(pair.reproofs(&pair.client, "outbound", "reproved").await, 0.0);
    pair.control.revoke(&pair.server.home.uid, &first);
    assert_eq!(read_out(&mut open).await.1, Seen::Reset);
    pair.server.refused("inbound", "Revoked", 1).await;
}

#[tokio::test]
async fn software_that_holds_its_own_key_falls_under_cut() {
    let pair = pair(OnPeerExpiry::Reprove, (3600, 3600), false).await;
    let certificate = pair.control.domain.forge("client", |params, now| {
        params.not_after = instant(now + SignedDuration::from_secs(4));
    });
    let config = wire::client(Some(certificate));
    let mut open = wire::connect(pair.server.inbound[0], config, NAME).await.unwrap();
    open.write_all(b"hello").await.unwrap();
    soon("echo", open.read_exact(&mut [0; 5])).await.unwrap();
    assert!(soon("the end", open.read_u8()).await.is_err());
    pair.server.refused("inbound", "Expired", 1).await;
}

#[tokio::test]
async fn a_re_proof_of_somebody_else_is_judged_like_a_call_and_moves_nothing() {
    let pair = pair(OnPeerExpiry::Reprove, (3600, 3600), false).await;
    let _open = pair.connect().await;
    let reprove = |certificate| {
        let mut config = wire::client(Some(certificate));
        config.alpn_protocols = vec![ALPN_REPROVE.to_vec()];
        wire::connect(pair.server.inbound[0], config, NAME)
    };
    // Admitted by the port, yet another pod: answered, and nothing moves.
    let mut other = reprove(pair.control.domain.certificate("client")).await.unwrap();
    assert_eq!(soon("answer", other.read_u8()).await.unwrap(), 1);
    assert_eq!(soon("end", other.read_to_end(&mut vec![])).await.unwrap(), 0);
    // A stranger reads an alert instead.
    let stranger = reprove(pair.control.domain.self_signed("client")).await;
    assert!(!wire::is_served(stranger).await);
    pair.server.refused("inbound", "UntrustedRoot", 1).await;
    assert_eq!(pair.application.accepted(), 1);
    assert_eq!(pair.server.metric("entente_open_connections{direction=\"inbound\"}").await, 1.0, "no connections");
}

#[tokio::test]
async fn pods_behind_services_are_asked_for_where_routes_are_on_demand() {
    let pair = pair(OnPeerExpiry::Reprove, (3600, 3600), true).await;
    let (uid, own) = (pair.client.home.uid.clone(), pair.server.inbound[0].ip());
    let route = pair.control.change(|world| {
        let pod = world.pods.get_mut(&uid).unwrap();
        pod.on_demand = true;
        pod.routes_version += 1;
        pod.routes.remove(&own).unwrap()
    });
    pair.client.fetch("/metrics").await;
    let home = pair.client.kill().await;
    let client = Sidecar::start(home);
    client.ready().await;
    let mut open = client.open(0).await;
    echo(&mut open, b"open").await.unwrap();
    let server = pair.server.home.uid.clone();
    // Each change of its brief begins another poll, which names the pod until its address is known.
    eventually("the pod is asked for", || async {
        pair.control.change_brief(&uid, |brief| brief.drain_seconds += 1);
        pair.control.look(|world| world.pods[&uid].wanted.contains(&server).then_some(()))
    })
    .await;
    pair.control.change(|world| {
        let pod = world.pods.get_mut(&uid).unwrap();
        pod.routes.insert(own, route);
        pod.routes_version += 1;
    });
    eventually("no longer", || async {
        pair.control.change_brief(&uid, |brief| brief.drain_seconds += 1);
        pair.control.look(|world| world.pods[&uid].wanted.is_empty().then_some(()))
    })
    .await;
}
