//! Handshakes with strangers, and over wires that are not to be trusted.
#![no_main]

libfuzzer_sys::fuzz_target!(init: fuzz::begin("handshake"), |input: &[u8]| entente::proxy::fuzz::handshake(input));
