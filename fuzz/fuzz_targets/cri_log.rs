//! Output of containers, as log records. What is tried and what must hold is beside the code.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| knarr_wire::cri_log::fuzz(data));
