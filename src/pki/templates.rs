//! Every template of a certificate or CRL that Entente signs.

use jiff::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, GeneralSubtree,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData, SanType, SerialNumber,
};
use sha2::{Digest, Sha256};

use super::{
    authority::{Serial, Terms, Validity},
    csr::Names,
    hex, offset, shift,
};
use crate::identity::DnsName;

pub(super) const DAY: i64 = 86_400;
/// Authorities are dated this far back, in seconds: for clocks that lag, and so that a clock which was a day ahead for a
/// while leaves no authority of the future behind. Leaves have their own, short one.
pub(super) const BACK: i64 = 2 * DAY;

/// The first 160 bits of the key's SHA-256 (RFC 7093 §2, method 1).
pub(super) fn key_identifier(key: &impl PublicKeyData) -> Vec<u8> {
    Sha256::digest(key.der_bytes())[..20].to_vec()
}

pub(super) fn root(terms: &Terms, key: &KeyPair, serial: Serial, now: Timestamp) -> CertificateParams {
    let mut params = authority(&format!("{} root", terms.trust_domain), key, serial, 1);
    params.not_before = offset(shift(now, -BACK));
    params.not_after = offset(shift(now, i64::from(terms.root_days) * DAY));
    params
}

/// The issuing intermediate; it ends at the latest `at_most` seconds from now.
pub(super) fn issuer(terms: &Terms, key: &KeyPair, serial: Serial, now: Timestamp, at_most: i64) -> CertificateParams {
    let mut params = authority(&format!("{} issuer", terms.trust_domain), key, serial, 0);
    params.not_before = offset(shift(now, -BACK));
    params.not_after = offset(shift(now, (i64::from(terms.issuer_days) * DAY).min(at_most)));
    params.use_authority_key_identifier_extension = true;
    let subtree = |name: &DnsName| GeneralSubtree::DnsName(name.to_string());
    let permitted_subtrees = terms.permitted.iter().map(subtree).collect();
    params.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees: vec![] });
    params
}

fn authority(name: &str, key: &KeyPair, serial: Serial, path_length: u8) -> CertificateParams {
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

/// One URI, the DNS names, both purposes. The subject's serialNumber is the pod's UID; without a pod the subject is the
/// server's name, which nobody reads.
pub(super) fn leaf(
    names: &Names,
    key: &impl PublicKeyData,
    serial: Serial,
    validity: Validity,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    match &names.pod_uid {
        Some(uid) => {
            let uid = DnValue::PrintableString(uid.as_str().try_into()?);
            params.distinguished_name.push(DnType::from_oid(&[2, 5, 4, 5]), uid);
        }
        None => params.distinguished_name.push(DnType::CommonName, names.id.server()),
    }
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
    params.key_identifier_method = KeyIdMethod::PreSpecified(key_identifier(key));
    Ok(params)
}
