//! Another organisation: an authority of its own, and certificates under it.

use entente::{
    brief::{
        AllowedPartner, Brief, PartnerEdge, PartnerLink, PartnerNames, PartnerStanding, Scope, ScopeNames,
        partner_scope,
    },
    identity::DnsName,
    telemetry,
};
use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

use rustls_pki_types::CertificateDer;

use super::domain::{Certified, instant, pkcs8};

/// A root that signs leaves itself, or an authority below one.
pub(crate) struct Authority {
    params: CertificateParams,
    key: KeyPair,
    pub(crate) root: String,
    /// The authorities up to the root, which is none of them.
    between: Vec<CertificateDer<'static>>,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self::with(name, KeyPair::generate().unwrap(), |_, _| ())
    }

    pub(crate) fn with(name: &str, key: KeyPair, change: impl FnOnce(&mut CertificateParams, Timestamp)) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("{name} root"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        change(&mut params, telemetry::now());
        let root = params.self_signed(&key).unwrap().pem();
        Self { params, key, root, between: vec![] }
    }

    /// An authority below this one.
    pub(crate) fn below(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (mut params, key) = (self.params.clone(), KeyPair::generate().unwrap());
        params.distinguished_name.push(DnType::CommonName, "issuer");
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        let signed = params.signed_by(&key, &Issuer::new(self.params.clone(), &self.key)).unwrap();
        let between = [vec![signed.der().clone()], self.between.clone()].concat();
        Self { params, key, root: self.root.clone(), between }
    }

    /// A certificate with these names.
    pub(crate) fn certificate(&self, names: &[SanType]) -> Certified {
        self.forge(names, |_, _| ())
    }

    /// The same with whatever `change` makes of it.
    pub(crate) fn forge(&self, names: &[SanType], change: impl FnOnce(&mut CertificateParams, Timestamp)) -> Certified {
        self.forge_for(&KeyPair::generate().unwrap(), names, change)
    }

    pub(crate) fn forge_for(
        &self,
        key: &KeyPair,
        names: &[SanType],
        change: impl FnOnce(&mut CertificateParams, Timestamp),
    ) -> Certified {
        let now = telemetry::now();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "somebody");
        params.not_before = instant(now - SignedDuration::from_mins(5));
        params.not_after = instant(now + SignedDuration::from_hours(1));
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = names.to_vec();
        change(&mut params, now);
        let leaf = params.signed_by(key, &Issuer::new(self.params.clone(), &self.key)).unwrap();
        ([vec![leaf.der().clone()], self.between.clone()].concat(), pkcs8(key))
    }

    /// The scope of the partner `name`, which speaks for `domain` by this authority.
    pub(crate) fn scope(&self, name: &str, domain: &str) -> Scope {
        let names = PartnerNames {
            domains: vec![DnsName::parse(domain).unwrap()],
            server_names: vec![],
            public_key_pins: vec![],
            trust_domain: None,
            web: false,
        };
        Scope {
            id: partner_scope(name),
            names: ScopeNames::Partner(names),
            anchors: vec![self.root.clone()],
            issuers: vec![],
            revocation: None,
        }
    }
}

/// How an active partner is dealt with: no edges, nothing special, and limits that no test meets by chance.
pub(crate) fn link(name: &str) -> PartnerLink {
    PartnerLink {
        name: name.to_owned(),
        standing: PartnerStanding::Active,
        edges: vec![],
        tls12: false,
        presents: false,
        max_connections: 1_000,
        handshakes_per_second: 10_000,
    }
}

/// Adds the scope of a partner to a brief, with its link.
pub(crate) fn add(brief: &mut Brief, scope: Scope) {
    let name = scope.id.strip_prefix("partner/").unwrap();
    brief.partners.push(link(name));
    brief.scopes.push(scope);
}

pub(crate) fn edge(host: &str, port: u16) -> PartnerEdge {
    PartnerEdge { host: DnsName::parse(host).unwrap(), port }
}

/// The names of a partner in its scope.
pub(crate) fn names(scope: &mut Scope) -> &mut PartnerNames {
    match &mut scope.names {
        ScopeNames::Partner(names) => names,
        ScopeNames::Servers => panic!("{} is no partner's scope", scope.id),
    }
}

/// Entries of an allow-list.
pub(crate) fn allowed(partners: &[&str]) -> Vec<AllowedPartner> {
    partners.iter().map(|name| AllowedPartner { name: (*name).to_owned(), target_port: None }).collect()
}

/// What is changed about a certificate before it is signed.
pub(crate) type Forge = fn(&mut CertificateParams, Timestamp);

/// What makes a good leaf wrong in one way; `good` leaves it as it is.
pub(crate) fn forge(what: &str) -> Forge {
    match what {
        "good" => |_, _| (),
        "expired" => |params, now| params.not_after = instant(now - SignedDuration::from_secs(2)),
        "no purpose" => |params, _| params.extended_key_usages.clear(),
        "a second URI" => {
            |params, _| params.subject_alt_names.push(uri("spiffe://contoso.example/ns/sip/server/other"))
        }
        "an address" => |params, _| params.subject_alt_names.push(SanType::IpAddress([10, 0, 0, 1].into())),
        "names in the common name only" => |params, _| {
            params.subject_alt_names.clear();
            params.distinguished_name.push(DnType::CommonName, "sip.fabrikam.example");
        },
        other => panic!("nobody forges {other:?}"),
    }
}

pub(crate) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().unwrap())
}

pub(crate) fn uri(name: &str) -> SanType {
    SanType::URI(name.try_into().unwrap())
}
