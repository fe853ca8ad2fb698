//! Lists as others read them: numbers, times, entries, size.

use std::collections::BTreeSet;

use proptest::prelude::*;
use rcgen::KeyPair;
use x509_parser::extensions::ParsedExtension;

use super::*;
use crate::{
    identity::DnsName,
    pki::{
        authority::{self, Authority, Material, Terms},
        register::{Listed, Register, fitting},
    },
};

/// What a Secret and a ConfigMap may hold, and what else is in them: roots, keys, the register.
const MOST: usize = 1 << 20;
const OTHERS: usize = 64 << 10;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn material() -> Material {
    let trust_domain = DnsName::parse("contoso.example").unwrap();
    let terms = Terms { permitted: vec![trust_domain.clone()], trust_domain, root_days: 3650, issuer_days: 30 };
    let keys = [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()];
    authority::create(&terms, keys, [Serial::from_random([1; 16]), Serial::from_random([2; 16])], now()).unwrap()
}

fn signer() -> Authority {
    Authority::load(&material(), now()).unwrap()
}

fn revoked(number: u64, at: Timestamp, reason: Reason) -> Revoked {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    Revoked { serial: Serial::from_random(bytes), at, reason }
}

/// Reads `pem` as a relying party.
fn read<T>(pem: &str, look: impl FnOnce(&CertificateRevocationList<'_>) -> T) -> T {
    let der = CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (rest, list) = CertificateRevocationList::from_der(der.as_ref()).unwrap();
    assert!(rest.is_empty());
    look(&list)
}

fn number(pem: &str) -> u64 {
    read(pem, |list| {
        let number = list.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::CRLNumber(number) => Some((extension.critical, number.try_into().unwrap())),
            _ => None,
        });
        let (critical, number) = number.unwrap();
        assert!(!critical, "RFC 5280 §5.2.3");
        number
    })
}

proptest! {
    #[test]
    fn a_list_outlives_every_leaf_that_is_issued_before_the_next_one(lifetime in 60_u32..=604_800, skew in 0_u32..=3_600) {
        let window = Window::of(1, lifetime, skew, now());
        let second = |instant: Timestamp| instant.as_second();
        prop_assert!(window.this_update <= now() && now() < window.next_update);
        prop_assert!(second(window.next_update) - second(window.this_update) >= i64::from(lifetime) + i64::from(skew));
        // The last leaf before the next list is signed a period from now, and looked at by a clock that lags.
        let last = second(now()) + period(lifetime) + i64::from(lifetime) + i64::from(skew);
        prop_assert!(second(window.next_update) >= last);
    }

    #[test]
    fn numbers_strictly_increase_whatever_is_asked_for(asked in proptest::collection::vec(0_u64..=700, 1..6)) {
        let mut register = Register::create(material(), Window::of(0, 3_600, 300, now()), now()).unwrap();
        let mut last = number(register.crl_pem());
        for asked in asked {
            register.publish(&Listed::new(), Window::of(asked, 3_600, 300, now()), now()).unwrap();
            let next = number(register.crl_pem());
            prop_assert!(next > last && next >= asked, "{asked} after {last}: {next}");
            last = next;
        }
    }
}

#[test]
fn numbers_are_read_back_at_every_length() {
    let signer = signer();
    for wanted in [1, 127, 128, 255, 256, 65_535, 1 << 31, 1 << 63, u64::MAX] {
        assert_eq!(number(&signer.sign_crl(&[], Window::of(wanted, 3_600, 300, now())).unwrap()), wanted);
    }
}

#[test]
fn entries_are_sorted_each_serial_once_and_none_is_dated_after_the_list() {
    let signer = signer();
    let ago = |seconds: i64| shift(now(), -seconds);
    let given = [
        revoked(3, ago(0), Reason::PodGone),
        revoked(1, ago(900), Reason::KeyCompromise),
        revoked(2, ago(600), Reason::ServerDeleted),
        revoked(2, ago(700), Reason::Suspended),
    ];
    let pem = signer.sign_crl(&given, Window::of(1, 3_600, 300, now())).unwrap();
    let second = |instant: Timestamp| instant.as_second();
    read(&pem, |list| {
        let found: Vec<_> = list
            .iter_revoked_certificates()
            .map(|one| (one.raw_serial().to_vec(), one.revocation_date.timestamp(), one.reason_code().unwrap().1.0))
            .collect();
        let serial = |number| revoked(number, now(), Reason::PodGone).serial.0.to_vec();
        let expected =
            vec![(serial(1), second(ago(900)), 1), (serial(2), second(ago(700)), 9), (serial(3), second(ago(300)), 5)];
        assert_eq!(found, expected);
        assert_eq!(list.last_update().timestamp(), second(ago(300)));
    });
}

#[test]
fn the_longest_lists_fit_into_a_secret_and_a_config_map() {
    let mut register = Register::create(material(), Window::of(1, 3_600, 300, now()), now()).unwrap();
    let key_id = register.load(now()).unwrap().active.key_id().to_owned();
    let all: BTreeSet<Revoked> = (0..30_000).map(|number| revoked(number, now(), Reason::PodGone)).collect();
    let (listed, whole) = fitting(Listed::from([(key_id, all)]));
    assert!(!whole);
    register.publish(&listed, Window::of(2, 3_600, 300, now()), now()).unwrap();
    assert_eq!(register.published().entries, MAX_ENTRIES);
    let size = register.crl_pem().len();
    let first = register.crl_pem().split_inclusive("-----END X509 CRL-----\n").next().unwrap();
    let entries = read(first, |list| list.iter_revoked_certificates().count());
    assert_eq!(entries, MAX_ENTRIES);
    assert!(size + OTHERS <= MOST, "{size} bytes");
}
