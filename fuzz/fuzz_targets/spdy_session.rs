//! What a peer sends in a SPDY session. What is tried and what must hold is beside the code.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| knarr_wire::spdy::fuzz::session(data));
