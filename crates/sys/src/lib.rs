//! TOUCHES THE KERNEL. The only unsafe code and the only raw system calls of knarr.
//!
//! What rustix has is used as it is, here and elsewhere; this room holds what it lacks (clone3, mount_setattr,
//! seccomp, …) and the few steps that must be taken together to be safe. Functions are named after the call or the
//! kernel file, take and give owned or borrowed descriptors, and return the errno.

mod call;
pub mod capability;
pub mod cgroup;
pub mod device_filter;
pub mod fd_passing;
pub mod file;
pub mod memory;
pub mod mount;
pub mod namespace;
pub mod open;
pub mod process;
pub mod seccomp;
pub mod signal;
pub mod tcp;
pub mod terminal;
pub mod thread;
