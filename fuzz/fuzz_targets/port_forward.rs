//! Streams of a port-forward, in any order. What is tried and what must hold is beside the code.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| knarr_wire::port_forward::fuzz(data));
