//! The sidecar in network namespaces: the real rules, the real binary, a capture on the wire. Needs root and fails
//! without it; everything it makes lives in namespaces that end with each test.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "a test tells its figures")]

mod bypass;
mod capture;
mod clock;
mod crowds;
mod dns;
mod federation;
mod foreign;
mod keys;
mod limits;
mod pods;
mod roles;
#[path = "../support/mod.rs"]
mod support;
mod wire;
