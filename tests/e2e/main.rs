//! Promises on a real Kubernetes: the node of `./up node` with the chart installed. `./test cluster` runs them.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod cluster;
mod load;
mod organisation;
mod workloads;

mod audit;
mod changes;
mod chart;
mod endpoint;
mod faults;
mod federation;
mod hijack;
#[cfg(feature = "controller")]
mod issuance;
mod lync;
mod objects;
mod outage;
mod own_ca;
mod own_key;
mod refused;
mod renewal;
mod revocation;
mod rotation;
mod server_tls;
#[cfg(feature = "controller")]
mod sip;
mod talk;
mod tampered;
