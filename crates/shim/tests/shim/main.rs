//! The shim as it is, in a process of its own, with the runtime as it is, called as the daemon calls it. Needs root.

mod pod;
mod users;

mod attaches;
mod daemons;
mod execs;
mod holds;
mod keeper;
mod life;
mod logs;
