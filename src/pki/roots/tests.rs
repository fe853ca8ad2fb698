//! What counts as a root; and roots for the tests of others.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};

use super::*;
use crate::pki::offset;

/// A root of `name`, valid between two moments (seconds), PEM.
pub(crate) fn authority(name: &str, from: i64, until: i64) -> String {
    authority_of(&KeyPair::generate().unwrap(), name, (from, until))
}

/// The same with a key that is given.
pub(crate) fn authority_of(key: &KeyPair, name: &str, (from, until): (i64, i64)) -> String {
    let at = |second| offset(Timestamp::from_second(second).unwrap());
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (at(from), at(until));
    params.self_signed(key).unwrap().pem()
}

/// A certificate that is no authority's.
pub(crate) fn leaf(name: &str) -> String {
    let key = KeyPair::generate().unwrap();
    CertificateParams::new(vec![name.to_owned()]).unwrap().self_signed(&key).unwrap().pem()
}

#[test]
fn roots_are_read_one_by_one_each_once_and_in_an_order_of_their_own() {
    let (one, two) = (authority("one", 0, 1_000), authority("two", 0, 2_000));
    let there = read(&format!("# of fabrikam\n{one}{two}{one}")).unwrap();
    let back = read(&format!("{two}{}", one.replace('\n', "\r\n"))).unwrap();
    assert_eq!((there.len(), &there), (2, &back));
    let named = |name: &str| {
        let found = there.iter().flatten().find(|root| root.subject.contains(name)).unwrap();
        (found.validity.not_after.as_second(), key_of(&crate::pki::certificate(&found.pem).unwrap()).unwrap())
    };
    assert_eq!((named("one").0, named("two").0), (1_000, 2_000));
    assert!(there.iter().flatten().all(|root| root.key == named("one").1 || root.key == named("two").1));
}

#[test]
fn what_is_no_root_is_named_and_leaves_the_others() {
    let mixed = read(&format!("{}{}", authority("good", 0, 9), leaf("www.fabrikam.example"))).unwrap();
    assert_eq!(mixed.iter().filter(|one| one.is_ok()).count(), 1);
    assert!(mixed.iter().any(|one| matches!(one, Err(RootError::Unfit { .. }))));
    for nonsense in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nM!A\n-----END CERTIFICATE-----\n"] {
        assert_eq!(read(nonsense), Err(RootError::Unreadable), "{nonsense:?}");
    }
    let empty = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    assert_eq!(read(empty).unwrap(), vec![Err(RootError::Unreadable)]);
    let many: String = (0..=MAX_ROOTS).map(|_| empty).collect();
    assert_eq!(read(&many), Err(RootError::TooMany));
}
