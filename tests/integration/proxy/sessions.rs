//! One handshake carries one connection after the other between sidecars of ours; each is judged as if it had just come.

use std::{net::SocketAddr, sync::Arc};

use entente::brief::Mode;
use tokio::{
    io::AsyncWriteExt,
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::harness::{Plan, Seen, Sidecar, address, control, echo, read_out};
use crate::support::{
    applications::{Application, Behaviour},
    control::Server,
    eventually, soon,
};

const HANDSHAKES: &str = "entente_handshake_seconds_count{direction=\"inbound\"}";
const RESUMED: &str = "entente_resumed_total{direction=\"inbound\"}";

struct Two {
    control: Arc<Server>,
    application: Application,
    server: Sidecar,
    client: Sidecar,
}

/// A server, and a client of it that dials `through`, or the server itself.
async fn two(through: impl AsyncFnOnce(SocketAddr) -> SocketAddr) -> Two {
    two_by(through, true).await
}

/// The same; whether that is its pod's own address, or a Service's.
async fn two_by(through: impl AsyncFnOnce(SocketAddr) -> SocketAddr, own: bool) -> Two {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, Behaviour::Echo).await;
    let server = Plan::new(&control, "server", ip).port(Mode::MutualTls, application.address).start().await;
    let id = control.domain.id("server");
    let there = through(server.inbound[0]).await;
    let client = Plan::new(&control, "client", address()).calls(there, &id, Mode::MutualTls).start().await;
    if own {
        control.owned(&client.home.uid, there.ip(), &server.home.uid);
    }
    Two { control, application, server, client }
}

impl Two {
    /// How many handshakes the server saw, and how many connections without one.
    async fn seen(&self) -> [f64; 2] {
        [self.server.metric(HANDSHAKES).await, self.server.metric(RESUMED).await]
    }

    /// A whole connection: a word and its echo, and both ends in order.
    async fn call(&self, word: &[u8]) {
        let mut stream = self.client.open(0).await;
        echo(&mut stream, word).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(read_out(&mut stream).await, (vec![], Seen::End));
    }

    /// Calls until one came without a handshake, so that a session rests at both ends.
    async fn warm(&self) {
        eventually("a call without a handshake", || async {
            self.call(b"warm").await;
            (self.seen().await[1] > 0.0).then_some(())
        })
        .await;
        // The server hears of the end after the client does.
        eventually("all have ended", || async { (self.application.open() == 0).then_some(()) }).await;
    }
}

async fn itself(server: SocketAddr) -> SocketAddr {
    server
}

#[tokio::test]
async fn connections_one_after_the_other_share_a_handshake_and_nothing_else() {
    let two = two(itself).await;
    for turn in 0..40_u8 {
        two.call(&vec![turn; 1 + 700 * usize::from(turn)]).await;
    }
    let [handshakes, resumed] = two.seen().await;
    assert_eq!(handshakes + resumed, 40.0);
    // A session stays with the thread that made it; a call may come on another.
    assert!(resumed >= 20.0, "{resumed} of 40");
    assert_eq!(two.application.accepted(), 40);
    assert_eq!(two.server.metric("entente_connections_total{direction=\"inbound\",mode=\"MutualTLS\"}").await, 40.0);
}

#[tokio::test]
async fn behind_the_address_of_a_service_each_connection_finds_a_pod_anew() {
    let two = two_by(itself, false).await;
    for _ in 0..6 {
        two.call(b"any of you").await;
    }
    assert_eq!(two.seen().await, [6.0, 0.0]);
}

#[tokio::test]
async fn connections_at_the_same_time_never_share_a_handshake() {
    let two = two(itself).await;
    two.warm().await;
    let before = two.seen().await;
    let mut open = vec![];
    for turn in 0..12_u8 {
        let mut stream = two.client.open(0).await;
        echo(&mut stream, &[turn; 100]).await.unwrap();
        open.push(stream);
    }
    for (turn, stream) in (0_u8..).zip(&mut open) {
        echo(stream, &[turn; 3000]).await.unwrap();
    }
    let after = two.seen().await;
    // What rested from before may be taken once each: one a thread.
    assert!(after[1] - before[1] <= 4.0, "{before:?} {after:?}");
    assert_eq!(after[0] + after[1] - before[0] - before[1], 12.0);
}

#[tokio::test]
async fn a_session_that_rests_carries_nothing_once_its_caller_is_revoked() {
    let two = two(itself).await;
    two.warm().await;
    let accepted = two.application.accepted();
    two.control.revoke(&two.server.home.uid, &two.control.serial(&two.client.home.uid));
    two.server.acknowledges().await;
    let mut stream = two.client.open(0).await;
    let _ = stream.write_all(b"too late").await;
    two.server.refused("inbound", "Revoked", 1).await;
    assert_eq!(two.application.accepted(), accepted);
    // Nothing was open that could be cut.
    assert_eq!(two.server.metric("entente_cut_total").await, 0.0);
}

#[tokio::test]
async fn under_a_new_brief_the_next_connection_shakes_hands_anew() {
    let two = two(itself).await;
    two.warm().await;
    let [handshakes, resumed] = two.seen().await;
    two.control.change_brief(&two.client.home.uid, |brief| brief.drain_seconds += 1);
    two.client.acknowledges().await;
    two.call(b"again").await;
    assert_eq!(two.seen().await, [handshakes + 1.0, resumed]);
}

#[tokio::test]
async fn a_connection_that_the_application_resets_takes_its_session_with_it() {
    let two = two(itself).await;
    for _ in 0..4 {
        let mut stream = two.client.open(0).await;
        echo(&mut stream, b"unfinished").await.unwrap();
        stream.set_zero_linger().unwrap();
        drop(stream);
        eventually("reset passed on", || async { (two.application.open() == 0).then_some(()) }).await;
    }
    assert_eq!(two.seen().await, [4.0, 0.0]);
}

#[tokio::test]
async fn a_session_that_rests_is_not_open_and_does_not_hold_up_the_end() {
    let two = two(itself).await;
    two.warm().await;
    assert_eq!(two.server.metric("entente_open_connections{direction=\"inbound\"}").await, 0.0);
    assert_eq!(two.client.metric("entente_open_connections{direction=\"outbound\"}").await, 0.0);
    let began = tokio::time::Instant::now();
    let (_, ended) = two.server.terminate();
    soon("ended", ended).await.unwrap().unwrap();
    let limit = two.control.look(|world| world.pods[&two.client.home.uid].brief.as_ref().unwrap().drain_seconds);
    assert!(began.elapsed().as_secs() < u64::from(limit), "it waited for a session that rests");
}

/// What becomes of what the one in the middle carries when it is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Gone,
    Silent,
}

/// Stands before `server`; what it carries when it is told meets its fate, what comes later does not.
async fn middle(server: SocketAddr, told: watch::Receiver<Option<Fate>>) -> SocketAddr {
    let listener = TcpListener::bind((address(), 0)).await.unwrap();
    let here = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let mut told = told.clone();
            told.mark_unchanged();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(server).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = told.changed() => {
                        if *told.borrow() == Some(Fate::Silent) {
                            std::future::pending::<()>().await;
                        }
                    }
                }
            });
        }
    });
    here
}

async fn survives(fate: Fate) {
    let (tell, told) = watch::channel(None);
    let two = two(async |server| middle(server, told).await).await;
    two.warm().await;
    let (accepted, [handshakes, resumed]) = (two.application.accepted(), two.seen().await);
    tell.send(Some(fate)).unwrap();
    two.call(b"once and once only").await;
    assert_eq!(two.application.accepted(), accepted + 1);
    assert_eq!(two.seen().await, [handshakes + 1.0, resumed]);
}

#[tokio::test]
async fn a_session_that_was_lost_while_it_rested_costs_a_handshake_and_not_a_byte() {
    survives(Fate::Gone).await;
}

#[tokio::test]
async fn a_session_whose_way_has_fallen_silent_costs_a_handshake_and_not_a_byte() {
    survives(Fate::Silent).await;
}
