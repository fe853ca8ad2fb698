//! Entente: declared servers trust each other over mutual TLS, everyone else is refused.
//!
//! Two flows run through the modules below, in the order of reading:
//!
//! - `object → topology → plan → apply`: what was declared becomes certificates' names, bundles, conditions, briefs;
//! - `CSR → certificate → brief → proxy`: a pod proves itself, receives a leaf, is told whom to admit, and enforces it.
//!
//! They touch in two small files, [`identity`] and [`brief`]. The first group of modules is the core: plain functions
//! over values. The second is the shell: it moves bytes and decides nothing. `tests/integration/architecture.rs` holds
//! both the directions between modules and the purity of the core.

// The core.
pub mod identity;
pub mod refusal;

pub mod brief;
pub mod pki;
pub mod sidecar;

#[cfg(feature = "controller")]
pub mod api;
#[cfg(feature = "controller")]
pub mod plan;
#[cfg(feature = "controller")]
pub mod topology;

// The shell.
#[cfg(feature = "controller")]
pub mod controller;
pub mod proxy;

pub mod cli;
pub mod handshakes;
pub mod mounted;
pub mod telemetry;
