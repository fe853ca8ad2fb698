//! The bundle endpoint: what other organisations need to judge our servers, for whoever asks. It tells what is public
//! anyway, and takes nothing.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use arc_swap::{ArcSwap, ArcSwapOption};
use axum::{
    Router,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use rustls::{
    ServerConfig,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::serving;
use crate::telemetry;

/// The certificate is read again after this time.
const LOOK: Duration = Duration::from_secs(30);

/// Answers a file of the public trust bundle of a SPIFFE trust domain of ours, where there is one.
pub type Told = Arc<dyn Fn(&str, &str) -> Option<String> + Send + Sync>;

/// Serves `GET /DOMAIN/bundle.json`, `/DOMAIN/ca.crt` and `/DOMAIN/crl.pem` until `shutdown`, and follows its certificate.
///
/// # Errors
/// Where no TLS configuration can be made.
pub async fn serve(
    listener: TcpListener,
    certificate: Arc<Mounted>,
    told: Told,
    shutdown: CancellationToken,
) -> Result<()> {
    let tls = Arc::new(ArcSwap::from_pointee(certificate.config()?));
    tokio::select! {
        () = serving::serve(listener, tls, router(told), shutdown) => {}
        () = certificate.follow() => {}
    }
    Ok(())
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

/// The certificate in a folder (`tls.crt`, `tls.key`), as it is now.
#[derive(Debug)]
pub struct Mounted {
    folder: PathBuf,
    held: ArcSwapOption<CertifiedKey>,
}

impl Mounted {
    /// The certificate that stands in `folder`, once it was read.
    pub fn new(folder: PathBuf) -> Arc<Self> {
        Arc::new(Self { folder, held: ArcSwapOption::empty() })
    }

    /// A configuration that shows it. While there is none, every handshake fails.
    fn config(self: &Arc<Self>) -> Result<ServerConfig> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(telemetry::crypto()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(self) as Arc<dyn ResolvesServerCert>);
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Reads it again now and then. One that cannot be used changes nothing.
    async fn follow(&self) {
        let mut said = String::new();
        loop {
            let outcome = match self.read().await {
                Ok(next) => {
                    let same = self.held.load().as_ref().is_some_and(|held| held.cert == next.cert);
                    if !same {
                        self.held.store(Some(Arc::new(next)));
                        info!("the bundle endpoint shows a new certificate");
                    }
                    String::new()
                }
                Err(error) => format!("{error:#}"),
            };
            if outcome != said && !outcome.is_empty() {
                warn!(error = %outcome, "the certificate of the bundle endpoint cannot be used");
            }
            said = outcome;
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn read(&self) -> Result<CertifiedKey> {
        let file = |name: &'static str| async move {
            tokio::fs::read(self.folder.join(name)).await.with_context(|| format!("{name} of the mounted Secret"))
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&file("tls.crt").await?).collect();
        let key = PrivateKeyDer::from_pem_slice(&file("tls.key").await?).context("tls.key must be PEM of a key")?;
        let key = telemetry::crypto().key_provider.load_private_key(key).context("tls.key")?;
        let next = CertifiedKey::new(chain.context("tls.crt must be PEM of certificates")?, key);
        next.keys_match().context("tls.key must be the key of tls.crt")?;
        Ok(next)
    }
}

impl ResolvesServerCert for Mounted {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.held.load_full()
    }
}

#[cfg(test)]
mod tests;
