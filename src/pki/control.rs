//! The control plane's own small authority: it vouches for the controller's endpoints, and for nothing else.

use std::time::Duration;

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};

use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::{authority::Serial, certificate, offset, shift, verify};
use crate::identity::DnsName;

/// Days that the control plane's authority lives.
const CA_DAYS: i64 = 3650;
/// Seconds that one of its serving certificates lives.
pub const SERVING_SECONDS: i64 = 86_400;

/// Makes the authority of the control plane; PEM of its certificate.
pub fn create(key: &KeyPair, serial: Serial, now: Timestamp) -> Result<String, rcgen::Error> {
    let mut params = template("Entente control plane", serial, now, CA_DAYS * 86_400);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(key)?.pem())
}

/// Signs the certificate of one replica, good for serving and for calling other replicas; PEM.
pub fn sign(
    ca: (&str, KeyPair),
    leaf: &KeyPair,
    names: &[DnsName],
    serial: Serial,
    now: Timestamp,
) -> Result<String, rcgen::Error> {
    let issuer = Issuer::from_ca_cert_pem(ca.0, ca.1)?;
    let mut params = template("Entente controller", serial, now, SERVING_SECONDS);
    for name in names {
        params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params.signed_by(leaf, &issuer)?.pem())
}

/// Whether `chain` (leaf first) is one that the authority `ca` (PEM) signed for calling, and valid `now`.
pub fn vouches(ca: &str, chain: &[CertificateDer<'_>], now: Timestamp) -> bool {
    let Some((leaf, rest)) = chain.split_first() else { return false };
    let (Some(root), Ok(leaf)) = (certificate(ca), EndEntityCert::try_from(leaf)) else { return false };
    let Ok(anchor) = webpki::anchor_from_trusted_cert(&root) else { return false };
    let seconds = u64::try_from(now.as_second()).unwrap_or_default();
    let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let algorithms = verify::algorithms().all;
    leaf.verify_for_usage(algorithms, &[anchor], rest, time, KeyUsage::client_auth(), None, None).is_ok()
}

fn template(name: &str, serial: Serial, now: Timestamp, seconds: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from_slice(&serial.0));
    params.not_before = offset(shift(now, -300));
    params.not_after = offset(shift(now, seconds));
    params
}
