//! The accept loops: they never spin, never end before they are told to, and bound what they let in.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::OwnedSemaphorePermit,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    access::Record,
    inbound,
    limits::Limits,
    outbound,
    shards::{Host, Shards},
    shared::Shared,
    sockets,
};
use crate::{
    brief::Direction,
    refusal::{LimitDetail, Refusal},
};

/// First and longest pause after an accept that failed for want of descriptors.
const PAUSE: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(250)];

/// A connection that was let in. It is given on in a box, since futures hold what they are given more than once.
#[derive(Debug)]
pub(super) struct Arrival<P> {
    /// Who connected.
    pub(super) from: SocketAddr,
    /// Among the handshakes under way, where one is expected.
    pub(super) pending: P,
    /// Among the connections.
    pub(super) place: OwnedSemaphorePermit,
    /// Where it comes from.
    pub(super) limits: Arc<Limits>,
    /// Where it is carried.
    pub(super) host: Host,
}

/// What the accept loops need.
#[derive(Clone)]
pub(super) struct Acceptor {
    /// The proxy.
    pub(super) shared: Arc<Shared>,
    /// Its bounds.
    pub(super) limits: Arc<Limits>,
    /// Counts the connections' tasks.
    pub(super) tasks: TaskTracker,
    /// What carries them.
    pub(super) shards: Shards,
    /// Which of those this is.
    pub(super) index: usize,
}

impl Acceptor {
    /// Accepts on its shard until `stop`; `background` counts it.
    pub(super) fn start(
        self,
        listener: std::net::TcpListener,
        direction: Direction,
        stop: &CancellationToken,
        background: &TaskTracker,
    ) -> io::Result<()> {
        let handle = self.shards.handle(self.index).clone();
        let _here = handle.enter();
        let listener = TcpListener::from_std(listener)?;
        background.spawn_on(self.run(listener, direction, stop.clone()), &handle);
        Ok(())
    }

    async fn run(self, listener: TcpListener, direction: Direction, stop: CancellationToken) {
        let mut pause = PAUSE[0];
        loop {
            let next = async {
                self.limits.settled(direction).await;
                listener.accept().await
            };
            let accepted = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                accepted = next => accepted,
            };
            match accepted {
                Ok((stream, from)) => {
                    pause = PAUSE[0];
                    self.admit(stream, from, direction);
                }
                Err(error) if sockets::is_exhausted(&error) => {
                    self.shared.metrics.refused(direction, Refusal::Limit(LimitDetail::Descriptors));
                    tracing::warn!(%error, "cannot accept");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE[1]);
                }
                // The peer gave up before its turn, or the network did.
                Err(error) => tracing::debug!(%error, "connection lost before it was accepted"),
            }
        }
    }

    fn admit(&self, stream: TcpStream, from: SocketAddr, direction: Direction) {
        // What is dropped is reset.
        let refuse = |_: TcpStream, refusal| {
            Record::begin(direction, from).end(Err(refusal), &self.shared.metrics, &self.shared.refusals);
        };
        let place = match self.limits.connection() {
            Ok(place) => place,
            Err(refusal) => return refuse(stream, refusal),
        };
        let (shared, limits) = (self.shared.clone(), self.limits.clone());
        match direction {
            Direction::Outbound => {
                self.carry(stream, move |stream, host| {
                    outbound::serve(shared, stream, Box::new(Arrival { from, pending: (), place, limits, host }))
                });
            }
            Direction::Inbound => match self.limits.handshake(from.ip()) {
                Err(refusal) => refuse(stream, refusal),
                Ok(pending) => {
                    self.carry(stream, move |stream, host| {
                        inbound::serve(shared, stream, Box::new(Arrival { from, pending, place, limits, host }))
                    });
                }
            },
        }
    }

    fn carry<F: Future<Output = ()> + Send + 'static>(
        &self,
        stream: TcpStream,
        serve: impl FnOnce(TcpStream, Host) -> F + Send + 'static,
    ) {
        self.shards.carry(self.index, &self.tasks, stream, serve);
    }
}
