//! An authority that signs: a root, the issuing certificate under it, and what may lie between them. Clock, serials and
//! keys are arguments; the templates stand in `templates`.

use std::{collections::BTreeSet, fmt};

use jiff::Timestamp;
use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use super::{
    bundle, certificate,
    crl::{self, Revoked, Window},
    csr::{Granted, Names},
    hex, sha256_hex, shift,
    signer::Signer,
    templates,
    verify::{Anchors, Fault, Flaw, Role, examine, policy::KEYS},
};
use crate::identity::{DnsName, SpiffeId};

/// No leaf may end later than this before its issuer does, in seconds.
const ISSUER_RESERVE: i64 = 3_600;
/// Certificates between the issuing one and the root: with leaf and issuer a chain has four at most.
const MAX_BETWEEN: usize = 2;

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

    /// Whether it has the form that ours have.
    pub fn is_ours(self) -> bool {
        self == Self::from_random(self.0)
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

/// Certificates and keys of one authority, PEM.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Material {
    /// The root certificate.
    pub root_certificate: String,
    /// Its key, PKCS#8; `None` where the root is somebody else's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_key: Option<String>,
    /// What lies between the issuing certificate and the root, in the order of a chain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub between: Vec<String>,
    /// The issuing certificate.
    pub issuer_certificate: String,
    /// Its key: PKCS#8, or as the owner gave it.
    pub issuer_key: String,
    /// The root's CRL, where the root is somebody else's and they gave it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_crl: Option<String>,
}

impl Material {
    /// SHA-256 over everything but keys, which follow from it.
    pub fn fingerprint(&self) -> String {
        let Self { root_certificate, root_key: _, between, issuer_certificate, issuer_key: _, root_crl } = self;
        let parts = [root_certificate, issuer_certificate].into_iter().chain(between).chain(root_crl);
        sha256_hex(parts.map(String::as_str).collect::<Vec<_>>().join("\n").as_bytes())
    }
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
    /// A key under a password: there is nobody to ask for it.
    #[error("{0} is encrypted: it must be given without a password")]
    Locked(&'static str),
    /// A key that is too weak, or of a kind that others would not believe.
    #[error("{0} must be {KEYS}")]
    UnusableKey(&'static str),
    /// A key does not belong to its certificate.
    #[error("{0} does not belong to its certificate")]
    KeyMismatch(&'static str),
    /// No path from the issuing certificate to the root.
    #[error("the issuing certificate does not lead to the root: each certificate must be signed by the next one")]
    BrokenChain,
    /// More certificates than a chain may have.
    #[error("at most {MAX_BETWEEN} certificates may lie between the issuing certificate and the root")]
    TooLong,
    /// Outside its validity.
    #[error("{0} is outside its validity")]
    OutOfDate(&'static str),
    /// Not a CA's certificate.
    #[error(
        "{0} must be a certificate authority's: basicConstraints CA, keyUsage keyCertSign and cRLSign, a subjectKeyIdentifier and a subject"
    )]
    NotACa(&'static str),
    /// Name constraints that would make every leaf of the domain invalid.
    #[error("the issuing certificate's name constraints must permit {0}, by DNS names only, or be left out")]
    Constrained(String),
    /// A CRL of somebody else.
    #[error("the CRL must be PEM, signed by the root in its own name, and whole (no critical extension)")]
    ForeignCrl,
    /// What it signs would not verify.
    #[error("a certificate that it signs does not verify: {0}")]
    Untrue(String),
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
    root_key_id: Vec<u8>,
    root: Option<Signer>,
    between: Vec<String>,
    issuer_pem: String,
    issuer: Signer,
    key_id: String,
    root_validity: Validity,
    issuer_validity: Validity,
    permitted: BTreeSet<DnsName>,
}

/// When a certificate is valid.
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
    /// PEM certificates: the leaf, then what leads to the root, without it.
    pub chain: Vec<String>,
}

/// Makes a new authority: a root and its first intermediate.
pub fn create(
    terms: &Terms,
    [root_key, issuer_key]: [KeyPair; 2],
    serials: [Serial; 2],
    now: Timestamp,
) -> Result<Material, AuthorityError> {
    let params = templates::root(terms, &root_key, serials[0], now);
    let root_certificate = params.self_signed(&root_key)?.pem();
    let root = Issuer::new(params, &root_key);
    let at_most = i64::from(terms.root_days) * templates::DAY;
    let issuer_certificate =
        templates::issuer(terms, &issuer_key, serials[1], now, at_most).signed_by(&issuer_key, &root)?.pem();
    Ok(Material {
        root_certificate,
        root_key: Some(root_key.serialize_pem()),
        between: vec![],
        issuer_certificate,
        issuer_key: issuer_key.serialize_pem(),
        root_crl: None,
    })
}

/// Makes the next intermediate under the same root, which must be ours.
pub fn renew_issuer(
    material: &Material,
    terms: &Terms,
    issuer_key: &KeyPair,
    serial: Serial,
    now: Timestamp,
) -> Result<Material, AuthorityError> {
    let loaded = Authority::load(material, now)?;
    let root = loaded.root.as_ref().ok_or(AuthorityError::Unreadable("the root's key"))?;
    let left = loaded.root_validity.not_after.as_second() - now.as_second();
    let params = templates::issuer(terms, issuer_key, serial, now, left);
    let issuer_certificate = bundle::encode(&root.certificate(&params, issuer_key)?);
    Ok(Material { between: vec![], issuer_certificate, issuer_key: issuer_key.serialize_pem(), ..material.clone() })
}

const ROOT: &str = "the root certificate";
const ROOT_KEY: &str = "the root's key";
const ISSUER: &str = "the issuing certificate";
const ISSUER_KEY: &str = "the issuer's key";

impl Authority {
    /// Loads an authority; every way in which it can be broken has its own answer.
    pub fn load(material: &Material, now: Timestamp) -> Result<Self, AuthorityError> {
        let Material { root_certificate, root_key, between, issuer_certificate, issuer_key, root_crl } = material;
        let root_der = certificate(root_certificate).ok_or(AuthorityError::Unreadable(ROOT))?;
        let issuer_der = certificate(issuer_certificate).ok_or(AuthorityError::Unreadable(ISSUER))?;
        let between_der = between.iter().map(|pem| certificate(pem)).collect::<Option<Vec<_>>>();
        let between_der = between_der.ok_or(AuthorityError::Unreadable("the chain"))?;
        let issuer_key = key(issuer_key, ISSUER_KEY)?;
        let root_key = root_key.as_deref().map(|pem| key(pem, ROOT_KEY)).transpose()?;
        let (root, issuer) = (parse(&root_der, ROOT)?, parse(&issuer_der, ISSUER)?);
        if root_key.as_ref().is_some_and(|key| root.public_key().raw != key.subject_public_key_info()) {
            return Err(AuthorityError::KeyMismatch(ROOT_KEY));
        }
        if issuer.public_key().raw != issuer_key.subject_public_key_info() {
            return Err(AuthorityError::KeyMismatch(ISSUER_KEY));
        }
        let root_key_id = is_ca(&root, ROOT)?;
        let key_id = is_ca(&issuer, ISSUER)?;
        leads_to_root(&issuer, &between_der, &root)?;
        if root_crl.as_deref().is_some_and(|pem| !crl::is_of(pem, &root)) {
            return Err(AuthorityError::ForeignCrl);
        }
        Ok(Self {
            root_pem: bundle::encode(&root_der),
            issuer_pem: bundle::encode(&issuer_der),
            between: between_der.iter().map(|der| bundle::encode(der)).collect(),
            root: root_key.map(|key| Signer::new(key, root.subject().as_raw(), &root_key_id)),
            issuer: Signer::new(issuer_key, issuer.subject().as_raw(), &key_id),
            root_key_id,
            key_id: hex(&key_id),
            root_validity: validity(&root, ROOT, now)?,
            issuer_validity: validity(&issuer, ISSUER, now)?,
            permitted: permitted(&issuer),
            root_der: root_der.clone(),
        })
    }

    /// The subject key identifier of the issuing certificate, hex.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The subject key identifier of the root, hex.
    pub fn root_key_id(&self) -> String {
        hex(&self.root_key_id)
    }

    /// The root certificate, PEM.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The issuing certificate, PEM.
    pub fn issuer_pem(&self) -> &str {
        &self.issuer_pem
    }

    /// SHA-256 of the root certificate, hex.
    pub fn root_sha256(&self) -> String {
        sha256_hex(&self.root_der)
    }

    /// Whether the root's key is ours, so that the next issuing certificate can be made under it.
    pub const fn holds_root_key(&self) -> bool {
        self.root.is_some()
    }

    /// When the root is valid.
    pub const fn root_validity(&self) -> Validity {
        self.root_validity
    }

    /// A validity without the time that authorities of ours are dated back: what their life is measured by.
    pub fn life(&self, validity: Validity) -> Validity {
        let back = if self.holds_root_key() { templates::BACK } else { 0 };
        Validity { not_before: shift(validity.not_before, back), ..validity }
    }

    /// When the issuing certificate is valid.
    pub const fn issuer_validity(&self) -> Validity {
        self.issuer_validity
    }

    /// The DNS names below which the issuing certificate may vouch; empty = it is not constrained.
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
        let issuer = self.issuer_validity;
        let not_before = shift(now, -i64::from(skew_seconds)).max(issuer.not_before);
        let not_after = shift(now, i64::from(lifetime_seconds)).min(shift(issuer.not_after, -ISSUER_RESERVE));
        if not_after <= now { Err(SignError::IssuerEnds) } else { Ok(Validity { not_before, not_after }) }
    }

    /// Signs the leaf of `granted`.
    pub fn sign(&self, granted: &Granted, serial: Serial, validity: Validity) -> Result<Issued, SignError> {
        let key = granted.public_key()?;
        let leaf = self.issuer.certificate(&templates::leaf(granted.names(), &key, serial, validity)?, &key)?;
        Ok(Issued { chain: [bundle::encode(&leaf)].into_iter().chain(self.above().map(str::to_owned)).collect() })
    }

    /// Signs the CRL of the issuing key, PEM.
    pub fn sign_crl(&self, revoked: &[Revoked], window: Window) -> Result<String, rcgen::Error> {
        crl::sign(&self.issuer, revoked, window)
    }

    /// Signs the CRL of the root, PEM; `None` where its key is not ours.
    pub fn sign_root_crl(&self, revoked: &[Revoked], window: Window) -> Result<Option<String>, rcgen::Error> {
        let sign = |root| crl::sign(root, revoked, window);
        self.root.as_ref().map(sign).transpose()
    }

    /// Proves that what it signs for a domain is believed: the subject that the library writes, name constraints, path
    /// lengths and purposes of somebody else's certificates may each stand in the way.
    pub fn prove(
        &self,
        trust_domain: &DnsName,
        names: &BTreeSet<DnsName>,
        now: Timestamp,
    ) -> Result<(), AuthorityError> {
        let untrue = |why: &dyn fmt::Display| AuthorityError::Untrue(why.to_string());
        let anchors = Anchors::parse(std::slice::from_ref(&self.root_pem)).map_err(|error| untrue(&error))?;
        let id = SpiffeId::new(trust_domain, "entente-system", "probe").map_err(|error| untrue(&error))?;
        for suffix in [trust_domain].into_iter().chain(names) {
            let Ok(below) = DnsName::parse(&format!("probe.{suffix}")) else { continue };
            let chain = self.probe(&id, &below, now)?;
            for role in [Role::Client, Role::Server] {
                examine(&chain, role, &anchors, now).map_err(|fault| match fault {
                    Fault::Broken(Flaw::Constrained) => AuthorityError::Constrained(suffix.to_string()),
                    _ => untrue(&fault),
                })?;
            }
        }
        Ok(())
    }

    /// A certificate that lives a minute, for the issuer's own key: nobody can use it.
    fn probe(
        &self,
        id: &SpiffeId,
        name: &DnsName,
        now: Timestamp,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let validity = Validity { not_before: now, not_after: shift(now, 60).min(self.issuer_validity.not_after) };
        let names = Names { id: id.clone(), dns_names: BTreeSet::from([name.clone()]), pod_uid: None };
        let key = self.issuer.key();
        let leaf = self.issuer.certificate(&templates::leaf(&names, key, Serial([0x40; 16]), validity)?, key)?;
        let mut chain = vec![CertificateDer::from(leaf)];
        chain.extend(self.above().filter_map(certificate));
        Ok(chain)
    }

    /// What stands between a leaf and the root, PEM.
    fn above(&self) -> impl Iterator<Item = &str> {
        // An issuer that is the root itself stands in nobody's chain.
        let issuer = (self.issuer_pem != self.root_pem).then_some(&self.issuer_pem);
        issuer.into_iter().chain(&self.between).map(String::as_str)
    }
}

/// PKCS#8, SEC1 or PKCS#1; OpenSSL writes a block of parameters before some keys.
fn key(pem: &str, what: &'static str) -> Result<KeyPair, AuthorityError> {
    // PKCS#8 says it in its label, the older forms in a header.
    if pem.contains("-----BEGIN ENCRYPTED PRIVATE KEY-----") || pem.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(AuthorityError::Locked(what));
    }
    let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| AuthorityError::Unreadable(what))?;
    KeyPair::try_from(&der).map_err(|_| AuthorityError::UnusableKey(what))
}

fn parse<'a>(der: &'a CertificateDer<'_>, what: &'static str) -> Result<X509Certificate<'a>, AuthorityError> {
    match X509Certificate::from_der(der) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(AuthorityError::Unreadable(what)),
    }
}

/// The subject key identifier of a certificate that may sign certificates and CRLs.
fn is_ca(parsed: &X509Certificate<'_>, what: &'static str) -> Result<Vec<u8>, AuthorityError> {
    let basic = parsed.basic_constraints().ok().flatten();
    let usage = parsed.key_usage().ok().flatten();
    let identifier = parsed.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0.to_vec()),
        _ => None,
    });
    let signs = usage.is_some_and(|usage| usage.value.key_cert_sign() && usage.value.crl_sign());
    // The library that signs panics where a part of the subject is empty.
    let named =
        parsed.subject().iter().next().is_some() && parsed.subject().iter().all(|part| part.iter().next().is_some());
    match identifier {
        Some(identifier) if signs && named && basic.is_some_and(|basic| basic.critical && basic.value.ca) => {
            Ok(identifier)
        }
        _ => Err(AuthorityError::NotACa(what)),
    }
}

/// Each certificate is signed by the next one, the last by the root. An issuer may be the root itself.
fn leads_to_root(
    issuer: &X509Certificate<'_>,
    between: &[CertificateDer<'static>],
    root: &X509Certificate<'_>,
) -> Result<(), AuthorityError> {
    if between.len() > MAX_BETWEEN {
        return Err(AuthorityError::TooLong);
    }
    let mut below = issuer.clone();
    for der in between {
        let next = parse(der, "the chain")?;
        below.verify_signature(Some(next.public_key())).map_err(|_| AuthorityError::BrokenChain)?;
        below = next;
    }
    below.verify_signature(Some(root.public_key())).map_err(|_| AuthorityError::BrokenChain)
}

fn validity(parsed: &X509Certificate<'_>, what: &'static str, now: Timestamp) -> Result<Validity, AuthorityError> {
    let instant = |seconds| Timestamp::from_second(seconds).map_err(|_| AuthorityError::Unreadable(what));
    let not_before = instant(parsed.validity().not_before.timestamp())?;
    let not_after = instant(parsed.validity().not_after.timestamp())?;
    if not_before <= now && now <= not_after {
        Ok(Validity { not_before, not_after })
    } else {
        Err(AuthorityError::OutOfDate(what))
    }
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

#[cfg(test)]
mod tests;
