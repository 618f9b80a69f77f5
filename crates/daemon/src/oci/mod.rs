//! From what was asked for to what the shim is told: the OCI runtime specification as a value, then the plan.

pub mod beneath;
pub mod capability;
pub mod seccomp;
pub mod users;
