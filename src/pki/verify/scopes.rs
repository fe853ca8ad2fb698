//! The scopes of one brief, and which of them judges a caller. It is chosen before any path is built, by the names in
//! the leaf; that grants nothing, since the anchors of this one scope must then vouch for them.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::certificate::X509Certificate;

use super::{Anchors, Partner, PinError, Proven, Role, open, verdict};
use crate::{
    brief::{Allow, Brief, INTERNAL, Mode, PartnerLink, PartnerNames, Scope, ScopeNames, partner_scope},
    identity::{DnsName, Identity, LeafNames, Peer, SpiffeId},
    refusal::Refusal,
};

/// Partners that one brief may tell of.
pub const MAX_PARTNERS: usize = 256;
/// Domains of one partner.
const MAX_DOMAINS: usize = 32;
/// Exact names, and pins, of one partner.
const MAX_EXACT: usize = 64;
/// Edges of one partner.
const MAX_EDGES: usize = 64;

/// The partners of one brief, by name.
#[derive(Clone, Debug, Default)]
pub struct Partners {
    partners: BTreeMap<String, Arc<Partner>>,
    web: Web,
}

/// The roots of the web PKI, parsed once for all scopes that say so and for all briefs that bring the same.
#[derive(Clone, Debug, Default)]
struct Web {
    digest: [u8; 32],
    anchors: Anchors,
}

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
    /// Nobody may call by it, nor be called.
    #[error("no port lists scope {0:?}, and it has no edges")]
    Unlisted(String),
    /// Its names and how it is dealt with do not come together.
    #[error("partner {0:?} must have one scope and one link, with at most {MAX_EDGES} edges")]
    Link(String),
    /// A public CA vouches for everybody.
    #[error("scope {0:?} of the web PKI must have exact names, and no roots of its own")]
    Web(String),
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
        let web = Web::of(brief, before.map(|before| &before.web));
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
            let PartnerLink { name, standing, .. } = linked(brief, scope)?;
            bounded(scope, names)?;
            apart(brief, scope, names, &partners)?;
            let same = |old: &&Arc<Partner>| old.is_of(*standing, scope, &web.anchors);
            let compiled = match before.and_then(|before| before.get(name)).filter(same) {
                Some(old) => old.clone(),
                None => Partner::of(name, *standing, scope, names, &web.anchors)
                    .map_err(|error| ScopeError::Pin(scope.id.clone(), error))?
                    .into(),
            };
            if partners.insert(name.clone(), compiled).is_some() {
                return Err(unknown());
            }
        }
        // Each scope has its one link, so that one more link has no scope.
        if let Some(link) = brief.partners.iter().find(|link| !partners.contains_key(&link.name)) {
            return Err(ScopeError::Link(link.name.clone()));
        }
        if partners.len() > MAX_PARTNERS { Err(ScopeError::TooMany) } else { Ok(Self { partners, web }) }
    }

    /// The partner `name`.
    pub fn get(&self, name: &str) -> Option<&Arc<Partner>> {
        self.partners.get(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Partner>> {
        self.partners.values()
    }

    fn speaking_for(&self, name: &DnsName) -> Option<&Arc<Partner>> {
        self.iter().find(|partner| partner.speaks_for(name))
    }
}

impl Web {
    fn of(brief: &Brief, before: Option<&Self>) -> Self {
        let wanted = |scope: &Scope| matches!(&scope.names, ScopeNames::Partner(names) if names.web);
        if !brief.scopes.iter().any(wanted) {
            return Self::default();
        }
        let mut hash = Sha256::new();
        for root in &brief.web_roots {
            hash.update(root.len().to_be_bytes());
            hash.update(root);
        }
        let digest = hash.finalize().into();
        match before.filter(|before| before.digest == digest) {
            Some(before) => before.clone(),
            None => Self { digest, anchors: Anchors::web(&brief.web_roots) },
        }
    }
}

/// How the partner whose scope this is is dealt with: one that may call a port of ours, or be called. What serves nobody
/// is not kept in memory.
fn linked<'a>(brief: &'a Brief, scope: &Scope) -> Result<&'a PartnerLink, ScopeError> {
    let unknown = || ScopeError::Unknown(scope.id.clone());
    let name = scope.id.strip_prefix(&partner_scope("")).ok_or_else(unknown)?;
    // The name of an object, which is one label: it also names a folder.
    if name.contains('.') || DnsName::parse(name).is_err() {
        return Err(unknown());
    }
    let mut links = brief.partners.iter().filter(|link| link.name == name);
    let (Some(link), None) = (links.next(), links.next()) else { return Err(ScopeError::Link(name.to_owned())) };
    if link.edges.len() > MAX_EDGES {
        return Err(ScopeError::Link(name.to_owned()));
    }
    let mut ports = brief.ports.iter().filter(|port| port.mode == Mode::MutualTls);
    let serves = !link.edges.is_empty() || ports.any(|port| port.allow.partner(name).is_some());
    if serves { Ok(link) } else { Err(ScopeError::Unlisted(scope.id.clone())) }
}

/// It says no more than a partner's scope can, and not too much of it: what would be ignored is refused.
fn bounded(scope: &Scope, names: &PartnerNames) -> Result<(), ScopeError> {
    let PartnerNames { domains, server_names, public_key_pins, trust_domain: _, web } = names;
    let bounded = (1..=MAX_DOMAINS).contains(&domains.len())
        && server_names.len() <= MAX_EXACT
        && public_key_pins.len() <= MAX_EXACT;
    if !bounded {
        return Err(ScopeError::Names(scope.id.clone()));
    }
    if *web && (server_names.is_empty() || !scope.anchors.is_empty()) {
        return Err(ScopeError::Web(scope.id.clone()));
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
    // Trust domains are compared as a whole (SPIFFE-ID §2.1): one that lies below another is a stranger to it.
    let Some(domain) = &names.trust_domain else { return Ok(()) };
    if domain == brief.identity.trust_domain() {
        return Err(ScopeError::Overlap(INTERNAL.to_owned(), scope.id.clone()));
    }
    match partners.values().find(|other| other.trust_domain() == Some(domain)) {
        Some(other) => Err(ScopeError::Overlap(partner_scope(other.name()), scope.id.clone())),
        None => Ok(()),
    }
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

/// The one scope that judges a caller.
#[derive(Clone, Copy, Debug)]
pub enum Chosen<'a> {
    /// Our own trust domain.
    Internal,
    /// This partner's.
    Partner(&'a Partner),
}

impl<'a> Scopes<'a> {
    /// The scope of whoever dialled a port that lists `allow`. No signature is looked at, and nothing is granted.
    pub fn choose(&self, chain: &[CertificateDer<'_>], allow: &Allow) -> Result<Chosen<'a>, Refusal> {
        // A port without partners leaves no choice.
        if allow.partners.is_empty() {
            return Ok(Chosen::Internal);
        }
        let parsed = open(chain)?;
        let chosen = self.chosen(parsed.first().ok_or(Refusal::NoCertificate)?, allow)?;
        if let Chosen::Partner(partner) = chosen {
            partner.stands()?;
        }
        Ok(chosen)
    }

    /// Judges a caller's chain in the scope that was chosen for it.
    pub fn verdict(&self, chosen: Chosen<'_>, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<Proven, Refusal> {
        match chosen {
            Chosen::Internal => {
                let proven = verdict(chain, Role::Client, self.internal, now)?;
                self.nobody_elses(&proven.identity)?;
                Ok(proven.into())
            }
            Chosen::Partner(partner) => partner.caller(chain, now),
        }
    }

    /// The one scope that the names in a leaf belong to, where the port lists it.
    fn chosen(&self, leaf: &X509Certificate<'_>, allow: &Allow) -> Result<Chosen<'a>, Refusal> {
        let LeafNames { uris, dns_names } = LeafNames::of(leaf)?;
        let ours = |uri: &String| SpiffeId::parse(uri).is_ok_and(|id| id.trust_domain() == self.ours);
        if !uris.is_empty() && uris.iter().all(ours) {
            let listed = allow.all_declared || !allow.servers.is_empty();
            let internal = !dns_names.iter().any(|name| self.is_a_partners(name));
            return if internal && listed { Ok(Chosen::Internal) } else { Err(Refusal::NameOutOfScope) };
        }
        let first = match (uris.first(), dns_names.first()) {
            (Some(uri), _) => self.partners.iter().find(|partner| partner.is_claimed_by(uri)),
            (None, Some(name)) => self.partners.speaking_for(name),
            (None, None) => None,
        };
        let speaks_for_all = |partner: &&Arc<Partner>| {
            uris.iter().all(|uri| partner.is_claimed_by(uri)) && dns_names.iter().all(|name| partner.speaks_for(name))
        };
        let partner = first.filter(speaks_for_all);
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
        Self { peer: Arc::new(Peer::Server(verdict.identity)), valid_until: verdict.valid_until }
    }
}

#[cfg(test)]
pub(super) mod tests;
