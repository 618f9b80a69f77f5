//! CONNECTS. gRPC, one task per pod, effects, network, records: everything between the client and the kernel that is
//! neither a decision (`model`) nor a system call (`sys`).

pub mod cgroup;
mod clock;
pub mod config;
mod effects;
mod exec;
pub mod network;
mod node;
pub mod oci;
mod pod_task;
mod records;
mod recovery;
pub mod rpc;
pub mod serve;
pub mod shim_client;
pub mod stats;
pub mod streaming;
mod usage;
