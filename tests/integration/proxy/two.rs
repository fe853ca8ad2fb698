//! Two sidecars, one of which calls the other: itself, or through somebody in the middle.

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
    eventually,
};

const HANDSHAKES: &str = "entente_handshake_seconds_count{direction=\"inbound\"}";
const RESUMED: &str = "entente_resumed_total{direction=\"inbound\"}";

pub(super) struct Two {
    pub(super) control: Arc<Server>,
    pub(super) application: Application,
    pub(super) server: Sidecar,
    pub(super) client: Sidecar,
}

/// A server, and a client of it that dials `through`, or the server itself.
pub(super) async fn two(through: impl AsyncFnOnce(SocketAddr) -> SocketAddr) -> Two {
    two_by(through, true, Behaviour::Echo).await
}

/// The same; whether that is its pod's own address, or a Service's, and what the application does.
pub(super) async fn two_by(
    through: impl AsyncFnOnce(SocketAddr) -> SocketAddr,
    own: bool,
    behaviour: Behaviour,
) -> Two {
    let control = control().await;
    let ip = address();
    let application = Application::start(ip, behaviour).await;
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
    pub(super) async fn seen(&self) -> [f64; 2] {
        [self.server.metric(HANDSHAKES).await, self.server.metric(RESUMED).await]
    }

    /// Calls until one came without a handshake, so that they know each other well enough.
    pub(super) async fn warm(&self) {
        eventually("a call without a handshake", || async {
            let mut stream = self.client.open(0).await;
            stream.shutdown().await.unwrap();
            assert_eq!(read_out(&mut stream).await.1, Seen::End);
            (self.seen().await[1] > 0.0).then_some(())
        })
        .await;
        // The server hears of the end after the client does.
        eventually("all have ended", || async { (self.application.open() == 0).then_some(()) }).await;
    }

    /// A whole connection: a word and its echo, and both ends in order.
    pub(super) async fn call(&self, word: &[u8]) {
        let mut stream = self.client.open(0).await;
        echo(&mut stream, word).await.unwrap();
        stream.shutdown().await.unwrap();
        assert_eq!(read_out(&mut stream).await, (vec![], Seen::End));
    }
}

pub(super) async fn itself(server: SocketAddr) -> SocketAddr {
    server
}

/// What becomes of what the one in the middle carries when it is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Gone,
    Silent,
}

/// Stands before `server`; what it carries when it is told meets its fate, what comes later does not.
pub(super) async fn middle(server: SocketAddr, told: watch::Receiver<Option<Fate>>) -> SocketAddr {
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
