//! How an endpoint of another organisation proves itself to us: by the web PKI, or by an identity of its trust domain.

use std::sync::{Arc, OnceLock};

use rustls::{
    CertificateError, ClientConfig, Error, RootCertStore,
    client::{
        Resumption,
        danger::{ServerCertVerified, ServerCertVerifier},
    },
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::{
    handshakes::{chain, instant, signatures},
    pki::verify::{self, Anchors},
    refusal::Refusal,
    telemetry,
};

/// How an endpoint must prove itself.
#[derive(Clone, Debug)]
pub enum Proof {
    /// By a certificate of the web PKI for the name in the address (`https_web`).
    Web,
    /// By this SPIFFE identity, which these roots vouch for (`https_spiffe`).
    Spiffe {
        /// The one URI in its certificate.
        id: String,
        /// The roots of its trust domain, PEM.
        roots: Vec<String>,
    },
}

/// Why an endpoint with a SPIFFE identity was refused, where it was.
pub(super) type Verdict = Arc<OnceLock<Refusal>>;

/// Configuration of one call, and where it says why an identity was refused.
pub(super) fn config(proof: &Proof, web: &Arc<RootCertStore>) -> Result<(Arc<ClientConfig>, Verdict), Error> {
    let builder =
        ClientConfig::builder_with_provider(Arc::new(telemetry::crypto())).with_safe_default_protocol_versions()?;
    let verdict = Verdict::default();
    let mut config = match proof {
        Proof::Web => builder.with_root_certificates(Arc::clone(web)).with_no_client_auth(),
        Proof::Spiffe { id, roots } => {
            let anchors = Anchors::parse(roots).map_err(|error| Error::General(error.to_string()))?;
            let endpoint = Endpoint { id: id.clone(), anchors, verdict: Arc::clone(&verdict) };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(endpoint)).with_no_client_auth()
        }
    };
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((Arc::new(config), verdict))
}

/// Whether a handshake failed because the endpoint is another one than the address says.
pub(super) const fn is_another(error: &Error) -> bool {
    matches!(
        error,
        Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })
    )
}

/// The endpoint with this identity.
#[derive(Debug)]
struct Endpoint {
    id: String,
    anchors: Anchors,
    verdict: Verdict,
}

impl ServerCertVerifier for Endpoint {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chain = chain(leaf, intermediates);
        verify::endpoint(&chain, &self.id, &self.anchors, instant(now)).map_err(|refusal| {
            let _ = self.verdict.set(refusal);
            Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
        })?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}
