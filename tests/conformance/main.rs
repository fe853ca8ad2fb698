//! What Entente signs, read by others (two linters, OpenSSL), and what others signed, read by us: authorities that
//! OpenSSL made, the chains of BetterTLS, bundle endpoints of go-spiffe. `./test conformance` installs the programs;
//! without them the tests fail.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod bettertls;
mod linted;
mod made;
mod own_ca;
mod refused;
#[cfg(feature = "controller")]
mod spiffe;
mod tools;
mod verified;
