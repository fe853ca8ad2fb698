//! A whole run: gate, rate, blocks, counts, results.

use std::{fmt::Write as _, fs, time::Instant};

use anyhow::{Context, ensure};

use crate::{
    block::{self, Part},
    facts, gate, measure,
    options::Options,
    pair::Laboratory,
    peer::Peer,
    process::Machine,
    report::Fact,
    stats::{Dice, Sample},
};

/// A block during which the hypervisor gave others more than this is dropped.
const MOST_STOLEN: f64 = 0.02;
/// What has no proxies, and should be steady: how much it is not is told. No block is dropped for it, since what is
/// compared was measured within one block.
const STEADY: [&str; 3] = ["bulk_up_gbps", "bulk_down_gbps", "requests_per_s"];

/// Runs everything in the namespaces that this process was started in.
pub(crate) async fn run(options: &Options) -> anyhow::Result<()> {
    fs::create_dir_all(&options.output)?;
    let mut told = Told { began: Instant::now(), notes: vec![] };
    let laboratory = Laboratory::new(&options.entente, &options.envoy).await?;
    let mut facts = facts::gather(options, &laboratory).await;
    let peers = passed(&laboratory, options, &mut told).await?;
    ensure!(!peers.is_empty(), "nobody passed");
    let server = measure::serve().await?;
    let rate = rate(&laboratory, &peers, options, &mut told).await?;
    let mut samples = vec![];
    let mut stolen = vec![];
    for number in 0..options.blocks {
        let before = Machine::now();
        for peer in order(&peers, options.seed, number) {
            told.say(&format!("block {} of {}: {}", number + 1, options.blocks, peer.name()));
            match block::run(&laboratory, peer, rate, options).await {
                Ok((figures, problems)) => {
                    told.say(&summary(&figures));
                    samples.extend(figures.into_iter().map(|figure| sample(number, peer, figure)));
                    problems.into_iter().for_each(|problem| told.note(format!("block {}: {problem}", number + 1)));
                }
                Err(error) => told.note(format!("block {}: {}: {error:#}", number + 1, peer.name())),
            }
        }
        stolen.push(Machine::now().stolen_since(before));
    }
    fs::write(options.output.join("samples-all.csv"), csv(&samples))?;
    let dropped = dropped(&stolen, &mut told);
    samples.retain(|sample| !dropped.contains(&sample.block));
    if options.does(Part::Calls) {
        count(&laboratory, &peers, options, &mut samples, &mut told).await?;
    }
    measure::end(server).await;
    fs::write(options.output.join("samples.csv"), csv(&samples))?;
    let off = format!("up to {:.0} % off its median in one block", drift(&samples) * 100.0);
    facts.push(Fact { name: "direct path".to_owned(), value: off });
    facts.push(Fact { name: "paced rate".to_owned(), value: format!("{rate}/s") });
    fs::write(options.output.join("facts.json"), serde_json::to_string_pretty(&facts)?)?;
    fs::write(options.output.join("notes.txt"), told.notes.join("\n") + "\n")?;
    told.say(&format!("results are in {}", options.output.display()));
    Ok(())
}

/// What is said while it runs, and what is kept of it.
struct Told {
    began: Instant,
    notes: Vec<String>,
}

impl Told {
    fn say(&self, text: &str) {
        eprintln!("[{:4}s] {text}", self.began.elapsed().as_secs());
    }

    fn note(&mut self, text: String) {
        self.say(&text);
        self.notes.push(text);
    }
}

/// The peers that passed the gate; what failed is noted.
async fn passed(laboratory: &Laboratory, options: &Options, told: &mut Told) -> anyhow::Result<Vec<Peer>> {
    let mut passed = vec![];
    let mut text = String::new();
    for peer in Peer::ALL.into_iter().filter(|peer| options.peers.contains(peer)) {
        let checks = match gate::pass(laboratory, peer).await {
            Ok(checks) => checks,
            Err(error) => {
                told.note(format!("{} is not timed: {error:#}", peer.name()));
                continue;
            }
        };
        let mut good = true;
        for gate::Check { name, result } in checks {
            let outcome = result.as_ref().err().map_or("passed", String::as_str);
            writeln!(text, "{}: {name}: {outcome}", peer.name())?;
            if let Err(error) = result {
                good = false;
                told.note(format!("{}: {name}: {error}", peer.name()));
            }
        }
        if good {
            told.say(&format!("{} passes the gate", peer.name()));
            passed.push(peer);
        } else {
            told.note(format!("{} is not timed", peer.name()));
        }
    }
    fs::write(options.output.join("gate.txt"), text)?;
    Ok(passed)
}

/// Requests in a second for `paced`: half of what the slowest peer can do at most.
async fn rate(laboratory: &Laboratory, peers: &[Peer], options: &Options, told: &mut Told) -> anyhow::Result<u32> {
    let mut slowest = f64::INFINITY;
    for peer in peers {
        let pair = laboratory.pair(*peer).await?;
        let most = block::saturation(options).await.with_context(|| peer.name().to_owned())?;
        if let Some(pair) = pair {
            pair.end().await;
        }
        told.say(&format!("{} answers {most:.0} requests/s at most", peer.name()));
        slowest = slowest.min(most);
    }
    // In steps of a hundred, so that runs on one machine have the same.
    let rate = ((slowest * 0.5 / 100.0).floor() * 100.0).clamp(100.0, 20_000.0) as u32;
    told.say(&format!("paced at {rate} requests/s"));
    Ok(rate)
}

/// Peers in an order that the seed and the block's number decide (Fisher and Yates).
fn order(peers: &[Peer], seed: u64, block: usize) -> Vec<Peer> {
    let mut peers = peers.to_vec();
    // Neighbouring blocks begin far apart.
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ block as u64);
    for at in (1..peers.len()).rev() {
        peers.swap(at, dice.below(at + 1));
    }
    peers
}

fn sample(block: usize, peer: Peer, (metric, value): block::Figure) -> Sample {
    Sample { block, peer: peer.name().to_owned(), metric: metric.to_owned(), value }
}

fn summary(figures: &[block::Figure]) -> String {
    figures.iter().filter(|(name, _)| !name.ends_with("_a") && !name.ends_with("_b")).fold(
        String::new(),
        |mut text, (name, value)| {
            let _ = write!(text, "{name} {value:.*}  ", if *value < 100.0 { 2 } else { 0 });
            text
        },
    )
}

fn csv(samples: &[Sample]) -> String {
    samples.iter().fold("block,peer,metric,value\n".to_owned(), |mut text, sample| {
        let Sample { block, peer, metric, value } = sample;
        let _ = writeln!(text, "{block},{peer},{metric},{value}");
        text
    })
}

/// Blocks during which the machine was not ours.
fn dropped(stolen: &[f64], told: &mut Told) -> Vec<usize> {
    let mut dropped = vec![];
    for (block, stolen) in stolen.iter().enumerate().filter(|(_, stolen)| **stolen > MOST_STOLEN) {
        told.note(format!("block {} is dropped: {:.1} % stolen", block + 1, stolen * 100.0));
        dropped.push(block);
    }
    dropped
}

/// How far the bare path was off its median at most, in one block.
fn drift(samples: &[Sample]) -> f64 {
    let of = |metric: &str| {
        let direct = samples.iter().filter(|sample| sample.peer == Peer::Direct.name() && sample.metric == metric);
        let mut values: Vec<f64> = direct.map(|sample| sample.value).collect();
        values.sort_by(f64::total_cmp);
        let median = values.get(values.len() / 2).copied().unwrap_or(1.0);
        values.into_iter().map(|value| (value / median - 1.0).abs()).fold(0.0, f64::max)
    };
    STEADY.into_iter().map(of).fold(0.0, f64::max)
}

/// System calls of each peer, once.
async fn count(
    laboratory: &Laboratory,
    peers: &[Peer],
    options: &Options,
    samples: &mut Vec<Sample>,
    told: &mut Told,
) -> anyhow::Result<()> {
    for peer in peers.iter().filter(|peer| **peer != Peer::Direct) {
        match block::calls(laboratory, *peer).await {
            Ok((figures, table)) => {
                told.say(&format!("{}: {}", peer.name(), summary(&figures)));
                fs::write(options.output.join(format!("calls-{}.txt", peer.name())), table)?;
                samples.extend(figures.into_iter().map(|figure| sample(0, *peer, figure)));
            }
            Err(error) => told.note(format!("{}: system calls: {error:#}", peer.name())),
        }
    }
    Ok(())
}
