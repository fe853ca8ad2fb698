//! What was typed, and what it means: one file a verb.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::telemetry::{self, LogFormat};

/// Declared servers trust each other over mutual TLS on Kubernetes; everyone else is refused.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    /// How log lines are written.
    #[arg(long, global = true, env = "ENTENTE_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    // Verbs of machines, kept out of the short help.
}

/// Runs what the command line asks for. Exit codes: 0 fine, 1 a problem, 2 could not find out, 64 bad usage.
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS };
        }
    };
    telemetry::init(arguments.log_format);
    match arguments.verb {}
}
