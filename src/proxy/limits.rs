//! Bounds: handshakes under way, in all and per source, and open connections by the descriptors there are.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::refusal::{LimitDetail, Refusal};

/// Inbound handshakes under way.
const MAX_PENDING: usize = 1024;
/// Of one source address.
const MAX_PENDING_PER_SOURCE: usize = 64;
/// Descriptors kept back for the control channel, health and files.
const RESERVED_DESCRIPTORS: usize = 64;
/// More than this many are never asked for.
const MOST_DESCRIPTORS: u64 = 1 << 20;

/// The bounds of one proxy.
#[derive(Debug)]
pub(super) struct Limits {
    pending: Arc<Mutex<HashMap<IpAddr, usize>>>,
    connections: Arc<Semaphore>,
}

/// One handshake under way; ends when dropped.
#[derive(Debug)]
pub(super) struct Pending {
    all: Arc<Mutex<HashMap<IpAddr, usize>>>,
    source: IpAddr,
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.source);
            }
        }
    }
}

impl Limits {
    /// The bounds that `descriptors` allow: a relayed connection holds two.
    pub(super) fn new(descriptors: usize) -> Self {
        let connections = descriptors.saturating_sub(RESERVED_DESCRIPTORS) / 2;
        Self { pending: Arc::default(), connections: Arc::new(Semaphore::new(connections)) }
    }

    /// A place for one more connection.
    pub(super) fn connection(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.connections.clone().try_acquire_owned().map_err(|_| Refusal::Limit(LimitDetail::Connections))
    }

    /// A place for one more handshake from `source`.
    pub(super) fn handshake(&self, source: IpAddr) -> Result<Pending, Refusal> {
        let mut all = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let of_source = all.get(&source).copied().unwrap_or_default();
        if of_source >= MAX_PENDING_PER_SOURCE || all.values().sum::<usize>() >= MAX_PENDING {
            return Err(Refusal::Limit(LimitDetail::Pending));
        }
        all.insert(source, of_source + 1);
        Ok(Pending { all: self.pending.clone(), source })
    }
}

/// How many descriptors this process may hold.
pub(super) fn descriptors() -> usize {
    let current = getrlimit(Resource::Nofile).current.unwrap_or(MOST_DESCRIPTORS);
    usize::try_from(current.min(MOST_DESCRIPTORS)).unwrap_or(usize::MAX)
}

/// Prepares the process of a sidecar: as many descriptors as it may have, and no memory dump, since the memory holds
/// the key. Neither is worth not starting for.
pub fn prepare_process() {
    let limit = getrlimit(Resource::Nofile);
    let current = Some(limit.maximum.unwrap_or(MOST_DESCRIPTORS).min(MOST_DESCRIPTORS));
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current, ..limit }) {
        tracing::warn!(%error, "cannot raise the limit of descriptors");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "memory dumps stay possible");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_cannot_take_all_handshakes_and_an_ended_one_makes_room() {
        let limits = Limits::new(1024);
        let (greedy, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let mut held: Vec<_> = (0..MAX_PENDING_PER_SOURCE).map(|_| limits.handshake(greedy).unwrap()).collect();
        assert_eq!(limits.handshake(greedy).unwrap_err(), Refusal::Limit(LimitDetail::Pending));
        assert!(limits.handshake(other).is_ok());
        held.pop();
        assert!(limits.handshake(greedy).is_ok());
    }

    #[test]
    fn descriptors_are_kept_back_and_a_connection_counts_twice() {
        let limits = Limits::new(RESERVED_DESCRIPTORS + 4);
        let _held = (limits.connection().unwrap(), limits.connection().unwrap());
        assert_eq!(limits.connection().unwrap_err(), Refusal::Limit(LimitDetail::Connections));
    }
}
