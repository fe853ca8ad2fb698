//! Ends connections whose peer has no valid certificate any more, and has pods prove themselves anew before that.
//!
//! Everything goes by the wall clock, which is looked at again and again, so that a clock that steps acts at once.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior},
};

use super::{registry::Pair, reprove, shared::Shared};
use crate::{
    brief::{Direction, OnPeerExpiry},
    pki::renewal,
    refusal::Refusal,
    telemetry,
};

/// How often the clock is looked at: certificates count whole seconds.
const LOOK: Duration = Duration::from_millis(500);
/// Re-proofs under way.
const MAX_UNDER_WAY: usize = 64;

/// A pod's re-proof, as far as it has come.
#[derive(Clone, Copy, Debug)]
enum Progress {
    UnderWay {
        attempt: u32,
    },
    /// The last one brought nothing.
    Waiting {
        attempt: u32,
        next: Instant,
    },
}

/// Pods that must prove themselves anew, by UID.
#[derive(Debug, Default)]
struct Pods {
    known: HashMap<String, Progress>,
    under_way: JoinSet<(String, Pair, Result<usize, Refusal>)>,
}

/// Runs for the proxy's whole life.
pub(super) async fn run(shared: Arc<Shared>) {
    let mut pods = Pods::default();
    let mut clock = tokio::time::interval(LOOK);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = clock.tick() => look(&shared, &mut pods),
            Some(done) = pods.under_way.join_next() => {
                if let Ok((uid, pair, outcome)) = done {
                    ended(&shared, &mut pods, uid, &pair, outcome);
                }
            }
        }
    }
}

fn look(shared: &Arc<Shared>, pods: &mut Pods) {
    let Some(generation) = shared.in_force() else { return };
    let now = telemetry::now();
    let policy = generation.brief().on_peer_expiry;
    let cut = shared.registry.expire(policy, now);
    if cut > 0 {
        tracing::info!(cut, "connections ended with their peers' certificates");
    }
    let due = match policy {
        OnPeerExpiry::Reprove => shared.registry.due(now),
        OnPeerExpiry::Cut | OnPeerExpiry::Keep => BTreeMap::new(),
    };
    pods.known.retain(|uid, progress| matches!(progress, Progress::UnderWay { .. }) || due.contains_key(uid));
    for (uid, pair) in due {
        if pair.is_worth_it(generation.own_until)
            && let Some(attempt) = pods.turn(&uid)
        {
            let shared = shared.clone();
            pods.known.insert(uid.clone(), Progress::UnderWay { attempt });
            pods.under_way.spawn(async move {
                let outcome = reprove::prove(&shared, &uid, &pair, attempt).await;
                (uid, pair, outcome)
            });
        }
    }
}

impl Pods {
    /// The number of the attempt that may begin now.
    fn turn(&self, uid: &str) -> Option<u32> {
        if self.under_way.len() >= MAX_UNDER_WAY {
            return None;
        }
        match self.known.get(uid) {
            None => Some(0),
            Some(Progress::Waiting { attempt, next }) if *next <= Instant::now() => Some(*attempt),
            Some(Progress::Waiting { .. } | Progress::UnderWay { .. }) => None,
        }
    }
}

fn ended(shared: &Shared, pods: &mut Pods, uid: String, pair: &Pair, outcome: Result<usize, Refusal>) {
    let Some(Progress::UnderWay { attempt }) = pods.known.get(&uid).copied() else { return };
    shared.metrics.reproof(Direction::Outbound, outcome.is_ok());
    match outcome {
        Ok(connections) => {
            tracing::info!(target: "access", peer = %pair.server, pod = uid, connections, "peer proved itself anew");
        }
        Err(reason) => {
            let (reason, detail, until) = (reason.code(), reason.detail(), pair.deadline());
            // Once for each pod: what comes of it in the end has a record of its own.
            if attempt == 0 {
                tracing::warn!(target: "access", peer = %pair.server, pod = uid, reason, detail, %until, "re-proof failed");
            } else {
                tracing::debug!(target: "access", peer = %pair.server, pod = uid, reason, detail, attempt, "re-proof failed");
            }
        }
    }
    // Also after a success: where the peer could not renew yet, the deadline is where it was.
    let life = Duration::try_from(pair.deadline().duration_since(pair.proven)).unwrap_or_default();
    let next = Instant::now() + renewal::retry_after(attempt, telemetry::jitter(), life);
    pods.known.insert(uid, Progress::Waiting { attempt: attempt.saturating_add(1), next });
}
