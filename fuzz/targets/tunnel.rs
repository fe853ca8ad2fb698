//! The same, to a whole tunnel between an application and a peer.
#![no_main]

libfuzzer_sys::fuzz_target!(init: fuzz::begin("tunnel"), |input: &[u8]| entente::proxy::fuzz::tunnel(input));
