//! The status of a partner.

use jiff::Timestamp;

use super::{
    Seen, count, first_visit, named,
    partner_trust::{self, Sources},
};
use crate::{
    api::{
        AnchorStatus, Distribution, FederationPartner, FederationPartnerStatus, PartnerState, Role,
        conditions::{State, ready, seconds, write},
    },
    brief::PartnerContact,
    pki::roots::Root,
    plan::{World, survey::Pods},
    refusal::Refusal,
    topology::{Partner, PartnerKey, Problem},
};

const KINDS: [&str; 7] =
    ["Ready", "Accepted", "TrustFresh", "AnchorsValid", "RevocationFresh", "Distributed", "Reachable"];

pub(super) fn status(seen: &Seen<'_>, object: &FederationPartner, problems: &[&Problem]) -> FederationPartnerStatus {
    let old = object.status.clone().unwrap_or_default();
    let generation = object.metadata.generation;
    let key = PartnerKey::of(object);
    let partner = seen.topology.partner(&key);
    let edges = edges(seen, &key);
    let states =
        if old.conditions.is_empty() { first_visit(&KINDS) } else { judge(seen, object, (partner, problems), &edges) };
    let sources = Sources::of(object, seen.world.declared.kept.get(&key));
    let anchor = |root: &Root| AnchorStatus {
        sha256: root.sha256.clone(),
        subject: root.subject.clone(),
        not_after: seconds(root.validity.not_after),
    };
    FederationPartnerStatus {
        conditions: write(&states, &old.conditions, generation, seen.now),
        observed_generation: generation,
        anchors: partner.map(|partner| in_order(partner, seen.now).map(anchor).collect()).unwrap_or_default(),
        trust_source: sources.word().to_owned(),
        bundle: sources.bundle(),
        crl: partner.and_then(partner_trust::lists),
        distribution: Distribution {
            edges: count(edges.iter().map(|pods| pods.all.len()).sum()),
            current: count(edges.iter().map(|pods| pods.current).sum()),
        },
    }
}

/// The roots, those that have ended last: the end of the first is printed in a column.
fn in_order(partner: &Partner, now: Timestamp) -> impl Iterator<Item = &Root> {
    partner.anchors(now).chain(partner.roots.iter().filter(move |root| root.validity.not_after < now))
}

/// The sidecars of the namespace's Edge servers: also those that list the partner no longer must have heard of it.
fn edges<'a>(seen: &'a Seen<'_>, key: &PartnerKey) -> Vec<&'a Pods<'a>> {
    let here = seen.topology.servers().filter(|server| server.key.namespace == key.namespace);
    let edges = here.filter(|server| server.role == Role::Edge);
    edges.filter_map(|server| seen.turns.get(server.domain.as_str())?.survey.get(&server.key)).collect()
}

/// The last contact that any of these sidecars had with the partner.
fn last_contact(world: &World, edges: &[&Pods<'_>], name: &str) -> Option<PartnerContact> {
    let pods = edges.iter().flat_map(|pods| &pods.all);
    let seen = pods.filter_map(|pod| world.proxies.get(&pod.uid)?.contacts.get(name).copied());
    // Of two in one second the failure counts: it is what somebody must look at.
    seen.max_by_key(|contact| (contact.at, contact.refused.is_some()))
}

fn judge(
    seen: &Seen<'_>,
    object: &FederationPartner,
    (partner, problems): (Option<&Partner>, &[&Problem]),
    edges: &[&Pods<'_>],
) -> Vec<State> {
    let (now, key) = (seen.now, PartnerKey::of(object));
    let sources = Sources::of(object, seen.world.declared.kept.get(&key));
    let accepted = match problems.first() {
        Some(problem) => State::bad("Accepted", problem.reason(), problem.to_string()),
        None => State::good("Accepted", "Accepted", "valid, and its names are nobody else's"),
    };
    let anchors = match partner {
        Some(partner) => anchors_valid(partner, now),
        None => State::unknown("AnchorsValid", "NotAccepted", "the partner is not accepted"),
    };
    let parts = [accepted, sources.fresh(now), anchors, sources.revocation(partner, now), distributed(edges)];
    let reachable = reachable(last_contact(seen.world, edges, &key.name));
    // Nobody waits for one that is not to be trusted: it is not ready, and says so.
    let ended = partner.and_then(|partner| ended(partner, now));
    // Nobody can be asked to call a partner before it is ready: only a call that failed is against it.
    let failed = Some(reachable.clone()).filter(|state| state.status == Some(false));
    let rest = parts.iter().skip(1).cloned().chain(failed);
    let summed: Vec<State> = parts.iter().take(1).cloned().chain(ended).chain(rest).collect();
    [vec![ready(&summed)], parts.to_vec(), vec![reachable]].concat()
}

fn ended(partner: &Partner, now: Timestamp) -> Option<State> {
    if partner.state == PartnerState::Suspended {
        let message = "spec.state is Suspended: its roots are in no sidecar, and its connections are cut";
        return Some(State::bad("Ready", "Suspended", message));
    }
    let end = partner.valid_until.filter(|end| *end <= now)?;
    Some(State::bad("Ready", "ContractEnded", format!("spec.validUntil was {end}: the partner is trusted no more")))
}

fn anchors_valid(partner: &Partner, now: Timestamp) -> State {
    const KIND: &str = "AnchorsValid";
    if partner.names.web {
        return State::good(KIND, "Valid", "the roots of the web PKI, as they were when this version was built");
    }
    let begun = |second: Timestamp| second <= now;
    let valid = partner.anchors(now).filter(|root| begun(root.validity.not_before)).count();
    if valid > 0 {
        return State::good(
            KIND,
            "Valid",
            format!("{valid} of {} roots are inside their validity", partner.roots.len()),
        );
    }
    match partner.anchors(now).next() {
        Some(root) => {
            let message = format!("no root is valid yet; the validity of {} begins later", root.subject);
            State::bad(KIND, "NotYetValid", message)
        }
        None => {
            State::bad(KIND, "AllExpired", "every root has ended: get the partner's next one, and write it into trust")
        }
    }
}

fn reachable(contact: Option<PartnerContact>) -> State {
    const KIND: &str = "Reachable";
    let Some(PartnerContact { refused, .. }) = contact else {
        return State::unknown(KIND, "NotTried", "no Edge server of this namespace has met the partner yet");
    };
    match refused {
        None => State::good(KIND, "Verified", "the last handshake with the partner verified in its scope"),
        Some(Refusal::DialFailed | Refusal::Timeout(_)) => State::bad(
            KIND,
            "DialFailed",
            "the last call of an Edge server did not arrive: look at edges, and at what the host leads to",
        ),
        Some(refusal) => {
            State::bad(KIND, refusal.code(), format!("the last handshake with the partner failed: {refusal}"))
        }
    }
}

fn distributed(edges: &[&Pods<'_>]) -> State {
    const KIND: &str = "Distributed";
    let total: usize = edges.iter().map(|pods| pods.all.len()).sum();
    let waiting = edges.iter().flat_map(|pods| pods.behind.iter().chain(&pods.disconnected).chain(&pods.bare));
    let waiting: Vec<&str> = waiting.copied().collect();
    if !waiting.is_empty() {
        return State::bad(KIND, "AckPending", format!("not in force yet at: {}", named(&waiting)));
    }
    match total {
        0 => State::good(KIND, "Distributed", "no Edge server of this namespace has a pod yet"),
        _ => State::good(
            KIND,
            "Distributed",
            format!("{total} sidecars of Edge servers have their current brief in force"),
        ),
    }
}
