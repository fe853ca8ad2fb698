//! Partners: which names, keys and roots of theirs are believed, and which briefs are not.

use base64::prelude::{BASE64_STANDARD, Engine};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, NameConstraints, PublicKeyData, SanType,
};
use sha2::{Digest, Sha256};

use super::*;
use crate::{
    brief::{AllowedPartner, Cursor, Egress, OnPeerExpiry, PartnerEdge, PartnerStanding, Port, Standing, VERSION},
    pki::{
        self, shift,
        verify::{AnchorError, PartnerProblem},
    },
    refusal::{ChainDetail, NameDetail, RootDetail},
};

pub(in crate::pki::verify) fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

pub(in crate::pki::verify) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

pub(in crate::pki::verify) fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}

pub(in crate::pki::verify) fn ip(address: [u8; 4]) -> SanType {
    SanType::IpAddress(address.into())
}

/// An authority of another organisation: one root that signs leaves itself.
pub(in crate::pki::verify) struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pub(in crate::pki::verify) pem: String,
}

impl Authority {
    pub(in crate::pki::verify) fn new(name: &str) -> Self {
        Self::with(name, KeyPair::generate().unwrap(), |_| ())
    }

    fn with(name: &str, key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("{name} root"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        change(&mut params);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    /// An authority below this one.
    fn below(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (mut params, key) = (self.params.clone(), KeyPair::generate().unwrap());
        params.distinguished_name.push(DnType::CommonName, "issuer");
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let pem = params.signed_by(&key, &Issuer::new(self.params.clone(), &self.key)).unwrap().pem();
        Self { params, key, pem }
    }

    /// A leaf for a client, without names.
    pub(in crate::pki::verify) fn leaf(
        &self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<CertificateDer<'static>> {
        self.leaf_for(&KeyPair::generate().unwrap(), change)
    }

    fn leaf_for(&self, key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Vec<CertificateDer<'static>> {
        let mut params = CertificateParams::default();
        params.use_authority_key_identifier_extension = true;
        params.not_before = pki::offset(shift(now(), -60));
        params.not_after = pki::offset(shift(now(), 60));
        params.distinguished_name.push(DnType::CommonName, "somebody");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        vec![params.signed_by(key, &Issuer::new(self.params.clone(), &self.key)).unwrap().der().clone()]
    }

    fn named(&self, names: &[SanType]) -> Vec<CertificateDer<'static>> {
        self.leaf(|params| params.subject_alt_names = names.to_vec())
    }
}

fn name(text: &str) -> DnsName {
    DnsName::parse(text).unwrap()
}

fn names(domains: &[&str]) -> PartnerNames {
    let domains = domains.iter().map(|domain| name(domain)).collect();
    PartnerNames { domains, server_names: vec![], public_key_pins: vec![], trust_domain: None, web: false }
}

fn scope(partner: &str, names: PartnerNames, anchors: &[&Authority]) -> Scope {
    Scope {
        id: partner_scope(partner),
        names: ScopeNames::Partner(names),
        anchors: anchors.iter().map(|one| one.pem.clone()).collect(),
        issuers: vec![],
        revocation: None,
    }
}

fn listing(partners: &[&str]) -> Allow {
    let entry = |name: &&str| AllowedPartner { name: (*name).to_owned(), target_port: None };
    Allow { partners: partners.iter().map(entry).collect(), ..Allow::default() }
}

/// An active partner without edges.
fn link(name: &str) -> PartnerLink {
    PartnerLink {
        name: name.to_owned(),
        standing: PartnerStanding::Active,
        edges: vec![],
        tls12: false,
        presents: false,
        max_connections: 1,
        handshakes_per_second: 1,
    }
}

/// The brief of an Edge server whose one port lists `partners`.
fn brief(partners: &[&str], scopes: Vec<Scope>) -> Brief {
    let port = Port {
        name: "edge".into(),
        port: 5061,
        target_port: 5060,
        mode: Mode::MutualTls,
        allow: listing(partners),
        server_tls: None,
    };
    let partners = scopes.iter().filter_map(|scope| scope.id.strip_prefix("partner/")).map(link).collect();
    Brief {
        version: VERSION,
        cursor: Cursor::default(),
        identity: SpiffeId::parse("spiffe://contoso.example/ns/edge/server/sip").unwrap(),
        standing: Standing::Active,
        names: vec![name("sip.contoso.net")],
        lifetime_seconds: 3600,
        issuer: String::new(),
        renew_within_seconds: 0,
        on_peer_expiry: OnPeerExpiry::default(),
        ports: vec![port],
        edges: vec![],
        egress: Egress::default(),
        scopes,
        drain_seconds: 30,
        partners,
        web_roots: vec![],
    }
}

/// Judges a caller of a port that lists the partners of `scopes`.
fn judge(chain: &[CertificateDer<'_>], scopes: Vec<Scope>) -> Result<Peer, Refusal> {
    let listed: Vec<String> = scopes.iter().map(|scope| scope.id["partner/".len()..].to_owned()).collect();
    let listed: Vec<&str> = listed.iter().map(String::as_str).collect();
    let brief = brief(&listed, scopes);
    let partners = Partners::of(&brief, None).unwrap();
    caller(chain, &brief, &partners)
}

fn caller(chain: &[CertificateDer<'_>], brief: &Brief, partners: &Partners) -> Result<Peer, Refusal> {
    let scopes = Scopes { ours: brief.identity.trust_domain(), internal: &Anchors::default(), partners };
    let chosen = scopes.choose(chain, &brief.ports[0].allow)?;
    scopes.verdict(chosen, chain, now()).map(|proven| Peer::clone(&proven.peer))
}

fn fabrikam(authority: &Authority) -> Scope {
    scope("fabrikam", names(&["fabrikam.example", "fabrikam.net"]), &[authority])
}

#[test]
fn a_partner_proves_dns_names_inside_its_domains_and_nothing_else() {
    let authority = Authority::new("fabrikam");
    let (kind, grammar) = (Refusal::BadName(NameDetail::Kind), Refusal::BadName(NameDetail::Grammar));
    let outside = Refusal::NameOutOfScope;
    let good = || dns("sip.fabrikam.example");
    let mail = || SanType::Rfc822Name("a@fabrikam.example".try_into().unwrap());
    for (names, expected) in [
        (vec![good()], None),
        (vec![dns("fabrikam.example")], None),
        (vec![good(), dns("a.b.fabrikam.net")], None),
        (vec![dns("xn--mnchen-3ya.fabrikam.example")], None),
        (vec![dns("fe.sip.contoso.example")], Some(outside)),
        (vec![good(), dns("fe.sip.contoso.example")], Some(outside)),
        (vec![good(), dns("sip.litware.example")], Some(outside)),
        (vec![dns("evilfabrikam.example")], Some(outside)),
        (vec![dns("example")], Some(outside)),
        (vec![uri("spiffe://contoso.example/ns/sip/server/fe")], Some(outside)),
        (vec![uri("spiffe://fabrikam.example/ns/sip/server/fe")], Some(outside)),
        (vec![good(), uri("spiffe://contoso.example/ns/sip/server/fe")], Some(outside)),
        (vec![good(), uri("https://fabrikam.example/")], Some(outside)),
        (vec![], Some(outside)),
        (vec![ip([10, 0, 0, 1])], Some(kind)),
        (vec![good(), ip([10, 0, 0, 1])], Some(kind)),
        (vec![good(), mail()], Some(kind)),
        (vec![dns("*.fabrikam.example")], Some(grammar)),
        (vec![dns("SIP.fabrikam.example")], Some(grammar)),
        (vec![dns("sip.fabrikam.example.")], Some(grammar)),
        (vec![dns("s_ip.fabrikam.example")], Some(grammar)),
        (vec![dns("")], Some(grammar)),
    ] {
        let found = judge(&authority.named(&names), vec![fabrikam(&authority)]);
        assert_eq!(found.as_ref().err(), expected.as_ref(), "{names:?}: {found:?}");
    }
}

#[test]
fn a_common_name_is_no_name() {
    let authority = Authority::new("fabrikam");
    let chain = authority.leaf(|params| params.distinguished_name.push(DnType::CommonName, "sip.fabrikam.example"));
    assert_eq!(judge(&chain, vec![fabrikam(&authority)]), Err(Refusal::NameOutOfScope));
}

#[test]
fn the_scope_that_names_choose_is_the_only_one_whose_roots_count() {
    let (one, other) = (Authority::new("fabrikam"), Authority::new("litware"));
    let scopes = || vec![fabrikam(&one), scope("litware", names(&["litware.example"]), &[&other])];
    let proven = |chain: &[CertificateDer<'_>]| judge(chain, scopes()).map(|peer| peer.to_string());
    assert_eq!(proven(&one.named(&[dns("sip.fabrikam.example")])), Ok("partner/fabrikam".to_owned()));
    assert_eq!(proven(&other.named(&[dns("sip.litware.example")])), Ok("partner/litware".to_owned()));
    let no_path = Err(Refusal::UntrustedRoot(RootDetail::NoPath));
    assert_eq!(proven(&one.named(&[dns("sip.litware.example")])), no_path);
    assert_eq!(proven(&other.named(&[dns("sip.fabrikam.example")])), no_path);
    let both = one.named(&[dns("sip.fabrikam.example"), dns("sip.litware.example")]);
    assert_eq!(proven(&both), Err(Refusal::NameOutOfScope));
}

#[test]
fn exact_names_and_pins_narrow_what_a_partner_may_prove() {
    let (authority, key) = (Authority::new("fabrikam"), KeyPair::generate().unwrap());
    let pin = BASE64_STANDARD.encode(Sha256::digest(key.subject_public_key_info()));
    let check = |server_names: &[&str], pins: &[&str], name: &str| {
        let server_names = server_names.iter().map(|one| self::name(one)).collect();
        let public_key_pins = pins.iter().map(|one| (*one).to_owned()).collect();
        let names = PartnerNames { server_names, public_key_pins, ..names(&["fabrikam.example"]) };
        let chain = authority.leaf_for(&key, |params| params.subject_alt_names = vec![dns(name)]);
        judge(&chain, vec![scope("fabrikam", names, &[&authority])]).map(drop)
    };
    let other = BASE64_STANDARD.encode([7; 32]);
    assert_eq!(check(&["sip.fabrikam.example"], &[], "sip.fabrikam.example"), Ok(()));
    assert_eq!(check(&["sip.fabrikam.example"], &[], "fe.fabrikam.example"), Err(Refusal::NameOutOfScope));
    assert_eq!(check(&["sip.fabrikam.example"], &[], "a.sip.fabrikam.example"), Err(Refusal::NameOutOfScope));
    assert_eq!(check(&[], &[&other, &pin], "sip.fabrikam.example"), Ok(()));
    assert_eq!(check(&[], &[&other], "sip.fabrikam.example"), Err(Refusal::PinMismatch));
    // Names come before pins.
    assert_eq!(check(&["sip.fabrikam.example"], &[&other], "fe.fabrikam.example"), Err(Refusal::NameOutOfScope));
}

#[test]
fn a_partner_may_use_rsa_of_2048_bits_and_the_curves_that_we_use() {
    let rsa = || KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let ec = |algorithm| KeyPair::generate_for(algorithm).unwrap();
    let policy = Err(Refusal::BadChain(ChainDetail::Policy));
    for (root, leaf, expected) in [
        (rsa(), rsa(), Ok(())),
        (rsa(), ec(&rcgen::PKCS_ECDSA_P256_SHA256), Ok(())),
        (ec(&rcgen::PKCS_ECDSA_P384_SHA384), rsa(), Ok(())),
        (ec(&rcgen::PKCS_ECDSA_P256_SHA256), ec(&rcgen::PKCS_ED25519), Ok(())),
        (rsa(), ec(&rcgen::PKCS_ECDSA_P521_SHA512), policy),
    ] {
        let authority = Authority::with("fabrikam", root, |_| ());
        let chain = authority.leaf_for(&leaf, |params| params.subject_alt_names = vec![dns("sip.fabrikam.example")]);
        let found = judge(&chain, vec![fabrikam(&authority)]).map(drop);
        assert_eq!(found, expected, "{:?} under {:?}", leaf.algorithm(), authority.key.algorithm());
    }
}

#[test]
fn a_partners_serial_numbers_need_not_look_like_ours() {
    let authority = Authority::new("fabrikam");
    for serial in [vec![1], vec![0x7f; 20]] {
        let chain = authority.leaf(|params| {
            params.subject_alt_names = vec![dns("sip.fabrikam.example")];
            params.serial_number = Some(serial.clone().into());
        });
        assert!(judge(&chain, vec![fabrikam(&authority)]).is_ok(), "{serial:?}");
    }
}

#[test]
fn a_root_that_constrains_itself_keeps_its_own_constraints_and_ours_hold_all_the_same() {
    let permitted_subtrees = ["sip.fabrikam.example", "litware.example"].map(|one| GeneralSubtree::DnsName(one.into()));
    let own = NameConstraints { permitted_subtrees: permitted_subtrees.to_vec(), excluded_subtrees: vec![] };
    let authority =
        Authority::with("fabrikam", KeyPair::generate().unwrap(), |params| params.name_constraints = Some(own));
    for (name, expected) in [
        ("sip.fabrikam.example", Ok(())),
        ("fe.fabrikam.example", Err(Refusal::NameOutOfScope)),
        ("sip.litware.example", Err(Refusal::NameOutOfScope)),
    ] {
        assert_eq!(judge(&authority.named(&[dns(name)]), vec![fabrikam(&authority)]).map(drop), expected, "{name}");
    }
}

#[test]
fn the_constraints_on_a_root_hold_along_the_whole_path() {
    let root = Authority::new("fabrikam");
    for (name, expected) in [
        ("ca.fabrikam.example", Ok(())),
        ("ca.contoso.example", Err(Refusal::NameOutOfScope)),
        ("ca.litware.example", Err(Refusal::NameOutOfScope)),
    ] {
        let issuer = root.below(|params| params.subject_alt_names = vec![dns(name)]);
        let mut chain = issuer.named(&[dns("sip.fabrikam.example")]);
        chain.push(pki::certificate(&issuer.pem).unwrap());
        assert_eq!(judge(&chain, vec![fabrikam(&root)]).map(drop), expected, "{name}");
    }
}

#[test]
fn an_unusable_root_costs_its_partner_that_root_and_nobody_anything_else() {
    let (one, other) = (Authority::new("fabrikam"), Authority::new("litware"));
    let mut broken = fabrikam(&one);
    broken.anchors.insert(0, "no certificate".to_owned());
    let mut unreadable = scope("litware", names(&["litware.example"]), &[&other]);
    let next_update = i64::MAX;
    unreadable.revocation = Some(crate::brief::Revocation { next_update, ..Default::default() });
    let brief = brief(&["fabrikam", "litware"], vec![broken.clone(), unreadable.clone()]);
    let partners = Partners::of(&brief, None).unwrap();
    let anchor = AnchorError::NotACertificate(0);
    assert_eq!(partners.get("fabrikam").unwrap().problems(), [PartnerProblem::Anchor(anchor)]);
    assert_eq!(partners.get("litware").unwrap().problems().len(), 1);
    let scopes = || vec![broken.clone(), unreadable.clone()];
    assert!(judge(&one.named(&[dns("sip.fabrikam.example")]), scopes()).is_ok());
    let found = judge(&other.named(&[dns("sip.litware.example")]), scopes());
    assert_eq!(found, Err(Refusal::UntrustedRoot(RootDetail::NoPath)));
}

#[test]
fn a_brief_whose_scopes_cannot_be_told_apart_is_none() {
    let authority = Authority::new("fabrikam");
    let one = |partner: &str, domains: &[&str]| scope(partner, names(domains), &[&authority]);
    let overlap = |a: &str, b: &str| Err(ScopeError::Overlap(a.to_owned(), b.to_owned()));
    let both = &["fabrikam", "litware"][..];
    let refused = |listed: &[&str], scopes: Vec<Scope>| Partners::of(&brief(listed, scopes), None).map(drop);
    let (fabrikam, litware) = ("partner/fabrikam", "partner/litware");
    let apart = vec![one("fabrikam", &["fabrikam.example"]), one("litware", &["litware.example"])];
    assert_eq!(refused(both, apart), Ok(()));
    for (domains, expected) in [
        ("fabrikam.example", overlap(fabrikam, litware)),
        ("sub.fabrikam.example", overlap(fabrikam, litware)),
        ("example", overlap("internal", litware)),
        ("contoso.example", overlap("internal", litware)),
        ("sip.contoso.example", overlap("internal", litware)),
        ("contoso.net", overlap("internal", litware)),
    ] {
        let scopes = vec![one("fabrikam", &["fabrikam.example"]), one("litware", &[domains])];
        assert_eq!(refused(both, scopes), expected, "{domains}");
    }
    let alone = || vec![one("fabrikam", &["fabrikam.example"])];
    assert_eq!(refused(&[], alone()), Err(ScopeError::Unlisted(fabrikam.to_owned())));
    assert_eq!(refused(&["litware"], alone()), Err(ScopeError::Unlisted(fabrikam.to_owned())));
    assert_eq!(refused(both, vec![one("fabrikam", &[])]), Err(ScopeError::Names(fabrikam.to_owned())));
    let mut moving = alone();
    moving[0].issuers.push("aa".to_owned());
    assert_eq!(refused(both, moving), Err(ScopeError::Ours(fabrikam.to_owned())));
    let mut servers = alone();
    servers[0].names = ScopeNames::Servers;
    assert_eq!(refused(both, servers), Err(ScopeError::Unknown(fabrikam.to_owned())));
    let mut internal = alone();
    internal[0].id = INTERNAL.to_owned();
    assert_eq!(refused(both, internal), Err(ScopeError::Unknown(INTERNAL.to_owned())));
    let pinned = PartnerNames { public_key_pins: vec!["short".to_owned()], ..names(&["fabrikam.example"]) };
    let pinned = vec![scope("fabrikam", pinned, &[&authority])];
    assert_eq!(refused(both, pinned), Err(ScopeError::Pin(fabrikam.to_owned(), PinError)));
}

#[test]
fn what_did_not_change_is_the_same_value_as_before() {
    let (one, other) = (Authority::new("fabrikam"), Authority::new("litware"));
    let scopes = |anchor: &Authority| vec![fabrikam(&one), scope("litware", names(&["litware.example"]), &[anchor])];
    let before = Partners::of(&brief(&["fabrikam", "litware"], scopes(&other)), None).unwrap();
    let after = Partners::of(&brief(&["fabrikam", "litware"], scopes(&one)), Some(&before)).unwrap();
    let same = |name: &str| Arc::ptr_eq(before.get(name).unwrap(), after.get(name).unwrap());
    assert!(same("fabrikam") && !same("litware"));
}

#[test]
fn a_scope_has_one_link_and_serves_somebody() {
    let authority = Authority::new("fabrikam");
    let good = || brief(&["fabrikam"], vec![fabrikam(&authority)]);
    let refused = |change: fn(&mut Brief)| {
        let mut brief = good();
        change(&mut brief);
        Partners::of(&brief, None).map(drop)
    };
    let edge = || PartnerEdge { host: name("sip.fabrikam.example"), port: 5061 };
    let link_error = |name: &str| Err(ScopeError::Link(name.to_owned()));
    assert_eq!(refused(|_| ()), Ok(()));
    assert_eq!(refused(|brief| brief.partners.clear()), link_error("fabrikam"));
    assert_eq!(refused(|brief| brief.partners.push(link("fabrikam"))), link_error("fabrikam"));
    assert_eq!(refused(|brief| brief.partners.push(link("litware"))), link_error("litware"));
    assert_eq!(refused(|brief| brief.scopes.clear()), link_error("fabrikam"));
    let unlisted = Err(ScopeError::Unlisted("partner/fabrikam".to_owned()));
    assert_eq!(refused(|brief| brief.ports.clear()), unlisted);
    let mut called = good();
    called.ports.clear();
    called.partners[0].edges = vec![edge()];
    assert_eq!(Partners::of(&called, None).map(drop), Ok(()), "it is called, and calls nobody");
    called.partners[0].edges = vec![edge(); MAX_EDGES + 1];
    assert_eq!(Partners::of(&called, None).map(drop), link_error("fabrikam"));
    for bad in ["partner/", "partner/a.b", "partner/..", "partner/a/b"] {
        let mut named = good();
        named.scopes[0].id = bad.to_owned();
        assert_eq!(Partners::of(&named, None).map(drop), Err(ScopeError::Unknown(bad.to_owned())));
    }
}

#[test]
fn a_partner_that_does_not_stand_is_refused_as_soon_as_its_names_have_chosen_it() {
    let (authority, stranger) = (Authority::new("fabrikam"), Authority::new("stranger"));
    for (standing, expected) in
        [(PartnerStanding::Suspended, Refusal::PartnerSuspended), (PartnerStanding::Expired, Refusal::PartnerExpired)]
    {
        let mut brief = brief(&["fabrikam"], vec![fabrikam(&authority)]);
        brief.partners[0].standing = standing;
        brief.scopes[0].anchors.clear();
        let partners = Partners::of(&brief, None).unwrap();
        for authority in [&authority, &stranger] {
            let chain = authority.named(&[dns("sip.fabrikam.example")]);
            assert_eq!(caller(&chain, &brief, &partners), Err(expected));
            assert_eq!(partners.get("fabrikam").unwrap().callee(&chain, now()), Err(expected));
        }
        let other = stranger.named(&[dns("sip.litware.example")]);
        assert_eq!(caller(&other, &brief, &partners), Err(Refusal::NameOutOfScope));
    }
}

#[test]
fn a_spiffe_partner_proves_one_identity_of_its_trust_domain_and_dns_names_inside_its_domains() {
    let authority = Authority::new("fabrikam");
    let names = || PartnerNames { trust_domain: Some(name("fabrikam.test")), ..names(&["fabrikam.example"]) };
    let id = || uri("spiffe://fabrikam.test/ns/web/sa/front");
    let several = Refusal::BadName(NameDetail::SeveralIdentities);
    let outside = Refusal::NameOutOfScope;
    for (names_in_leaf, expected) in [
        (vec![id()], None),
        (vec![id(), dns("sip.fabrikam.example")], None),
        (vec![dns("sip.fabrikam.example")], None),
        (vec![id(), uri("spiffe://fabrikam.test/other")], Some(several)),
        (vec![id(), uri("spiffe://litware.test/other")], Some(outside)),
        (vec![id(), uri("https://fabrikam.test/other")], Some(outside)),
        (vec![id(), uri("spiffe://contoso.example/ns/sip/server/fe")], Some(outside)),
        (vec![id(), dns("fe.sip.contoso.example")], Some(outside)),
        (vec![uri("spiffe://litware.test/other")], Some(outside)),
        (vec![uri("spiffe://sub.fabrikam.test/other")], Some(outside)),
        (vec![uri("spiffe://contoso.example/ns/sip/server/fe")], Some(outside)),
        (vec![uri("spiffe://fabrikam.test")], Some(Refusal::BadName(NameDetail::Grammar))),
        (vec![uri("spiffe://fabrikam.test/a/../b")], Some(Refusal::BadName(NameDetail::Grammar))),
        (vec![id(), ip([10, 0, 0, 1])], Some(Refusal::BadName(NameDetail::Kind))),
    ] {
        let scopes = vec![scope("fabrikam", names(), &[&authority])];
        let found = judge(&authority.named(&names_in_leaf), scopes);
        assert_eq!(found.as_ref().err(), expected.as_ref(), "{names_in_leaf:?}: {found:?}");
    }
    let proven = judge(&authority.named(&[id()]), vec![scope("fabrikam", names(), &[&authority])]).unwrap();
    let Peer::Partner(partner) = proven else { panic!("{proven}") };
    assert_eq!(partner.names().collect::<Vec<_>>(), ["spiffe://fabrikam.test/ns/web/sa/front"]);
}

#[test]
fn no_two_scopes_have_one_trust_domain() {
    let authority = Authority::new("fabrikam");
    let spiffe = |partner: &str, domain: &str, trust_domain: &str| {
        let names = PartnerNames { trust_domain: Some(name(trust_domain)), ..names(&[domain]) };
        scope(partner, names, &[&authority])
    };
    let found = |one: &str, other: &str| {
        let scopes = vec![spiffe("fabrikam", "fabrikam.example", one), spiffe("litware", "litware.example", other)];
        Partners::of(&brief(&["fabrikam", "litware"], scopes), None).map(drop)
    };
    let overlap = |a: &str, b: &str| Err(ScopeError::Overlap(a.to_owned(), b.to_owned()));
    assert_eq!(found("fabrikam.test", "litware.test"), Ok(()));
    assert_eq!(found("fabrikam.test", "sub.fabrikam.test"), Ok(()));
    assert_eq!(found("fabrikam.test", "fabrikam.test"), overlap("partner/fabrikam", "partner/litware"));
    assert_eq!(found("contoso.example", "litware.test"), overlap(INTERNAL, "partner/fabrikam"));
}

#[test]
fn the_web_pki_vouches_for_exact_names_and_its_server_certificates_count_for_callers() {
    let public = Authority::new("public");
    let web = |partner: &str, host: &str, domain: &str| {
        let names = PartnerNames { server_names: vec![name(host)], web: true, ..names(&[domain]) };
        scope(partner, names, &[])
    };
    let mut brief = brief(
        &["fabrikam", "litware"],
        vec![
            web("fabrikam", "sip.fabrikam.example", "fabrikam.example"),
            web("litware", "sip.litware.example", "litware.example"),
        ],
    );
    brief.web_roots = vec!["of no use".to_owned(), public.pem.clone()];
    let partners = Partners::of(&brief, None).unwrap();
    assert!(partners.iter().all(|partner| partner.problems().is_empty()));
    let leaf = |name: &str, purpose| {
        public.leaf(|params| {
            params.subject_alt_names = vec![dns(name)];
            params.extended_key_usages = vec![purpose];
        })
    };
    let (server, client) = (ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth);
    for (name, purpose, expected) in [
        ("sip.fabrikam.example", server.clone(), Ok("partner/fabrikam")),
        ("sip.fabrikam.example", client.clone(), Ok("partner/fabrikam")),
        ("sip.litware.example", server.clone(), Ok("partner/litware")),
        ("other.fabrikam.example", server.clone(), Err(Refusal::NameOutOfScope)),
        ("sip.fabrikam.example", ExtendedKeyUsagePurpose::CodeSigning, Err(Refusal::WrongUsage)),
    ] {
        let found = caller(&leaf(name, purpose), &brief, &partners).map(|peer| peer.to_string());
        assert_eq!(found, expected.map(str::to_owned), "{name}");
    }
    let fabrikam = partners.get("fabrikam").unwrap();
    assert!(fabrikam.callee(&leaf("sip.fabrikam.example", server.clone()), now()).is_ok());
    assert_eq!(fabrikam.callee(&leaf("sip.fabrikam.example", client), now()), Err(Refusal::WrongUsage));
    // The roots are parsed once for all, and again only when they change.
    assert!(Arc::ptr_eq(Partners::of(&brief, Some(&partners)).unwrap().get("fabrikam").unwrap(), fabrikam));
    brief.web_roots.remove(0);
    assert!(!Arc::ptr_eq(Partners::of(&brief, Some(&partners)).unwrap().get("fabrikam").unwrap(), fabrikam));
    let only_servers = judge(&leaf("sip.fabrikam.example", server), vec![self::fabrikam(&public)]);
    assert_eq!(only_servers, Err(Refusal::WrongUsage), "a scope of its own roots is not lenient");
}

#[test]
fn a_scope_of_the_web_pki_without_exact_names_or_with_roots_of_its_own_is_none() {
    let authority = Authority::new("public");
    let refused = |server_names: &[&str], anchors: &[&Authority]| {
        let server_names = server_names.iter().map(|one| name(one)).collect();
        let names = PartnerNames { server_names, web: true, ..names(&["fabrikam.example"]) };
        Partners::of(&brief(&["fabrikam"], vec![scope("fabrikam", names, anchors)]), None).map(drop)
    };
    let web = Err(ScopeError::Web("partner/fabrikam".to_owned()));
    assert_eq!(refused(&["sip.fabrikam.example"], &[]), Ok(()));
    assert_eq!(refused(&[], &[]), web);
    assert_eq!(refused(&["sip.fabrikam.example"], &[&authority]), web);
}

#[test]
fn authorities_on_the_path_are_known_by_issuer_and_serial() {
    let root = Authority::new("fabrikam");
    let issuer = root.below(|params| params.serial_number = Some(vec![7].into()));
    let mut chain = issuer.named(&[dns("sip.fabrikam.example")]);
    chain.push(pki::certificate(&issuer.pem).unwrap());
    let Peer::Partner(partner) = judge(&chain, vec![fabrikam(&root)]).unwrap() else { panic!() };
    assert_eq!(partner.through.iter().map(|one| one.serial.clone()).collect::<Vec<_>>(), [vec![7]]);
    assert!(partner.through[0].issuer.is_some() && partner.through[0].issuer != partner.issuer);
}
