//! CONNECTS. gRPC, one task per pod, effects, network, records: everything between the client and the kernel that is
//! neither a decision (`model`) nor a system call (`sys`).

pub mod cgroup;
pub mod config;
pub mod network;
pub mod oci;
pub mod rpc;
pub mod serve;
pub mod shim_client;
pub mod stats;
