//! One load through one peer: what the generator saw, and what A and B used meanwhile.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

use crate::{
    load::{Load, Outcome},
    network::{CLIENT, SERVED, SERVER},
    pair::Pair,
    process,
};

/// How long a load may take beyond its time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Processor seconds that A and B used in a second of a load.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Used {
    pub(crate) a: f64,
    pub(crate) b: f64,
}

/// Starts the server, which answers every load.
pub(crate) async fn serve() -> anyhow::Result<Child> {
    let mut server = own(SERVER, &["serve", "--listen", SERVED])?.stdin(Stdio::null()).spawn()?;
    let process = server.id().context("the server ended at once")?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !process::listens(process, 8080) {
        ensure!(server.try_wait()?.is_none() && Instant::now() < deadline, "the server does not listen");
        sleep(Duration::from_millis(10)).await;
    }
    Ok(server)
}

/// Puts a load on what lies between client and server.
pub(crate) async fn drive(load: &Load) -> anyhow::Result<Outcome> {
    let mut client = start(load)?;
    line(&mut client).await
}

/// The same for a load that lasts, and what A and B use in the middle of it.
pub(crate) async fn drive_counted(
    load: &Load,
    seconds: f64,
    warmup: f64,
    pair: Option<&Pair>,
) -> anyhow::Result<(Outcome, Used)> {
    let Some(pair) = pair else { return Ok((drive(load).await?, Used::default())) };
    let (a, b) = (pair.a.processes(), pair.b.processes());
    let mut client = start(load)?;
    // Both rates are taken while the load is steady, the generator's a little longer than ours at either end.
    sleep(Duration::from_secs_f64(warmup + 0.05 * seconds)).await;
    let began = (Instant::now(), process::cpu(&a), process::cpu(&b));
    sleep(Duration::from_secs_f64(0.9 * seconds)).await;
    let ended = (Instant::now(), process::cpu(&a), process::cpu(&b));
    let passed = (ended.0 - began.0).as_secs_f64();
    let used = Used { a: (ended.1 - began.1) / passed, b: (ended.2 - began.2) / passed };
    Ok((line(&mut client).await?, used))
}

/// Proportional set size of A and B while so many connections are open, in KiB.
pub(crate) async fn held(pair: &Pair, connections: usize) -> anyhow::Result<(f64, usize)> {
    let mut client = start(&Load::Idle { connections })?;
    let opened: serde_json::Value = line(&mut client).await?;
    // What a handshake needed is given back within moments.
    sleep(Duration::from_millis(300)).await;
    let memory = pss(pair);
    drop(client.stdin.take());
    timeout(PATIENCE, client.wait()).await??;
    let open = opened["open"].as_u64().and_then(|open| usize::try_from(open).ok()).unwrap_or_default();
    Ok((memory, open))
}

/// Proportional set size of A and B, in KiB.
pub(crate) fn pss(pair: &Pair) -> f64 {
    process::pss_kib(&pair.a.processes()) + process::pss_kib(&pair.b.processes())
}

fn start(load: &Load) -> anyhow::Result<Child> {
    let json = serde_json::to_string(load)?;
    let mut command = own(CLIENT, &["drive", "--to", SERVED, "--load", &json])?;
    Ok(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?)
}

/// This program in a pod.
fn own(pod: &str, words: &[&str]) -> anyhow::Result<Command> {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", pod]).arg(std::env::current_exe()?).args(words).kill_on_drop(true);
    Ok(command)
}

/// The line that a client prints.
async fn line<T: DeserializeOwned>(client: &mut Child) -> anyhow::Result<T> {
    let output = client.stdout.take().context("the client says nothing")?;
    let mut text = String::new();
    timeout(PATIENCE, BufReader::new(output).read_line(&mut text)).await.context("a load that does not end")??;
    serde_json::from_str(&text).with_context(|| format!("the load said {text:?}"))
}

/// What `strace` counts of both proxies while `load` is done: system calls in all, and its table.
pub(crate) async fn system_calls(pair: &Pair, load: &Load) -> anyhow::Result<(f64, String, Outcome)> {
    let folder = tempfile::tempdir()?;
    let table = folder.path().join("table");
    let mut strace = Command::new("strace");
    strace.args(["-c", "-f", "-o"]).arg(&table);
    for process in pair.a.processes().into_iter().chain(pair.b.processes()) {
        strace.args(["-p", &process.to_string()]);
    }
    let mut strace = strace.stderr(Stdio::piped()).kill_on_drop(true).spawn()?;
    // It says so once it has attached to each.
    let mut said = BufReader::new(strace.stderr.take().context("strace says nothing")?).lines();
    timeout(PATIENCE, said.next_line()).await.context("strace does not attach")??;
    sleep(Duration::from_millis(300)).await;
    let outcome = drive(load).await?;
    let process = strace.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(process) = process {
        rustix::process::kill_process(process, rustix::process::Signal::INT)?;
    }
    timeout(PATIENCE, strace.wait()).await.context("strace does not end")??;
    let text = std::fs::read_to_string(&table)?;
    let total = text.lines().rev().find(|line| line.ends_with(" total")).context("strace counted nothing")?;
    // "% time, seconds, usecs/call, calls, errors, name": the last line has no name but "total".
    let calls = total.split_whitespace().nth(3).and_then(|calls| calls.parse().ok()).context("no count of calls")?;
    Ok((calls, text, outcome))
}

/// Ends a child process.
pub(crate) async fn end(mut child: Child) {
    if let Some(mut input) = child.stdin.take() {
        let _ = input.shutdown().await;
    }
    let _ = child.kill().await;
}
