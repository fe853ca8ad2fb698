//! The roots of one scope. webpki does not look inside an anchor, so that is done here, once.

use std::sync::Arc;

use jiff::Timestamp;
use rustls_pki_types::{Der, TrustAnchor};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::policy::{self, Flaw};
use crate::pki;

/// Roots of one scope.
const MAX_ANCHORS: usize = 64;
/// Roots of the web PKI.
const MAX_WEB_ROOTS: usize = 512;

/// The parsed roots of one scope, each with its own validity.
#[derive(Clone, Debug, Default)]
pub struct Anchors {
    roots: Arc<[Anchor]>,
    /// Name constraints of those that constrain nothing themselves. They are put on when a path is built, so that
    /// scopes may share the roots.
    graft: Option<Der<'static>>,
}

#[derive(Clone, Debug)]
pub(super) struct Anchor {
    trust: TrustAnchor<'static>,
    not_before: Timestamp,
    pub(super) not_after: Timestamp,
    pub(super) key_identifier: Vec<u8>,
    /// How many authorities may stand between it and a leaf.
    pub(super) path_length: Option<u32>,
}

/// Why a root cannot anchor anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// Not PEM of one certificate.
    #[error("root {0} is not a PEM certificate")]
    NotACertificate(usize),
    /// It breaks a rule of the certificate policy.
    #[error("root {0} cannot be trusted: {1}")]
    Flawed(usize, Flaw),
    /// More roots than a scope may have.
    #[error("a scope has at most {MAX_ANCHORS} roots")]
    TooMany,
}

impl Anchors {
    /// Parses the roots of one scope.
    pub fn parse(pems: &[String]) -> Result<Self, AnchorError> {
        if pems.len() > MAX_ANCHORS {
            return Err(AnchorError::TooMany);
        }
        let roots = pems.iter().enumerate().map(|(index, pem)| anchor(index, pem)).collect::<Result<_, _>>()?;
        Ok(Self { roots, graft: None })
    }

    /// Parses the roots of a partner's scope. One that cannot be used is left out, and told.
    pub(super) fn usable(pems: &[String]) -> (Self, Vec<AnchorError>) {
        if pems.len() > MAX_ANCHORS {
            return (Self::default(), vec![AnchorError::TooMany]);
        }
        let (mut roots, mut left_out) = (vec![], vec![]);
        for (index, pem) in pems.iter().enumerate() {
            match anchor(index, pem) {
                Ok(one) => roots.push(one),
                Err(error) => left_out.push(error),
            }
        }
        (Self { roots: roots.into(), graft: None }, left_out)
    }

    /// Parses the roots of the web PKI. What others put into their stores and we cannot use is left out silently.
    pub(super) fn web(pems: &[String]) -> Self {
        let usable = pems.iter().take(MAX_WEB_ROOTS).enumerate().filter_map(|(index, pem)| anchor(index, pem).ok());
        Self { roots: usable.collect(), graft: None }
    }

    /// The same roots, constrained by `graft` where they do not constrain themselves.
    pub(super) fn constrained(&self, graft: Der<'static>) -> Self {
        Self { roots: self.roots.clone(), graft: Some(graft) }
    }

    /// Whether both are the same roots in memory.
    pub(super) fn shares(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.roots, &other.roots)
    }

    /// The subjects, DER without their outer SEQUENCE.
    pub fn subjects(&self) -> impl Iterator<Item = &[u8]> {
        self.roots.iter().map(|anchor| anchor.trust.subject.as_ref())
    }

    /// Whether nothing is trusted.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    pub(super) fn valid_at(&self, now: Timestamp) -> Vec<TrustAnchor<'_>> {
        self.roots.iter().filter(|anchor| anchor.is_valid(now)).map(|anchor| self.trust(anchor)).collect()
    }

    pub(super) fn all(&self) -> Vec<TrustAnchor<'_>> {
        self.roots.iter().map(|anchor| self.trust(anchor)).collect()
    }

    /// `anchor` as webpki takes it: borrowed, and constrained.
    fn trust<'a>(&'a self, anchor: &'a Anchor) -> TrustAnchor<'a> {
        let TrustAnchor { subject, subject_public_key_info, name_constraints } = &anchor.trust;
        let constraints = name_constraints.as_ref().or(self.graft.as_ref());
        TrustAnchor {
            subject: Der::from_slice(subject),
            subject_public_key_info: Der::from_slice(subject_public_key_info),
            name_constraints: constraints.map(|constraints| Der::from_slice(constraints)),
        }
    }

    /// The certificates behind an anchor that webpki chose: several where a root was renewed with the same key.
    pub(super) fn behind(&self, trust: &TrustAnchor<'_>, now: Timestamp) -> Vec<&Anchor> {
        let same = |anchor: &&Anchor| {
            anchor.is_valid(now)
                && anchor.trust.subject == trust.subject
                && anchor.trust.subject_public_key_info == trust.subject_public_key_info
        };
        self.roots.iter().filter(same).collect()
    }
}

impl Anchor {
    fn is_valid(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

fn anchor(index: usize, pem: &str) -> Result<Anchor, AnchorError> {
    let wrong = || AnchorError::NotACertificate(index);
    let der = pki::certificate(pem).ok_or_else(wrong)?;
    let Ok(([], parsed)) = X509Certificate::from_der(&der) else { return Err(wrong()) };
    policy::root(&parsed).map_err(|flaw| AnchorError::Flawed(index, flaw))?;
    let instant = |seconds| Timestamp::from_second(seconds).map_err(|_| wrong());
    Ok(Anchor {
        trust: webpki::anchor_from_trusted_cert(&der).map_err(|_| wrong())?.to_owned(),
        not_before: instant(parsed.validity().not_before.timestamp())?,
        not_after: instant(parsed.validity().not_after.timestamp())?,
        key_identifier: policy::key_identifier(&parsed).unwrap_or_default().to_vec(),
        path_length: parsed.basic_constraints().ok().flatten().and_then(|basic| basic.value.path_len_constraint),
    })
}
