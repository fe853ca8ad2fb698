//! When a load runs, and from when on it counts.

use std::time::{Duration, Instant};

/// The warm-up and the measured time of a load.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub(super) counts: Instant,
    pub(super) ends: Instant,
}

impl Window {
    /// A window that begins now.
    pub(super) fn new(warmup: f64, seconds: f64) -> Self {
        let counts = Instant::now() + duration(warmup);
        Self { counts, ends: counts + duration(seconds) }
    }

    /// Whether what happens at this time is measured.
    pub(super) fn holds(&self, at: Instant) -> bool {
        self.counts <= at && at < self.ends
    }
}

fn duration(seconds: f64) -> Duration {
    // What no duration can be (negative, endless) is none.
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
