//! What the other replicas heard from sidecars: `GET /v1/proxies?after=N` over mutual TLS of the control plane. The
//! leader follows all of them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

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
use tracing::debug;

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

/// Pods of the controller carry the chart's labels.
fn is_replica(pod: &PodFacts) -> bool {
    let label = |key: &str| pod.labels.get(key).map(String::as_str);
    !pod.ending
        && label("app.kubernetes.io/name") == Some("entente")
        && label("app.kubernetes.io/component") == Some("controller")
}

async fn one(pod: PodFacts, port: u16, control: ControlPlane, proxies: Arc<Proxies>) {
    let mut failures = 0;
    loop {
        if let Err(error) = poll(&pod, port, &control, &proxies, &mut failures).await {
            debug!(replica = pod.name, %error, "another replica cannot be followed");
        }
        failures += 1;
        let pause = pki::renewal::retry_after(failures, telemetry::jitter(), Duration::from_secs(500));
        tokio::time::sleep(pause).await;
    }
}

async fn poll(pod: &PodFacts, port: u16, control: &ControlPlane, proxies: &Proxies, failures: &mut u32) -> Result<()> {
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
