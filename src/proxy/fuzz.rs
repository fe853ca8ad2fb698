//! Entrances for the targets in `fuzz/`: each makes of arbitrary bytes what a peer may do, and asserts what must hold
//! whatever that is. In no product; the unit tests go through them as well, so that they cannot rot.

mod input;
mod seeds;

pub(in crate::proxy) use self::input::{Input, Splits, pattern};
pub use self::seeds::{TARGETS, seeds};
pub use super::{
    records::fuzz::records,
    relay::{fuzz::tunnel, mux_fuzz::mux},
    tls::fuzz::handshake,
};

#[cfg(test)]
mod tests;
