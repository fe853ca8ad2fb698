//! Who is at the other end of a connection, once a chain has been verified.

use std::{collections::BTreeSet, fmt};

use jiff::Timestamp;
use x509_parser::certificate::X509Certificate;

use super::{DnsName, Identity, LeafNames, issuing_key, validity};
use crate::refusal::{NameDetail, Refusal};

/// Who was proven: what exactly depends on the scope whose anchors vouched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// A server of our own trust domain, by its URI.
    Server(Identity),
    /// A partner, by the DNS names that its anchors may vouch for.
    Partner(PartnerIdentity),
}

/// What a leaf says of a partner. It proves nothing until the chain above it has been verified in that partner's scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartnerIdentity {
    /// Name of the `FederationPartner`.
    pub partner: String,
    /// The names in its certificate, at least one.
    pub dns_names: BTreeSet<DnsName>,
    /// The certificate's serial number, big-endian without leading zeros.
    pub serial: Vec<u8>,
    /// Key identifier of the issuer, hex, where there is one.
    pub issuer: Option<String>,
    /// Start of validity.
    pub not_before: Timestamp,
    /// End of validity.
    pub not_after: Timestamp,
}

impl PartnerIdentity {
    /// Reads a leaf of `partner`: DNS names only, at least one, and never the subject.
    pub fn of(partner: &str, leaf: &X509Certificate<'_>) -> Result<Self, Refusal> {
        let LeafNames { uris, dns_names } = LeafNames::of(leaf)?;
        if !uris.is_empty() {
            return Err(Refusal::BadName(NameDetail::Kind));
        }
        if dns_names.is_empty() {
            return Err(Refusal::BadName(NameDetail::NoIdentity));
        }
        let (not_before, not_after) = validity(leaf)?;
        Ok(Self {
            partner: partner.to_owned(),
            dns_names,
            serial: leaf.tbs_certificate.serial.to_bytes_be(),
            issuer: issuing_key(leaf),
            not_before,
            not_after,
        })
    }
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
