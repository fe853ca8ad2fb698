//! Authorities, from their creation to their removal, and the lists of what they took back: every step is one write of
//! the domain's register.

use std::sync::Arc;

use jiff::Timestamp;

use super::{
    AuthorityFacts, AuthoritySeen, MemberFacts, Plan, Step, World, conditions, turn::Turn, usable,
    withdrawals::Withdrawals,
};
use crate::{
    api::RotationPolicy,
    pki::{
        authority::{Authority, Material, Terms, Validity},
        crl,
        ledger::Record,
        register::{Listed, MAX_AUTHORITIES},
        rotation::{self, State, Waiting},
    },
    topology::{Domain, ServerKey},
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

/// Everything that the domain's register needs next: at most one write a round.
pub(super) fn authority(world: &World, turn: &Turn<'_>, now: Timestamp, plan: &mut Plan) {
    let domain = turn.domain;
    let name = domain.name.clone();
    let lists = || lists(turn, world);
    let Some((facts, gates)) = turn.facts.zip(turn.gates.as_ref()) else {
        // An authority that was there and is gone is never made again: its certificates would all be strangers.
        let lost = world.authorities.contains_key(&name) || conditions::active_key(world, &name).is_some();
        let coming = match &turn.given {
            Supplied::Managed => Some(Coming::Root(terms(domain))),
            Supplied::Sound(_, _, material) => Some(Coming::Supplied(Arc::clone(material))),
            Supplied::Broken(_) => None,
        };
        if let Some(coming) = coming.filter(|_| !lost) {
            plan.steps.push(Step::CreateAuthority { domain: name, coming, lists: lists() });
        }
        return;
    };
    if let Some(coming) = coming(domain, facts, &turn.given, now, plan) {
        plan.steps.push(Step::PrepareAuthority { domain: name, coming, lists: lists() });
        return;
    }
    match rotation::next(&members(facts), gates, now) {
        Some(Ok(step)) => {
            let known = turn.acknowledged.iter().map(|uid| (*uid).to_owned()).collect();
            plan.steps.push(Step::MoveAuthority { domain: name, step, known, lists: lists() });
            return;
        }
        Some(Err(Waiting::TrustedTime(at) | Waiting::Linger(at))) => plan.wake(at),
        Some(Err(Waiting::Acknowledgement | Waiting::LiveLeaves)) | None => {}
    }
    match next_lists(facts, turn, floor(domain, world), now) {
        None => plan.steps.push(Step::PublishLists { domain: name, lists: lists() }),
        Some(again) => plan.wake(again),
    }
}

pub(super) fn members(facts: &AuthorityFacts) -> Vec<rotation::Member> {
    facts.members.iter().map(|one| one.member.clone()).collect()
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

fn lists(turn: &Turn<'_>, world: &World) -> Lists {
    let Domain { lifetime_seconds, skew_seconds, .. } = *turn.domain;
    Lists { listed: turn.listing.listed.clone(), lifetime_seconds, skew_seconds, floor: floor(turn.domain, world) }
}

/// The highest number of lists that anybody has seen.
fn floor(domain: &Domain, world: &World) -> u64 {
    let status = world.declared.domain(&domain.name).and_then(|object| object.status.as_ref()?.crl.as_ref());
    status.and_then(|crl| u64::try_from(crl.number).ok()).unwrap_or_default()
}

/// When lists must be signed anew; `None` = now: what they say changes, there is a new key, they will be stale soon, or an
/// older copy was restored.
fn next_lists(facts: &AuthorityFacts, turn: &Turn<'_>, floor: u64, now: Timestamp) -> Option<Timestamp> {
    let (crl, domain) = (&facts.crl, turn.domain);
    let covered = facts.members.iter().all(|one| crl.issuers.contains(&one.member.key_id));
    let signed = crl.this_update + i64::from(domain.skew_seconds);
    let again = Timestamp::from_second(signed + crl::period(domain.lifetime_seconds)).unwrap_or(now);
    // A clock that went back would keep lists of the future for ever.
    let future = signed > now.as_second() + i64::from(domain.skew_seconds) + 60;
    let good = turn.listing.digest == crl.digest && covered && again > now && !future && floor <= crl.number;
    good.then_some(again)
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

/// Whether the object of a server may go: all that it held is taken back, written and published.
pub(super) fn may_go(key: &ServerKey, world: &World, turn: Option<&Turn<'_>>) -> bool {
    let Some(turn) = turn else { return true };
    let Some(taken) = turn.withdrawals.of(key) else { return true };
    let Some(AuthoritySeen::Sound(facts)) = world.authorities.get(&turn.domain.name) else { return false };
    taken.marks.is_empty() && facts.crl.digest == turn.listing.digest
}
