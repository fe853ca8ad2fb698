//! Bundle endpoints of go-spiffe, which our client fetches under both profiles.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdin, Stdio},
    sync::Arc,
};

use base64::prelude::{BASE64_STANDARD, Engine};
use entente::{
    controller::sources::{
        address::Denied,
        fetch::{FetchError, Fetcher},
        proof::Proof,
    },
    pki::{self, bundle::Bundle, spiffe},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::RootCertStore;
use serde_json::json;

use crate::tools::{Folder, installed};

const DOMAIN: &str = "fabrikam.example";
const ID: &str = "spiffe://fabrikam.example/bundle/endpoint";

/// Another trust domain: a root, and what its endpoint shows.
struct Domain {
    root: String,
    bundle: String,
    certificate: String,
    key: String,
}

impl Domain {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, DOMAIN);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let own = KeyPair::generate().unwrap();
        let mut leaf = CertificateParams::default();
        leaf.distinguished_name.push(DnType::CommonName, "endpoint");
        leaf.subject_alt_names =
            vec![SanType::URI(ID.try_into().unwrap()), SanType::DnsName(DOMAIN.try_into().unwrap())];
        leaf.use_authority_key_identifier_extension = true;
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = leaf.signed_by(&own, &issuer).unwrap().pem();
        let bundle = jwks(&[&root.pem()], 7);
        Self { root: root.pem(), bundle, certificate, key: own.serialize_pem() }
    }

    fn web(&self) -> Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        store.add(pki::certificate(&self.root).unwrap()).unwrap();
        Arc::new(store)
    }

    fn by_id(&self, id: &str) -> Proof {
        Proof::Spiffe { id: id.to_owned(), roots: vec![self.root.clone()] }
    }
}

/// A bundle with the coordinates that go-spiffe asks for.
fn jwks(roots: &[&str], sequence: u64) -> String {
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    use x509_parser::prelude::{FromDer, X509Certificate};
    let key = |pem: &&str| {
        let der = pki::certificate(pem).unwrap();
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        let point = parsed.public_key().subject_public_key.data.as_ref();
        let text = |part: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(part);
        json!({"use": "x509-svid", "kty": "EC", "crv": "P-256", "x": text(&point[1..33]), "y": text(&point[33..65]),
               "x5c": [BASE64_STANDARD.encode(&der)]})
    };
    let keys: Vec<_> = roots.iter().map(key).collect();
    json!({"keys": keys, "spiffe_sequence": sequence, "spiffe_refresh_hint": 120}).to_string()
}

/// go-spiffe's endpoint; it ends with its input.
struct Endpoint {
    child: Child,
    input: Option<ChildStdin>,
    address: SocketAddr,
}

impl Endpoint {
    fn of(domain: &Domain) -> Self {
        let folder = Folder::new();
        let files = [
            folder.file("bundle.json", &domain.bundle),
            folder.file("tls.crt", &domain.certificate),
            folder.file("tls.key", &domain.key),
        ];
        let mut command = installed("ENTENTE_SPIFFE", "spiffe");
        command.args(["serve", DOMAIN]).args(&files).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let input = child.stdin.take();
        Self { child, input, address: line.trim().parse().unwrap_or_else(|_| panic!("it said {line:?}")) }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.input = None;
        let _ = self.child.wait();
    }
}

#[test]
fn a_bundle_of_go_spiffe_is_fetched_under_both_profiles_and_by_nobody_elses_word() {
    let (domain, stranger) = (Domain::new(), Domain::new());
    let endpoint = Endpoint::of(&domain);
    let address = endpoint.address;
    let fetch = |web: &Domain, proof: &Proof| {
        let found = Fetcher::new(web.web(), Arc::new(move |_, _| Box::pin(async move { Ok(vec![address]) })));
        let denied = Denied::only(vec![]);
        let call = found.get("https://fabrikam.example/bundle", Some(proof), spiffe::LONGEST, &denied);
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(call)
    };
    for proof in [Proof::Web, domain.by_id(ID)] {
        let bundle = spiffe::parse(&fetch(&domain, &proof).unwrap()).unwrap();
        assert_eq!((bundle.sequence, bundle.refresh_hint), (Some(7), Some(120)), "{proof:?}");
        assert_eq!(Bundle::of([bundle.pem.as_str()]), Bundle::of([domain.root.as_str()]));
    }
    assert!(matches!(fetch(&stranger, &Proof::Web), Err(FetchError::Tls(..))));
    for wrong in [domain.by_id("spiffe://fabrikam.example/other"), stranger.by_id(ID)] {
        assert!(matches!(fetch(&domain, &wrong), Err(FetchError::Identity(_))), "{wrong:?}");
    }
}
