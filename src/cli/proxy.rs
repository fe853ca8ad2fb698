//! `entente proxy`: the sidecar.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::process::CommandExt,
    path::PathBuf,
    time::Duration,
};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    proxy::{self, Config, Control, Intercepted},
    sidecar,
};

/// What the injected pod tells its sidecar.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// HOST:PORT of the controller's channel.
    #[arg(long, env = sidecar::ENV_CONTROL_ADDRESS)]
    control_address: String,
    /// PEM of the authority that vouches for the controller.
    #[arg(long, env = sidecar::ENV_CONTROL_CA)]
    control_ca: String,
    /// The pod's addresses.
    #[arg(long, env = sidecar::ENV_POD_IPS, value_delimiter = ',', required = true)]
    pod_ips: Vec<IpAddr>,
    /// The pod's UID.
    #[arg(long, env = sidecar::ENV_POD_UID)]
    pod_uid: String,
    /// The application's probes and hooks, JSON.
    #[arg(long, env = sidecar::ENV_PROBES, default_value = "{}", value_parser = probes)]
    probes: sidecar::Probes,
    /// Where key, chain and brief are kept.
    #[arg(long, default_value = sidecar::STATE_DIR)]
    state_dir: PathBuf,
    /// Where the certificate that ServerTLS ports show is mounted, if it is.
    #[arg(long, default_value = sidecar::SERVER_CERTIFICATE_DIR)]
    server_certificate: PathBuf,
    /// Below it are the certificates that partners are shown, each in a folder of the partner's name.
    #[arg(long, default_value = sidecar::PRESENTED_CERTIFICATES_DIR)]
    presented_certificates: PathBuf,
    /// The pod-bound token.
    #[arg(long, default_value = sidecar::TOKEN_FILE)]
    token_file: PathBuf,
    /// Where the pod's nameservers are listed.
    #[arg(long, default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
}

fn probes(json: &str) -> Result<sidecar::Probes, String> {
    serde_json::from_str(json).map_err(|error| error.to_string())
}

/// One or two threads carry the data; what is told by the controller and asked of names goes by the main one.
const MAX_SHARDS: usize = 2;
/// Where resolvers listen.
const DNS: u16 = 53;
/// How long new callers are still welcome when the pod ends.
const DRAIN_GRACE: Duration = Duration::from_secs(1);

/// For glibc's allocator (mallopt(3)), which otherwise keeps for itself a megabyte of what it took to read a brief: what is
/// large has pages of its own, what is free at the end goes back, and the few threads share one heap.
const FRUGAL: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_THRESHOLD_", "131072"), ("MALLOC_TRIM_THRESHOLD_", "65536")];

/// Goes on as the program that is the sidecar alone, where it lies beside this one, as in the image: half as much memory
/// in each pod. Returns where it does not, and this program serves as well.
pub(super) fn become_small() -> anyhow::Result<()> {
    let this = std::env::current_exe().context("cannot tell which program this is")?;
    let small = this.with_file_name(sidecar::PROXY_PROGRAM);
    if small == this || !small.try_exists().unwrap_or(false) {
        return Ok(());
    }
    // Who has set one of them knows better.
    let unset = FRUGAL.into_iter().filter(|(name, _)| std::env::var_os(name).is_none());
    let failure = std::process::Command::new(&small).args(std::env::args_os().skip(1)).envs(unset).exec();
    Err(failure).with_context(|| format!("cannot go on as {}", small.display()))
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<()> {
    let resolv_conf = std::fs::read_to_string(&arguments.resolv_conf)
        .with_context(|| format!("cannot read {}", arguments.resolv_conf.display()))?;
    let everywhere: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let on = |addresses: [IpAddr; 2], port| addresses.map(|address| SocketAddr::new(address, port)).to_vec();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let config = Config {
        inbound: on(everywhere, sidecar::INBOUND_PORT),
        outbound: on(loopback, sidecar::OUTBOUND_PORT),
        health: on(everywhere, sidecar::HEALTH_PORT),
        pod_ips: arguments.pod_ips.iter().map(IpAddr::to_canonical).collect(),
        pod_uid: arguments.pod_uid,
        dns: on(loopback, sidecar::DNS_PORT),
        resolvers: proxy::resolvers(&resolv_conf).into_iter().map(|address| (address, DNS).into()).collect(),
        search: proxy::search(&resolv_conf),
        control: Control { address: arguments.control_address, authority: arguments.control_ca },
        token_file: arguments.token_file,
        state_dir: arguments.state_dir,
        server_certificate: arguments.server_certificate,
        presented_certificates: arguments.presented_certificates,
        probes: arguments.probes,
        intercepted: Intercepted::OriginalDestination,
        drain_grace: DRAIN_GRACE,
        shards: cores.clamp(1, MAX_SHARDS),
    };
    proxy::prepare_process();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        proxy::bind(config)?.run(shutdown).await
    })?;
    Ok(())
}
