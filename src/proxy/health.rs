//! Readiness, metrics and the application's rewritten probes, on a thread of their own so that they always answer.

use std::{convert::Infallible, net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header::CONTENT_TYPE, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;

use super::{probes, shared::Shared};
use crate::sidecar::Probes;

/// Connections served at a time.
const MAX_CONNECTIONS: usize = 128;
/// Deadline of a request's head.
const HEAD: Duration = Duration::from_secs(5);

/// What the health server knows.
#[derive(Debug)]
pub(super) struct Health {
    /// The proxy.
    pub(super) shared: Arc<Shared>,
    /// The application's probes.
    pub(super) probes: Probes,
}

impl Health {
    /// Serves until `stop`, on the calling thread.
    pub(super) fn run(self, listener: std::net::TcpListener, stop: &CancellationToken) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = TcpListener::from_std(listener)?;
            let health = Arc::new(self);
            tokio::select! {
                () = stop.cancelled() => Ok(()),
                never = health.accept(listener) => match never {},
            }
        })
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) -> Infallible {
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let health = self.clone();
            tokio::spawn(async move {
                let service = service_fn(|request| {
                    let health = health.clone();
                    async move { Ok::<_, Infallible>(health.answer(&request).await) }
                });
                let mut server = hyper::server::conn::http1::Builder::new();
                let server = server.timer(TokioTimer::new()).header_read_timeout(HEAD).keep_alive(false);
                // A client that breaks off concerns nobody else.
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
                drop(place);
            });
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match request.uri().path() {
            "/live" => text(StatusCode::OK, "ok\n"),
            "/ready" if self.shared.is_ready() => text(StatusCode::OK, "ok\n"),
            "/ready" => match self.shared.generation() {
                Err(refusal) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{refusal}\n")),
                Ok(_) => text(StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
            },
            "/metrics" => self.metrics(),
            path => self.probe(path).await,
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let mut response = text(StatusCode::OK, self.shared.metrics.render(self.shared.registry.count()));
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
        response
    }

    async fn probe(&self, path: &str) -> Response<Full<Bytes>> {
        let Some(probe) = self.probes.get(path) else { return text(StatusCode::NOT_FOUND, "nothing here\n") };
        let Some(address) = self.application() else {
            return text(StatusCode::SERVICE_UNAVAILABLE, "the pod's address is not known\n");
        };
        match probes::perform(probe, address).await {
            Ok(()) => text(StatusCode::OK, "ok\n"),
            Err(error) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
        }
    }

    fn application(&self) -> Option<IpAddr> {
        self.shared.place.pod_ips.first().copied()
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
