//! The application's probes and hooks, performed in the kubelet's place: exactly the declared request, nothing else.

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use h2::client;
use http_body_util::Empty;
use hyper::{
    Request, StatusCode, Uri, Version,
    client::conn::http1,
    header::{ACCEPT, CONTENT_TYPE, HOST, TE, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{sockets, tls};
use crate::sidecar::{Probe, ProbeAction};

/// Bound of a gRPC answer; the real one has a few bytes.
const MAX_ANSWER: usize = 4096;

/// Why a probe failed; the kubelet shows the message.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProbeError {
    /// No answer within the probe's deadline.
    #[error("no answer within {0} s")]
    Timeout(u32),
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    /// TLS failed.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// HTTP broke.
    #[error("HTTP failed: {0}")]
    Http(#[from] hyper::Error),
    /// The declared request cannot be sent.
    #[error("the declared request is not valid: {0}")]
    Request(#[from] hyper::http::Error),
    /// An answer that is no success.
    #[error("HTTP status {0}")]
    Status(StatusCode),
    /// HTTP/2 broke.
    #[error("gRPC failed: {0}")]
    Grpc(#[from] h2::Error),
    /// The service is not serving.
    #[error("the service is not serving")]
    NotServing,
}

/// Performs `probe` against the application at `address`.
pub(super) async fn perform(probe: &Probe, address: IpAddr) -> Result<(), ProbeError> {
    let seconds = probe.timeout_seconds.max(1);
    let request = async {
        match &probe.action {
            ProbeAction::Tcp { port } => connect(address, *port).await.map(drop),
            ProbeAction::Grpc { port, service } => grpc(connect(address, *port).await?, service).await,
            ProbeAction::Http { port, path, https, headers } => {
                let stream = connect(address, *port).await?;
                let authority = SocketAddr::new(address, *port).to_string();
                let request = http_request(path, headers, &authority)?;
                if *https {
                    let config = tls::probe().map_err(|error| ProbeError::Tls(error.to_string()))?;
                    let name = ServerName::IpAddress(address.into());
                    let stream = TlsConnector::from(config).connect(name, stream).await;
                    http(stream.map_err(|error| ProbeError::Tls(error.to_string()))?, request).await
                } else {
                    http(stream, request).await
                }
            }
        }
    };
    let deadline = Duration::from_secs(u64::from(seconds));
    timeout(deadline, request).await.unwrap_or(Err(ProbeError::Timeout(seconds)))
}

async fn connect(address: IpAddr, port: u16) -> Result<TcpStream, ProbeError> {
    let stream = TcpStream::connect((address, port)).await.map_err(ProbeError::Connect)?;
    sockets::prepare(&stream, false).map_err(ProbeError::Connect)?;
    // A probe ends like any client of the application, not with a reset.
    sockets::end_cleanly(&stream);
    Ok(stream)
}

fn http_request(
    path: &str,
    headers: &[(String, String)],
    authority: &str,
) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut request = Request::get(path.parse::<Uri>()?);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let mut request = request.body(Empty::new())?;
    let present = request.headers_mut();
    // What the kubelet would have sent, unless the probe says otherwise.
    present.entry(HOST).or_insert(authority.parse()?);
    present.entry(USER_AGENT).or_insert(hyper::header::HeaderValue::from_static("kube-probe/entente"));
    present.entry(ACCEPT).or_insert(hyper::header::HeaderValue::from_static("*/*"));
    Ok(request)
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<(), ProbeError> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let answer = async {
        let status = sender.send_request(request).await?.status();
        if (200..400).contains(&status.as_u16()) { Ok(()) } else { Err(ProbeError::Status(status)) }
    };
    driven(answer, connection).await
}

/// Awaits `answer` while `connection` carries it. The connection may end right behind the answer, or because of an
/// error that the answer then tells.
async fn driven<A, C>(answer: impl Future<Output = A>, connection: impl Future<Output = C>) -> A {
    tokio::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => answer,
        _ = connection => answer.await,
    }
}

/// `grpc.health.v1.Health/Check`.
async fn grpc(stream: TcpStream, service: &str) -> Result<(), ProbeError> {
    let authority = stream.peer_addr().map_err(ProbeError::Connect)?;
    let (sender, connection) = client::handshake(stream).await?;
    let request = Request::post(format!("http://{authority}/grpc.health.v1.Health/Check"))
        .version(Version::HTTP_2)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .header(USER_AGENT, "kube-probe/entente")
        .body(())?;
    let exchange = async {
        let mut sender = sender.ready().await?;
        let (answer, mut body) = sender.send_request(request, false)?;
        body.send_data(health_request(service), true)?;
        let answer = answer.await?;
        let status = answer.status();
        if status != StatusCode::OK {
            return Err(ProbeError::Status(status));
        }
        let mut answer = answer.into_body();
        let mut message = Vec::new();
        while let Some(part) = answer.data().await {
            let part = part?;
            answer.flow_control().release_capacity(part.len())?;
            message.extend_from_slice(&part);
            if message.len() > MAX_ANSWER {
                return Err(ProbeError::NotServing);
            }
        }
        if is_serving(&message) { Ok(()) } else { Err(ProbeError::NotServing) }
    };
    driven(exchange, connection).await
}

/// The framed message `HealthCheckRequest { service = 1 }`; names are bounded by the probe's own bound.
fn health_request(service: &str) -> Bytes {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
    let mut framed = vec![0];
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&message);
    framed.into()
}

/// Whether the framed message is `HealthCheckResponse { status = SERVING }`: field 1, value 1.
fn is_serving(framed: &[u8]) -> bool {
    framed.len() >= 7 && framed[0] == 0 && framed[5..7] == [0x08, 0x01]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_health_messages_are_framed_as_the_protocol_says() {
        assert_eq!(&health_request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&health_request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert!(is_serving(&[0, 0, 0, 0, 2, 8, 1]));
        assert!(!is_serving(&[0, 0, 0, 0, 2, 8, 2]));
        assert!(!is_serving(&[0, 0, 0, 0, 0]));
    }

    #[test]
    fn a_probes_own_headers_win_over_the_kubelets() {
        let headers = [("Host".to_owned(), "app.example".to_owned()), ("X-A".to_owned(), "b".to_owned())];
        let request = http_request("healthz?full=1", &headers, "10.0.0.1:80").unwrap();
        assert_eq!(request.uri(), "/healthz?full=1");
        assert_eq!(request.headers()[HOST], "app.example");
        assert_eq!(request.headers()["x-a"], "b");
        assert_eq!(request.headers()[ACCEPT], "*/*");
    }
}
