//! Everybody asks for a certificate at once: pods that no node runs, their tokens, and clients that behave as sidecars
//! do, against the real endpoint.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::prelude::{BASE64_STANDARD, Engine};
use bytes::Bytes;
use entente::{
    brief::{CertificateRequest, CertificateResponse, TOKEN_AUDIENCE},
    identity::Identity,
    pki::{
        self, csr,
        ledger::Ledger,
        renewal::{FIRST_LIFETIME, retry_after},
    },
    telemetry,
};
use futures::{StreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, header::RETRY_AFTER};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    core::v1::{ConfigMap, Namespace, Pod, Secret, ServiceAccount},
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::json;
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

use crate::cluster::{Place, amount, node, suffix};

const SYSTEM: &str = "entente-system";
/// Set where the test runs inside the node's network.
const INSIDE: &str = "ENTENTE_TEST_INSIDE";
const NAME: &str = "issuance::a_storm_of_certificate_requests_is_served_fairly_within_a_minute";
/// Pods have addresses of their own here, which the node takes for its own (RFC 2544 as well).
const ADDRESSES: &str = "198.18.64.0/18";
const FIRST_ADDRESS: u32 = 0xc612_4000;
/// The last namespace is twice as large as each of the others.
const NAMESPACES: u64 = 9;
/// Servers in a namespace, since a ledger is bounded.
const SERVERS: u64 = 2;
/// Requests to the API server at a time, while the storm is prepared.
const AT_ONCE: usize = 32;

/// A pod that no node runs.
#[derive(Clone)]
struct Plain {
    namespace: String,
    name: String,
    uid: String,
    server: String,
    address: Ipv4Addr,
    token: String,
}

/// How a client fared.
struct Fared {
    namespace: String,
    waited: Duration,
    attempts: u32,
    serial: String,
}

#[test]
fn a_storm_of_certificate_requests_is_served_fairly_within_a_minute() {
    #[allow(clippy::disallowed_methods, reason = "said by this very test")]
    let inside = std::env::var(INSIDE).ok();
    if let Some(place) = inside {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(storm(&place));
    }
    let place = Place::alone("storm");
    let network = format!("entente-node{}", suffix());
    let route = |verb: &str| {
        let arguments = ["-n", &network, "route", verb, "local", ADDRESSES, "dev", "lo"];
        Command::new("ip").args(arguments).status().unwrap()
    };
    route("replace");
    let inner = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{network}"))
        .arg(std::env::current_exe().unwrap())
        .args([NAME, "--exact", "--nocapture"])
        .env(INSIDE, &place.name)
        // An error of a client is no news, and a picture of its stack costs more than the client.
        .env("RUST_BACKTRACE", "0")
        .status();
    route("delete");
    for number in 0..NAMESPACES {
        let _ = crate::cluster::kubectl(&["delete", "namespace", &format!("{}-{number}", place.name), "--wait=false"]);
    }
    assert!(inner.unwrap().success(), "see above");
}

async fn storm(place: &str) {
    let kubeconfig = Kubeconfig::read_from(node().join("kubeconfig")).unwrap();
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = Client::try_from(config).unwrap();
    let began = Instant::now();
    let pods = prepare(&client, place, amount(10_000, 200)).await;
    eprintln!("{} pods with tokens after {:.0?}", pods.len(), began.elapsed());
    let before = api_requests(&client).await;
    let processor = controller_seconds();
    let (fared, took) = ask(&client, &pods).await;
    let processor = controller_seconds() - processor;
    let after = api_requests(&client).await;
    tell(&fared, took, processor);
    tell_requests(&before, &after, fared.len());
    judge(&client, place, &fared).await;
}

/// Namespaces, accounts, pods with their tokens, and the servers that they are.
async fn prepare(client: &Client, place: &str, count: u64) -> Vec<Plain> {
    let namespaces = Api::<Namespace>::all(client.clone());
    for number in 0..NAMESPACES {
        let name = format!("{place}-{number}");
        namespaces.create(&PostParams::default(), &of(json!({"metadata": {"name": name}}))).await.unwrap();
        let accounts = Api::<ServiceAccount>::namespaced(client.clone(), &name);
        for server in 0..SERVERS {
            let account = json!({"metadata": {"name": format!("s{server}")}});
            accounts.create(&PostParams::default(), &of(account)).await.unwrap();
        }
    }
    let shares = NAMESPACES + 1;
    let plain = |number: u64| Plain {
        namespace: format!("{place}-{}", (number % shares).min(NAMESPACES - 1)),
        name: format!("pod-{number}"),
        uid: String::new(),
        server: format!("s{}", number / shares % SERVERS),
        address: Ipv4Addr::from_bits(FIRST_ADDRESS + 1 + u32::try_from(number).unwrap()),
        token: String::new(),
    };
    let pods = stream::iter((0..count).map(plain)).map(|pod| create(client, pod)).buffer_unordered(AT_ONCE);
    let pods: Vec<Plain> = pods.collect().await;
    // From here on the namespaces are of a trust domain: pods that are there already get no sidecar, and need none.
    for number in 0..NAMESPACES {
        let name = format!("{place}-{number}");
        let label = json!({"metadata": {"labels": {"entente.dev/trust-domain": "contoso"}}});
        namespaces.patch(&name, &PatchParams::default(), &Patch::Merge(label)).await.unwrap();
        for server in 0..SERVERS {
            let yaml = crate::workloads::declared(&format!("s{server}"), "[]", "");
            crate::cluster::apply(&yaml.replacen("metadata: {", &format!("metadata: {{namespace: {name}, "), 1));
        }
    }
    accepted(place);
    pods
}

fn accepted(place: &str) {
    crate::cluster::until(60, "the servers are accepted", || {
        let mut open = String::new();
        for number in 0..NAMESPACES {
            let template =
                "jsonpath={range .items[*]}{.status.conditions[?(@.type==\"Accepted\")].status}{\"\\n\"}{end}";
            let name = format!("{place}-{number}");
            let said = crate::cluster::kubectl(&["-n", &name, "get", "trustedservers", "-o", template]).out;
            if said.lines().filter(|line| *line == "True").count() as u64 != SERVERS {
                let _ = write!(open, "{name} ");
            }
        }
        if open.is_empty() { Ok(()) } else { Err(open) }
    });
}

fn of<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Creates one pod, says which address it has, and asks for its token.
async fn create(client: &Client, mut pod: Plain) -> Plain {
    let Plain { namespace, name, server, address, .. } = &pod;
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let object = json!({
        "metadata": {"name": name, "labels": {"app": server}},
        "spec": {
            "serviceAccountName": server, "automountServiceAccountToken": false, "enableServiceLinks": false,
            "schedulingGates": [{"name": "entente.dev/never"}],
            "containers": [{"name": "app", "image": "registry.local/none:dev"}],
        },
    });
    let created = pods.create(&PostParams::default(), &of(object)).await.unwrap();
    let status = json!({"status": {"podIP": address, "podIPs": [{"ip": address}]}});
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let uid = created.uid().unwrap();
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid});
    let wanted: TokenRequest = of(json!({
        "metadata": {},
        "spec": {"audiences": [TOKEN_AUDIENCE], "expirationSeconds": 3600, "boundObjectRef": bound},
    }));
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    let answer = accounts.create_token_request(server, &PostParams::default(), &wanted).await.unwrap();
    pod.token = answer.status.unwrap().token;
    pod.uid = uid;
    pod
}

/// Where the replicas listen, and how they are recognised.
struct Endpoint {
    addresses: Vec<IpAddr>,
    tls: TlsConnector,
}

async fn endpoint(client: &Client) -> Endpoint {
    let replicas = ListParams::default().labels("app.kubernetes.io/component=controller");
    let replicas = Api::<Pod>::namespaced(client.clone(), SYSTEM).list(&replicas).await.unwrap();
    let address = |pod: &Pod| pod.status.as_ref()?.pod_ip.as_ref()?.parse::<IpAddr>().ok();
    let addresses: Vec<IpAddr> = replicas.iter().filter_map(address).filter(IpAddr::is_ipv4).collect();
    let secret = Api::<Secret>::namespaced(client.clone(), SYSTEM).get("entente-control-plane").await.unwrap();
    let ca = CertificateDer::from_pem_slice(&secret.data.unwrap()["ca.crt"].0).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(ca).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(telemetry::crypto()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Endpoint { addresses, tls: TlsConnector::from(Arc::new(config)) }
}

/// All of them at once.
async fn ask(client: &Client, pods: &[Plain]) -> (Vec<Fared>, Duration) {
    let endpoint = Arc::new(endpoint(client).await);
    let request = |pod: &Plain| {
        let key = rcgen::KeyPair::generate().unwrap();
        (pod.clone(), BASE64_STANDARD.encode(csr::request(&key).unwrap()))
    };
    let requests: Vec<_> = pods.iter().map(request).collect();
    eprintln!("{} replicas", endpoint.addresses.len());
    let began = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (number, (pod, csr)) in requests.into_iter().enumerate() {
        let endpoint = Arc::clone(&endpoint);
        tasks.spawn(async move { one(&endpoint, pod, csr, number, began).await });
    }
    let fared = tasks.join_all().await;
    (fared, began.elapsed())
}

/// What a sidecar does: it asks, comes back when it is told to, and backs off where it is told nothing.
async fn one(endpoint: &Endpoint, pod: Plain, csr: String, number: usize, began: Instant) -> Fared {
    let mut attempts = 0;
    loop {
        let to = SocketAddr::new(endpoint.addresses[(number + attempts as usize) % endpoint.addresses.len()], 8443);
        let answer = tokio::time::timeout(Duration::from_secs(20), post(endpoint, &pod, &csr, to)).await;
        let backoff = retry_after(attempts, telemetry::jitter(), FIRST_LIFETIME);
        attempts += 1;
        let pause = match answer {
            Ok(Ok((StatusCode::OK, _, body))) => {
                let answer: CertificateResponse = serde_json::from_slice(&body).unwrap();
                let identity = Identity::of(&pki::certificate(&answer.chain[0]).unwrap()).unwrap();
                assert_eq!(identity.pod_uid, Some(pod.uid), "its own certificate");
                let serial = pki::hex(&identity.serial);
                return Fared { namespace: pod.namespace, waited: began.elapsed(), attempts, serial };
            }
            Ok(Ok((status, after, body))) => {
                let busy = matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
                assert!(busy, "{status}: {}", String::from_utf8_lossy(&body));
                after.map_or(backoff, |after| after + Duration::from_secs(1).mul_f64(telemetry::jitter()))
            }
            Ok(Err(_)) | Err(_) => backoff,
        };
        assert!(began.elapsed() < Duration::from_secs(600), "pod {} gets no certificate", pod.name);
        tokio::time::sleep(pause).await;
    }
}

type Answer = (StatusCode, Option<Duration>, Bytes);

async fn post(endpoint: &Endpoint, pod: &Plain, csr: &str, to: SocketAddr) -> anyhow::Result<Answer> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(pod.address.into(), 0))?;
    let stream = tokio::time::timeout(Duration::from_secs(2), socket.connect(to)).await??;
    let name = ServerName::try_from(format!("entente.{SYSTEM}.svc"))?;
    let stream = tokio::time::timeout(Duration::from_secs(5), endpoint.tls.connect(name, stream)).await??;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driving = tokio::spawn(connection);
    let body = serde_json::to_vec(&CertificateRequest { csr: csr.to_owned() })?;
    let request = Request::post("/v1/certificate")
        .header("host", "entente")
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {}", pod.token))
        .body(Full::new(Bytes::from(body)))?;
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    let after = answer.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let body = answer.into_body().collect().await?.to_bytes();
    driving.abort();
    Ok((status, after.map(Duration::from_secs), body))
}

/// Seconds of processor time that the controllers of this node have used.
fn controller_seconds() -> f64 {
    let mut ticks = 0.0;
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let read = |file: &str| {
            String::from_utf8_lossy(&std::fs::read(entry.path().join(file)).unwrap_or_default()).into_owned()
        };
        let ours = read("cmdline").replace('\0', " ").contains("entente controller");
        if !ours || !read("cgroup").contains(&format!("/entente-node{}/", suffix())) {
            continue;
        }
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let number = |index: usize| fields.get(index).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
        ticks += number(11) + number(12);
    }
    // The unit of /proc/PID/stat is a hundredth of a second.
    ticks / 100.0
}

/// Requests that the API server has answered, by verb and resource.
async fn api_requests(client: &Client) -> BTreeMap<String, f64> {
    let text = client.request_text(Request::get("/metrics").body(vec![]).unwrap()).await.unwrap();
    let mut counts = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
        let label = |name: &str| line.split(&format!("{name}=\"")).nth(1)?.split('"').next();
        let count = line.rsplit(' ').next().and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
        let (verb, resource) = (label("verb").unwrap_or_default(), label("resource").unwrap_or_default());
        let part = label("subresource").filter(|part| !part.is_empty());
        let name = part.map_or_else(|| format!("{verb} {resource}"), |part| format!("{verb} {resource}/{part}"));
        *counts.entry(name).or_default() += count;
    }
    counts
}

#[allow(clippy::cast_precision_loss, reason = "thousands")]
fn tell(fared: &[Fared], took: Duration, processor: f64) {
    let mut waits: Vec<f64> = fared.iter().map(|one| one.waited.as_secs_f64()).collect();
    waits.sort_by(f64::total_cmp);
    let at = |share: usize| waits[(waits.len() - 1) * share / 100];
    let count = fared.len() as f64;
    let attempts: u32 = fared.iter().map(|one| one.attempts).sum();
    let (rate, per_core) = (count / took.as_secs_f64(), count / processor);
    eprintln!(
        "{count} certificates in {took:.1?}: {rate:.0}/s, {per_core:.0} for each second of the controllers' processor time"
    );
    eprintln!("{attempts} requests; waited: p50 {:.2} s, p99 {:.2} s, max {:.2} s", at(50), at(99), at(100));
    let mut seconds = BTreeMap::<u64, u32>::new();
    for one in fared {
        *seconds.entry(one.waited.as_secs()).or_default() += 1;
    }
    eprintln!("in each second: {seconds:?}");
    let means = means(fared);
    let (large, others) = means.split_last().unwrap();
    let (least, most) = others.iter().fold((f64::MAX, 0.0_f64), |(least, most), one| (least.min(*one), most.max(*one)));
    eprintln!(
        "mean wait of equal namespaces {least:.2}..{most:.2} s (most/least {:.2}), of the large one {large:.2} s",
        most / least
    );
}

/// The mean wait in each namespace, in seconds, in their order.
fn means(fared: &[Fared]) -> Vec<f64> {
    let mut waits = BTreeMap::<&str, (f64, f64)>::new();
    for one in fared {
        let (sum, count) = waits.entry(&one.namespace).or_default();
        *sum += one.waited.as_secs_f64();
        *count += 1.0;
    }
    waits.values().map(|(sum, count)| sum / count).collect()
}

#[allow(clippy::cast_precision_loss, reason = "thousands")]
fn tell_requests(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>, count: usize) {
    let each = |name: &str, total: &f64| (total - before.get(name).unwrap_or(&0.0)) / count as f64;
    let mut shares: Vec<(&String, f64)> = after.iter().map(|(name, total)| (name, each(name, total))).collect();
    shares.sort_by(|one, other| other.1.total_cmp(&one.1));
    let told = shares.iter().filter(|(_, share)| *share >= 0.005).map(|(name, share)| format!("{name} {share:.2}"));
    let told: Vec<String> = told.collect();
    eprintln!("requests to the API server for each certificate, those of everything else on the node among them:");
    eprintln!("  {}", told.join(", "));
}

/// Every certificate is in a ledger, once, and nobody waited for a larger namespace.
async fn judge(client: &Client, place: &str, fared: &[Fared]) {
    let maps = ListParams::default().labels("entente.dev/part=ledger");
    let maps = Api::<ConfigMap>::namespaced(client.clone(), SYSTEM).list(&maps).await.unwrap();
    let mut recorded = BTreeMap::<String, u32>::new();
    for map in maps {
        if map.annotations().get("entente.dev/server").is_some_and(|server| server.starts_with(place)) {
            for record in Ledger::parse(&map.data.unwrap()).unwrap().records() {
                *recorded.entry(record.serial.to_string()).or_default() += 1;
            }
        }
    }
    assert!(fared.iter().all(|one| recorded.get(&one.serial) == Some(&1)), "each certificate is in one ledger, once");
    let means = means(fared);
    let (large, others) = means.split_last().unwrap();
    let longest = others.iter().copied().fold(0.0, f64::max);
    assert!(longest <= large * 1.5 + 1.0, "a namespace waits no longer than one that is larger: {means:?}");
    let last = fared.iter().map(|one| one.waited).max().unwrap();
    assert!(last <= Duration::from_secs(90), "somebody waited {last:?}");
}
