//! SPEAKS. Bytes to values and back: no I/O, no waiting, limits at the top of each file.

pub mod cri_log;
pub mod shim;
