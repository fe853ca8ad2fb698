//! How every pod of every server stands: sidecar, certificate, brief in force. Conditions and rotations rest on it.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{
    BEHIND_SECONDS, Plan, ProxySeen, World, briefs, briefs::Trust, partners, published, usable,
    withdrawals::Withdrawals,
};
use crate::{
    brief::Standing,
    topology::{Domain, Server, ServerKey, Topology, facts::PodFacts},
};

/// The pods of one server, sorted by what they lack.
#[derive(Default)]
pub(super) struct Pods<'a> {
    pub(super) all: Vec<&'a PodFacts>,
    pub(super) bare: Vec<&'a str>,
    pub(super) foreign_account: Vec<&'a str>,
    pub(super) disconnected: Vec<&'a str>,
    pub(super) behind: Vec<&'a str>,
    pub(super) uncertified: Vec<&'a str>,
    pub(super) overdue: Vec<&'a str>,
    /// UIDs of those that have their own current brief in force.
    pub(super) acknowledged: BTreeSet<&'a str>,
    pub(super) connected: usize,
    pub(super) current: usize,
    pub(super) ends: Vec<Timestamp>,
}

/// The pods of every server.
pub(super) type Survey<'a> = BTreeMap<&'a ServerKey, Pods<'a>>;

/// Surveys the servers of `domain`.
pub(super) fn survey<'a>(
    topology: &'a Topology,
    world: &World,
    domain: &Domain,
    withdrawals: &Withdrawals,
    now: Timestamp,
    plan: &mut Plan,
) -> Survey<'a> {
    let servers = topology.servers().filter(|server| server.domain == domain.name);
    let facts = usable(world, &domain.name);
    let one = |server: &'a Server| {
        let trust = Trust::of(facts, withdrawals, topology, Some(server));
        let taken = withdrawals.of(&server.key);
        let revoked = taken.into_iter().flat_map(|taken| &taken.revoked).map(|(_, one)| one.serial.to_string());
        (&server.key, pods(topology, server, (&trust, &revoked.collect()), world, now, plan))
    };
    servers.map(one).collect()
}

fn pods<'a>(
    topology: &'a Topology,
    server: &'a Server,
    (trust, revoked): (&Trust, &BTreeSet<String>),
    world: &World,
    now: Timestamp,
    plan: &mut Plan,
) -> Pods<'a> {
    let mut pods = Pods::default();
    let at = published(topology, world, &server.domain);
    let partners = partners::told(topology, server, now);
    for pod in topology.pods_of(&server.key).filter(|pod| !pod.ending) {
        if server.secret_name.is_some() {
            // Its software holds the key; there is no sidecar to speak of.
            continue;
        }
        pods.all.push(pod);
        if !pod.injected {
            pods.bare.push(&pod.name);
            continue;
        }
        if pod.service_account != server.service_account {
            pods.foreign_account.push(&pod.name);
            continue;
        }
        let nothing = ProxySeen::default();
        let seen = world.proxies.get(&pod.uid).unwrap_or(&nothing);
        if server.standing == Standing::Active && revoked.contains(&seen.serial) {
            pods.uncertified.push(&pod.name);
        } else if server.standing == Standing::Active {
            certificate(seen, pod, now, &mut pods, plan);
        }
        let wanted = at.clone().map(|at| briefs::cursor_of(topology, server, pod, (trust, &partners), at));
        // The hash alone judges: a change elsewhere moves the revision and leaves this server as it is.
        let current = wanted.is_some_and(|wanted| seen.cursor.as_ref().is_some_and(|has| has.hash == wanted.hash));
        pods.connected += usize::from(seen.connected);
        if seen.connected && current {
            pods.current += 1;
            pods.acknowledged.insert(&pod.uid);
            continue;
        }
        plan.behind.insert(pod.uid.clone());
        let since = world.behind_since.get(&pod.uid).copied().unwrap_or(now);
        let patience = Timestamp::from_second(since.as_second() + BEHIND_SECONDS).unwrap_or(now);
        if seen.cursor.is_some() && now < patience {
            plan.wake(patience);
        } else if seen.connected {
            pods.behind.push(&pod.name);
        } else {
            pods.disconnected.push(&pod.name);
        }
    }
    pods
}

fn certificate<'a>(seen: &ProxySeen, pod: &'a PodFacts, now: Timestamp, pods: &mut Pods<'a>, plan: &mut Plan) {
    let (Some(start), Some(end)) = (seen.leaf_not_before, seen.leaf_not_after) else {
        pods.uncertified.push(&pod.name);
        return;
    };
    if end <= now {
        pods.uncertified.push(&pod.name);
        return;
    }
    pods.ends.push(end);
    // Renewal is due at 40 % of life at the latest; at 60 % something is in its way.
    let (start, end) = (start.as_second(), end.as_second());
    let overdue = Timestamp::from_second(start + (end - start) * 3 / 5).unwrap_or(now);
    if now >= overdue {
        pods.overdue.push(&pod.name);
    } else {
        plan.wake(overdue);
    }
}
