//! The same, to streams that share a connection.
#![no_main]

libfuzzer_sys::fuzz_target!(init: fuzz::begin("mux"), |input: &[u8]| entente::proxy::fuzz::mux(input));
