//! What an answer must be, and where nobody is led; over real sockets on loopback.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering},
};

use axum::http::Response as Answer;
use http_body_util::Full;
use hyper::{server::conn::http1 as server, service::service_fn};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::{io::AsyncWriteExt, net::TcpListener, task::JoinSet, time::Instant};
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::telemetry;

/// An authority, and certificates of it.
struct Authority {
    params: CertificateParams,
    key: KeyPair,
    root: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "fabrikam");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap().pem();
        Self { params, key, root }
    }

    fn server(&self, names: &[SanType]) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "endpoint");
        params.subject_alt_names = names.to_vec();
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(&key, &Issuer::new(self.params.clone(), &self.key)).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        ServerConfig::builder_with_provider(Arc::new(telemetry::crypto()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .unwrap()
    }

    fn web(&self) -> Arc<RootCertStore> {
        let mut store = RootCertStore::empty();
        store.add(crate::pki::certificate(&self.root).unwrap()).unwrap();
        Arc::new(store)
    }

    fn spiffe(&self, id: &str) -> Proof {
        Proof::Spiffe { id: id.to_owned(), roots: vec![self.root.clone()] }
    }
}

/// What a server answers: status, headers, body.
type Said = (u16, Vec<(&'static str, String)>, Vec<u8>);

/// A server on loopback that always says the same.
async fn serves(said: Said, tls: Option<ServerConfig>) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, mut tasks) = (listener.local_addr().unwrap(), JoinSet::new());
    let acceptor = tls.map(|config| TlsAcceptor::from(Arc::new(config)));
    tasks.spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let said = said.clone();
            let answer = service_fn(move |_| {
                let (status, headers, body) = said.clone();
                let mut answer = Answer::builder().status(status);
                for (name, value) in headers {
                    answer = answer.header(name, value);
                }
                async move { Ok::<_, Infallible>(answer.body(Full::new(Bytes::from(body))).unwrap()) }
            });
            match &acceptor {
                None => drop(server::Builder::new().serve_connection(TokioIo::new(stream), answer).await),
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = server::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                    }
                }
            }
        }
    });
    (address, tasks)
}

/// A name server that always leads to `address`.
fn leads_to(address: SocketAddr) -> Resolve {
    Arc::new(move |_, _| Box::pin(async move { Ok(vec![address]) }))
}

fn nowhere() -> Arc<RootCertStore> {
    Arc::new(RootCertStore::empty())
}

async fn plain(said: Said, longest: usize) -> Result<Bytes, FetchError> {
    let (address, _tasks) = serves(said, None).await;
    Fetcher::new(nowhere(), leads_to(address))
        .get("http://fabrikam.example/list", None, longest, &Denied::default())
        .await
}

#[tokio::test]
async fn only_success_as_it_is_and_within_the_bound_is_taken() {
    let good = (200, vec![], b"list".to_vec());
    assert_eq!(plain(good, 4).await.unwrap(), "list");
    let located = vec![("location", "http://169.254.169.254/".to_owned())];
    assert!(matches!(plain((302, located, vec![]), 9).await, Err(FetchError::Redirect(_, 302))));
    assert!(matches!(plain((500, vec![], vec![]), 9).await, Err(FetchError::Status(_, 500))));
    let packed = vec![("content-encoding", "gzip".to_owned())];
    assert!(matches!(plain((200, packed, vec![0; 9]), 9).await, Err(FetchError::Encoded(..))));
    assert!(matches!(plain((200, vec![], vec![0; 10 << 20]), 1 << 18).await, Err(FetchError::TooLong(..))));
    let chunked = vec![("transfer-encoding", "chunked".to_owned())];
    assert!(matches!(plain((200, chunked, vec![0; 1_000]), 999).await, Err(FetchError::TooLong(..))));
}

#[tokio::test]
async fn nobody_is_led_into_the_cluster_and_a_name_that_moves_is_called_where_it_was_looked_at() {
    let denied = Denied::beside(&[]);
    let fetcher = Fetcher::new(nowhere(), leads_to("169.254.169.254:80".parse().unwrap()));
    let refused = |answer: Result<Bytes, FetchError>| matches!(answer, Err(FetchError::Denied(..)));
    for url in ["http://fabrikam.example/", "http://127.0.0.1/", "http://[::1]:1/", "http://[::ffff:127.0.0.1]/"] {
        assert!(refused(fetcher.get(url, None, 9, &denied).await), "{url}");
    }
    let (address, _tasks) = serves((200, vec![], b"list".to_vec()), None).await;
    let lookups = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&lookups);
    let moves: Resolve = Arc::new(move |_, _| {
        let first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        let next = if first { address } else { "127.0.0.2:1".parse().unwrap() };
        Box::pin(async move { Ok(vec![next]) })
    });
    let denied = Denied::only(vec!["127.0.0.2/32".parse().unwrap()]);
    let fetcher = Fetcher::new(nowhere(), moves);
    assert_eq!(fetcher.get("http://fabrikam.example/", None, 9, &denied).await.unwrap(), "list");
    assert_eq!(lookups.load(Ordering::SeqCst), 1);
    assert!(refused(fetcher.get("http://fabrikam.example/", None, 9, &denied).await));
}

#[tokio::test(start_paused = true)]
async fn a_slow_answer_ends_after_five_seconds() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n").await.unwrap();
        loop {
            tokio::time::sleep(Duration::from_millis(900)).await;
            let _ = stream.write_all(b"x").await;
        }
    });
    let began = Instant::now();
    let fetcher = Fetcher::new(nowhere(), leads_to(address));
    let answer = fetcher.get("http://fabrikam.example/", None, 200, &Denied::default()).await;
    assert!(matches!(answer, Err(FetchError::Late(_))), "{answer:?}");
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn an_address_is_https_where_what_is_fetched_does_not_prove_itself() {
    let fetcher = Fetcher::new(nowhere(), leads_to("127.0.0.1:1".parse().unwrap()));
    for url in ["http://fabrikam.example/", "ftp://fabrikam.example/", "https://me@fabrikam.example/", "fabrikam", ""] {
        let answer = fetcher.get(url, Some(&Proof::Web), 9, &Denied::default()).await;
        assert!(matches!(answer, Err(FetchError::Address(_))), "{url}: {answer:?}");
    }
}

#[tokio::test]
async fn an_endpoint_proves_itself_by_the_web_pki_or_by_its_one_identity_and_by_nothing_else() {
    let (ours, other) = (Authority::new(), Authority::new());
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let uri = |name: &str| SanType::URI(name.try_into().unwrap());
    let id = "spiffe://fabrikam.example/bundle/endpoint";
    let spiffe = || ours.spiffe(id);
    for (names, proof, expected) in [
        (vec![dns("fabrikam.example")], Proof::Web, "good"),
        (vec![dns("other.example")], Proof::Web, "another"),
        (vec![uri(id)], Proof::Web, "another"),
        (vec![uri(id)], spiffe(), "good"),
        (vec![uri(id), dns("x.fabrikam.example")], spiffe(), "good"),
        (vec![uri("spiffe://fabrikam.example/bundle/endpoint2")], spiffe(), "another"),
        (vec![uri(id), uri("spiffe://fabrikam.example/b")], spiffe(), "another"),
        (vec![dns("fabrikam.example")], spiffe(), "another"),
        (vec![uri(id)], other.spiffe(id), "another"),
    ] {
        let (address, _tasks) = serves((200, vec![], b"good".to_vec()), Some(ours.server(&names))).await;
        let fetcher = Fetcher::new(ours.web(), leads_to(address));
        let answer = fetcher.get("https://fabrikam.example/", Some(&proof), 9, &Denied::default()).await;
        match expected {
            "good" => assert_eq!(answer.unwrap(), "good", "{names:?} {proof:?}"),
            _ => assert!(matches!(answer, Err(FetchError::Identity(_))), "{names:?} {proof:?}: {answer:?}"),
        }
    }
    let (address, _tasks) = serves((200, vec![], vec![]), Some(other.server(&[dns("fabrikam.example")]))).await;
    let fetcher = Fetcher::new(ours.web(), leads_to(address));
    let answer = fetcher.get("https://fabrikam.example/", Some(&Proof::Web), 9, &Denied::default()).await;
    assert!(matches!(answer, Err(FetchError::Tls(..))), "{answer:?}");
}
