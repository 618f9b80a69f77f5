//! CRI: the only place that knows protobuf. `runtime`, `streaming` and `image` parse, ask and render; `convert` turns messages into
//! values and back; `status` gives errors their gRPC codes.

pub mod convert;
pub mod deadline;
pub mod image;
mod image_messages;
pub mod runtime;
pub mod status;
mod streaming;
