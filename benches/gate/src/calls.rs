//! System calls of two sidecars under fixed loads, counted by strace.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::Ipv4Addr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use anyhow::{Context, bail, ensure};
use entente::brief::Mode;

use crate::{
    baseline::Counted,
    load::{self, Load},
    sidecars::{CLIENT, Listening, SERVER, TOLD, Told, served},
    support::{control::Server, eventually},
};

/// How often everything is counted.
const TRIES: usize = 5;

/// What is counted.
pub(crate) struct Measure {
    /// Its name in the baseline.
    pub(crate) name: &'static str,
    /// What is done.
    pub(crate) load: Load,
    /// How often.
    pub(crate) times: usize,
    /// By how many per cent it may be more, until the baseline says something else.
    pub(crate) tolerance: f64,
}

/// All that is counted.
pub(crate) const COUNTED: &[Measure] = &[
    Measure { name: "request", load: Load::Requests, times: 1000, tolerance: 2.0 },
    Measure { name: "connection", load: Load::Connections, times: 200, tolerance: 3.0 },
    Measure { name: "MiB to the server", load: Load::Up, times: 256, tolerance: 25.0 },
    Measure { name: "MiB to the client", load: Load::Down, times: 256, tolerance: 25.0 },
];

/// How often a kind of system call was made, and how often of that in vain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Made {
    calls: u64,
    errors: u64,
}

/// The same of all kinds.
type Calls = BTreeMap<String, Made>;

/// System calls of a sidecar pair that starts, carries one connection, and ends.
pub(crate) fn idle(folder: &Path) -> anyhow::Result<Calls> {
    run(folder, Load::Connections, 0)
}

/// System calls of both sidecars for one of what `measure` does, where `idle` are there without it: the least of
/// [`TRIES`], since chance only ever adds some. Where the machine has no time for the applications, for one, each call
/// finds little to move.
pub(crate) fn count(measure: &Measure, idle: &Calls, folder: &Path) -> anyhow::Result<Counted> {
    let Measure { load, times, .. } = *measure;
    let mut least = each(&run(folder, load, times)?, idle, load, times);
    for _ in 1..TRIES {
        let again = each(&run(folder, load, times)?, idle, load, times);
        if again.count < least.count {
            least = again;
        }
    }
    Ok(least)
}

fn each(all: &Calls, idle: &Calls, load: Load, times: usize) -> Counted {
    let kinds: BTreeMap<_, _> = all
        .iter()
        .filter(|(kind, _)| counts(load, kind))
        .map(|(kind, made)| (kind.clone(), of(load, *made) - of(load, idle.get(kind).copied().unwrap_or_default())))
        .map(|(kind, calls)| (kind, rounded(calls / times as f64)))
        // What happens now and then, or only once, is nobody's.
        .filter(|(_, calls)| calls.abs() >= 0.05)
        .collect();
    Counted { count: rounded(kinds.values().sum()), kinds }
}

/// Whether calls of this kind are the work's, and not chance's.
fn counts(load: Load, kind: &str) -> bool {
    match (load, kind) {
        // Two threads wanted one thing at one time.
        (_, "futex") => false,
        (Load::Requests, _) => true,
        // Whoever is faster waits for the other.
        (Load::Connections | Load::Up | Load::Down, kind) => kind != "epoll_wait",
    }
}

/// What bytes in a stream ask for in vain depends on who is faster, too; where one thing follows another it does not.
fn of(load: Load, made: Made) -> f64 {
    match load {
        Load::Requests | Load::Connections => made.calls as f64,
        Load::Up | Load::Down => made.calls as f64 - made.errors as f64,
    }
}

fn rounded(calls: f64) -> f64 {
    (calls * 100.0).round() / 100.0
}

fn run(folder: &Path, load: Load, times: usize) -> anyhow::Result<Calls> {
    let folder = tempfile::tempdir_in(folder)?;
    let folder = folder.path();
    // One thread for the control server beside ours; what they do is not counted.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let control = runtime.block_on(Server::start(Ipv4Addr::LOCALHOST.into()));
    let application = load::serve(SERVER.1)?;
    declare(&control, application.port());
    fs::write(folder.join(TOLD), serde_json::to_string(&told(&control))?)?;
    for (name, _) in [CLIENT, SERVER] {
        fs::create_dir(folder.join(name))?;
        fs::write(folder.join(name).join("token"), control.look(|world| world.pods[name].token.clone()))?;
    }
    let counts = folder.join("counts");
    let mut traced = Traced::start(folder, &counts)?;
    let listening = traced.listening()?;
    control.route(CLIENT.0, listening.inbound, &control.domain.id(SERVER.0), Mode::MutualTls);
    traced.go()?;
    runtime.block_on(eventually("both sidecars to be told everything", || async {
        let told = |name: &str| control.look(|world| world.pods[name].acknowledged.is_some());
        (told(CLIENT.0) && told(SERVER.0)).then_some(())
    }));
    load::put(listening.outbound, Load::Connections, 1).context("the first connection")?;
    load::put(listening.outbound, load, times)?;
    traced.end()?;
    parse(&fs::read_to_string(counts)?)
}

fn told(control: &Server) -> Told {
    let entente::proxy::Control { address, authority } = control.control();
    Told { address, authority }
}

/// Tells the control server of both pods.
fn declare(control: &Arc<Server>, target_port: u16) {
    control.declare(CLIENT.0, CLIENT.0, Some(control.brief(CLIENT.0, vec![])));
    control.declare(SERVER.0, SERVER.0, Some(control.brief(SERVER.0, vec![served(target_port)])));
}

/// Both sidecars under strace; killed when dropped.
struct Traced {
    child: Child,
    log: std::path::PathBuf,
}

impl Traced {
    fn start(folder: &Path, counts: &Path) -> anyhow::Result<Self> {
        let log = folder.join("log");
        let child = Command::new("strace")
            .args(["-f", "-c", "-U", "name,calls,errors", "-o"])
            .arg(counts)
            .arg(std::env::current_exe()?)
            .arg("sidecars")
            .arg(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .context("strace")?;
        Ok(Self { child, log })
    }

    fn listening(&mut self) -> anyhow::Result<Listening> {
        let mut line = String::new();
        BufReader::new(self.child.stdout.as_mut().context("no output")?).read_line(&mut line)?;
        match serde_json::from_str(&line) {
            Ok(listening) => Ok(listening),
            Err(_) => bail!("the sidecars did not start:\n{}", fs::read_to_string(&self.log)?),
        }
    }

    fn go(&mut self) -> anyhow::Result<()> {
        Ok(self.child.stdin.as_mut().context("no input")?.write_all(b"\n")?)
    }

    /// They end when their input does, and so does strace.
    fn end(mut self) -> anyhow::Result<()> {
        self.child.stdin.take();
        let status = self.child.wait()?;
        ensure!(status.success(), "the sidecars ended with {status}:\n{}", fs::read_to_string(&self.log)?);
        Ok(())
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // Its input ends too, which ends the sidecars.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads strace's table: a line of names, a line of dashes, the calls, a line of dashes, the total.
fn parse(table: &str) -> anyhow::Result<Calls> {
    let calls: Calls = table
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (name, calls) = (words.next()?, words.next()?.parse().ok()?);
            // The column is empty where nothing failed.
            let errors = words.next().map_or(Some(0), |errors| errors.parse().ok())?;
            Some((name.to_owned(), Made { calls, errors }))
        })
        .filter(|(name, _)| name != "total")
        .collect();
    ensure!(!calls.is_empty(), "strace counted nothing:\n{table}");
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "syscall              calls    errors\n----------------- --------- ---------\n\
                         recvfrom                120        30\nwrite                    40\n\
                         ----------------- --------- ---------\ntotal                   160        30\n";

    fn made<const N: usize>(calls: [(&str, u64, u64); N]) -> Calls {
        calls.map(|(kind, calls, errors)| (kind.to_owned(), Made { calls, errors })).into()
    }

    #[test]
    fn a_table_is_read_without_its_frame_and_one_without_calls_is_none() {
        assert_eq!(parse(TABLE).unwrap(), made([("recvfrom", 120, 30), ("write", 40, 0)]));
        assert!(parse("syscall calls errors\n------ ----- -----\n").is_err());
    }

    #[test]
    fn what_happens_without_a_load_is_nobodys() {
        let idle = made([("write", 20, 0), ("mmap", 30, 0)]);
        let all = made([("write", 60, 0), ("mmap", 30, 0), ("recvfrom", 10, 5)]);
        let Counted { count, kinds } = each(&all, &idle, Load::Requests, 10);
        assert_eq!((count, kinds), (5.0, [("write".to_owned(), 4.0), ("recvfrom".to_owned(), 1.0)].into()));
    }

    #[test]
    fn of_bytes_only_what_moved_some_is_counted() {
        let all = made([("epoll_wait", 70, 0), ("futex", 5, 5), ("recvfrom", 50, 30), ("write", 20, 0)]);
        assert_eq!(each(&all, &made([]), Load::Up, 10).count, 4.0);
        assert_eq!(each(&all, &made([]), Load::Requests, 10).count, 14.0);
    }
}
