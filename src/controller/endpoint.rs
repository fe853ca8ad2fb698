//! The bundle endpoint: what other organisations need to judge our servers, for whoever asks. It tells what is public
//! anyway, and takes nothing.

use std::sync::Arc;

use anyhow::Result;
use arc_swap::ArcSwap;
use axum::{
    Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use rustls::{
    ServerConfig,
    server::{NoServerSessionStorage, ResolvesServerCert},
};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::serving;
use crate::{mounted::Mounted, telemetry};

mod issued;

pub(super) use issued::of as issued;
pub use issued::{All, Certificate, Issued};

/// Answers a file of the public trust bundle of a SPIFFE trust domain of ours, where there is one.
pub type Told = Arc<dyn Fn(&str, &str) -> Option<String> + Send + Sync>;

/// How the endpoint proves itself.
pub enum Shown {
    /// By a mounted certificate of the web PKI (https_web).
    Mounted(Arc<Mounted>),
    /// By certificates of our own domains (https_spiffe).
    Issued(Arc<Issued>),
}

/// Serves `GET /DOMAIN/bundle.json`, `/DOMAIN/ca.crt` and `/DOMAIN/crl.pem` until `shutdown`, and follows its certificate.
/// While there is none, every handshake fails.
///
/// # Errors
/// Where no TLS configuration can be made.
pub async fn serve(listener: TcpListener, shown: Shown, told: Told, shutdown: CancellationToken) -> Result<()> {
    let serving = |resolver| {
        let tls = Arc::new(ArcSwap::from_pointee(config(resolver)?));
        anyhow::Ok(serving::serve(listener, tls, router(told), shutdown))
    };
    match shown {
        Shown::Issued(issued) => serving(issued)?.await,
        Shown::Mounted(mounted) => {
            let serving = serving(Arc::clone(&mounted) as Arc<dyn ResolvesServerCert>)?;
            tokio::select! {
                () = serving => {}
                () = mounted.follow() => {}
            }
        }
    }
    Ok(())
}

fn config(resolver: Arc<dyn ResolvesServerCert>) -> Result<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(telemetry::crypto()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn router(told: Told) -> Router {
    Router::new().route("/{domain}/{file}", get(tell)).with_state(told)
}

async fn tell(State(told): State<Told>, Path((domain, file)): Path<(String, String)>) -> Response {
    let kind = match file.as_str() {
        "bundle.json" => "application/json",
        "ca.crt" | "crl.pem" => "application/x-pem-file",
        _ => return StatusCode::NOT_FOUND.into_response(),
    };
    match told(&domain, &file) {
        Some(text) => ([(header::CONTENT_TYPE, kind)], text).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

#[cfg(test)]
mod tests;
