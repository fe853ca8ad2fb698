//! What the other replicas heard from sidecars: `GET /v1/proxies?after=N` over mutual TLS of the control plane. The
//! leader follows all of them.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use anyhow::{Context, Result, bail};
use axum::{
    Extension, Json,
    extract::{Query, State},
    http::StatusCode,
};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore, client::Resumption};
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpStream, sync::watch, task::JoinSet};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::{
    channel::Refused,
    proxies::{Proxies, Rows},
    serving::{Caller, ControlPlane, Own},
    view::View,
};
use crate::{
    pki::{self, control},
    telemetry,
    topology::facts::PodFacts,
};

/// How long an answer is held that has no news.
const HOLD: Duration = Duration::from_secs(20);
/// News are gathered this long.
const GATHER: Duration = Duration::from_millis(200);
/// Bound of an answer, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

/// What the endpoint works with.
#[derive(Clone)]
pub(super) struct Sharing {
    pub(super) proxies: Arc<Proxies>,
    pub(super) ca: String,
}

#[derive(Deserialize)]
pub(super) struct After {
    #[serde(default)]
    after: u64,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Shared {
    version: u64,
    rows: Rows,
}

/// The endpoint; only for replicas of ours.
pub(super) async fn share(
    State(sharing): State<Sharing>,
    Extension(caller): Extension<Caller>,
    Query(After { after }): Query<After>,
) -> Result<Json<Shared>, Refused> {
    if !control::vouches(&sharing.ca, &caller.0, telemetry::now()) {
        return Err(Refused::new(StatusCode::FORBIDDEN, "NotAReplica", "this is for replicas of the controller"));
    }
    let mut changes = sharing.proxies.listen();
    if *changes.borrow_and_update() == after {
        let _ = tokio::time::timeout(HOLD, changes.changed()).await;
        tokio::time::sleep(GATHER).await;
    }
    let (version, rows) = sharing.proxies.own();
    Ok(Json(Shared { version, rows }))
}

/// Follows every other replica while we lead.
pub(super) async fn follow(
    mut view: watch::Receiver<Arc<View>>,
    mut leads: watch::Receiver<bool>,
    own_name: String,
    port: u16,
    control: ControlPlane,
    proxies: Arc<Proxies>,
) {
    let mut following: BTreeMap<String, CancellationToken> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let lead = *leads.borrow_and_update();
        let wanted: BTreeMap<String, PodFacts> = view
            .borrow_and_update()
            .neighbours
            .iter()
            // What is followed keeps the facts it began with, so a replica without an address yet comes later.
            .filter(|pod| lead && is_replica(pod) && pod.name != own_name && !pod.addresses.is_empty())
            .map(|pod| (pod.uid.clone(), pod.clone()))
            .collect();
        following.retain(|uid, stop| {
            let keep = wanted.contains_key(uid);
            if !keep {
                stop.cancel();
                proxies.forget(uid);
            }
            keep
        });
        for (uid, pod) in wanted {
            if following.contains_key(&uid) {
                continue;
            }
            let stop = CancellationToken::new();
            following.insert(uid, stop.clone());
            let (control, proxies) = (control.clone(), Arc::clone(&proxies));
            tasks.spawn(async move {
                let _ = stop.run_until_cancelled(one(pod, port, control, proxies)).await;
            });
        }
        while tasks.try_join_next().is_some() {}
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            changed = leads.changed() => if changed.is_err() { return },
        }
    }
}

/// Pods of the controller carry the chart's labels; one without address cannot be called yet.
pub(super) fn is_replica(pod: &PodFacts) -> bool {
    let label = |key: &str| pod.labels.get(key).map(String::as_str);
    !pod.ending
        && !pod.addresses.is_empty()
        && label("app.kubernetes.io/name") == Some("entente")
        && label("app.kubernetes.io/component") == Some("controller")
}

async fn one(pod: PodFacts, port: u16, control: ControlPlane, proxies: Arc<Proxies>) {
    let mut failures = 0;
    loop {
        let Err(error) = poll(&pod, port, &control, &proxies, &mut failures).await;
        // The first failure is often a replica that just starts.
        if failures == 1 {
            warn!(replica = pod.name, %error, "another replica cannot be followed");
        }
        failures += 1;
        let pause = pki::renewal::retry_after(failures, telemetry::jitter(), Duration::from_secs(500));
        tokio::time::sleep(pause).await;
    }
}

async fn poll(
    pod: &PodFacts,
    port: u16,
    control: &ControlPlane,
    proxies: &Proxies,
    failures: &mut u32,
) -> Result<Infallible> {
    let address = pod.addresses.first().context("it has no address yet")?;
    let stream = tokio::time::timeout(Duration::from_secs(5), TcpStream::connect((*address, port))).await??;
    let (config, name) = client(control)?;
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream);
    let stream = tokio::time::timeout(Duration::from_secs(5), stream).await??;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let _driving = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let mut after = 0;
    loop {
        let request = hyper::Request::get(format!("/v1/proxies?after={after}"))
            .header("host", "entente")
            .body(Empty::<bytes::Bytes>::new())?;
        let answer = tokio::time::timeout(HOLD * 2, sender.send_request(request)).await??;
        if answer.status() != StatusCode::OK {
            bail!("it answered {}", answer.status());
        }
        let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| anyhow::anyhow!("its answer: {error}"))?.to_bytes();
        let Shared { version, rows } = serde_json::from_slice(&body)?;
        after = version;
        *failures = 0;
        proxies.take(&pod.uid, rows);
    }
}

fn client(control: &ControlPlane) -> Result<(ClientConfig, ServerName<'static>)> {
    let Own { chain, key } = control.issue(telemetry::now())?;
    let mut roots = RootCertStore::empty();
    roots.add(pki::certificate(&control.ca).context("the control plane's authority is PEM")?)?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(telemetry::crypto()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    config.resumption = Resumption::disabled();
    Ok((config, ServerName::try_from(control.name().to_owned())?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use arc_swap::ArcSwap;
    use axum::{Router, routing::get};
    use jiff::Timestamp;
    use rcgen::KeyPair;
    use tokio::net::TcpListener;

    use super::*;
    use crate::{
        controller::{serving, watch::Signal},
        identity::{DnsName, Identity, SpiffeId},
        pki::authority::Serial,
    };

    fn control_plane() -> ControlPlane {
        let key = KeyPair::generate().unwrap();
        let ca = control::create(&key, Serial::from_random([1; 16]), telemetry::now()).unwrap();
        ControlPlane::of(ca, key.serialize_pem(), "entente-system", "entente").unwrap()
    }

    fn identity() -> Identity {
        Identity {
            id: SpiffeId::new(&DnsName::parse("contoso.example").unwrap(), "shop", "web").unwrap(),
            dns_names: BTreeSet::new(),
            pod_uid: Some("pod".into()),
            serial: vec![1],
            issuer: None,
            not_before: Timestamp::from_second(1).unwrap(),
            not_after: Timestamp::from_second(2).unwrap(),
        }
    }

    async fn replica(control: &ControlPlane, proxies: &Arc<Proxies>) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sharing = Sharing { proxies: Arc::clone(proxies), ca: control.ca.clone() };
        let router = Router::new().route("/v1/proxies", get(share).with_state(sharing));
        let tls = Arc::new(ArcSwap::from_pointee(control.server(telemetry::now()).unwrap()));
        tokio::spawn(serving::serve(listener, tls, router, CancellationToken::new()));
        port
    }

    fn neighbour() -> PodFacts {
        PodFacts { uid: "other".into(), addresses: [[127, 0, 0, 1].into()].into(), ..PodFacts::default() }
    }

    #[tokio::test]
    async fn the_leader_learns_what_another_replica_heard() {
        let control = control_plane();
        let (theirs, ours) = (Arc::new(Proxies::new(Signal::new())), Arc::new(Proxies::new(Signal::new())));
        let port = replica(&control, &theirs).await;
        let (held, leader) = (Arc::clone(&ours), control.clone());
        let following = tokio::spawn(async move { poll(&neighbour(), port, &leader, &held, &mut 0).await.map(|_| ()) });
        let _poll = theirs.poll("pod", &identity(), None, telemetry::now());
        let seen = async {
            while !ours.seen(telemetry::now()).contains_key("pod") {
                assert!(!following.is_finished(), "following ended");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), seen).await.expect("the row arrives");
        assert!(ours.seen(telemetry::now())["pod"].connected);
    }

    #[test]
    fn a_replica_is_followed_once_it_has_an_address() {
        let labels = [("app.kubernetes.io/name", "entente"), ("app.kubernetes.io/component", "controller")];
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let pod = PodFacts { labels, ..neighbour() };
        assert!(is_replica(&pod));
        assert!(!is_replica(&PodFacts { addresses: BTreeSet::new(), ..pod.clone() }));
        assert!(!is_replica(&PodFacts { ending: true, ..pod }));
        assert!(!is_replica(&neighbour()));
    }

    #[tokio::test]
    async fn a_stranger_learns_nothing() {
        let control = control_plane();
        let port = replica(&control, &Arc::new(Proxies::new(Signal::new()))).await;
        let mut stranger = control_plane();
        stranger.ca = control.ca.clone();
        let held = Proxies::new(Signal::new());
        let refused = poll(&neighbour(), port, &stranger, &held, &mut 0).await.map(|_| ());
        assert!(refused.is_err_and(|error| error.to_string().contains("403")));
    }
}
