//! The register of a domain: its authorities with their keys and states, and the lists of what they took back. It is
//! one Secret, so that every change of it is one compare-and-swap.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    authority::{Authority, AuthorityError, Material, Validity},
    crl::{MAX_ENTRIES, Revoked, Window},
    rotation::{self, Member, Move, State},
    sha256_hex,
};

/// Authorities that one domain may have at a time.
pub const MAX_AUTHORITIES: usize = 8;
/// Removed authorities that are remembered, without their keys.
const MAX_REMOVED: usize = 3;
const FORMAT: u32 = 1;
/// Keys of the Secret's data.
const REGISTER: &str = "register.json";
const CRL: &str = "crl.pem";

/// What the Secret holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Register {
    format: u32,
    authorities: Vec<Entry>,
    removed: Vec<Removed>,
    /// When the last rotation began, Unix seconds.
    rotated_at: i64,
    crl: Published,
    #[serde(skip)]
    crl_pem: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    key_id: String,
    root_sha256: String,
    state: State,
    since: i64,
    material: Material,
}

/// An authority that was removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Removed {
    /// Key identifier of its issuing certificate.
    pub key_id: String,
    /// SHA-256 of its root.
    pub root_sha256: String,
    /// Validity of its root, Unix seconds.
    pub root: [i64; 2],
}

/// The lists as they are published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Published {
    /// Their number.
    pub number: u64,
    /// When they were signed, Unix seconds.
    pub this_update: i64,
    /// Until when they may be relied on, Unix seconds.
    pub next_update: i64,
    /// Key identifiers of the issuers that they speak for.
    pub issuers: Vec<String>,
    /// Revoked certificates in them.
    pub entries: usize,
    /// SHA-256 over what they list.
    pub digest: String,
    /// SHA-256 over the lists themselves.
    pub sha256: String,
}

/// Revoked certificates by the key identifier of their issuer, sorted.
pub type Listed = BTreeMap<String, BTreeSet<Revoked>>;

/// Why a register cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Not a register of this version.
    #[error("{REGISTER} is missing or cannot be read")]
    Unreadable,
    /// No authority signs, or more than one.
    #[error("{REGISTER} must hold exactly one authority that is active")]
    NoneActive,
    /// The authority that signs cannot be used.
    #[error("{0}")]
    Authority(#[from] AuthorityError),
    /// More authorities than a domain may have.
    #[error("a domain has at most {MAX_AUTHORITIES} authorities at a time")]
    TooMany,
    /// A known key under another root.
    #[error("another root needs another issuing key")]
    SameKey,
    /// The certificate library refused.
    #[error("could not sign a revocation list")]
    Sign(#[from] rcgen::Error),
}

/// A register whose authorities are loaded.
pub struct Loaded {
    /// The authorities, oldest first. One outside its validity is left out, unless it signs.
    pub members: Vec<(Member, Arc<Authority>)>,
    /// The one that signs.
    pub active: Arc<Authority>,
}

impl Register {
    /// The register of a new domain, with its first, empty lists.
    pub fn create(material: Material, window: Window, now: Timestamp) -> Result<Self, RegisterError> {
        let mut register = Self {
            format: FORMAT,
            authorities: vec![],
            removed: vec![],
            rotated_at: now.as_second(),
            crl: Published::default(),
            crl_pem: String::new(),
        };
        register.add(material, State::Active, now)?;
        register.publish(&Listed::new(), window, now)?;
        Ok(register)
    }

    /// Reads the Secret's data.
    pub fn parse(data: &BTreeMap<String, Vec<u8>>) -> Result<Self, RegisterError> {
        let bytes = data.get(REGISTER).ok_or(RegisterError::Unreadable)?;
        let mut register: Self = serde_json::from_slice(bytes).map_err(|_| RegisterError::Unreadable)?;
        if register.format != FORMAT || register.authorities.len() > MAX_AUTHORITIES {
            return Err(RegisterError::Unreadable);
        }
        register.crl_pem = data.get(CRL).and_then(|bytes| String::from_utf8(bytes.clone()).ok()).unwrap_or_default();
        if sha256_hex(register.crl_pem.as_bytes()) != register.crl.sha256 {
            // Lost or meddled with: nothing is listed until the next ones are signed.
            register.crl_pem.clear();
            register.crl.digest.clear();
        }
        Ok(register)
    }

    /// The Secret's data.
    pub fn render(&self) -> Result<BTreeMap<String, Vec<u8>>, serde_json::Error> {
        Ok(BTreeMap::from([
            (REGISTER.to_owned(), serde_json::to_vec(self)?),
            (CRL.to_owned(), self.crl_pem.clone().into_bytes()),
        ]))
    }

    /// Loads the authorities.
    pub fn load(&self, now: Timestamp) -> Result<Loaded, RegisterError> {
        let mut active = None;
        let mut members = vec![];
        for entry in &self.authorities {
            let authority = match Authority::load(&entry.material, now) {
                Ok(authority) => Arc::new(authority),
                Err(error) if entry.state == State::Active => return Err(error.into()),
                Err(_) => continue,
            };
            if entry.state == State::Active && active.replace(Arc::clone(&authority)).is_some() {
                return Err(RegisterError::NoneActive);
            }
            members.push((entry.member(), authority));
        }
        let active = active.ok_or(RegisterError::NoneActive)?;
        Ok(Loaded { members, active })
    }

    /// The lists, PEM: of each issuing key, then of each root whose key is ours.
    pub fn crl_pem(&self) -> &str {
        &self.crl_pem
    }

    /// What is published.
    pub const fn published(&self) -> &Published {
        &self.crl
    }

    /// What was removed last.
    pub fn removed(&self) -> &[Removed] {
        &self.removed
    }

    /// When the last rotation began, Unix seconds.
    pub const fn rotated_at(&self) -> i64 {
        self.rotated_at
    }

    /// Certificates and keys of the authority that signs.
    pub fn active(&self) -> Option<&Material> {
        self.authorities.iter().find(|entry| entry.state == State::Active).map(|entry| &entry.material)
    }

    /// What tells the material of an authority from another for the same key.
    pub fn fingerprint(&self, key_id: &str) -> Option<String> {
        let entry = self.authorities.iter().find(|entry| entry.key_id == key_id)?;
        Some(entry.material.fingerprint())
    }

    /// Whether an authority with this key identifier is here.
    pub fn holds(&self, key_id: &str) -> bool {
        self.authorities.iter().any(|entry| entry.key_id == key_id)
    }

    /// Whether an authority is on its way already.
    pub fn is_rotating(&self) -> bool {
        self.authorities.iter().any(|entry| matches!(entry.state, State::Prepared | State::Trusted))
    }

    /// Takes one more authority in; the next lists speak for it too.
    pub fn add(&mut self, material: Material, state: State, now: Timestamp) -> Result<(), RegisterError> {
        if self.authorities.len() >= MAX_AUTHORITIES {
            return Err(RegisterError::TooMany);
        }
        let authority = Authority::load(&material, now)?;
        let (key_id, root_sha256) = (authority.key_id().to_owned(), authority.root_sha256());
        if let Some(entry) = self.authorities.iter_mut().find(|entry| entry.key_id == key_id) {
            // The same key under the same root, with another certificate or list: nobody has to learn anything.
            if entry.root_sha256 != root_sha256 {
                return Err(RegisterError::SameKey);
            }
            entry.material = material;
            return Ok(());
        }
        self.authorities.push(Entry { key_id, root_sha256, state, since: now.as_second(), material });
        self.rotated_at = now.as_second();
        Ok(())
    }

    /// Takes a move; `false` = it does not fit any more.
    pub fn take(&mut self, step: &Move, now: Timestamp) -> bool {
        let mut members: Vec<Member> = self.authorities.iter().map(Entry::member).collect();
        if !rotation::take(&mut members, step, now) {
            return false;
        }
        let (kept, gone): (Vec<_>, Vec<_>) =
            self.authorities.drain(..).partition(|entry| members.iter().any(|member| member.key_id == entry.key_id));
        self.authorities = kept;
        for (entry, member) in self.authorities.iter_mut().zip(&members) {
            entry.state = member.state;
            entry.since = member.since.as_second();
        }
        self.removed.extend(gone.iter().map(|entry| entry.removed(now)));
        let surplus = self.removed.len().saturating_sub(MAX_REMOVED);
        self.removed.drain(..surplus);
        true
    }

    /// Signs the lists anew. The number goes on from the highest that anybody has seen.
    pub fn publish(&mut self, listed: &Listed, window: Window, now: Timestamp) -> Result<(), RegisterError> {
        let window = Window { number: window.number.max(self.crl.number + 1), ..window };
        let Loaded { members, .. } = self.load(now)?;
        let (mut lists, mut roots, mut issuers, mut entries) = (vec![], BTreeMap::new(), vec![], 0);
        for (member, authority) in &members {
            let own: Vec<Revoked> = listed.get(&member.key_id).into_iter().flatten().copied().collect();
            entries += own.len();
            lists.push(authority.sign_crl(&own, window)?);
            issuers.push(member.key_id.clone());
            let supplied = self.authorities.iter().find(|entry| entry.key_id == member.key_id);
            let supplied = supplied.and_then(|entry| entry.material.root_crl.clone());
            if let Some(list) = authority.sign_root_crl(&[], window)?.or(supplied) {
                roots.insert(member.root_sha256.clone(), list);
            }
        }
        lists.extend(roots.into_values());
        self.crl_pem = lists.concat();
        self.crl = Published {
            number: window.number,
            this_update: window.this_update.as_second(),
            next_update: window.next_update.as_second(),
            issuers,
            entries,
            digest: digest(listed),
            sha256: sha256_hex(self.crl_pem.as_bytes()),
        };
        Ok(())
    }
}

impl Entry {
    fn member(&self) -> Member {
        Member {
            key_id: self.key_id.clone(),
            root_sha256: self.root_sha256.clone(),
            state: self.state,
            since: Timestamp::from_second(self.since).unwrap_or(Timestamp::UNIX_EPOCH),
        }
    }

    fn removed(&self, now: Timestamp) -> Removed {
        let validity = Authority::load(&self.material, now).ok().map(|authority| authority.root_validity());
        let root = validity
            .map_or([0; 2], |Validity { not_before, not_after }| [not_before, not_after].map(Timestamp::as_second));
        Removed { key_id: self.key_id.clone(), root_sha256: self.root_sha256.clone(), root }
    }
}

/// SHA-256 over what is listed: equal sets are equal digests.
pub fn digest(listed: &Listed) -> String {
    let line =
        |issuer: &str, one: &Revoked| format!("{issuer} {} {} {}\n", one.serial, one.at.as_second(), one.reason.word());
    let text: String = listed.iter().flat_map(|(issuer, set)| set.iter().map(move |one| line(issuer, one))).collect();
    sha256_hex(text.as_bytes())
}

/// What fits into published lists: what somebody decided goes first, then the latest. Answers also whether all fits.
pub fn fitting(listed: Listed) -> (Listed, bool) {
    if listed.values().map(BTreeSet::len).sum::<usize>() <= MAX_ENTRIES {
        return (listed, true);
    }
    let mut all: Vec<(String, Revoked)> =
        listed.into_iter().flat_map(|(issuer, set)| set.into_iter().map(move |one| (issuer.clone(), one))).collect();
    all.sort_by_key(|(_, one)| (!one.reason.is_explicit(), std::cmp::Reverse(one.at)));
    all.truncate(MAX_ENTRIES);
    let mut fitting = Listed::new();
    for (issuer, one) in all {
        fitting.entry(issuer).or_default().insert(one);
    }
    (fitting, false)
}
