//! Messages of channels in a WebSocket. What is tried and what must hold is beside the code.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| knarr_wire::channel::fuzz(data));
