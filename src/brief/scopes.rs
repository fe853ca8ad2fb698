//! Whom a proxy trusts, for what: the scopes of a brief.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    identity::{DnsName, SpiffeId},
    refusal::WithdrawnDetail,
};

/// A trust scope: anchors that may vouch for one group of names. Scopes are never pooled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Scope {
    /// [`INTERNAL`]: our own authority; [`partner_scope`]: a partner's.
    pub id: String,
    /// Whom the anchors may vouch for.
    pub names: ScopeNames,
    /// Root certificates, PEM. A partner's may be empty: while it is not trusted, when all have ended, or where the
    /// anchors are `Brief::web_roots`.
    pub anchors: Vec<String>,
    /// Key identifiers of the issuing certificates in use, hex: a chain through any other is refused. A partner's is
    /// empty: its authority moves its issuers without telling us.
    pub issuers: Vec<String>,
    /// What was taken back. `None` in scope `internal` = nobody knows, so everybody is refused; in a partner's = the
    /// partner publishes nothing, and its certificates count until they end.
    pub revocation: Option<Revocation>,
}

/// Whom the anchors of a scope may vouch for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ScopeNames {
    /// Servers of our own trust domain, by the one URI in their leaf (scope `internal`).
    Servers,
    /// A partner: the DNS names in its leaf.
    Partner(PartnerNames),
}

/// The names that a partner may prove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PartnerNames {
    /// Every DNS name in a leaf lies in one of these.
    pub domains: Vec<DnsName>,
    /// Where there are any, a leaf carries at least one of these exact names.
    pub server_names: Vec<DnsName>,
    /// SHA-256 of the public keys (SubjectPublicKeyInfo) that a leaf may have, base64; empty = any.
    pub public_key_pins: Vec<String>,
    /// The partner's SPIFFE trust domain, where it has one: a leaf may carry one identity of it, and needs no DNS name
    /// then when it calls us.
    pub trust_domain: Option<DnsName>,
    /// Its anchors are those of the web PKI. `server_names` is not empty then, and the purpose serverAuth counts for
    /// callers as well, since public CAs no longer certify clients.
    pub web: bool,
}

/// What a scope's authority has taken back of what it issued: a CRL as a set, and whole identities beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Revocation {
    /// Number of the CRL that it stands for; never goes back.
    pub number: u64,
    /// When that was signed, Unix seconds.
    pub this_update: i64,
    /// Until when it may be relied on, Unix seconds.
    pub next_update: i64,
    /// The same by the issuer's key identifier, for issuers whose lists end by themselves: a partner's. One that is not
    /// here ends at `next_update`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub next_updates: BTreeMap<String, i64>,
    /// What becomes of new connections after that, and of those whose issuer has no entry. Always `Deny` in scope
    /// `internal`.
    pub on_stale: OnStale,
    /// Revoked serials (lower-case hex) by the issuer's key identifier. An issuer without an entry is one of unknown
    /// status.
    pub serials: BTreeMap<String, Vec<String>>,
    /// Identities whose certificates are taken back.
    pub withdrawn: Vec<Withdrawal>,
}

/// What becomes of new connections when nobody knows what was taken back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum OnStale {
    /// They are refused.
    #[default]
    Deny,
    /// What was known last counts.
    Allow,
}

/// Certificates of one identity that are taken back together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Withdrawal {
    /// Whose.
    pub id: SpiffeId,
    /// Those whose validity starts before this moment, Unix seconds.
    pub starting_before: i64,
    /// Why.
    pub reason: WithdrawnDetail,
}

/// The id of our own authority's scope.
pub const INTERNAL: &str = "internal";

/// The id of the scope of the `FederationPartner` called `name`.
pub fn partner_scope(name: &str) -> String {
    format!("partner/{name}")
}
