//! The one verification function: path building by webpki inside one scope, and the certificate policy above it.
//!
//! The same steps for inbound, outbound and every later re-check, in the order that gives the one reason: limits and
//! strict parse, scope, path, policy, names. Topology (who may call what) is the brief's business, after this.

mod anchors;
mod graft;
mod partner;
pub(super) mod policy;
mod scopes;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use rustls::crypto::{WebPkiSupportedAlgorithms, aws_lc_rs};
use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use self::anchors::Anchor;
pub use self::{
    anchors::{AnchorError, Anchors},
    partner::{Partner, PartnerProblem, PinError},
    policy::Flaw,
    scopes::{Chosen, MAX_PARTNERS, Partners, ScopeError, Scopes},
};
use crate::{
    identity::{Identity, LeafNames, Peer, SpiffeId},
    refusal::{ChainDetail, NameDetail, Refusal, RootDetail, ServerDetail},
};

/// Certificates in a chain, leaf included.
const MAX_CHAIN: usize = 4;
/// Bytes of one certificate.
const MAX_CERTIFICATE: usize = 8 * 1024;

/// The peer's role in the handshake: which purpose its leaf must have (RFC 5280 §4.2.1.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It dialled us.
    Client,
    /// We dialled it.
    Server,
    /// It dialled us with what a public CA certified: these no longer certify clients, so a server's certificate does.
    WebClient,
}

/// A chain that verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whom the leaf names.
    pub identity: Identity,
    /// The earliest end of validity along the path, anchor included.
    pub valid_until: Timestamp,
}

/// A chain that verified, in whichever scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// Whom it proves.
    pub peer: Arc<Peer>,
    /// As in [`Verdict`].
    pub valid_until: Timestamp,
}

/// What is wrong with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The reason, as connections have it.
    #[error("{0}")]
    Refused(Refusal),
    /// The rule that certificate number so-and-so of the chain breaks; the leaf is 0.
    #[error("certificate {0} of the chain: {1}")]
    Flawed(usize, Flaw),
    /// The rule that the chain breaks as a whole.
    #[error("the chain: {0}")]
    Broken(Flaw),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Refused(refusal) => refusal,
            Fault::Flawed(_, flaw) | Fault::Broken(flaw) => flaw.refusal(),
        }
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// Judges `chain` (leaf first) of a peer in `role`, inside the one scope that `anchors` are.
pub fn verdict(
    chain: &[CertificateDer<'_>],
    role: Role,
    anchors: &Anchors,
    now: Timestamp,
) -> Result<Verdict, Refusal> {
    examine(chain, role, anchors, now).map_err(Refusal::from)
}

/// The same, and which rule is broken.
pub fn examine(chain: &[CertificateDer<'_>], role: Role, anchors: &Anchors, now: Timestamp) -> Result<Verdict, Fault> {
    let parsed = open(chain)?;
    let Anchored { until: valid_until, .. } = anchored(chain, &parsed, role, anchors, now)?;
    let [leaf, ..] = chain else { return Err(Refusal::NoCertificate.into()) };
    Ok(Verdict { identity: Identity::of(leaf)?, valid_until })
}

/// Limits and strict parse.
fn open<'a>(chain: &'a [CertificateDer<'_>]) -> Result<Vec<X509Certificate<'a>>, Refusal> {
    if chain.is_empty() {
        return Err(Refusal::NoCertificate);
    }
    if chain.len() > MAX_CHAIN || chain.iter().any(|certificate| certificate.len() > MAX_CERTIFICATE) {
        return Err(Refusal::BadChain(ChainDetail::TooLarge));
    }
    chain.iter().map(|der| parse(der)).collect()
}

/// A chain that a root vouches for.
struct Anchored {
    /// Until when, root included.
    until: Timestamp,
    /// Which certificates of the chain lead to the root, leaf first.
    through: Vec<usize>,
}

/// Path and policy: whether `anchors` vouch for `chain`, which is `parsed`.
fn anchored(
    chain: &[CertificateDer<'_>],
    parsed: &[X509Certificate<'_>],
    role: Role,
    anchors: &Anchors,
    now: Timestamp,
) -> Result<Anchored, Fault> {
    let [leaf, intermediates @ ..] = chain else { return Err(Refusal::NoCertificate.into()) };
    let Some(first) = parsed.first() else { return Err(Refusal::NoCertificate.into()) };
    if first.issuer() == first.subject() && !first.subject().as_raw().is_empty() {
        // It vouches for itself; webpki would only say that it looks like an authority.
        return Err(Refusal::UntrustedRoot(RootDetail::NoPath).into());
    }
    let path = path(leaf, intermediates, role, anchors, now)?;
    // What a peer sends beside its path, as some do with the root or the leaf once more, is nobody's business.
    let taken = path.through.iter().filter_map(|index| Some((*index, parsed.get(*index)?)));
    for (index, one) in taken.clone() {
        let judged = if index == 0 { policy::leaf(one, role) } else { policy::authority(one) };
        judged.map_err(|flaw| Fault::Flawed(index, flaw))?;
    }
    let anchored_until = path.linked(parsed)?;
    let ends = taken.filter_map(|(_, one)| Timestamp::from_second(one.validity().not_after.timestamp()).ok());
    let until = ends.fold(anchored_until, Timestamp::min);
    Ok(Anchored { until, through: path.through })
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

/// Whether the server whose chain this is has the SPIFFE identity `id`, whatever its path, and `anchors` vouch for it: a
/// bundle endpoint of another trust domain.
pub fn endpoint(chain: &[CertificateDer<'_>], id: &str, anchors: &Anchors, now: Timestamp) -> Result<(), Refusal> {
    let parsed = open(chain)?;
    anchored(chain, &parsed, Role::Server, anchors, now)?;
    let leaf = parsed.first().ok_or(Refusal::NoCertificate)?;
    match LeafNames::of(leaf)?.uris.as_slice() {
        [one] if one == id => Ok(()),
        [_] => Err(Refusal::WrongServer(ServerDetail::Uri)),
        [] => Err(Refusal::BadName(NameDetail::NoIdentity)),
        [..] => Err(Refusal::BadName(NameDetail::SeveralIdentities)),
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

/// A path that webpki found: which certificates of the chain it takes, leaf first, and what anchors it.
struct Path<'a> {
    through: Vec<usize>,
    anchors: Vec<&'a Anchor>,
}

impl Path<'_> {
    /// Key identifiers along the path, and the path length of the anchor, which webpki does not look at. Answers until
    /// when the anchor is valid.
    fn linked(&self, chain: &[X509Certificate<'_>]) -> Result<Timestamp, Fault> {
        let at = |index: usize| chain.get(index).ok_or(Fault::Refused(Refusal::BadChain(ChainDetail::Encoding)));
        for pair in self.through.windows(2) {
            let &[below, above] = pair else { continue };
            let identifier = policy::key_identifier(at(above)?).unwrap_or_default();
            policy::signed_with(at(below)?, identifier).map_err(|flaw| Fault::Flawed(below, flaw))?;
        }
        let top = self.through.last().copied().unwrap_or_default();
        let signed =
            |anchor: &&&Anchor| at(top).is_ok_and(|one| policy::signed_with(one, &anchor.key_identifier).is_ok());
        let fitting: Vec<_> = self.anchors.iter().filter(signed).collect();
        if fitting.is_empty() {
            return Err(Fault::Flawed(top, Flaw::ForeignKey));
        }
        // RFC 5280 §4.2.1.9: what is self-issued does not count.
        let counted = |index: &&usize| at(**index).is_ok_and(|one| one.issuer().as_raw() != one.subject().as_raw());
        let between = self.through.iter().skip(1).filter(counted).count();
        let long_enough = |anchor: &&&&Anchor| {
            anchor.path_length.is_none_or(|most| usize::try_from(most).is_ok_and(|most| between <= most))
        };
        let end = fitting.iter().filter(long_enough).map(|anchor| anchor.not_after).max();
        end.ok_or(Fault::Broken(Flaw::PathLength))
    }
}

fn path<'a>(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    role: Role,
    anchors: &'a Anchors,
    now: Timestamp,
) -> Result<Path<'a>, Fault> {
    let end_entity = EndEntityCert::try_from(leaf).map_err(|error| reason(&error))?;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.as_second()).unwrap_or_default()));
    let algorithms = algorithms().all;
    let build_for = |usage, trusted: &[TrustAnchor<'_>]| {
        let path = end_entity.verify_for_usage(algorithms, trusted, intermediates, time, usage, None, None)?;
        let places = path.intermediate_certificates().filter_map(|one| {
            let der = one.der();
            intermediates.iter().position(|candidate| *candidate == der).map(|index| index + 1)
        });
        Ok(Path { through: [0].into_iter().chain(places).collect(), anchors: anchors.behind(path.anchor(), now) })
    };
    let build = |trusted: &[TrustAnchor<'_>]| match role {
        Role::Client => build_for(KeyUsage::client_auth(), trusted),
        Role::Server => build_for(KeyUsage::server_auth(), trusted),
        Role::WebClient => build_for(KeyUsage::server_auth(), trusted)
            .or_else(|error| build_for(KeyUsage::client_auth(), trusted).map_err(|_| error)),
    };
    match build(&anchors.valid_at(now)) {
        Ok(path) => Ok(path),
        Err(webpki::Error::UnknownIssuer) if build(&anchors.all()).is_ok() => {
            Err(Refusal::UntrustedRoot(RootDetail::AnchorExpired).into())
        }
        Err(error) => Err(reason(&error)),
    }
}

fn reason(error: &webpki::Error) -> Fault {
    use webpki::Error;
    let refusal = match error {
        Error::UnknownIssuer => Refusal::UntrustedRoot(RootDetail::NoPath),
        Error::CertExpired { .. } => Refusal::Expired,
        Error::CertNotValidYet { .. } => Refusal::NotYetValid,
        Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => Refusal::WrongUsage,
        Error::InvalidSignatureForPublicKey => Refusal::BadChain(ChainDetail::Signature),
        Error::NameConstraintViolation => return Fault::Broken(Flaw::Constrained),
        Error::PathLenConstraintViolated => return Fault::Broken(Flaw::PathLength),
        Error::UnsupportedCriticalExtension => return Fault::Broken(Flaw::CriticalExtension),
        _ => Refusal::BadChain(ChainDetail::Policy),
    };
    Fault::Refused(refusal)
}

#[cfg(test)]
mod tests;
