//! Runs pods of a manifest through CRI, in kubelet's place: makes sandboxes, volumes and containers in the right order.
//!
//! `bring_up` gets one pod going; `supervise` stays with pods in the foreground, restarts and ends them. There is no daemon
//! of ours behind it: what nobody stays with is not restarted. `user_ids` chooses ids for pods with a user namespace.

mod bring_up;
mod supervise;
mod user_ids;

pub use bring_up::{PodRun, fetch_images, wait_for_exit};
pub use supervise::supervise;
