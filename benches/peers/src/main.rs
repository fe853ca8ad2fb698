//! The program `peers`: parse, run, exit code; nothing else.
#![forbid(unsafe_code)]

mod block;
mod facts;
mod gate;
mod load;
mod measure;
mod network;
mod options;
mod outer;
mod pair;
mod peer;
mod process;
mod report;
mod run;
mod stats;
#[path = "../../../tests/support/mod.rs"]
#[allow(clippy::unwrap_used, clippy::panic, reason = "the tests' own: they fail by panicking")]
mod support;
mod trust;

use clap::Parser;

/// Entente's sidecar beside other proxies, under the same loads.
#[derive(Parser)]
#[command(version)]
enum Command {
    /// Measure all peers, in namespaces that end with it
    Run(options::Options),
    /// Answer every load on one port, until killed
    Serve(load::Serve),
    /// Put one load on an address and print what came of it as a line of JSON
    Drive(load::Drive),
    /// Write table and pictures from samples into a Markdown file
    Report(report::Report),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Run(options) => outer::run(options),
        Command::Serve(serve) => serve.run(),
        Command::Drive(drive) => drive.run(),
        Command::Report(report) => report.run(),
    }
}
