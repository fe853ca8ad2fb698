//! The program `peers`: parse, run, exit code; nothing else.
#![forbid(unsafe_code)]

mod load;
mod report;
mod stats;

use clap::Parser;

/// Entente's sidecar beside other proxies, under the same loads.
#[derive(Parser)]
#[command(version)]
enum Command {
    /// Answer every load on one port, until killed
    Serve(load::Serve),
    /// Put one load on an address and print what came of it as a line of JSON
    Drive(load::Drive),
    /// Write table and pictures from samples into a Markdown file
    Report(report::Report),
}

fn main() -> anyhow::Result<()> {
    match Command::parse() {
        Command::Serve(serve) => serve.run(),
        Command::Drive(drive) => drive.run(),
        Command::Report(report) => report.run(),
    }
}
