//! What processes use, as the kernel tells it.

use std::{collections::BTreeMap, fs, path::Path};

/// A tick of `/proc/PID/stat`, in seconds: `USER_HZ` is 100 wherever Rust runs on Linux.
const TICK: f64 = 0.01;

/// A process and all below it.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for process in numbers(Path::new("/proc")) {
        if let Some(parent) = stat(process).and_then(|fields| fields.get(1)?.parse().ok()) {
            children.entry(parent).or_default().push(process);
        }
    }
    let mut all = vec![root];
    let mut next = 0;
    while let Some(process) = all.get(next) {
        all.extend(children.get(process).into_iter().flatten());
        next += 1;
    }
    all
}

/// Processor time of processes so far, in seconds.
pub(crate) fn cpu(processes: &[u32]) -> f64 {
    // `schedstat` counts nanoseconds, of threads that live; `stat` counts ticks, of those that ended too (stunnel's). Both
    // are at most the truth, so the larger is the nearer.
    processes.iter().map(|process| scheduled(*process).max(ticks(*process))).sum()
}

fn scheduled(process: u32) -> f64 {
    let tasks = format!("/proc/{process}/task");
    let running = numbers(Path::new(&tasks)).filter_map(|task| {
        fs::read_to_string(format!("{tasks}/{task}/schedstat")).ok()?.split(' ').next()?.parse::<u64>().ok()
    });
    running.sum::<u64>() as f64 / 1e9
}

fn ticks(process: u32) -> f64 {
    // utime and stime are the 14th and 15th field (proc(5)), the state is the third.
    let fields = stat(process).unwrap_or_default();
    let used = fields.iter().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok());
    used.sum::<u64>() as f64 * TICK
}

/// Fields of `/proc/PID/stat` from the state on: the name before it may hold spaces.
fn stat(process: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    Some(text.rsplit(')').next()?.split_whitespace().map(str::to_owned).collect())
}

fn numbers(folder: &Path) -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Proportional set size of processes, in KiB.
pub(crate) fn pss_kib(processes: &[u32]) -> f64 {
    let of = |process: &u32| {
        let text = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
        let line = text.lines().find(|line| line.starts_with("Pss:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    processes.iter().filter_map(of).sum::<u64>() as f64
}

/// Whether a process listens on a TCP port, whichever its namespace.
pub(crate) fn listens(process: u32, port: u16) -> bool {
    let wanted = format!(":{port:04X}");
    ["tcp", "tcp6"].iter().any(|table| {
        let text = fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap_or_default();
        // The local address is the second word, the state the fourth; 0A is LISTEN.
        text.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.get(1).is_some_and(|local| local.ends_with(&wanted)) && words.get(3) == Some(&"0A")
        })
    })
}

/// Processor time of the whole machine, in ticks.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Machine {
    all: f64,
    stolen: f64,
}

impl Machine {
    pub(crate) fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields: Vec<f64> =
            text.lines().next().unwrap_or_default().split_whitespace().filter_map(|field| field.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal; what follows is contained in user (proc(5)).
        Self { all: fields.iter().take(8).sum(), stolen: fields.get(7).copied().unwrap_or_default() }
    }

    /// The share that the hypervisor gave to others since `before`.
    pub(crate) fn stolen_since(self, before: Self) -> f64 {
        (self.stolen - before.stolen) / (self.all - before.all).max(1.0)
    }
}
