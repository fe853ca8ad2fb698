//! Promises that need no cluster.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod architecture;
#[cfg(feature = "controller")]
mod convergence;
#[cfg(feature = "controller")]
mod crds;
#[cfg(feature = "controller")]
mod examples;
mod proxy;
#[path = "../support/mod.rs"]
mod support;
