//! Multiplexed connections, one of each thread to each address of a pod: where we call, what becomes a stream on which;
//! where we are called, how each stream is judged. A handshake proves who is there; each stream is judged by itself, in
//! both sidecars, as if it had just come, and none begins under another generation than the one that let the handshake in.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    thread::ThreadId,
    time::Duration,
};

use tokio::{sync::watch, time::timeout};

use super::{
    access::Record,
    basis::Basis,
    generation::Generation,
    inbound,
    limits::Limits,
    outbound,
    registry::Place,
    relay::{self, Answer, Begun, Joined, Mux, Network, Parts, Role},
    shards::Host,
    shared::Shared,
    tls::Made,
};
use crate::{
    brief::{Direction, Mode, Route},
    identity::SpiffeId,
    refusal::{HandshakeDetail, Refusal},
    telemetry,
};

/// How long one without a stream stays where we called.
const REST: Duration = Duration::from_secs(10);
/// How long where we were called: the caller ends it first.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a server may take to accept a stream, until we try a handshake.
const ACCEPT: Duration = Duration::from_secs(2);

/// The generation has moved: a handshake is judged by the new one. Nobody is told.
const AGAIN: Refusal = Refusal::HandshakeFailed(HandshakeDetail::Malformed);

/// Where one leads. Only to a pod's own address: behind a Service's, each connection finds a pod anew, and who would stay
/// with one defeats that. A socket belongs to the thread that polls it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    thread: ThreadId,
    address: SocketAddr,
    server: SpiffeId,
    pod: String,
}

/// For this thread.
pub(super) fn key(address: SocketAddr, server: SpiffeId, pod: String) -> Key {
    Key { thread: std::thread::current().id(), address, server, pod }
}

/// What leads to one pod.
#[derive(Debug, Default)]
struct Spot {
    mux: Option<Arc<Mux>>,
    /// One is being made; its end is the end of that.
    dialling: Option<watch::Receiver<()>>,
    /// Under this generation the pod knew none.
    unable: Weak<Generation>,
}

impl Spot {
    fn is_used(&self) -> bool {
        self.mux.is_some() || self.is_dialling() || self.unable.strong_count() > 0
    }

    /// One whose maker is gone is made by nobody.
    fn is_dialling(&self) -> bool {
        self.dialling.as_ref().is_some_and(|dialling| dialling.has_changed().is_ok())
    }
}

/// Where we call.
#[derive(Debug, Default)]
pub(super) struct Muxes(Mutex<HashMap<Key, Spot>>);

/// What a connection finds that would share.
enum Found {
    Mux(Arc<Mux>),
    /// Somebody makes one.
    Wait(watch::Receiver<()>),
    /// It is for us to make one; whoever waits hears of it, or goes its own way when this is dropped.
    Make(watch::Sender<()>),
    Nothing,
}

/// What came of making one.
enum Outcome {
    Shared(Arc<Mux>),
    /// The pod knows none: what serves one connection, or nothing.
    Alone(Option<(Network, Place)>),
}

impl Muxes {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Spot>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: &Key, current: &Arc<Generation>) -> Found {
        let mut all = self.lock();
        let spot = all.entry(key.clone()).or_default();
        if let Some(mux) = &spot.mux
            && std::ptr::eq(mux.place.under.as_ptr(), Arc::as_ptr(current))
            && mux.has_room()
        {
            return Found::Mux(mux.clone());
        }
        if let Some(dialling) = spot.dialling.clone().filter(|_| spot.is_dialling()) {
            return Found::Wait(dialling);
        }
        if std::ptr::eq(spot.unable.as_ptr(), Arc::as_ptr(current)) {
            return Found::Nothing;
        }
        let (made, dialling) = watch::channel(());
        spot.dialling = Some(dialling);
        // Nobody else comes by where pods were that are gone.
        all.retain(|_, spot| spot.is_used());
        Found::Make(made)
    }

    /// One was made, or cannot be.
    fn made(&self, key: &Key, change: impl FnOnce(&mut Spot)) {
        if let Some(spot) = self.lock().get_mut(key) {
            spot.dialling = None;
            change(spot);
        }
    }

    fn forget(&self, key: &Key, mux: &Arc<Mux>) {
        if let Some(spot) = self.lock().get_mut(key) {
            spot.mux.take_if(|one| Arc::ptr_eq(one, mux));
        }
    }
}

/// Where a connection of ours leads.
pub(super) struct Call<'a> {
    /// The proxy.
    pub(super) shared: &'a Arc<Shared>,
    /// What is in force.
    pub(super) generation: &'a Arc<Generation>,
    /// What the application dialled.
    pub(super) address: SocketAddr,
    /// Who is declared there.
    pub(super) route: &'a Route,
    /// Where it is carried.
    pub(super) host: &'a Host,
    /// What bounds it.
    pub(super) limits: &'a Arc<Limits>,
}

impl Call<'_> {
    /// A stream to where `key` leads; `None` = the connection must have its own.
    pub(super) async fn share(&self, key: Key, record: &mut Record) -> Result<Option<(Network, Place)>, Refusal> {
        if self.shared.draining.is_cancelled() {
            return Ok(None);
        }
        let muxes = &self.shared.muxes;
        for _ in 0..3 {
            match muxes.find(&key, self.generation) {
                Found::Nothing => break,
                Found::Wait(mut dialling) => {
                    if dialling.changed().await.is_err() {
                        break;
                    }
                }
                Found::Mux(mux) => match self.begin(&mux).await? {
                    Some(joined) => return Ok(Some(joined)),
                    // It does not answer, or its generation is over there.
                    None => muxes.forget(&key, &mux),
                },
                Found::Make(made) => match self.make(&key, record).await? {
                    Outcome::Alone(joined) => return Ok(joined),
                    Outcome::Shared(mux) => {
                        made.send_replace(());
                        return self.begin(&mux).await;
                    }
                },
            }
        }
        Ok(None)
    }

    /// Shakes hands for many.
    async fn make(&self, key: &Key, record: &mut Record) -> Result<Outcome, Refusal> {
        let Self { shared, generation, address, route, host, limits } = self;
        let Ok(counted) = limits.connection() else { return Ok(Outcome::Alone(None)) };
        let (made, place) = outbound::mutual(shared, generation, *address, route, true, record).await?;
        let parts = match made {
            Made::Mux(parts) => *parts,
            Made::Stream(stream) => {
                shared.muxes.made(key, |spot| spot.unable = Arc::downgrade(generation));
                return Ok(Outcome::Alone(Some((Network::Secured(stream), place))));
            }
        };
        if shared.registry.rests(&place).is_none() {
            return Ok(Outcome::Alone(None));
        }
        let (mux, life) = Mux::new(Role::Caller, parts, place, REST);
        shared.muxes.made(key, |spot| spot.mux = Some(mux.clone()));
        let (shared, key, made) = ((*shared).clone(), key.clone(), mux.clone());
        host.spawn(async move {
            // Nothing is begun by whom we called.
            mux.run(life, &shared.draining, drop).await;
            shared.muxes.forget(&key, &mux);
            drop(counted);
        });
        Ok(Outcome::Shared(made))
    }

    /// A stream, judged as any call; `None` = a handshake is needed.
    async fn begin(&self, mux: &Arc<Mux>) -> Result<Option<(Network, Place)>, Refusal> {
        let Some((place, begun)) = self.admitted(mux).and_then(|place| Some((place, mux.begin()?))) else {
            return Ok(None);
        };
        match timeout(ACCEPT, begun.answered()).await {
            Ok(Answer::Accepted) => {
                self.shared.metrics.resumed(Direction::Outbound);
                Ok(Some((Network::Stream(Box::new(begun.taken())), place)))
            }
            // Another handshake would reach it no better.
            Ok(Answer::Unreached) => Err(Refusal::DialFailed),
            Ok(Answer::Refused) | Err(_) => Ok(None),
        }
    }

    /// A place for a call that rests on the handshake of `mux`.
    fn admitted(&self, mux: &Mux) -> Option<Place> {
        let Self { shared, generation, address, route, .. } = self;
        let Some(Basis::Server { proof: Some(proof), .. }) = shared.registry.rests(&mux.place) else { return None };
        generation.judge.stands(&proof, telemetry::now()).ok()?;
        let (server, pod) = (route.server.clone(), route.pod.clone());
        let basis = Basis::Server { address: *address, server, mode: Mode::MutualTls, pod, proof: Some(proof) };
        outbound::register(shared, generation, basis, |_| Err(AGAIN)).ok()
    }
}

/// Serves one where we were called, on the thread that has fewest; `came` = from where, and what was dialled.
pub(super) fn serve(
    shared: &Arc<Shared>,
    (host, limits): (&Host, Arc<Limits>),
    parts: Parts,
    place: Place,
    came: (SocketAddr, SocketAddr),
    counted: impl Send + 'static,
) {
    if shared.registry.rests(&place).is_none() {
        return;
    }
    let shared = shared.clone();
    let Parts { network, records, left } = parts;
    host.settle(network, move |network, host| async move {
        let (mux, life) = Mux::new(Role::Callee, Parts { network, records, left }, place, PATIENCE);
        let begun = |begun| host.spawn(stream(shared.clone(), limits.clone(), begun, came));
        mux.run(life, &shared.draining, begun).await;
        drop(counted);
    });
}

/// Serves one stream to its end. One that is not let in comes again by a handshake, and hears why there.
async fn stream(shared: Arc<Shared>, limits: Arc<Limits>, begun: Begun, came: (SocketAddr, SocketAddr)) {
    let Ok(counted) = limits.connection() else { return };
    drop(limits);
    let Some((joined, mut record)) = Box::pin(join(&shared, begun, came)).await else { return };
    let outcome = match joined {
        Ok(joined) => relay::carry(joined, &mut record).await,
        Err(refusal) => Err(refusal),
    };
    record.end(outcome, &shared.metrics, &shared.refusals);
    drop(counted);
}

/// A stream that is let in, joined to the application if that can be reached; `None` = it is not let in.
async fn join(
    shared: &Arc<Shared>,
    begun: Begun,
    came: (SocketAddr, SocketAddr),
) -> Option<(Result<Box<Joined>, Refusal>, Record)> {
    let mux = begun.mux().clone();
    let (reached, record) = inbound::anew(shared, &mux.place, came).await?;
    let (application, place) = match reached {
        Ok(reached) => reached,
        Err(refusal) => {
            begun.unreached();
            return Some((Err(refusal), record));
        }
    };
    let stream = begun.accept()?;
    shared.metrics.resumed(Direction::Inbound);
    let network = Network::Stream(Box::new(stream));
    Some((Ok(Box::new(Joined { application: application.into(), network, place })), record))
}
