//! The one verification function: path building by webpki inside one scope, and the certificate policy above it.
//!
//! The same steps for inbound, outbound and every later re-check, in the order that gives the one reason: limits and
//! strict parse, path, policy, names. Topology (who may call what) is the brief's business, after this.

use std::time::Duration;

use jiff::Timestamp;
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::{certificate::X509Certificate, prelude::FromDer, public_key::PublicKey};

use crate::{
    identity::{Identity, SpiffeId},
    pki,
    refusal::{ChainDetail, Refusal, RootDetail, ServerDetail},
};

/// Certificates in a chain, leaf included.
const MAX_CHAIN: usize = 4;
/// Bytes of one certificate.
const MAX_CERTIFICATE: usize = 8 * 1024;
/// Roots of one scope.
const MAX_ANCHORS: usize = 64;

/// The parsed roots of one scope, each with its own validity: webpki does not look inside an anchor.
#[derive(Clone, Debug, Default)]
pub struct Anchors(Vec<Anchor>);

#[derive(Clone, Debug)]
struct Anchor {
    trust: TrustAnchor<'static>,
    not_before: Timestamp,
    not_after: Timestamp,
}

/// Why a root cannot anchor anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// Not PEM of one certificate.
    #[error("root {0} is not a PEM certificate")]
    NotACertificate(usize),
    /// Not a CA, or not allowed to sign certificates (RFC 5280 §4.2.1.3, §4.2.1.9).
    #[error("root {0} is not a certificate authority's")]
    NotACa(usize),
    /// More roots than a scope may have.
    #[error("a scope has at most {MAX_ANCHORS} roots")]
    TooMany,
}

/// The peer's role in the handshake: which purpose its leaf must have (RFC 5280 §4.2.1.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It dialled us.
    Client,
    /// We dialled it.
    Server,
}

/// A chain that verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whom the leaf names.
    pub identity: Identity,
    /// The earliest end of validity in the chain, anchor included.
    pub valid_until: Timestamp,
}

impl Anchors {
    /// Parses the roots of one scope.
    pub fn parse(pems: &[String]) -> Result<Self, AnchorError> {
        if pems.len() > MAX_ANCHORS {
            return Err(AnchorError::TooMany);
        }
        pems.iter().enumerate().map(|(index, pem)| anchor(index, pem)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether nothing is trusted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn valid_at(&self, now: Timestamp) -> Vec<TrustAnchor<'static>> {
        let inside = |anchor: &&Anchor| anchor.not_before <= now && now <= anchor.not_after;
        self.0.iter().filter(inside).map(|anchor| anchor.trust.clone()).collect()
    }

    fn all(&self) -> Vec<TrustAnchor<'static>> {
        self.0.iter().map(|anchor| anchor.trust.clone()).collect()
    }

    fn end_of(&self, trust: &TrustAnchor<'_>) -> Option<Timestamp> {
        let same = |anchor: &&Anchor| {
            anchor.trust.subject == trust.subject
                && anchor.trust.subject_public_key_info == trust.subject_public_key_info
        };
        self.0.iter().filter(same).map(|anchor| anchor.not_after).max()
    }
}

fn anchor(index: usize, pem: &str) -> Result<Anchor, AnchorError> {
    let wrong = || AnchorError::NotACertificate(index);
    let der = pki::certificate(pem).ok_or_else(wrong)?;
    let (_, parsed) = X509Certificate::from_der(&der).map_err(|_| wrong())?;
    let signs = parsed.key_usage().ok().flatten().is_some_and(|usage| usage.value.key_cert_sign());
    let is_ca = parsed.basic_constraints().ok().flatten().is_some_and(|basic| basic.critical && basic.value.ca);
    if !signs || !is_ca {
        return Err(AnchorError::NotACa(index));
    }
    let instant = |seconds| Timestamp::from_second(seconds).map_err(|_| wrong());
    Ok(Anchor {
        trust: webpki::anchor_from_trusted_cert(&der).map_err(|_| wrong())?.to_owned(),
        not_before: instant(parsed.validity().not_before.timestamp())?,
        not_after: instant(parsed.validity().not_after.timestamp())?,
    })
}

/// Judges `chain` (leaf first) of a peer in `role`, inside the one scope that `anchors` are.
pub fn verdict(
    chain: &[CertificateDer<'_>],
    role: Role,
    anchors: &Anchors,
    now: Timestamp,
) -> Result<Verdict, Refusal> {
    let [leaf, intermediates @ ..] = chain else { return Err(Refusal::NoCertificate) };
    if chain.len() > MAX_CHAIN || chain.iter().any(|certificate| certificate.len() > MAX_CERTIFICATE) {
        return Err(Refusal::BadChain(ChainDetail::TooLarge));
    }
    let parsed = chain.iter().map(|der| parse(der)).collect::<Result<Vec<_>, _>>()?;
    if parsed.first().is_some_and(|leaf| leaf.issuer() == leaf.subject() && !leaf.subject().as_raw().is_empty()) {
        // It vouches for itself; webpki would only say that it looks like an authority.
        return Err(Refusal::UntrustedRoot(RootDetail::NoPath));
    }
    let anchored_until = path(leaf, intermediates, role, anchors, now)?;
    policy(&parsed, role)?;
    let identity = Identity::of(leaf)?;
    let ends = parsed.iter().filter_map(|one| Timestamp::from_second(one.validity().not_after.timestamp()).ok());
    let valid_until = ends.fold(anchored_until, Timestamp::min);
    Ok(Verdict { identity, valid_until })
}

/// Whether a verified callee is the declared server: its URI, and the topology name among its DNS names.
pub fn expect_server(identity: &Identity, expected: &SpiffeId) -> Result<(), Refusal> {
    if identity.id != *expected {
        return Err(Refusal::WrongServer(ServerDetail::Uri));
    }
    match expected.topology_name() {
        Some(name) if identity.dns_names.contains(&name) => Ok(()),
        _ => Err(Refusal::WrongServer(ServerDetail::DnsName)),
    }
}

/// The signature algorithms that handshakes and chains may use.
pub fn algorithms() -> WebPkiSupportedAlgorithms {
    aws_lc_rs::default_provider().signature_verification_algorithms
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Refusal> {
    match X509Certificate::from_der(der) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(Refusal::BadChain(ChainDetail::Encoding)),
    }
}

/// Builds the path; answers until when its anchor is valid.
fn path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    role: Role,
    anchors: &Anchors,
    now: Timestamp,
) -> Result<Timestamp, Refusal> {
    let end_entity = EndEntityCert::try_from(leaf).map_err(|_| Refusal::BadChain(ChainDetail::Encoding))?;
    let usage = || match role {
        Role::Client => KeyUsage::client_auth(),
        Role::Server => KeyUsage::server_auth(),
    };
    let time = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default()));
    let algorithms = algorithms().all;
    let build = |trusted: &[TrustAnchor<'static>]| {
        end_entity
            .verify_for_usage(algorithms, trusted, intermediates, time, usage(), None, None)
            .map(|path| anchors.end_of(path.anchor()))
    };
    match build(&anchors.valid_at(now)) {
        Ok(Some(end)) => Ok(end),
        Ok(None) => Err(Refusal::UntrustedRoot(RootDetail::NoPath)),
        Err(webpki::Error::UnknownIssuer) if build(&anchors.all()).is_ok() => {
            Err(Refusal::UntrustedRoot(RootDetail::AnchorExpired))
        }
        Err(error) => Err(reason(&error)),
    }
}

fn reason(error: &webpki::Error) -> Refusal {
    use webpki::Error;
    match error {
        Error::UnknownIssuer => Refusal::UntrustedRoot(RootDetail::NoPath),
        Error::CertExpired { .. } => Refusal::Expired,
        Error::CertNotValidYet { .. } => Refusal::NotYetValid,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => Refusal::WrongUsage,
        Error::InvalidSignatureForPublicKey => Refusal::BadChain(ChainDetail::Signature),
        _ => Refusal::BadChain(ChainDetail::Policy),
    }
}

/// What webpki lets through and we do not: old versions, weak keys, CA leaves, leaves without a purpose.
fn policy(chain: &[X509Certificate<'_>], role: Role) -> Result<(), Refusal> {
    let broken = Err(Refusal::BadChain(ChainDetail::Policy));
    if chain.iter().any(|one| one.version() != x509_parser::x509::X509Version::V3 || !strong_key(one)) {
        return broken;
    }
    let Some(leaf) = chain.first() else { return Err(Refusal::NoCertificate) };
    if leaf.basic_constraints().ok().flatten().is_some_and(|basic| basic.value.ca) {
        return broken;
    }
    let purposes = leaf.extended_key_usage().ok().flatten().ok_or(Refusal::WrongUsage)?;
    let fits = match role {
        Role::Client => purposes.value.client_auth,
        Role::Server => purposes.value.server_auth,
    };
    if fits { Ok(()) } else { Err(Refusal::WrongUsage) }
}

fn strong_key(certificate: &X509Certificate<'_>) -> bool {
    match certificate.public_key().parsed() {
        Ok(PublicKey::EC(point)) => matches!(point.key_size(), 256 | 384),
        Ok(PublicKey::RSA(key)) => key.key_size() >= 2048,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
