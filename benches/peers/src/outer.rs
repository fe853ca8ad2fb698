//! The harness begins itself again in network, mount and process namespaces of its own, so that whatever it started
//! ends with it, whichever way it ends.

use std::{fs, path::Path};

use anyhow::{Context, ensure};
use tokio::{
    process::Command,
    signal::unix::{SignalKind, signal},
};

use crate::{options::Options, run, support::UNSHARE};

/// Environment: set in the process that lives in its own namespaces.
const INSIDE: &str = "ENTENTE_PEERS_INSIDE";

/// Runs the benchmark, here or in namespaces of its own.
pub(crate) fn run(options: Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    if std::env::var_os(INSIDE).is_some() {
        return runtime.block_on(run::run(&options.settled()));
    }
    ensure!(fs::metadata("/proc/self").is_ok_and(|own| owned_by_root(&own)), "network namespaces need root");
    let _settings = [Setting::cubic()?, Setting::awake()];
    runtime.block_on(again())
}

fn owned_by_root(own: &fs::Metadata) -> bool {
    std::os::unix::fs::MetadataExt::uid(own) == 0
}

async fn again() -> anyhow::Result<()> {
    let mut inner = Command::new(UNSHARE[0])
        .args(&UNSHARE[1..])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        // A key pressed reaches us alone, and we end it.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("unshare")?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let status = tokio::select! {
        status = inner.wait() => Some(status?),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    inner.kill().await.ok();
    ensure!(status.context("interrupted")?.success(), "the benchmark failed");
    Ok(())
}

/// A setting of the machine's that was changed; put back when dropped.
struct Setting {
    path: &'static str,
    before: Option<String>,
}

/// Which congestion controls namespaces may choose.
const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
/// How long, in ns, an idle processor of a virtual machine looks for work before it halts.
pub(crate) const AWAKE: &str = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";
/// The kernel's own choice (`drivers/cpuidle/governors/haltpoll.c`).
const AWAKE_NS: u64 = 200_000;

impl Setting {
    /// Allows cubic, whatever the machine's own choice is: BBR paces even on a veth pair.
    fn cubic() -> anyhow::Result<Self> {
        let before = fs::read_to_string(Path::new(ALLOWED)).context("congestion controls")?;
        if before.split_whitespace().any(|name| name == "cubic") {
            return Ok(Self { path: ALLOWED, before: None });
        }
        fs::write(ALLOWED, format!("{} cubic", before.trim())).context("cubic is not there")?;
        Ok(Self { path: ALLOWED, before: Some(before) })
    }

    /// Processors that halt at once are woken by the hypervisor, and latency is mostly its own. Where that cannot be set, it
    /// is as it is.
    fn awake() -> Self {
        let before = fs::read_to_string(AWAKE).ok();
        let halts = before.as_ref().and_then(|ns| ns.trim().parse::<u64>().ok()).is_some_and(|ns| ns < AWAKE_NS);
        let set = halts && fs::write(AWAKE, AWAKE_NS.to_string()).is_ok();
        Self { path: AWAKE, before: before.filter(|_| set) }
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = fs::write(self.path, before);
        }
    }
}
