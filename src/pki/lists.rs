//! Revocation lists of another organisation (RFC 5280 §5), as anybody may have sent them: each is judged by the one
//! root that signed it, and reduced to what sidecars need. No byte of a list itself ever reaches a sidecar.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rustls_pki_types::{CertificateRevocationListDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use x509_parser::{
    certificate::X509Certificate,
    extensions::ParsedExtension,
    oid_registry::{self, Oid},
    prelude::FromDer,
    revocation_list::CertificateRevocationList,
};

use super::{bundle, hex, revocation::MAX_SERIALS, roots::Root, shift};

/// Bytes that a text or file with lists may have.
pub const LONGEST: usize = 1024 * 1024;
/// Lists in one of them.
const MAX_LISTS: usize = 32;
/// Seconds that a signer's clock may be ahead of ours.
const AHEAD: i64 = 300;
/// The longest number, and the longest serial (RFC 5280 §4.1.2.2, §5.2.3), in bytes.
const MAX_NUMBER: usize = 20;
/// Kinds of signatures that prove nothing any more: SHA-1 and MD5.
const WEAK: [Oid<'static>; 2] = [oid_registry::OID_PKCS1_SHA1WITHRSA, oid_registry::OID_PKCS1_MD5WITHRSAENC];

/// What one list says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct List {
    /// Its number (`cRLNumber`), hex without leading zeros, where it has one.
    pub number: Option<String>,
    /// When it was signed, Unix seconds.
    pub this_update: i64,
    /// Its end as it names it, Unix seconds.
    pub next_update: i64,
    /// Revoked serials, lower-case hex, in order.
    pub serials: Vec<String>,
    /// The list itself, PEM, encoded anew; empty where it is too long to be passed on.
    pub pem: String,
}

/// Why a list does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// No list, or not a whole one.
    #[error("{0}")]
    Unparsable(&'static str),
    /// No root signed it.
    #[error("no root of the partner signed it as its own list: an issuing authority must stand among the roots itself")]
    BadSignature,
    /// More serials than a sidecar takes.
    #[error("the lists of a partner hold at most {MAX_SERIALS} serials in all")]
    TooMany,
    /// Older than the one that is known.
    #[error("it is older than the one that is known, which stays")]
    WentBack,
}

impl List {
    /// Whether it may follow `before`, an earlier list of the same authority: neither number nor date goes back.
    pub fn follows(&self, before: &Self) -> bool {
        let rank = |list: &Self| list.number.as_ref().map(|number| (number.len(), number.clone()));
        rank(self) >= rank(before) && self.this_update >= before.this_update
    }

    /// Its number, where that is one that a status can show.
    pub fn counted(&self) -> Option<u64> {
        u64::from_str_radix(self.number.as_deref()?, 16).ok()
    }
}

/// The lists in `bytes`, DER or PEM.
pub fn split(bytes: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, ListError> {
    const NONE: ListError = ListError::Unparsable("it holds no revocation list, neither DER nor PEM");
    if bytes.len() > LONGEST {
        return Err(ListError::Unparsable("it is longer than 1 MiB"));
    }
    // The outer SEQUENCE of X.690 §8.9.
    if bytes.first() == Some(&0x30) {
        return Ok(vec![CertificateRevocationListDer::from(bytes.to_vec())]);
    }
    let found = CertificateRevocationListDer::pem_slice_iter(bytes).take(MAX_LISTS + 1).collect::<Result<Vec<_>, _>>();
    match found {
        Ok(lists) if lists.is_empty() => Err(NONE),
        Ok(lists) if lists.len() > MAX_LISTS => Err(ListError::Unparsable("it holds more than 32 lists")),
        Ok(lists) => Ok(lists),
        Err(_) => Err(NONE),
    }
}

/// Judges one list by the roots of its partner; answers the key identifier of the root that signed it, and what it says.
pub fn read(
    der: &CertificateRevocationListDer<'_>,
    roots: &[Root],
    now: Timestamp,
) -> Result<(String, List), ListError> {
    let Ok(([], list)) = CertificateRevocationList::from_der(der.as_ref()) else {
        return Err(ListError::Unparsable("it is no revocation list"));
    };
    let number = whole(&list)?;
    let signer = roots.iter().find(|root| signed(&list, root)).ok_or(ListError::BadSignature)?;
    let second = |time: x509_parser::time::ASN1Time| time.timestamp();
    let this_update = second(list.last_update());
    let next_update = list.next_update().map(second).ok_or(ListError::Unparsable("it names no nextUpdate"))?;
    if this_update > shift(now, AHEAD).as_second() || next_update < this_update {
        return Err(ListError::Unparsable("its times are in the future, or end before they begin"));
    }
    Timestamp::from_second(next_update).map_err(|_| ListError::Unparsable("its times are out of range"))?;
    let mut serials = BTreeSet::new();
    for entry in list.iter_revoked_certificates() {
        if entry.extensions().iter().any(|extension| extension.critical) {
            return Err(ListError::Unparsable("an entry has a critical extension: it is of another authority's list"));
        }
        let serial = bare(entry.raw_serial());
        if serial.len() > MAX_NUMBER {
            return Err(ListError::Unparsable("a serial number is longer than 20 bytes"));
        }
        serials.insert(hex(serial));
        if serials.len() > MAX_SERIALS {
            return Err(ListError::TooMany);
        }
    }
    let pem = bundle::labelled("X509 CRL", der.as_ref());
    Ok((signer.key_id.clone(), List { number, this_update, next_update, serials: serials.into_iter().collect(), pem }))
}

/// A list of version 2 that is whole, and everything that must be understood in it is. Answers its number.
fn whole(list: &CertificateRevocationList<'_>) -> Result<Option<String>, ListError> {
    if list.version().is_none_or(|version| version.0 != 1) {
        return Err(ListError::Unparsable("its version is not 2"));
    }
    if WEAK.contains(&list.signature_algorithm.algorithm) {
        return Err(ListError::Unparsable("its signature rests on SHA-1 or MD5"));
    }
    let mut number = None;
    let mut seen = BTreeSet::new();
    for extension in list.extensions() {
        let oid = &extension.oid;
        if !seen.insert(oid.to_id_string()) {
            return Err(ListError::Unparsable("it has an extension twice"));
        }
        if *oid == oid_registry::OID_X509_EXT_DELTA_CRL_INDICATOR
            || *oid == oid_registry::OID_X509_EXT_ISSUER_DISTRIBUTION_POINT
        {
            return Err(ListError::Unparsable(
                "it is a part of a list or of several authorities (delta, issuingDistributionPoint)",
            ));
        }
        if extension.critical {
            return Err(ListError::Unparsable("a critical extension is not known here, or must not be critical"));
        }
        if let ParsedExtension::CRLNumber(found) = extension.parsed_extension() {
            number = Some(found.to_bytes_be());
        } else if *oid == oid_registry::OID_X509_EXT_CRL_NUMBER {
            return Err(ListError::Unparsable("its number cannot be read"));
        }
    }
    match number {
        Some(bytes) if bytes.len() > MAX_NUMBER => Err(ListError::Unparsable("its number is longer than 20 bytes")),
        Some(bytes) => Ok(Some(hex(bare(&bytes)))),
        None => Ok(None),
    }
}

fn bare(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    // Zero itself is one byte.
    &bytes[zeros.min(bytes.len().saturating_sub(1))..]
}

/// Whether `root` signed the list as its own, and may sign lists.
fn signed(list: &CertificateRevocationList<'_>, root: &Root) -> bool {
    let Some(der) = super::certificate(&root.pem) else { return false };
    let Ok(([], signer)) = X509Certificate::from_der(&der) else { return false };
    let mut named = list.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(authority) => Some(authority.key_identifier.as_ref()?.0),
        _ => None,
    });
    list.issuer().as_raw() == signer.subject().as_raw()
        && named.all(|key| hex(key) == root.key_id)
        && signer.key_usage().ok().flatten().is_some_and(|usage| usage.value.crl_sign())
        && list.verify_signature(signer.public_key()).is_ok()
}

#[cfg(test)]
pub(crate) mod tests;
