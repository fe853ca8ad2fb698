//! What a load counts while it runs, and what it reports.

use std::{io, time::Duration};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Latencies are kept in nanoseconds, up to this many; what took longer counts as this.
const LONGEST: u64 = 60_000_000_000;

/// How many different failures are told in words.
const TOLD: usize = 4;

/// What came of a load.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Outcome {
    /// In the measured time
    pub bytes: u64,
    /// In the measured time
    pub operations: u64,
    /// From the beginning: connections lost, answers that were wrong or came too late
    pub failures: u64,
    /// The measured time
    pub seconds: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    /// The first failures in words
    pub problems: Vec<String>,
}

/// The counters of one thread.
pub(super) struct Tally {
    pub(super) bytes: u64,
    pub(super) operations: u64,
    pub(super) failures: u64,
    latencies: Histogram<u64>,
    problems: Vec<String>,
}

impl Tally {
    pub(super) fn new() -> Self {
        // Bounds that are allowed; and the whole range at once, so that nothing grows while the load runs.
        let latencies = Histogram::new_with_bounds(1, LONGEST, 3).unwrap_or_else(|_| unreachable!("they are allowed"));
        Self { bytes: 0, operations: 0, failures: 0, latencies, problems: Vec::new() }
    }

    /// Counts bytes that moved.
    pub(super) fn moved(&mut self, bytes: usize, measured: bool) {
        self.bytes += if measured { bytes as u64 } else { 0 };
    }

    /// Counts an operation that succeeded.
    pub(super) fn succeeded(&mut self, took: Duration, measured: bool) {
        if measured {
            self.operations += 1;
            self.took(took);
        }
    }

    /// Counts a time, be it of a success or of a request that was given up.
    pub(super) fn took(&mut self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(LONGEST);
        self.latencies.saturating_record(nanoseconds.min(LONGEST));
    }

    /// Counts a failure and keeps its reason if it is among the first.
    pub(super) fn failed(&mut self, what: &str, error: &io::Error) {
        self.failures += 1;
        self.tell(format!("{what}: {error}"));
    }

    fn tell(&mut self, problem: String) {
        if self.problems.len() < TOLD && !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    /// Adds what another thread counted.
    pub(super) fn add(&mut self, other: Self) {
        let Self { bytes, operations, failures, latencies, problems } = other;
        self.bytes += bytes;
        self.operations += operations;
        self.failures += failures;
        // Both hold the same range, so nothing can fall out of it.
        let _ = self.latencies.add(latencies);
        problems.into_iter().for_each(|problem| self.tell(problem));
    }

    /// Adds the failures of what was done beside these requests; its times and bytes are not the requests'.
    pub(super) fn beside(&mut self, other: Self) {
        self.failures += other.failures;
        other.problems.into_iter().for_each(|problem| self.tell(problem));
    }

    /// What is reported of a load that was measured for so long.
    pub(super) fn outcome(self, seconds: f64) -> Outcome {
        let microseconds = |quantile| self.latencies.value_at_quantile(quantile) as f64 / 1000.0;
        Outcome {
            bytes: self.bytes,
            operations: self.operations,
            failures: self.failures,
            seconds,
            p50_us: microseconds(0.5),
            p90_us: microseconds(0.9),
            p99_us: microseconds(0.99),
            p999_us: microseconds(0.999),
            max_us: self.latencies.max() as f64 / 1000.0,
            problems: self.problems,
        }
    }
}
