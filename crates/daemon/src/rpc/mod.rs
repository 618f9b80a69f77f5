//! CRI: the only place that knows protobuf.

pub mod convert;
pub mod status;
