//! The one constructor of every TLS configuration, and the handshakes.
//!
//! TLS 1.3 only; no tickets, no session store, no early data: a resumed session would skip the client's certificate
//! (`proxy.md` §5, 1).

mod verifiers;

use std::{
    future::Future,
    io,
    sync::{Arc, LazyLock},
    time::Duration,
};

use rustls::{
    AlertDescription, ClientConfig, Error, InvalidMessage, RootCertStore, ServerConfig,
    client::{Resumption, WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use self::verifiers::{Anyone, Callee, Caller, OwnNames};
use super::{
    credentials::Leaf,
    judge::{Judge, Refused},
    server_certificate::Shown,
    sockets,
};
use crate::{
    brief::{ALPN, ALPN_REPROVE},
    identity::SpiffeId,
    pki::verify::Proven,
    refusal::{AlertDetail, ChainDetail, HandshakeDetail, Refusal, TimeoutDetail},
    telemetry,
};

/// Deadline of a handshake, verdict included.
pub(super) const HANDSHAKE: Duration = Duration::from_secs(5);

/// Why a configuration cannot be made.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    /// rustls refuses it.
    #[error("unusable TLS configuration")]
    Configuration(#[from] Error),
    /// The control plane's authority is no PEM certificate.
    #[error("the control plane's authority is not a PEM certificate")]
    ControlAuthority,
}

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    use aws_lc_rs::{cipher_suite, kx_group};
    let mut provider = telemetry::crypto();
    // The order is a decision of ours, not of the library's features.
    provider.kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_AES_256_GCM_SHA384,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
});

/// Configuration of a `MutualTls` port: callers that `judge` admits to `port`, and nobody else.
pub(super) fn mutual(leaf: &Arc<Leaf>, judge: &Arc<Judge>, port: u16) -> Result<Arc<ServerConfig>, TlsError> {
    let caller = Caller { judge: judge.clone(), port };
    let mut config = server_config(Arc::new(caller), Arc::new(OwnNames(leaf.clone())))?;
    // A client without ALPN passes, one that insists on another protocol does not: rustls' rule is ours.
    config.alpn_protocols = vec![ALPN.to_vec(), ALPN_REPROVE.to_vec()];
    Ok(Arc::new(config))
}

/// Configuration of a `ServerTls` port: the certificate that `shown` says, any client.
pub(super) fn server_only(shown: Shown) -> Result<Arc<ServerConfig>, TlsError> {
    Ok(Arc::new(server_config(WebPkiClientVerifier::no_client_auth(), Arc::new(shown))?))
}

/// Configuration to dial `expected`, and nobody else.
pub(super) fn dial(leaf: &Leaf, judge: &Arc<Judge>, expected: SpiffeId) -> Result<Arc<ClientConfig>, TlsError> {
    let callee = Callee { judge: judge.clone(), expected };
    let mut config = client_config(Arc::new(callee), Some(leaf.certified.clone()))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// `config` without an application protocol: software that holds its key itself knows none of ours, and some refuses
/// what it does not know.
pub(super) fn without_protocol(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols.clear();
    Arc::new(config)
}

/// `config` for a re-proof instead of a connection.
pub(super) fn reprove(config: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols = vec![ALPN_REPROVE.to_vec()];
    Arc::new(config)
}

/// Configuration to reach the control plane: its own authority and the host name, our leaf where there is one.
pub(super) fn control(authority_pem: &str, leaf: Option<&Leaf>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority_pem.as_bytes()) {
        roots.add(certificate.map_err(|_| TlsError::ControlAuthority)?)?;
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), PROVIDER.clone())
        .build()
        .map_err(|_| TlsError::ControlAuthority)?;
    Ok(Arc::new(client_config(verifier, leaf.map(|leaf| leaf.certified.clone()))?))
}

/// Configuration of an HTTPS probe: like the kubelet, it checks no certificate. It reaches the pod's own address only.
pub(super) fn probe() -> Result<Arc<ClientConfig>, TlsError> {
    Ok(Arc::new(client_config(Arc::new(Anyone), None)?))
}

fn server_config(
    callers: Arc<dyn ClientCertVerifier>,
    certificate: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(callers)
        .with_cert_resolver(certificate);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

fn client_config(
    callee: Arc<dyn ServerCertVerifier>,
    certificate: Option<Arc<CertifiedKey>>,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(callee);
    let mut config = match certificate {
        Some(certified) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified))),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// A finished handshake: the stream, and what its verifier found where one was asked.
#[derive(Debug)]
pub(super) struct Secured<S> {
    /// The TLS stream.
    pub(super) stream: S,
    /// The peer's verdict; none on `ServerTls` ports.
    pub(super) verdict: Option<Proven>,
}

/// Accepts a TLS connection. Who is refused can read the alert that says so.
pub(super) async fn accept(
    stream: TcpStream,
    config: Arc<ServerConfig>,
) -> Result<Secured<server::TlsStream<TcpStream>>, Refused> {
    judged(async {
        match TlsAcceptor::from(config).accept(stream).into_fallible().await {
            Ok(secured) => Ok(secured),
            Err((error, mut stream)) => {
                sockets::let_it_be_read(&mut stream).await;
                Err(error)
            }
        }
    })
    .await
}

/// Opens a TLS connection to the server named `name`.
pub(super) async fn connect<S>(
    stream: S,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
) -> Result<Secured<client::TlsStream<S>>, Refused>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    judged(TlsConnector::from(config).connect(name, stream)).await
}

async fn judged<T>(handshake: impl Future<Output = io::Result<T>>) -> Result<Secured<T>, Refused> {
    match timeout(HANDSHAKE, verifiers::observed(handshake)).await {
        Err(_) => Err(Refusal::Timeout(TimeoutDetail::Handshake).into()),
        Ok((Err(_), Some(Err(refused)))) => Err(refused),
        Ok((Err(error), _)) => Err(reason(&error).into()),
        Ok((Ok(stream), verdict)) => Ok(Secured { stream, verdict: verdict.transpose()? }),
    }
}

/// The reason behind a failed handshake or a broken stream, as far as it is TLS's.
pub(super) fn reason(error: &io::Error) -> Refusal {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::NoCertificatesPresented) => Refusal::NoCertificate,
        Some(Error::NoApplicationProtocol | Error::AlertReceived(AlertDescription::NoApplicationProtocol)) => {
            Refusal::BadAlpn
        }
        Some(Error::PeerIncompatible(_) | Error::AlertReceived(AlertDescription::ProtocolVersion)) => {
            Refusal::HandshakeFailed(HandshakeDetail::Version)
        }
        Some(Error::AlertReceived(alert)) => Refusal::PeerRefused(alert_detail(*alert)),
        Some(Error::InvalidMessage(InvalidMessage::InvalidContentType)) => Refusal::NotTls,
        Some(Error::InvalidCertificate(_)) => Refusal::BadChain(ChainDetail::Signature),
        Some(_) => Refusal::HandshakeFailed(HandshakeDetail::Malformed),
        // The transport ended. What that means depends on the role, which the caller knows.
        None => Refusal::Truncated,
    }
}

/// What a peer's alert says of our certificate.
const fn alert_detail(alert: AlertDescription) -> AlertDetail {
    match alert {
        AlertDescription::CertificateRevoked => AlertDetail::Revoked,
        AlertDescription::CertificateExpired => AlertDetail::Expired,
        AlertDescription::UnknownCA => AlertDetail::UnknownCa,
        AlertDescription::AccessDenied => AlertDetail::AccessDenied,
        _ => AlertDetail::Other,
    }
}
