//! One partner's scope: its anchors alone, and they for its names alone.

use std::sync::Arc;

use base64::prelude::{BASE64_STANDARD, Engine};
use jiff::Timestamp;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};

use super::{AnchorError, Anchored, Anchors, Proven, Role, anchored, graft, open};
use crate::{
    brief::{PartnerNames, PartnerStanding, Scope},
    identity::{DnsName, PartnerIdentity, Peer},
    pki::revocation::{View, ViewError},
    refusal::Refusal,
};

/// A partner's scope, compiled.
#[derive(Debug)]
pub struct Partner {
    name: String,
    standing: PartnerStanding,
    scope: Scope,
    names: PartnerNames,
    pins: Vec<[u8; 32]>,
    anchors: Anchors,
    view: View,
    problems: Vec<PartnerProblem>,
}

/// What is wrong with a partner's trust. It costs that partner alone: the brief stands without it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartnerProblem {
    /// This root is left out.
    #[error(transparent)]
    Anchor(#[from] AnchorError),
    /// What it took back cannot be read, so nobody is believed.
    #[error(transparent)]
    Revocations(#[from] ViewError),
}

/// A pin that is no hash.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a pin must be the base64 of a SHA-256 hash")]
pub struct PinError;

impl Partner {
    /// Compiles `scope`, which is that of the partner `name`. `web` are the roots of the web PKI.
    pub(super) fn of(
        name: &str,
        standing: PartnerStanding,
        scope: &Scope,
        names: &PartnerNames,
        web: &Anchors,
    ) -> Result<Self, PinError> {
        let (anchors, flaws) = if names.web { (web.clone(), vec![]) } else { Anchors::usable(&scope.anchors) };
        let mut anchors = anchors.constrained(graft::constraints(&names.domains, names.trust_domain.is_some()));
        let mut problems: Vec<_> = flaws.into_iter().map(PartnerProblem::from).collect();
        let view = View::of(scope).unwrap_or_else(|error| {
            problems.push(error.into());
            anchors = Anchors::default();
            View::default()
        });
        Ok(Self {
            name: name.to_owned(),
            standing,
            scope: scope.clone(),
            names: names.clone(),
            pins: names.public_key_pins.iter().map(|pin| hash(pin)).collect::<Result<_, _>>()?,
            anchors,
            view,
            problems,
        })
    }

    /// Name of the `FederationPartner`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it is trusted at all now.
    pub const fn stands(&self) -> Result<(), Refusal> {
        match self.standing {
            PartnerStanding::Active => Ok(()),
            PartnerStanding::Suspended => Err(Refusal::PartnerSuspended),
            PartnerStanding::Expired => Err(Refusal::PartnerExpired),
        }
    }

    /// The domains whose names it may speak for.
    pub(super) fn domains(&self) -> &[DnsName] {
        &self.names.domains
    }

    /// Its SPIFFE trust domain, where it has one.
    pub(super) const fn trust_domain(&self) -> Option<&DnsName> {
        self.names.trust_domain.as_ref()
    }

    /// What is wrong with its roots and revocations.
    pub fn problems(&self) -> &[PartnerProblem] {
        &self.problems
    }

    /// Whether it was compiled of just this.
    pub(super) fn is_of(&self, standing: PartnerStanding, scope: &Scope, web: &Anchors) -> bool {
        self.standing == standing && self.scope == *scope && (!self.names.web || self.anchors.shares(web))
    }

    /// Whether `name` is one that it may speak for.
    pub(super) fn speaks_for(&self, name: &DnsName) -> bool {
        self.names.domains.iter().any(|domain| name.is_within(domain))
    }

    /// Whether `uri` claims to be an ID of its SPIFFE trust domain.
    pub(super) fn is_claimed_by(&self, uri: &str) -> bool {
        let authority = uri.strip_prefix("spiffe://").map(|rest| rest.split('/').next().unwrap_or_default());
        self.trust_domain().is_some_and(|domain| authority == Some(domain.as_str()))
    }

    /// Judges the chain of one that dialled us: standing, path and policy, names, pins.
    pub fn caller(&self, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<Proven, Refusal> {
        self.verdict(chain, if self.names.web { Role::WebClient } else { Role::Client }, now)
    }

    /// The same of whoever answered where one of its edges was dialled.
    pub fn callee(&self, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<Proven, Refusal> {
        self.verdict(chain, Role::Server, now)
    }

    fn verdict(&self, chain: &[CertificateDer<'_>], role: Role, now: Timestamp) -> Result<Proven, Refusal> {
        self.stands()?;
        let parsed = open(chain)?;
        let Anchored { until: valid_until, through } = anchored(chain, &parsed, role, &self.anchors, now)?;
        let leaf = parsed.first().ok_or(Refusal::NoCertificate)?;
        let above: Vec<_> = through.iter().skip(1).filter_map(|index| parsed.get(*index)).collect();
        let identity = PartnerIdentity::of(&self.name, self.trust_domain(), leaf, &above)?;
        if !self.fits(&identity) {
            return Err(Refusal::NameOutOfScope);
        }
        let key: [u8; 32] = Sha256::digest(leaf.public_key().raw).into();
        if !self.pins.is_empty() && !self.pins.contains(&key) {
            return Err(Refusal::PinMismatch);
        }
        Ok(Proven { peer: Arc::new(Peer::Partner(identity)), valid_until })
    }

    /// Every DNS name inside the domains, and one of the exact names where there are any.
    fn fits(&self, identity: &PartnerIdentity) -> bool {
        let expected = &self.names.server_names;
        identity.dns_names.iter().all(|name| self.speaks_for(name))
            && (expected.is_empty() || expected.iter().any(|name| identity.dns_names.contains(name)))
    }

    /// What it has taken back.
    pub fn view(&self) -> &View {
        &self.view
    }
}

fn hash(pin: &str) -> Result<[u8; 32], PinError> {
    BASE64_STANDARD.decode(pin).ok().and_then(|bytes| bytes.try_into().ok()).ok_or(PinError)
}
