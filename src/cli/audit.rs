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
    pki::crl,
    plan::{
        audit::{GRACE_SECONDS, InUse, Kept, Observed, Report, audit, endpoint},
        bundles,
    },
    sidecar, telemetry,
};

/// No call takes longer.
const DEADLINE: Duration = Duration::from_secs(30);
/// The pause between two looks.
const AGAIN: Duration = Duration::from_secs(5);
const LEDGERS: &str = "entente.dev/part=ledger";
const CONTROLLERS: &str = "app.kubernetes.io/name=entente,app.kubernetes.io/component=controller";

const EXPLAINED: &str = "\
What is found while a pod ends or a sidecar gets its next certificate is looked at again until it passes or the patience
is over. Software that holds its own key (certificate.secretName) shows its certificate to its peers alone: of it, only
the ledger is checked.

Exit codes: 0 everything is explained, 1 there are findings, 2 could not find out.

Needs the rights to list trustdomains, trustedservers, pods and configmaps entente-trust-bundle everywhere, and in the
operator's namespace to list configmaps and to get pods/proxy.";

/// Where to look, and how to answer.
#[derive(Debug, Args)]
#[command(after_help = EXPLAINED)]
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
    let report = match find_out(arguments) {
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

fn find_out(arguments: &Audit) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let kube = Config::infer().await.context("found no access to a Kubernetes API server")?;
        patiently(&Client::try_from(kube)?, arguments).await
    })
}

/// Looks until nothing is left that may pass, or patience is over.
async fn patiently(client: &Client, arguments: &Audit) -> Result<Report> {
    let look = || async {
        let observed = observe(client, &arguments.namespace, arguments.health_port).await?;
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
    let trust_domains = domains.items.iter().map(|domain| domain.spec.spiffe_trust_domain.clone()).collect();
    let endpoints =
        domains.items.iter().map(|domain| (endpoint(namespace, &domain.name_any()), domain.uid().unwrap_or_default()));
    // Whoever is declared under such a name has it, and the endpoint is not there.
    let servers: BTreeMap<_, _> = endpoints.chain(servers.items.into_iter().map(named)).collect();
    let listed = listed(client, &domains.items).await?;
    let authorities =
        domains.items.into_iter().filter_map(|domain| domain.status).flat_map(|status| status.authorities);
    Ok(Observed {
        in_use,
        ledgers: ledgers.collect(),
        pods: pods.items.iter().filter_map(ResourceExt::uid).collect(),
        servers,
        issuers: authorities.map(|one| one.key_id).collect::<BTreeSet<_>>(),
        trust_domains,
        listed,
    })
}

/// What the published lists of each trust domain hold, from one of its bundles: all are the same, which the condition
/// `BundleDistributed` holds.
async fn listed(client: &Client, domains: &[TrustDomain]) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let named = ListParams::default().fields(&format!("metadata.name={}", bundles::NAME));
    let maps = Api::<ConfigMap>::all(client.clone());
    let bundles = within(maps.list_metadata(&named)).await.context("could not list the trust bundles")?;
    let mut listed = BTreeMap::new();
    for domain in domains {
        let name = domain.metadata.name.as_ref();
        let of = |map: &&PartialObjectMeta<ConfigMap>| map.labels().get(sidecar::DOMAIN_LABEL) == name;
        let Some(namespace) = bundles.items.iter().find(of).and_then(ResourceExt::namespace) else { continue };
        let map = Api::<ConfigMap>::namespaced(client.clone(), &namespace);
        let map = within(map.get(bundles::NAME))
            .await
            .with_context(|| format!("could not read the bundle in {namespace}"))?;
        let lists = map.data.unwrap_or_default().remove("crl.pem").unwrap_or_default();
        listed.extend(crl::listed(&lists).map(|listed| (domain.spec.spiffe_trust_domain.clone(), listed)));
    }
    Ok(listed)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use axum::{
        Json, Router,
        http::{StatusCode, Uri},
        response::{IntoResponse, Response},
    };
    use serde_json::{Value, json};
    use tokio::net::TcpListener;

    use super::*;

    const SERIAL: &str = "40000000000000000000000000000001";
    const PODS: &str = "/api/v1/pods";
    const REPLICAS: &str = "/api/v1/namespaces/entente-system/pods";
    const BUNDLES: &str = "/api/v1/configmaps";
    const BUNDLE: &str = "/api/v1/namespaces/sip/configmaps/entente-trust-bundle";
    const ID: &str = "spiffe://contoso.example/ns/sip/server/front-end";
    const SHOWN: &str = "/api/v1/namespaces/entente-system/pods/entente-0:8080/proxy/proxies";

    fn list(items: &Value) -> Value {
        json!({"apiVersion": "v1", "kind": "List", "metadata": {}, "items": items})
    }

    fn object(namespace: &str, name: &str, uid: &str) -> Value {
        json!({"metadata": {"namespace": namespace, "name": name, "uid": uid}})
    }

    /// What pod-1 shows.
    fn shown(serial: &str) -> Value {
        json!([{"podUid": "pod-1", "id": ID, "serial": serial, "notAfter": "2099-01-01T00:00:00Z"}])
    }

    /// What an API server answers, by path.
    fn cluster() -> BTreeMap<&'static str, Value> {
        let now = telemetry::now().as_second();
        let record = format!("{SERIAL} pod-1 key aa {} {} {} live\n", now - 600, now + 3_600, now - 600);
        let ledger = json!({
            "metadata": {"name": "entente-ledger-1", "annotations": {"entente.dev/server": "sip/front-end"}},
            "data": {"format": "2", "sequence": "1", "records": record, "serverUID": "server-1",
                "identity": ID},
        });
        let authority = json!({"keyID": "aa", "sha256": "bb", "state": "Active",
            "notBefore": "2026-01-01T00:00:00Z", "notAfter": "2036-01-01T00:00:00Z"});
        let domain = json!({
            "apiVersion": "entente.dev/v1alpha1", "kind": "TrustDomain", "metadata": {"name": "contoso"},
            "spec": {"spiffeTrustDomain": "contoso.example", "dnsSuffixes": ["contoso.example"]},
            "status": {"authorities": [authority]},
        });
        let bundle = json!({
            "metadata": {"namespace": "sip", "name": bundles::NAME, "labels": {"entente.dev/trust-domain": "contoso"}},
            "data": {"crl.pem": ""},
        });
        [
            (REPLICAS, list(&json!([object("entente-system", "entente-0", "controller")]))),
            (SHOWN, shown(SERIAL)),
            ("/api/v1/namespaces/entente-system/configmaps", list(&json!([ledger]))),
            (PODS, list(&json!([object("sip", "front-end-0", "pod-1")]))),
            ("/apis/entente.dev/v1alpha1/trustedservers", list(&json!([object("sip", "front-end", "server-1")]))),
            ("/apis/entente.dev/v1alpha1/trustdomains", list(&json!([domain]))),
            (BUNDLES, list(&json!([bundle]))),
            (BUNDLE, bundle),
        ]
        .into()
    }

    /// The codes of what is found in a cluster.
    async fn codes(cluster: BTreeMap<&'static str, Value>) -> Result<Vec<&'static str>> {
        let cluster = Arc::new(cluster);
        let answer = move |uri: Uri| async move {
            let found: Option<Response> = cluster.get(uri.path()).map(|body| Json(body).into_response());
            found.unwrap_or_else(|| StatusCode::FORBIDDEN.into_response())
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?).parse()?;
        let router = Router::new().fallback(answer);
        let serving = tokio::spawn(async move { axum::serve(listener, router).await });
        let _serving = tokio_util::task::AbortOnDropHandle::new(serving);
        let client = Client::try_from(Config::new(url))?;
        let namespace = "entente-system".to_owned();
        let arguments = Audit { namespace, health_port: 8080, patience: 0, output: Output::Text };
        let report = patiently(&client, &arguments).await?;
        assert_eq!(report.entries, 1);
        Ok(report.findings.iter().map(|finding| finding.code()).collect())
    }

    #[tokio::test]
    async fn a_sound_cluster_has_no_findings_and_another_has() {
        assert_eq!(codes(cluster()).await.unwrap(), Vec::<&str>::new());
        let mut other = cluster();
        other.insert(SHOWN, shown("66"));
        other.insert(PODS, list(&json!([])));
        assert_eq!(codes(other).await.unwrap(), ["NotRecorded", "PodGone"]);
    }

    #[tokio::test]
    async fn a_certificate_that_was_taken_back_must_be_on_the_published_list() {
        let mut revoked = cluster();
        let now = telemetry::now().as_second();
        let old = now - 2 * GRACE_SECONDS;
        let (ledgers, serial) = ("/api/v1/namespaces/entente-system/configmaps", SERIAL.replace("01", "02"));
        let record = format!("{serial} pod-0 key aa {old} {} {old} revoked@{old}:podGone\n", now + 3_600);
        revoked.get_mut(ledgers).unwrap()["items"][0]["data"]["records"] = record.into();
        revoked.insert(SHOWN, json!([]));
        assert_eq!(codes(revoked).await.unwrap(), ["NotListed"]);
    }

    #[tokio::test]
    async fn what_our_bundle_endpoint_holds_belongs_to_its_domain() {
        let now = telemetry::now().as_second();
        let ledgers = "/api/v1/namespaces/entente-system/configmaps";
        let domains = "/apis/entente.dev/v1alpha1/trustdomains";
        let mut own = cluster();
        own.insert(SHOWN, json!([]));
        let record =
            format!("{SERIAL} secret:entente-bundle-contoso key aa {} {} {} live\n", now - 600, now + 3_600, now);
        let ledger = &mut own.get_mut(ledgers).unwrap()["items"][0];
        ledger["metadata"]["annotations"]["entente.dev/server"] = "entente-system/bundle-contoso".into();
        ledger["data"]["records"] = record.into();
        ledger["data"]["serverUID"] = "domain-1".into();
        ledger["data"]["identity"] = "spiffe://contoso.example/ns/entente-system/server/bundle-contoso".into();
        own.get_mut(domains).unwrap()["items"][0]["metadata"]["uid"] = "domain-1".into();
        assert_eq!(codes(own.clone()).await.unwrap(), Vec::<&str>::new());
        own.get_mut(domains).unwrap()["items"][0]["metadata"]["uid"] = "domain-2".into();
        assert_eq!(codes(own).await.unwrap(), ["ServerNotDeclared"]);
    }

    #[tokio::test]
    async fn what_does_not_answer_leaves_the_question_open() {
        for path in cluster().into_keys() {
            let mut part = cluster();
            part.remove(path);
            assert!(codes(part).await.is_err(), "{path}");
        }
        let mut nobody = cluster();
        nobody.insert(REPLICAS, list(&json!([])));
        assert!(codes(nobody).await.unwrap_err().to_string().contains("no controller runs"));
    }
}
