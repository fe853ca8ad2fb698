//! The authority of a trust domain: root → issuing intermediate → leaves. Every certificate template stands here;
//! clock, serials and keys are arguments.

use std::{collections::BTreeSet, fmt};

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::{certificate, csr::Granted, hex, offset, sha256_hex, shift};
use crate::identity::DnsName;

/// Authorities are dated this far back, in seconds, for clocks that lag.
const SKEW: i64 = 300;
const DAY: i64 = 86_400;
/// No leaf may end later than this before its issuer does, in seconds.
const ISSUER_RESERVE: i64 = 3_600;

/// A certificate's serial number: 127 random bits, never zero (RFC 5280 §4.1.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(pub(super) [u8; 16]);

impl Serial {
    /// Makes a positive, non-zero serial of 16 random bytes.
    pub const fn from_random(mut bytes: [u8; 16]) -> Self {
        // A set second bit keeps the length at 16 bytes and the value from zero; the top bit is the sign.
        bytes[0] = (bytes[0] & 0x7f) | 0x40;
        Self(bytes)
    }

    /// Reads back what `Display` wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        if text.len() != 32 || !text.is_ascii() {
            return None;
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(index * 2..index * 2 + 2)?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// What the authority's Secret holds, PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    /// The root certificate.
    pub root_certificate: String,
    /// Its key, PKCS#8.
    pub root_key: String,
    /// The issuing intermediate.
    pub issuer_certificate: String,
    /// Its key, PKCS#8.
    pub issuer_key: String,
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").finish_non_exhaustive()
    }
}

/// What an authority is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Its trust domain.
    pub trust_domain: DnsName,
    /// DNS names below which the intermediate may vouch (name constraints, RFC 5280 §4.2.1.10).
    pub permitted: Vec<DnsName>,
    /// Days that a new root lives.
    pub root_days: u32,
    /// Days that a new intermediate lives.
    pub issuer_days: u32,
}

/// Why an authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A part is missing or no PEM of its kind.
    #[error("{0} is not readable PEM")]
    Unreadable(&'static str),
    /// A key does not belong to its certificate.
    #[error("{0} does not belong to its certificate")]
    KeyMismatch(&'static str),
    /// The intermediate is not signed by the root.
    #[error("the issuing certificate is not signed by the root")]
    BrokenChain,
    /// Outside its validity.
    #[error("{0} is outside its validity")]
    OutOfDate(&'static str),
    /// The certificate library refused.
    #[error("could not make a certificate")]
    Make(#[from] rcgen::Error),
}

/// Why a leaf is not signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The intermediate ends too soon for any leaf.
    #[error("the issuing certificate is too near its end")]
    IssuerEnds,
    /// The certificate library refused.
    #[error("could not sign")]
    Make(#[from] rcgen::Error),
}

/// An authority that can sign, with every check behind it.
pub struct Authority {
    root_pem: String,
    root_der: CertificateDer<'static>,
    issuer_pem: String,
    issuer: Issuer<'static, KeyPair>,
    key_id: String,
    root_not_before: Timestamp,
    root_not_after: Timestamp,
    issuer_not_before: Timestamp,
    issuer_not_after: Timestamp,
    permitted: BTreeSet<DnsName>,
}

/// When a leaf is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Start.
    pub not_before: Timestamp,
    /// End.
    pub not_after: Timestamp,
}

/// A signed leaf with its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// PEM certificates: the leaf, then the intermediate.
    pub chain: Vec<String>,
}

/// Makes a new authority: a root and its first intermediate.
pub fn create(
    terms: &Terms,
    [root_key, issuer_key]: [KeyPair; 2],
    serials: [Serial; 2],
    now: Timestamp,
) -> Result<Material, AuthorityError> {
    let params = root_template(terms, &root_key, serials[0], now);
    let root_certificate = params.self_signed(&root_key)?.pem();
    let root = Issuer::new(params, &root_key);
    let issuer_certificate = issuer_template(terms, &issuer_key, serials[1], now, i64::from(terms.root_days) * DAY)
        .signed_by(&issuer_key, &root)?
        .pem();
    Ok(Material {
        root_certificate,
        root_key: root_key.serialize_pem(),
        issuer_certificate,
        issuer_key: issuer_key.serialize_pem(),
    })
}

/// Makes the next intermediate under the same root.
pub fn renew_issuer(
    material: &Material,
    terms: &Terms,
    issuer_key: &KeyPair,
    serial: Serial,
    now: Timestamp,
) -> Result<Material, AuthorityError> {
    let loaded = Authority::load(material, now)?;
    let root_key = KeyPair::from_pem(&material.root_key).map_err(|_| AuthorityError::Unreadable("the root's key"))?;
    let root = Issuer::from_ca_cert_pem(&material.root_certificate, root_key)?;
    let left = loaded.root_not_after.as_second() - now.as_second();
    let issuer_certificate = issuer_template(terms, issuer_key, serial, now, left).signed_by(issuer_key, &root)?.pem();
    Ok(Material { issuer_certificate, issuer_key: issuer_key.serialize_pem(), ..material.clone() })
}

impl Authority {
    /// Loads an authority from its Secret; every way in which it can be broken has its own answer.
    pub fn load(material: &Material, now: Timestamp) -> Result<Self, AuthorityError> {
        let root_der =
            certificate(&material.root_certificate).ok_or(AuthorityError::Unreadable("the root certificate"))?;
        let issuer_der =
            certificate(&material.issuer_certificate).ok_or(AuthorityError::Unreadable("the issuing certificate"))?;
        let root_key =
            KeyPair::from_pem(&material.root_key).map_err(|_| AuthorityError::Unreadable("the root's key"))?;
        let issuer_key =
            KeyPair::from_pem(&material.issuer_key).map_err(|_| AuthorityError::Unreadable("the issuer's key"))?;
        let (_, root) =
            X509Certificate::from_der(&root_der).map_err(|_| AuthorityError::Unreadable("the root certificate"))?;
        let (_, issuer) = X509Certificate::from_der(&issuer_der)
            .map_err(|_| AuthorityError::Unreadable("the issuing certificate"))?;
        if root.public_key().raw != root_key.subject_public_key_info() {
            return Err(AuthorityError::KeyMismatch("the root's key"));
        }
        if issuer.public_key().raw != issuer_key.subject_public_key_info() {
            return Err(AuthorityError::KeyMismatch("the issuer's key"));
        }
        issuer.verify_signature(Some(root.public_key())).map_err(|_| AuthorityError::BrokenChain)?;
        let (root_not_before, root_not_after) = validity(&root, "the root certificate", now)?;
        let (issuer_not_before, issuer_not_after) = validity(&issuer, "the issuing certificate", now)?;
        let key_id = hex(&key_identifier(&issuer_key));
        Ok(Self {
            root_pem: super::bundle::encode(&root_der),
            issuer_pem: super::bundle::encode(&issuer_der),
            issuer: Issuer::from_ca_cert_der(&issuer_der, issuer_key)?,
            root_der: root_der.clone(),
            key_id,
            root_not_before,
            root_not_after,
            issuer_not_before,
            issuer_not_after,
            permitted: permitted(&issuer),
        })
    }

    /// The subject key identifier of the issuing key, hex.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The root certificate, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// SHA-256 of the root certificate, hex.
    pub fn root_sha256(&self) -> String {
        sha256_hex(&self.root_der)
    }

    /// When the root is valid.
    pub const fn root_validity(&self) -> Validity {
        Validity { not_before: self.root_not_before, not_after: self.root_not_after }
    }

    /// When the intermediate is valid.
    pub const fn issuer_validity(&self) -> Validity {
        Validity { not_before: self.issuer_not_before, not_after: self.issuer_not_after }
    }

    /// The DNS names below which the intermediate may vouch.
    pub const fn permitted(&self) -> &BTreeSet<DnsName> {
        &self.permitted
    }

    /// The validity of a leaf that is signed now: never outside its issuer's.
    pub fn leaf_validity(
        &self,
        lifetime_seconds: u32,
        skew_seconds: u32,
        now: Timestamp,
    ) -> Result<Validity, SignError> {
        let not_before = shift(now, -i64::from(skew_seconds)).max(self.issuer_not_before);
        let not_after = shift(now, i64::from(lifetime_seconds)).min(shift(self.issuer_not_after, -ISSUER_RESERVE));
        if not_after <= now { Err(SignError::IssuerEnds) } else { Ok(Validity { not_before, not_after }) }
    }

    /// Signs the leaf of `granted`.
    pub fn sign(&self, granted: &Granted, serial: Serial, validity: Validity) -> Result<Issued, SignError> {
        let leaf = leaf_template(granted, serial, validity)?.signed_by(&granted.public_key()?, &self.issuer)?;
        Ok(Issued { chain: vec![leaf.pem(), self.issuer_pem.clone()] })
    }
}

fn validity(
    parsed: &X509Certificate<'_>,
    what: &'static str,
    now: Timestamp,
) -> Result<(Timestamp, Timestamp), AuthorityError> {
    let instant = |seconds| Timestamp::from_second(seconds).map_err(|_| AuthorityError::Unreadable(what));
    let start = instant(parsed.validity().not_before.timestamp())?;
    let end = instant(parsed.validity().not_after.timestamp())?;
    if start <= now && now <= end { Ok((start, end)) } else { Err(AuthorityError::OutOfDate(what)) }
}

fn permitted(issuer: &X509Certificate<'_>) -> BTreeSet<DnsName> {
    let constraints = issuer.name_constraints().ok().flatten();
    let subtrees = constraints.and_then(|constraints| constraints.value.permitted_subtrees.as_ref());
    let dns = subtrees.into_iter().flatten().filter_map(|subtree| match subtree.base {
        GeneralName::DNSName(name) => DnsName::parse(name).ok(),
        _ => None,
    });
    dns.collect()
}

/// The first 160 bits of the key's SHA-256 (RFC 7093 §2, method 1).
fn key_identifier(key: &impl PublicKeyData) -> Vec<u8> {
    Sha256::digest(key.der_bytes())[..20].to_vec()
}

fn root_template(terms: &Terms, key: &KeyPair, serial: Serial, now: Timestamp) -> CertificateParams {
    let mut params = ca_template(&format!("{} root", terms.trust_domain), key, serial, 1);
    params.not_before = offset(shift(now, -SKEW));
    params.not_after = offset(shift(now, i64::from(terms.root_days) * DAY));
    params
}

fn issuer_template(terms: &Terms, key: &KeyPair, serial: Serial, now: Timestamp, at_most: i64) -> CertificateParams {
    let mut params = ca_template(&format!("{} issuer", terms.trust_domain), key, serial, 0);
    params.not_before = offset(shift(now, -SKEW));
    params.not_after = offset(shift(now, (i64::from(terms.issuer_days) * DAY).min(at_most)));
    params.use_authority_key_identifier_extension = true;
    let subtree = |name: &DnsName| GeneralSubtree::DnsName(name.to_string());
    let permitted_subtrees = terms.permitted.iter().map(subtree).collect();
    params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: vec![] });
    params
}

fn ca_template(name: &str, key: &KeyPair, serial: Serial, path_length: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Entente");
    // A name of its own for every key: another authority of the same domain is then unknown, not a bad signature.
    let identifier = key_identifier(key);
    params.distinguished_name.push(DnType::CommonName, format!("{name} {}", hex(&identifier[..4])));
    params.serial_number = Some(SerialNumber::from_slice(&serial.0));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.key_identifier_method = KeyIdMethod::PreSpecified(identifier);
    params
}

/// One URI, the DNS names, both purposes; the subject's serialNumber is the pod's UID.
fn leaf_template(granted: &Granted, serial: Serial, validity: Validity) -> Result<CertificateParams, rcgen::Error> {
    let names = granted.names();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let uid = DnValue::PrintableString(names.pod_uid.as_str().try_into()?);
    params.distinguished_name.push(DnType::from_oid(&[2, 5, 4, 5]), uid);
    params.serial_number = Some(SerialNumber::from_slice(&serial.0));
    params.not_before = offset(validity.not_before);
    params.not_after = offset(validity.not_after);
    params.subject_alt_names = vec![SanType::URI(names.id.to_string().as_str().try_into()?)];
    for name in &names.dns_names {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.key_identifier_method = KeyIdMethod::PreSpecified(key_identifier(&granted.public_key()?));
    Ok(params)
}
