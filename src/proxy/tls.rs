//! The one constructor of every TLS configuration, and the handshakes.
//!
//! TLS 1.3, and 1.2 only where a partner or the clients of a `ServerTls` port cannot do better; no tickets, no session
//! store, no early data: a resumed session would skip the client's certificate (`proxy.md` §5, 1).

mod certificates;
mod handshake;
#[cfg(feature = "gate")]
pub(super) mod memory;
mod verifiers;

use std::{
    future::Future,
    io,
    sync::{Arc, LazyLock},
    time::Duration,
};

use rustls::{
    AlertDescription, ClientConfig, DistinguishedName, Error, InvalidMessage, ProtocolVersion, RootCertStore,
    ServerConfig, SupportedProtocolVersion,
    client::{Resumption, UnbufferedClientConnection, WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs},
    server::{
        NoServerSessionStorage, ResolvesServerCert, UnbufferedServerConnection, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    sign::{CertifiedKey, SingleCertAndKey},
    version::{TLS12, TLS13},
};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream, client};

pub(super) use self::certificates::presented;
#[cfg(any(test, feature = "fuzz"))]
pub(super) use self::handshake::fuzz;
use self::{
    certificates::{OwnNames, Served},
    handshake::Endpoint,
    verifiers::{Anyone, Callee, Caller, Edge, Known},
};
use super::{
    credentials::Leaf,
    judge::{Judge, Refused},
    presented::Certificates,
    quotas::Quotas,
    relay::{Parts, Tunnel},
    sockets,
};
use crate::{
    brief::{ALPN, ALPN_MUX, ALPN_REPROVE, Port, ServerTls},
    identity::{DnsName, SpiffeId},
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
        // Of TLS 1.2: with forward secrecy and authenticated encryption alone.
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
});

/// What the configurations of one generation are made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Making<'a> {
    /// Our own certificate.
    pub(super) leaf: &'a Arc<Leaf>,
    /// What judges peers.
    pub(super) judge: &'a Arc<Judge>,
    /// Certificates that are shown instead of our own.
    pub(super) mounted: &'a Arc<Certificates>,
    /// What partners may ask for.
    pub(super) quotas: &'a Arc<Quotas>,
}

/// Configuration of a `MutualTls` port: callers that the judge admits to `port`, and nobody else.
pub(super) fn mutual(making: Making<'_>, port: &Port) -> Result<Arc<ServerConfig>, TlsError> {
    let Making { leaf, judge, mounted, quotas } = making;
    let links = || port.allow.partners.iter().filter_map(|one| judge.brief.link(&one.name));
    let caller = Caller { judge: judge.clone(), port: port.port, quotas: quotas.clone() };
    let presents = links().filter(|link| link.presents).map(|link| link.name.clone()).collect();
    let names = OwnNames { leaf: leaf.clone(), mounted: mounted.clone(), presents };
    // Whoever came by TLS 1.2 is looked at once more afterwards: only those partners may.
    let tls12 = links().any(|link| link.tls12);
    let mut config = server_config(versions(tls12), Arc::new(caller), Arc::new(names))?;
    // A client without ALPN passes, one that insists on another protocol does not: rustls' rule is ours.
    config.alpn_protocols = protocols(config.enable_secret_extraction, &[ALPN, ALPN_REPROVE]);
    Ok(Arc::new(config))
}

/// Configuration of a `ServerTls` port: any client, which may be asked who it is.
pub(super) fn server_only(making: Making<'_>, settings: &ServerTls) -> Result<Arc<ServerConfig>, TlsError> {
    let Making { leaf, judge, mounted, quotas: _ } = making;
    let ServerTls { alpn, tls12, client_certificate } = settings;
    let clients: Arc<dyn ClientCertVerifier> = if *client_certificate {
        let authorities = judge.anchors.subjects().map(DistinguishedName::in_sequence).collect();
        Arc::new(Known { judge: judge.clone(), authorities })
    } else {
        WebPkiClientVerifier::no_client_auth()
    };
    let served = Served { leaf: leaf.clone(), mounted: mounted.clone() };
    let mut config = server_config(versions(*tls12), clients, Arc::new(served))?;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    Ok(Arc::new(config))
}

/// The versions to offer, newest first.
fn versions(tls12: bool) -> &'static [&'static SupportedProtocolVersion] {
    static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
    if tls12 { &BOTH } else { &BOTH[..1] }
}

/// Configuration to dial `expected`, and nobody else.
pub(super) fn dial(leaf: &Leaf, judge: &Arc<Judge>, expected: SpiffeId) -> Result<Arc<ClientConfig>, TlsError> {
    let callee = Callee { judge: judge.clone(), expected };
    let mut config = client_config(versions(false), Arc::new(callee), Some(leaf.certified.clone()))?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(Arc::new(config))
}

/// Configuration to dial the edge `host` of `partner`, and nobody else, showing `shown`. No application protocol of ours.
pub(super) fn edge(
    judge: &Arc<Judge>,
    (partner, host): (&str, &DnsName),
    tls12: bool,
    shown: Arc<CertifiedKey>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let edge = Edge { judge: judge.clone(), partner: partner.to_owned(), host: host.clone() };
    Ok(Arc::new(client_config(versions(tls12), Arc::new(edge), Some(shown))?))
}

/// `config` without an application protocol: software that holds its key itself knows none of ours, and some refuses
/// what it does not know.
pub(super) fn without_protocol(config: &ClientConfig) -> Arc<ClientConfig> {
    speaking(config, vec![])
}

/// `config` for many connections at a time, where we know how.
pub(super) fn multiplexed(config: &ClientConfig) -> Arc<ClientConfig> {
    speaking(config, protocols(config.enable_secret_extraction, &[ALPN]))
}

/// `config` for a re-proof instead of a connection.
pub(super) fn reprove(config: &ClientConfig) -> Arc<ClientConfig> {
    speaking(config, vec![ALPN_REPROVE.to_vec()])
}

fn speaking(config: &ClientConfig, protocols: Vec<Vec<u8>>) -> Arc<ClientConfig> {
    let mut config = config.clone();
    config.alpn_protocols = protocols;
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
    Ok(Arc::new(client_config(versions(false), verifier, leaf.map(|leaf| leaf.certified.clone()))?))
}

/// Configuration of an HTTPS probe: like the kubelet, it checks no certificate. It reaches the pod's own address only.
pub(super) fn probe() -> Result<Arc<ClientConfig>, TlsError> {
    Ok(Arc::new(client_config(versions(false), Arc::new(Anyone), None)?))
}

fn server_config(
    versions: &[&'static SupportedProtocolVersion],
    callers: Arc<dyn ClientCertVerifier>,
    certificate: Arc<dyn ResolvesServerCert>,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(versions)?
        .with_client_cert_verifier(callers)
        .with_cert_resolver(certificate);
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.require_ems = true;
    config.enable_secret_extraction = own_records(versions);
    Ok(config)
}

/// Whether connections are carried by our own record layer, which speaks TLS 1.3 alone.
fn own_records(versions: &[&'static SupportedProtocolVersion]) -> bool {
    !cfg!(feature = "rustls-records") && versions.iter().all(|version| version.version == ProtocolVersion::TLSv1_3)
}

/// Application protocols of ours, the one for many first: our own record layer alone knows frames.
fn protocols(own_records: bool, others: &[&[u8]]) -> Vec<Vec<u8>> {
    own_records.then_some(ALPN_MUX).iter().chain(others).map(|protocol| protocol.to_vec()).collect()
}

fn client_config(
    versions: &[&'static SupportedProtocolVersion],
    callee: Arc<dyn ServerCertVerifier>,
    certificate: Option<Arc<CertifiedKey>>,
) -> Result<ClientConfig, TlsError> {
    let builder = ClientConfig::builder_with_provider(PROVIDER.clone())
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(callee);
    let mut config = match certificate {
        Some(certified) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified))),
        None => builder.with_no_client_auth(),
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.require_ems = true;
    config.enable_secret_extraction = own_records(versions);
    Ok(config)
}

/// A finished handshake: what carries the bytes, and who the peer is.
pub(super) struct Secured {
    /// The connection.
    pub(super) made: Made,
    /// The peer's verdict; none where it need not show a certificate and shows none.
    pub(super) verdict: Option<Proven>,
    /// What the peer showed, leaf first.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// The application protocol that was agreed on.
    pub(super) protocol: Option<Vec<u8>>,
    /// Whether it is TLS 1.2.
    pub(super) tls12: bool,
}

/// What a handshake makes.
#[derive(Debug)]
pub(super) enum Made {
    /// A connection for one of an application's.
    Stream(Stream),
    /// One for many.
    Mux(Box<Parts>),
}

impl Made {
    /// What carries one connection, where no other was asked for.
    pub(super) fn stream(self) -> Result<Stream, Refusal> {
        match self {
            Self::Stream(stream) => Ok(stream),
            Self::Mux(_) => Err(Refusal::BadAlpn),
        }
    }
}

/// A TLS connection over a TCP socket.
#[derive(Debug)]
pub(super) enum Stream {
    /// By our own record layer: TLS 1.3.
    Own(Box<Tunnel<TcpStream>>),
    /// By rustls' own: where TLS 1.2 may be spoken, and everywhere with the feature `rustls-records`.
    Rustls(Box<TlsStream<TcpStream>>),
}

/// Accepts a TLS connection. Who is refused can read the alert that says so.
pub(super) async fn accept(mut stream: TcpStream, config: Arc<ServerConfig>) -> Result<Secured, Refused> {
    if config.enable_secret_extraction {
        let mut endpoint = UnbufferedServerConnection::new(config).map_err(|error| unusable(&error))?;
        let shaken = async {
            let shaken = handshake::drive(&mut endpoint, &mut stream).await;
            if shaken.is_err() {
                sockets::let_it_be_read(&mut stream).await;
            }
            shaken
        };
        let (left, verdict) = judged(shaken).await?;
        return own(endpoint, stream, left, verdict);
    }
    let shaken = async {
        match TlsAcceptor::from(config).accept(stream).into_fallible().await {
            Ok(secured) => Ok(secured),
            Err((error, mut stream)) => {
                sockets::let_it_be_read(&mut stream).await;
                Err(error)
            }
        }
    };
    let (stream, verdict) = judged(shaken).await?;
    Ok(rustls(stream.into(), verdict))
}

/// Opens a TLS connection to the server named `name`.
pub(super) async fn connect(
    mut stream: TcpStream,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
) -> Result<Secured, Refused> {
    if config.enable_secret_extraction {
        let mut endpoint = UnbufferedClientConnection::new(config, name).map_err(|error| unusable(&error))?;
        let (left, verdict) = judged(handshake::drive(&mut endpoint, &mut stream)).await?;
        return own(endpoint, stream, left, verdict);
    }
    let (stream, verdict) = connect_stream(stream, name, config).await?;
    Ok(rustls(stream.into(), verdict))
}

/// Opens a connection to the server named `name` that is read and written like any stream: not for relaying.
pub(super) async fn connect_stream(
    stream: TcpStream,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
) -> Result<(client::TlsStream<TcpStream>, Option<Proven>), Refused> {
    judged(TlsConnector::from(config).connect(name, stream)).await
}

fn own<E: Endpoint>(
    endpoint: E,
    stream: TcpStream,
    left: handshake::Left,
    verdict: Option<Proven>,
) -> Result<Secured, Refused> {
    let chain = endpoint.peer_certificates().unwrap_or_default().to_vec();
    let protocol = endpoint.alpn_protocol().map(<[u8]>::to_vec);
    let records = endpoint.into_records().map_err(|error| unusable(&error))?;
    let left = (left.flight, left.behind);
    let made = if protocol.as_deref() == Some(ALPN_MUX) {
        Made::Mux(Box::new(Parts { network: stream, records, left }))
    } else {
        Made::Stream(Stream::Own(Box::new(Tunnel::new(stream, records, left))))
    };
    Ok(Secured { made, verdict, chain, protocol, tls12: false })
}

fn rustls(stream: TlsStream<TcpStream>, verdict: Option<Proven>) -> Secured {
    let (_, connection) = stream.get_ref();
    let chain = connection.peer_certificates().unwrap_or_default().to_vec();
    let protocol = connection.alpn_protocol().map(<[u8]>::to_vec);
    let tls12 = connection.protocol_version() != Some(ProtocolVersion::TLSv1_3);
    Secured { made: Made::Stream(Stream::Rustls(Box::new(stream))), verdict, chain, protocol, tls12 }
}

fn unusable(error: &Error) -> Refused {
    tracing::debug!(%error, "rustls refuses a connection");
    Refusal::HandshakeFailed(HandshakeDetail::Malformed).into()
}

async fn judged<T>(handshake: impl Future<Output = io::Result<T>>) -> Result<(T, Option<Proven>), Refused> {
    match timeout(HANDSHAKE, verifiers::observed(handshake)).await {
        Err(_) => Err(Refusal::Timeout(TimeoutDetail::Handshake).into()),
        Ok((Err(_), Some(Err(refused)))) => Err(refused),
        Ok((Err(error), _)) => Err(reason(&error).into()),
        Ok((Ok(shaken), verdict)) => Ok((shaken, verdict.transpose()?)),
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

#[cfg(test)]
pub(super) mod tests {
    use rustls::Connection;

    use super::*;
    use crate::proxy::records::Records;

    /// A handshake in memory between a connection of ours and one of rustls'.
    pub(in crate::proxy) fn shake<E: Endpoint>(mut ours: E, mut theirs: Connection) -> (Records, Connection) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut near, far) = tokio::io::duplex(1 << 20);
            let (mut read, mut write) = tokio::io::split(far);
            let other = async {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                loop {
                    let mut out = vec![];
                    while theirs.wants_write() {
                        theirs.write_tls(&mut out).unwrap();
                    }
                    write.write_all(&out).await.unwrap();
                    if !theirs.is_handshaking() {
                        return theirs;
                    }
                    let mut bytes = vec![0; 1 << 16];
                    let length = read.read(&mut bytes).await.unwrap();
                    let mut rest = &bytes[..length];
                    while !rest.is_empty() {
                        theirs.read_tls(&mut rest).unwrap();
                        theirs.process_new_packets().unwrap();
                    }
                }
            };
            let us = async {
                let left = handshake::drive(&mut ours, &mut near).await.unwrap();
                tokio::io::AsyncWriteExt::write_all(&mut near, &left.flight).await.unwrap();
                assert!(left.behind.is_empty());
            };
            let ((), theirs) = tokio::join!(us, other);
            (ours.into_records().unwrap(), theirs)
        })
    }
}
