//! `entente intercept`: loads the interception rules and proves them, then exits.

use std::path::PathBuf;

use anyhow::Context;

use crate::{
    proxy::{self, intercept},
    sidecar,
};

/// What the injected pod tells its init container.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// UDP ports that the server declares.
    #[arg(long, env = sidecar::ENV_UDP_PORTS, value_delimiter = ',', value_parser = udp_port)]
    udp_ports: Vec<Option<u16>>,
    /// Where the pod's nameservers are listed.
    #[arg(long, default_value = "/etc/resolv.conf")]
    resolv_conf: PathBuf,
}

/// An empty variable is an empty list.
fn udp_port(text: &str) -> Result<Option<u16>, std::num::ParseIntError> {
    if text.is_empty() { Ok(None) } else { text.trim().parse().map(Some) }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let resolv_conf = std::fs::read_to_string(&arguments.resolv_conf)
        .with_context(|| format!("cannot read {}", arguments.resolv_conf.display()))?;
    let udp_ports: Vec<u16> = arguments.udp_ports.iter().copied().flatten().collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ipv6 = runtime.block_on(intercept::intercept(&udp_ports, &proxy::resolvers(&resolv_conf)))?;
    tracing::info!(?udp_ports, ?ipv6, "interception is in place");
    Ok(())
}
