//! Logs, and the one place where the shell reads the clock and the dice.

use std::io::IsTerminal;

use jiff::Timestamp;
use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// The wall clock.
#[allow(clippy::disallowed_methods, reason = "the one place that reads the clock")]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Fills an array from the operating system's randomness.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The provider's generator fails only where the kernel gives no randomness; nothing safe can be done then.
    aws_lc_rs::default_provider().secure_random.fill(&mut bytes).expect("the kernel gives randomness");
    bytes
}

/// A number in `0.0..1.0`, for jitter.
pub fn jitter() -> f64 {
    f64::from(u32::from_be_bytes(random())) / (f64::from(u32::MAX) + 1.0)
}

/// The one crypto provider: AWS-LC, with the groups that `proxy.md` names, in its order.
pub fn crypto() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Starts logging to standard error, INFO and above.
pub fn init(format: LogFormat) {
    let colours = std::io::stderr().is_terminal();
    let builder =
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(colours).with_max_level(tracing::Level::INFO);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
