//! The sidecar on loopback: real sockets, real certificates, a control server in the test.

mod calls;
mod changes;
mod channel;
mod dns;
mod edges;
mod ends;
mod expiry;
mod federation;
mod harness;
mod lifecycle;
// Only our own record layer has frames.
#[cfg(not(feature = "rustls-records"))]
mod muxes;
mod partners;
mod probes;
mod refusals;
mod revocation;
mod scale;
#[cfg(not(feature = "rustls-records"))]
mod two;
mod views;
