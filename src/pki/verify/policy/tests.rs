//! One certificate per line of the policy. Signatures do not count here, so each is made of extensions byte by byte.

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, KeyPair, SerialNumber};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::FromDer;

use super::*;

/// An extension: the last number of `2.5.29`, whether it is critical, its DER.
type Extension = (u64, bool, Vec<u8>);

const SUBJECT_KEY: u64 = 14;
const KEY_USAGE: u64 = 15;
const NAMES: u64 = 17;
const BASIC: u64 = 19;
const CONSTRAINTS: u64 = 30;
const AUTHORITY_KEY: u64 = 35;
const POLICY_CONSTRAINTS: u64 = 36;
const PURPOSES: u64 = 37;
const UNKNOWN: u64 = 99;

const CA: &[u8] = &[0x30, 3, 1, 1, 0xff];
const NO_CA: &[u8] = &[0x30, 0];
const KEY_CERT_SIGN: &[u8] = &[3, 2, 2, 4];
const CRL_SIGN: &[u8] = &[3, 2, 1, 2];
const DIGITAL_SIGNATURE: &[u8] = &[3, 2, 7, 0x80];
const BOTH: &[u8] = &[3, 2, 2, 0x84];
const SERVER: &[u8] = &[6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT: &[u8] = &[6, 8, 0x2b, 6, 1, 5, 5, 7, 3, 2];
const ANY: &[u8] = &[6, 4, 0x55, 0x1d, 0x25, 0];

fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
    [&[tag, u8::try_from(content.len()).unwrap()], content].concat()
}

fn permitted(name: &str) -> Vec<u8> {
    tagged(0x30, &tagged(0xa0, &tagged(0x30, &tagged(0x82, name.as_bytes()))))
}

fn excluded(name: &str) -> Vec<u8> {
    tagged(0x30, &tagged(0xa1, &tagged(0x30, &tagged(0x82, name.as_bytes()))))
}

fn good_leaf() -> Vec<Extension> {
    vec![
        (AUTHORITY_KEY, false, tagged(0x30, &tagged(0x80, &[7; 20]))),
        (SUBJECT_KEY, false, tagged(4, &[8; 20])),
        (KEY_USAGE, true, DIGITAL_SIGNATURE.into()),
        (BASIC, true, NO_CA.into()),
        (PURPOSES, false, tagged(0x30, &[SERVER, CLIENT].concat())),
        (NAMES, false, tagged(0x30, &tagged(0x82, b"a.contoso.example"))),
    ]
}

fn good_authority() -> Vec<Extension> {
    vec![
        (AUTHORITY_KEY, false, tagged(0x30, &tagged(0x80, &[7; 20]))),
        (SUBJECT_KEY, false, tagged(4, &[8; 20])),
        (KEY_USAGE, true, KEY_CERT_SIGN.into()),
        (BASIC, true, CA.into()),
        (CONSTRAINTS, true, permitted("contoso.example")),
    ]
}

/// Takes the place of the extension of its kind, or is one more.
fn with(mut extensions: Vec<Extension>, one: Extension) -> Vec<Extension> {
    without_mut(&mut extensions, one.0);
    extensions.push(one);
    extensions
}

fn without(mut extensions: Vec<Extension>, kind: u64) -> Vec<Extension> {
    without_mut(&mut extensions, kind);
    extensions
}

fn without_mut(extensions: &mut Vec<Extension>, kind: u64) {
    extensions.retain(|(other, _, _)| *other != kind);
}

fn made(subject: &str, extensions: &[Extension], key: &KeyPair, serial: &[u8]) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if !subject.is_empty() {
        params.distinguished_name.push(DnType::CommonName, subject);
    }
    params.serial_number = Some(SerialNumber::from_slice(serial));
    params.custom_extensions = extensions
        .iter()
        .map(|(kind, critical, content)| {
            let mut one = CustomExtension::from_oid_content(&[2, 5, 29, *kind], content.clone());
            one.set_criticality(*critical);
            one
        })
        .collect();
    params.self_signed(key).unwrap().der().clone()
}

type Judge = fn(&X509Certificate<'_>) -> Result<(), Flaw>;

fn judged(judge: Judge, der: &[u8]) -> Result<(), Flaw> {
    let (_, parsed) = X509Certificate::from_der(der).unwrap();
    judge(&parsed)
}

fn a_server(one: &X509Certificate<'_>) -> Result<(), Flaw> {
    leaf(one, Role::Server)
}

#[track_caller]
fn check(judge: Judge, extensions: &[Extension], expected: Result<(), Flaw>) {
    let key = KeyPair::generate().unwrap();
    assert_eq!(judged(judge, &made("somebody", extensions, &key, &[0x40; 16])), expected);
}

#[test]
fn each_rule_for_a_leaf_has_a_certificate_that_breaks_it() {
    let check = |extensions: &[Extension], expected| check(a_server, extensions, expected);
    check(&good_leaf(), Ok(()));
    check(&without(good_leaf(), KEY_USAGE), Ok(()));
    check(&without(good_leaf(), BASIC), Ok(()));
    check(&without(good_leaf(), PURPOSES), Err(Flaw::Purpose));
    check(&with(good_leaf(), (PURPOSES, true, tagged(0x30, SERVER))), Err(Flaw::Purpose));
    check(&with(good_leaf(), (PURPOSES, false, tagged(0x30, ANY))), Err(Flaw::Purpose));
    check(&with(good_leaf(), (PURPOSES, false, tagged(0x30, &[SERVER, ANY].concat()))), Err(Flaw::Purpose));
    check(&with(good_leaf(), (PURPOSES, false, tagged(0x30, CLIENT))), Err(Flaw::Purpose));
    check(&with(good_leaf(), (CONSTRAINTS, true, permitted("contoso.example"))), Err(Flaw::NameConstraints));
    check(&without(good_leaf(), AUTHORITY_KEY), Err(Flaw::AuthorityKey));
    check(&with(good_leaf(), (AUTHORITY_KEY, false, vec![0x30, 0])), Err(Flaw::AuthorityKey));
    check(&with(good_leaf(), (AUTHORITY_KEY, true, tagged(0x30, &tagged(0x80, &[7; 20])))), Err(Flaw::AuthorityKey));
    check(&with(good_leaf(), (KEY_USAGE, true, KEY_CERT_SIGN.into())), Err(Flaw::KeyUsage));
    check(&with(good_leaf(), (KEY_USAGE, true, BOTH.into())), Err(Flaw::KeyUsage));
    check(&with(good_leaf(), (KEY_USAGE, true, CRL_SIGN.into())), Err(Flaw::KeyUsage));
    check(&with(good_leaf(), (BASIC, true, CA.into())), Err(Flaw::BasicConstraints));
    check(&with(good_leaf(), (BASIC, true, tagged(0x30, &[2, 1, 0]))), Err(Flaw::BasicConstraints));
    let twice = [good_leaf(), vec![good_leaf()[0].clone()]].concat();
    check(&twice, Err(Flaw::Extension));
    let unknown = (UNKNOWN, false, vec![5, 0]);
    check(&[good_leaf(), vec![unknown.clone(), unknown]].concat(), Err(Flaw::Extension));
    check(&with(good_leaf(), (KEY_USAGE, true, vec![5, 0])), Err(Flaw::Extension));
}

#[test]
fn each_rule_for_an_authority_has_a_certificate_that_breaks_it() {
    let check = |extensions: &[Extension], expected| check(authority, extensions, expected);
    check(&good_authority(), Ok(()));
    check(&without(good_authority(), CONSTRAINTS), Ok(()));
    check(&without(good_authority(), BASIC), Err(Flaw::BasicConstraints));
    check(&with(good_authority(), (BASIC, true, NO_CA.into())), Err(Flaw::BasicConstraints));
    check(&with(good_authority(), (BASIC, false, CA.into())), Err(Flaw::BasicConstraints));
    check(&without(good_authority(), KEY_USAGE), Err(Flaw::KeyUsage));
    check(&with(good_authority(), (KEY_USAGE, true, CRL_SIGN.into())), Err(Flaw::KeyUsage));
    check(&without(good_authority(), SUBJECT_KEY), Err(Flaw::SubjectKey));
    check(&with(good_authority(), (SUBJECT_KEY, true, tagged(4, &[8; 20]))), Err(Flaw::SubjectKey));
    check(&without(good_authority(), AUTHORITY_KEY), Err(Flaw::AuthorityKey));
    check(&with(good_authority(), (CONSTRAINTS, false, permitted("contoso.example"))), Err(Flaw::NameConstraints));
    check(&with(good_authority(), (CONSTRAINTS, true, permitted(".contoso.example"))), Err(Flaw::NameConstraints));
    check(&with(good_authority(), (CONSTRAINTS, true, excluded(".contoso.example"))), Err(Flaw::NameConstraints));
    check(&with(good_authority(), (CONSTRAINTS, true, excluded("fabrikam.example"))), Ok(()));
    check(&with(good_authority(), (CONSTRAINTS, true, vec![0x30, 0])), Err(Flaw::NameConstraints));
    check(&with(good_authority(), (AUTHORITY_KEY, true, good_authority()[0].2.clone())), Err(Flaw::AuthorityKey));
    check(&[good_authority(), vec![good_authority()[1].clone()]].concat(), Err(Flaw::Extension));
    check(
        &with(good_authority(), (POLICY_CONSTRAINTS, false, tagged(0x30, &[0x80, 1, 0]))),
        Err(Flaw::PolicyConstraints),
    );
    let key = KeyPair::generate().unwrap();
    assert_eq!(judged(authority, &made("", &good_authority(), &key, &[1])), Err(Flaw::Subject));
}

#[test]
fn each_rule_for_a_root_has_a_certificate_that_breaks_it() {
    let check = |extensions: &[Extension], expected| check(root, extensions, expected);
    let good = || without(good_authority(), AUTHORITY_KEY);
    check(&good(), Ok(()));
    check(&with(good(), (UNKNOWN, false, vec![5, 0])), Ok(()));
    check(&with(good(), (UNKNOWN, true, vec![5, 0])), Err(Flaw::CriticalExtension));
    check(&with(good(), (PURPOSES, false, tagged(0x30, CLIENT))), Err(Flaw::Purpose));
    check(&with(good(), (PURPOSES, false, tagged(0x30, &[SERVER, CLIENT].concat()))), Ok(()));
    check(&without(good(), BASIC), Err(Flaw::BasicConstraints));
    check(&with(good(), (BASIC, false, CA.into())), Err(Flaw::BasicConstraints));
    check(&without(good(), KEY_USAGE), Err(Flaw::KeyUsage));
    check(&with(good(), (KEY_USAGE, true, CRL_SIGN.into())), Err(Flaw::KeyUsage));
    check(&without(good(), SUBJECT_KEY), Err(Flaw::SubjectKey));
    check(&with(good(), (SUBJECT_KEY, true, tagged(4, &[8; 20]))), Err(Flaw::SubjectKey));
    check(&with(good(), (CONSTRAINTS, false, permitted("contoso.example"))), Err(Flaw::NameConstraints));
}

#[test]
fn serial_numbers_are_positive_and_at_most_20_bytes_long() {
    let key = KeyPair::generate().unwrap();
    for (serial, expected) in
        [(vec![1], Ok(())), (vec![0xff; 20], Ok(())), (vec![0], Err(Flaw::Serial)), (vec![0x40; 21], Err(Flaw::Serial))]
    {
        assert_eq!(judged(a_server, &made("somebody", &good_leaf(), &key, &serial)), expected, "{serial:?}");
        assert_eq!(judged(authority, &made("somebody", &good_authority(), &key, &serial)), expected, "{serial:?}");
    }
    let mut negative = made("somebody", &good_leaf(), &key, &[0x40; 16]).to_vec();
    let at = negative.windows(18).position(|bytes| bytes[..2] == [2, 16] && bytes[2..] == [0x40; 16]).unwrap();
    negative[at + 2] = 0xc0;
    assert_eq!(judged(a_server, &negative), Err(Flaw::Serial));
}

#[test]
fn certificates_are_of_version_3() {
    let key = KeyPair::generate().unwrap();
    let mut der = made("somebody", &good_leaf(), &key, &[0x40; 16]).to_vec();
    // The version counts from 0.
    let at = der.windows(5).position(|bytes| bytes == [0xa0, 3, 2, 1, 2]).unwrap();
    der[at + 4] = 1;
    assert_eq!(judged(a_server, &der), Err(Flaw::Version));
}

#[test]
fn without_a_subject_the_names_must_be_critical() {
    let key = KeyPair::generate().unwrap();
    assert_eq!(judged(a_server, &made("", &good_leaf(), &key, &[1])), Err(Flaw::Names));
    let names = (NAMES, true, tagged(0x30, &tagged(0x82, b"a.contoso.example")));
    assert_eq!(judged(a_server, &made("", &with(good_leaf(), names), &key, &[1])), Ok(()));
}

#[test]
fn keys_are_of_the_known_curves_or_rsa_of_2048_bits_in_whole_bytes() {
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        assert_eq!(judged(a_server, &made("somebody", &good_leaf(), &key, &[1])), Ok(()), "{algorithm:?}");
    }
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    assert_eq!(judged(a_server, &made("somebody", &good_leaf(), &key, &[1])), Err(Flaw::Key));
    // The same point, said to lie on secp256k1.
    let key = KeyPair::generate().unwrap();
    let p256 = [6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let der = made("somebody", &good_leaf(), &key, &[1]).to_vec();
    let at = der.windows(10).position(|bytes| bytes == p256).unwrap();
    let mut other = der.clone();
    other[at + 9] = 6;
    assert_eq!(judged(a_server, &der), Ok(()));
    assert_eq!(judged(a_server, &other), Err(Flaw::Key));
}

#[test]
fn rsa_keys_are_measured_by_their_bits() {
    // The first byte of a modulus of 256 bytes: 2048 bits, 2047 bits.
    for (first, bytes, expected) in [(0x80, 256, true), (0x7f, 256, false), (0x7f, 384, false), (0xff, 255, false)] {
        let mut modulus = vec![first];
        modulus.resize(bytes, 1);
        assert_eq!(long_enough(&modulus), expected, "{first:#x}, {bytes} bytes");
        modulus.insert(0, 0);
        assert_eq!(long_enough(&modulus), expected, "0, {first:#x}, {bytes} bytes");
    }
}
