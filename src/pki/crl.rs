//! Certificate revocation lists (RFC 5280 §5): full ones, one for each signing key, numbers strictly increasing.

use std::collections::BTreeSet;

use jiff::Timestamp;
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber};
use rustls_pki_types::{CertificateRevocationListDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use x509_parser::{certificate::X509Certificate, prelude::FromDer, revocation_list::CertificateRevocationList};

use super::{authority::Serial, bundle, hex, offset, shift, signer::Signer};

/// Entries that the published lists of a domain hold, in all: 49 bytes each, 66 in PEM, in objects of 1 MiB at most.
pub const MAX_ENTRIES: usize = 14_000;

/// Why a certificate was taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// Its serial is listed in `revocation.serials`: the key is known to others.
    KeyCompromise,
    /// Its server is suspended.
    Suspended,
    /// It was issued before `revokeIssuedBefore`.
    IssuedBefore,
    /// Its server is no longer declared.
    ServerDeleted,
    /// Its pod is gone.
    PodGone,
    /// Its pod has so many later ones that it cannot be the one in use.
    Superseded,
}

impl Reason {
    /// Every reason; what somebody decided stands before what just happened.
    pub const ALL: [Self; 6] = [
        Self::KeyCompromise,
        Self::Suspended,
        Self::IssuedBefore,
        Self::ServerDeleted,
        Self::PodGone,
        Self::Superseded,
    ];

    /// The stable word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::KeyCompromise => "keyCompromise",
            Self::Suspended => "suspended",
            Self::IssuedBefore => "issuedBefore",
            Self::ServerDeleted => "serverDeleted",
            Self::PodGone => "podGone",
            Self::Superseded => "superseded",
        }
    }

    /// Reads back a stable word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.word() == word)
    }

    /// Whether a person or a declaration asked for it; the rest is routine.
    pub const fn is_explicit(self) -> bool {
        !matches!(self, Self::PodGone | Self::Superseded)
    }

    /// The reason code of RFC 5280 §5.3.1. A suspended server's certificates do not come back, so it is no hold.
    const fn code(self) -> RevocationReason {
        match self {
            Self::KeyCompromise => RevocationReason::KeyCompromise,
            Self::Suspended => RevocationReason::PrivilegeWithdrawn,
            Self::IssuedBefore | Self::Superseded => RevocationReason::Superseded,
            Self::ServerDeleted | Self::PodGone => RevocationReason::CessationOfOperation,
        }
    }
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revoked {
    /// The certificate.
    pub serial: Serial,
    /// When it was taken back.
    pub at: Timestamp,
    /// Why.
    pub reason: Reason,
}

/// Number and times of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// `cRLNumber`.
    pub number: u64,
    /// When it is signed.
    pub this_update: Timestamp,
    /// Until when it may be relied on.
    pub next_update: Timestamp,
}

/// How often lists are signed anew, in seconds: a quarter of a leaf's life, at most an hour.
pub fn period(lifetime_seconds: u32) -> i64 {
    (i64::from(lifetime_seconds) / 4).clamp(10, 3_600)
}

impl Window {
    /// The window of a list that is signed now. It outlives every leaf that is issued before the next list is out: in
    /// an outage each certificate ends before what is known of revocations does.
    pub fn of(number: u64, lifetime_seconds: u32, skew_seconds: u32, now: Timestamp) -> Self {
        let span = i64::from(lifetime_seconds) + i64::from(skew_seconds) + 2 * period(lifetime_seconds);
        Self { number, this_update: shift(now, -i64::from(skew_seconds)), next_update: shift(now, span) }
    }
}

/// Whether `pem` is a whole list that `issuer` signed: an extension that must be understood tells of parts of one, or
/// of another's certificates.
pub(super) fn is_of(pem: &str, issuer: &X509Certificate<'_>) -> bool {
    let Ok(der) = CertificateRevocationListDer::from_pem_slice(pem.as_bytes()) else { return false };
    let Ok(([], list)) = CertificateRevocationList::from_der(der.as_ref()) else { return false };
    list.issuer().as_raw() == issuer.subject().as_raw()
        && list.extensions().iter().all(|extension| !extension.critical)
        && list.verify_signature(issuer.public_key()).is_ok()
}

/// The serials on all lists of a `crl.pem`, hex; `None` = it cannot be read, or is full and may leave some out.
pub fn listed(pem: &str) -> Option<BTreeSet<String>> {
    let mut serials = BTreeSet::new();
    for list in CertificateRevocationListDer::pem_slice_iter(pem.as_bytes()) {
        let list = list.ok()?;
        let (_, list) = CertificateRevocationList::from_der(list.as_ref()).ok()?;
        serials.extend(list.iter_revoked_certificates().map(|entry| hex(entry.raw_serial())));
    }
    (serials.len() < MAX_ENTRIES).then_some(serials)
}

pub(super) fn sign(signer: &Signer, revoked: &[Revoked], window: Window) -> Result<String, rcgen::Error> {
    // One entry for a serial, the earliest; none is dated after the list itself, whose date is held back for clocks
    // that lag.
    let mut revoked = revoked.to_vec();
    revoked.sort_by_key(|one| (one.serial, one.at));
    revoked.dedup_by_key(|one| one.serial);
    let entry = |one: &Revoked| RevokedCertParams {
        serial_number: SerialNumber::from_slice(&one.serial.0),
        revocation_time: offset(one.at.min(window.this_update)),
        reason_code: Some(one.reason.code()),
        invalidity_date: None,
    };
    let number = window.number.to_be_bytes();
    let leading = number.iter().take_while(|byte| **byte == 0).count().min(7);
    let params = CertificateRevocationListParams {
        this_update: offset(window.this_update),
        next_update: offset(window.next_update),
        crl_number: SerialNumber::from_slice(&number[leading..]),
        issuing_distribution_point: None,
        revoked_certs: revoked.iter().take(MAX_ENTRIES).map(entry).collect(),
        key_identifier_method: KeyIdMethod::PreSpecified(signer.key_identifier().to_vec()),
    };
    Ok(bundle::labelled("X509 CRL", &signer.list(&params)?))
}

#[cfg(test)]
mod tests;
