//! One peer in one block: started fresh, measured, ended.

use anyhow::ensure;

use crate::{
    load::{Load, Outcome},
    measure::{self, Used},
    options::Options,
    pair::{Laboratory, Pair},
    peer::Peer,
};

/// Connections of `bulk`.
const BULK: usize = 8;
/// Connections of `requests` and `paced`, workers of `connects`.
const MANY: usize = 32;
/// How many connections are held, and held after that.
const HELD: [usize; 2] = [2_000, 4_000];

/// A kind of load: what `--only` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    BulkUp,
    BulkDown,
    Requests,
    Single,
    Connects,
    Handshakes,
    Paced,
    Storm,
    Idle,
    Calls,
}

/// A figure and its name.
pub(crate) type Figure = (&'static str, f64);

/// Everything of one peer that lasts as long as a block: the figures that could be taken, and why others could not.
pub(crate) async fn run(
    laboratory: &Laboratory,
    peer: Peer,
    rate: u32,
    options: &Options,
) -> anyhow::Result<(Vec<Figure>, Vec<String>)> {
    let (mut figures, mut problems) = (vec![], vec![]);
    let mut keep = |part: Part, taken: anyhow::Result<Vec<Figure>>| match taken {
        Ok(taken) => figures.extend(taken),
        Err(error) => problems.push(format!("{} {part:?}: {error:#}", peer.name())),
    };
    if options.does(Part::Idle)
        && peer != Peer::Direct
        && let Some(pair) = laboratory.pair(peer).await?
    {
        keep(Part::Idle, idle(&pair).await);
        pair.end().await;
    }
    let mut pair = laboratory.pair(peer).await?;
    for part in [Part::BulkUp, Part::BulkDown, Part::Requests, Part::Single, Part::Connects, Part::Paced, Part::Storm] {
        if !options.does(part) {
            continue;
        }
        keep(part, timed(part, rate, options, pair.as_ref()).await);
        if let Some(pair) = &mut pair {
            pair.must_run()?;
        }
    }
    if let Some(pair) = pair {
        pair.end().await;
    }
    if options.does(Part::Handshakes) && peer != Peer::Direct {
        laboratory.shares(false);
        let pair = laboratory.pair(peer).await?;
        keep(Part::Handshakes, timed(Part::Handshakes, rate, options, pair.as_ref()).await);
        if let Some(pair) = pair {
            pair.end().await;
        }
        laboratory.shares(true);
    }
    Ok((figures, problems))
}

/// Closed-loop requests for a moment: how many a peer can answer at most.
pub(crate) async fn saturation(options: &Options) -> anyhow::Result<f64> {
    let (seconds, warmup) = (options.seconds.min(1.0), options.warmup);
    let outcome = measure::drive(&Load::Requests { connections: MANY, seconds, warmup }).await?;
    Ok(per_second(&outcome))
}

async fn timed(part: Part, rate: u32, options: &Options, pair: Option<&Pair>) -> anyhow::Result<Vec<Figure>> {
    let (seconds, warmup) = (options.seconds, options.warmup);
    let load = match part {
        Part::BulkUp | Part::BulkDown => Load::Bulk { up: part == Part::BulkUp, connections: BULK, seconds, warmup },
        Part::Requests => Load::Requests { connections: MANY, seconds, warmup },
        Part::Single => Load::Requests { connections: 1, seconds, warmup },
        Part::Connects | Part::Handshakes => Load::Connects { workers: MANY, seconds, warmup },
        Part::Paced => Load::Paced { rate, connections: MANY, size: 1024, seconds, warmup },
        Part::Storm => {
            Load::Storm { rate: storm_rate(rate), connections: MANY, size: 1024, workers: MANY, seconds, warmup }
        }
        Part::Idle | Part::Calls => return Ok(vec![]),
    };
    let (outcome, used) = measure::drive_counted(&load, seconds, warmup, pair).await?;
    ensure!(outcome.failures * 1000 <= outcome.operations + 1, "{} failures: {:?}", outcome.failures, outcome.problems);
    let cost = pair.map(|_| used);
    Ok(match part {
        Part::BulkUp => bulk(&outcome, cost, UP),
        Part::BulkDown => bulk(&outcome, cost, DOWN),
        Part::Requests => {
            let mut figures = vec![
                ("requests_per_s", per_second(&outcome)),
                ("requests_p50_us", outcome.p50_us),
                ("requests_p99_us", outcome.p99_us),
            ];
            figures.extend(cost.map(|used| ("request_cpu_us", each(used, &outcome))));
            figures
        }
        Part::Single => vec![("single_p50_us", outcome.p50_us)],
        Part::Connects => counted(&outcome, cost, ["connects_per_s", "connect_cpu_us"]),
        Part::Handshakes => counted(&outcome, cost, ["handshakes_per_s", "handshake_cpu_us"]),
        Part::Paced => vec![("paced_p50_us", outcome.p50_us), ("paced_p99_us", outcome.p99_us)],
        Part::Storm => vec![("storm_p99_us", outcome.p99_us)],
        Part::Idle | Part::Calls => vec![],
    })
}

/// What is asked for while connections storm in: little enough that nobody is asked for more than it has.
fn storm_rate(rate: u32) -> u32 {
    (rate / 4).clamp(100, 1_000)
}

/// Names of the figures of a direction: throughput, processor time of both, of A, of B.
const UP: [&str; 4] = ["bulk_up_gbps", "bulk_up_cpu_s_per_gb", "bulk_up_cpu_s_per_gb_a", "bulk_up_cpu_s_per_gb_b"];
const DOWN: [&str; 4] =
    ["bulk_down_gbps", "bulk_down_cpu_s_per_gb", "bulk_down_cpu_s_per_gb_a", "bulk_down_cpu_s_per_gb_b"];

fn bulk(outcome: &Outcome, used: Option<Used>, names: [&'static str; 4]) -> Vec<Figure> {
    let bytes = outcome.bytes as f64 / outcome.seconds;
    let mut figures = vec![(names[0], bytes * 8.0 / 1e9)];
    if let Some(Used { a, b }) = used {
        let gigabytes = bytes / 1e9;
        figures.extend([(names[1], (a + b) / gigabytes), (names[2], a / gigabytes), (names[3], b / gigabytes)]);
    }
    figures
}

/// How many there were in a second, and what one cost A and B.
fn counted(outcome: &Outcome, used: Option<Used>, names: [&'static str; 2]) -> Vec<Figure> {
    let cost = used.map(|used| (names[1], each(used, outcome)));
    [(names[0], per_second(outcome))].into_iter().chain(cost).collect()
}

/// Microseconds of processor time that A and B used for one operation.
fn each(used: Used, outcome: &Outcome) -> f64 {
    (used.a + used.b) / per_second(outcome) * 1e6
}

fn per_second(outcome: &Outcome) -> f64 {
    outcome.operations as f64 / outcome.seconds
}

/// Memory before any load, and what a connection adds to it: the slope between none and the most that were held.
async fn idle(pair: &Pair) -> anyhow::Result<Vec<Figure>> {
    let base = measure::pss(pair);
    let (mut held, mut memory) = (0, base);
    for connections in HELD {
        let (used, open) = measure::held(pair, connections).await?;
        ensure!(open * 100 >= connections * 99, "{open} of {connections} connections are open");
        (held, memory) = (open, used);
    }
    Ok(vec![("idle_pss_kib", base), ("idle_kib_per_connection", (memory - base) / held as f64)])
}

/// Bytes in each direction for the count of system calls.
const COUNTED_BYTES: u64 = 128 << 20;
/// Requests for the count of system calls.
const COUNTED_REQUESTS: u64 = 2_000;

/// System calls for fixed work, and the tables that tell which.
pub(crate) async fn calls(laboratory: &Laboratory, peer: Peer) -> anyhow::Result<(Vec<Figure>, String)> {
    let Some(pair) = laboratory.pair(peer).await? else { return Ok((vec![], String::new())) };
    let bytes = Load::Fixed { bytes_up: COUNTED_BYTES, bytes_down: COUNTED_BYTES, requests: 0, connects: 0 };
    let requests = Load::Fixed { bytes_up: 0, bytes_down: 0, requests: COUNTED_REQUESTS, connects: 0 };
    let (for_bytes, table, outcome) = measure::system_calls(&pair, &bytes).await?;
    ensure!(outcome.failures == 0, "{} failures of the bytes", outcome.failures);
    let (for_requests, second, outcome) = measure::system_calls(&pair, &requests).await?;
    ensure!(outcome.failures == 0, "{} failures of the requests", outcome.failures);
    pair.end().await;
    let gigabytes = 2.0 * COUNTED_BYTES as f64 / 1e9;
    let figures = vec![
        ("syscalls_per_gb", for_bytes / gigabytes),
        ("syscalls_per_request", for_requests / COUNTED_REQUESTS as f64),
    ];
    Ok((figures, format!("{} MiB up, then down\n{table}\n{COUNTED_REQUESTS} requests\n{second}", COUNTED_BYTES >> 20)))
}
