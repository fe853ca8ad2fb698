//! What may be said of figures that were taken in blocks: medians, ratios, and how far chance may have moved them.
//!
//! Every peer is measured once in each block. What disturbs a block disturbs all of its peers, so it is the ratios
//! within blocks that are compared, never the figures of different blocks.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};

/// The bare path from client to server: a reference, and no peer.
pub const DIRECT: &str = "direct";

/// Whom it is all about.
pub const OURS: &str = "entente";

/// Resamples of a bootstrap.
const RESAMPLES: usize = 10_000;

/// With fewer values, the middle of what they come from lies outside of all of them more than once in 20 times (2 · 2⁻ⁿ):
/// no interval of 95 % can be drawn from them.
const FEWEST: usize = 6;

/// One figure of one peer in one block.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub block: usize,
    pub peer: String,
    pub metric: String,
    pub value: f64,
}

/// Which figures are the good ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Better {
    Higher,
    Lower,
}

/// A median, and where it lies with 95 % certainty; no range where there are too few values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    pub middle: f64,
    pub range: Option<(f64, f64)>,
}

/// How we stand beside a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Ahead,
    Behind,
    /// The range includes 1, or there is none
    Undecided,
}

/// The figures of one peer, by block.
pub type Blocks = BTreeMap<usize, f64>;

/// All figures, by metric and peer.
#[derive(Debug, Default)]
pub struct Samples(BTreeMap<String, BTreeMap<String, Blocks>>);

impl Samples {
    /// Reads lines of `block,peer,metric,value` below a line that says so.
    pub fn parse(csv: &str) -> anyhow::Result<Self> {
        let mut lines = csv.lines();
        ensure!(lines.next() == Some("block,peer,metric,value"), "the first line must be block,peer,metric,value");
        let mut samples = Self::default();
        for (number, line) in lines.enumerate() {
            let sample = sample(line).with_context(|| format!("line {}: {line}", number + 2))?;
            samples.add(sample).with_context(|| format!("line {}", number + 2))?;
        }
        Ok(samples)
    }

    fn add(&mut self, Sample { block, peer, metric, value }: Sample) -> anyhow::Result<()> {
        let what = format!("{metric} of {peer} stands twice in block {block}");
        let before = self.0.entry(metric).or_default().entry(peer).or_default().insert(block, value);
        ensure!(before.is_none(), what);
        Ok(())
    }

    /// The figures of one peer, if it has any.
    pub fn of(&self, metric: &str, peer: &str) -> Option<&Blocks> {
        self.0.get(metric)?.get(peer)
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> usize {
        let blocks: BTreeSet<_> = self.0.values().flat_map(BTreeMap::values).flat_map(BTreeMap::keys).collect();
        blocks.len()
    }

    /// The median of one peer, and its range.
    pub fn estimate(&self, metric: &str, peer: &str) -> Option<Estimate> {
        let values: Vec<f64> = self.of(metric, peer)?.values().copied().collect();
        estimate(&values)
    }

    /// The peer with the best median, we and the bare path aside.
    pub fn best(&self, metric: &str, better: Better) -> Option<&str> {
        let medians = self.0.get(metric)?.iter().filter(|(peer, _)| *peer != DIRECT && *peer != OURS);
        let medians = medians.filter_map(|(peer, blocks)| Some((median(blocks.values().copied().collect())?, peer)));
        let best = match better {
            Better::Higher => medians.max_by(|(a, _), (b, _)| a.total_cmp(b)),
            Better::Lower => medians.min_by(|(a, _), (b, _)| a.total_cmp(b)),
        };
        best.map(|(_, peer)| peer.as_str())
    }

    /// Our figures over a peer's: the median of the ratios within blocks, and its range.
    pub fn ratio(&self, metric: &str, peer: &str) -> Option<Estimate> {
        ratio(self.of(metric, OURS)?, self.of(metric, peer)?)
    }
}

fn sample(line: &str) -> anyhow::Result<Sample> {
    let mut fields = line.split(',');
    let mut next = |what| fields.next().with_context(|| format!("no {what}"));
    let (block, peer, metric, value) = (next("block")?, next("peer")?, next("metric")?, next("value")?);
    ensure!(fields.next().is_none(), "more than four fields");
    let value: f64 = value.parse()?;
    ensure!(value.is_finite(), "not a number that can be compared");
    Ok(Sample { block: block.parse()?, peer: peer.to_owned(), metric: metric.to_owned(), value })
}

/// The median of the ratios of blocks that both have, in which both are above zero.
fn ratio(ours: &Blocks, theirs: &Blocks) -> Option<Estimate> {
    let both = ours.iter().filter_map(|(block, ours)| Some((*ours, *theirs.get(block)?)));
    // Of logarithms, so that twice as much and half as much are equally far from the same.
    let logs: Vec<f64> =
        both.filter(|(a, b)| *a > 0.0 && *b > 0.0).map(|(ours, theirs)| (ours / theirs).ln()).collect();
    let Estimate { middle, range } = estimate(&logs)?;
    Some(Estimate { middle: middle.exp(), range: range.map(|(low, high)| (low.exp(), high.exp())) })
}

/// The median, and the 95 % of the medians of resamples that lie in the middle.
fn estimate(values: &[f64]) -> Option<Estimate> {
    let middle = median(values.to_vec())?;
    if values.len() < FEWEST {
        return Some(Estimate { middle, range: None });
    }
    let mut dice = Dice(0x0e17_e27e);
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .filter_map(|_| median(values.iter().map(|_| values[dice.below(values.len())]).collect()))
        .collect();
    medians.sort_by(f64::total_cmp);
    let tail = RESAMPLES / 40;
    Some(Estimate { middle, range: Some((medians[tail], medians[RESAMPLES - 1 - tail])) })
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[half]),
        _ => Some(f64::midpoint(values[half - 1], values[half])),
    }
}

impl Estimate {
    /// How we stand, if this is our ratio: decided only where the range excludes 1.
    pub fn standing(&self, better: Better) -> Standing {
        match (self.range, better) {
            (Some((low, _)), Better::Higher) if low > 1.0 => Standing::Ahead,
            (Some((_, high)), Better::Lower) if high < 1.0 => Standing::Ahead,
            (Some((_, high)), Better::Higher) if high < 1.0 => Standing::Behind,
            (Some((low, _)), Better::Lower) if low > 1.0 => Standing::Behind,
            _ => Standing::Undecided,
        }
    }
}

/// Numbers that look random and are the same each time (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    /// One of the numbers below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        // The bias of a remainder by a few dozen is far below anything seen here.
        (mixed % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests;
