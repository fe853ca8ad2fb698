//! The control channel: HTTPS to the controller, verified against the control plane's own authority.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    client::conn::http1::{self, SendRequest},
    header::{AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER},
};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

use super::{
    credentials::Leaf,
    dns::Guard,
    sockets,
    tls::{self, TlsError},
};
use crate::brief::Denied;

/// Deadline of connecting: short, since the next attempt may meet another replica.
const CONNECT: Duration = Duration::from_secs(2);
/// Deadline of the TLS handshake: as long as a controller gives one that many want at once.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A controller that is asked by too many says when there will be room, but nobody waits longer than this.
const LATEST: Duration = Duration::from_secs(60);

/// Where the control plane is, and how it is recognised.
#[derive(Clone, Debug)]
pub struct Control {
    /// `host:port`.
    pub address: String,
    /// PEM of the one authority that may vouch for it.
    pub authority: String,
}

/// Why the controller did not answer as hoped.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChannelError {
    /// The address has no `host:port` shape.
    #[error("{0:?} must be HOST:PORT")]
    Address(String),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No connection.
    #[error("cannot reach the control plane")]
    Unreachable(#[source] std::io::Error),
    /// HTTP broke.
    #[error("the control plane's answer broke off")]
    Http(#[from] hyper::Error),
    /// The deadline passed.
    #[error("the control plane did not answer in time")]
    Silent,
    /// Refused, with the stage's code.
    #[error("denied: {code}: {message}")]
    Denied {
        /// HTTP status.
        status: StatusCode,
        /// Stable code.
        code: String,
        /// What to do about it.
        message: String,
        /// When to ask again, where the controller says so.
        after: Option<Duration>,
    },
    /// Too large, or not what the contract says.
    #[error("the control plane's answer is not what this version reads: {0}")]
    Unreadable(String),
}

impl ChannelError {
    /// Whether the controller did not accept our certificate (or token).
    pub(super) fn is_unauthorised(&self) -> bool {
        matches!(self, Self::Denied { status: StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN, .. })
    }

    /// When to ask again, where the controller says so.
    pub(super) const fn after(&self) -> Option<Duration> {
        match self {
            Self::Denied { after, .. } => *after,
            _ => None,
        }
    }
}

/// A client with one kept connection.
pub(super) struct Channel<'a> {
    guard: &'a Guard,
    address: String,
    host: String,
    port: u16,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
    open: Option<SendRequest<Full<Bytes>>>,
}

/// What to ask, and what to expect of the answer.
pub(super) struct Call<'a> {
    /// Path.
    pub(super) path: &'static str,
    /// Token, where no certificate speaks for us.
    pub(super) bearer: Option<&'a str>,
    /// Deadline of the answer.
    pub(super) deadline: Duration,
    /// Bound of the answer's body.
    pub(super) at_most: usize,
}

impl<'a> Channel<'a> {
    /// A client of `control`, found by `guard`, with `leaf` as its certificate where there is one.
    pub(super) fn new(guard: &'a Guard, control: &Control, leaf: Option<&Leaf>) -> Result<Self, ChannelError> {
        let wrong = || ChannelError::Address(control.address.clone());
        let (host, port) = control.address.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse::<u16>().map_err(|_| wrong())?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host.clone()).map_err(|_| wrong())?;
        let config = tls::control(&control.authority, leaf)?;
        Ok(Self { guard, address: control.address.clone(), host, port, name, config, open: None })
    }

    /// Posts `message` and reads the answer.
    pub(super) async fn post<A: DeserializeOwned>(
        &mut self,
        call: &Call<'_>,
        message: &impl Serialize,
    ) -> Result<A, ChannelError> {
        let body = serde_json::to_vec(message).map_err(|error| ChannelError::Unreadable(error.to_string()))?;
        let exchange = self.exchange(call, body.into());
        let (status, after, body) = timeout(call.deadline, exchange).await.map_err(|_| ChannelError::Silent)??;
        if status != StatusCode::OK {
            let denied = serde_json::from_slice(&body)
                .unwrap_or_else(|_| Denied { code: status.to_string(), message: String::new() });
            let clip = |text: String| text.chars().take(300).collect();
            return Err(ChannelError::Denied { status, code: clip(denied.code), message: clip(denied.message), after });
        }
        serde_json::from_slice(&body).map_err(|error| ChannelError::Unreadable(error.to_string()))
    }

    async fn exchange(
        &mut self,
        call: &Call<'_>,
        body: Bytes,
    ) -> Result<(StatusCode, Option<Duration>, Bytes), ChannelError> {
        // While an exchange is under way the connection is out of its place, so a cancelled one is never used again.
        let mut connection = match self.kept().await {
            Some(kept) => kept,
            None => self.connect().await?,
        };
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(call.path)
            .header(HOST, &self.address)
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = call.bearer {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(Full::new(body)).map_err(|error| ChannelError::Unreadable(error.to_string()))?;
        let response = connection.send_request(request).await?;
        let status = response.status();
        let after = after(response.headers());
        let body = Limited::new(response.into_body(), call.at_most);
        let body = body.collect().await.map_err(|error| ChannelError::Unreadable(error.to_string()))?.to_bytes();
        self.open = Some(connection);
        Ok((status, after, body))
    }

    /// The kept connection, unless the other side has closed it meanwhile.
    async fn kept(&mut self) -> Option<SendRequest<Full<Bytes>>> {
        let mut open = self.open.take()?;
        open.ready().await.ok().map(|()| open)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, ChannelError> {
        let dial = async {
            let found = self.guard.find(&self.host).await;
            let addresses: Vec<SocketAddr> = found.into_iter().map(|address| (address, self.port).into()).collect();
            TcpStream::connect(&addresses[..]).await
        };
        let dial = timeout(CONNECT, dial).await.map_err(|_| ChannelError::Silent)?;
        let socket = dial.map_err(ChannelError::Unreachable)?;
        sockets::prepare(&socket, true).map_err(ChannelError::Unreachable)?;
        let handshake = TlsConnector::from(self.config.clone()).connect(self.name.clone(), socket);
        let stream = timeout(HANDSHAKE, handshake).await.map_err(|_| ChannelError::Silent)?;
        let stream = stream.map_err(ChannelError::Unreachable)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends by itself when the sender is dropped or the peer hangs up; an error reaches the sender as well.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(sender)
    }
}

/// When to ask again, where the answer says so in seconds (RFC 9110 §10.2.3).
fn after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LATEST))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn a_controller_says_when_there_is_room_and_nobody_waits_longer_than_a_minute() {
        let cases = [("7", Some(7)), ("0", Some(0)), ("99999", Some(60)), ("soon", None), ("-1", None)];
        for (said, expected) in cases {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_static(said))]);
            assert_eq!(after(&headers), expected.map(Duration::from_secs), "{said}");
        }
        assert_eq!(after(&HeaderMap::new()), None);
    }
}
