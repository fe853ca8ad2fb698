//! Two pods as network namespaces, joined by one veth pair, each with a second link to the control server. The
//! namespaces live in the mount and network namespaces of the harness and end with it.

use std::{
    fs,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd,
    path::Path,
    process::Stdio,
};

use anyhow::{Context, ensure};
use rustix::{
    process::{Gid, Uid},
    thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_gid, set_thread_uid},
};
use tokio::{io::AsyncWriteExt, process::Command};

/// The pod of the client and of A.
pub(crate) const CLIENT: &str = "a";
/// The pod of B and of the server.
pub(crate) const SERVER: &str = "b";
/// Where the server listens, and what the client and A dial.
pub(crate) const SERVED: &str = "10.78.0.2:8080";
/// The control server's address, on the harness's own loopback.
pub(crate) const CONTROL: &str = "10.79.0.1";

/// The number of a pod in its addresses.
pub(crate) fn number(pod: &str) -> u8 {
    if pod == CLIENT { 1 } else { 2 }
}

/// Where a sidecar answers about its health: on the link to the control server.
pub(crate) fn health(pod: &str) -> SocketAddr {
    SocketAddr::from(([10, 79, number(pod), 2], entente::sidecar::HEALTH_PORT))
}

/// Both pods.
#[derive(Debug)]
pub(crate) struct Network {
    /// The interception rules of each pod, as they were loaded and proven by `entente intercept`.
    rules: Vec<(&'static str, String)>,
}

impl Network {
    /// Makes the pods; `entente` is the program whose interception rules all peers are dialled by.
    pub(crate) async fn new(entente: &Path, resolv_conf: &Path) -> anyhow::Result<Self> {
        // Names of namespaces are files; a file system of our own keeps them from the machine's.
        fs::create_dir_all("/run/netns")?;
        run("mount -t tmpfs none /run/netns").await?;
        run("ip link set lo up").await?;
        run(&format!("ip addr add {CONTROL}/32 dev lo")).await?;
        for pod in [CLIENT, SERVER] {
            run(&format!("ip netns add {pod}")).await?;
            link_to_control(pod).await?;
            for setting in SETTINGS {
                run(&format!("ip netns exec {pod} sysctl -qw {setting}")).await?;
            }
        }
        run(&format!("ip link add eth0 netns {CLIENT} type veth peer name eth0 netns {SERVER}")).await?;
        for pod in [CLIENT, SERVER] {
            run(&format!("ip -n {pod} addr add 10.78.0.{}/24 dev eth0", number(pod))).await?;
            run(&format!("ip -n {pod} link set eth0 mtu 1500 up")).await?;
        }
        let mut rules = vec![];
        for pod in [CLIENT, SERVER] {
            let loading = Command::new("ip")
                .args(["netns", "exec", pod])
                .arg(entente)
                .args(["intercept", "--resolv-conf"])
                .arg(resolv_conf)
                .stderr(Stdio::piped())
                .output()
                .await?;
            let said = String::from_utf8_lossy(&loading.stderr);
            ensure!(loading.status.success(), "no interception rules in {pod}: {said}");
            rules.push((pod, output(&format!("ip netns exec {pod} nft list ruleset")).await?));
        }
        Ok(Self { rules })
    }

    /// Loads the rules of both pods or removes them, and forgets the connections that were tracked.
    pub(crate) async fn intercept(&self, intercept: bool) -> anyhow::Result<()> {
        for (pod, rules) in &self.rules {
            let rules = if intercept { rules.as_str() } else { "" };
            let mut nft = Command::new("ip")
                .args(["netns", "exec", pod, "nft", "-f", "-"])
                .stdin(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            let mut input = nft.stdin.take().context("nft takes no input")?;
            input.write_all(format!("flush ruleset\n{rules}").as_bytes()).await?;
            drop(input);
            ensure!(nft.wait().await?.success(), "nft does not take the rules of {pod}");
            // It fails where nothing is tracked.
            let forgetting = format!("ip netns exec {pod} conntrack -F");
            drop(command(&forgetting).stdout(Stdio::null()).stderr(Stdio::null()).status().await);
        }
        Ok(())
    }
}

/// Of both pods. No ports of the client's are among those that anybody listens on; what one peer's connections taught
/// about the path is not told to the next.
const SETTINGS: &[&str] = &[
    "net.ipv4.tcp_congestion_control=cubic",
    "net.ipv4.ip_local_port_range=24000\u{a0}65000",
    "net.ipv4.tcp_tw_reuse=1",
    "net.ipv4.tcp_no_metrics_save=1",
    "net.ipv4.tcp_max_syn_backlog=16384",
    "net.core.somaxconn=16384",
    "net.netfilter.nf_conntrack_tcp_timeout_time_wait=10",
];

async fn link_to_control(pod: &str) -> anyhow::Result<()> {
    let number = number(pod);
    for command in [
        format!("ip link add control-{pod} type veth peer name control netns {pod}"),
        format!("ip addr add 10.79.{number}.1/24 dev control-{pod}"),
        format!("ip link set control-{pod} up"),
        format!("ip -n {pod} link set lo up"),
        format!("ip -n {pod} addr add 10.79.{number}.2/24 dev control"),
        format!("ip -n {pod} link set control up"),
        format!("ip -n {pod} route add default via 10.79.{number}.1"),
    ] {
        run(&command).await?;
    }
    Ok(())
}

/// Runs `body` on a thread in a pod's network namespace, as a user and group of this number. Sockets that it makes stay
/// in the namespace, and the rules take them for that user's.
pub(crate) fn inside<T: Send>(
    pod: &str,
    user: u32,
    body: impl FnOnce() -> std::io::Result<T> + Send,
) -> anyhow::Result<T> {
    let entered = || {
        let namespace = fs::File::open(format!("/run/netns/{pod}"))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        if user != 0 {
            set_thread_gid(Gid::from_raw(user))?;
            set_thread_uid(Uid::from_raw(user))?;
        }
        body()
    };
    let joined = std::thread::scope(|scope| scope.spawn(entered).join());
    Ok(joined.map_err(|_| anyhow::anyhow!("a thread in {pod} panicked"))??)
}

/// A listener in a pod.
pub(crate) fn listen(pod: &str, address: &str) -> anyhow::Result<tokio::net::TcpListener> {
    let listener = inside(pod, 0, || TcpListener::bind(address)).with_context(|| format!("{address} in {pod}"))?;
    listener.set_nonblocking(true)?;
    Ok(tokio::net::TcpListener::from_std(listener)?)
}

/// Dials the server from the client's pod, as a user with this number.
pub(crate) fn dial(user: u32) -> anyhow::Result<tokio::net::TcpStream> {
    let stream = inside(CLIENT, user, || TcpStream::connect(SERVED)).context("dialling the server")?;
    stream.set_nonblocking(true)?;
    Ok(tokio::net::TcpStream::from_std(stream)?)
}

fn command(words: &str) -> Command {
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    // A value with a space in it has a no-break space here.
    command.args(words.map(|word| word.replace('\u{a0}', " "))).kill_on_drop(true);
    command
}

async fn run(words: &str) -> anyhow::Result<()> {
    output(words).await.map(drop)
}

/// What a command says; an error if it fails.
pub(crate) async fn output(words: &str) -> anyhow::Result<String> {
    let output = command(words).output().await.with_context(|| words.to_owned())?;
    ensure!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
