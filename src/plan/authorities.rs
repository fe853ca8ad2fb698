//! Authorities, from their creation to their removal, and the lists of what they took back: every step is one write of
//! the domain's register.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::{
    AuthorityFacts, AuthoritySeen, MemberFacts, Plan, Step, World, conditions, secrets, survey::Survey, usable,
    withdrawals::Withdrawals,
};
use crate::{
    api::RotationPolicy,
    pki::{
        authority::{Authority, Material, Terms, Validity},
        crl,
        ledger::{Holder, Record},
        register::{Listed, MAX_AUTHORITIES, digest, fitting},
        rotation::{self, Facts, State, Waiting},
    },
    topology::{Domain, ServerKey, Topology},
};

/// What the lists of a domain are made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lists {
    /// What they list.
    pub listed: Listed,
    /// Life of leaves, in seconds.
    pub lifetime_seconds: u32,
    /// How far leaves are back-dated, in seconds.
    pub skew_seconds: u32,
    /// The highest number that anybody has seen.
    pub floor: u64,
}

/// The authority that comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coming {
    /// A new root with its first issuing certificate.
    Root(Terms),
    /// A new issuing certificate under the root that is active.
    Issuer(Terms),
    /// The owner's own.
    Supplied(Arc<Material>),
}

/// The authority that a domain's owner gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Supplied {
    /// The operator makes it.
    Managed,
    /// It can be used: its key identifier and root.
    Sound(String, String, Arc<Material>),
    /// It cannot, with the reason.
    Broken(String),
}

/// What a domain's owner gave, and whether it can be used.
pub(super) fn supplied(domain: &Domain, world: &World, now: Timestamp) -> Supplied {
    let Some(name) = &domain.secret_ref else { return Supplied::Managed };
    let broken = |why: &dyn std::fmt::Display| Supplied::Broken(format!("Secret {name}: {why}"));
    let Some(material) = world.supplied.get(name) else {
        return broken(&"it does not exist, or is not of type kubernetes.io/tls");
    };
    let loaded = Authority::load(material, now);
    let proven = loaded.and_then(|authority| {
        authority.prove(&domain.trust_domain, &domain.permitted(), now)?;
        Ok((authority.key_id().to_owned(), authority.root_sha256()))
    });
    let known = usable(world, &domain.name).map(|facts| facts.members.as_slice()).unwrap_or_default();
    match proven {
        Ok((key_id, root)) if known.iter().any(|one| one.member.key_id == key_id && one.member.root_sha256 != root) => {
            broken(&"another root needs another issuing key")
        }
        Ok((key_id, root)) => Supplied::Sound(key_id, root, Arc::clone(material)),
        Err(error) => broken(&error),
    }
}

fn terms(domain: &Domain) -> Terms {
    Terms {
        trust_domain: domain.trust_domain.clone(),
        permitted: domain.permitted().into_iter().collect(),
        root_days: domain.root_days,
        issuer_days: domain.issuer_days,
    }
}

/// Everything that `domain`'s register needs next: at most one write a round.
pub(super) fn authority(
    topology: &Topology,
    domain: &Domain,
    world: &World,
    withdrawals: &Withdrawals,
    survey: &Survey<'_>,
    now: Timestamp,
    plan: &mut Plan,
) {
    let given = supplied(domain, world, now);
    let name = domain.name.clone();
    let lists = lists(domain, world, withdrawals);
    let Some(facts) = usable(world, &domain.name) else {
        // An authority that was there and is gone is never made again: its certificates would all be strangers.
        let lost = world.authorities.contains_key(&name) || conditions::active_key(world, &name).is_some();
        let coming = match given {
            Supplied::Managed => Some(Coming::Root(terms(domain))),
            Supplied::Sound(_, _, material) => Some(Coming::Supplied(material)),
            Supplied::Broken(_) => None,
        };
        if let Some(coming) = coming.filter(|_| !lost) {
            plan.steps.push(Step::CreateAuthority { domain: name, coming, lists });
        }
        return;
    };
    let waiting = match coming(domain, facts, &given, now, plan) {
        Some(coming) => {
            plan.steps.push(Step::PrepareAuthority { domain: name, coming, lists });
            return;
        }
        None => rotation::next(&members(facts), &gates(topology, domain, world, facts, &given, survey, now), now),
    };
    match waiting {
        Some(Ok(step)) => {
            let known = known(survey);
            plan.steps.push(Step::MoveAuthority { domain: name, step, known, lists });
            return;
        }
        Some(Err(Waiting::TrustedTime(at) | Waiting::Linger(at))) => plan.wake(at),
        Some(Err(Waiting::Acknowledgement | Waiting::LiveLeaves)) | None => {}
    }
    publish(domain, facts, lists, now, plan);
}

/// UIDs of pods that have acknowledged what is known now.
fn known(survey: &Survey<'_>) -> BTreeSet<String> {
    survey.values().flat_map(|pods| &pods.acknowledged).map(|uid| (*uid).to_owned()).collect()
}

/// Pods that hold a certificate in use and have not acknowledged what is known now, by name.
pub(super) fn lagging(domain: &Domain, world: &World, survey: &Survey<'_>, now: Timestamp) -> Vec<String> {
    let known = known(survey);
    let name = |uid: &String| {
        let pod = world.declared.pods.iter().find(|pod| pod.uid == *uid);
        pod.map_or_else(|| format!("a pod that is gone ({uid})"), |pod| format!("{}/{}", pod.namespace, pod.name))
    };
    let holders =
        records(world, domain).filter(|record| record.is_live(now)).filter_map(|record| match &record.holder {
            Holder::Pod(uid) => Some(uid),
            Holder::Secret(_) => None,
        });
    let lagging: BTreeSet<String> = holders.filter(|uid| !known.contains(*uid)).map(name).collect();
    lagging.into_iter().collect()
}

pub(super) fn members(facts: &AuthorityFacts) -> Vec<rotation::Member> {
    facts.members.iter().map(|one| one.member.clone()).collect()
}

/// What must be true before an authority moves on.
#[allow(clippy::too_many_arguments, reason = "what a move waits for comes from everywhere")]
pub(super) fn gates(
    topology: &Topology,
    domain: &Domain,
    world: &World,
    facts: &AuthorityFacts,
    given: &Supplied,
    survey: &Survey<'_>,
    now: Timestamp,
) -> Facts {
    let mut live = BTreeMap::new();
    for record in records(world, domain).filter(|record| record.is_live(now)) {
        *live.entry(record.issuer.clone()).or_default() += 1;
    }
    // An owner that gives an authority again which is retiring wants it back.
    let retiring = |key_id: &String| {
        facts.members.iter().any(|one| one.member.key_id == *key_id && one.member.state == State::Retiring)
    };
    let again = match given {
        Supplied::Sound(key_id, ..) => Some(key_id.clone()).filter(retiring),
        Supplied::Managed | Supplied::Broken(_) => None,
    };
    Facts {
        acknowledged: lagging(domain, world, survey, now).is_empty()
            && super::unbundled(domain, world).is_empty()
            && secrets::outdated(topology, world, domain).is_empty(),
        min_trusted_seconds: u32::try_from(domain.rotation.min_trusted_seconds).unwrap_or_default(),
        live,
        roll_back_to: domain.rotation.roll_back_to.clone().or(again),
    }
}

/// The records of all ledgers of a domain.
pub(super) fn records<'a>(world: &'a World, domain: &'a Domain) -> impl Iterator<Item = &'a Record> {
    let own = |owner: &crate::pki::ledger::Owner| *owner.id.trust_domain() == domain.trust_domain;
    let ledgers = world.ledgers.values().filter_map(|seen| seen.ledger.as_ref());
    ledgers.filter(move |ledger| ledger.owner().is_some_and(own)).flat_map(|ledger| ledger.records())
}

/// The authority that must be prepared now.
fn coming(
    domain: &Domain,
    facts: &AuthorityFacts,
    given: &Supplied,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<Coming> {
    let active = facts.active()?;
    let under_way = facts.members.iter().any(|one| matches!(one.member.state, State::Prepared | State::Trusted));
    if under_way || facts.members.len() >= MAX_AUTHORITIES {
        return None;
    }
    match given {
        Supplied::Broken(_) => None,
        Supplied::Sound(key_id, _, material) => {
            let fingerprint = material.fingerprint();
            let known = facts.members.iter().any(|one| one.member.key_id == *key_id && one.fingerprint == fingerprint);
            (!known).then(|| Coming::Supplied(Arc::clone(material)))
        }
        Supplied::Managed => managed(domain, facts, active, now, plan),
    }
}

fn managed(
    domain: &Domain,
    facts: &AuthorityFacts,
    active: &MemberFacts,
    now: Timestamp,
    plan: &mut Plan,
) -> Option<Coming> {
    let requested = domain.rotation.requested_at.as_ref().map(|time| time.0);
    if let Some(at) = requested.filter(|at| *at > facts.rotated_at) {
        if at <= now {
            return Some(Coming::Root(terms(domain)));
        }
        plan.wake(at);
    }
    if !active.managed {
        return Some(Coming::Root(terms(domain)));
    }
    if domain.rotation.roll_back_to.is_some() {
        return None;
    }
    let root_due = due(active.root_life, domain);
    if domain.rotation.policy == RotationPolicy::Automatic {
        if root_due <= now {
            return Some(Coming::Root(terms(domain)));
        }
        plan.wake(root_due);
    }
    // Near the root's end a new issuer would live no longer than this one.
    let longer = active.root.not_after > active.issuer.not_after;
    let issuer_due = due(active.issuer, domain);
    if active.permitted != domain.permitted() || (issuer_due <= now && longer) {
        return Some(Coming::Issuer(terms(domain)));
    }
    if longer {
        plan.wake(issuer_due);
    }
    None
}

/// When the next one is due: at the domain's percentage of a validity.
fn due(validity: Validity, domain: &Domain) -> Timestamp {
    let (start, end) = (validity.not_before.as_second(), validity.not_after.as_second());
    let percent = i64::from(domain.rotation.start_at_lifetime_percent.clamp(1, 90));
    Timestamp::from_second(start + (end - start) / 100 * percent).unwrap_or(validity.not_after)
}

fn lists(domain: &Domain, world: &World, withdrawals: &Withdrawals) -> Lists {
    let status = world.declared.domain(&domain.name).and_then(|object| object.status.as_ref()?.crl.as_ref());
    Lists {
        listed: fitting(withdrawals.listed()).0,
        lifetime_seconds: domain.lifetime_seconds,
        skew_seconds: domain.skew_seconds,
        floor: status.and_then(|crl| u64::try_from(crl.number).ok()).unwrap_or_default(),
    }
}

/// Lists are signed anew when what they say changes, for a new key, in time before they are stale, and past an older
/// copy that was restored.
fn publish(domain: &Domain, facts: &AuthorityFacts, lists: Lists, now: Timestamp, plan: &mut Plan) {
    let crl = &facts.crl;
    let covered = facts.members.iter().all(|one| crl.issuers.contains(&one.member.key_id));
    let signed = crl.this_update + i64::from(domain.skew_seconds);
    let again = Timestamp::from_second(signed + crl::period(domain.lifetime_seconds)).unwrap_or(now);
    // A clock that went back would keep lists of the future for ever.
    let future = signed > now.as_second() + i64::from(domain.skew_seconds) + 60;
    if digest(&lists.listed) != crl.digest || !covered || again <= now || future || lists.floor > crl.number {
        plan.steps.push(Step::PublishLists { domain: domain.name.clone(), lists });
    } else {
        plan.wake(again);
    }
}

/// What the leader writes into ledgers.
pub(super) fn marks(withdrawals: &Withdrawals, plan: &mut Plan) {
    for (ledger, taken) in withdrawals.taken.iter().filter(|(_, taken)| !taken.marks.is_empty()) {
        let (ledger, server) = (ledger.clone(), taken.server.clone());
        plan.steps.push(Step::Revoke { ledger, server, marks: taken.marks.clone() });
    }
}

/// Whether a domain's Secret was replaced: what status says signed is not in it.
pub(super) fn replaced(facts: &AuthorityFacts, active: Option<&str>) -> bool {
    active.is_some_and(|key_id| {
        !facts.members.iter().any(|one| one.member.key_id == key_id)
            && !facts.removed.iter().any(|one| one.key_id == key_id)
    })
}

/// Keys of servers whose object may go: all that they held is taken back, written and published.
pub(super) fn may_go(
    key: &ServerKey,
    world: &World,
    domain: Option<&Domain>,
    withdrawals: Option<&Withdrawals>,
) -> bool {
    let (Some(domain), Some(withdrawals)) = (domain, withdrawals) else { return true };
    let Some(taken) = withdrawals.of(key) else { return true };
    let Some(AuthoritySeen::Sound(facts)) = world.authorities.get(&domain.name) else { return false };
    taken.marks.is_empty() && facts.crl.digest == digest(&fitting(withdrawals.listed()).0)
}
