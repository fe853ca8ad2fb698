//! go-spiffe at the other end of a bundle endpoint: our client fetches its bundle under both profiles, and it fetches ours.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdin, Stdio},
    sync::Arc,
};

use base64::prelude::{BASE64_STANDARD, Engine};
use entente::{
    controller::{
        endpoint::{self, Mounted, Told},
        sources::{
            address::Denied,
            fetch::{FetchError, Fetcher},
            proof::Proof,
        },
    },
    pki::{self, bundle::Bundle, spiffe},
    plan::{AuthorityFacts, bundles},
    telemetry,
    topology::{Declared, Topology},
};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::RootCertStore;
use serde_json::json;

use crate::{
    made,
    tools::{Folder, installed, run, said},
};

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
        leaf.subject_alt_names = vec![
            SanType::URI(ID.try_into().unwrap()),
            SanType::DnsName(DOMAIN.try_into().unwrap()),
            SanType::DnsName("localhost".try_into().unwrap()),
        ];
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

/// What our endpoint tells of a trust domain of ours.
fn ours() -> (String, Told) {
    let now = telemetry::now();
    let mut register = made::register(now);
    let _ = made::rotate(&mut register, now);
    let facts = AuthorityFacts::of(&register, &register.load(now).unwrap());
    let object = json!({
        "apiVersion": "entente.dev/v1alpha1", "kind": "TrustDomain", "metadata": {"name": "contoso", "uid": "u"},
        "spec": {"spiffeTrustDomain": "contoso.example", "dnsSuffixes": ["contoso.example"]},
    });
    let declared = Declared { domains: vec![serde_json::from_value(object).unwrap()], ..Declared::default() };
    let (topology, _) = Topology::resolve(&declared);
    let data = bundles::data(topology.domain("contoso").unwrap(), &facts);
    let roots = data["ca.crt"].clone();
    (roots, Arc::new(move |domain, file| (domain == "contoso.example").then(|| data.get(file).cloned()).flatten()))
}

#[test]
fn our_bundle_is_what_go_spiffe_fetches_and_it_asks_us_to_prove_ourselves() {
    let (web, stranger, folder) = (Domain::new(), Domain::new(), Folder::new());
    let shown = Folder::new();
    shown.file("tls.crt", &web.certificate);
    shown.file("tls.key", &web.key);
    let (roots, told) = ours();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    let certificate = Mounted::new(shown.path().to_owned());
    let serving = runtime.spawn(endpoint::serve(listener, certificate, told, shutdown.clone()));
    let fetch = |trusted: &Domain, domain: &str| {
        let mut command = installed("ENTENTE_SPIFFE", "spiffe");
        let url = format!("https://localhost:{port}/{domain}/bundle.json");
        command.args(["fetch", "contoso.example", &url, "web"]).arg(folder.file("roots.pem", &trusted.root));
        run(&mut command)
    };
    // The certificate is read beside the listener: a first call may come before.
    let mut answer = fetch(&web, "contoso.example");
    for _ in 0..50 {
        if answer.status.success() {
            break;
        }
        answer = fetch(&web, "contoso.example");
    }
    assert!(answer.status.success(), "{}", said(&answer));
    let bundle = spiffe::parse(&answer.stdout).unwrap();
    assert_eq!(Bundle::of([bundle.pem.as_str()]), Bundle::of([roots.as_str()]), "both roots of a rotation");
    assert!(bundle.sequence.is_some() && bundle.refresh_hint.is_some_and(|hint| hint <= 300));
    for refused in [fetch(&stranger, "contoso.example"), fetch(&web, "fabrikam.example")] {
        assert!(!refused.status.success(), "{}", said(&refused));
    }
    shutdown.cancel();
    runtime.block_on(serving).unwrap().unwrap();
}
