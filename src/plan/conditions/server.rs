//! The status of a server.

use jiff::Timestamp;

use super::{Seen, count, first_visit, named};
use crate::{
    api::{
        CertificateCounts, ProxyCounts, RevocationCounts, TrustedServer, TrustedServerStatus,
        conditions::{State, ready, seconds, write},
    },
    brief::Standing,
    pki::ledger::Record,
    plan::{
        World, published,
        secrets::{self, SecretSeen},
        survey::Pods,
        turn::Turn,
        usable,
        withdrawals::{Taken, may_meet},
    },
    topology::{Problem, Server, ServerKey, Topology},
};

const KINDS: [&str; 6] =
    ["Ready", "Accepted", "ProxiesInjected", "CertificatesIssued", "TrustLoaded", "RevocationEffective"];

pub(super) fn status(seen: &Seen<'_>, object: &TrustedServer, problems: &[&Problem]) -> TrustedServerStatus {
    let Seen { topology, world, turns, now } = *seen;
    let old = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation;
    let key = ServerKey::of(object);
    let server = topology.server(&key);
    let nothing = Pods::default();
    let turn = server.and_then(|server| turns.get(server.domain.as_str()));
    let pods = turn.and_then(|turn| turn.survey.get(&key)).unwrap_or(&nothing);
    let revocation = revocation(seen, server.zip(turn), pods, &old.revocation);
    let states =
        if old.conditions.is_empty() { first_visit(&KINDS) } else { judge(seen, server, problems, pods, &revocation) };
    let held = server.and_then(|server| held(world, server, now));
    let ends: Vec<Timestamp> = pods.ends.iter().copied().chain(held.map(|record| record.validity.not_after)).collect();
    let earliest = ends.iter().min().map(|end| seconds(*end));
    let injected = pods.all.len() - pods.bare.len();
    let facts = turn.and_then(|turn| turn.facts);
    TrustedServerStatus {
        conditions: write(&states, &old.conditions, generation, now),
        observed_generation: generation,
        spiffe_id: server.map(|server| server.id.to_string()),
        dns_names: server.map(|server| declared_first(topology, server)).unwrap_or_default(),
        proxies: ProxyCounts {
            matched: count(pods.all.len()),
            injected: count(injected),
            connected: count(pods.connected),
            current: count(pods.current),
            summary: format!("{}/{}", pods.current, pods.all.len()),
        },
        certificates: CertificateCounts {
            live: count(ends.len()),
            earliest_not_after: earliest,
            key_id: facts.and_then(|facts| Some(facts.active()?.member.key_id.clone())),
        },
        revocation,
        topology_revision: server
            .and_then(|server| published(topology, world, &server.domain))
            .map_or(old.topology_revision, |at| i64::try_from(at.revision).unwrap_or(i64::MAX)),
    }
}

/// Who has not acknowledged yet what was taken back of this server, and what that ended.
fn revocation(
    seen: &Seen<'_>,
    server: Option<(&Server, &Turn<'_>)>,
    own: &Pods<'_>,
    old: &RevocationCounts,
) -> RevocationCounts {
    // The routine end of pods waits for nobody: what somebody decided does.
    let decided = |taken: &Taken| {
        taken.withdrawal.is_some() || taken.revoked.iter().any(|(_, revoked)| revoked.reason.is_explicit())
    };
    let found = server.and_then(|(server, turn)| Some((server, turn, turn.withdrawals.of(&server.key)?)));
    let Some((server, turn, taken)) = found.filter(|(_, _, taken)| decided(taken)) else {
        return RevocationCounts { pending: 0, ..old.clone() };
    };
    let others = turn.unacknowledged.iter().filter_map(|uid| seen.topology.pod(uid)).filter(|(other, pod)| {
        !pod.ending && other.domain == server.domain && other.key != server.key && may_meet(server, other)
    });
    let pending = others.count() + (own.connected - own.current);
    let explicit = taken.revoked.iter().filter(|(_, revoked)| revoked.reason.is_explicit());
    let latest = explicit.map(|(_, revoked)| revoked.at).max().filter(|_| taken.marks.is_empty());
    let effective = old.last_effective_time.as_ref().map(|time| time.0);
    let last = match latest {
        Some(at) if pending == 0 && effective.is_none_or(|before| before < at) => Some(seconds(seen.now)),
        _ => old.last_effective_time.clone(),
    };
    let cut = cut(seen, server);
    RevocationCounts {
        pending: count(pending),
        last_effective_time: last,
        connections_cut: old.connections_cut.max(i64::try_from(cut).unwrap_or(i64::MAX)),
    }
}

/// Connections of this server that were cut: each is seen from both ends, so the larger of two counts is told.
fn cut(seen: &Seen<'_>, server: &Server) -> u64 {
    let (mut own, mut others) = (0, 0);
    for (uid, proxy) in &seen.world.proxies {
        let is_own = seen.topology.pod(uid).is_some_and(|(owner, _)| owner.key == server.key);
        if is_own {
            own += proxy.cut.values().sum::<u64>();
        } else {
            others += proxy.cut.get(&server.id).copied().unwrap_or_default();
        }
    }
    own.max(others)
}

/// Names with the declared ones first: the first is printed in a column.
fn declared_first(topology: &Topology, server: &Server) -> Vec<String> {
    let own = server.id.topology_name();
    let declared = server.names.iter().filter(|name| Some(*name) != own.as_ref());
    let mut names: Vec<String> = declared.chain(own.as_ref()).map(ToString::to_string).collect();
    let all = topology.names_of_server(server);
    names.extend(all.iter().filter(|name| !server.names.contains(*name)).map(ToString::to_string));
    names
}

fn judge(
    seen: &Seen<'_>,
    server: Option<&Server>,
    problems: &[&Problem],
    pods: &Pods<'_>,
    revocation: &RevocationCounts,
) -> Vec<State> {
    let accepted = match problems.first() {
        Some(problem) => State::bad("Accepted", problem.reason(), problem.to_string()),
        None => State::good("Accepted", "Accepted", "valid, and fits the rest of the topology"),
    };
    let Some(server) = server else {
        let rest = KINDS[2..].iter().map(|kind| State::unknown(kind, "NotAccepted", "the server is not accepted"));
        let parts: Vec<State> = std::iter::once(accepted).chain(rest).collect();
        return [vec![ready(&parts)], parts].concat();
    };
    let parts = [
        accepted,
        injected(server, pods),
        certified(seen, server, pods),
        loaded(server, pods),
        effective(server, revocation),
    ];
    [vec![ready(&parts)], parts.to_vec()].concat()
}

/// The record of the certificate in a server's Secret.
fn held<'a>(world: &'a World, server: &Server, now: Timestamp) -> Option<&'a Record> {
    match world.secrets.get(&server.key)? {
        SecretSeen::Ours { serial, .. } => secrets::held(world, server, serial, now),
        SecretSeen::Absent | SecretSeen::Foreign | SecretSeen::Denied => None,
    }
}

/// Where the software holds the key there is no sidecar to wait for.
fn no_sidecar(server: &Server, kind: &'static str) -> Option<State> {
    let name = server.secret_name.as_ref()?;
    let message = format!("its software takes key and certificate from Secret {name}; it has no sidecar");
    Some(State::good(kind, "KeyHeldBySoftware", message))
}

/// What is to be said of the Secret.
fn secret(seen: &Seen<'_>, server: &Server, name: &str) -> State {
    const KIND: &str = "CertificatesIssued";
    match seen.world.secrets.get(&server.key) {
        Some(SecretSeen::Foreign) => State::bad(
            KIND,
            "SecretExists",
            format!("Secret {name} exists and is not Entente's, so it is not touched: remove it, or name another one"),
        ),
        Some(SecretSeen::Denied) => State::bad(
            KIND,
            "SecretDenied",
            format!("the operator may not write Secret {name}: install the chart with serverSecrets.enabled=true"),
        ),
        _ if held(seen.world, server, seen.now).is_some() => {
            State::good(KIND, "Issued", format!("Secret {name} holds key and certificate"))
        }
        _ => State::bad(KIND, "Pending", format!("Secret {name} is not written yet")),
    }
}

fn injected(server: &Server, pods: &Pods<'_>) -> State {
    const KIND: &str = "ProxiesInjected";
    if let Some(state) = no_sidecar(server, KIND) {
        return state;
    }
    if pods.all.is_empty() {
        return State::bad(KIND, "NoPods", "no pod matches the selector yet");
    }
    if pods.bare.is_empty() {
        return State::good(
            KIND,
            "Injected",
            format!("{} of {} pods have the sidecar", pods.all.len(), pods.all.len()),
        );
    }
    let note = "they started before this server was declared; delete them, and they come back with it";
    State::bad(KIND, "PodsWithoutProxy", format!("without the sidecar: {}; {note}", named(&pods.bare)))
}

fn certified(seen: &Seen<'_>, server: &Server, pods: &Pods<'_>) -> State {
    const KIND: &str = "CertificatesIssued";
    if !pods.foreign_account.is_empty() {
        let wanted = &server.service_account;
        let message =
            format!("not under ServiceAccount {wanted}, so without certificate: {}", named(&pods.foreign_account));
        return State::bad(KIND, "ServiceAccountMismatch", message);
    }
    if server.standing == Standing::Suspended {
        let message = "spec.state is Suspended: its certificates are revoked, and none is issued".to_owned();
        return State::bad(KIND, "Suspended", message);
    }
    if usable(seen.world, &server.domain).is_none() {
        return State::bad(KIND, "AuthorityNotReady", format!("TrustDomain {} has no sound authority", server.domain));
    }
    if let Some(name) = &server.secret_name {
        return secret(seen, server, name);
    }
    if !pods.uncertified.is_empty() {
        return State::bad(KIND, "Pending", format!("without certificate yet: {}", named(&pods.uncertified)));
    }
    if !pods.overdue.is_empty() {
        return State::bad(KIND, "RenewalOverdue", format!("renewal is overdue for: {}", named(&pods.overdue)));
    }
    if pods.all.is_empty() {
        return State::unknown(KIND, "NoPods", "no pod matches the selector yet");
    }
    State::good(KIND, "Issued", "every sidecar holds a certificate")
}

fn loaded(server: &Server, pods: &Pods<'_>) -> State {
    const KIND: &str = "TrustLoaded";
    if let Some(state) = no_sidecar(server, KIND) {
        return state;
    }
    if !pods.behind.is_empty() {
        return State::bad(KIND, "AckPending", format!("not in force yet at: {}", named(&pods.behind)));
    }
    if !pods.disconnected.is_empty() {
        let message =
            format!("no word from: {}; see the log of their container entente-proxy", named(&pods.disconnected));
        return State::bad(KIND, "ProxyDisconnected", message);
    }
    if pods.all.is_empty() {
        return State::unknown(KIND, "NoPods", "no pod matches the selector yet");
    }
    State::good(KIND, "Loaded", "every sidecar has its current brief in force")
}

fn effective(server: &Server, revocation: &RevocationCounts) -> State {
    const KIND: &str = "RevocationEffective";
    match revocation.pending {
        0 => State::good(KIND, "Effective", "no revocation waits for a sidecar"),
        pending => {
            let message = format!("{pending} sidecars have not acknowledged yet what was taken back of {}", server.id);
            State::bad(KIND, "AckPending", message)
        }
    }
}
