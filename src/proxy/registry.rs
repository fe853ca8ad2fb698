//! Every open connection, so that exactly those can be ended that a new generation no longer admits or whose peer has
//! no valid certificate any more.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;

use super::{
    basis::{Basis, Proof, still_admitted},
    generation::Generation,
    judge::Judge,
    quotas::Seat,
    routes::Table,
};
use crate::{
    brief::{Direction, OnPeerExpiry},
    identity::{Peer, SpiffeId},
    pki::renewal,
    refusal::Refusal,
};

/// Connections that end with one certificate are ended over so long a time before it.
const SPREAD: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Open {
    basis: Basis,
    /// Taken when the connection is ended.
    kill: Option<oneshot::Sender<Refusal>>,
    /// No connection, but what carries some.
    rests: bool,
}

impl Open {
    /// Whether it was still open.
    fn end(&mut self, reason: Refusal) -> bool {
        // The receiver is gone where the connection just ended by itself.
        self.kill.take().is_some_and(|kill| kill.send(reason).is_ok()) && !self.rests
    }
}

/// The open connections.
#[derive(Debug, Default)]
pub(super) struct Registry {
    open: Mutex<HashMap<u64, Box<Open>>>,
    next: AtomicU64,
}

/// A connection's place in the registry, left when dropped.
#[derive(Debug)]
pub(super) struct Place {
    registry: Arc<Registry>,
    id: u64,
    /// Says why the connection must end.
    pub(super) killed: oneshot::Receiver<Refusal>,
    /// Among the connections of its partner.
    pub(super) seat: Option<Seat>,
    /// The generation that admitted it.
    pub(super) under: Weak<Generation>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.registry.lock().remove(&self.id);
    }
}

/// A pod that connections of ours lead to, and that we must prove ourselves to anew, as it must to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair {
    /// The server.
    pub(super) server: SpiffeId,
    /// When the last proof was.
    pub(super) proven: Timestamp,
    /// End of what the pod showed.
    pub(super) until: Timestamp,
    /// End of what we showed it.
    pub(super) ours_until: Timestamp,
    /// Where its connections were dialled to, and whether that is the pod's own address.
    pub(super) dialled: BTreeSet<(SocketAddr, bool)>,
}

impl Pair {
    /// The nearer of both deadlines.
    pub(super) fn deadline(&self) -> Timestamp {
        self.until.min(self.ours_until)
    }

    /// Whether a re-proof can move the nearer deadline, where what we show now ends at `own_until`: where ours is the
    /// nearer one, only a newer certificate of ours does.
    pub(super) fn is_worth_it(&self, own_until: Timestamp) -> bool {
        self.until <= self.ours_until || own_until > self.ours_until
    }
}

impl Registry {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Box<Open>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a connection in. Whoever calls compares the generation afterwards.
    pub(super) fn enter(self: &Arc<Self>, basis: Basis) -> Place {
        let (kill, killed) = oneshot::channel();
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, Box::new(Open { basis, kill: Some(kill), rests: false }));
        Place { registry: self.clone(), id, killed, seat: None, under: Weak::new() }
    }

    /// What is at `place` is no connection but carries some: it is not counted, but cut as any other. Answers what it rests
    /// on; `None` = it was cut.
    pub(super) fn rests(&self, place: &Place) -> Option<Basis> {
        let mut open = self.lock();
        let open = open.get_mut(&place.id).filter(|open| open.kill.is_some())?;
        open.rests = true;
        Some(open.basis.clone())
    }

    /// Ends exactly the connections that `judge` and `routes` no longer admit; answers how many.
    pub(super) fn rejudge(&self, judge: &Judge, routes: &Table, now: Timestamp) -> usize {
        self.end(|_, basis| still_admitted(basis, judge, routes, now).err())
    }

    /// Ends the connections whose peer has no valid certificate any more; answers how many.
    pub(super) fn expire(&self, policy: OnPeerExpiry, now: Timestamp) -> usize {
        let over = |id, proof: &Proof| ends_at(id, proof, policy).is_some_and(|end| end <= now);
        self.end(|id, basis| basis.proof().filter(|proof| over(id, proof)).map(|_| Refusal::Expired))
    }

    /// Ends every connection.
    pub(super) fn end_all(&self, reason: Refusal) -> usize {
        self.end(|_, _| Some(reason))
    }

    fn end(&self, reason: impl Fn(u64, &Basis) -> Option<Refusal>) -> usize {
        let mut open = self.lock();
        let judged = open.iter_mut().filter_map(|(id, open)| Some((reason(*id, &open.basis)?, open)));
        judged.map(|(reason, open)| open.end(reason)).filter(|ended| *ended).count()
    }

    /// The pods by UID whose connections of ours are due for a proof at `now`.
    pub(super) fn due(&self, now: Timestamp) -> BTreeMap<String, Pair> {
        let mut pairs = BTreeMap::<String, Pair>::new();
        for open in self.lock().values().filter(|open| !open.rests) {
            let Basis::Server { address, server, pod, proof: Some(proof), .. } = &open.basis else { continue };
            let Some(uid) = proof.original.pod_uid() else { continue };
            let share = renewal::share(proof.latest.serial());
            if now < renewal::reprove_at(proof.proven, proof.deadline(), share) {
                continue;
            }
            let Proof { proven, until, ours_until, .. } = *proof;
            let pair = pairs.entry(uid.to_owned()).or_insert_with(|| {
                let dialled = BTreeSet::new();
                Pair { server: server.clone(), proven, until, ours_until, dialled }
            });
            pair.proven = pair.proven.min(proven);
            pair.until = pair.until.min(until);
            pair.ours_until = pair.ours_until.min(ours_until);
            pair.dialled.insert((*address, pod.as_deref() == Some(uid)));
        }
        pairs
    }

    /// The peer at `place` proved itself anew: what it proved counts for all connections of the same direction with
    /// the same pod. Under one lock with the cuts, so that a proof that was just taken back moves nothing.
    pub(super) fn reproved(&self, place: &Place) -> Option<usize> {
        let mut open = self.lock();
        let fresh = open.get(&place.id).filter(|open| open.kill.is_some())?;
        let (direction, fresh) = (fresh.basis.direction(), fresh.basis.proof()?.clone());
        let mut moved = 0_usize;
        for other in open.values_mut().filter(|other| other.basis.direction() == direction) {
            if let Some(proof) = other.basis.proof_mut()
                && proof.is_same_pod(&fresh)
            {
                proof.renew(&fresh);
                moved += 1;
            }
        }
        // The place itself is none of them.
        Some(moved.saturating_sub(1))
    }

    /// UIDs of the pods that connections of ours lead to.
    pub(super) fn pods(&self) -> BTreeSet<String> {
        let called = |open: &Open| match &open.basis {
            Basis::Server { proof: Some(proof), .. } => proof.original.pod_uid().map(str::to_owned),
            _ => None,
        };
        self.lock().values().filter_map(|open| called(open)).collect()
    }

    /// How many are open, inbound and outbound.
    pub(super) fn count(&self) -> [usize; 2] {
        let all = self.lock();
        let of = |direction| all.values().filter(|one| !one.rests && one.basis.direction() == direction).count();
        [of(Direction::Inbound), of(Direction::Outbound)]
    }
}

/// When a connection ends by its peer's certificate, unless that proves itself anew before.
fn ends_at(id: u64, proof: &Proof, policy: OnPeerExpiry) -> Option<Timestamp> {
    let policy = match *proof.original {
        Peer::Server(_) => policy,
        Peer::Partner(_) => OnPeerExpiry::Cut,
    };
    match policy {
        OnPeerExpiry::Keep => None,
        // Both ends of a pair may try until the last moment.
        OnPeerExpiry::Reprove if proof.original.pod_uid().is_some() => Some(proof.until),
        // Software that holds its own key cannot be asked to prove itself anew.
        OnPeerExpiry::Reprove | OnPeerExpiry::Cut => {
            let life = proof.until.as_second().saturating_sub(proof.proven.as_second()).max(0);
            let window = SPREAD.min(Duration::from_secs(life.unsigned_abs()) / 10);
            // Neighbouring numbers end far apart (Knuth's multiplicative hash).
            let share = renewal::share(&id.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
            let earlier = SignedDuration::try_from(window.mul_f64(share)).unwrap_or_default();
            Some(proof.until.checked_sub(earlier).unwrap_or(proof.until))
        }
    }
}

/// The order that closes the race between a handshake and a swap of generations: first take the connection in, then
/// look which generation is in force, and judge anew where it is not the one that admitted it. A swap stores first and
/// goes through the connections afterwards, so one of both sees the other.
pub(super) fn admit<G>(
    enter: impl FnOnce() -> Place,
    admitted_by: &Arc<G>,
    in_force: impl FnOnce() -> Result<Arc<G>, Refusal>,
    again: impl FnOnce(&G) -> Result<(), Refusal>,
) -> Result<Place, Refusal> {
    let place = enter();
    let current = in_force()?;
    if !Arc::ptr_eq(&current, admitted_by) {
        again(&current)?;
    }
    Ok(place)
}

#[cfg(test)]
mod tests;
