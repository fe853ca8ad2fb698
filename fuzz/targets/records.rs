//! What a peer sends after the handshake, to the record layer alone.
#![no_main]

libfuzzer_sys::fuzz_target!(init: fuzz::begin("records"), |input: &[u8]| entente::proxy::fuzz::records(input));
