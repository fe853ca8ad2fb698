//! What to do next, as data: `plan(topology, problems, world, now)`.
//!
//! A plan that was applied and is planned again is empty. Steps are idempotent: a replica may die after any of them,
//! and the next one goes on from what it sees.

pub mod audit;
pub mod authorities;
pub mod briefs;
pub mod bundles;
mod conditions;
mod news;
pub mod partners;
pub mod register;
pub mod routes;
pub mod secrets;
pub mod sidecars;
mod survey;
mod trust;
mod turn;
pub mod withdrawals;
mod world;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use authorities::{Coming, Lists};
pub use news::{News, news};
pub use world::{Asked, AuthorityFacts, AuthoritySeen, LedgerSeen, MemberFacts, ProxySeen, World, own_keys};

use crate::{
    api::{FederationPartnerStatus, TrustDomain, TrustDomainStatus, TrustedServerStatus},
    brief::Cursor,
    pki::{authority::Serial, crl::Reason, rotation::Move},
    topology::{Key, PartnerKey, Problem, Server, ServerKey, Topology, kept::Kept},
};
use turn::Turn;

/// Seconds that a sidecar may be behind before a condition says so.
pub const BEHIND_SECONDS: i64 = 5;

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Create the domain that the installation asks for.
    CreateDomain(Box<TrustDomain>),
    /// Keep the first authority of a domain in a new Secret, with its first revocation lists.
    CreateAuthority {
        /// Name of the domain.
        domain: String,
        /// Which.
        coming: Coming,
        /// What its lists say.
        lists: Lists,
    },
    /// Take the next authority of a domain in, so that everybody learns of it.
    PrepareAuthority {
        /// Name of the domain.
        domain: String,
        /// Which.
        coming: Coming,
        /// What the lists say.
        lists: Lists,
    },
    /// Move an authority on in its rotation.
    MoveAuthority {
        /// Name of the domain.
        domain: String,
        /// The move.
        step: Move,
        /// UIDs of pods that have acknowledged what is known now.
        known: BTreeSet<String>,
        /// What the lists say.
        lists: Lists,
    },
    /// Sign the revocation lists of a domain anew.
    PublishLists {
        /// Name of the domain.
        domain: String,
        /// What they say.
        lists: Lists,
    },
    /// Write down that certificates are taken back.
    Revoke {
        /// Name of the ledger.
        ledger: String,
        /// Whose it is.
        server: ServerKey,
        /// Which certificates, and why.
        marks: Vec<(Serial, Reason)>,
    },
    /// Make key and certificate for software that holds its key itself, and write them into its Secret.
    WriteSecret {
        /// Whose.
        server: Box<Server>,
        /// What it is made for.
        fingerprint: String,
    },
    /// Keep the object of a server or a partner until all that it held is taken back, or let it go.
    Hold {
        /// Which object.
        key: Key,
        /// The resourceVersion that it was planned on.
        version: Option<String>,
        /// The finalizers that it has now.
        finalizers: Vec<String>,
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
    /// Write the roots of an edge namespace's partners.
    WritePartners {
        /// The namespace.
        namespace: String,
        /// Name of the domain.
        domain: String,
        /// The ConfigMap's whole data.
        data: BTreeMap<String, String>,
    },
    /// Remove the roots of partners from a namespace that has none any more.
    DeletePartners {
        /// The namespace.
        namespace: String,
    },
    /// Keep what the sources of a partner's trust said last.
    KeepTrust {
        /// Which partner.
        key: PartnerKey,
        /// The resourceVersion of the record that it was planned on; `None` = there is none.
        version: Option<String>,
        /// The record.
        record: Arc<Kept>,
    },
    /// Forget what was kept of a partner that is no longer declared.
    ForgetTrust {
        /// Which partner it was.
        key: PartnerKey,
        /// Name of the ConfigMap.
        name: String,
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
    /// Write the status of a partner.
    PartnerStatus {
        /// Which partner.
        key: PartnerKey,
        /// The resourceVersion that it was planned on.
        version: Option<String>,
        /// The whole status.
        status: Box<FederationPartnerStatus>,
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

    /// Pods that are gone are taken back when they have been so for a while.
    fn wake_for_gone(&mut self, world: &World) {
        for since in world.gone_since.values() {
            self.wake(Timestamp::from_second(since.as_second() + withdrawals::GONE_SECONDS).unwrap_or(*since));
        }
    }
}

/// What is known of each domain, by the name of its object.
type Turns<'a> = BTreeMap<&'a str, Turn<'a>>;

/// Plans what the leader does next.
pub fn plan(topology: &Topology, problems: &[(Key, Problem)], world: &World, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let mut turns = Turns::new();
    first_domain(world, &mut plan);
    for domain in topology.domains() {
        let turn = Turn::of(topology, world, domain, now, &mut plan);
        authorities::marks(&turn.withdrawals, &mut plan);
        authorities::authority(world, &turn, now, &mut plan);
        bundles::write(&turn, &mut plan);
        partners::write(topology, world, domain, now, &mut plan);
        secrets::write(topology, domain, world, now, &mut plan);
        turns.insert(&domain.name, turn);
    }
    holds(topology, world, &turns, &mut plan);
    trust::keep(world, &mut plan);
    leftovers(topology, world, now, &mut plan);
    plan.wake_for_gone(world);
    conditions::all(topology, problems, world, &turns, now, &mut plan);
    plan
}

/// A server's object stays until all that it held is taken back, written down and published; a partner's until no
/// sidecar that can be reached trusts it.
const FINALIZER: &str = "entente.dev/withdrawal";

fn holds(topology: &Topology, world: &World, turns: &Turns<'_>, plan: &mut Plan) {
    let turn = |namespace: &str| {
        let label = world.declared.namespaces.get(namespace).cloned().flatten();
        label.and_then(|name| turns.get(name.as_str()))
    };
    for object in &world.declared.servers {
        let key = ServerKey::of(object);
        let (known, may_go) =
            (topology.server(&key).is_some(), || authorities::may_go(&key, world, turn(&key.namespace)));
        plan.steps.extend(hold(Key::Server(key.clone()), &object.metadata, known, may_go));
    }
    for object in &world.declared.partners {
        let key = PartnerKey::of(object);
        let (known, may_go) =
            (topology.partner(&key).is_some(), || partners::may_go(&key, topology, turn(&key.namespace)));
        plan.steps.extend(hold(Key::Partner(key.clone()), &object.metadata, known, may_go));
    }
}

/// Holds an object that is known, and lets one go that is being deleted and `may_go`.
fn hold(key: Key, meta: &ObjectMeta, known: bool, may_go: impl FnOnce() -> bool) -> Option<Step> {
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    let held = finalizers.iter().any(|name| name == FINALIZER);
    match &meta.deletion_timestamp {
        None if !held && known => finalizers.push(FINALIZER.to_owned()),
        Some(_) if held && may_go() => finalizers.retain(|name| name != FINALIZER),
        None | Some(_) => return None,
    }
    Some(Step::Hold { key, version: meta.resource_version.clone(), finalizers })
}

/// Where briefs of a domain stand: the revision that was published of exactly what this topology holds.
pub fn published(topology: &Topology, world: &World, domain: &str) -> Option<Cursor> {
    let digest = &topology.domain(domain)?.digest;
    let object = world.declared.domain(domain)?;
    let status = object.status.as_ref().filter(|status| status.topology_digest == *digest)?;
    let revision = u64::try_from(status.topology_revision).ok()?;
    Some(Cursor { domain: object.metadata.uid.clone().unwrap_or_default(), revision, hash: String::new() })
}

/// What is known of a domain's authorities; `None` while their Secret is not there, broken, or another one.
pub fn usable<'a>(world: &'a World, domain: &str) -> Option<&'a AuthorityFacts> {
    match world.authorities.get(domain) {
        Some(AuthoritySeen::Sound(facts)) => {
            let signed = conditions::active_key(world, domain);
            (!authorities::replaced(facts, signed)).then_some(facts)
        }
        Some(AuthoritySeen::Broken(_)) | None => None,
    }
}

fn first_domain(world: &World, plan: &mut Plan) {
    let Some(wanted) = &world.first_domain else { return };
    let name = wanted.metadata.name.as_deref().unwrap_or_default();
    let exists = world.declared.domain(name).is_some();
    let unreadable = world.unreadable.iter().any(|(key, _)| *key == Key::Domain(name.to_owned()));
    if !exists && !unreadable {
        plan.steps.push(Step::CreateDomain(Box::new(wanted.clone())));
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
    partners::leftovers(topology, world, now, plan);
    let declared: BTreeSet<ServerKey> = world.declared.servers.iter().map(ServerKey::of).collect();
    for (name, ledger) in &world.ledgers {
        if declared.contains(&ledger.server) {
            continue;
        }
        let last = ledger.last();
        if last < now {
            plan.steps.push(Step::DeleteLedger { name: name.clone() });
        } else {
            plan.wake(last);
        }
    }
}

#[cfg(test)]
mod tests;
