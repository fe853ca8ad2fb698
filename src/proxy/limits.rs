//! Bounds: handshakes under way, in all and per source, and open connections by the descriptors and the memory there are.
//!
//! Whoever is in goes on, whoever comes on top is refused with a reason: a process that is out of memory is killed, and
//! takes all its connections with it.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    brief::Direction,
    handshakes::{Handshake, Handshakes},
    refusal::{LimitDetail, Refusal},
};

/// Inbound handshakes under way, which are also no more than half of the connections, or what one source may have.
const MAX_PENDING: usize = 1024;
/// Of one source address.
const MAX_PENDING_PER_SOURCE: usize = 64;
/// Descriptors kept back for the control channel, health and files.
const RESERVED_DESCRIPTORS: usize = 64;
/// More than this many are never asked for.
const MOST_DESCRIPTORS: u64 = 1 << 20;

/// What a process without connections takes of its memory, bytes that slow ends have not taken yet included.
const BASE_MEMORY: u64 = 16 << 20;
/// What a connection takes: 13 KiB where it is idle (measured among two thousand; 6 of them are the kernel's), the rest
/// for ends that are slow.
const CONNECTION_MEMORY: u64 = 24 << 10;
/// Connections that are let in with however little memory: it is said to be less than it is, or the proxy useless.
const LEAST_CONNECTIONS: u64 = 64;

/// The bounds of one proxy.
#[derive(Debug)]
pub(super) struct Limits {
    handshakes: Handshakes,
    connections: Arc<Semaphore>,
}

impl Limits {
    /// The bounds that allow so many connections at a time.
    pub(super) fn new(connections: usize) -> Self {
        let pending = MAX_PENDING.min(connections / 2).max(MAX_PENDING_PER_SOURCE);
        let handshakes = Handshakes::new(pending, MAX_PENDING_PER_SOURCE);
        Self { handshakes, connections: Arc::new(Semaphore::new(connections)) }
    }

    /// A place for one more connection.
    pub(super) fn connection(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        self.connections.clone().try_acquire_owned().map_err(|_| Refusal::Limit(LimitDetail::Connections))
    }

    /// Waits until another connection should be accepted.
    pub(super) async fn settled(&self, direction: Direction) {
        if direction == Direction::Inbound {
            self.handshakes.settled().await;
        }
    }

    /// A place for one more handshake from `source`, which may be another's, of a source that has more.
    pub(super) fn handshake(&self, source: IpAddr) -> Result<Handshake, Refusal> {
        self.handshakes.begin_before(source).ok_or(Refusal::Limit(LimitDetail::Pending))
    }
}

/// How many connections at a time `descriptors` allow, of which each holds two at most, and so many
/// bytes of `memory`.
pub(super) fn connections(descriptors: usize, memory: Option<u64>) -> usize {
    let by_descriptors = descriptors.saturating_sub(RESERVED_DESCRIPTORS) / 2;
    let by_memory = memory.map(|bytes| bytes.saturating_sub(BASE_MEMORY) / CONNECTION_MEMORY);
    let by_memory = by_memory.map_or(u64::MAX, |count| count.max(LEAST_CONNECTIONS));
    by_descriptors.min(usize::try_from(by_memory).unwrap_or(usize::MAX))
}

/// How much memory this process may use, where its control group bounds that.
pub(super) fn memory() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    memory_files(&groups).iter().filter_map(|file| bound(&std::fs::read_to_string(file).ok()?)).min()
}

/// Where the bound may stand, by the control groups of a process (cgroups(7)): below the group's own path, or where a
/// container sees nothing but its own group, at the top.
fn memory_files(groups: &str) -> Vec<PathBuf> {
    let file = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?.trim_start_matches('/'));
        let (root, name) = match controllers {
            "" => ("/sys/fs/cgroup", "memory.max"),
            _ if controllers.split(',').any(|one| one == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => return None,
        };
        let root = PathBuf::from(root);
        Some([root.join(path).join(name), root.join(name)])
    };
    groups.lines().filter_map(file).flatten().collect()
}

/// What such a file says; `max` is no bound.
fn bound(text: &str) -> Option<u64> {
    text.trim().parse().ok()
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
    use futures::FutureExt;

    use super::*;

    #[test]
    fn descriptors_are_kept_back_a_connection_counts_twice_and_no_more_are_let_in() {
        let limits = Limits::new(connections(RESERVED_DESCRIPTORS + 4, None));
        let _held = (limits.connection().unwrap(), limits.connection().unwrap());
        assert_eq!(limits.connection().unwrap_err(), Refusal::Limit(LimitDetail::Connections));
    }

    #[test]
    fn of_descriptors_and_memory_the_scarcer_says_how_many_connections_there_may_be() {
        let check = |descriptors, mebibytes: Option<u64>, expected| {
            assert_eq!(connections(descriptors, mebibytes.map(|count| count << 20)), expected, "{mebibytes:?}");
        };
        check(1024, None, 480);
        check(1 << 20, Some(1024), 43_008);
        check(1 << 20, Some(64), 2_048);
        check(1024, Some(64), 480);
        check(1 << 20, Some(16), 64);
        check(10, Some(64), 0);
        // A group without a bound says nearly the largest number there is.
        assert_eq!(connections(1024, bound("9223372036854771712\n")), 480);
    }

    #[test]
    fn handshakes_leave_half_of_the_places_to_connections() {
        let limits = Limits::new(200);
        let begin = |last: u8| limits.handshake([10, 0, 0, last].into());
        let greedy: Vec<_> = (0..MAX_PENDING_PER_SOURCE).map(|_| begin(1).unwrap()).collect();
        assert_eq!(begin(1).unwrap_err(), Refusal::Limit(LimitDetail::Pending));
        let others: Vec<_> = (0..100 - greedy.len()).map(|_| begin(2).unwrap()).collect();
        let told = |held: &[Handshake]| held.iter().filter(|one| one.displaced().now_or_never().is_some()).count();
        assert_eq!((told(&greedy), told(&others)), (0, 0), "there was room for a hundred");
        let _one_more = begin(3).unwrap();
        assert_eq!((told(&greedy), told(&others)), (1, 0), "and no more");
    }

    #[test]
    fn a_bound_of_memory_is_looked_for_in_both_versions_of_control_groups() {
        let files = |groups| memory_files(groups).iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
        assert_eq!(files("0::/\n"), ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.max"]);
        let first = "5:devices:/pod/one\n4:cpu,memory:/pod/one\n1:name=systemd:/\n";
        let top = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
        assert_eq!(files(first), ["/sys/fs/cgroup/memory/pod/one/memory.limit_in_bytes", top]);
        assert_eq!(files("nonsense"), [""; 0]);
        assert_eq!(bound("67108864\n"), Some(64 << 20));
        assert_eq!(bound("max\n"), None);
    }
}
