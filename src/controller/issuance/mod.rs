//! `POST /v1/certificate`: token and request in, certificate out. Every step of `security.md` §3.3 stands in order;
//! nothing is signed before its record is durable.

mod asker;
mod budget;
mod gate;
mod queue;

use std::{net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use base64::prelude::{BASE64_STANDARD, Engine};
use kube::Client;
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    apply::ApplyError,
    audit::{Audit, Line},
    clock::{Clock, Suspect},
    health::Metrics,
    ledgers::{Ledgers, NotRecorded},
    replicas::is_replica,
    serving::Source,
    view::View,
};
use crate::{
    brief::{CertificateRequest, CertificateResponse, Denied},
    pki::{
        authority::Serial,
        csr::{Csr, Names},
        intake::Recorded,
        ledger::{Holder, Record, key_text, names_text},
    },
    telemetry,
    topology::facts::PodFacts,
};
use asker::{Asker, Attested, attested};
use budget::Budgets;
use gate::{Busy, Gate};

/// A pod that no server selects yet is kept waiting this long: its server may be created a moment later.
const PATIENCE: Duration = Duration::from_secs(12);
/// When to come back where too many wait for one ledger.
const LATER: Duration = Duration::from_secs(5);

/// A sidecar that meets a clock that is wrong comes again after this time.
const CLOCK_AGAIN: Duration = Duration::from_secs(10);

/// What the endpoint works with.
pub(super) struct Issuer {
    client: Client,
    view: watch::Receiver<Arc<View>>,
    metrics: Arc<Metrics>,
    audit: Arc<Audit>,
    clock: Clock,
    gate: Arc<Gate>,
    budgets: Budgets,
    ledgers: Ledgers,
    _open: DropGuard,
}

/// A certificate that is not issued.
#[derive(Debug)]
pub(super) struct Denial {
    status: StatusCode,
    code: &'static str,
    message: String,
    /// When to ask again.
    after: Option<Duration>,
}

impl Denial {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), after: None }
    }

    /// There is no room now; there will be.
    fn later(message: &str, after: Duration) -> Self {
        Self { after: Some(after), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, "RateLimited", message) }
    }
}

impl From<Suspect> for Denial {
    fn from(suspect: Suspect) -> Self {
        let denial = Self::new(StatusCode::SERVICE_UNAVAILABLE, "ClockSuspect", suspect.to_string());
        Self { after: Some(CLOCK_AGAIN), ..denial }
    }
}

impl IntoResponse for Denial {
    fn into_response(self) -> Response {
        let Self { status, code, message, after } = self;
        let mut response = (status, Json(Denied { code: code.to_owned(), message })).into_response();
        if let Some(after) = after {
            let seconds = after.as_secs_f64().ceil().max(1.0);
            if let Ok(value) = HeaderValue::from_str(&format!("{seconds:.0}")) {
                response.headers_mut().insert(RETRY_AFTER, value);
            }
        }
        response
    }
}

impl From<NotRecorded> for Denial {
    fn from(why: NotRecorded) -> Self {
        let message = why.to_string();
        match why {
            NotRecorded::Refused(why) => {
                let status = if why.may_pass() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::CONFLICT };
                Self::new(status, why.code(), message)
            }
            NotRecorded::Api(error) => unavailable(&error),
            NotRecorded::Late => Self::new(StatusCode::SERVICE_UNAVAILABLE, "ApiUnavailable", message),
            NotRecorded::Busy => Self::later(&message, LATER),
            NotRecorded::Ends => Self::later(&message, Duration::ZERO),
        }
    }
}

fn unavailable(error: &ApplyError) -> Denial {
    Denial::new(StatusCode::SERVICE_UNAVAILABLE, "ApiUnavailable", error.to_string())
}

/// The endpoint.
pub(super) async fn certificate(
    State(issuer): State<Arc<Issuer>>,
    Extension(Source(source)): Extension<Source>,
    headers: HeaderMap,
    Json(request): Json<CertificateRequest>,
) -> Result<Json<CertificateResponse>, Denial> {
    let mut line = Line { source: Some(source.to_string()), ..Line::default() };
    match issuer.issue(source.ip().to_canonical(), &headers, &request, &mut line).await {
        Ok(response) => {
            issuer.metrics.issued("Issued");
            issuer.audit.tell(line);
            Ok(Json(response))
        }
        Err(denial) => {
            issuer.metrics.issued(denial.code);
            line.code = denial.code.to_owned();
            line.reason = Some(denial.message.clone());
            issuer.audit.refused(line, telemetry::now());
            Err(denial)
        }
    }
}

impl Issuer {
    /// The endpoint, and what must run beside it; that ends after the endpoint is dropped.
    pub(super) fn new(
        client: Client,
        view: watch::Receiver<Arc<View>>,
        ledgers: Ledgers,
        (metrics, audit, clock): (Arc<Metrics>, Arc<Audit>, Clock),
    ) -> (Self, impl Future<Output = ()> + Send) {
        let closed = CancellationToken::new();
        let gate = Arc::new(Gate::new());
        let sharing = view.clone();
        let replicas = move || sharing.borrow().neighbours.iter().filter(|pod| is_replica(pod)).count();
        let (keeper, token) = (Arc::clone(&gate), closed.clone());
        let beside = async move { keeper.keep(replicas, token).await };
        let budgets = Budgets::default();
        let issuer = Self { client, view, metrics, audit, clock, gate, budgets, ledgers, _open: closed.drop_guard() };
        (issuer, beside)
    }

    /// Fills `line` with what is known of the request.
    async fn issue(
        &self,
        source: IpAddr,
        headers: &HeaderMap,
        request: &CertificateRequest,
        line: &mut Line,
    ) -> Result<CertificateResponse, Denial> {
        let bad = |error: &dyn std::fmt::Display, code| Denial::new(StatusCode::BAD_REQUEST, code, error.to_string());
        self.clock.check()?;
        let token = asker::token(headers)?;
        let der = BASE64_STANDARD.decode(&request.csr).map_err(|error| bad(&error, "CsrMalformed"))?;
        let csr = Csr::parse(&der).map_err(|error| bad(&error, error.code()))?;
        let key = key_text(csr.key_sha256());
        line.key = Some(key.clone());
        let pod = self.admit(source, token, line).await?;
        let Attested { server, domain, names, authority, anchors, revision } = self.attest(&pod).await?;
        line.names(&server.id, &names);
        line.server = Some(server.key.to_string());
        line.server_uid = Some(server.uid.clone());
        line.issuer = Some(authority.key_id().to_owned());
        line.revision = revision;
        // The API server has answered since, and told the time.
        self.clock.check()?;
        let now = telemetry::now();
        self.budgets.spend(&pod.uid, domain.lifetime_seconds, now).map_err(|seconds| Denial {
            status: StatusCode::TOO_MANY_REQUESTS,
            ..Denial::later("this pod asks too often", Duration::from_secs_f64(seconds))
        })?;
        let not_ready = |error: &dyn std::fmt::Display| {
            Denial::new(StatusCode::SERVICE_UNAVAILABLE, "AuthorityNotReady", error.to_string())
        };
        let validity = authority
            .leaf_validity(domain.lifetime_seconds, domain.skew_seconds, now)
            .map_err(|error| not_ready(&error))?;
        let record = Record {
            serial: Serial::from_random(telemetry::random()),
            holder: Holder::Pod(pod.uid.clone()),
            key,
            names: names_text(&names),
            issuer: authority.key_id().to_owned(),
            validity,
            recorded: now,
            revoked: None,
        };
        let names = Names { id: server.id.clone(), dns_names: names, pod_uid: Some(pod.uid) };
        let Recorded { serial, validity, occasion } = self.ledgers.record(&server, record, &pod.name).await?;
        line.serial = Some(serial.to_string());
        line.not_after = Some(validity.not_after.to_string());
        line.code = occasion.word().to_owned();
        let signed = authority.sign(&csr.grant(names), serial, validity).map_err(|error| not_ready(&error))?;
        Ok(CertificateResponse { chain: signed.chain, anchors })
    }

    /// The live pod that asks, once it is its turn.
    async fn admit(&self, source: IpAddr, token: &str, line: &mut Line) -> Result<PodFacts, Denial> {
        // The namespace of the pod with that address, as we see it; strangers are a group each.
        let group = self.view.borrow().namespaces.get(&source).cloned().unwrap_or_else(|| source.to_string());
        let _turn = self.gate.enter(&group, source).await.map_err(|Busy { after, alone }| {
            let status = if alone { StatusCode::TOO_MANY_REQUESTS } else { StatusCode::SERVICE_UNAVAILABLE };
            Denial { status, ..Denial::later("too many ask for certificates at once; try again", after) }
        })?;
        let asker = asker::review(&self.client, token).await?;
        let Asker { namespace, account, pod, uid, credential } = &asker;
        line.namespace = Some(namespace.clone());
        line.account = Some(account.clone());
        line.pod = Some(pod.clone());
        line.pod_uid = Some(uid.clone());
        line.credential.clone_from(credential);
        let (pod, node) = asker::live_pod(&self.client, &asker).await?;
        line.node = node;
        Ok(pod)
    }

    /// What the pod is; waits a while for its server and its authority to appear.
    async fn attest(&self, pod: &PodFacts) -> Result<Attested, Denial> {
        let mut views = self.view.clone();
        let until = Instant::now() + PATIENCE;
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            let denied = match attested(&view, pod) {
                Ok(found) => return Ok(found),
                Err(denied) => denied,
            };
            let may_come = matches!(denied.code, "NoMatchingServer" | "AuthorityNotReady");
            if !may_come || tokio::time::timeout_at(until, views.changed()).await.is_err() {
                return Err(denied);
            }
        }
    }
}
