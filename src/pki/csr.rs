//! Certificate requests: a public key and the proof of possession, nothing else (PKCS#10, RFC 2986).
//!
//! Names come from the topology, never from the asker. A request that asks for anything (a subject, an extension, an
//! attribute) is refused, not trimmed. Only [`Granted`] can be signed.

use std::collections::BTreeSet;

use rcgen::{CertificateParams, DistinguishedName, KeyPair, SubjectPublicKeyInfo};
use sha2::{Digest, Sha256};
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer, public_key::PublicKey};

use crate::identity::{DnsName, SpiffeId};

/// A request whose asker has proven possession of the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Csr {
    public_key: Vec<u8>,
}

/// What the topology gives one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The one URI name.
    pub id: SpiffeId,
    /// DNS names, the topology name among them.
    pub dns_names: BTreeSet<DnsName>,
    /// UID of the pod; `None` for software that holds its key itself.
    pub pod_uid: Option<String>,
}

/// A proven key together with the names that the topology gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    public_key: Vec<u8>,
    names: Names,
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Not one DER-encoded PKCS#10 request.
    #[error("the certificate request is not a DER-encoded PKCS#10 request")]
    Malformed,
    /// The signature does not prove possession of the key.
    #[error("the certificate request is not signed by the key it holds")]
    Unproven,
    /// It asks for a subject, an extension or an attribute.
    #[error("the certificate request must hold a public key only; names come from the topology")]
    AsksForMore,
    /// Not a P-256 key.
    #[error("the certificate request must hold an ECDSA P-256 key")]
    WeakKey,
}

impl CsrError {
    /// The stable code of the issuance stage.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Malformed => "CsrMalformed",
            Self::Unproven => "CsrUnproven",
            Self::AsksForMore => "CsrAsksForMore",
            Self::WeakKey => "WeakKey",
        }
    }
}

impl Csr {
    /// Parses a request strictly and checks the proof of possession.
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        let (rest, request) = X509CertificationRequest::from_der(der).map_err(|_| CsrError::Malformed)?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed);
        }
        request.verify_signature().map_err(|_| CsrError::Unproven)?;
        let info = &request.certification_request_info;
        if !info.attributes().is_empty() || info.subject.iter().next().is_some() {
            return Err(CsrError::AsksForMore);
        }
        match info.subject_pki.parsed() {
            Ok(PublicKey::EC(point)) if point.key_size() == 256 => {
                Ok(Self { public_key: info.subject_pki.raw.to_vec() })
            }
            _ => Err(CsrError::WeakKey),
        }
    }

    /// SHA-256 of the SubjectPublicKeyInfo.
    pub fn key_sha256(&self) -> [u8; 32] {
        Sha256::digest(&self.public_key).into()
    }

    /// Joins the proven key with what the topology gives.
    pub fn grant(self, names: Names) -> Granted {
        Granted { public_key: self.public_key, names }
    }
}

impl Granted {
    /// The names.
    pub const fn names(&self) -> &Names {
        &self.names
    }

    /// The key, for the signer.
    pub(super) fn public_key(&self) -> Result<SubjectPublicKeyInfo, rcgen::Error> {
        SubjectPublicKeyInfo::from_der(&self.public_key)
    }
}

/// Makes the bare request of `key`, DER.
pub fn request(key: &KeyPair) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(key)?.der().to_vec())
}

#[cfg(test)]
mod tests {
    use rcgen::{DnType, PKCS_ECDSA_P384_SHA384};

    use super::*;

    #[test]
    fn a_bare_request_is_parsed_and_its_key_is_the_askers() {
        let key = KeyPair::generate().unwrap();
        let csr = Csr::parse(&request(&key).unwrap()).unwrap();
        let expected: [u8; 32] = Sha256::digest(rcgen::PublicKeyData::subject_public_key_info(&key)).into();
        assert_eq!(csr.key_sha256(), expected);
    }

    #[test]
    fn a_request_that_asks_for_a_name_is_refused_not_trimmed() {
        let key = KeyPair::generate().unwrap();
        let mut subject = CertificateParams::default();
        subject.distinguished_name.push(DnType::CommonName, "admin");
        let mut names = CertificateParams::new(vec!["a.contoso.example".to_owned()]).unwrap();
        names.distinguished_name = DistinguishedName::new();
        for params in [subject, names] {
            let der = params.serialize_request(&key).unwrap().der().to_vec();
            assert_eq!(Csr::parse(&der), Err(CsrError::AsksForMore));
        }
    }

    #[test]
    fn a_tampered_a_trailing_and_a_foreign_key_request_are_refused_each_with_its_code() {
        let key = KeyPair::generate().unwrap();
        let good = request(&key).unwrap();
        let mut trailing = good.clone();
        trailing.push(0);
        assert_eq!(Csr::parse(&trailing).unwrap_err().code(), "CsrMalformed");
        let mut tampered = good.clone();
        let at = good.windows(3).position(|bytes| bytes == [0x03, 0x42, 0x00]).unwrap() + 10;
        tampered[at] ^= 1;
        assert!(matches!(Csr::parse(&tampered), Err(CsrError::Unproven | CsrError::Malformed)));
        let other = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).unwrap();
        assert_eq!(Csr::parse(&request(&other).unwrap()).unwrap_err().code(), "WeakKey");
    }
}
