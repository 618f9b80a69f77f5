//! DECIDES. Pods and containers as values and pure state machines.
//!
//! Nothing here does I/O, reads a clock, draws a random number or waits: time and ids are inputs, what shall happen
//! outside is output. No protobuf type and no kernel call comes in here.
//!
//! In reading order: [`id`] names things, [`id_map`] is a user namespace's ids, [`spec`] is what was asked for, [`resources`] what it may use,
//! [`pod`] is the machine that owns a pod, fed with [`input`]s and giving [`effect`]s and replies; [`view`] is what
//! List and Status may see of it; [`plan`] is what the shim is told to do; [`error`] is why something was refused.

pub mod effect;
pub mod error;
pub mod id;
pub mod id_map;
pub mod input;
pub mod plan;
pub mod pod;
pub mod resources;
pub mod spec;
pub mod view;

pub use error::{Error, ErrorKind};
pub use id::{ContainerId, ExecId, PodId};
pub use id_map::{IdMap, UserNamespace};
