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
struct Arguments<V: Subcommand> {
    /// How log lines are written.
    #[arg(long, global = true, env = "ENTENTE_LOG_FORMAT", value_enum, default_value = "text")]
    log_format: LogFormat,
    #[command(subcommand)]
    verb: V,
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

/// The verbs of `entente-proxy`.
#[derive(Debug, Subcommand)]
enum ProxyVerb {
    /// Run the sidecar (the injected pod does).
    Proxy(proxy::Arguments),
}

/// The program `entente`. Exit codes: 0 fine, 1 a problem, 2 could not find out, 64 bad usage.
pub fn run() -> ExitCode {
    let verb = match understood() {
        Ok(verb) => verb,
        Err(code) => return code,
    };
    let outcome = match verb {
        #[cfg(feature = "controller")]
        Verb::Controller(arguments) => controller::run(arguments),
        #[cfg(feature = "controller")]
        Verb::Crds(arguments) => crds::run(&arguments),
        #[cfg(feature = "controller")]
        Verb::Audit(arguments) => return audit::run(&arguments),
        Verb::Proxy(arguments) => proxy::become_small().and_then(|()| proxy::run(arguments)),
        Verb::Intercept(arguments) => intercept::run(&arguments),
    };
    told(outcome)
}

/// The program `entente-proxy`; exit codes are those of [`run`].
pub fn run_proxy() -> ExitCode {
    match understood() {
        Ok(ProxyVerb::Proxy(arguments)) => told(proxy::run(arguments)),
        Err(code) => code,
    }
}

/// What the command line asks for; from here on log lines are written as it wishes.
fn understood<V: Subcommand>() -> Result<V, ExitCode> {
    let arguments = Arguments::try_parse().map_err(|error| {
        let _ = error.print();
        if error.use_stderr() { ExitCode::from(64) } else { ExitCode::SUCCESS }
    })?;
    telemetry::init(arguments.log_format);
    Ok(arguments.verb)
}

fn told(outcome: anyhow::Result<()>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tracing::error!("{failure:#}");
            ExitCode::from(1)
        }
    }
}
