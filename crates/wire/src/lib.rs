//! SPEAKS. Bytes to values and back: no I/O, no waiting, limits at the top of each file.
//!
//! What exec, attach and port-forward speak is behind the feature `streaming`, so that the shim is not linked with it.

#[cfg(feature = "streaming")]
pub mod channel;
pub mod cri_log;
#[cfg(feature = "streaming")]
pub mod port_forward;
#[cfg(feature = "streaming")]
pub mod remotecommand;
pub mod shim;
#[cfg(feature = "streaming")]
pub mod spdy;
