//! `POST /v1/sync`: the sidecar acknowledges and reports; the answer is its next brief and what changed of the routes.

use std::{sync::Arc, time::Duration};

use axum::{Extension, Json, extract::State, http::StatusCode, response::IntoResponse};
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};

use super::{clock::Clock, events::Events, proxies::Proxies, serving::Caller, view::View};
use crate::{
    brief::{self, Denied, SyncRequest, SyncResponse},
    identity::Identity,
    pki::verify::{Role, verdict},
    plan::routes::Asked,
    refusal::{Refusal, WithdrawnDetail},
    telemetry,
};

/// A pod that this replica has never heard of may be new: it is not told that it is withdrawn before this time.
const HEARSAY: Duration = Duration::from_secs(5);

/// What the endpoint works with.
#[derive(Clone)]
pub(super) struct Channel {
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) proxies: Arc<Proxies>,
    pub(super) events: Events,
    pub(super) clock: Clock,
}

/// A refused request.
pub(super) struct Refused(pub(super) StatusCode, pub(super) Denied);

impl Refused {
    pub(super) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        Self(status, Denied { code: code.to_owned(), message: message.into() })
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> axum::response::Response {
        (self.0, Json(self.1)).into_response()
    }
}

/// Who calls, by the leaf it proved to hold.
fn identify(view: &View, caller: &Caller, now: Timestamp) -> Result<Identity, Refused> {
    let unknown = |code: &str, message: String| Refused::new(StatusCode::UNAUTHORIZED, code, message);
    let Some(leaf) = caller.0.first() else {
        return Err(unknown("NoCertificate", "a sync needs the client certificate of a sidecar".to_owned()));
    };
    let claimed = Identity::of(leaf).map_err(|refusal| unknown(refusal.code(), refusal.to_string()))?;
    let Some(domain) = view.trusting(claimed.id.trust_domain()) else {
        return Err(unknown("NoTrustDomain", format!("no TrustDomain for {}", claimed.id.trust_domain())));
    };
    let trust = &domain.trust;
    let proven = verdict(&caller.0, Role::Client, &trust.anchors, now).map(|verdict| verdict.identity);
    // How fresh the lists are is for sidecars to judge: this is where they get the next ones.
    let judged = proven.and_then(|identity| {
        trust.revoked.taken_back(&identity)?;
        trust.revoked.issuer_is_current(&identity)?;
        Ok(identity)
    });
    match judged {
        // A withdrawn server is told so; a single certificate that was taken back is not listened to.
        Ok(identity) => Ok(identity),
        Err(Refusal::Withdrawn(WithdrawnDetail::Suspended | WithdrawnDetail::Deleted)) => Ok(claimed),
        Err(refusal) => Err(unknown(refusal.code(), refusal.to_string())),
    }
}

/// The endpoint.
pub(super) async fn sync(
    State(channel): State<Channel>,
    Extension(caller): Extension<Caller>,
    Json(request): Json<SyncRequest>,
) -> Result<Json<SyncResponse>, Refused> {
    let mut views = channel.view.clone();
    let identity = identify(&views.borrow_and_update(), &caller, channel.clock.now())?;
    let Some(uid) = identity.pod_uid.clone() else {
        return Err(Refused::new(StatusCode::FORBIDDEN, "TokenNotPodBound", "the certificate names no pod"));
    };
    if request.brief_version != brief::VERSION {
        let message = format!("brief version {} is not written here, {} is", request.brief_version, brief::VERSION);
        return Err(Refused::new(StatusCode::BAD_REQUEST, "UnknownBriefVersion", message));
    }
    channel.events.report(&identity.id, &uid, &request.report);
    channel.proxies.report(&uid, &request.report);
    let _held = channel.proxies.poll(&uid, &identity, request.after.clone(), telemetry::now());
    let began = Instant::now();
    // Who asks or reports has more to do: only a poll that brings nothing is held.
    let asks = !request.ask.is_empty() || !request.ask_names.is_empty();
    let brings = asks || !request.report.refusals.is_empty();
    let hold = began + if brings { Duration::ZERO } else { Duration::from_secs(brief::POLL_HOLD_SECONDS) };
    loop {
        let view = Arc::clone(&views.borrow_and_update());
        let last = Instant::now() >= hold;
        let answer = answer(&view, &identity, &uid, &request, began.elapsed() >= HEARSAY, last)?;
        if last || answer != SyncResponse::default() {
            return Ok(Json(answer));
        }
        let until = if began.elapsed() < HEARSAY { (began + HEARSAY).min(hold) } else { hold };
        let _ = tokio::time::timeout_at(until, views.changed()).await;
    }
}

/// What there is to say now; the default = nothing.
fn answer(
    view: &View,
    identity: &Identity,
    uid: &str,
    request: &SyncRequest,
    patience_over: bool,
    last: bool,
) -> Result<SyncResponse, Refused> {
    let mut response = SyncResponse::default();
    let Some(domain) = view.trusting(identity.id.trust_domain()) else { return Ok(response) };
    let Some(at) = domain.at() else { return Ok(response) };
    if request.after.as_ref().is_some_and(|after| at.is_older_than(after)) {
        // The sidecar knows more than this replica does: a stale replica can delay, not undo.
        return Ok(response);
    }
    let brief = view
        .brief(domain, identity, uid, patience_over)
        .map_err(|message| Refused::new(StatusCode::FORBIDDEN, "AnotherServer", message))?;
    let Some(brief) = brief else { return Ok(response) };
    let held = request.after.as_ref();
    let differs = held.is_none_or(|after| after.hash != brief.cursor.hash);
    // At the end of a poll the revision is brought up to date, so that no older one can follow it.
    if differs || (last && held != Some(&brief.cursor)) {
        response.brief = Some(brief);
    }
    let asked = Asked { ask: &request.ask, names: &request.ask_names, keep: &request.keep, pods: &request.pods };
    response.routes = domain.routes.since(request.routes, &asked);
    Ok(response)
}
