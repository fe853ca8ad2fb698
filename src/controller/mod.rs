//! The controller: watches everything, serves from what it sees, and where it leads makes the world as declared.
//!
//! One loop: something changed, or its time has come → observe → resolve → (serve) → plan → apply. Every replica
//! serves; the leader alone plans and applies.

pub mod apply;
mod audit;
mod channel;
mod clock;
pub mod endpoint;
mod events;
mod health;
mod issuance;
mod leadership;
mod ledgers;
mod proxies;
mod replicas;
mod secrets;
mod serving;
pub mod sources;
mod stores;
mod view;
mod watch;
mod webhook;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use axum::{
    Router,
    extract::DefaultBodyLimit,
    routing::{get, post},
};
use ipnet::IpNet;
use jiff::Timestamp;
use kube::{Client, Config as KubeConfig, runtime::events::EventType};
use rustls::ServerConfig;
use tokio::{net::TcpListener, sync::watch as latest, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    brief,
    mounted::Mounted,
    pki::control::SERVING_SECONDS,
    plan::{self, News, Plan, Step, World, withdrawals::gone},
    telemetry,
    topology::{Key, Problem, Server, Topology},
};
use apply::{ApplyError, Cluster};
use audit::Audit;
use clock::Clock;
use ledgers::Ledgers;
use proxies::Proxies;
use serving::ControlPlane;
use stores::Stores;
use view::View;
use watch::Signal;

/// Changes that come together are looked at together.
const COALESCE: Duration = Duration::from_millis(60);
/// While changes follow each other, the loop rests so many times as long as it worked, and no longer than that: in a
/// storm the processor is the endpoint's.
const REST: u32 = 3;
const LONGEST_REST: Duration = Duration::from_secs(1);
/// The loop looks again at the latest after this time.
const SWEEP: Duration = Duration::from_secs(5);
/// A round that has more to write than fits into this time looks again first: what was taken back meanwhile does not wait
/// for everybody's status.
const WRITING: Duration = Duration::from_secs(1);
/// The pause after a step that failed.
const AGAIN: Duration = Duration::from_secs(1);
/// After so long without an answer the API server is asked for the time, so that a clock that steps is noticed, and its
/// correction too.
const QUIET: Duration = Duration::from_secs(5);
/// Bound of an admission review, in bytes.
const MAX_REVIEW: usize = 3 * 1024 * 1024;

/// What a replica is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// Our namespace.
    pub namespace: String,
    /// Name of our pod: the identity in the lease.
    pub pod_name: String,
    /// Name of the Service that leads to us.
    pub service: String,
    /// Image of the sidecar.
    pub sidecar_image: String,
    /// When the kubelet pulls it.
    pub sidecar_pull_policy: String,
    /// Where sidecars call.
    pub channel: SocketAddr,
    /// Where the API server calls.
    pub webhook: SocketAddr,
    /// Health and metrics.
    pub health: SocketAddr,
    /// Where other organisations fetch our bundles, and what is shown there.
    pub bundle: Option<(SocketAddr, Profile)>,
    /// Networks that no address of a partner's may lead to, beside those that never may.
    pub denied: Vec<IpNet>,
}

/// How the bundle endpoint proves itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Profile {
    /// By the certificate of the web PKI in this folder.
    HttpsWeb(PathBuf),
    /// By a certificate of each domain's own.
    HttpsSpiffe,
}

/// Listens first, so that a port conflict is an error at start, then runs until `shutdown`.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<()> {
    let listen = |address: SocketAddr| async move {
        TcpListener::bind(address).await.with_context(|| format!("could not listen on {address}"))
    };
    let listeners = [listen(config.channel).await?, listen(config.webhook).await?, listen(config.health).await?];
    let kube = KubeConfig::infer().await.context("found no access to a Kubernetes API server")?;
    let public = match &config.bundle {
        Some((address, profile)) => Some((listen(*address).await?, profile)),
        None => None,
    };
    let clock = Clock::new();
    let client = clock.client(kube)?;
    let control = ControlPlane::load(&client, &clock, &config.namespace, &config.service).await?;
    let mut watches = JoinSet::new();
    let mut servers = JoinSet::new();
    let tasks = (&mut watches, &mut servers);
    let outcome = replica(&config, (client, clock), control, (listeners, public), tasks, &shutdown).await;
    shutdown.cancel();
    watches.shutdown().await;
    // Servers end by themselves: what they are in the middle of, they finish.
    while let Some(ended) = servers.join_next().await {
        if let Err(failure) = ended {
            error!(error = %failure, "a task failed");
        }
    }
    outcome
}

/// Starts every part of one replica and loops.
async fn replica(
    config: &Config,
    (client, clock): (Client, Clock),
    control: ControlPlane,
    (listeners, public): ([TcpListener; 3], Option<(TcpListener, &Profile)>),
    (watches, servers): (&mut JoinSet<()>, &mut JoinSet<()>),
    shutdown: &CancellationToken,
) -> Result<()> {
    let signal = Signal::new();
    let stores = Stores::start(&client, &config.namespace, &signal, watches);
    let proxies = Arc::new(Proxies::new(signal.clone()));
    let metrics = Arc::new(health::Metrics::new(&clock));
    let (publish, view) = latest::channel(Arc::new(View::default()));
    let (events, write_events) =
        events::Events::new(client.clone(), config.pod_name.clone(), view.clone(), Arc::clone(&metrics));
    watches.spawn(write_events);
    watches.spawn(clock.clone().keep(client.clone(), QUIET));
    let ready = Arc::new(AtomicBool::new(false));
    let audit = Arc::new(Audit::new(telemetry::random()));
    let namespace = config.namespace.clone();
    let (ledgers, writer) = Ledgers::new(client.clone(), namespace, events.clone(), Arc::clone(&audit));
    let about = (Arc::clone(&metrics), Arc::clone(&audit), clock.clone());
    let (issuer, issuing) = issuance::Issuer::new(client.clone(), view.clone(), ledgers.clone(), about);
    let stopped = shutdown.clone();
    servers.spawn(async move {
        // What waits when the replica is told to end is still written, if it is quick.
        let late = async {
            stopped.cancelled().await;
            tokio::time::sleep(serving::PATIENCE).await;
        };
        tokio::select! { _ = async { tokio::join!(issuing, writer.keep()) } => {}, () = late => {} }
    });
    let [channel, hook, health] = listeners;
    let tls = Arc::new(ArcSwap::from_pointee(control.server(clock.now())?));
    let channel_router = channel_router(issuer, view.clone(), &proxies, (events.clone(), clock.clone()), &control);
    let hook_router = hook_router(config, client.clone(), view.clone(), &control);
    servers.spawn(serving::serve(channel, Arc::clone(&tls), channel_router, shutdown.clone()));
    servers.spawn(serving::serve(hook, Arc::clone(&tls), hook_router, shutdown.clone()));
    let bundle_endpoint = public.and_then(|public| {
        let place = (&client, config.namespace.as_str());
        tell_others(public, place, (&view, &signal), (&mut *watches, &mut *servers), shutdown)
    });
    let health_router = health::router(Arc::clone(&metrics), Arc::clone(&ready), Arc::clone(&proxies));
    let stopped = shutdown.clone();
    servers.spawn(async move {
        let serving = axum::serve(health, health_router).with_graceful_shutdown(stopped.cancelled_owned());
        if let Err(failure) = serving.await {
            error!(error = %failure, "the health endpoint ended");
        }
    });
    servers.spawn(renew_own(control.clone(), tls, (client.clone(), clock.clone()), shutdown.clone()));
    let (leading, leads) = latest::channel(false);
    let namespace = config.namespace.clone();
    let seat = (namespace.clone(), config.pod_name.clone());
    servers.spawn(leadership::seek(client.clone(), seat, clock.clone(), leading));
    let port = config.channel.port();
    let follow = replicas::follow(view, leads.clone(), config.pod_name.clone(), port, control, Arc::clone(&proxies));
    let stopped = shutdown.clone();
    servers.spawn(async move {
        let _ = stopped.run_until_cancelled(follow).await;
    });
    let asker = Arc::new(sources::Asker::new(client.clone(), &config.denied, signal.clone()));
    let seat = Seat {
        client,
        clock,
        namespace,
        bundle_endpoint,
        stores,
        proxies,
        metrics,
        audit,
        ledgers,
        events,
        asker,
        publish,
        leads,
    };
    seat.run(&signal, &ready, shutdown).await;
    Ok(())
}

/// Serves our bundles to other organisations. Answers our namespace, where each domain has a certificate of its own there.
fn tell_others(
    (listener, profile): (TcpListener, &Profile),
    (client, namespace): (&Client, &str),
    (view, signal): (&latest::Receiver<Arc<View>>, &Signal),
    (watches, servers): (&mut JoinSet<()>, &mut JoinSet<()>),
    shutdown: &CancellationToken,
) -> Option<String> {
    let shown = match profile {
        Profile::HttpsWeb(folder) => endpoint::Shown::Mounted(Arc::new(Mounted::new(folder.clone()))),
        Profile::HttpsSpiffe => {
            let table = stores::certificates(client, namespace, signal, watches);
            let view = view.clone();
            let all = move || {
                let view = Arc::clone(&view.borrow());
                table.read(|rows| view.topology.endpoints().filter_map(|own| endpoint::issued(rows, own)).collect())
            };
            endpoint::Shown::Issued(endpoint::Issued::new(Arc::new(all)))
        }
    };
    let (public, stopped) = (view.clone(), shutdown.clone());
    let told: endpoint::Told = Arc::new(move |domain, file| public.borrow().public(domain, file));
    servers.spawn(async move {
        if let Err(failure) = endpoint::serve(listener, shown, told, stopped).await {
            error!(error = %failure, "the bundle endpoint ended");
        }
    });
    (*profile == Profile::HttpsSpiffe).then(|| namespace.to_owned())
}

fn channel_router(
    issuer: issuance::Issuer,
    view: latest::Receiver<Arc<View>>,
    proxies: &Arc<Proxies>,
    (events, clock): (events::Events, Clock),
    control: &ControlPlane,
) -> Router {
    let sharing = replicas::Sharing { proxies: Arc::clone(proxies), ca: control.ca.clone() };
    let channel = channel::Channel { view, proxies: Arc::clone(proxies), events, clock };
    let sync = post(channel::sync).layer(DefaultBodyLimit::max(brief::MAX_SYNC_REQUEST)).with_state(channel);
    let certificate = post(issuance::certificate)
        .layer(DefaultBodyLimit::max(brief::MAX_CERTIFICATE_REQUEST))
        .with_state(Arc::new(issuer));
    let share = get(replicas::share).with_state(sharing);
    Router::new().route("/v1/sync", sync).route("/v1/certificate", certificate).route("/v1/proxies", share)
}

fn hook_router(config: &Config, client: Client, view: latest::Receiver<Arc<View>>, control: &ControlPlane) -> Router {
    let webhook = webhook::Webhook {
        client,
        view,
        image: config.sidecar_image.clone(),
        pull_policy: config.sidecar_pull_policy.clone(),
        control_address: format!("{}:{}", control.name(), config.channel.port()),
        control_ca: control.ca.clone(),
    };
    Router::new().route("/inject", post(webhook::inject).layer(DefaultBodyLimit::max(MAX_REVIEW)).with_state(webhook))
}

/// Renews the replica's own certificate at a third of its life, and keeps our authority in the webhook's configuration.
async fn renew_own(
    control: ControlPlane,
    tls: Arc<ArcSwap<ServerConfig>>,
    (client, clock): (Client, Clock),
    shutdown: CancellationToken,
) {
    let mut issued = clock.now();
    loop {
        webhook::keep_bundle(&client, &control.ca).await;
        let now = telemetry::now();
        // What was issued in the future was issued by a clock that was wrong then.
        let due = issued > now || now.as_second() - issued.as_second() > SERVING_SECONDS / 3;
        if due && clock.check().is_ok() {
            match control.server(now) {
                Ok(config) => {
                    tls.store(Arc::new(config));
                    issued = now;
                }
                Err(failure) => warn!(error = %failure, "our own certificate could not be renewed"),
            }
        }
        if shutdown.run_until_cancelled(tokio::time::sleep(Duration::from_secs(15))).await.is_none() {
            return;
        }
    }
}

/// What the loop works with.
struct Seat {
    client: Client,
    clock: Clock,
    namespace: String,
    bundle_endpoint: Option<String>,
    stores: Stores,
    proxies: Arc<Proxies>,
    metrics: Arc<health::Metrics>,
    audit: Arc<Audit>,
    ledgers: Ledgers,
    events: events::Events,
    asker: Arc<sources::Asker>,
    publish: latest::Sender<Arc<View>>,
    leads: latest::Receiver<bool>,
}

impl Seat {
    async fn run(mut self, signal: &Signal, ready: &AtomicBool, shutdown: &CancellationToken) {
        let mut changes = signal.listen();
        let epoch = u64::from_be_bytes(telemetry::random());
        let mut memory = Memory::default();
        loop {
            changes.mark_unchanged();
            let began = Instant::now();
            let mut pause = SWEEP;
            if self.stores.are_synced() {
                // Revocations are not forgotten by a clock that is wrong: briefs go by the best that is known.
                let now = self.clock.now();
                let lead = *self.leads.borrow_and_update() && self.clock.check().is_ok();
                let outcome = self.round(epoch, lead, &mut memory, now).await;
                ready.store(true, Ordering::Release);
                pause = outcome.min(SWEEP);
            }
            let rested = Instant::now() + (began.elapsed() * REST).min(LONGEST_REST);
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                changed = changes.changed() => {
                    if changed.is_err() { return }
                    tokio::time::sleep_until(rested.max(Instant::now() + COALESCE)).await;
                }
                _ = self.leads.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// One look at the world; answers when to look again at the latest.
    async fn round(&self, epoch: u64, lead: bool, memory: &mut Memory, now: Timestamp) -> Duration {
        let authorities = self.stores.authorities(now);
        let mut world = self.stores.world(&authorities);
        world.declared.web_roots = Arc::clone(&self.asker.web_roots);
        world.declared.bundle_endpoint.clone_from(&self.bundle_endpoint);
        world.proxies = self.proxies.seen(telemetry::now());
        world.behind_since = memory.behind_since.clone();
        world.gone_since = memory.gone(&world, now);
        let (topology, problems) = resolve(&world);
        report(&problems, &mut memory.reported);
        let before = Arc::clone(&self.publish.borrow());
        let neighbours = self.stores.pods_in(&self.namespace);
        let next = View::next(&before, topology, &world, &authorities, (neighbours, epoch), now);
        self.proxies.prune(|uid| next.known_pods.contains(uid));
        let next = Arc::new(next);
        self.publish.send_replace(Arc::clone(&next));
        self.metrics.round(&world, lead);
        self.audit.sweep(telemetry::now());
        if !lead {
            return SWEEP;
        }
        world.asked = memory.sources.look(&self.asker, &world, now);
        let servers = next.topology.servers().chain(next.topology.endpoints());
        world.secrets = memory.secrets.look(&self.client, servers, now).await;
        let plan = plan::plan(&next.topology, &problems, &world, now);
        memory.behind(&plan, now);
        let mut pause = plan.wake_at.map_or(SWEEP, |at| {
            Duration::try_from(at.duration_since(now))
                .unwrap_or(Duration::from_millis(100))
                .max(Duration::from_millis(100))
        });
        if !plan.steps.is_empty() {
            self.clock.ask(&self.client).await;
        }
        let began = Instant::now();
        for step in &plan.steps {
            if began.elapsed() >= WRITING {
                return Duration::ZERO;
            }
            // A replica that no longer leads stops in the middle; the next leader plans from what it sees.
            if !*self.leads.borrow() || self.clock.check().is_err() {
                break;
            }
            let applied = match step {
                Step::WriteSecret { server, fingerprint } => {
                    memory.secrets.forget(&server.key);
                    self.write_secret(server, fingerprint, &next.topology).await
                }
                _ => apply::apply(&self.client, &self.namespace, &self.audit, step).await,
            };
            match applied {
                Ok(()) => self.tell(step, &world, &next.topology),
                Err(failure) => {
                    log_failure(step, &failure);
                    pause = pause.min(AGAIN);
                }
            }
        }
        pause
    }

    async fn write_secret(&self, server: &Server, fingerprint: &str, topology: &Topology) -> Result<(), ApplyError> {
        let domain = topology.domain(&server.domain).ok_or(ApplyError::Conflict)?;
        let names = plan::secrets::names(topology, server);
        let tell = (&*self.audit, &self.ledgers);
        secrets::write(&self.client, &self.namespace, tell, (server, domain, names), fingerprint).await
    }

    /// An Event where something was taken back, a rotation moved, or a status says something new that needs a person.
    fn tell(&self, step: &Step, world: &World, topology: &Topology) {
        for news in plan::news(step, world, topology) {
            let News { about, warning, reason, action, note } = news;
            let type_ = if warning { EventType::Warning } else { EventType::Normal };
            match &about {
                Key::Server(key) => {
                    if let Some(server) = topology.server(key) {
                        self.events.about(server, type_, reason, action, note);
                    }
                }
                Key::Domain(name) => {
                    if let Some(object) = world.declared.domain(name) {
                        self.events.about_domain(object, type_, reason, action, note);
                    }
                }
                Key::Partner(key) => {
                    if let Some(object) = world.declared.partner(key) {
                        self.events.about_partner(object, type_, reason, action, note);
                    }
                }
            }
        }
    }
}

/// The topology with every problem, objects that cannot be read included.
fn resolve(world: &World) -> (Topology, Vec<(Key, Problem)>) {
    let (topology, mut problems) = Topology::resolve(&world.declared);
    problems.extend(world.unreadable.iter().map(|(key, why)| (key.clone(), Problem::Unreadable(why.clone()))));
    (topology, problems)
}

/// What one replica remembers from round to round; a new one begins without it and loses only patience.
#[derive(Debug, Default)]
pub struct Memory {
    behind_since: BTreeMap<String, Timestamp>,
    gone_since: BTreeMap<String, Timestamp>,
    reported: BTreeMap<Key, Vec<Problem>>,
    secrets: secrets::Secrets,
    sources: sources::Sources,
}

impl Memory {
    fn behind(&mut self, plan: &Plan, now: Timestamp) {
        since(&mut self.behind_since, &plan.behind, now);
    }

    fn gone(&mut self, world: &World, now: Timestamp) -> BTreeMap<String, Timestamp> {
        since(&mut self.gone_since, &gone(world), now);
        self.gone_since.clone()
    }
}

/// Keeps since when each of `present` has been so.
fn since(memory: &mut BTreeMap<String, Timestamp>, present: &BTreeSet<String>, now: Timestamp) {
    memory.retain(|uid, _| present.contains(uid));
    for uid in present {
        memory.entry(uid.clone()).or_insert(now);
    }
}

/// One round against any cluster: what it does is what the leader's loop does.
///
/// # Errors
/// Whatever the cluster says to `observe` or to a step; the rest of the plan waits for the next round.
pub async fn round(cluster: &impl Cluster, memory: &mut Memory, now: Timestamp) -> Result<usize, ApplyError> {
    let mut world = cluster.observe().await?;
    world.behind_since = memory.behind_since.clone();
    world.gone_since = memory.gone(&world, now);
    let (topology, problems) = resolve(&world);
    let plan = plan::plan(&topology, &problems, &world, now);
    memory.behind(&plan, now);
    for step in &plan.steps {
        cluster.apply(step).await?;
    }
    Ok(plan.steps.len())
}

/// Says each problem once, when it appears.
fn report(problems: &[(Key, Problem)], reported: &mut BTreeMap<Key, Vec<Problem>>) {
    let mut now = BTreeMap::<Key, Vec<Problem>>::new();
    for (key, problem) in problems {
        if !reported.get(key).is_some_and(|said| said.contains(problem)) {
            warn!(object = %key, reason = problem.reason(), "{problem}");
        }
        now.entry(key.clone()).or_default().push(problem.clone());
    }
    *reported = now;
}

fn log_failure(step: &Step, failure: &ApplyError) {
    let what = match step {
        Step::CreateDomain(_) => "create the first domain",
        Step::CreateAuthority { .. } => "create an authority",
        Step::PrepareAuthority { .. } => "prepare an authority",
        Step::MoveAuthority { .. } => "move an authority on",
        Step::PublishLists { .. } => "sign revocation lists",
        Step::Revoke { .. } => "write down revocations",
        Step::WriteSecret { .. } => "write the Secret of a server",
        Step::Hold { .. } => "hold or release a server",
        Step::WriteBundle { .. } => "write a bundle",
        Step::DeleteBundle { .. } => "remove a bundle",
        Step::WritePartners { .. } => "write the roots of partners",
        Step::DeletePartners { .. } => "remove the roots of partners",
        Step::KeepTrust { .. } => "keep what the sources of a partner say",
        Step::ForgetTrust { .. } => "forget what was kept of a partner",
        Step::DeleteLedger { .. } => "remove a ledger",
        Step::DomainStatus { .. } | Step::ServerStatus { .. } | Step::PartnerStatus { .. } => "write a status",
    };
    match failure {
        ApplyError::Conflict => info!(what, "somebody else wrote first; looking again"),
        _ => warn!(what, error = %failure, "a step failed"),
    }
}
