//! What the sources of one partner's trust said last that was good. The leader asks them and keeps this record beside the
//! ledgers; every replica resolves from it. So all replicas say the same, a restart forgets nothing, and a source that
//! breaks costs nobody the trust that it gave before.
//!
//! A record belongs to one object (by its UID) and to the part of its spec that says where trust comes from: neither
//! another object of the same name nor another source ever inherits it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    api::{ConfigMapKey, FederationPartner, PartnerRevocation, PartnerTrust},
    pki::{
        self,
        bundle::Bundle,
        lists::{self, List, ListError},
        revocation::MAX_SERIALS,
        roots::{self, Root},
        spiffe,
    },
};

/// Seconds after which a source is asked again where it does not say.
pub const REFRESH: u32 = 300;
/// The bounds of what a source may say, in seconds.
const REFRESH_BOUNDS: (u32, u32) = (60, 86_400);
/// Seconds before the first retry.
const FIRST_RETRY: f64 = 10.0;
/// Lists that are longer, in bytes of PEM, are told to sidecars and not passed on to applications.
const LONGEST_PASSED_ON: usize = 256 * 1024;
/// Characters of a message.
const LONGEST_MESSAGE: usize = 400;

/// The last good trust of one partner.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// UID of the partner's object.
    pub uid: String,
    /// What of its spec it was got for.
    pub source: String,
    /// The last good roots, PEM; empty = there were none yet.
    pub pem: String,
    /// The number of the bundle that they are from, where it had one.
    pub sequence: Option<u64>,
    /// Seconds after which to look again.
    pub refresh: u32,
    /// Digest of the text that the first bundle was taken from.
    pub bootstrap: Option<String>,
    /// When the source gave them last, to one `refresh` exactly; Unix seconds, 0 = never.
    pub fetched: i64,
    /// Why the last attempt brought nothing; `None` = it did.
    pub failure: Option<Failure>,
    /// The last good revocation lists, by the key identifier of who signed them.
    pub lists: BTreeMap<String, KeptList>,
    /// Why the last attempts at lists brought nothing, by where they come from.
    pub list_failures: BTreeMap<String, Failure>,
}

/// A revocation list, and where it is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptList {
    /// Its address, or [`map_source`].
    pub source: String,
    /// What it says.
    pub list: List,
}

/// Why a source brought nothing that is good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Failure {
    /// The kind of it.
    pub kind: FailureKind,
    /// What is wrong and what to do, for people.
    pub message: String,
}

/// Kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// No list of the partner's own roots.
    BadSignature,
    /// A bundle without a root that can be used.
    EmptyBundle,
    /// The endpoint proved to be another one.
    EndpointIdentityMismatch,
    /// There was no answer, or none that can be read.
    FetchFailed,
    /// A bundle older than the one that is known.
    SequenceWentBack,
    /// More serials than can be told.
    TooMany,
    /// No list, or one of a kind that is not taken.
    Unparsable,
    /// A list older than the one that is known.
    WentBack,
}

impl FailureKind {
    /// The stable word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::BadSignature => "BadSignature",
            Self::EmptyBundle => "EmptyBundle",
            Self::EndpointIdentityMismatch => "EndpointIdentityMismatch",
            Self::FetchFailed => "FetchFailed",
            Self::SequenceWentBack => "SequenceWentBack",
            Self::TooMany => "TooMany",
            Self::Unparsable => "Unparsable",
            Self::WentBack => "WentBack",
        }
    }
}

impl Failure {
    /// A failure with a message that stays short whatever a source says.
    pub fn new(kind: FailureKind, message: impl AsRef<str>) -> Self {
        let plain = message.as_ref().chars().filter(|character| !character.is_control());
        Self { kind, message: plain.take(LONGEST_MESSAGE).collect() }
    }

    /// One of the commonest kind.
    pub fn fetch(message: impl AsRef<str>) -> Self {
        Self::new(FailureKind::FetchFailed, message)
    }
}

impl From<ListError> for Failure {
    fn from(error: ListError) -> Self {
        let kind = match &error {
            ListError::BadSignature => FailureKind::BadSignature,
            ListError::TooMany => FailureKind::TooMany,
            ListError::Unparsable(_) => FailureKind::Unparsable,
            ListError::WentBack => FailureKind::WentBack,
        };
        Self::new(kind, error.to_string())
    }
}

/// A record as it is kept in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptSeen {
    /// Name of the object that holds it.
    pub name: String,
    /// The resourceVersion of that.
    pub version: Option<String>,
    /// The record; `None` = it cannot be read, and is written anew.
    pub record: Option<Arc<Kept>>,
}

/// What of a partner's spec its trust is got for. Roots that stand in the spec are one source, whatever they are.
pub fn source(trust: &PartnerTrust) -> String {
    if trust.ca_bundle.is_some() {
        return "caBundle".to_owned();
    }
    // It is made of strings: serde_json has no reason to refuse it.
    serde_json::to_string(trust).unwrap_or_default()
}

/// The source of lists that a ConfigMap is.
pub fn map_source(wanted: &ConfigMapKey) -> String {
    format!("ConfigMap {}, key {}", wanted.name, wanted.key)
}

/// Whether the partner says that it publishes lists.
pub fn publishes(revocation: &PartnerRevocation) -> bool {
    !revocation.crl_urls.is_empty() || revocation.config_map_ref.is_some()
}

/// Seconds until a source is asked again: its own hint after an answer, else ever later, up to that. `dice` in `0.0..1.0`.
pub fn pause(failures: u32, refresh: u32, dice: f64) -> i64 {
    let refresh = f64::from(refresh.max(1));
    let seconds = match failures {
        0 => refresh * (0.9 + 0.1 * dice),
        _ => (FIRST_RETRY * 2f64.powi(failures.min(16).cast_signed() - 1)).min(refresh) * (0.5 + 0.5 * dice),
    };
    // At most a day.
    #[allow(clippy::cast_possible_truncation, reason = "it is between 1 and 86,400")]
    let whole = seconds.clamp(1.0, 86_400.0) as i64;
    whole
}

impl Kept {
    /// The record of an object of which nothing is known yet.
    pub fn of(object: &FederationPartner) -> Self {
        let uid = object.metadata.uid.clone().unwrap_or_default();
        Self { uid, source: source(&object.spec.trust), refresh: REFRESH, ..Self::default() }
    }

    /// Whether it was got for this very object and for what its spec says now.
    pub fn is_of(&self, object: &FederationPartner) -> bool {
        Some(&self.uid) == object.metadata.uid.as_ref() && self.source == source(&object.spec.trust)
    }

    /// The roots in it that may vouch for the partner: those with a key of `ours` may not.
    pub fn roots(&self, ours: &BTreeSet<String>) -> Vec<Root> {
        let all = roots::read(&self.pem).unwrap_or_default();
        all.into_iter().flatten().filter(|root| !ours.contains(&root.key)).collect()
    }

    /// Takes over what the spec or a ConfigMap holds, if there is a root in it that can be used.
    pub fn take_text(&mut self, said: Result<&str, Failure>, ours: &BTreeSet<String>, now: Timestamp) {
        match said.and_then(|text| usable(text, ours).map_err(Failure::fetch)) {
            Ok(pem) => self.is_good(pem, now),
            Err(failure) => self.failure = Some(failure),
        }
    }

    /// Takes over the first bundle of a partner, SPIFFE JSON or PEM, which came by another way. Another text than the last
    /// one begins anew, whatever was fetched since: so a partner that lost all its keys is let in again.
    pub fn take_bootstrap(&mut self, text: &str, ours: &BTreeSet<String>, now: Timestamp) {
        let digest = pki::sha256_hex(text.as_bytes());
        if self.bootstrap.as_ref() == Some(&digest) {
            return;
        }
        let read = match spiffe::parse(text.as_bytes()) {
            Ok(bundle) => usable(&bundle.pem, ours).map(|pem| (pem, bundle.sequence)),
            Err(_) => usable(text, ours).map(|pem| (pem, None)),
        };
        match read {
            Ok((pem, sequence)) => {
                (self.bootstrap, self.sequence) = (Some(digest), sequence);
                self.is_good(pem, now);
            }
            Err(why) => self.failure = Some(Failure::fetch(format!("bootstrapRef: {why}"))),
        }
    }

    /// Takes over what a bundle endpoint answered, if it is no step back.
    pub fn take_bundle(&mut self, said: Result<&[u8], Failure>, ours: &BTreeSet<String>, now: Timestamp) {
        match said.and_then(|json| self.next_bundle(json, ours)) {
            Ok((pem, sequence, refresh)) => {
                (self.sequence, self.refresh) = (sequence, refresh);
                self.is_good(pem, now);
            }
            Err(failure) => self.failure = Some(failure),
        }
    }

    fn next_bundle(&self, json: &[u8], ours: &BTreeSet<String>) -> Result<(String, Option<u64>, u32), Failure> {
        let bundle = spiffe::parse(json).map_err(|error| Failure::fetch(error.to_string()))?;
        if bundle.pem.is_empty() {
            let message = "the bundle holds no root (use x509-svid); the last good one stays";
            return Err(Failure::new(FailureKind::EmptyBundle, message));
        }
        if bundle.sequence < self.sequence {
            let said = |number: Option<u64>| number.map_or_else(|| "none".to_owned(), |number| number.to_string());
            let (old, new) = (said(self.sequence), said(bundle.sequence));
            let message = format!("spiffe_sequence went back from {old} to {new}; the last good bundle stays");
            return Err(Failure::new(FailureKind::SequenceWentBack, message));
        }
        let pem = usable(&bundle.pem, ours).map_err(|why| Failure::new(FailureKind::EmptyBundle, why))?;
        let hint = bundle.refresh_hint.map(|hint| u32::try_from(hint).unwrap_or(u32::MAX));
        let refresh = hint.unwrap_or(REFRESH).clamp(REFRESH_BOUNDS.0, REFRESH_BOUNDS.1);
        Ok((pem, bundle.sequence, refresh))
    }

    fn is_good(&mut self, pem: String, now: Timestamp) {
        let second = now.as_second();
        // A record that is as it was is not written again at each look.
        let due = second - self.fetched >= i64::from(self.refresh) || self.fetched > second;
        if self.pem != pem || self.failure.is_some() || due {
            self.fetched = second;
        }
        (self.pem, self.failure) = (pem, None);
    }

    /// Takes over the lists that `source` gave: each that a root of `roots` signed, and that is no step back.
    pub fn take_lists(&mut self, source: &str, said: Result<&[u8], Failure>, roots: &[Root], now: Timestamp) {
        let mut first = None;
        match said.and_then(|bytes| lists::split(bytes).map_err(Failure::from)) {
            Err(failure) => first = Some(failure),
            Ok(found) => {
                for der in found {
                    let taken =
                        lists::read(&der, roots, now).and_then(|(issuer, list)| self.take(source, issuer, list));
                    first = first.or_else(|| taken.err().map(Failure::from));
                }
            }
        }
        self.said_of_lists(source, first);
    }

    /// Writes down how the last attempt at the lists of `source` ended.
    pub fn said_of_lists(&mut self, source: &str, failure: Option<Failure>) {
        match failure {
            Some(failure) => drop(self.list_failures.insert(source.to_owned(), failure)),
            None => drop(self.list_failures.remove(source)),
        }
    }

    fn take(&mut self, source: &str, issuer: String, mut list: List) -> Result<(), ListError> {
        if list.pem.len() > LONGEST_PASSED_ON {
            list.pem.clear();
        }
        if let Some(before) = self.lists.get(&issuer)
            && !list.follows(&before.list)
        {
            return Err(ListError::WentBack);
        }
        let others = self.lists.iter().filter(|(other, _)| **other != issuer);
        let others: usize = others.map(|(_, kept)| kept.list.serials.len()).sum();
        if others + list.serials.len() > MAX_SERIALS {
            return Err(ListError::TooMany);
        }
        self.lists.insert(issuer, KeptList { source: source.to_owned(), list });
        Ok(())
    }

    /// Forgets lists of sources that the spec names no more.
    pub fn retain_lists(&mut self, revocation: &PartnerRevocation) {
        let map = revocation.config_map_ref.as_ref().map(map_source);
        let named = |source: &String| revocation.crl_urls.contains(source) || map.as_ref() == Some(source);
        self.lists.retain(|_, kept| named(&kept.source));
        self.list_failures.retain(|source, _| named(source));
    }
}

/// The roots in `text`, in the one rendering, if at least one can be used; else what is wrong with the first.
fn usable(text: &str, ours: &BTreeSet<String>) -> Result<String, String> {
    let all = roots::read(text).map_err(|error| error.to_string())?;
    if all.iter().flatten().any(|root| !ours.contains(&root.key)) {
        return Ok(Bundle::of([text]).render());
    }
    Err(all.into_iter().find_map(Result::err).map_or_else(
        || "every root has the key of an authority of ours, which must not vouch for somebody else".to_owned(),
        |error| error.to_string(),
    ))
}

#[cfg(test)]
mod tests;
