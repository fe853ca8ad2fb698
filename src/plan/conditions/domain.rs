//! The status of a domain.

use jiff::Timestamp;

use super::{Seen, count, first_visit, named};
use crate::{
    api::{
        AuthorityState, AuthorityStatus, CrlStatus, PartnerCounts, ProxyCounts, ServerCounts, TrustDomain,
        TrustDomainStatus,
        conditions::{State, ready, seconds, write},
    },
    pki::rotation::{self, Facts, State as Stage, Waiting},
    plan::{
        AuthorityFacts, AuthoritySeen, Plan,
        authorities::{Supplied, members, replaced},
        turn::Turn,
        usable,
    },
    topology::{Problem, Topology},
};

const KINDS: [&str; 6] =
    ["Ready", "AuthorityReady", "TopologyValid", "BundleDistributed", "RotationComplete", "RevocationPublished"];

pub(super) fn status(
    seen: &Seen<'_>,
    object: &TrustDomain,
    problems: &[&Problem],
    (proxies, partners): (ProxyCounts, PartnerCounts),
    plan: &mut Plan,
) -> TrustDomainStatus {
    let Seen { topology, world, turns, now } = *seen;
    let old = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation;
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let domain = topology.domain(name);
    let turn = turns.get(name);
    let facts = usable(world, name);
    let gates = turn.and_then(|turn| turn.gates.as_ref());
    let states = if old.conditions.is_empty() {
        first_visit(&KINDS)
    } else {
        let rotation = rotation_complete(seen, turn, plan);
        let parts = [
            authority_ready(seen, name, &old, turn.map_or(&Supplied::Managed, |turn| &turn.given)),
            topology_valid(topology, name, problems),
            bundle(turn),
            revocation_published(facts, turn, now),
        ];
        // A rotation in its course is no reason not to be ready; one that waits for somebody is.
        let blocked = Some(&rotation).filter(|rotation| rotation.reason == "AckPending").cloned();
        let summed: Vec<State> = parts.iter().cloned().chain(blocked).collect();
        let [authority, valid, bundle, revocation] = parts;
        vec![ready(&summed), authority, valid, bundle, rotation, revocation]
    };
    let digest = domain.map_or_else(|| old.topology_digest.clone(), |domain| domain.digest.clone());
    let moved = digest != old.topology_digest;
    let total = topology.servers().filter(|server| server.domain == name).count();
    TrustDomainStatus {
        conditions: write(&states, &old.conditions, generation, now),
        observed_generation: generation,
        topology_revision: old.topology_revision + i64::from(moved),
        topology_digest: digest,
        // What was once active stays named, so that a lost authority is known as lost.
        active_key_id: facts
            .and_then(|facts| Some(facts.active()?.member.key_id.clone()))
            .or_else(|| old.active_key_id.clone()),
        authorities: facts.map_or(old.authorities, |facts| authorities(facts, gates, &proxies)),
        crl: facts.map(lists).or(old.crl),
        proxies,
        servers: ServerCounts { total: count(total), edge: count(domain.map_or(0, |domain| domain.edges.len())) },
        partners,
    }
}

fn lists(facts: &AuthorityFacts) -> CrlStatus {
    let instant = |second| seconds(Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH));
    CrlStatus {
        number: i64::try_from(facts.crl.number).unwrap_or(i64::MAX),
        this_update: instant(facts.crl.this_update),
        next_update: instant(facts.crl.next_update),
        entries: count(facts.crl.entries),
    }
}

/// Every authority, the one that signs first: its root's end is printed in a column.
fn authorities(facts: &AuthorityFacts, gates: Option<&Facts>, proxies: &ProxyCounts) -> Vec<AuthorityStatus> {
    let live = |key_id: &str| gates.and_then(|gates| gates.live.get(key_id)).copied().unwrap_or_default();
    let state = |stage| match stage {
        Stage::Prepared => AuthorityState::Prepared,
        Stage::Trusted => AuthorityState::Trusted,
        Stage::Active => AuthorityState::Active,
        Stage::Retiring => AuthorityState::Retiring,
    };
    let mut all: Vec<AuthorityStatus> = vec![];
    for one in &facts.members {
        all.push(AuthorityStatus {
            key_id: one.member.key_id.clone(),
            sha256: one.member.root_sha256.clone(),
            state: state(one.member.state),
            not_before: seconds(one.root.not_before),
            not_after: seconds(one.root.not_after),
            // Whoever has its current brief in force trusts all of them; older ones are known to all that speak.
            trusted_by_proxies: match one.member.state {
                Stage::Prepared | Stage::Trusted => proxies.current,
                Stage::Active | Stage::Retiring => proxies.connected,
            },
            live_leaves: count(live(&one.member.key_id)),
        });
    }
    all.sort_by_key(|one| one.state != AuthorityState::Active);
    let room = 8_usize.saturating_sub(all.len());
    let instant = |second| seconds(Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH));
    all.extend(facts.removed.iter().rev().take(room).map(|gone| AuthorityStatus {
        key_id: gone.key_id.clone(),
        sha256: gone.root_sha256.clone(),
        state: AuthorityState::Removed,
        not_before: instant(gone.root[0]),
        not_after: instant(gone.root[1]),
        trusted_by_proxies: 0,
        live_leaves: 0,
    }));
    all
}

fn authority_ready(seen: &Seen<'_>, name: &str, old: &TrustDomainStatus, given: &Supplied) -> State {
    const KIND: &str = "AuthorityReady";
    let secret = format!("Secret entente-authority-{name}");
    let signs = old.active_key_id.as_deref();
    match seen.world.authorities.get(name) {
        Some(AuthoritySeen::Sound(facts)) if replaced(facts, signs) => State::bad(
            KIND,
            "AuthorityReplaced",
            format!(
                "{secret} does not hold the authority {} that signed until now. Running servers go on; nothing is signed until it is restored",
                signs.unwrap_or_default()
            ),
        ),
        Some(AuthoritySeen::Sound(facts)) => match given {
            Supplied::Managed | Supplied::Sound(..) => State::good(KIND, "Ready", "the authority signs"),
            Supplied::Broken(why) => {
                let active = facts.active().map_or("none", |one| one.member.key_id.as_str());
                let message = format!("{why}. The last good authority {active} goes on signing");
                State::bad(KIND, "SuppliedAuthorityBroken", message)
            }
        },
        Some(AuthoritySeen::Broken(why)) => State::bad(
            KIND,
            "AuthorityBroken",
            format!("{secret} cannot be used: {why}. Running servers go on; nothing is signed until it is restored"),
        ),
        None if signs.is_some() => State::bad(
            KIND,
            "AuthorityLost",
            format!(
                "{secret} is gone. Restore it from a backup: a new root is never made by itself, since no server would trust it"
            ),
        ),
        None => match given {
            Supplied::Broken(why) => {
                State::bad(KIND, "SuppliedAuthorityBroken", format!("{why}. Nothing is signed until it can be used"))
            }
            Supplied::Managed | Supplied::Sound(..) => State::unknown(KIND, "Pending", "the authority is being made"),
        },
    }
}

fn topology_valid(topology: &Topology, name: &str, problems: &[&Problem]) -> State {
    const KIND: &str = "TopologyValid";
    match problems.first() {
        Some(problem) => State::bad(KIND, problem.reason(), problem.to_string()),
        None => {
            let servers = topology.servers().filter(|server| server.domain == name).count();
            State::good(KIND, "Resolved", format!("{servers} servers; each says for itself what is wrong with it"))
        }
    }
}

fn bundle(turn: Option<&Turn<'_>>) -> State {
    const KIND: &str = "BundleDistributed";
    let Some(turn) = turn else { return State::unknown(KIND, "NotAccepted", "the domain is not accepted") };
    if turn.facts.is_none() {
        return State::unknown(KIND, "Pending", "there is no authority yet");
    }
    if turn.unbundled.is_empty() {
        State::good(KIND, "Distributed", format!("in {} namespaces", turn.domain.namespaces.len()))
    } else {
        State::bad(
            KIND,
            "Pending",
            format!("ConfigMap entente-trust-bundle is not yet current in: {}", named(&turn.unbundled)),
        )
    }
}

/// Where a rotation is, and after a while whom it waits for.
fn rotation_complete(seen: &Seen<'_>, turn: Option<&Turn<'_>>, plan: &mut Plan) -> State {
    const KIND: &str = "RotationComplete";
    let found = turn.and_then(|turn| Some((turn, turn.facts?, turn.gates.as_ref()?)));
    let Some((turn, facts, gates)) = found else {
        return State::unknown(KIND, "Pending", "there is no authority yet");
    };
    let moving = facts.members.iter().find(|one| one.member.state != Stage::Active);
    let Some(one) = moving.map(|one| &one.member) else {
        return State::good(KIND, "Complete", "one authority is trusted, and it signs");
    };
    match rotation::next(&members(facts), gates, seen.now) {
        Some(Err(Waiting::Acknowledgement)) => {
            let timeout = i64::from(turn.domain.rotation.ack_timeout_seconds);
            let until = Timestamp::from_second(one.since.as_second() + timeout).unwrap_or(seen.now);
            if seen.now < until {
                plan.wake(until);
                let message = format!("authority {} is on its way to every sidecar and bundle", one.key_id);
                return State::bad(KIND, "Preparing", message);
            }
            let lagging = turn.lagging(seen.world);
            let lagging: Vec<&str> = lagging.iter().map(String::as_str).collect();
            let whom = if lagging.is_empty() { named(&turn.unbundled) } else { named(&lagging) };
            let message = format!("authority {} waits for: {whom}. It never goes on without them", one.key_id);
            State::bad(KIND, "AckPending", message)
        }
        Some(Err(Waiting::TrustedTime(until))) => {
            let message = format!("authority {} is trusted by all; it signs from {until} on", one.key_id);
            State::bad(KIND, "Trusted", message)
        }
        Some(Err(Waiting::LiveLeaves)) => {
            let live = gates.live.get(&one.key_id).copied().unwrap_or_default();
            let message = format!("authority {} signs no more; {live} of its certificates are in use", one.key_id);
            State::bad(KIND, "Retiring", message)
        }
        Some(Err(Waiting::Linger(_)) | Ok(_)) | None => {
            State::bad(KIND, "InProgress", format!("authority {} moves on", one.key_id))
        }
    }
}

fn revocation_published(facts: Option<&AuthorityFacts>, turn: Option<&Turn<'_>>, now: Timestamp) -> State {
    const KIND: &str = "RevocationPublished";
    let (Some(facts), Some(turn)) = (facts, turn) else {
        return State::unknown(KIND, "Pending", "there is no authority yet");
    };
    let crl = &facts.crl;
    if now.as_second() > crl.next_update {
        return State::bad(KIND, "Stale", "the published lists are out of date; new ones could not be signed");
    }
    if turn.listing.digest != crl.digest {
        return State::bad(KIND, "Pending", "the next lists are being signed");
    }
    if !turn.listing.is_whole {
        let message = format!("crl.pem holds the first {} revocations; sidecars know all of them", crl.entries);
        return State::bad(KIND, "Truncated", message);
    }
    State::good(KIND, "Published", format!("number {} with {} revocations", crl.number, crl.entries))
}
