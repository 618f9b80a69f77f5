//! Error kinds to gRPC codes: the one place that decides it.
