//! Two whole sidecars in one process, on loopback: the process whose system calls are counted.

use std::{
    collections::HashMap,
    fs,
    io::{self, BufRead, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use anyhow::Context;
use entente::{
    brief::{Mode, Port},
    proxy::{self, Bound, Config, Control, Intercepted},
    sidecar::Probes,
    telemetry,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::support::control::everyone;

/// The pod that calls, and its server's name.
pub(crate) const CLIENT: (&str, IpAddr) = ("client", IpAddr::V4(Ipv4Addr::new(127, 0, 61, 1)));
/// The pod that is called.
pub(crate) const SERVER: (&str, IpAddr) = ("server", IpAddr::V4(Ipv4Addr::new(127, 0, 61, 2)));
/// What is dialled.
pub(crate) const PORT: u16 = 5061;
/// Bytes of a request, and of its answer.
pub(crate) const REQUEST: usize = 1024;
/// The file that tells where the control server is.
pub(crate) const TOLD: &str = "control.json";

/// Where the control server is.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    pub(crate) address: String,
    pub(crate) authority: String,
}

/// Where both sidecars listen.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Listening {
    /// For the application that calls.
    pub(crate) outbound: SocketAddr,
    /// For the other sidecar.
    pub(crate) inbound: SocketAddr,
}

/// What the server serves, by an application that listens on `target_port`.
pub(crate) fn served(target_port: u16) -> Port {
    let name = "served".to_owned();
    Port { name, port: PORT, target_port, mode: Mode::MutualTls, allow: everyone(), server_tls: None }
}

/// Says where they listen, waits for a line, and runs them until the input ends.
pub(crate) fn run(folder: &Path) -> anyhow::Result<()> {
    telemetry::init(telemetry::LogFormat::Text);
    let told: Told = serde_json::from_str(&fs::read_to_string(folder.join(TOLD))?)?;
    let client = proxy::bind(config(folder, CLIENT, &told))?;
    let server = proxy::bind(config(folder, SERVER, &told))?;
    let [outbound, inbound] = [client.outbound(), server.inbound()].map(|all| all.first().copied());
    let (outbound, inbound) = (outbound.context("no port to call")?, inbound.context("no port to be called")?);
    writeln!(io::stdout(), "{}", serde_json::to_string(&Listening { outbound, inbound })?)?;
    io::stdin().lock().read_line(&mut String::new())?;
    let client = to(client, outbound, inbound);
    let server = to(server, inbound, SocketAddr::new(SERVER.1, PORT));
    let (stop, stopped) = watch::channel(());
    std::thread::spawn(move || {
        let _ = io::stdin().lock().read_to_end(&mut Vec::new());
        drop(stop);
    });
    let until = |mut stopped: watch::Receiver<()>| async move { while stopped.changed().await.is_ok() {} };
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let (client, server) = tokio::join!(client.run(until(stopped.clone())), server.run(until(stopped)));
        client.and(server)
    })
}

/// What arrives at `listener` was dialled to `destination`.
fn to(bound: Bound, listener: SocketAddr, destination: SocketAddr) -> Bound {
    bound.intercepted(Intercepted::Fixed(HashMap::from([(listener, destination)])))
}

fn config(folder: &Path, (name, address): (&str, IpAddr), told: &Told) -> Config {
    let folder = folder.join(name);
    Config {
        inbound: vec![SocketAddr::new(address, 0)],
        outbound: vec![SocketAddr::new(address, 0)],
        health: vec![],
        pod_ips: vec![address],
        pod_uid: name.to_owned(),
        dns: vec![],
        resolvers: vec![],
        search: vec![],
        control: Control { address: told.address.clone(), authority: told.authority.clone() },
        token_file: folder.join("token"),
        state_dir: folder.clone(),
        server_certificate: folder.join("server-certificate"),
        presented_certificates: folder.join("presented"),
        probes: Probes::new(),
        intercepted: Intercepted::OriginalDestination,
        drain_grace: Duration::ZERO,
        // With more of them it would be chance which one a connection comes to, and whether that hands it on.
        shards: 1,
    }
}
