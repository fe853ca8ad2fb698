//! What was typed, and what it means: one file a verb.

#[cfg(feature = "controller")]
mod audit;
#[cfg(feature = "controller")]
mod controller;
#[cfg(feature = "controller")]
mod crds;
mod intercept;
mod proxy;

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
    /// Run one replica of the control plane (the chart does).
    #[cfg(feature = "controller")]
    Controller(controller::Controller),
    /// Print the CustomResourceDefinitions of this version.
    #[cfg(feature = "controller")]
    Crds(crds::Crds),
    /// Check that every certificate in use is in a ledger, and every ledger entry explained.
    #[cfg(feature = "controller")]
    Audit(audit::Audit),
    /// Run the sidecar (the injected pod does).
    #[command(hide = true)]
    Proxy(proxy::Arguments),
    /// Load and prove the interception rules (the injected init container does).
    #[command(hide = true)]
    Intercept(intercept::Arguments),
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
    let outcome = match arguments.verb {
        #[cfg(feature = "controller")]
        Verb::Controller(arguments) => controller::run(arguments),
        #[cfg(feature = "controller")]
        Verb::Crds(arguments) => crds::run(&arguments),
        #[cfg(feature = "controller")]
        Verb::Audit(arguments) => return audit::run(&arguments),
        Verb::Proxy(arguments) => proxy::run(arguments),
        Verb::Intercept(arguments) => intercept::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure:#}");
            ExitCode::from(1)
        }
    }
}
