//! The sidecar: credentials, interception, inbound, outbound, relay, probes, drain.
//!
//! [`bind`] takes every port or fails; [`Bound::run`] serves until it is told to stop. Before the first certificate
//! and brief everything is refused; afterwards each connection is judged by one [`generation`], swapped whole.

mod accept;
mod access;
mod basis;
mod chains;
mod channel;
mod contacts;
mod credentials;
mod dns;
mod drain;
mod enrol;
mod expiry;
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
#[cfg(feature = "gate")]
#[doc(hidden)]
pub mod gate;
mod generation;
mod health;
mod inbound;
pub mod intercept;
mod judge;
mod limits;
mod metrics;
mod muxes;
mod named;
mod outbound;
mod presented;
mod probes;
mod quotas;
mod records;
mod registry;
mod relay;
mod reprove;
mod routes;
mod shards;
mod shared;
mod sockets;
mod sync;
mod tls;

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{
    accept::Acceptor,
    health::Health,
    limits::Limits,
    presented::Certificates,
    shards::Shards,
    shared::{Shared, Surroundings},
};
pub use self::{
    channel::Control,
    limits::prepare_process,
    sockets::{Intercepted, resolvers, search},
};
use crate::{
    brief::Direction,
    identity::DnsName,
    sidecar::{ADMIN_PORT, Probes},
    telemetry,
};

/// All that a proxy must be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where redirected connections from the network arrive.
    pub inbound: Vec<SocketAddr>,
    /// Where redirected connections of the application arrive.
    pub outbound: Vec<SocketAddr>,
    /// Readiness, metrics, probes.
    pub health: Vec<SocketAddr>,
    /// The pod's addresses.
    pub pod_ips: Vec<IpAddr>,
    /// The pod's UID.
    pub pod_uid: String,
    /// Where the application's questions about names arrive, over UDP and TCP.
    pub dns: Vec<SocketAddr>,
    /// The pod's nameservers.
    pub resolvers: Vec<SocketAddr>,
    /// What the pod completes names with.
    pub search: Vec<DnsName>,
    /// The controller.
    pub control: Control,
    /// The pod-bound token.
    pub token_file: PathBuf,
    /// Where key, chain and brief survive a restart of the container.
    pub state_dir: PathBuf,
    /// Where the certificate that ServerTLS ports show is mounted, if it is.
    pub server_certificate: PathBuf,
    /// Below it are the certificates that partners are shown, each in a folder of the partner's name.
    pub presented_certificates: PathBuf,
    /// The application's probes and hooks.
    pub probes: Probes,
    /// How original destinations are learnt.
    pub intercepted: Intercepted,
    /// How long inbound connections are still accepted when the pod ends.
    pub drain_grace: Duration,
    /// Threads that carry data; one at least.
    pub shards: usize,
}

/// A proxy that holds its ports and serves nobody yet.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    /// Per address, one for each shard.
    inbound: Vec<Vec<std::net::TcpListener>>,
    outbound: Vec<Vec<std::net::TcpListener>>,
    health: Vec<std::net::TcpListener>,
    dns: dns::Listeners,
}

/// Takes every port; one that is taken already is an error here, not later.
pub fn bind(config: Config) -> anyhow::Result<Bound> {
    let inbound = sockets::listen_all_together(&config.inbound, config.shards, true).context("inbound")?;
    let outbound = sockets::listen_all_together(&config.outbound, config.shards, false).context("outbound")?;
    let health = sockets::listen_all(&config.health).context("health")?;
    let dns = dns::Listeners::bind(&config.dns).context("dns")?;
    Ok(Bound { config, inbound, outbound, health, dns })
}

fn addresses<'a>(listeners: impl IntoIterator<Item = &'a std::net::TcpListener>) -> Vec<SocketAddr> {
    listeners.into_iter().filter_map(|listener| listener.local_addr().ok()).collect()
}

impl Bound {
    /// Where redirected connections from the network arrive.
    pub fn inbound(&self) -> Vec<SocketAddr> {
        addresses(self.inbound.iter().filter_map(|shards| shards.first()))
    }

    /// Where redirected connections of the application arrive.
    pub fn outbound(&self) -> Vec<SocketAddr> {
        addresses(self.outbound.iter().filter_map(|shards| shards.first()))
    }

    /// Where readiness, metrics and probes are.
    pub fn health(&self) -> Vec<SocketAddr> {
        addresses(&self.health)
    }

    /// Where the application's questions about names arrive.
    pub fn dns(&self) -> Vec<SocketAddr> {
        self.dns.addresses()
    }

    /// Replaces how original destinations are learnt, now that the ports are known.
    #[must_use]
    pub fn intercepted(mut self, intercepted: Intercepted) -> Self {
        self.config.intercepted = intercepted;
        self
    }

    /// Serves until `shutdown`, then drains.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> anyhow::Result<()> {
        let own_ports = [self.inbound(), self.outbound(), self.health(), self.dns()].concat();
        let own_ports = own_ports.iter().map(SocketAddr::port).chain([ADMIN_PORT]).collect();
        let Self { config, inbound, outbound, health, dns } = self;
        let Config {
            pod_ips,
            pod_uid,
            resolvers,
            search,
            control,
            token_file,
            state_dir,
            server_certificate,
            presented_certificates,
            probes,
            intercepted,
            shards,
            ..
        } = config;
        std::fs::create_dir_all(&state_dir).with_context(|| format!("cannot use {}", state_dir.display()))?;
        let mounted = Arc::new(Certificates::new(server_certificate, &presented_certificates));
        let place = Surroundings { pod_uid, pod_ips, resolvers, search, own_ports, state_dir, intercepted, mounted };
        let shared = Arc::new(Shared::new(place));
        restore(&shared);

        let stop = CancellationToken::new();
        // Whatever ends this function ends the tasks with it.
        let _stop_on_return = stop.clone().drop_guard();
        serve_health(&shared, health, &probes, &stop)?;
        let stop_inbound = stop.child_token();
        let connections = TaskTracker::new();
        let background = TaskTracker::new();
        let (shards, threads) = Shards::start(shards, &stop).context("cannot start the threads that carry data")?;
        let most = limits::connections(limits::descriptors(), limits::memory());
        tracing::info!(most, "connections at a time");
        let limits = Arc::new(Limits::new(most));
        let acceptor = Acceptor { shared: shared.clone(), limits, tasks: connections.clone(), shards, index: 0 };
        for (together, direction, stop) in
            [(inbound, Direction::Inbound, &stop_inbound), (outbound, Direction::Outbound, &stop)]
        {
            for (index, listener) in together.into_iter().flat_map(|shards| shards.into_iter().enumerate()) {
                let acceptor = Acceptor { index, ..acceptor.clone() };
                acceptor.start(listener, direction, stop, &background)?;
            }
        }
        let guard = dns.serve(shared.clone());
        background.spawn(stop.clone().run_until_cancelled_owned(async {
            if let Err(error) = guard.await {
                tracing::error!(%error, "the DNS guard ended");
            }
        }));
        let enrol = enrol::run(shared.clone(), control.clone(), token_file);
        background.spawn(stop.clone().run_until_cancelled_owned(enrol));
        background.spawn(stop.clone().run_until_cancelled_owned(shared.place.mounted.clone().follow()));
        background.spawn(stop.clone().run_until_cancelled_owned(sync::run(shared.clone(), control)));
        background.spawn(stop.clone().run_until_cancelled_owned(expiry::run(shared.clone())));
        tracing::info!("proxy started");

        shutdown.await;
        drain::drain(&shared, &connections, &stop_inbound, config.drain_grace).await;
        stop.cancel();
        background.close();
        background.wait().await;
        threads.ended().await;
        tracing::info!("proxy ended");
        Ok(())
    }
}

/// What survived a restart of the container is in force at once, with or without a controller.
fn restore(shared: &Shared) {
    let when = (telemetry::now(), telemetry::jitter());
    let Some(kept) = credentials::load(&shared.place.state_dir, &shared.place.pod_uid, when) else { return };
    shared.adopt_leaf(kept.leaf);
    if let Some(brief) = kept.brief
        && let Err(error) = shared.adopt_brief(brief)
    {
        tracing::warn!(%error, "kept brief is of no use");
    }
}

fn serve_health(
    shared: &Arc<Shared>,
    listeners: Vec<std::net::TcpListener>,
    probes: &Probes,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    for listener in listeners {
        let health = Health { shared: shared.clone(), probes: probes.clone() };
        let stop = stop.clone();
        // The thread ends with the token; it holds nothing that must be waited for.
        std::thread::Builder::new().name("health".to_owned()).spawn(move || {
            if let Err(error) = health.run(listener, &stop) {
                tracing::error!(%error, "health server ended");
            }
        })?;
    }
    Ok(())
}
