//! go-spiffe at the other end of a bundle endpoint: our client fetches its bundle under both profiles, and it fetches ours.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, ChildStdin, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use base64::prelude::{BASE64_STANDARD, Engine};
use entente::{
    controller::{
        endpoint::{self, Certificate, Issued, Shown, Told},
        sources::{
            address::Denied,
            fetch::{FetchError, Fetcher},
            proof::Proof,
        },
    },
    mounted::Mounted,
    pki::{
        self,
        authority::{self, Authority, Material, Terms},
        bundle::Bundle,
        csr::{self, Csr, Names},
        register::{Listed, Register},
        rotation::{Move, State},
        spiffe,
    },
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
    let certificate = Arc::new(Mounted::new(shown.path().to_owned()));
    let serving = runtime.spawn(endpoint::serve(listener, Shown::Mounted(certificate), told, shutdown.clone()));
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

/// What our endpoint tells and shows of each trust domain of ours, by the name of its object.
type Published = Arc<Mutex<BTreeMap<&'static str, (BTreeMap<String, String>, Arc<Certificate>)>>>;

const OURS: [(&str, &str); 2] = [("contoso", "contoso.example"), ("shop", "shop.example")];

fn authority_of(trust_domain: &str) -> Material {
    let trust_domain = made::name(trust_domain);
    let terms = Terms { permitted: vec![trust_domain.clone()], trust_domain, ..made::terms() };
    let keys = [KeyPair::generate().unwrap(), KeyPair::generate().unwrap()];
    authority::create(&terms, keys, [made::serial(), made::serial()], telemetry::now()).unwrap()
}

/// Publishes a domain as its register has it, with a certificate of the authority that signs.
fn publish(published: &Published, (name, trust_domain): (&'static str, &str), register: &Register) -> String {
    let now = telemetry::now();
    let object = json!({
        "apiVersion": "entente.dev/v1alpha1", "kind": "TrustDomain", "metadata": {"name": name, "uid": "u"},
        "spec": {"spiffeTrustDomain": trust_domain, "dnsSuffixes": [trust_domain]},
    });
    let domains = vec![serde_json::from_value(object).unwrap()];
    let bundle_endpoint = Some("entente-system".to_owned());
    let (topology, _) = Topology::resolve(&Declared { domains, bundle_endpoint, ..Declared::default() });
    let loaded = register.load(now).unwrap();
    let data = bundles::data(topology.domain(name).unwrap(), &AuthorityFacts::of(register, &loaded));
    let own = topology.endpoints().next().unwrap();
    let key = KeyPair::generate().unwrap();
    let names = Names { id: own.id.clone(), dns_names: topology.names_of_server(own), pod_uid: None };
    let granted = Csr::parse(&csr::request(&key).unwrap()).unwrap().grant(names);
    let validity = loaded.active.leaf_validity(made::LIFETIME, made::SKEW, now).unwrap();
    let chain = loaded.active.sign(&granted, made::serial(), validity).unwrap().chain.concat();
    let read = |server| Certificate::read(chain.as_bytes(), key.serialize_pem().as_bytes(), ("entente-system", server));
    assert!(read("another").is_err(), "a Secret with the certificate of another server is not shown");
    let bundle = data["bundle.json"].clone();
    published.lock().unwrap().insert(name, (data, Arc::new(read(&own.key.name).unwrap())));
    bundle
}

/// Our endpoint, https_spiffe, that serves what is published.
struct Own {
    published: Published,
    runtime: tokio::runtime::Runtime,
    address: SocketAddr,
    url: String,
    folder: Folder,
}

const OWN_ID: &str = "spiffe://contoso.example/ns/entente-system/server/bundle-contoso";

impl Own {
    fn new() -> Self {
        let published = Published::default();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let shown = Arc::clone(&published);
        let all = move || shown.lock().unwrap().values().map(|(_, certificate)| Arc::clone(certificate)).collect();
        let said = Arc::clone(&published);
        let told: Told = Arc::new(move |domain, file| {
            let (name, _) = OURS.iter().find(|(_, trust_domain)| *trust_domain == domain)?;
            said.lock().unwrap().get(name)?.0.get(file).cloned()
        });
        let shown = Shown::Issued(Issued::new(Arc::new(all)));
        runtime.spawn(endpoint::serve(listener, shown, told, tokio_util::sync::CancellationToken::new()));
        let url = format!("https://localhost:{}/contoso.example/bundle.json", address.port());
        Self { published, runtime, address, url, folder: Folder::new() }
    }

    /// What go-spiffe fetches that knows `bundle` and asks for `id`.
    fn fetch(&self, bundle: &str, id: &str) -> std::process::Output {
        let mut command = installed("ENTENTE_SPIFFE", "spiffe");
        command.args(["fetch", "contoso.example", &self.url, "spiffe"]).arg(self.folder.file("known.json", bundle));
        run(command.arg(id))
    }
}

fn fresh((_, trust_domain): (&str, &str)) -> Register {
    let now = telemetry::now();
    Register::create(authority_of(trust_domain), made::window(now), now).unwrap()
}

#[test]
fn our_endpoint_proves_its_own_id_to_go_spiffe_and_the_name_that_is_called_says_whose_it_is() {
    let own = Own::new();
    let stranger = publish(&Published::default(), OURS[0], &fresh(OURS[0]));
    assert!(!own.fetch(&stranger, OWN_ID).status.success(), "there is no certificate yet");
    let [known, other] = OURS.map(|domain| publish(&own.published, domain, &fresh(domain)));
    let answer = own.fetch(&known, OWN_ID);
    assert!(answer.status.success(), "{}", said(&answer));
    assert_eq!(spiffe::parse(&answer.stdout).unwrap().pem, spiffe::parse(known.as_bytes()).unwrap().pem);
    for (bundle, id) in [
        (&known, "spiffe://contoso.example/ns/entente-system/server/bundle-shop"),
        (&known, "spiffe://contoso.example/bundle"),
        (&stranger, OWN_ID),
    ] {
        let refused = own.fetch(bundle, id);
        assert!(!refused.status.success(), "{}", said(&refused));
    }
    // Our own client reaches any name here.
    let address = own.address;
    let shop = |host: &str| {
        let nobody = Arc::new(RootCertStore::empty());
        let found = Fetcher::new(nobody, Arc::new(move |_, _| Box::pin(async move { Ok(vec![address]) })));
        let id = "spiffe://shop.example/ns/entente-system/server/bundle-shop".to_owned();
        let proof = Proof::Spiffe { id, roots: vec![spiffe::parse(other.as_bytes()).unwrap().pem] };
        let url = format!("https://{host}/shop.example/bundle.json");
        let denied = Denied::only(vec![]);
        own.runtime.block_on(found.get(&url, Some(&proof), spiffe::LONGEST, &denied))
    };
    assert_eq!(shop("bundle.shop.example").unwrap(), other.as_bytes());
    assert!(matches!(shop("bundle.contoso.example"), Err(FetchError::Identity(_))));
}

#[test]
fn go_spiffe_follows_our_endpoint_through_a_change_of_roots_each_bundle_proven_by_the_one_before() {
    let (own, mut register, now) = (Own::new(), fresh(OURS[0]), telemetry::now());
    let first = publish(&own.published, OURS[0], &register);
    let mut command = installed("ENTENTE_SPIFFE", "spiffe");
    command.args(["watch", "contoso.example", &own.url]).arg(own.folder.file("first.json", &first)).arg(OWN_ID);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (line, lines) = mpsc::channel();
    let output = BufReader::new(child.stdout.take().unwrap());
    let reading = std::thread::spawn(move || output.lines().try_for_each(|text| line.send(text.unwrap())));
    let next = || {
        let bundle = spiffe::parse(lines.recv_timeout(Duration::from_secs(30)).unwrap().as_bytes()).unwrap();
        (bundle.sequence.unwrap(), bundle.pem.matches("BEGIN CERTIFICATE").count())
    };
    assert_eq!(next(), (1, 1));
    // A root is told before it signs.
    let coming = authority_of("contoso.example");
    let key_id = Authority::load(&coming, now).unwrap().key_id().to_owned();
    register.add(coming, State::Prepared, now).unwrap();
    register.publish(&Listed::new(), made::window(now), now).unwrap();
    publish(&own.published, OURS[0], &register);
    assert_eq!(next(), (2, 2));
    for step in [Move::Trust(key_id.clone()), Move::Activate(key_id)] {
        assert!(register.take(&step, now));
    }
    register.publish(&Listed::new(), made::window(now), now).unwrap();
    let last = publish(&own.published, OURS[0], &register);
    assert_eq!(next(), (3, 2), "who follows believes what the next root signed");
    assert!(!own.fetch(&first, OWN_ID).status.success(), "who knows the first root alone does not");
    assert!(own.fetch(&last, OWN_ID).status.success());
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    assert!(reading.join().unwrap().is_ok());
}
