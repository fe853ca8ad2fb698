//! The program `gate`: parse, run, exit code; nothing else.
#![forbid(unsafe_code)]

mod baseline;
mod calls;
mod count;
mod instructions;
mod load;
mod processor;
mod sidecars;
#[path = "../../../tests/support/mod.rs"]
#[allow(clippy::unwrap_used, clippy::panic, reason = "the tests' own: they fail by panicking")]
mod support;
mod work;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

/// What fixed work costs in instructions and system calls, against what is stored.
#[derive(Parser)]
#[command(version)]
enum Command {
    /// Count everything and compare
    Count(count::Options),
    /// Do some work in memory: what is counted in instructions
    Work {
        /// What is done
        name: work::Name,
        /// How often
        times: usize,
    },
    /// Print which instructions the processor shows
    Processor,
    /// Run two sidecars on loopback until the input ends: what is counted in system calls
    Sidecars {
        /// Where everything that they are told lies
        folder: PathBuf,
    },
}

fn main() -> anyhow::Result<ExitCode> {
    match Command::parse() {
        Command::Count(options) => return count::count(&options),
        Command::Work { name, times } => work::work(name, times)?,
        Command::Processor => println!("{}", processor::shown()),
        Command::Sidecars { folder } => sidecars::run(&folder)?,
    }
    Ok(ExitCode::SUCCESS)
}
