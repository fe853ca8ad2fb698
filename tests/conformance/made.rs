//! A domain as the controller makes it: a register through a whole rotation, leaves of every kind, lists with every
//! reason.

use std::collections::{BTreeMap, BTreeSet};

use entente::{
    identity::{DnsName, SpiffeId},
    pki::{
        authority::{self, Authority, Material, Serial, Terms},
        crl::{Reason, Revoked, Window},
        csr::{self, Csr, Names},
        register::{Listed, Register},
        rotation::{Move, State},
    },
    telemetry,
};
use jiff::{SignedDuration, Timestamp};
use rcgen::KeyPair;

pub(crate) const LIFETIME: u32 = 3_600;
pub(crate) const SKEW: u32 = 300;
const POD_UID: &str = "3f1c0d9a-8a53-4f0e-9c1e-6b2a7f9d1e44";

pub(crate) fn name(text: &str) -> DnsName {
    DnsName::parse(text).unwrap()
}

pub(crate) fn serial() -> Serial {
    Serial::from_random(telemetry::random())
}

pub(crate) fn terms() -> Terms {
    let trust_domain = name("contoso.example");
    let permitted = vec![trust_domain.clone(), name("cluster.local"), name("svc")];
    Terms { trust_domain, permitted, root_days: 3650, issuer_days: 30 }
}

pub(crate) fn material(now: Timestamp) -> Material {
    let keys = [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()];
    authority::create(&terms(), keys, [serial(), serial()], now).unwrap()
}

pub(crate) fn window(now: Timestamp) -> Window {
    Window::of(1, LIFETIME, SKEW, now)
}

/// A register with one authority that signs.
pub(crate) fn register(now: Timestamp) -> Register {
    Register::create(material(now), window(now), now).unwrap()
}

/// What holds a certificate, and which names it then has.
pub(crate) fn holders() -> Vec<(&'static str, Names)> {
    let names = |dns: &[&str], pod: bool| {
        let id = SpiffeId::new(&name("contoso.example"), "shop", "db").unwrap();
        let dns_names = dns.iter().map(|text| name(text)).chain(id.topology_name()).collect();
        Names { id, dns_names, pod_uid: pod.then(|| POD_UID.to_owned()) }
    };
    let services = ["db.shop.svc", "db.shop.svc.cluster.local"];
    let member = ["db-0.db.shop.svc", "db-0.db.shop.svc.cluster.local"];
    let many: Vec<String> = (0..16).map(|number| format!("name-{number}.contoso.example")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    vec![
        ("pod", names(&services, true)),
        ("secret", names(&services, false)),
        ("member", names(&[services, member].concat(), true)),
        ("alone", names(&[], true)),
        ("many-names", names(&many, true)),
    ]
}

/// Signs a leaf; it is dated back as the controller does it.
pub(crate) fn leaf(authority: &Authority, names: Names, serial: Serial, signed_at: Timestamp) -> Vec<String> {
    let granted = Csr::parse(&csr::request(&KeyPair::generate().unwrap()).unwrap()).unwrap().grant(names);
    let validity = authority.leaf_validity(LIFETIME, SKEW, signed_at).unwrap();
    authority.sign(&granted, serial, validity).unwrap().chain
}

pub(crate) fn pod() -> Names {
    holders().swap_remove(0).1
}

/// One entry of every reason, the last one revoked just now.
pub(crate) fn every_reason(now: Timestamp) -> BTreeSet<Revoked> {
    let ago = |index: usize| now - SignedDuration::from_mins(i64::try_from(index).unwrap());
    Reason::ALL.into_iter().enumerate().map(|(at, reason)| Revoked { serial: serial(), at: ago(at), reason }).collect()
}

pub(crate) fn listed(key_id: &str, entries: BTreeSet<Revoked>) -> Listed {
    BTreeMap::from([(key_id.to_owned(), entries)])
}

/// Brings a new root in until it signs; what signed before retires.
pub(crate) fn rotate(register: &mut Register, now: Timestamp) -> String {
    let next = material(now);
    let key_id = Authority::load(&next, now).unwrap().key_id().to_owned();
    register.add(next, State::Prepared, now).unwrap();
    for step in [Move::Trust(key_id.clone()), Move::Activate(key_id.clone())] {
        assert!(register.take(&step, now));
    }
    key_id
}

/// The distinct roots of a register, as `ca.crt` holds them.
pub(crate) fn roots(register: &Register, now: Timestamp) -> String {
    let loaded = register.load(now).unwrap();
    let roots: BTreeSet<String> = loaded.members.iter().map(|(_, authority)| authority.root_pem().to_owned()).collect();
    roots.into_iter().collect()
}

/// The lists of `crl.pem`, one by one.
pub(crate) fn lists(pem: &str) -> Vec<String> {
    pem.split_inclusive("-----END X509 CRL-----\n").map(str::to_owned).collect()
}
