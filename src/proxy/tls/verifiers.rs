//! The verifiers that put `pki::verify` and the brief into handshakes. The reason of a refusal leaves a handshake
//! through a task-local cell, since rustls carries only its own errors, and its errors choose the alert.

use std::{cell::RefCell, future::Future, sync::Arc, time::Instant};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::super::{
    judge::{Judge, Refused},
    quotas::Quotas,
};
use crate::{
    handshakes::{chain, instant, signatures},
    identity::{DnsName, SpiffeId},
    pki::verify::{self, Partner, Proven},
    refusal::Refusal,
};

type Judged = Result<Proven, Refused>;

tokio::task_local! {
    static JUDGED: RefCell<Option<Judged>>;
}

/// Runs a handshake; answers also what its verifier found.
pub(super) async fn observed<T>(handshake: impl Future<Output = T>) -> (T, Option<Judged>) {
    let observed = async {
        let outcome = handshake.await;
        (outcome, JUDGED.with(RefCell::take))
    };
    JUDGED.scope(RefCell::new(None), observed).await
}

/// Ends the handshake for a reason that no verifier found.
pub(super) fn refuse(reason: Refusal) {
    let _ = record(Err(reason.into()));
}

fn record(outcome: Judged) -> Result<(), Error> {
    record_as(outcome, alert)
}

fn record_as(outcome: Judged, alert: impl FnOnce(Refusal) -> CertificateError) -> Result<(), Error> {
    let answer = outcome.as_ref().map(drop).map_err(|refused| Error::InvalidCertificate(alert(refused.reason)));
    // Outside a handshake of ours nobody reads the cell; the answer stands all the same.
    let _ = JUDGED.try_with(|cell| cell.replace(Some(outcome)));
    answer
}

/// The certificate error whose alert says most to the peer (`security.md` §4).
fn alert(refusal: Refusal) -> CertificateError {
    match refusal {
        Refusal::Expired => CertificateError::Expired,
        Refusal::NotYetValid => CertificateError::NotValidYet,
        Refusal::Revoked | Refusal::Withdrawn(_) => CertificateError::Revoked,
        // Our want of news, not the peer's fault: all three are `unknown_ca` to it.
        Refusal::UntrustedRoot(_) | Refusal::IssuerNotCurrent => CertificateError::UnknownIssuer,
        Refusal::UnknownStatus => CertificateError::UnknownRevocationStatus,
        Refusal::StaleCrl => CertificateError::ExpiredRevocationList,
        Refusal::BadChain(_) | Refusal::BadName(_) => CertificateError::BadEncoding,
        Refusal::WrongUsage => CertificateError::InvalidPurpose,
        Refusal::WrongServer(_) => CertificateError::NotValidForName,
        _ => CertificateError::ApplicationVerificationFailure,
    }
}

/// Whoever dials one of our `MutualTls` ports.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) judge: Arc<Judge>,
    pub(super) port: u16,
    pub(super) quotas: Arc<Quotas>,
}

impl Caller {
    /// A partner's handshakes are counted before anything is computed for them.
    fn count(&self, partner: &Partner) -> Result<(), Refusal> {
        let link = self.judge.brief.link(partner.name()).ok_or(Refusal::NameOutOfScope)?;
        self.quotas.begin(partner.name(), link.handshakes_per_second, Instant::now())
    }
}

impl ClientCertVerifier for Caller {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let judged =
            self.judge.caller(&chain(leaf, intermediates), self.port, instant(now), |partner| self.count(partner));
        let at_edge = self.judge.brief.port(self.port).is_ok_and(|port| !port.allow.partners.is_empty());
        record_as(judged, |reason| match reason {
            // A stranger at the edge learns nothing of whose names are known here.
            Refusal::BadName(_) if at_edge => CertificateError::ApplicationVerificationFailure,
            _ => alert(reason),
        })?;
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}

/// Whoever dials one of our `ServerTls` ports that ask for a certificate: nobody has to show one.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) judge: Arc<Judge>,
    /// Whose certificates are asked for, so that clients do not show others.
    pub(super) authorities: Vec<DistinguishedName>,
}

impl ClientCertVerifier for Known {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.authorities
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        record(self.judge.known(&chain(leaf, intermediates), instant(now)))?;
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}

/// The one server that we mean to reach.
#[derive(Debug)]
pub(super) struct Callee {
    pub(super) judge: Arc<Judge>,
    pub(super) expected: SpiffeId,
}

impl ServerCertVerifier for Callee {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        record(self.judge.callee(&chain(leaf, intermediates), &self.expected, instant(now)))?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!(tls13);
}

/// The one edge of a partner that we mean to reach.
#[derive(Debug)]
pub(super) struct Edge {
    pub(super) judge: Arc<Judge>,
    pub(super) partner: String,
    pub(super) host: DnsName,
}

impl ServerCertVerifier for Edge {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        record(self.judge.edge(&chain(leaf, intermediates), &self.partner, &self.host, instant(now)))?;
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

/// Any server: for HTTPS probes only.
#[derive(Debug)]
pub(super) struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not offered".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        verify::algorithms().supported_schemes()
    }
}
