//! Where a partner's trust comes from: roots that stand in its object, the last good ones of another source, or the web
//! PKI; and what its authority took back.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Declared, PartnerKey, Problem,
    kept::{self, Kept, KeptList},
};
use crate::{
    api::{FederationPartner, OnStale as Stale},
    brief::{OnStale, Revocation},
    identity::DnsName,
    pki::roots::{self, Root, RootError},
};

/// What vouches for a partner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Trust {
    /// Its roots, the first to end in front; also those that have ended.
    pub(super) roots: Vec<Root>,
    /// Its SPIFFE trust domain, where it has one.
    pub(super) trust_domain: Option<DnsName>,
    /// Whether its roots are those of the web PKI.
    pub(super) web: bool,
    /// What it took back.
    pub(super) revocation: Option<Revocation>,
    /// The lists that say so, PEM.
    pub(super) crl_pem: String,
}

impl Trust {
    /// Whether anybody can vouch for the partner at all.
    pub(super) fn is_there(&self) -> bool {
        self.web || !self.roots.is_empty()
    }
}

/// Reads what the partner says of itself, and what its sources said last.
pub(super) fn trust(
    object: &FederationPartner,
    key: &PartnerKey,
    declared: &Declared,
    problems: &mut Vec<Problem>,
) -> Option<Trust> {
    let spec = &object.spec.trust;
    let known = known(object, key, declared);
    let trust_domain = spec.spiffe_endpoint.as_ref().map(|endpoint| DnsName::parse(&endpoint.spiffe_trust_domain));
    // Without the name of its trust domain nobody knows which identities are the partner's.
    let trust_domain = trust_domain.transpose().map_err(|error| problems.push(Problem::InvalidName(error.to_string())));
    let web = spec.public_ca.is_some();
    if web && object.spec.server_names.is_empty() {
        problems.push(Problem::ServerNamesRequired);
        return None;
    }
    let roots = if web { vec![] } else { roots(object, known, declared, problems) };
    let lists = lists(object, known, &roots);
    let crl_pem = lists.values().map(|kept| kept.list.pem.as_str()).collect();
    Some(Trust { revocation: revocation(object, &lists), roots, trust_domain: trust_domain.ok()?, web, crl_pem })
}

/// What is kept of this very object.
fn known<'a>(object: &FederationPartner, key: &PartnerKey, declared: &'a Declared) -> Option<&'a Kept> {
    let record = declared.kept.get(key)?.record.as_deref();
    record.filter(|kept| kept.is_of(object))
}

/// The roots that may anchor the partner's scope.
fn roots(
    object: &FederationPartner,
    known: Option<&Kept>,
    declared: &Declared,
    problems: &mut Vec<Problem>,
) -> Vec<Root> {
    let last = known.map(|kept| kept.pem.as_str()).filter(|pem| !pem.is_empty());
    let mut found = match (&object.spec.trust.ca_bundle, last) {
        (Some(pem), last) => {
            let found = read(pem, declared, problems);
            // What was good once is not lost by a slip of the pen. The object says what is wrong with what it has now.
            if found.is_empty() { last.map(|pem| read(pem, declared, &mut vec![])).unwrap_or_default() } else { found }
        }
        (None, Some(pem)) => read(pem, declared, problems),
        (None, None) => {
            let why = known.and_then(|kept| kept.failure.as_ref()).map(|failure| failure.message.clone());
            let why = why.unwrap_or_else(|| "its source has not been asked yet".to_owned());
            problems.push(Problem::UnreadableRoots(why));
            vec![]
        }
    };
    // The first to end is told first.
    found.sort_by_key(|root| (root.validity.not_after, root.sha256.clone()));
    found
}

fn read(pem: &str, declared: &Declared, problems: &mut Vec<Problem>) -> Vec<Root> {
    let mut found = vec![];
    let mut subjects = BTreeSet::new();
    match roots::read(pem) {
        Err(error) => problems.push(Problem::UnreadableRoots(error.to_string())),
        Ok(all) => {
            for one in all {
                match one {
                    Ok(root) if declared.own_keys.contains(&root.key) => drop(subjects.insert(root.subject)),
                    Ok(root) => found.push(root),
                    Err(error @ RootError::Unfit { .. }) => problems.push(Problem::NotACa(error.to_string())),
                    Err(error) => problems.push(Problem::UnreadableRoots(error.to_string())),
                }
            }
        }
    }
    problems.extend(subjects.into_iter().map(Problem::AnchorIsOurs));
    found
}

/// The last good lists of those of the partner's authorities that are roots now.
fn lists<'a>(object: &FederationPartner, known: Option<&'a Kept>, roots: &[Root]) -> BTreeMap<&'a str, &'a KeptList> {
    if !kept::publishes(&object.spec.revocation) {
        return BTreeMap::new();
    }
    let trusted: BTreeSet<&str> = roots.iter().map(|root| root.key_id.as_str()).collect();
    let all = known.into_iter().flat_map(|kept| &kept.lists).map(|(issuer, list)| (issuer.as_str(), list));
    all.filter(|(issuer, _)| trusted.contains(issuer)).collect()
}

/// What the partner took back. A list may be relied on some time after
/// the end that it names; each has its own end, so that a stale one costs its own issuer alone.
fn revocation(object: &FederationPartner, lists: &BTreeMap<&str, &KeptList>) -> Option<Revocation> {
    let spec = &object.spec.revocation;
    if !kept::publishes(spec) {
        return None;
    }
    let on_stale = match spec.on_stale {
        Stale::Deny => OnStale::Deny,
        Stale::Allow => OnStale::Allow,
    };
    if lists.is_empty() && on_stale == OnStale::Allow {
        return None;
    }
    let end = |next: i64| next.saturating_add(i64::from(spec.max_stale_seconds));
    let all = || lists.values().map(|kept| &kept.list);
    Some(Revocation {
        number: all().filter_map(|list| list.counted()).max().unwrap_or_default(),
        this_update: all().map(|list| list.this_update).min().unwrap_or_default(),
        next_update: all().map(|list| end(list.next_update)).min().unwrap_or_default(),
        next_updates: lists.iter().map(|(key, kept)| ((*key).to_owned(), end(kept.list.next_update))).collect(),
        on_stale,
        serials: lists.iter().map(|(key, kept)| ((*key).to_owned(), kept.list.serials.clone())).collect(),
        withdrawn: vec![],
    })
}
