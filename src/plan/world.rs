//! What was observed: the input of a plan.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::{
    api::TrustDomain,
    brief::Cursor,
    identity::DnsName,
    pki::authority::{Authority, Validity},
    topology::{Declared, Key, ServerKey},
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
    /// The ledgers, by name.
    pub ledgers: BTreeMap<String, LedgerSeen>,
    /// The sidecars that speak with any replica, by pod UID.
    pub proxies: BTreeMap<String, ProxySeen>,
    /// Since when a sidecar has been behind, by pod UID.
    pub behind_since: BTreeMap<String, Timestamp>,
}

/// An authority's Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthoritySeen {
    /// It signs.
    Sound(AuthorityFacts),
    /// It cannot be used, with the reason.
    Broken(String),
}

/// What there is to say of an authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorityFacts {
    /// Key identifier of the issuer.
    pub key_id: String,
    /// The root, PEM.
    pub root_pem: String,
    /// Its SHA-256.
    pub root_sha256: String,
    /// The root's validity.
    pub root: Validity,
    /// The issuer's validity.
    pub issuer: Validity,
    /// Names that the issuer may vouch for.
    pub permitted: BTreeSet<DnsName>,
}

impl AuthorityFacts {
    /// The facts of a loaded authority.
    pub fn of(authority: &Authority) -> Self {
        Self {
            key_id: authority.key_id().to_owned(),
            root_pem: authority.root_pem().to_owned(),
            root_sha256: authority.root_sha256(),
            root: authority.root_validity(),
            issuer: authority.issuer_validity(),
            permitted: authority.permitted().clone(),
        }
    }
}

/// A ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerSeen {
    /// Whose it is.
    pub server: ServerKey,
    /// End of the last certificate in it.
    pub last: Timestamp,
}

/// A sidecar as the replicas see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxySeen {
    /// The brief that it has in force.
    pub cursor: Option<Cursor>,
    /// Whether it holds a poll, or did within the last seconds.
    pub connected: bool,
    /// Start of its certificate's validity; `None` = it has none.
    pub leaf_not_before: Option<Timestamp>,
    /// End of it.
    pub leaf_not_after: Option<Timestamp>,
}
