//! One certificate per line of the policy; issued chains verify in both roles.

use std::collections::BTreeSet;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};

use super::*;
use crate::{
    identity::DnsName,
    pki::{
        self,
        authority::{self, Authority, Serial, Terms},
        csr::{self, Csr, Names},
        shift,
    },
    refusal::NameDetail,
};

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn domain() -> DnsName {
    DnsName::parse("contoso.example").unwrap()
}

fn authority(root_days: u32, created: Timestamp) -> authority::Material {
    let terms = Terms {
        trust_domain: domain(),
        permitted: vec![domain(), DnsName::parse("cluster.local").unwrap()],
        root_days,
        issuer_days: root_days.min(30),
    };
    let keys = [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()];
    authority::create(&terms, keys, [Serial::from_random([1; 16]), Serial::from_random([2; 16])], created).unwrap()
}

fn names(server: &str) -> Names {
    let id = SpiffeId::new(&domain(), "sip", server).unwrap();
    let dns_names = BTreeSet::from([id.topology_name().unwrap()]);
    Names { id, dns_names, pod_uid: Some("0000-11".into()) }
}

fn ders(chain: &[String]) -> Vec<CertificateDer<'static>> {
    chain.iter().map(|pem| pki::certificate(pem).unwrap()).collect()
}

fn anchors(material: &authority::Material) -> Anchors {
    Anchors::parse(std::slice::from_ref(&material.root_certificate)).unwrap()
}

fn issue(material: &authority::Material, names: Names) -> Vec<CertificateDer<'static>> {
    let key = KeyPair::generate().unwrap();
    let granted = Csr::parse(&csr::request(&key).unwrap()).unwrap().grant(names);
    let authority = Authority::load(material, now()).unwrap();
    let validity = authority.leaf_validity(3600, 300, now()).unwrap();
    ders(&authority.sign(&granted, Serial::from_random([9; 16]), validity).unwrap().chain)
}

/// A leaf that our authority would never sign, signed with its issuing key directly.
fn forge(material: &authority::Material, change: impl FnOnce(&mut CertificateParams)) -> Vec<CertificateDer<'static>> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.use_authority_key_identifier_extension = true;
    params.not_before = pki::offset(shift(now(), -60));
    params.not_after = pki::offset(shift(now(), 60));
    params.subject_alt_names = vec![
        SanType::URI("spiffe://contoso.example/ns/sip/server/fe".try_into().unwrap()),
        SanType::DnsName("fe.sip.contoso.example".try_into().unwrap()),
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    change(&mut params);
    let issuer_key = KeyPair::from_pem(&material.issuer_key).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&material.issuer_certificate, issuer_key).unwrap();
    ders(&[params.signed_by(&key, &issuer).unwrap().pem(), material.issuer_certificate.clone()])
}

#[test]
fn an_issued_chain_verifies_in_both_roles_and_names_its_holder() {
    let material = authority(3650, now());
    let chain = issue(&material, names("fe"));
    for role in [Role::Client, Role::Server] {
        let verdict = verdict(&chain, role, &anchors(&material), now()).unwrap();
        assert_eq!(verdict.identity.id, names("fe").id);
        assert_eq!(verdict.identity.pod_uid.as_deref(), Some("0000-11"));
        assert_eq!(verdict.valid_until, shift(now(), 3600));
        assert_eq!(expect_server(&verdict.identity, &names("fe").id), Ok(()));
        let other = expect_server(&verdict.identity, &names("other").id);
        assert_eq!(other, Err(Refusal::WrongServer(ServerDetail::Uri)));
    }
}

#[test]
fn a_leaf_that_is_sent_twice_counts_once() {
    let material = authority(3650, now());
    let mut chain = issue(&material, names("fe"));
    chain.insert(1, chain[0].clone());
    assert!(verdict(&chain, Role::Client, &anchors(&material), now()).is_ok());
}

#[test]
fn no_leaf_outlives_its_issuer() {
    let material = authority(1, now());
    let authority = Authority::load(&material, now()).unwrap();
    let validity = authority.leaf_validity(604_800, 300, now()).unwrap();
    assert!(validity.not_after < authority.issuer_validity().not_after);
    assert!(authority.leaf_validity(60, 300, shift(now(), 86_400 - 3_000)).is_err());
}

#[test]
fn the_next_issuer_signs_leaves_that_the_same_root_vouches_for() {
    let material = authority(3650, now());
    let terms = Terms { trust_domain: domain(), permitted: vec![domain()], root_days: 3650, issuer_days: 30 };
    let key = KeyPair::generate().unwrap();
    let next = authority::renew_issuer(&material, &terms, &key, Serial::from_random([5; 16]), now()).unwrap();
    assert_ne!(next.issuer_certificate, material.issuer_certificate);
    assert!(verdict(&issue(&next, names("fe")), Role::Client, &anchors(&material), now()).is_ok());
}

#[test]
fn an_authority_whose_parts_do_not_fit_is_not_loaded() {
    let (material, other) = (authority(3650, now()), authority(3650, now()));
    let mixed = authority::Material { issuer_key: other.issuer_key.clone(), ..material.clone() };
    assert!(Authority::load(&mixed, now()).is_err());
    let mixed = authority::Material { root_key: other.root_key.clone(), ..material.clone() };
    assert!(Authority::load(&mixed, now()).is_err());
    let mixed =
        authority::Material { root_key: other.root_key, root_certificate: other.root_certificate, ..material.clone() };
    assert!(Authority::load(&mixed, now()).is_err());
    assert!(Authority::load(&material, shift(now(), 40 * 86_400)).is_err());
}

#[test]
fn each_broken_chain_is_refused_with_its_own_reason() {
    let material = authority(3650, now());
    let check = |chain: &[CertificateDer<'_>], expected: Refusal| {
        assert_eq!(verdict(chain, Role::Client, &anchors(&material), now()), Err(expected));
    };
    let no_path = Refusal::UntrustedRoot(RootDetail::NoPath);
    check(&[], Refusal::NoCertificate);
    check(&issue(&authority(3650, now()), names("fe")), no_path);
    check(&issue(&material, names("fe"))[..1], no_path);
    check(&vec![issue(&material, names("fe"))[0].clone(); 5], Refusal::BadChain(ChainDetail::TooLarge));
    check(&[CertificateDer::from(vec![0x30, 0])], Refusal::BadChain(ChainDetail::Encoding));
    check(&forge(&material, |p| p.not_after = pki::offset(shift(now(), -1))), Refusal::Expired);
    check(&forge(&material, |p| p.not_before = pki::offset(shift(now(), 30))), Refusal::NotYetValid);
    let server_only = |p: &mut CertificateParams| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    check(&forge(&material, server_only), Refusal::WrongUsage);
    check(&forge(&material, |p| p.extended_key_usages.clear()), Refusal::WrongUsage);
    check(
        &forge(&material, |p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)),
        Refusal::BadChain(ChainDetail::Policy),
    );
    let outside = SanType::DnsName("fe.fabrikam.example".try_into().unwrap());
    check(&forge(&material, |p| p.subject_alt_names.push(outside)), Refusal::NameOutOfScope);
}

#[test]
fn a_leaf_has_exactly_one_uri_and_dns_names_only() {
    let material = authority(3650, now());
    let check = |chain: &[CertificateDer<'_>], detail: NameDetail| {
        let found = verdict(chain, Role::Server, &anchors(&material), now());
        assert_eq!(found, Err(Refusal::BadName(detail)));
    };
    let second = || SanType::URI("spiffe://contoso.example/ns/sip/server/other".try_into().unwrap());
    check(&forge(&material, |p| p.subject_alt_names.push(second())), NameDetail::SeveralIdentities);
    check(&forge(&material, |p| drop(p.subject_alt_names.remove(0))), NameDetail::NoIdentity);
    check(&forge(&material, |p| p.subject_alt_names.clear()), NameDetail::NoIdentity);
    let address = SanType::IpAddress([10, 0, 0, 1].into());
    check(&forge(&material, |p| p.subject_alt_names.push(address)), NameDetail::Kind);
    let https = SanType::URI("https://contoso.example".try_into().unwrap());
    check(&forge(&material, |p| p.subject_alt_names[0] = https), NameDetail::Grammar);
    let upper = SanType::DnsName("FE.contoso.example".try_into().unwrap());
    check(&forge(&material, |p| p.subject_alt_names.push(upper)), NameDetail::Grammar);
}

#[test]
fn an_expired_root_anchors_nothing() {
    let material = authority(3650, shift(now(), -3650 * 86_400 - 400));
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_before = pki::offset(shift(now(), -60));
    params.not_after = pki::offset(shift(now(), 60));
    let root = Issuer::from_ca_cert_pem(
        &material.root_certificate,
        KeyPair::from_pem(material.root_key.as_ref().unwrap()).unwrap(),
    )
    .unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let chain = ders(&[params.signed_by(&key, &root).unwrap().pem()]);
    let found = verdict(&chain, Role::Client, &anchors(&material), now());
    assert_eq!(found, Err(Refusal::UntrustedRoot(RootDetail::AnchorExpired)));
}

/// A root that lets `most` authorities follow each other, one authority between, and a leaf.
fn long_chain(most: u8, break_link: bool) -> (Vec<CertificateDer<'static>>, Anchors) {
    let made = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        params.use_authority_key_identifier_extension = true;
        params
    };
    let mut root = made("root");
    root.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(most));
    let (root_key, one_key, two_key) =
        (KeyPair::generate().unwrap(), KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let root = Issuer::new(root, &root_key);
    let one = made("one").signed_by(&one_key, &root).unwrap().pem();
    let mut above = made("one");
    if break_link {
        above.key_identifier_method = rcgen::KeyIdMethod::PreSpecified(vec![7; 20]);
    }
    let two = made("two").signed_by(&two_key, &Issuer::new(above, &one_key)).unwrap().pem();
    let mut leaf = CertificateParams::default();
    leaf.use_authority_key_identifier_extension = true;
    leaf.subject_alt_names = vec![SanType::URI("spiffe://contoso.example/ns/sip/server/fe".try_into().unwrap())];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = leaf.signed_by(&leaf_key, &Issuer::new(made("two"), &two_key)).unwrap().pem();
    (ders(&[leaf, two, one]), Anchors::parse(&[root_pem]).unwrap())
}

#[test]
fn key_identifiers_hold_along_the_path_whatever_the_order_of_the_chain() {
    let (chain, anchors) = long_chain(2, false);
    let judge =
        |chain: &[CertificateDer<'_>], anchors: &Anchors| examine(chain, Role::Server, anchors, now()).map(|_| ());
    assert_eq!(judge(&chain, &anchors), Ok(()));
    let shuffled = [0, 2, 1].map(|index: usize| chain[index].clone());
    assert_eq!(judge(&shuffled, &anchors), Ok(()));
    let (broken, anchors) = long_chain(2, true);
    assert_eq!(judge(&broken, &anchors), Err(Fault::Flawed(1, Flaw::ForeignKey)));
    let shuffled = [0, 2, 1].map(|index: usize| broken[index].clone());
    assert_eq!(judge(&shuffled, &anchors), Err(Fault::Flawed(2, Flaw::ForeignKey)));
}

#[test]
fn what_a_peer_sends_beside_its_path_does_not_count() {
    let material = authority(3650, now());
    let mut chain = issue(&material, names("fe"));
    let alone = verdict(&chain, Role::Server, &anchors(&material), now());
    chain.extend(ders(std::slice::from_ref(&material.root_certificate)));
    // Another authority's issuer, long expired.
    chain.extend(ders(&[authority(1, shift(now(), -90 * 86_400)).issuer_certificate]));
    assert!(alone.is_ok());
    assert_eq!(verdict(&chain, Role::Server, &anchors(&material), now()), alone);
}

#[test]
fn the_path_length_of_a_root_counts() {
    let (chain, anchors) = long_chain(1, false);
    let found = examine(&chain, Role::Server, &anchors, now());
    assert_eq!(found, Err(Fault::Broken(Flaw::PathLength)));
    assert_eq!(Refusal::from(found.unwrap_err()), Refusal::BadChain(ChainDetail::Policy));
}

#[test]
fn a_root_that_breaks_the_policy_is_named_and_anchors_nothing() {
    let material = authority(3650, now());
    let pems = [material.root_certificate.clone(), forge_pem(&material)];
    assert_eq!(Anchors::parse(&pems).unwrap_err(), AnchorError::Flawed(1, Flaw::BasicConstraints));
    assert_eq!(Anchors::parse(&["no certificate".into()]).unwrap_err(), AnchorError::NotACertificate(0));
    let many = vec![material.root_certificate; 65];
    assert_eq!(Anchors::parse(&many).unwrap_err(), AnchorError::TooMany);
}

fn forge_pem(material: &authority::Material) -> String {
    let leaf = forge(material, |params| {
        params.distinguished_name.push(rcgen::DnType::CommonName, "leaf");
    });
    pki::bundle::encode(&leaf[0])
}
