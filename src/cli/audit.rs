//! `entente audit`: whether every certificate in use is in a ledger, and every entry of a ledger is explained.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use axum::http::Request;
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{ListParams, PartialObjectMeta},
};

use crate::{
    api::{TrustDomain, TrustedServer},
    plan::audit::{GRACE_SECONDS, InUse, Kept, Observed, Report, audit},
    sidecar, telemetry,
};

/// No call takes longer.
const DEADLINE: Duration = Duration::from_secs(30);
/// The pause between two looks.
const AGAIN: Duration = Duration::from_secs(5);
const LEDGERS: &str = "entente.dev/part=ledger";
const CONTROLLERS: &str = "app.kubernetes.io/name=entente,app.kubernetes.io/component=controller";

/// Hold the certificates that sidecars use against the ledgers, and the ledgers against what is declared and running.
///
/// Exit codes: 0 everything is explained, 1 there are findings, 2 could not find out.
///
/// What is found while a pod ends or a sidecar gets its next certificate is looked at again until it passes or the
/// patience is over. Software that holds its own key (certificate.secretName) shows its certificate to nobody but its
/// peers: of it, only the ledger is checked.
///
/// Needs the ClusterRole entente-pki-admin for the cluster and the Role entente-audit in the operator's namespace: to
/// list trustdomains, trustedservers and pods everywhere, and there to list configmaps and to get pods/proxy.
#[derive(Debug, Args)]
pub(super) struct Audit {
    /// The operator's namespace.
    #[arg(long, env = "ENTENTE_NAMESPACE", default_value = "entente-system")]
    namespace: String,
    /// Health port of the controller.
    #[arg(long, default_value_t = 8080)]
    health_port: u16,
    /// Seconds to wait for what may pass by itself; 0 = tell what is seen at once.
    #[arg(long, default_value_t = GRACE_SECONDS.unsigned_abs())]
    patience: u64,
    /// How the answer is written.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Output {
    /// A table for people.
    Text,
    /// One JSON object.
    Json,
}

#[allow(clippy::print_stdout, reason = "printing is what this verb is for")]
pub(super) fn run(arguments: &Audit) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let report = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(patiently(arguments)));
    let report = match report {
        Ok(report) => report,
        Err(failure) => {
            tracing::error!("could not find out: {failure:#}");
            return ExitCode::from(2);
        }
    };
    match arguments.output {
        Output::Text => print!("{}", report.text()),
        Output::Json => println!("{}", report.json()),
    }
    ExitCode::from(u8::from(!report.findings.is_empty()))
}

/// Looks until nothing is left that may pass, or patience is over.
async fn patiently(arguments: &Audit) -> Result<Report> {
    let kube = Config::infer().await.context("found no access to a Kubernetes API server")?;
    let client = Client::try_from(kube)?;
    let look = || async {
        let observed = observe(&client, &arguments.namespace, arguments.health_port).await?;
        Ok::<_, anyhow::Error>(audit(&observed, telemetry::now()))
    };
    let began = telemetry::now();
    let mut report = look().await?;
    while report.may_pass() && !is_over(began, arguments.patience) {
        tokio::time::sleep(AGAIN).await;
        report.confirmed_by(&look().await?);
    }
    Ok(report)
}

fn is_over(began: Timestamp, patience: u64) -> bool {
    telemetry::now().duration_since(began).as_secs().unsigned_abs() >= patience
}

/// What there is, in the order that [`Observed`] names: what is recorded before it is used is read after it.
async fn observe(client: &Client, namespace: &str, port: u16) -> Result<Observed> {
    let in_use = in_use(client, namespace, port).await?;
    let maps = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    let maps = within(maps.list(&ListParams::default().labels(LEDGERS))).await.context("could not list the ledgers")?;
    let ledgers = maps.items.into_iter().map(|map| Kept {
        name: map.name_any(),
        server: map.annotations().get(sidecar::SERVER_LABEL).cloned(),
        data: map.data.unwrap_or_default(),
    });
    let pods = Api::<Pod>::all(client.clone());
    let pods = within(pods.list_metadata(&ListParams::default())).await.context("could not list pods")?;
    let servers = Api::<TrustedServer>::all(client.clone());
    let servers = within(servers.list_metadata(&ListParams::default())).await.context("could not list servers")?;
    let named = |one: PartialObjectMeta<TrustedServer>| {
        let key = format!("{}/{}", one.namespace().unwrap_or_default(), one.name_any());
        (key, one.uid().unwrap_or_default())
    };
    let domains = Api::<TrustDomain>::all(client.clone());
    let domains = within(domains.list(&ListParams::default())).await.context("could not list trust domains")?;
    let authorities =
        domains.items.into_iter().filter_map(|domain| domain.status).flat_map(|status| status.authorities);
    Ok(Observed {
        in_use,
        ledgers: ledgers.collect(),
        pods: pods.items.iter().filter_map(ResourceExt::uid).collect(),
        servers: servers.items.into_iter().map(named).collect::<BTreeMap<_, _>>(),
        issuers: authorities.map(|one| one.key_id).collect::<BTreeSet<_>>(),
    })
}

/// What the sidecars showed to the replicas. One replica that does not answer leaves the question open.
async fn in_use(client: &Client, namespace: &str, port: u16) -> Result<Vec<InUse>> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let running = ListParams::default().labels(CONTROLLERS).fields("status.phase=Running");
    let replicas = within(pods.list(&running)).await.context("could not list the controller's pods")?;
    let mut shown = vec![];
    let alive = replicas.items.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let names: Vec<String> = alive.map(ResourceExt::name_any).collect();
    if names.is_empty() {
        bail!("no controller runs in namespace {namespace}");
    }
    for name in names {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}:{port}/proxy/proxies");
        let request = Request::get(path).body(vec![])?;
        let answer = within(client.request::<Vec<InUse>>(request)).await;
        shown.extend(answer.with_context(|| format!("could not ask the controller {name} which sidecars it knows"))?);
    }
    Ok(shown)
}

async fn within<T>(call: impl Future<Output = kube::Result<T>>) -> Result<T> {
    Ok(tokio::time::timeout(DEADLINE, call).await.context("no answer in time")??)
}
