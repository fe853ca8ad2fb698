//! `POST /v1/certificate`: token and request in, certificate out. Every step of `security.md` §3.3 stands in order;
//! nothing is signed before its record is durable.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
};
use base64::prelude::{BASE64_STANDARD, Engine};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        authentication::v1::{TokenReview, TokenReviewSpec},
        core::v1::{ConfigMap, Pod},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, api::PostParams, runtime::events::EventType};
use tokio::{
    sync::{Mutex as Turn, Semaphore, watch},
    time::Instant,
};
use tracing::{info, warn};

use super::{
    apply::{ApplyError, within},
    channel::Refused,
    events::Events,
    health::Metrics,
    stores::{LEDGER, PART},
    view::View,
};
use crate::{
    brief::{CertificateRequest, CertificateResponse, TOKEN_AUDIENCE},
    pki::{
        self,
        authority::{Authority, Serial, Validity},
        csr::{Csr, Names},
        ledger::{Holder, Ledger, Owner, Record, key_text},
    },
    sidecar, telemetry,
    topology::{Domain, Server, ServerKey, facts::PodFacts},
};

/// A pod that no server selects yet is kept waiting this long: its server may be created a moment later.
const PATIENCE: Duration = Duration::from_secs(12);
/// Requests under way at a time; more wait.
const AT_ONCE: usize = 64;
/// Tries to append to a ledger that others append to as well.
const TRIES: u32 = 5;
/// Certificates that one pod may have in a burst.
const BURST: f64 = 10.0;
/// Pods whose budget is remembered.
const MAX_BUDGETS: usize = 65_536;

/// What the endpoint works with.
pub(super) struct Issuer {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) events: Events,
    pub(super) metrics: Arc<Metrics>,
    room: Semaphore,
    turns: Mutex<BTreeMap<ServerKey, Arc<Turn<()>>>>,
    budgets: Mutex<HashMap<String, (f64, Timestamp)>>,
}

/// Who asks, as the API server vouches for it.
struct Asker {
    namespace: String,
    account: String,
    pod: String,
    uid: String,
}

/// What stands in the ledger for a certificate that may now be signed.
struct Recorded {
    serial: Serial,
    validity: Validity,
    /// `Issued` to a pod for the first time, `Renewed`, or `Repeated`: asked for again, answered with the same.
    occasion: &'static str,
}

fn refused(status: StatusCode, code: &str, message: impl Into<String>) -> Refused {
    Refused::new(status, code, message)
}

fn unavailable(error: &ApplyError) -> Refused {
    refused(StatusCode::SERVICE_UNAVAILABLE, "ApiUnavailable", error.to_string())
}

/// The endpoint.
pub(super) async fn certificate(
    State(issuer): State<Arc<Issuer>>,
    headers: HeaderMap,
    Json(request): Json<CertificateRequest>,
) -> Result<Json<CertificateResponse>, Refused> {
    let answer = issuer.issue(&headers, &request).await;
    match &answer {
        Ok(_) => issuer.metrics.issued("Issued"),
        Err(Refused(_, denied)) => {
            issuer.metrics.issued(&denied.code);
            warn!(target: "audit", code = denied.code, message = denied.message, "certificate refused");
        }
    }
    answer.map(Json)
}

impl Issuer {
    pub(super) fn new(
        client: Client,
        namespace: String,
        view: watch::Receiver<Arc<View>>,
        events: Events,
        metrics: Arc<Metrics>,
    ) -> Self {
        let room = Semaphore::new(AT_ONCE);
        Self { client, namespace, view, events, metrics, room, turns: Mutex::default(), budgets: Mutex::default() }
    }

    async fn issue(&self, headers: &HeaderMap, request: &CertificateRequest) -> Result<CertificateResponse, Refused> {
        let bad = |error: &dyn std::fmt::Display, code: &str| refused(StatusCode::BAD_REQUEST, code, error.to_string());
        let der = BASE64_STANDARD.decode(&request.csr).map_err(|error| bad(&error, "CsrMalformed"))?;
        let csr = Csr::parse(&der).map_err(|error| bad(&error, error.code()))?;
        let asker = {
            let _room = self.room.acquire().await;
            self.review(headers).await?
        };
        let pod = self.live_pod(&asker).await?;
        let (server, domain, names, authority, roots) = self.attest(&pod).await?;
        self.spend(&pod.uid, &domain)?;
        let _room = self.room.acquire().await;
        let turn = self.turn(&server.key);
        let _turn = turn.lock().await;
        let key = key_text(csr.key_sha256());
        let Recorded { serial, validity, occasion } = self.record(&server, &domain, &authority, &pod.uid, &key).await?;
        let names = Names { id: server.id.clone(), dns_names: names, pod_uid: Some(pod.uid.clone()) };
        let signed = authority
            .sign(&csr.grant(names), serial, validity)
            .map_err(|error| refused(StatusCode::SERVICE_UNAVAILABLE, "AuthorityNotReady", error.to_string()))?;
        info!(target: "audit", %serial, id = %server.id, pod = pod.name, pod_uid = pod.uid, account = pod.service_account,
            issuer = authority.key_id(), not_after = %validity.not_after, occasion, "certificate issued");
        let note = format!("pod {}: certificate {serial} until {}", pod.name, validity.not_after);
        self.events.about(&server, EventType::Normal, occasion, "Issue", note);
        Ok(CertificateResponse { chain: signed.chain, anchors: roots })
    }

    /// The API server's word on the token; nothing of the token itself is read here.
    async fn review(&self, headers: &HeaderMap) -> Result<Asker, Refused> {
        let denied = |code: &str, message: String| refused(StatusCode::UNAUTHORIZED, code, message);
        let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        let Some(token) = token.filter(|token| token.len() <= 8192) else {
            return Err(denied("TokenInvalid", "the request carries no bearer token".to_owned()));
        };
        let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: Some(vec![TOKEN_AUDIENCE.to_owned()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let api = Api::<TokenReview>::all(self.client.clone());
        let review = within(api.create(&PostParams::default(), &review)).await.map_err(|error| unavailable(&error))?;
        let status = review.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Err(denied("TokenInvalid", status.error.unwrap_or_else(|| "the token is not valid".to_owned())));
        }
        if !status.audiences.unwrap_or_default().iter().any(|audience| audience == TOKEN_AUDIENCE) {
            return Err(denied("WrongAudience", format!("the token is not meant for {TOKEN_AUDIENCE}")));
        }
        let user = status.user.unwrap_or_default();
        let extra = user.extra.unwrap_or_default();
        let one = |key: &str| match extra.get(&format!("authentication.kubernetes.io/{key}")).map(Vec::as_slice) {
            Some([value]) => Some(value.clone()),
            _ => None,
        };
        let name = user.username.unwrap_or_default();
        let account = name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
        match (account, one("pod-name"), one("pod-uid")) {
            (Some((namespace, account)), Some(pod), Some(uid)) => {
                Ok(Asker { namespace: namespace.to_owned(), account: account.to_owned(), pod, uid })
            }
            _ => Err(denied("TokenNotPodBound", "the token is not bound to a pod".to_owned())),
        }
    }

    async fn live_pod(&self, asker: &Asker) -> Result<PodFacts, Refused> {
        let api = Api::<Pod>::namespaced(self.client.clone(), &asker.namespace);
        let found = within(api.get_opt(&asker.pod)).await.map_err(|error| unavailable(&error))?;
        let gone = || refused(StatusCode::FORBIDDEN, "PodNotFound", format!("pod {} is gone", asker.pod));
        let facts = PodFacts::of(&found.ok_or_else(gone)?);
        if facts.uid != asker.uid {
            return Err(gone());
        }
        if facts.ending {
            return Err(refused(StatusCode::FORBIDDEN, "PodTerminating", format!("pod {} is ending", asker.pod)));
        }
        if facts.service_account != asker.account {
            let message =
                format!("the token is {}'s, pod {} runs under {}", asker.account, asker.pod, facts.service_account);
            return Err(refused(StatusCode::FORBIDDEN, "ServiceAccountMismatch", message));
        }
        Ok(facts)
    }

    /// The server that the pod is, its domain, its names and the authority that signs; waits a while for each to appear.
    async fn attest(&self, pod: &PodFacts) -> Result<Attested, Refused> {
        let mut views = self.view.clone();
        let until = Instant::now() + PATIENCE;
        loop {
            let view = Arc::clone(&views.borrow_and_update());
            let denied = match attested(&view, pod) {
                Ok(found) => return Ok(found),
                Err(denied) => denied,
            };
            let may_come = matches!(denied.1.code.as_str(), "NoMatchingServer" | "AuthorityNotReady");
            if !may_come || tokio::time::timeout_at(until, views.changed()).await.is_err() {
                return Err(denied);
            }
        }
    }

    /// A budget for each pod: a burst, then one for each twentieth of a life.
    fn spend(&self, uid: &str, domain: &Domain) -> Result<(), Refused> {
        let now = telemetry::now();
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        if budgets.len() >= MAX_BUDGETS {
            budgets.retain(|_, (left, _)| *left < BURST - 1.0);
        }
        let (left, at) = budgets.entry(uid.to_owned()).or_insert((BURST, now));
        let passed = now.duration_since(*at).as_secs_f64().max(0.0);
        *left = (*left + passed / (f64::from(domain.lifetime_seconds) / 20.0).max(3.0)).min(BURST);
        *at = now;
        if *left < 1.0 {
            return Err(refused(StatusCode::TOO_MANY_REQUESTS, "RateLimited", "this pod asks too often"));
        }
        *left -= 1.0;
        Ok(())
    }

    fn turn(&self, key: &ServerKey) -> Arc<Turn<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(key.clone()).or_default())
    }

    /// Appends the record of what will be signed; only then may it be signed. A repeated request keeps its record.
    async fn record(
        &self,
        server: &Server,
        domain: &Domain,
        authority: &Authority,
        uid: &str,
        key: &str,
    ) -> Result<Recorded, Refused> {
        let api = Api::<ConfigMap>::namespaced(self.client.clone(), &self.namespace);
        let name = ledger_name(&server.key);
        let holder = Holder::Pod(uid.to_owned());
        let owner = Owner { id: server.id.clone(), uid: server.uid.clone() };
        for _ in 0..TRIES {
            let held = within(api.get_opt(&name)).await.map_err(|error| unavailable(&error))?;
            let data = held.as_ref().and_then(|map| map.data.clone()).unwrap_or_default();
            let conflict =
                |error: pki::ledger::LedgerError| refused(StatusCode::CONFLICT, error.code(), error.to_string());
            let mut ledger = Ledger::parse(&data).map_err(conflict)?;
            let now = telemetry::now();
            if let Some(record) = ledger.repeated(&holder, key, now).map_err(conflict)? {
                return Ok(Recorded { serial: record.serial, validity: record.validity, occasion: "Repeated" });
            }
            let validity = authority
                .leaf_validity(domain.lifetime_seconds, domain.skew_seconds, now)
                .map_err(|error| refused(StatusCode::SERVICE_UNAVAILABLE, "AuthorityNotReady", error.to_string()))?;
            let serial = Serial::from_random(telemetry::random());
            let issuer = authority.key_id().to_owned();
            let before = ledger.records().iter().any(|record| record.holder == holder);
            let occasion = if before { "Renewed" } else { "Issued" };
            let record = Record {
                serial,
                holder: holder.clone(),
                key: key.to_owned(),
                issuer,
                validity,
                recorded: now,
                revoked: None,
            };
            ledger.append(&owner, record, now).map_err(conflict)?;
            match self.write(&api, held, &server.key, &ledger).await {
                Ok(()) => return Ok(Recorded { serial, validity, occasion }),
                Err(ApplyError::Conflict) => {
                    tokio::time::sleep(Duration::from_millis(20).mul_f64(1.0 + 4.0 * telemetry::jitter())).await;
                }
                Err(error) => return Err(unavailable(&error)),
            }
        }
        Err(refused(StatusCode::SERVICE_UNAVAILABLE, "LedgerConflict", "the ledger changes too often; try again"))
    }

    /// The compare-and-swap: a replace names the version that was read, a create fails where there is one.
    async fn write(
        &self,
        api: &Api<ConfigMap>,
        held: Option<ConfigMap>,
        key: &ServerKey,
        ledger: &Ledger,
    ) -> Result<(), ApplyError> {
        let data = Some(ledger.render());
        match held {
            Some(held) => {
                let name = held.metadata.name.clone().unwrap_or_default();
                let map = ConfigMap { data, ..held };
                within(api.replace(&name, &PostParams::default(), &map)).await?;
            }
            None => {
                let labels = [(PART, "ledger"), ("app.kubernetes.io/managed-by", "entente")];
                let metadata = ObjectMeta {
                    name: Some(ledger_name(key)),
                    labels: Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
                    annotations: Some([(sidecar::SERVER_LABEL.to_owned(), key.to_string())].into()),
                    ..ObjectMeta::default()
                };
                let map = ConfigMap { metadata, data, ..ConfigMap::default() };
                within(api.create(&PostParams::default(), &map)).await?;
            }
        }
        Ok(())
    }
}

type Attested = (Server, Domain, std::collections::BTreeSet<crate::identity::DnsName>, Arc<Authority>, Vec<String>);

fn attested(view: &View, pod: &PodFacts) -> Result<Attested, Refused> {
    let server = view
        .topology
        .attest(pod)
        .map_err(|unattested| refused(StatusCode::FORBIDDEN, unattested.code(), unattested.to_string()))?;
    let not_ready = || {
        let message = format!("TrustDomain {} has no sound authority", server.domain);
        refused(StatusCode::SERVICE_UNAVAILABLE, "AuthorityNotReady", message)
    };
    let domain = view.topology.domain(&server.domain).ok_or_else(not_ready)?;
    let seen = view.domains.get(&server.domain).ok_or_else(not_ready)?;
    let authority = seen.authority.clone().ok_or_else(not_ready)?;
    let names = view.topology.names_of(server, pod);
    Ok((server.clone(), domain.clone(), names, authority, seen.trust.everybody.scope().anchors.clone()))
}

/// `entente-ledger-HASH`: names of servers are longer than a ConfigMap's may be.
pub(super) fn ledger_name(key: &ServerKey) -> String {
    format!("{LEDGER}{}", &pki::sha256_hex(key.to_string().as_bytes())[..16])
}
