//! The status of each object.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{
    AuthoritySeen, BEHIND_SECONDS, Plan, ProxySeen, Step, World, anchors, briefs, bundle_data, carries, published,
};
use crate::{
    api::{
        AuthorityState, AuthorityStatus, CertificateCounts, ProxyCounts, ServerCounts, TrustDomain, TrustDomainStatus,
        TrustedServer, TrustedServerStatus,
        conditions::{State, ready, seconds, write},
    },
    topology::{Domain, Key, Problem, Server, ServerKey, Topology, facts::PodFacts},
};

/// Pods named in one message, at most.
const NAMED: usize = 5;
const DOMAIN: [&str; 4] = ["Ready", "AuthorityReady", "TopologyValid", "BundleDistributed"];
const SERVER: [&str; 5] = ["Ready", "Accepted", "ProxiesInjected", "CertificatesIssued", "TrustLoaded"];

pub(super) fn all(topology: &Topology, problems: &[(Key, Problem)], world: &World, now: Timestamp, plan: &mut Plan) {
    let mut counts = BTreeMap::<String, ProxyCounts>::new();
    for object in &world.declared.servers {
        let key = key_of(object);
        let own: Vec<&Problem> = problems_of(problems, &Key::Server(key.clone()));
        let status = server_status(topology, object, &own, world, now, plan);
        if let Some(server) = topology.server(&key) {
            add(counts.entry(server.domain.clone()).or_default(), &status.proxies);
        }
        if object.status.as_ref() != Some(&status) {
            let version = object.metadata.resource_version.clone();
            plan.steps.push(Step::ServerStatus { key, version, status: Box::new(status) });
        }
    }
    for object in &world.declared.domains {
        let name = object.metadata.name.clone().unwrap_or_default();
        let own = problems_of(problems, &Key::Domain(name.clone()));
        let proxies = counts.remove(&name).unwrap_or_default();
        let status = domain_status(topology, object, &own, world, summed(proxies), now);
        if object.status.as_ref() != Some(&status) {
            let version = object.metadata.resource_version.clone();
            plan.steps.push(Step::DomainStatus { name, version, status: Box::new(status) });
        }
    }
}

/// What a new status has to say aloud: pods that have no sidecar, when that becomes known.
pub fn bare_pods(old: Option<&TrustedServerStatus>, new: &TrustedServerStatus) -> Option<String> {
    let said = |status: &TrustedServerStatus| {
        let bare = status.conditions.iter().find(|one| one.reason == "PodsWithoutProxy" && one.type_ != "Ready");
        bare.map(|one| one.message.clone())
    };
    let now = said(new)?;
    (old.and_then(said).as_ref() != Some(&now)).then_some(now)
}

/// Key identifier of the issuer that a domain's status names.
pub(super) fn active_key<'a>(world: &'a World, domain: &str) -> Option<&'a str> {
    let object = world.declared.domains.iter().find(|one| one.metadata.name.as_deref() == Some(domain))?;
    object.status.as_ref()?.active_key_id.as_deref()
}

pub(super) fn key_of(object: &TrustedServer) -> ServerKey {
    ServerKey {
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: object.metadata.name.clone().unwrap_or_default(),
    }
}

fn problems_of<'a>(problems: &'a [(Key, Problem)], key: &Key) -> Vec<&'a Problem> {
    problems.iter().filter(|(owner, _)| owner == key).map(|(_, problem)| problem).collect()
}

/// The first visit says that somebody is there (kstatus takes an object without conditions for current).
fn first_visit(kinds: &[&'static str]) -> Vec<State> {
    kinds.iter().map(|kind| State::unknown(kind, "Pending", "not judged yet")).collect()
}

fn domain_status(
    topology: &Topology,
    object: &TrustDomain,
    problems: &[&Problem],
    world: &World,
    proxies: ProxyCounts,
    now: Timestamp,
) -> TrustDomainStatus {
    let old = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation;
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let domain = topology.domain(name);
    let states = if old.conditions.is_empty() {
        first_visit(&DOMAIN)
    } else {
        let parts =
            [authority_ready(name, &old, world), topology_valid(topology, name, problems), bundle(domain, world)];
        [vec![ready(&parts)], parts.to_vec()].concat()
    };
    let digest = domain.map_or_else(|| old.topology_digest.clone(), |domain| domain.digest.clone());
    let moved = digest != old.topology_digest;
    let facts = match world.authorities.get(name) {
        Some(AuthoritySeen::Sound(facts)) => Some(facts),
        Some(AuthoritySeen::Broken(_)) | None => None,
    };
    let authority = facts.map(|facts| AuthorityStatus {
        key_id: facts.key_id.clone(),
        sha256: facts.root_sha256.clone(),
        state: AuthorityState::Active,
        not_before: seconds(facts.root.not_before),
        not_after: seconds(facts.root.not_after),
    });
    let total = topology.servers().filter(|server| server.domain == name).count();
    TrustDomainStatus {
        conditions: write(&states, &old.conditions, generation, now),
        observed_generation: generation,
        topology_revision: old.topology_revision + i64::from(moved),
        topology_digest: digest,
        // What was once active stays named, so that a lost authority is known as lost.
        active_key_id: facts.map(|facts| facts.key_id.clone()).or(old.active_key_id),
        authorities: authority.map_or(old.authorities, |authority| vec![authority]),
        proxies,
        servers: ServerCounts { total: count(total) },
    }
}

fn authority_ready(name: &str, old: &TrustDomainStatus, world: &World) -> State {
    const KIND: &str = "AuthorityReady";
    let secret = format!("Secret entente-authority-{name}");
    match world.authorities.get(name) {
        Some(AuthoritySeen::Sound(_)) => State::good(KIND, "Ready", "the authority signs"),
        Some(AuthoritySeen::Broken(why)) => State::bad(
            KIND,
            "AuthorityBroken",
            format!("{secret} cannot be used: {why}. Running servers go on; nothing is signed until it is restored"),
        ),
        None if old.active_key_id.is_some() => State::bad(
            KIND,
            "AuthorityLost",
            format!(
                "{secret} is gone. Restore it from a backup: a new root is never made by itself, since no server would trust it"
            ),
        ),
        None => State::unknown(KIND, "Pending", "the authority is being made"),
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

fn bundle(domain: Option<&Domain>, world: &World) -> State {
    const KIND: &str = "BundleDistributed";
    let Some(domain) = domain else { return State::unknown(KIND, "NotAccepted", "the domain is not accepted") };
    let roots = anchors(world, &domain.name);
    if roots.is_empty() {
        return State::unknown(KIND, "Pending", "there is no authority yet");
    }
    let data = bundle_data(&roots);
    let missing: Vec<&str> =
        domain.namespaces.iter().filter(|namespace| !carries(world, namespace, &data)).map(String::as_str).collect();
    if missing.is_empty() {
        State::good(KIND, "Distributed", format!("in {} namespaces", domain.namespaces.len()))
    } else {
        State::bad(KIND, "Pending", format!("ConfigMap entente-trust-bundle is not yet in: {}", named(&missing)))
    }
}

/// The pods of one server, sorted by what they lack.
#[derive(Default)]
struct Pods<'a> {
    all: Vec<&'a PodFacts>,
    bare: Vec<&'a str>,
    foreign_account: Vec<&'a str>,
    disconnected: Vec<&'a str>,
    behind: Vec<&'a str>,
    uncertified: Vec<&'a str>,
    overdue: Vec<&'a str>,
    connected: usize,
    current: usize,
    ends: Vec<Timestamp>,
}

fn server_status(
    topology: &Topology,
    object: &TrustedServer,
    problems: &[&Problem],
    world: &World,
    now: Timestamp,
    plan: &mut Plan,
) -> TrustedServerStatus {
    let old = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation;
    let server = topology.server(&key_of(object));
    let pods = server.map(|server| sort(topology, server, world, now, plan)).unwrap_or_default();
    let states = if old.conditions.is_empty() { first_visit(&SERVER) } else { judge(server, problems, &pods, world) };
    let earliest = pods.ends.iter().min().map(|end| seconds(*end));
    let injected = pods.all.len() - pods.bare.len();
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
        certificates: CertificateCounts { live: count(pods.ends.len()), earliest_not_after: earliest },
        topology_revision: server
            .and_then(|server| published(topology, world, &server.domain))
            .map_or(old.topology_revision, |at| i64::try_from(at.revision).unwrap_or(i64::MAX)),
    }
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

fn sort<'a>(topology: &'a Topology, server: &'a Server, world: &World, now: Timestamp, plan: &mut Plan) -> Pods<'a> {
    let mut pods = Pods::default();
    let at = published(topology, world, &server.domain);
    let roots = anchors(world, &server.domain);
    for pod in topology.pods_of(&server.key).filter(|pod| !pod.ending) {
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
        certificate(seen, pod, now, &mut pods, plan);
        let wanted = at.clone().map(|at| briefs::brief_of(topology, server, pod, &roots, at).cursor);
        // The hash alone judges: a change elsewhere moves the revision and leaves this server as it is.
        let current = wanted.is_some_and(|wanted| seen.cursor.as_ref().is_some_and(|has| has.hash == wanted.hash));
        pods.connected += usize::from(seen.connected);
        if seen.connected && current {
            pods.current += 1;
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

fn judge(server: Option<&Server>, problems: &[&Problem], pods: &Pods<'_>, world: &World) -> Vec<State> {
    let accepted = match problems.first() {
        Some(problem) => State::bad("Accepted", problem.reason(), problem.to_string()),
        None => State::good("Accepted", "Accepted", "valid, and fits the rest of the topology"),
    };
    let Some(server) = server else {
        let rest = SERVER[2..].iter().map(|kind| State::unknown(kind, "NotAccepted", "the server is not accepted"));
        let parts: Vec<State> = std::iter::once(accepted).chain(rest).collect();
        return [vec![ready(&parts)], parts].concat();
    };
    let parts = [accepted, injected(pods), certified(server, pods, world), loaded(pods)];
    [vec![ready(&parts)], parts.to_vec()].concat()
}

fn injected(pods: &Pods<'_>) -> State {
    const KIND: &str = "ProxiesInjected";
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

fn certified(server: &Server, pods: &Pods<'_>, world: &World) -> State {
    const KIND: &str = "CertificatesIssued";
    if !pods.foreign_account.is_empty() {
        let wanted = &server.service_account;
        let message =
            format!("not under ServiceAccount {wanted}, so without certificate: {}", named(&pods.foreign_account));
        return State::bad(KIND, "ServiceAccountMismatch", message);
    }
    if anchors(world, &server.domain).is_empty() {
        return State::bad(KIND, "AuthorityNotReady", format!("TrustDomain {} has no sound authority", server.domain));
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

fn loaded(pods: &Pods<'_>) -> State {
    const KIND: &str = "TrustLoaded";
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

fn named(pods: &[&str]) -> String {
    let shown = pods.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    if pods.len() > NAMED { format!("{shown} and {} more", pods.len() - NAMED) } else { shown }
}

fn add(sum: &mut ProxyCounts, part: &ProxyCounts) {
    let ProxyCounts { matched, injected, connected, current, summary: _ } = part;
    sum.matched += matched;
    sum.injected += injected;
    sum.connected += connected;
    sum.current += current;
}

fn summed(mut counts: ProxyCounts) -> ProxyCounts {
    counts.summary = format!("{}/{}", counts.current, counts.matched);
    counts
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
