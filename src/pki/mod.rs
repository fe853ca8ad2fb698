//! Certificates: requests, the authority that signs, bundles of roots, and the one verification function.

pub mod authority;
pub mod bundle;
pub mod control;
pub mod crl;
pub mod csr;
pub mod intake;
pub mod ledger;
pub mod lists;
pub mod register;
pub mod renewal;
pub mod revocation;
pub mod roots;
pub mod rotation;
mod signer;
pub mod spiffe;
mod templates;
pub mod verify;

use jiff::Timestamp;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

/// Lower-case hex of `bytes`.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of `bytes`, lower-case hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// The one certificate in `pem`.
pub fn certificate(pem: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

/// rcgen speaks `time`; everything else of ours speaks jiff. Both count whole seconds here.
fn offset(instant: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(instant.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// `instant` moved by `seconds`, held inside what a timestamp can say.
fn shift(instant: Timestamp, seconds: i64) -> Timestamp {
    Timestamp::from_second(instant.as_second().saturating_add(seconds)).unwrap_or(instant)
}
