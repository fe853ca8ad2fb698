//! Promises that need no cluster.

mod architecture;
#[cfg(feature = "controller")]
mod convergence;
#[cfg(feature = "controller")]
mod crds;
