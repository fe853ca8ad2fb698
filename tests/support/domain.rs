//! A trust domain with an authority, and certificates that it would never issue.

use std::collections::{BTreeMap, BTreeSet};

use base64::prelude::{BASE64_STANDARD, Engine};
use entente::{
    brief::{CertificateResponse, INTERNAL, Revocation, Scope, ScopeNames},
    identity::{DnsName, SpiffeId},
    pki::{
        self,
        authority::{self, Authority, Material, Serial, Terms},
        csr::{Csr, Names},
    },
    telemetry,
};
use jiff::{SignedDuration, Timestamp};
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// How far certificates are dated back, in seconds: the default of a TrustDomain.
pub(crate) const SKEW: u32 = 300;

/// A chain with its key.
pub(crate) type Certified = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

pub(crate) struct Domain {
    pub(crate) name: DnsName,
    pub(crate) material: Material,
    terms: Terms,
}

impl Domain {
    pub(crate) fn new() -> Self {
        let name = DnsName::parse("contoso.example").unwrap();
        let terms =
            Terms { trust_domain: name.clone(), permitted: vec![name.clone()], root_days: 3650, issuer_days: 30 };
        let keys = [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()];
        // Old enough that it could have signed what has expired by now.
        let created = telemetry::now() - SignedDuration::from_hours(48);
        let serials = [Serial::from_random(telemetry::random()), Serial::from_random(telemetry::random())];
        Self { name, material: authority::create(&terms, keys, serials, created).unwrap(), terms }
    }

    pub(crate) fn id(&self, server: &str) -> SpiffeId {
        SpiffeId::new(&self.name, "sip", server).unwrap()
    }

    /// Key identifier of the one issuer.
    pub(crate) fn issuer(&self) -> String {
        Authority::load(&self.material, telemetry::now()).unwrap().key_id().to_owned()
    }

    /// The internal scope of briefs: this authority, nothing revoked, good for a day.
    pub(crate) fn scope(&self) -> Scope {
        let (issuer, now) = (self.issuer(), telemetry::now().as_second());
        Scope {
            id: INTERNAL.to_owned(),
            names: ScopeNames::Servers,
            anchors: vec![self.material.root_certificate.clone()],
            issuers: vec![issuer.clone()],
            revocation: Some(Revocation {
                number: 1,
                this_update: now,
                next_update: now + 86_400,
                next_updates: BTreeMap::new(),
                serials: BTreeMap::from([(issuer, vec![])]),
                withdrawn: vec![],
                on_stale: entente::brief::OnStale::Deny,
            }),
        }
    }

    pub(crate) fn names(&self, server: &str, pod_uid: &str) -> Names {
        let id = self.id(server);
        let dns_names = BTreeSet::from([id.topology_name().unwrap()]);
        Names { id, dns_names, pod_uid: Some(pod_uid.to_owned()) }
    }

    /// What the controller answers to a certificate request.
    pub(crate) fn answer(&self, csr: &str, names: Names, lifetime_seconds: u32) -> CertificateResponse {
        answer(&self.material, csr, names, lifetime_seconds)
    }

    /// The same root with another issuer.
    pub(crate) fn renewed(&self) -> Material {
        let now = telemetry::now();
        let (key, serial) = (KeyPair::generate().unwrap(), Serial::from_random(telemetry::random()));
        authority::renew_issuer(&self.material, &self.terms, &key, serial, now).unwrap()
    }

    /// A good certificate, for clients and servers of the test's own.
    pub(crate) fn certificate(&self, server: &str) -> Certified {
        self.forge(server, |_, _| ())
    }

    /// A certificate under this authority with whatever `change` makes of it.
    pub(crate) fn forge(&self, server: &str, change: impl FnOnce(&mut CertificateParams, Timestamp)) -> Certified {
        let key = KeyPair::generate().unwrap();
        let mut params = self.template(server);
        change(&mut params, telemetry::now());
        let issuer_key = KeyPair::from_pem(&self.material.issuer_key).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&self.material.issuer_certificate, issuer_key).unwrap();
        let leaf = params.signed_by(&key, &issuer).unwrap();
        let intermediate = pki::certificate(&self.material.issuer_certificate).unwrap();
        (vec![leaf.der().clone(), intermediate], pkcs8(&key))
    }

    /// A certificate with the right names that nobody vouches for.
    pub(crate) fn self_signed(&self, server: &str) -> Certified {
        let key = KeyPair::generate().unwrap();
        let leaf = self.template(server).self_signed(&key).unwrap();
        (vec![leaf.der().clone()], pkcs8(&key))
    }

    fn template(&self, server: &str) -> CertificateParams {
        let id = self.id(server);
        let now = telemetry::now();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = instant(now - SignedDuration::from_mins(5));
        params.not_after = instant(now + SignedDuration::from_hours(1));
        params.subject_alt_names = vec![
            SanType::URI(id.to_string().as_str().try_into().unwrap()),
            SanType::DnsName(id.topology_name().unwrap().as_str().try_into().unwrap()),
        ];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params
    }
}

pub(crate) fn answer(material: &Material, csr: &str, names: Names, lifetime_seconds: u32) -> CertificateResponse {
    let now = telemetry::now();
    let granted = Csr::parse(&BASE64_STANDARD.decode(csr).unwrap()).unwrap().grant(names);
    let authority = Authority::load(material, now).unwrap();
    let validity = authority.leaf_validity(lifetime_seconds, SKEW, now).unwrap();
    let issued = authority.sign(&granted, Serial::from_random(telemetry::random()), validity).unwrap();
    CertificateResponse { chain: issued.chain, anchors: vec![material.root_certificate.clone()] }
}

/// Certificate chain and key as files hold them.
pub(crate) fn pem((chain, key): &Certified) -> [String; 2] {
    let block = |label: &str, der: &[u8]| {
        let text = BASE64_STANDARD.encode(der);
        // OpenSSL reads no longer lines (RFC 7468 §2).
        let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect::<Vec<_>>().join("\n");
        format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n")
    };
    [chain.iter().map(|one| block("CERTIFICATE", one)).collect(), block("PRIVATE KEY", key.secret_der())]
}

pub(crate) fn pkcs8(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.serialize_der()).into()
}

pub(crate) fn instant(when: Timestamp) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(when.as_second()).unwrap()
}
