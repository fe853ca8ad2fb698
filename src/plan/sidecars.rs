//! The injection patch.
