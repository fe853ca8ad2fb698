//! What a step has to say aloud: the Events of the leader.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::{Coming, Step, World};
use crate::{
    api::{AnchorStatus, FederationPartnerStatus},
    topology::{Key, PartnerKey, Topology},
};

/// One Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// The object that it is about.
    pub about: Key,
    /// Whether a person may want to act.
    pub warning: bool,
    /// One CamelCase word.
    pub reason: &'static str,
    /// What was done.
    pub action: &'static str,
    /// A sentence for people.
    pub note: String,
}

/// What an applied `step`, planned on `world`, has to say.
pub fn news(step: &Step, world: &World, topology: &Topology) -> Vec<News> {
    match step {
        Step::ServerStatus { key, status, .. } => {
            let old = world.declared.server(key).and_then(|object| object.status.as_ref());
            let old = old.map(|status| status.conditions.as_slice());
            let bare = appeared(old, &status.conditions, "ProxiesInjected", "PodsWithoutProxy");
            let about = Key::Server(key.clone());
            let tell = |note| News { about, warning: true, reason: "PodWithoutProxy", action: "Inject", note };
            bare.map(tell).into_iter().collect()
        }
        Step::Revoke { server, marks, .. } if topology.server(server).is_some() => {
            let mut reasons: Vec<&str> = marks.iter().map(|(_, reason)| reason.word()).collect();
            reasons.sort_unstable();
            reasons.dedup();
            let note = format!("{} certificates are revoked: {}", marks.len(), reasons.join(", "));
            let about = Key::Server(server.clone());
            vec![News { about, warning: false, reason: "Revoked", action: "Revoke", note }]
        }
        Step::PrepareAuthority { domain, coming, .. } => {
            let what = match coming {
                Coming::Root(_) => "a new root",
                Coming::Issuer(_) => "a new issuing certificate under the same root",
                Coming::Supplied(_) => "the authority that its owner gave",
            };
            let note = format!("{what} is on its way to every sidecar and bundle");
            let about = Key::Domain(domain.clone());
            vec![News { about, warning: false, reason: "RotationStarted", action: "Rotate", note }]
        }
        Step::DomainStatus { name, status, .. } => {
            let old = world.declared.domain(name).and_then(|object| object.status.as_ref());
            let old = old.map(|status| status.conditions.as_slice());
            let about = |warning, reason| {
                move |note| News { about: Key::Domain(name.clone()), warning, reason, action: "Rotate", note }
            };
            let blocked = appeared(old, &status.conditions, "RotationComplete", "AckPending");
            let moving = old.is_some_and(|old| is(old, "RotationComplete", "False"));
            let complete = appeared(old, &status.conditions, "RotationComplete", "Complete").filter(|_| moving);
            let blocked = blocked.map(about(true, "RotationBlocked"));
            blocked.into_iter().chain(complete.map(about(false, "RotationCompleted"))).collect()
        }
        Step::PartnerStatus { key, status, .. } => {
            let old = world.declared.partner(key).and_then(|object| object.status.as_ref());
            partner(key, old, status)
        }
        _ => vec![],
    }
}

/// What of a partner's status asks for a person, beside roots that have ended.
const STALE: [(&str, &str); 8] = [
    ("TrustFresh", "EmptyBundle"),
    ("TrustFresh", "EndpointIdentityMismatch"),
    ("TrustFresh", "FetchFailed"),
    ("TrustFresh", "SequenceWentBack"),
    ("RevocationFresh", "BadSignature"),
    ("RevocationFresh", "Stale"),
    ("RevocationFresh", "TooMany"),
    ("RevocationFresh", "Unparsable"),
];

/// What changed about a partner that somebody may want to know.
fn partner(key: &PartnerKey, old: Option<&FederationPartnerStatus>, status: &FederationPartnerStatus) -> Vec<News> {
    let tell = |warning, reason| {
        let about = Key::Partner(key.clone());
        move |note| News { about: about.clone(), warning, reason, action: "Federate", note }
    };
    let before = old.map(|status| status.conditions.as_slice());
    let expired = appeared(before, &status.conditions, "AnchorsValid", "AllExpired");
    let known = |status: &FederationPartnerStatus| -> BTreeSet<String> {
        status.anchors.iter().map(|anchor| anchor.sha256.clone()).collect()
    };
    let moved = old.is_some_and(|old| known(old) != known(status));
    let note = match status.anchors.len() {
        0 => "it has no roots any more that can be used".to_owned(),
        roots => format!("it has {roots} roots now: {}", digests(status)),
    };
    let stale = STALE.iter().filter_map(|(kind, reason)| appeared(before, &status.conditions, kind, reason));
    let updated = moved.then_some(note).map(tell(false, "PartnerTrustUpdated"));
    updated.into_iter().chain(expired.into_iter().chain(stale).map(tell(true, "PartnerTrustStale"))).collect()
}

/// The first of its roots, by the beginning of their digests.
fn digests(status: &FederationPartnerStatus) -> String {
    let short = |anchor: &AnchorStatus| anchor.sha256.chars().take(16).collect::<String>();
    status.anchors.iter().take(4).map(short).collect::<Vec<_>>().join(", ")
}

fn is(conditions: &[Condition], kind: &str, status: &str) -> bool {
    conditions.iter().any(|one| one.type_ == kind && one.status == status)
}

/// The message of a condition that has `reason` now and had another, or another message, before.
fn appeared(old: Option<&[Condition]>, new: &[Condition], kind: &str, reason: &str) -> Option<String> {
    let find = |conditions: &[Condition]| {
        let found = conditions.iter().find(|one| one.type_ == kind && one.reason == reason);
        found.map(|one| one.message.clone())
    };
    let now = find(new)?;
    (old.and_then(find).as_ref() != Some(&now)).then_some(now)
}
