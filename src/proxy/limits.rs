//! Bounds: handshakes under way, in all and per source, and open connections by the descriptors there are.

use std::{net::IpAddr, sync::Arc};

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    handshakes::{Handshake, Handshakes},
    refusal::{LimitDetail, Refusal},
};

/// Inbound handshakes under way.
const MAX_PENDING: usize = 1024;
/// Of one source address.
const MAX_PENDING_PER_SOURCE: usize = 64;
/// Descriptors kept back for the control channel, health and files.
const RESERVED_DESCRIPTORS: usize = 64;
/// Sessions that rest at a time.
const MAX_SESSIONS: usize = 256;
/// More than this many are never asked for.
const MOST_DESCRIPTORS: u64 = 1 << 20;

/// The bounds of one proxy.
#[derive(Debug)]
pub(super) struct Limits {
    handshakes: Handshakes,
    connections: Arc<Semaphore>,
}

impl Limits {
    /// The bounds that `descriptors` allow: a relayed connection holds two, a session that rests one.
    pub(super) fn new(descriptors: usize) -> Self {
        let connections = descriptors.saturating_sub(RESERVED_DESCRIPTORS + sessions(descriptors)) / 2;
        let handshakes = Handshakes::new(MAX_PENDING, MAX_PENDING_PER_SOURCE);
        Self { handshakes, connections: Arc::new(Semaphore::new(connections)) }
    }

    /// A place for one more connection.
    pub(super) fn connection(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.connections.clone().try_acquire_owned().map_err(|_| Refusal::Limit(LimitDetail::Connections))
    }

    /// A place for one more handshake from `source`.
    pub(super) fn handshake(&self, source: IpAddr) -> Result<Handshake, Refusal> {
        self.handshakes.begin(source).ok_or(Refusal::Limit(LimitDetail::Pending))
    }
}

/// How many sessions of ours may rest, where there are `descriptors`.
pub(super) fn sessions(descriptors: usize) -> usize {
    (descriptors / 16).min(MAX_SESSIONS)
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
    fn descriptors_are_kept_back_and_a_connection_counts_twice() {
        let limits = Limits::new(RESERVED_DESCRIPTORS + 4 + sessions(RESERVED_DESCRIPTORS + 4));
        let _held = (limits.connection().unwrap(), limits.connection().unwrap());
        assert_eq!(limits.connection().unwrap_err(), Refusal::Limit(LimitDetail::Connections));
    }
}
