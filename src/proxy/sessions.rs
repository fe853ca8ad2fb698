//! Sessions between sidecars of ours that rest: one handshake carries one connection after the other, never two at a
//! time. Each connection is judged by itself, in both sidecars, as if it had just come; a handshake proves who is
//! there, and a session never outlives the generation that let it begin.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::ThreadId,
    time::Duration,
};

use tokio::time::{Instant, timeout};

use super::{
    basis::{Basis, Proof},
    generation::Generation,
    outbound,
    registry::Place,
    relay::Resting,
    shared::Shared,
    sockets::{self, Underlying},
    tls::Stream,
};
use crate::{
    brief::{Direction, Mode},
    identity::SpiffeId,
    refusal::{HandshakeDetail, Refusal},
    telemetry,
};

/// How long one rests where we called.
const REST: Duration = Duration::from_secs(10);
/// How long one rests where we were called: the caller ends it first.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a server may take to accept the next connection, until we try a handshake.
pub(super) const ACCEPT: Duration = Duration::from_secs(2);

/// The generation has moved: a handshake is judged by the new one. Nobody is told.
pub(super) const AGAIN: Refusal = Refusal::HandshakeFailed(HandshakeDetail::Malformed);

/// Where a session leads. Only to a pod's own address: behind a Service's, each connection finds a pod anew, and who would
/// stay with one defeats that. A socket belongs to the thread that polls it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    thread: ThreadId,
    address: SocketAddr,
    server: SpiffeId,
    pod: String,
}

/// A session where we called.
#[derive(Debug)]
struct Idle {
    resting: Resting,
    proof: Proof,
    since: Instant,
}

impl Idle {
    /// Whether the generation `current` let it begin, and nothing has ended it.
    fn fits(&mut self, current: &Arc<Generation>) -> bool {
        let place = &mut self.resting.place;
        std::ptr::eq(place.under.as_ptr(), Arc::as_ptr(current)) && place.killed.try_recv().is_err()
    }
}

/// The sessions where we called.
#[derive(Debug)]
pub(super) struct Sessions {
    idle: Mutex<HashMap<Key, Vec<Idle>>>,
    most: usize,
}

impl Sessions {
    /// At most `most` rest at a time.
    pub(super) fn new(most: usize) -> Self {
        Self { idle: Mutex::default(), most }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that was used last; those that do not fit are ended.
    fn take(&self, key: &Key, current: &Arc<Generation>) -> Option<Idle> {
        let mut all = self.lock();
        let idle = all.get_mut(key)?;
        let mut found = None;
        while let Some(mut one) = idle.pop() {
            if one.fits(current) {
                found = Some(one);
                break;
            }
            end(one.resting);
        }
        if idle.is_empty() {
            all.remove(key);
        }
        found
    }

    fn put(&self, key: Key, idle: Idle) {
        let mut all = self.lock();
        if all.values().map(Vec::len).sum::<usize>() < self.most {
            all.entry(key).or_default().push(idle);
        } else {
            end(idle.resting);
        }
    }

    /// Ends those that have rested long enough, and those that may not go on.
    pub(super) fn sweep(&self, current: &Arc<Generation>) {
        let now = Instant::now();
        let mut over = Vec::new();
        self.lock().retain(|_, idle| {
            over.extend(idle.extract_if(.., |one| now - one.since >= REST || !one.fits(current)));
            !idle.is_empty()
        });
        over.into_iter().for_each(|one| end(one.resting));
    }
}

/// Ends a session in order.
pub(super) fn end(resting: Resting) {
    sockets::end_cleanly(resting.tunnel.socket());
    drop(resting);
}

/// For this thread.
pub(super) fn key(address: SocketAddr, server: SpiffeId, pod: String) -> Key {
    Key { thread: std::thread::current().id(), address, server, pod }
}

/// Keeps a session of ours for the next call of the same server at the same address.
pub(super) fn rest(shared: &Shared, mut resting: Resting) {
    resting.place.crowd = None;
    match shared.registry.rests(&resting.place) {
        Some(Basis::Server { address, server, pod: Some(pod), proof: Some(proof), .. }) => {
            shared.sessions.put(key(address, server, pod), Idle { resting, proof, since: Instant::now() });
        }
        _ => end(resting),
    }
}

/// A call on a session that rests, instead of a handshake: judged as any call. `None` = a handshake is needed.
pub(super) async fn resume(
    shared: &Shared,
    generation: &Arc<Generation>,
    address: SocketAddr,
    server: &SpiffeId,
    pod: &str,
) -> Option<(Stream, Place)> {
    let Idle { resting: Resting { mut tunnel, place: last }, proof, .. } =
        shared.sessions.take(&key(address, server.clone(), pod.to_owned()), generation)?;
    generation.judge.stands(&proof, telemetry::now()).ok()?;
    let (server, pod) = (server.clone(), Some(pod.to_owned()));
    let basis = Basis::Server { address, server, mode: Mode::MutualTls, pod, proof: Some(proof) };
    let place = outbound::register(shared, generation, basis, |_| Err(AGAIN)).ok()?;
    drop(last);
    let accepted = async {
        tunnel.mark().await?;
        tunnel.marked().await
    };
    timeout(ACCEPT, accepted).await.ok()?.ok()?;
    shared.metrics.resumed(Direction::Outbound);
    Some((Stream::Own(tunnel), place))
}

/// Waits for the next connection on a session where we were called.
pub(super) async fn next(shared: &Shared, resting: Resting) -> Option<Resting> {
    let Resting { mut tunnel, mut place } = resting;
    shared.registry.rests(&place)?;
    let begun = tokio::select! {
        biased;
        _ = &mut place.killed => false,
        () = shared.draining.cancelled() => false,
        begun = timeout(PATIENCE, tunnel.marked()) => matches!(begun, Ok(Ok(()))),
    };
    let resting = Resting { tunnel, place };
    if begun {
        return Some(resting);
    }
    end(resting);
    None
}
