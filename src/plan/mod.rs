//! What to do next, as data: `plan(topology, problems, world, now)`.
//!
//! A plan that was applied and is planned again is empty. Steps are idempotent: a replica may die after any of them,
//! and the next one goes on from what it sees.

pub mod briefs;
mod conditions;
pub mod routes;
pub mod sidecars;
mod world;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

pub use conditions::bare_pods;
pub use world::{AuthorityFacts, AuthoritySeen, LedgerSeen, ProxySeen, World};

use crate::{
    api::{TrustDomain, TrustDomainStatus, TrustedServerStatus},
    brief::Cursor,
    pki::{authority::Terms, bundle::Bundle},
    topology::{Domain, Key, Problem, ServerKey, Topology},
};

/// Seconds that a sidecar may be behind before a condition says so.
pub const BEHIND_SECONDS: i64 = 5;

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Create the domain that the installation asks for.
    CreateDomain(Box<TrustDomain>),
    /// Make the authority of a domain and keep it in a new Secret.
    CreateAuthority {
        /// Name of the domain.
        domain: String,
        /// What it is made of.
        terms: Terms,
    },
    /// Make the next issuing intermediate under the same root.
    RenewIssuer {
        /// Name of the domain.
        domain: String,
        /// What it is made of.
        terms: Terms,
        /// Key identifier of the issuer that is replaced.
        replaces: String,
    },
    /// Write the trust bundle of a namespace.
    WriteBundle {
        /// The namespace.
        namespace: String,
        /// Name of the domain.
        domain: String,
        /// The ConfigMap's data.
        data: BTreeMap<String, String>,
    },
    /// Remove the trust bundle of a namespace that left.
    DeleteBundle {
        /// The namespace.
        namespace: String,
    },
    /// Remove the ledger of a server that is gone, when its last certificate has ended.
    DeleteLedger {
        /// Name of the ConfigMap.
        name: String,
    },
    /// Write the status of a domain.
    DomainStatus {
        /// Name of the domain.
        name: String,
        /// The resourceVersion that it was planned on.
        version: Option<String>,
        /// The whole status.
        status: Box<TrustDomainStatus>,
    },
    /// Write the status of a server.
    ServerStatus {
        /// Which server.
        key: ServerKey,
        /// The resourceVersion that it was planned on.
        version: Option<String>,
        /// The whole status.
        status: Box<TrustedServerStatus>,
    },
}

/// Steps, and when to look again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// What to do, in order.
    pub steps: Vec<Step>,
    /// When time alone may change the plan.
    pub wake_at: Option<Timestamp>,
    /// Pods whose sidecar does not have its own current brief in force.
    pub behind: BTreeSet<String>,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |before| before.min(at)));
    }
}

/// Plans what the leader does next.
pub fn plan(topology: &Topology, problems: &[(Key, Problem)], world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    first_domain(world, &mut plan);
    for domain in topology.domains() {
        authority(domain, world, now, &mut plan);
        bundles(domain, world, &mut plan);
    }
    leftovers(topology, world, now, &mut plan);
    conditions::all(topology, problems, world, now, &mut plan);
    plan
}

/// Where briefs of a domain stand: the revision that was published of exactly what this topology holds.
pub fn published(topology: &Topology, world: &World, domain: &str) -> Option<Cursor> {
    let digest = &topology.domain(domain)?.digest;
    let object = world.declared.domains.iter().find(|one| one.metadata.name.as_deref() == Some(domain))?;
    let status = object.status.as_ref().filter(|status| status.topology_digest == *digest)?;
    let revision = u64::try_from(status.topology_revision).ok()?;
    Some(Cursor { domain: object.metadata.uid.clone().unwrap_or_default(), revision, hash: String::new() })
}

/// The anchors of a domain, PEM; none while its authority is not sound.
pub fn anchors(world: &World, domain: &str) -> Vec<String> {
    match world.authorities.get(domain) {
        Some(AuthoritySeen::Sound(facts)) => vec![facts.root_pem.clone()],
        Some(AuthoritySeen::Broken(_)) | None => vec![],
    }
}

fn first_domain(world: &World, plan: &mut Plan) {
    let Some(wanted) = &world.first_domain else { return };
    let exists = world.declared.domains.iter().any(|domain| domain.metadata.name == wanted.metadata.name);
    let unreadable = world.unreadable.iter().any(|(key, _)| match key {
        Key::Domain(name) => Some(name) == wanted.metadata.name.as_ref(),
        Key::Server(_) => false,
    });
    if !exists && !unreadable {
        plan.steps.push(Step::CreateDomain(Box::new(wanted.clone())));
    }
}

fn authority(domain: &Domain, world: &World, now: Timestamp, plan: &mut Plan) {
    let terms = || Terms {
        trust_domain: domain.trust_domain.clone(),
        permitted: domain.permitted().into_iter().collect(),
        root_days: domain.root_days,
        issuer_days: domain.issuer_days,
    };
    match world.authorities.get(&domain.name) {
        // An authority that was there and is gone is never made again: its certificates would all be strangers.
        None if conditions::active_key(world, &domain.name).is_none() => {
            plan.steps.push(Step::CreateAuthority { domain: domain.name.clone(), terms: terms() });
        }
        None | Some(AuthoritySeen::Broken(_)) => {}
        Some(AuthoritySeen::Sound(facts)) => {
            let (start, end) = (facts.issuer.not_before.as_second(), facts.issuer.not_after.as_second());
            let half = Timestamp::from_second(start + (end - start) / 2).unwrap_or(facts.issuer.not_after);
            // Near the root's end a new issuer would live no longer than this one: that is for rotation.
            let longer = facts.root.not_after > facts.issuer.not_after;
            if facts.permitted != domain.permitted() || (now >= half && longer) {
                let replaces = facts.key_id.clone();
                plan.steps.push(Step::RenewIssuer { domain: domain.name.clone(), terms: terms(), replaces });
            } else if longer {
                plan.wake(half);
            }
        }
    }
}

/// What ConfigMap `entente-trust-bundle` of a domain holds.
pub fn bundle_data(roots: &[String]) -> BTreeMap<String, String> {
    BTreeMap::from([("ca.crt".to_owned(), Bundle::of(roots.iter().map(String::as_str)).render())])
}

/// Whether the bundle of `namespace` holds `data`, or need not any more; further keys are not ours to judge.
fn carries(world: &World, namespace: &str, data: &BTreeMap<String, String>) -> bool {
    if world.ending_namespaces.contains(namespace) {
        return true;
    }
    let held = world.bundles.get(namespace);
    held.is_some_and(|held| data.iter().all(|(key, value)| held.get(key) == Some(value)))
}

fn bundles(domain: &Domain, world: &World, plan: &mut Plan) {
    let roots = anchors(world, &domain.name);
    if roots.is_empty() {
        return;
    }
    let data = bundle_data(&roots);
    for namespace in &domain.namespaces {
        if !carries(world, namespace, &data) {
            plan.steps.push(Step::WriteBundle {
                namespace: namespace.clone(),
                domain: domain.name.clone(),
                data: data.clone(),
            });
        }
    }
}

fn leftovers(topology: &Topology, world: &World, now: Timestamp, plan: &mut Plan) {
    for namespace in world.bundles.keys() {
        // A namespace whose domain is only broken or gone for a moment keeps its bundle; one without the label does not.
        let labelled = world.declared.namespaces.get(namespace).is_some_and(Option::is_some);
        if !labelled && topology.domain_of_namespace(namespace).is_none() {
            plan.steps.push(Step::DeleteBundle { namespace: namespace.clone() });
        }
    }
    let declared: BTreeSet<ServerKey> = world.declared.servers.iter().map(conditions::key_of).collect();
    for (name, ledger) in &world.ledgers {
        if declared.contains(&ledger.server) {
            continue;
        }
        if ledger.last < now {
            plan.steps.push(Step::DeleteLedger { name: name.clone() });
        } else {
            plan.wake(ledger.last);
        }
    }
}

#[cfg(test)]
mod tests;
