//! Who is at the other end of a connection, once a chain has been verified.

use std::{collections::BTreeSet, fmt};

use jiff::Timestamp;
use x509_parser::certificate::X509Certificate;

use super::{DnsName, Identity, LeafNames, issuing_key, validity};
use crate::refusal::{NameDetail, Refusal};

/// The longest SPIFFE ID, in bytes (SPIFFE-ID §2.3).
const MAX_SPIFFE_ID: usize = 2048;

/// Who was proven: what exactly depends on the scope whose anchors vouched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A server of our own trust domain, by its URI.
    Server(Identity),
    /// A partner, by the names that its anchors may vouch for.
    Partner(PartnerIdentity),
}

/// What a leaf says of a partner. It proves nothing until the chain above it has been verified in that partner's scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartnerIdentity {
    /// Name of the `FederationPartner`.
    pub partner: String,
    /// The DNS names in its certificate. Without any there is a SPIFFE ID.
    pub dns_names: BTreeSet<DnsName>,
    /// The SPIFFE ID in its certificate, of the trust domain that is the partner's.
    pub spiffe_id: Option<String>,
    /// The certificate's serial number, big-endian without leading zeros.
    pub serial: Vec<u8>,
    /// Key identifier of the issuer, hex, where there is one.
    pub issuer: Option<String>,
    /// The authorities between it and the root.
    pub through: Vec<Between>,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
}

/// An authority between a leaf and its root: what a list may have taken back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Between {
    /// Key identifier of its issuer, hex, where there is one.
    pub issuer: Option<String>,
    /// Its serial number, big-endian without leading zeros.
    pub serial: Vec<u8>,
}

impl Between {
    fn of(authority: &X509Certificate<'_>) -> Self {
        Self { issuer: issuing_key(authority), serial: authority.tbs_certificate.serial.to_bytes_be() }
    }
}

impl PartnerIdentity {
    /// Reads a leaf of `partner` and the authorities above it: DNS names, where the partner has a SPIFFE trust domain at
    /// most one ID of that, and never the subject.
    pub fn of(
        partner: &str,
        trust_domain: Option<&DnsName>,
        leaf: &X509Certificate<'_>,
        through: &[&X509Certificate<'_>],
    ) -> Result<Self, Refusal> {
        let LeafNames { uris, dns_names } = LeafNames::of(leaf)?;
        let spiffe_id = match (&uris[..], trust_domain) {
            ([], _) => None,
            (_, None) => return Err(Refusal::BadName(NameDetail::Kind)),
            ([uri], Some(domain)) => Some(of_trust_domain(uri, domain)?),
            _ => return Err(Refusal::BadName(NameDetail::SeveralIdentities)),
        };
        if dns_names.is_empty() && spiffe_id.is_none() {
            return Err(Refusal::BadName(NameDetail::NoIdentity));
        }
        let (not_before, not_after) = validity(leaf)?;
        Ok(Self {
            partner: partner.to_owned(),
            dns_names,
            spiffe_id,
            serial: leaf.tbs_certificate.serial.to_bytes_be(),
            issuer: issuing_key(leaf),
            through: through.iter().map(|one| Between::of(one)).collect(),
            not_before,
            not_after,
        })
    }

    /// All that it is called in its certificate.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.spiffe_id.as_deref().into_iter().chain(self.dns_names.iter().map(DnsName::as_str))
    }
}

/// `uri`, where it is a SPIFFE ID of `domain` with a path: the ID of a trust domain itself is nobody's leaf
/// (X509-SVID §5.2).
fn of_trust_domain(uri: &str, domain: &DnsName) -> Result<String, Refusal> {
    let rest = uri.strip_prefix("spiffe://").and_then(|rest| rest.strip_prefix(domain.as_str()));
    let path = rest.filter(|path| path.is_empty() || path.starts_with('/')).ok_or(Refusal::NameOutOfScope)?;
    let fits = uri.len() <= MAX_SPIFFE_ID && path.starts_with('/') && path.split('/').skip(1).all(is_segment);
    if fits { Ok(uri.to_owned()) } else { Err(Refusal::BadName(NameDetail::Grammar)) }
}

/// A segment of a SPIFFE ID's path (SPIFFE-ID §2.2); nothing is decoded or normalised.
fn is_segment(segment: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    !matches!(segment, "" | "." | "..") && segment.bytes().all(inner)
}

impl Peer {
    /// The server's identity, where it is one of ours.
    pub const fn server(&self) -> Option<&Identity> {
        match self {
            Self::Server(identity) => Some(identity),
            Self::Partner(_) => None,
        }
    }

    /// UID of the pod, where the certificate names one.
    pub fn pod_uid(&self) -> Option<&str> {
        self.server()?.pod_uid.as_deref()
    }

    /// The certificate's serial number.
    pub fn serial(&self) -> &[u8] {
        match self {
            Self::Server(identity) => &identity.serial,
            Self::Partner(partner) => &partner.serial,
        }
    }

    /// End of the certificate's validity.
    pub const fn not_after(&self) -> Timestamp {
        match self {
            Self::Server(identity) => identity.not_after,
            Self::Partner(partner) => partner.not_after,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Server(identity) => identity.id.fmt(f),
            Self::Partner(partner) => write!(f, "partner/{}", partner.partner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spiffe_id_is_of_one_trust_domain_and_has_a_path_of_plain_segments() {
        let domain = DnsName::parse("fabrikam.example").unwrap();
        let outside = Err(Refusal::NameOutOfScope);
        let grammar = Err(Refusal::BadName(NameDetail::Grammar));
        let long = format!("spiffe://fabrikam.example/{}", "a".repeat(MAX_SPIFFE_ID));
        for (uri, expected) in [
            ("spiffe://fabrikam.example/ns/Web_1/sa/a-b.c", Ok(())),
            ("spiffe://fabrikam.example/a", Ok(())),
            ("spiffe://fabrikam.example", grammar),
            ("spiffe://fabrikam.example/", grammar),
            ("spiffe://fabrikam.example/a/", grammar),
            ("spiffe://fabrikam.example/a//b", grammar),
            ("spiffe://fabrikam.example/./a", grammar),
            ("spiffe://fabrikam.example/../a", grammar),
            ("spiffe://fabrikam.example/a%2fb", grammar),
            ("spiffe://fabrikam.example/a?b", grammar),
            ("spiffe://fabrikam.example/a#b", grammar),
            ("spiffe://fabrikam.example/ä", grammar),
            (&long, grammar),
            ("spiffe://fabrikam.example:443/a", outside),
            ("spiffe://user@fabrikam.example/a", outside),
            ("spiffe://sub.fabrikam.example/a", outside),
            ("spiffe://fabrikam.example.evil/a", outside),
            ("spiffe://Fabrikam.example/a", outside),
            ("SPIFFE://fabrikam.example/a", outside),
            ("https://fabrikam.example/a", outside),
        ] {
            assert_eq!(of_trust_domain(uri, &domain).map(drop), expected, "{uri}");
        }
    }
}
