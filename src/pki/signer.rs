//! A key that signs, under exactly the name that its certificate has.
//!
//! rcgen keeps one value per kind of attribute and not every kind of string: `DC=contoso, DC=example`, which every
//! Active Directory has, would become another name, and nobody would find the issuer. So the issuer's name in what rcgen
//! made is replaced by the bytes of the issuer's own subject, and the result is signed.

use rcgen::{
    CertificateParams, CertificateRevocationListParams, Error, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    PublicKeyData, SigningKey,
};
use x509_parser::asn1_rs::{Any, FromDer};

/// Where the issuer stands in the signed part (RFC 5280 §4.1 and §5.1).
const IN_CERTIFICATE: usize = 3;
const IN_LIST: usize = 2;

pub(super) struct Signer {
    issuer: Issuer<'static, KeyPair>,
    /// The subject of its certificate, DER.
    subject: Vec<u8>,
    key_identifier: Vec<u8>,
}

impl Signer {
    pub(super) fn new(key: KeyPair, subject: &[u8], key_identifier: &[u8]) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::NoCa;
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.key_identifier_method = KeyIdMethod::PreSpecified(key_identifier.to_vec());
        Self { issuer: Issuer::new(params, key), subject: subject.to_vec(), key_identifier: key_identifier.to_vec() }
    }

    pub(super) fn key(&self) -> &KeyPair {
        self.issuer.key()
    }

    /// The subject key identifier of its certificate.
    pub(super) fn key_identifier(&self) -> &[u8] {
        &self.key_identifier
    }

    /// Signs a certificate for `key`, DER.
    pub(super) fn certificate(&self, params: &CertificateParams, key: &impl PublicKeyData) -> Result<Vec<u8>, Error> {
        self.named(params.signed_by(key, &self.issuer)?.der(), IN_CERTIFICATE)
    }

    /// Signs a revocation list, DER.
    pub(super) fn list(&self, params: &CertificateRevocationListParams) -> Result<Vec<u8>, Error> {
        self.named(params.signed_by(&self.issuer)?.der(), IN_LIST)
    }

    fn named(&self, der: &[u8], place: usize) -> Result<Vec<u8>, Error> {
        let parts = elements(der).ok_or(Error::CouldNotParseCertificate)?;
        let [signed, algorithm, _signature] = parts[..] else { return Err(Error::CouldNotParseCertificate) };
        let mut inner = elements(signed).ok_or(Error::CouldNotParseCertificate)?;
        *inner.get_mut(place).ok_or(Error::CouldNotParseCertificate)? = &self.subject;
        let signed = tagged(0x30, &inner.concat());
        // A BIT STRING begins with the number of unused bits.
        let signature = [vec![0], self.key().sign(&signed)?].concat();
        Ok(tagged(0x30, &[&signed[..], algorithm, &tagged(0x03, &signature)].concat()))
    }
}

/// The parts of a SEQUENCE, each with its tag and length.
fn elements(der: &[u8]) -> Option<Vec<&[u8]>> {
    let (_, sequence) = Any::from_der(der).ok()?;
    let mut content = sequence.data;
    let mut found = vec![];
    while !content.is_empty() {
        let (rest, _) = Any::from_der(content).ok()?;
        found.push(content.get(..content.len() - rest.len())?);
        content = rest;
    }
    Some(found)
}

/// A DER value: tag, length in the shortest form, content.
fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut der = vec![tag];
    match (content.len(), u8::try_from(significant.len())) {
        (short @ 0..0x80, _) => der.extend(u8::try_from(short)),
        (_, count) => {
            der.extend(count.map(|count| 0x80 | count));
            der.extend(significant);
        }
    }
    der.extend(content);
    der
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_in_their_shortest_form() {
        for (length, header) in [
            (0, vec![4, 0]),
            (127, vec![4, 127]),
            (128, vec![4, 0x81, 128]),
            (255, vec![4, 0x81, 255]),
            (256, vec![4, 0x82, 1, 0]),
            (70_000, vec![4, 0x83, 1, 0x11, 0x70]),
        ] {
            let der = tagged(4, &vec![9; length]);
            assert_eq!(der[..der.len() - length], header);
            assert_eq!(Any::from_der(&der).unwrap().1.data.len(), length);
        }
    }
}
