//! Roots of another organisation, as it gave them: read one by one, so that each that is wrong can be named.

use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{
    authority::Validity,
    bundle, hex, sha256_hex,
    verify::{AnchorError, Anchors, policy::key_identifier},
};

/// Roots of one organisation, at most.
pub const MAX_ROOTS: usize = 16;
/// The longest subject that is told, in characters.
const MAX_SUBJECT: usize = 200;

/// A root that can anchor a scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// The certificate, PEM.
    pub pem: String,
    /// SHA-256 of it, hex.
    pub sha256: String,
    /// SHA-256 of its public key (SubjectPublicKeyInfo), hex.
    pub key: String,
    /// Its key identifier (subjectKeyIdentifier), hex: what it signs names it so.
    pub key_id: String,
    /// Its subject, for people.
    pub subject: String,
    /// When it is valid.
    pub validity: Validity,
}

/// Why roots cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootError {
    /// No certificate in it, or something that only looks like one.
    #[error("the roots must be PEM certificates, and at least one")]
    Unreadable,
    /// Too many.
    #[error("at most {MAX_ROOTS} roots may be given")]
    TooMany,
    /// Not an authority's certificate, or not a sound one.
    #[error("{subject}: {why}")]
    Unfit {
        /// Its subject.
        subject: String,
        /// Which rule it breaks.
        why: String,
    },
}

/// The roots in `pem`, each once and in a fixed order; what is wrong with one leaves the others.
pub fn read(pem: &str) -> Result<Vec<Result<Root, RootError>>, RootError> {
    let ders: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).take(MAX_ROOTS + 1).collect();
    let mut ders = ders.map_err(|_| RootError::Unreadable)?;
    match ders.len() {
        0 => return Err(RootError::Unreadable),
        1..=MAX_ROOTS => {}
        _ => return Err(RootError::TooMany),
    }
    ders.sort_by(|one, other| one.as_ref().cmp(other.as_ref()));
    ders.dedup();
    Ok(ders.iter().map(root).collect())
}

/// SHA-256 of a certificate's public key (SubjectPublicKeyInfo), hex.
pub fn key_of(der: &[u8]) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    Some(sha256_hex(parsed.public_key().raw))
}

fn root(der: &CertificateDer<'_>) -> Result<Root, RootError> {
    let Ok(([], parsed)) = X509Certificate::from_der(der) else { return Err(RootError::Unreadable) };
    let plain = parsed.subject().to_string();
    let subject: String = plain.chars().filter(|character| !character.is_control()).take(MAX_SUBJECT).collect();
    let unfit = |why: String| RootError::Unfit { subject: subject.clone(), why };
    let pem = bundle::encode(der);
    // What the sidecars ask of a root, so that none of them refuses what was accepted here.
    Anchors::parse(std::slice::from_ref(&pem)).map_err(|error| match error {
        AnchorError::Flawed(_, flaw) => unfit(flaw.to_string()),
        AnchorError::NotACertificate(_) | AnchorError::TooMany => RootError::Unreadable,
    })?;
    let instant = |seconds| Timestamp::from_second(seconds).map_err(|_| RootError::Unreadable);
    Ok(Root {
        pem,
        sha256: sha256_hex(der),
        key: sha256_hex(parsed.public_key().raw),
        key_id: hex(key_identifier(&parsed).unwrap_or_default()),
        validity: Validity {
            not_before: instant(parsed.validity().not_before.timestamp())?,
            not_after: instant(parsed.validity().not_after.timestamp())?,
        },
        subject,
    })
}

#[cfg(test)]
pub(crate) mod tests;
