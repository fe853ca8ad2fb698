//! `entente controller`: one replica of the control plane.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use clap::Args;
use ipnet::IpNet;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::controller::{self, Config};

/// What a replica is told; the chart sets all of it.
#[derive(Debug, Args)]
pub(super) struct Controller {
    /// Our namespace.
    #[arg(long, env = "ENTENTE_NAMESPACE", default_value = "entente-system")]
    namespace: String,
    /// Name of our pod.
    #[arg(long, env = "ENTENTE_POD_NAME")]
    pod_name: String,
    /// Name of the Service that leads to us.
    #[arg(long, env = "ENTENTE_SERVICE", default_value = "entente")]
    service: String,
    /// Image of the sidecar.
    #[arg(long, env = "ENTENTE_SIDECAR_IMAGE")]
    sidecar_image: String,
    /// When the kubelet pulls it: Always, IfNotPresent or Never.
    #[arg(long, env = "ENTENTE_SIDECAR_PULL_POLICY", default_value = "IfNotPresent")]
    sidecar_pull_policy: String,
    /// Address to listen on, IPv4 or IPv6.
    #[arg(long, env = "ENTENTE_LISTEN", default_value_t = IpAddr::V6(Ipv6Addr::UNSPECIFIED))]
    listen: IpAddr,
    /// Port of the control channel.
    #[arg(long, default_value_t = 8443)]
    channel_port: u16,
    /// Port of the admission webhook.
    #[arg(long, default_value_t = 9443)]
    webhook_port: u16,
    /// Folder with tls.crt and tls.key of the bundle endpoint, certified by the web PKI; it is served where this is set.
    #[arg(long, env = "ENTENTE_BUNDLE_CERTIFICATE")]
    bundle_certificate: Option<PathBuf>,
    /// Port of the bundle endpoint.
    #[arg(long, default_value_t = 8444)]
    bundle_port: u16,
    /// Networks that no address of a partner's (bundle endpoint, revocation list) may lead to, beside loopback, link-local,
    /// multicast and metadata addresses: those of pods, Services and nodes. Separated by commas.
    #[arg(long, env = "ENTENTE_FEDERATION_DENIED", value_delimiter = ',')]
    federation_denied: Vec<IpNet>,
    /// Port of health and metrics.
    #[arg(long, default_value_t = 8080)]
    health_port: u16,
}

pub(super) fn run(arguments: Controller) -> anyhow::Result<()> {
    let Controller { namespace, pod_name, service, sidecar_image, sidecar_pull_policy, listen, .. } = arguments;
    let at = |port| SocketAddr::new(listen, port);
    let config = Config {
        namespace,
        pod_name,
        service,
        sidecar_image,
        sidecar_pull_policy,
        channel: at(arguments.channel_port),
        webhook: at(arguments.webhook_port),
        health: at(arguments.health_port),
        bundle: arguments.bundle_certificate.map(|folder| (at(arguments.bundle_port), folder)),
        denied: arguments.federation_denied,
    };
    info!(?config, "starting");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let stop = shutdown.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            info!("stopping");
            stop.cancel();
        });
        controller::run(config, shutdown).await
    })
}
