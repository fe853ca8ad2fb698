//! What Entente signs, read by others: two linters, OpenSSL's own path building, and authorities that OpenSSL made.
//! `./test conformance` installs the linters; without them the tests fail.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod linted;
mod made;
mod own_ca;
mod tools;
mod verified;
