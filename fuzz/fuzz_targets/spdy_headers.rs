//! Header blocks of SPDY, deflated and inflated. What is tried and what must hold is beside the code.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| knarr_wire::spdy::fuzz::headers(data));
