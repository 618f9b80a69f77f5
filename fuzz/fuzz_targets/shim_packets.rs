//! Packets between daemon and shim. What is tried and what must hold is beside the code.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| knarr_wire::shim::packet::fuzz(data));
