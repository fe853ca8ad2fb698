//! The status of each object.

mod domain;
mod partner;
mod partner_trust;
mod server;

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::{Plan, Step, Turns, World};
use crate::{
    api::{PartnerCounts, ProxyCounts, conditions::State},
    topology::{Key, PartnerKey, Problem, ServerKey, Topology},
};

/// Pods named in one message, at most.
const NAMED: usize = 5;

/// What every status is judged by.
struct Seen<'a> {
    topology: &'a Topology,
    world: &'a World,
    turns: &'a Turns<'a>,
    now: Timestamp,
}

pub(super) fn all(
    topology: &Topology,
    problems: &[(Key, Problem)],
    world: &World,
    turns: &Turns<'_>,
    now: Timestamp,
    plan: &mut Plan,
) {
    let seen = Seen { topology, world, turns, now };
    let mut by_object = BTreeMap::<&Key, Vec<&Problem>>::new();
    for (owner, problem) in problems {
        by_object.entry(owner).or_default().push(problem);
    }
    let own = |key: &Key| by_object.get(key).map(Vec::as_slice).unwrap_or_default();
    let mut steps = vec![];
    let mut counts = BTreeMap::<String, ProxyCounts>::new();
    for object in &world.declared.servers {
        let key = ServerKey::of(object);
        let status = server::status(&seen, object, own(&Key::Server(key.clone())));
        if let Some(server) = topology.server(&key) {
            add(counts.entry(server.domain.clone()).or_default(), &status.proxies);
        }
        if object.status.as_ref() != Some(&status) {
            let version = object.metadata.resource_version.clone();
            steps.push(Step::ServerStatus { key, version, status: Box::new(status) });
        }
    }
    let mut partners = BTreeMap::<String, PartnerCounts>::new();
    for object in &world.declared.partners {
        let key = PartnerKey::of(object);
        let status = partner::status(&seen, object, own(&Key::Partner(key.clone())));
        let record = world.declared.kept.get(&key).and_then(|held| held.record.as_deref());
        let stale = record.and_then(|kept| partner_trust::turns_stale(object, kept));
        stale.filter(|at| *at > now).into_iter().for_each(|at| plan.wake(at));
        if let Some(partner) = topology.partner(&key) {
            let counts = partners.entry(partner.domain.clone()).or_default();
            counts.total += 1;
            counts.ready += i32::from(status.conditions.iter().any(|one| one.type_ == "Ready" && one.status == "True"));
        }
        if object.status.as_ref() != Some(&status) {
            let version = object.metadata.resource_version.clone();
            steps.push(Step::PartnerStatus { key, version, status: Box::new(status) });
        }
    }
    for object in &world.declared.domains {
        let name = object.metadata.name.clone().unwrap_or_default();
        let proxies = summed(counts.remove(&name).unwrap_or_default());
        let partners = partners.remove(&name).unwrap_or_default();
        let status = domain::status(&seen, object, own(&Key::Domain(name.clone())), (proxies, partners), plan);
        if object.status.as_ref() != Some(&status) {
            let version = object.metadata.resource_version.clone();
            plan.steps.push(Step::DomainStatus { name, version, status: Box::new(status) });
        }
    }
    // What a domain says is what everybody goes by: it waits for nobody's status.
    plan.steps.append(&mut steps);
}

/// Key identifier of the issuer that a domain's status names.
pub(super) fn active_key<'a>(world: &'a World, domain: &str) -> Option<&'a str> {
    world.declared.domain(domain)?.status.as_ref()?.active_key_id.as_deref()
}

/// The first visit says that somebody is there (kstatus takes an object without conditions for current).
fn first_visit(kinds: &[&'static str]) -> Vec<State> {
    kinds.iter().map(|kind| State::unknown(kind, "Pending", "not judged yet")).collect()
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
