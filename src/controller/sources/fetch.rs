//! One GET of an address that somebody else named, and nothing more than that: no redirect, no decompression, no answer
//! beyond a bound, no address inside the cluster, and an end after five seconds.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, Response, StatusCode, Uri, body::Incoming, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::{
    address::Denied,
    proof::{self, Proof},
};
use crate::refusal::Refusal;

/// From the name to the last byte.
const WHOLE: Duration = Duration::from_secs(5);
/// One address; then the next is tried.
const CONNECT: Duration = Duration::from_secs(2);
/// Addresses of one name that are tried.
const ADDRESSES: usize = 4;
/// Bytes of an answer's head.
const HEAD: usize = 16 * 1024;

/// Looks a name up.
pub type Resolve = Arc<dyn Fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// What calls are made with.
#[derive(Clone)]
pub struct Fetcher {
    web: Arc<RootCertStore>,
    resolve: Resolve,
}

/// Why nothing was fetched.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// No address that is called.
    #[error("{0}")]
    Address(&'static str),
    /// The name leads nowhere.
    #[error("{0} could not be looked up")]
    Lookup(String),
    /// The name leads where nobody may be led.
    #[error("{0} leads to {1}, which belongs to this cluster or node, or is no address of others: it is not called")]
    Denied(String, IpAddr),
    /// No address answers.
    #[error("{0} cannot be reached: {1}")]
    Connect(String, io::ErrorKind),
    /// The endpoint is another one.
    #[error("the endpoint is not the one that is expected: {0}")]
    Identity(String),
    /// No secure connection.
    #[error("TLS with {0} failed: {1}")]
    Tls(String, String),
    /// The connection ended in the middle.
    #[error("{0} did not answer as HTTP does")]
    Broken(String),
    /// It sends us elsewhere.
    #[error("{0} answered with a redirect (status {1}), which is not followed: name the address where it is")]
    Redirect(String, u16),
    /// Any other answer than success.
    #[error("{0} answered with status {1}")]
    Status(String, u16),
    /// Not as it is.
    #[error("{0} answered with an encoding ({1}); it must send the document as it is")]
    Encoded(String, String),
    /// More than is taken.
    #[error("{0} answered with more than {1} bytes")]
    TooLong(String, usize),
    /// Too late.
    #[error("{0} did not answer within {WHOLE:?}")]
    Late(String),
}

impl Fetcher {
    /// One that trusts `web` roots for the web PKI, and looks names up by `resolve`.
    pub const fn new(web: Arc<RootCertStore>, resolve: Resolve) -> Self {
        Self { web, resolve }
    }

    /// Looks names up as the pod does.
    pub fn system() -> Resolve {
        Arc::new(|host, port| {
            Box::pin(async move { Ok(tokio::net::lookup_host((host.as_str(), port)).await?.collect()) })
        })
    }

    /// What stands at `url`, at most `longest` bytes. `proof` = `None`: also `http` is called, where what is fetched
    /// proves itself.
    ///
    /// # Errors
    /// Whatever stands in the way; nothing is tried twice.
    pub async fn get(
        &self,
        url: &str,
        proof: Option<&Proof>,
        longest: usize,
        denied: &Denied,
    ) -> Result<Bytes, FetchError> {
        let target = Target::of(url, proof.is_some())?;
        let call = async {
            let stream = self.connect(&target, denied).await?;
            if !target.secure {
                return exchange(stream, &target, longest).await;
            }
            let (config, verdict) = proof::config(proof.unwrap_or(&Proof::Web), &self.web)
                .map_err(|error| FetchError::Tls(target.host.clone(), error.to_string()))?;
            let name = ServerName::try_from(target.host.clone());
            let name = name.map_err(|_| FetchError::Address("the host of the address is no name"))?;
            let secured = TlsConnector::from(config).connect(name, stream).await;
            let stream = secured.map_err(|error| tls_error(&target.host, &error, verdict.get()))?;
            exchange(stream, &target, longest).await
        };
        timeout(WHOLE, call).await.unwrap_or_else(|_| Err(FetchError::Late(target.host.clone())))
    }

    /// Connects to an address that was looked at: a name that leads elsewhere at its next lookup changes nothing.
    async fn connect(&self, target: &Target, denied: &Denied) -> Result<TcpStream, FetchError> {
        let Target { host, port, .. } = target;
        let found = match host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, *port)],
            Err(_) => (self.resolve)(host.clone(), *port).await.map_err(|_| FetchError::Lookup(host.clone()))?,
        };
        let refused = found.iter().find(|address| denied.holds(address.ip()));
        let mut last = match refused {
            Some(address) => FetchError::Denied(host.clone(), address.ip()),
            None => FetchError::Lookup(host.clone()),
        };
        for address in found.iter().filter(|address| !denied.holds(address.ip())).take(ADDRESSES) {
            match timeout(CONNECT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => last = FetchError::Connect(host.clone(), error.kind()),
                Err(_) => last = FetchError::Connect(host.clone(), io::ErrorKind::TimedOut),
            }
        }
        Err(last)
    }
}

/// An address, taken apart.
struct Target {
    secure: bool,
    host: String,
    port: u16,
    path: String,
    /// As the request names it.
    authority: String,
}

impl Target {
    fn of(url: &str, only_secure: bool) -> Result<Self, FetchError> {
        const WRONG: FetchError = FetchError::Address("the address must be a URL with a host and without a user");
        let uri: Uri = url.parse().map_err(|_| WRONG)?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(WRONG) };
        let secure = match scheme {
            "https" => true,
            "http" if !only_secure => false,
            _ => return Err(FetchError::Address("the address must begin with https://")),
        };
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(WRONG);
        }
        Ok(Self {
            secure,
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            path: uri.path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string),
            authority: authority.as_str().to_owned(),
        })
    }
}

fn tls_error(host: &str, error: &io::Error, refused: Option<&Refusal>) -> FetchError {
    if let Some(refusal) = refused {
        return FetchError::Identity(format!("{}: {refusal}", refusal.code()));
    }
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(inner) if proof::is_another(inner) => {
            FetchError::Identity(format!("its certificate is not one of {host}"))
        }
        Some(inner) => FetchError::Tls(host.to_owned(), inner.to_string()),
        None => FetchError::Broken(host.to_owned()),
    }
}

async fn exchange<S>(stream: S, target: &Target, longest: usize) -> Result<Bytes, FetchError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let broken = || FetchError::Broken(target.host.clone());
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD)
        .max_headers(64)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|_| broken())?;
    // It ends with this call, whatever becomes of it.
    let _driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get(&target.path)
        .header(header::HOST, &target.authority)
        .header(header::ACCEPT_ENCODING, "identity")
        .header(header::USER_AGENT, "entente")
        .body(Empty::<Bytes>::new())
        .map_err(|_| FetchError::Address("the path of the address cannot be asked for"))?;
    let answer = sender.send_request(request).await.map_err(|_| broken())?;
    fits(&answer, target, longest)?;
    match Limited::new(answer.into_body(), longest).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            Err(FetchError::TooLong(target.host.clone(), longest))
        }
        Err(_) => Err(broken()),
    }
}

/// Success, as it is, and no more than is taken.
fn fits(answer: &Response<Incoming>, target: &Target, longest: usize) -> Result<(), FetchError> {
    let host = || target.host.clone();
    let status = answer.status();
    if status.is_redirection() {
        return Err(FetchError::Redirect(host(), status.as_u16()));
    }
    if status != StatusCode::OK {
        return Err(FetchError::Status(host(), status.as_u16()));
    }
    let encoding = answer.headers().get(header::CONTENT_ENCODING);
    if let Some(encoding) = encoding.filter(|encoding| *encoding != "identity") {
        let said = String::from_utf8_lossy(encoding.as_bytes()).chars().take(32).collect();
        return Err(FetchError::Encoded(host(), said));
    }
    let length = answer.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    if length.and_then(|text| text.parse::<u64>().ok()).is_some_and(|length| length > longest as u64) {
        return Err(FetchError::TooLong(host(), longest));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
