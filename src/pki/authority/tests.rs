//! Somebody else's authority: what cannot sign for a domain is refused, and each refusal says what must change.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyUsagePurpose, NameConstraints,
};

use super::*;
use crate::pki::offset;

const DAY: i64 = 86_400;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn name(text: &str) -> DnsName {
    DnsName::parse(text).unwrap()
}

/// A chain of authorities as an owner may give it: root, one between, issuer.
struct Chain {
    root: CertificateParams,
    between: Vec<CertificateParams>,
    issuer: CertificateParams,
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = offset(shift(now(), -DAY));
    params.not_after = offset(shift(now(), DAY));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    params
}

fn permitted(subtree: GeneralSubtree) -> Option<NameConstraints> {
    Some(NameConstraints { permitted_subtrees: vec![subtree], excluded_subtrees: vec![] })
}

impl Chain {
    fn new() -> Self {
        Self { root: authority("root"), between: vec![authority("between")], issuer: authority("issuer") }
    }

    fn make(&self) -> Material {
        let root_key = KeyPair::generate().unwrap();
        let root_certificate = self.root.self_signed(&root_key).unwrap().pem();
        let mut above = Issuer::from_ca_cert_pem(&root_certificate, root_key).unwrap();
        let mut between = vec![];
        for params in &self.between {
            let key = KeyPair::generate().unwrap();
            let pem = params.signed_by(&key, &above).unwrap().pem();
            above = Issuer::from_ca_cert_pem(&pem, key).unwrap();
            between.insert(0, pem);
        }
        let issuer_key = KeyPair::generate().unwrap();
        Material {
            root_certificate,
            root_key: None,
            between,
            issuer_certificate: self.issuer.signed_by(&issuer_key, &above).unwrap().pem(),
            issuer_key: issuer_key.serialize_pem(),
            root_crl: None,
        }
    }
}

fn judged(material: &Material) -> Result<(), AuthorityError> {
    Authority::load(material, now())?.prove(&name("contoso.example"), &[name("svc")].into(), now())
}

#[track_caller]
fn check(change: impl FnOnce(&mut Chain), expected: &str) {
    let mut chain = Chain::new();
    change(&mut chain);
    refused(&chain.make(), expected);
}

#[track_caller]
fn refused(material: &Material, expected: &str) {
    assert_eq!(judged(material).map_err(|error| error.to_string()), Err(expected.to_owned()));
}

const NOT_A_CA: &str = "the issuing certificate must be a certificate authority's: basicConstraints CA, keyUsage \
     keyCertSign and cRLSign, a subjectKeyIdentifier and a subject";

#[test]
fn a_plain_chain_is_proven_and_so_is_one_that_permits_what_is_asked_for() {
    judged(&Chain::new().make()).unwrap();
    let mut chain = Chain::new();
    let subtrees = ["contoso.example", "svc"].map(|name| GeneralSubtree::DnsName(name.to_owned()));
    chain.issuer.name_constraints =
        Some(NameConstraints { permitted_subtrees: subtrees.into(), excluded_subtrees: vec![] });
    chain.issuer.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    chain.between[0].is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    chain.root.is_ca = IsCa::Ca(BasicConstraints::Constrained(2));
    judged(&chain.make()).unwrap();
}

#[test]
fn an_issuer_that_may_not_sign_is_refused() {
    check(|chain| chain.issuer.key_usages = vec![KeyUsagePurpose::KeyCertSign], NOT_A_CA);
    check(|chain| chain.issuer.key_usages = vec![KeyUsagePurpose::CrlSign], NOT_A_CA);
    check(|chain| chain.issuer.is_ca = IsCa::ExplicitNoCa, NOT_A_CA);
    check(|chain| chain.issuer.distinguished_name = DistinguishedName::new(), NOT_A_CA);
    check(|chain| chain.issuer = without_subject_key(), NOT_A_CA);
}

/// rcgen gives every authority a subjectKeyIdentifier; this one is made of single extensions.
fn without_subject_key() -> CertificateParams {
    let mut params = authority("issuer");
    params.is_ca = IsCa::NoCa;
    let mut basic = CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 3, 1, 1, 0xff]);
    basic.set_criticality(true);
    params.custom_extensions = vec![basic];
    params
}

#[test]
fn constraints_that_do_not_fit_are_refused_with_the_name_that_they_hinder() {
    let dns = |name: &str| permitted(GeneralSubtree::DnsName(name.to_owned()));
    let must_permit = |name| {
        format!("the issuing certificate's name constraints must permit {name}, by DNS names only, or be left out")
    };
    check(|chain| chain.issuer.name_constraints = dns("fabrikam.example"), &must_permit("contoso.example"));
    check(|chain| chain.issuer.name_constraints = dns("contoso.example"), &must_permit("svc"));
    check(|chain| chain.between[0].name_constraints = dns("contoso.example"), &must_permit("svc"));
    check(|chain| chain.root.name_constraints = dns("contoso.example"), &must_permit("svc"));
    // webpki knows no constraints on URIs, and refuses what it does not know.
    let host = |chain: &mut Chain| chain.issuer.custom_extensions = vec![uri_constraint("contoso.example")];
    check(host, &must_permit("contoso.example"));
    check(
        |chain| chain.issuer.name_constraints = dns(".contoso.example"),
        "a certificate that it signs does not verify: certificate 1 of the chain: its nameConstraints must be an \
         authority's, critical, not empty, and without leading dots",
    );
}

fn uri_constraint(host: &str) -> CustomExtension {
    let length = u8::try_from(host.len()).unwrap();
    let header = [0x30, length + 6, 0xa0, length + 4, 0x30, length + 2, 0x86, length];
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 30], [&header, host.as_bytes()].concat());
    extension.set_criticality(true);
    extension
}

#[test]
fn what_stands_above_must_let_it_sign() {
    let path_length = "a certificate that it signs does not verify: the chain: more authorities follow each other than a path length allows";
    let most = |length| IsCa::Ca(BasicConstraints::Constrained(length));
    check(|chain| chain.between[0].is_ca = most(0), path_length);
    check(|chain| chain.root.is_ca = most(0), path_length);
    check(|chain| chain.root.is_ca = most(1), path_length);
    check(
        |chain| chain.between[0].extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
        "a certificate that it signs does not verify: WrongUsage",
    );
    check(
        |chain| chain.root.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
        "a certificate that it signs does not verify: root 0 cannot be trusted: its extendedKeyUsage must name the \
         purpose itself, not anyExtendedKeyUsage, and not be critical",
    );
    check(
        |chain| chain.between[0].use_authority_key_identifier_extension = false,
        "a certificate that it signs does not verify: certificate 2 of the chain: its authorityKeyIdentifier must be \
         there, with a key identifier, and not be critical",
    );
    check(
        |chain| chain.between[0].key_usages = vec![KeyUsagePurpose::CrlSign],
        "a certificate that it signs does not verify: certificate 2 of the chain: its keyUsage must hold keyCertSign \
         where it is an authority's, else digitalSignature and no signing of others",
    );
}

#[test]
fn what_is_out_of_date_of_another_key_or_of_another_chain_is_refused() {
    let past = offset(shift(now(), -1));
    check(|chain| chain.issuer.not_after = past, "the issuing certificate is outside its validity");
    check(|chain| chain.root.not_after = past, "the root certificate is outside its validity");
    check(|chain| chain.between[0].not_after = past, "a certificate that it signs does not verify: Expired");
    let (one, other) = (Chain::new().make(), Chain::new().make());
    refused(
        &Material { issuer_key: other.issuer_key.clone(), ..one.clone() },
        "the issuer's key does not belong to its certificate",
    );
    let broken = "the issuing certificate does not lead to the root: each certificate must be signed by the next one";
    refused(&Material { between: vec![], ..one.clone() }, broken);
    refused(&Material { between: other.between.clone(), ..one.clone() }, broken);
    refused(&Material { root_certificate: other.root_certificate, ..one.clone() }, broken);
    refused(&Material { issuer_key: "no key".into(), ..one }, "the issuer's key is not readable PEM");
    let mut long = Chain::new();
    long.between = vec![authority("a"), authority("b"), authority("c")];
    refused(&long.make(), "at most 2 certificates may lie between the issuing certificate and the root");
}

#[test]
fn a_key_that_cannot_sign_is_refused_with_what_is_wrong_about_it() {
    let block =
        |label: &str, more: &str, body: &str| format!("-----BEGIN {label}-----\n{more}{body}\n-----END {label}-----\n");
    let refused = |issuer_key| judged(&Material { issuer_key, ..Chain::new().make() }).unwrap_err().to_string();
    let locked = "the issuer's key is encrypted: it must be given without a password";
    assert_eq!(refused(block("ENCRYPTED PRIVATE KEY", "", "MAA=")), locked);
    assert_eq!(
        refused(block("EC PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n", "MAA=")),
        locked
    );
    let kinds = "the issuer's key must be ECDSA P-256 or P-384, Ed25519, or RSA of at least 2048 bits";
    assert_eq!(refused(block("PRIVATE KEY", "", "MAA=")), kinds);
    for nothing in [String::new(), block("CERTIFICATE", "", "MAA=")] {
        assert_eq!(refused(nothing), "the issuer's key is not readable PEM");
    }
}

#[test]
fn the_list_of_a_root_is_the_roots_own() {
    let ours = |material: &Material| Authority::load(material, now()).map(|_| ()).map_err(|error| error.to_string());
    let keys = || [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()];
    let terms =
        Terms { trust_domain: name("contoso.example"), permitted: vec![name("svc")], root_days: 9, issuer_days: 9 };
    let serials = || [Serial::from_random([1; 16]), Serial::from_random([2; 16])];
    let [one, other] = [keys(), keys()].map(|keys| create(&terms, keys, serials(), now()).unwrap());
    let window = Window::of(1, 3_600, 300, now());
    let list = |material: &Material| Authority::load(material, now()).unwrap().sign_root_crl(&[], window).unwrap();
    assert_eq!(ours(&Material { root_crl: list(&one), ..one.clone() }), Ok(()));
    let foreign =
        "the CRL must be PEM, signed by the root in its own name, and whole (no critical extension)".to_owned();
    assert_eq!(ours(&Material { root_crl: list(&other), ..one.clone() }), Err(foreign.clone()));
    assert_eq!(ours(&Material { root_crl: Some("no list".into()), ..one }), Err(foreign));
}
