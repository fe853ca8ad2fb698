//! What is asked of a run.

use std::path::PathBuf;

use crate::{block::Part, peer::Peer};

/// Measure the peers against each other.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// How often everything is measured; each time in another order
    #[arg(long, default_value_t = 7)]
    pub(crate) blocks: usize,
    /// How long each load is measured
    #[arg(long, default_value_t = 1.0)]
    pub(crate) seconds: f64,
    /// How long it runs before that
    #[arg(long, default_value_t = 0.4)]
    pub(crate) warmup: f64,
    /// Only these loads
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Only these peers
    #[arg(long, value_delimiter = ',', default_values = ["direct", "entente", "envoy", "haproxy", "nginx", "stunnel"])]
    pub(crate) peers: Vec<Peer>,
    /// A trial of two minutes: two short blocks
    #[arg(long)]
    quick: bool,
    /// Decides the orders
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Where the results go
    #[arg(long)]
    pub(crate) output: PathBuf,
    /// The program `entente`
    #[arg(long)]
    pub(crate) entente: PathBuf,
    /// The program `envoy`
    #[arg(long)]
    pub(crate) envoy: PathBuf,
}

impl Options {
    /// The options with what a trial shortens.
    pub(crate) fn settled(mut self) -> Self {
        if self.quick {
            (self.blocks, self.seconds, self.warmup) = (2, 0.4, 0.2);
        }
        self
    }

    /// Whether this load is asked for.
    pub(crate) fn does(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}
