//! What was observed: the input of a plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;

use super::secrets::SecretSeen;
use crate::{
    api::TrustDomain,
    brief::{Cursor, PartnerContact},
    identity::{DnsName, SpiffeId},
    pki::{
        self,
        authority::{Authority, Material, Validity},
        bundle::Bundle,
        ledger::Ledger,
        register::{Loaded, Published, Register, Removed},
        roots,
        rotation::{Member, State},
    },
    topology::{Declared, Key, PartnerKey, ServerKey, kept::Kept},
};

/// Everything that a plan looks at.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// Our objects and the facts they are about.
    pub declared: Declared,
    /// Our objects that could not be read, with the reason.
    pub unreadable: Vec<(Key, String)>,
    /// Namespaces that are being deleted: nothing can be written there any more.
    pub ending_namespaces: BTreeSet<String>,
    /// The domain that the installation asks for.
    pub first_domain: Option<TrustDomain>,
    /// The authorities' Secrets, by domain.
    pub authorities: BTreeMap<String, AuthoritySeen>,
    /// The data of ConfigMap `entente-trust-bundle`, by namespace; only those that carry our label.
    pub bundles: BTreeMap<String, BTreeMap<String, String>>,
    /// The data of ConfigMap `entente-partners`, by namespace.
    pub partner_bundles: BTreeMap<String, BTreeMap<String, String>>,
    /// The owners' own authorities, by the name of their Secret.
    pub supplied: BTreeMap<String, Arc<Material>>,
    /// The Secrets of servers whose software holds the key, as far as they were looked at.
    pub secrets: BTreeMap<ServerKey, SecretSeen>,
    /// The ledgers, by name.
    pub ledgers: BTreeMap<String, LedgerSeen>,
    /// What the sources of partners' trust said to this replica since, as records that would follow those that are kept.
    pub asked: BTreeMap<PartnerKey, Asked>,
    /// The sidecars that speak with any replica, by pod UID.
    pub proxies: BTreeMap<String, ProxySeen>,
    /// Since when a sidecar has been behind, by pod UID.
    pub behind_since: BTreeMap<String, Timestamp>,
    /// Since when a pod that a ledger knows has been gone, by its UID.
    pub gone_since: BTreeMap<String, Timestamp>,
}

/// What a partner's sources made of its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The resourceVersion of the record that it rests on; `None` = there was none.
    pub on: Option<String>,
    /// The next record.
    pub record: Arc<Kept>,
}

/// An authority's Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthoritySeen {
    /// It signs.
    Sound(AuthorityFacts),
    /// It cannot be used, with the reason.
    Broken(String),
}

/// What there is to say of a domain's authorities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityFacts {
    /// All of them, oldest first.
    pub members: Vec<MemberFacts>,
    /// What was removed last.
    pub removed: Vec<Removed>,
    /// When the last rotation began.
    pub rotated_at: Timestamp,
    /// The published revocation lists.
    pub crl: Published,
    /// The lists themselves, PEM.
    pub crl_pem: Arc<str>,
}

/// What there is to say of one authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberFacts {
    /// Its place in the rotation.
    pub member: Member,
    /// The root, PEM.
    pub root_pem: String,
    /// The root's validity.
    pub root: Validity,
    /// The root's life, from when it was made.
    pub root_life: Validity,
    /// The issuer's life, from when it was made.
    pub issuer: Validity,
    /// Names that the issuer may vouch for; none = it is not constrained.
    pub permitted: BTreeSet<DnsName>,
    /// Whether the operator made it.
    pub managed: bool,
    /// Tells its material from another for the same key.
    pub fingerprint: String,
}

impl AuthorityFacts {
    /// The facts of a register whose authorities are loaded.
    pub fn of(register: &Register, loaded: &Loaded) -> Self {
        let one = |(member, authority): &(Member, Arc<Authority>)| MemberFacts {
            member: member.clone(),
            root_pem: authority.root_pem().to_owned(),
            root: authority.root_validity(),
            root_life: authority.life(authority.root_validity()),
            issuer: authority.life(authority.issuer_validity()),
            permitted: authority.permitted().clone(),
            managed: authority.holds_root_key(),
            fingerprint: register.fingerprint(&member.key_id).unwrap_or_default(),
        };
        Self {
            members: loaded.members.iter().map(one).collect(),
            removed: register.removed().to_vec(),
            rotated_at: Timestamp::from_second(register.rotated_at()).unwrap_or(Timestamp::UNIX_EPOCH),
            crl: register.published().clone(),
            crl_pem: register.crl_pem().into(),
        }
    }

    /// The authority that signs.
    pub fn active(&self) -> Option<&MemberFacts> {
        self.members.iter().find(|one| one.member.state == State::Active)
    }

    /// The distinct roots, PEM.
    pub fn roots(&self) -> Vec<String> {
        Bundle::of(self.members.iter().map(|one| one.root_pem.as_str())).roots()
    }
}

/// SHA-256 of the public keys of a domain's authorities, roots and issuers.
pub fn own_keys(loaded: &Loaded) -> BTreeSet<String> {
    let pems = loaded.members.iter().flat_map(|(_, authority)| [authority.root_pem(), authority.issuer_pem()]);
    pems.filter_map(|pem| roots::key_of(&pki::certificate(pem)?)).collect()
}

/// A ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerSeen {
    /// Whose it is.
    pub server: ServerKey,
    /// What it says; `None` = it cannot be read.
    pub ledger: Option<Arc<Ledger>>,
}

impl LedgerSeen {
    /// Until when something in it counts.
    pub fn last(&self) -> Timestamp {
        let records = self.ledger.iter().flat_map(|ledger| ledger.records());
        records.map(|record| record.listed_until()).max().unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// A sidecar as the replicas see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxySeen {
    /// The brief that it has in force.
    pub cursor: Option<Cursor>,
    /// Whether it holds a poll, or did within the last seconds.
    pub connected: bool,
    /// Serial of its certificate, hex.
    pub serial: String,
    /// Start of its certificate's validity; `None` = it has none.
    pub leaf_not_before: Option<Timestamp>,
    /// End of it.
    pub leaf_not_after: Option<Timestamp>,
    /// Open connections that it cut because of a revocation, since its start, by the identity that lost them.
    pub cut: BTreeMap<SpiffeId, u64>,
    /// Its last contact with each partner, by the partner's name.
    pub contacts: BTreeMap<String, PartnerContact>,
}
