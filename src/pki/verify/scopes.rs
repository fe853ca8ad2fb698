//! The scopes of one brief, and which of them judges a caller. It is chosen before any path is built, by the names in
//! the leaf; that grants nothing, since the anchors of this one scope must then vouch for them.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;

use super::{Anchors, Partner, PinError, Proven, Role, open, verdict};
use crate::{
    brief::{Allow, Brief, INTERNAL, Mode, PartnerNames, Scope, ScopeNames, partner_scope},
    identity::{DnsName, Identity, LeafNames, Peer, SpiffeId},
    refusal::Refusal,
};

/// Partners that one brief may tell of.
pub const MAX_PARTNERS: usize = 256;
/// Domains of one partner.
const MAX_DOMAINS: usize = 32;
/// Exact names, and pins, of one partner.
const MAX_EXACT: usize = 64;

/// The partners of one brief, by name.
#[derive(Clone, Debug, Default)]
pub struct Partners(BTreeMap<String, Arc<Partner>>);

/// Why the scopes of a brief cannot be told apart, or are none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScopeError {
    /// Of no kind that is known here, or there twice.
    #[error("scope {0:?} is of no known kind, or not the only one of its name")]
    Unknown(String),
    /// It names nobody, or too many.
    #[error("scope {0:?} must have 1 to {MAX_DOMAINS} domains, and at most {MAX_EXACT} exact names and pins")]
    Names(String),
    /// It says what only our own authority's can: issuers in use, identities taken back.
    #[error("scope {0:?} has issuers or withdrawn identities, which only our own authority has")]
    Ours(String),
    /// More than one brief may tell of.
    #[error("a brief has at most {MAX_PARTNERS} partners")]
    TooMany,
    /// Nobody may call by it.
    #[error("no port lists scope {0:?}")]
    Unlisted(String),
    /// Two scopes would answer for one name.
    #[error("scope {0:?} and scope {1:?} speak for the same names")]
    Overlap(String, String),
    /// A pin that cannot be read.
    #[error("scope {0:?}: {1}")]
    Pin(String, PinError),
}

impl Partners {
    /// Compiles the partners of `brief`. What did not change since `before` is the same value as then.
    pub fn of(brief: &Brief, before: Option<&Self>) -> Result<Self, ScopeError> {
        let mut partners = BTreeMap::<String, Arc<Partner>>::new();
        let mut internal = 0;
        for scope in &brief.scopes {
            let unknown = || ScopeError::Unknown(scope.id.clone());
            let names = match &scope.names {
                ScopeNames::Servers if scope.id == INTERNAL && internal == 0 => {
                    internal += 1;
                    continue;
                }
                ScopeNames::Servers => return Err(unknown()),
                ScopeNames::Partner(names) => names,
            };
            let name = listed(brief, scope)?;
            bounded(scope, names)?;
            apart(brief, scope, names, &partners)?;
            let compiled = match before.and_then(|before| before.get(name)).filter(|old| old.is_of(scope)) {
                Some(old) => old.clone(),
                None => {
                    Partner::of(name, scope, names).map_err(|error| ScopeError::Pin(scope.id.clone(), error))?.into()
                }
            };
            if partners.insert(name.to_owned(), compiled).is_some() {
                return Err(unknown());
            }
        }
        if partners.len() > MAX_PARTNERS { Err(ScopeError::TooMany) } else { Ok(Self(partners)) }
    }

    /// The partner `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<Partner>> {
        self.0.get(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Partner>> {
        self.0.values()
    }

    fn speaking_for(&self, name: &DnsName) -> Option<&Arc<Partner>> {
        self.0.values().find(|partner| partner.speaks_for(name))
    }
}

/// The partner whose scope this is: one that may call a port of ours. What serves nobody is not kept in memory.
fn listed<'a>(brief: &'a Brief, scope: &Scope) -> Result<&'a str, ScopeError> {
    if !scope.id.starts_with(&partner_scope("")) {
        return Err(ScopeError::Unknown(scope.id.clone()));
    }
    let ports = brief.ports.iter().filter(|port| port.mode == Mode::MutualTls);
    let mut admitted = ports.flat_map(|port| &port.allow.partners);
    let found = admitted.find(|one| partner_scope(&one.name) == scope.id);
    found.map(|one| one.name.as_str()).ok_or_else(|| ScopeError::Unlisted(scope.id.clone()))
}

/// It says no more than a partner's scope can, and not too much of it: what would be ignored is refused.
fn bounded(scope: &Scope, names: &PartnerNames) -> Result<(), ScopeError> {
    let PartnerNames { domains, server_names, public_key_pins, trust_domain: _, web: _ } = names;
    let bounded = (1..=MAX_DOMAINS).contains(&domains.len())
        && server_names.len() <= MAX_EXACT
        && public_key_pins.len() <= MAX_EXACT;
    if !bounded {
        return Err(ScopeError::Names(scope.id.clone()));
    }
    let withdrawn = scope.revocation.as_ref().is_some_and(|revocation| !revocation.withdrawn.is_empty());
    if withdrawn || !scope.issuers.is_empty() { Err(ScopeError::Ours(scope.id.clone())) } else { Ok(()) }
}

/// Its names are nobody else's, in neither direction: not ours, and of no partner before it.
fn apart(
    brief: &Brief,
    scope: &Scope,
    names: &PartnerNames,
    partners: &BTreeMap<String, Arc<Partner>>,
) -> Result<(), ScopeError> {
    let ours: Vec<&DnsName> = std::iter::once(brief.identity.trust_domain()).chain(&brief.names).collect();
    for domain in &names.domains {
        if ours.iter().any(|own| overlap(own, domain)) {
            return Err(ScopeError::Overlap(INTERNAL.to_owned(), scope.id.clone()));
        }
        if let Some(other) = partners.values().find(|other| other.domains().iter().any(|one| overlap(one, domain))) {
            return Err(ScopeError::Overlap(partner_scope(other.name()), scope.id.clone()));
        }
    }
    Ok(())
}

fn overlap(one: &DnsName, other: &DnsName) -> bool {
    one.is_within(other) || other.is_within(one)
}

/// All that callers of one proxy are judged in.
#[derive(Clone, Copy, Debug)]
pub struct Scopes<'a> {
    /// Our own trust domain.
    pub ours: &'a DnsName,
    /// The roots of scope `internal`.
    pub internal: &'a Anchors,
    /// The others.
    pub partners: &'a Partners,
}

enum Chosen<'a> {
    Internal,
    Partner(&'a Partner),
}

impl<'a> Scopes<'a> {
    /// Judges the chain of whoever dialled a port that lists `allow`, in one scope.
    pub fn caller(&self, chain: &[CertificateDer<'_>], allow: &Allow, now: Timestamp) -> Result<Proven, Refusal> {
        // A port without partners leaves no choice.
        let chosen = if allow.partners.is_empty() {
            Chosen::Internal
        } else {
            let parsed = open(chain)?;
            self.choose(parsed.first().ok_or(Refusal::NoCertificate)?, allow)?
        };
        match chosen {
            Chosen::Internal => {
                let proven = verdict(chain, Role::Client, self.internal, now)?;
                self.nobody_elses(&proven.identity)?;
                Ok(proven.into())
            }
            Chosen::Partner(partner) => partner.verdict(chain, Role::Client, now),
        }
    }

    /// The one scope that the names in a leaf belong to, where the port lists it.
    fn choose(&self, leaf: &X509Certificate<'_>, allow: &Allow) -> Result<Chosen<'a>, Refusal> {
        let LeafNames { uris, dns_names } = LeafNames::of(leaf)?;
        let ours = |uri: &String| SpiffeId::parse(uri).is_ok_and(|id| id.trust_domain() == self.ours);
        if !uris.is_empty() {
            let listed = allow.all_declared || !allow.servers.is_empty();
            let internal = uris.iter().all(ours) && !dns_names.iter().any(|name| self.is_a_partners(name));
            return if internal && listed { Ok(Chosen::Internal) } else { Err(Refusal::NameOutOfScope) };
        }
        let first = dns_names.first().and_then(|name| self.partners.speaking_for(name));
        let partner = first.filter(|partner| dns_names.iter().all(|name| partner.speaks_for(name)));
        let listed = partner.filter(|partner| allow.partner(partner.name()).is_some());
        listed.map(|partner| Chosen::Partner(partner)).ok_or(Refusal::NameOutOfScope)
    }

    /// What our own authority vouches for is no partner's name.
    fn nobody_elses(&self, identity: &Identity) -> Result<(), Refusal> {
        let foreign = identity.dns_names.iter().any(|name| self.is_a_partners(name));
        if foreign { Err(Refusal::NameOutOfScope) } else { Ok(()) }
    }

    fn is_a_partners(&self, name: &DnsName) -> bool {
        self.partners.speaking_for(name).is_some()
    }
}

impl From<super::Verdict> for Proven {
    fn from(verdict: super::Verdict) -> Self {
        Self { peer: Peer::Server(verdict.identity), valid_until: verdict.valid_until }
    }
}

#[cfg(test)]
pub(super) mod tests;
