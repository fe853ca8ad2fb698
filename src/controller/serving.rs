//! The replica's own certificates, and HTTPS that tells handlers who called.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use axum::Router;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, api::PostParams};
use rcgen::KeyPair;
use rustls::{
    DistinguishedName, ServerConfig,
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use super::{apply::within, clock::Clock, stores::PART};
use crate::{
    handshakes::{Handshake, Handshakes, signatures},
    identity::DnsName,
    pki::{self, authority::Serial, control},
    telemetry,
};

/// Secret with the control plane's authority.
const SECRET: &str = "entente-control-plane";
/// Connections of one endpoint at a time.
const MAX_CONNECTIONS: usize = 16_384;
/// Handshakes of one endpoint at a time, in all and from one address. Who finds no place comes back: what is begun then
/// ends before the caller loses patience.
const HANDSHAKES: (usize, usize) = (512, 64);
/// A handshake, and a request's head, must be complete in this time.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// The certificates that a caller presented, leaf first; it has proven possession of the leaf's key. Whether anybody
/// vouches for them is the handler's question.
#[derive(Clone, Debug, Default)]
pub(super) struct Caller(pub(super) Arc<Vec<CertificateDer<'static>>>);

/// Where the caller's connection comes from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Source(pub(super) SocketAddr);

/// The control plane's authority, and what this replica shows of it.
#[derive(Clone)]
pub(super) struct ControlPlane {
    /// Certificate of the authority, PEM.
    pub(super) ca: String,
    ca_key: String,
    names: Vec<DnsName>,
}

/// One replica's own certificate with its key.
pub(super) struct Own {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl ControlPlane {
    /// Loads the authority of the control plane, or makes it where there is none: whoever creates the Secret first.
    pub(super) async fn load(client: &Client, clock: &Clock, namespace: &str, service: &str) -> Result<Self> {
        let api = Api::<Secret>::namespaced(client.clone(), namespace);
        let mut held = within(api.get_opt(SECRET)).await?;
        if held.is_none() {
            clock.check()?;
            let key = KeyPair::generate()?;
            let ca = control::create(&key, Serial::from_random(telemetry::random()), telemetry::now())?;
            let created = within(api.create(&PostParams::default(), &secret(&ca, &key))).await;
            held = match created {
                Ok(created) => Some(created),
                Err(super::apply::ApplyError::Conflict) => within(api.get_opt(SECRET)).await?,
                Err(error) => return Err(error.into()),
            };
        }
        let data = held.and_then(|secret| secret.data).unwrap_or_default();
        let text = |key: &str| {
            let bytes = data.get(key).with_context(|| format!("Secret {SECRET} has no {key}"))?;
            String::from_utf8(bytes.0.clone()).with_context(|| format!("{key} of Secret {SECRET} is not PEM"))
        };
        Self::of(text("ca.crt")?, text("ca.key")?, namespace, service)
    }

    /// The control plane of a Service, from its authority's certificate and key, PEM.
    pub(super) fn of(ca: String, ca_key: String, namespace: &str, service: &str) -> Result<Self> {
        let name = |text: String| DnsName::parse(&text);
        let names = vec![name(format!("{service}.{namespace}.svc"))?, name(format!("{service}.{namespace}"))?];
        Ok(Self { ca, ca_key, names })
    }

    /// The name under which sidecars and replicas reach us.
    pub(super) fn name(&self) -> &str {
        self.names.first().map_or("entente", DnsName::as_str)
    }

    /// A new certificate of this replica.
    pub(super) fn issue(&self, now: Timestamp) -> Result<Own> {
        let key = KeyPair::generate()?;
        let ca_key = KeyPair::from_pem(&self.ca_key)?;
        let serial = Serial::from_random(telemetry::random());
        let pem = control::sign((&self.ca, ca_key), &key, &self.names, serial, now)?;
        let chain = vec![pki::certificate(&pem).context("our own certificate is PEM")?];
        Ok(Own { chain, key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())) })
    }

    /// The TLS configuration of our endpoints.
    pub(super) fn server(&self, now: Timestamp) -> Result<ServerConfig> {
        let Own { chain, key } = self.issue(now)?;
        let mut config = ServerConfig::builder_with_provider(Arc::new(telemetry::crypto()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(AnyKey))
            .with_single_cert(chain, key)?;
        // A resumed session would skip the client's certificate.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn secret(ca: &str, key: &KeyPair) -> Secret {
    let data = [("ca.crt", ca.to_owned()), ("ca.key", key.serialize_pem())];
    Secret {
        metadata: ObjectMeta {
            name: Some(SECRET.to_owned()),
            labels: Some([(PART.to_owned(), "control-plane".to_owned())].into()),
            ..ObjectMeta::default()
        },
        data: Some(data.map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes()))).into()),
        ..Secret::default()
    }
}

/// Accepts every certificate whose key the caller has, and none at all: the webhook's caller brings none, sidecars and
/// replicas bring theirs, each handler asks for what it needs.
#[derive(Debug)]
struct AnyKey;

impl ClientCertVerifier for AnyKey {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}

/// Serves `router` over TLS until `shutdown`.
pub(super) async fn serve(
    listener: TcpListener,
    config: Arc<ArcSwap<ServerConfig>>,
    router: Router,
    shutdown: CancellationToken,
) {
    let connections = TaskTracker::new();
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let handshakes = Handshakes::new(HANDSHAKES.0, HANDSHAKES.1);
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { break };
        let accepted = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, from)) => {
                let Some(handshake) = handshakes.begin(from.ip()) else { continue };
                let (acceptor, router) = (TlsAcceptor::from(config.load_full()), router.clone());
                let shutdown = shutdown.clone();
                connections.spawn(async move {
                    connection((stream, from), handshake, acceptor, router, shutdown).await;
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "accepting a connection failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    connections.close();
    let _ = tokio::time::timeout(PATIENCE, connections.wait()).await;
}

async fn connection(
    (stream, from): (tokio::net::TcpStream, SocketAddr),
    handshake: Handshake,
    acceptor: TlsAcceptor,
    router: Router,
    shutdown: CancellationToken,
) {
    let _ = stream.set_nodelay(true);
    let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await else {
        debug!(%from, "a handshake failed");
        return;
    };
    drop(handshake);
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let caller = Caller(Arc::new(chain.iter().map(|certificate| certificate.clone().into_owned()).collect()));
    let router = router.layer(axum::Extension(caller)).layer(axum::Extension(Source(from)));
    let mut http = hyper::server::conn::http1::Builder::new();
    let serving = http
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE + Duration::from_secs(60))
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(serving);
    tokio::select! {
        ended = &mut serving => if let Err(error) = ended { debug!(%from, %error, "a connection ended early") },
        () = shutdown.cancelled() => {
            // Held polls end with the process; their sidecars go to another replica.
            serving.as_mut().graceful_shutdown();
        }
    }
}
