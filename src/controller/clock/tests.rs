use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicI64, Ordering},
    },
};

use axum::{
    Extension, Json, Router,
    body::{Body, to_bytes},
    extract::State,
    http::{Method, Request, StatusCode, Uri, header::AUTHORIZATION},
    response::IntoResponse,
    routing::post,
};
use base64::prelude::{BASE64_STANDARD, Engine};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tower::ServiceExt;

use super::*;
use crate::{
    controller::{
        audit::Audit, events::Events, health::Metrics, issuance, leadership, ledgers::Ledgers, serving::Source,
        view::View,
    },
    pki::csr,
};

/// Our clock is 25 hours ahead of the API server's.
const DAY_AHEAD: i64 = -90_000;
const SOON: Duration = Duration::from_millis(20);

/// Sent and answered by our clock, the server's time: in seconds; what that says of our clock.
fn check(sent: i64, answered: i64, date: i64, expected: Option<i64>) {
    let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
    let found = offset(at(sent), at(answered), at(date)).map(|found| found.as_secs());
    assert_eq!(found, expected, "{sent} {answered} {date}");
}

#[test]
fn a_clock_is_as_far_away_as_no_moment_of_the_exchange_explains() {
    check(0, 0, 0, Some(0));
    // The header has whole seconds.
    check(0, 0, -1, Some(1));
    check(0, 2, 1, Some(0));
    check(0, 1, -60, Some(60));
    check(0, 1, -61, Some(61));
    check(0, 1, 61, Some(-60));
    check(0, 1, 62, Some(-61));
    check(0, 1, 90_000, Some(-89_999));
    check(0, 1, -90_000, Some(90_000));
}

#[test]
fn a_server_that_hangs_makes_no_sound_clock_suspect_and_no_wrong_one_sound() {
    for date in [0, 5, 300, 600] {
        check(0, 600, date, None);
    }
    check(0, 600, -90_000, Some(90_000));
    check(0, 600, 90_600, Some(-90_000));
}

#[test]
fn a_step_during_an_exchange_shows_at_once_where_the_clock_is_set_back_and_next_time_where_it_is_set_ahead() {
    // Set back by 25 hours, from right to wrong and from wrong to right.
    check(0, -89_999, 0, Some(-89_999));
    check(90_000, 1, 0, Some(1));
    // Set ahead, likewise.
    check(0, 90_001, 1, None);
    check(-90_000, 1, 1, None);
}

/// An API server that has one lease, believes no token, and whose clock is so many seconds ahead of ours.
#[derive(Default)]
struct Server {
    ahead: AtomicI64,
    lease: Mutex<Value>,
}

impl Server {
    async fn start() -> (Arc<Self>, Config, AbortOnDropHandle<()>) {
        let server = Arc::new(Self::default());
        *server.lease.lock().unwrap() = json!({"metadata": {"name": "entente-leader"}, "spec": {}});
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&server));
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        (server, Config::new(url), AbortOnDropHandle::new(serving))
    }

    fn holder(&self) -> Value {
        self.lease.lock().unwrap()["spec"]["holderIdentity"].clone()
    }
}

async fn answer(State(server): State<Arc<Server>>, method: Method, uri: Uri, body: String) -> impl IntoResponse {
    let ahead = SignedDuration::from_secs(server.ahead.load(Ordering::SeqCst));
    let date = (telemetry::now() + ahead).strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let mut lease = server.lease.lock().unwrap();
    let (status, answer) = match uri.path() {
        "/apis/coordination.k8s.io/v1/namespaces/entente-system/leases/entente-leader" => {
            if method == Method::PATCH {
                json_patch::merge(&mut lease, &serde_json::from_str(&body).unwrap());
            }
            (StatusCode::OK, lease.clone())
        }
        "/apis/authentication.k8s.io/v1/tokenreviews" => {
            (StatusCode::CREATED, json!({"metadata": {}, "spec": {}, "status": {"authenticated": false}}))
        }
        _ => (StatusCode::FORBIDDEN, json!({"kind": "Status", "status": "Failure", "code": 403})),
    };
    (status, [(DATE, date)], Json(answer))
}

/// Waits until `check` is true, and says what was waited for where it does not come.
async fn until(what: &str, check: impl AsyncFn() -> bool) {
    let looking = async {
        while !check().await {
            tokio::time::sleep(SOON).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), looking).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// The endpoint that signs; every request is from the same pod.
fn endpoint(client: Client, clock: &Clock) -> (Router, AbortOnDropHandle<()>) {
    let (_, view) = watch::channel(Arc::new(View::default()));
    let metrics = Arc::new(Metrics::new(clock));
    let (events, _) = Events::new(client.clone(), "entente-0".to_owned(), view.clone(), Arc::clone(&metrics));
    let audit = Arc::new(Audit::new([0; 8]));
    let (ledgers, _) = Ledgers::new(client.clone(), "entente-system".to_owned(), events, Arc::clone(&audit));
    let (issuer, beside) = issuance::Issuer::new(client, view, ledgers, (metrics, audit, clock.clone()));
    let router = Router::new().route("/v1/certificate", post(issuance::certificate)).with_state(Arc::new(issuer));
    let source = Extension(Source(SocketAddr::from(([192, 0, 2, 1], 1))));
    (router.layer(source), AbortOnDropHandle::new(tokio::spawn(beside)))
}

/// Status, `Retry-After` and body of what a sidecar is answered.
async fn ask(endpoint: &Router) -> (StatusCode, Option<String>, Value) {
    let request = csr::request(&KeyPair::generate().unwrap()).unwrap();
    let body = json!({"csr": BASE64_STANDARD.encode(request)}).to_string();
    let request = Request::post("/v1/certificate")
        .header(AUTHORIZATION, "Bearer token")
        .header("content-type", "application/json")
        .body(Body::from(body))
        .unwrap();
    let answer = endpoint.clone().oneshot(request).await.unwrap();
    let (status, headers) = (answer.status(), answer.headers().clone());
    let after = headers.get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    let body = to_bytes(answer.into_body(), 10_000).await.unwrap();
    (status, after, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn a_controller_whose_clock_is_wrong_refuses_to_sign_and_goes_on_by_itself_when_it_is_right() {
    let (server, config, _serving) = Server::start().await;
    let clock = Clock::new();
    let client = clock.client(config).unwrap();
    let (endpoint, _beside) = endpoint(client.clone(), &clock);
    let _kept = AbortOnDropHandle::new(tokio::spawn(clock.clone().keep(client, SOON)));
    // As far as the API server, which does not know the token.
    let through = (StatusCode::UNAUTHORIZED, "TokenInvalid");
    let (status, _, body) = ask(&endpoint).await;
    assert_eq!((status, body["code"].as_str().unwrap()), through, "{body}");
    for (ahead, says) in [(DAY_AHEAD, "s ahead of the API"), (-DAY_AHEAD, "s behind the API"), (-70, "s ahead of")] {
        server.ahead.store(ahead, Ordering::SeqCst);
        until("suspicion", async || clock.check().is_err()).await;
        let (status, after, body) = ask(&endpoint).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
        assert_eq!((body["code"].as_str(), after.as_deref()), (Some("ClockSuspect"), Some("10")));
        let message = body["message"].as_str().unwrap();
        assert!(message.contains(says) && message.contains("NTP"), "{message}");
        assert!((clock.gauge().get() + ahead).abs() <= 2, "{}", clock.gauge().get());
        let best = clock.now().duration_since(telemetry::now()).as_secs();
        assert!((best - ahead).abs() <= 2, "{best}");
        server.ahead.store(0, Ordering::SeqCst);
        until("recovery", async || clock.check().is_ok()).await;
        let (status, _, body) = ask(&endpoint).await;
        assert_eq!((status, body["code"].as_str().unwrap()), through, "{body}");
    }
    server.ahead.store(45, Ordering::SeqCst);
    until("the next answer", async || clock.gauge().get() <= -44).await;
    assert_eq!(clock.check(), Ok(()), "within what is tolerated");
}

#[tokio::test]
async fn who_asks_for_the_time_knows_of_a_step_before_it_acts() {
    let (server, config, _serving) = Server::start().await;
    let clock = Clock::new();
    let client = clock.client(config).unwrap();
    for (ahead, sound) in [(0, true), (DAY_AHEAD, false), (0, true), (-DAY_AHEAD, false)] {
        server.ahead.store(ahead, Ordering::SeqCst);
        clock.ask(&client).await;
        assert_eq!(clock.check().is_ok(), sound, "{ahead}");
    }
}

#[tokio::test]
async fn a_leader_whose_clock_is_wrong_gives_the_lease_back_and_seeks_it_again_when_it_is_right() {
    let (server, config, _serving) = Server::start().await;
    let clock = Clock::new();
    let client = clock.client(config).unwrap();
    let _kept = AbortOnDropHandle::new(tokio::spawn(clock.clone().keep(client.clone(), SOON)));
    let (leading, leads) = watch::channel(false);
    let seat = ("entente-system".to_owned(), "entente-0".to_owned());
    let seeking = tokio::spawn(leadership::seek(client, seat, clock, leading));
    for ahead in [DAY_AHEAD, -DAY_AHEAD] {
        until("the lease", async || *leads.borrow() && server.holder() == "entente-0").await;
        server.ahead.store(ahead, Ordering::SeqCst);
        until("it is given back", async || !*leads.borrow() && server.holder().is_null()).await;
        server.ahead.store(0, Ordering::SeqCst);
    }
    until("the lease once more", async || *leads.borrow() && server.holder() == "entente-0").await;
    // When the replica ends, another one need not wait.
    drop(leads);
    seeking.await.unwrap();
    assert!(server.holder().is_null());
}
