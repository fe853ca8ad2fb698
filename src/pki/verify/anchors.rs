//! The roots of one scope. webpki does not look inside an anchor, so that is done here, once.

use jiff::Timestamp;
use rustls_pki_types::TrustAnchor;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{
    graft,
    policy::{self, Flaw},
};
use crate::{identity::DnsName, pki};

/// Roots of one scope.
const MAX_ANCHORS: usize = 64;

/// The parsed roots of one scope, each with its own validity.
#[derive(Clone, Debug, Default)]
pub struct Anchors(Vec<Anchor>);

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
        pems.iter().enumerate().map(|(index, pem)| anchor(index, pem)).collect::<Result<_, _>>().map(Self)
    }

    /// Parses the roots of a partner's scope, each constrained to names within `domains` unless it constrains itself.
    /// One that cannot be used is left out, and told.
    pub(super) fn grafted(pems: &[String], domains: &[DnsName]) -> (Self, Vec<AnchorError>) {
        if pems.len() > MAX_ANCHORS {
            return (Self::default(), vec![AnchorError::TooMany]);
        }
        let (mut anchors, mut left_out) = (vec![], vec![]);
        for (index, pem) in pems.iter().enumerate() {
            match anchor(index, pem) {
                Ok(mut one) => {
                    one.trust.name_constraints.get_or_insert_with(|| graft::constraints(domains));
                    anchors.push(one);
                }
                Err(error) => left_out.push(error),
            }
        }
        (Self(anchors), left_out)
    }

    /// Whether nothing is trusted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn valid_at(&self, now: Timestamp) -> Vec<TrustAnchor<'static>> {
        self.0.iter().filter(|anchor| anchor.is_valid(now)).map(|anchor| anchor.trust.clone()).collect()
    }

    pub(super) fn all(&self) -> Vec<TrustAnchor<'static>> {
        self.0.iter().map(|anchor| anchor.trust.clone()).collect()
    }

    /// The certificates behind an anchor that webpki chose: several where a root was renewed with the same key.
    pub(super) fn behind(&self, trust: &TrustAnchor<'_>, now: Timestamp) -> Vec<&Anchor> {
        let same = |anchor: &&Anchor| {
            anchor.is_valid(now)
                && anchor.trust.subject == trust.subject
                && anchor.trust.subject_public_key_info == trust.subject_public_key_info
        };
        self.0.iter().filter(same).collect()
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
