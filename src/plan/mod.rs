//! From topology and observation to steps and conditions, as data.
