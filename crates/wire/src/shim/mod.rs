//! What daemon and shim say to each other. It holds the limits and the order of layers; it does no I/O: who owns the
//! socket reads packets into [`Assembler::feed`] and sends what [`split`] gives.
//!
//! The socket is a Unix SEQPACKET one: a packet arrives whole or not at all, and descriptors come with the packet that
//! they were sent with. Three layers:
//!
//! 1. [`packet`]: a message is cut into packets of at most [`PACKET_BYTES_MAX`]. The fragments of one message follow
//!    each other without anything in between. Its descriptors come with the first.
//! 2. [`message`]: a [`Request`] is answered by one [`Reply`] with the same id; requests overlap. An [`Event`] comes
//!    unasked and has id 0.
//! 3. [`codec`]: values as bytes. Every struct and every variant carries its length, so that the two sides need not be
//!    of the same build: what a newer side appends is skipped, what an older one leaves out becomes its default.
//!
//! Replies to events do not exist. What must survive a lost connection is asked for again with
//! [`Request::ListContainers`]: exits stay known to the shim until [`Request::ForgetContainer`].

pub mod codec;
pub mod exit_record;
pub mod message;
pub mod packet;
mod plan;

pub use codec::Malformed;
pub use message::{
    AttachId, AttachPlan, Attached, ContainerEntry, ContainerList, Event, Hello, PodIsUp, Reply, Request, ShimIs,
};
pub use packet::{Assembler, Frame, Kind, split};

/// Bumped when the two sides cannot understand each other any more; fields and variants at the end need no bump.
pub const PROTOCOL_VERSION: u32 = 1;

/// With this argument, and directories after it, the shim's executable is no shim: it only tries whether pods with a user
/// namespace are possible, says why not on standard error, and ends.
pub const PROBE_USER_NAMESPACES: &str = "--probe-user-namespaces";

/// Bytes of one message: args and environment alone may be 2 MiB (the kernel's ARG_MAX), and 1 MiB a pod file.
pub const MESSAGE_BYTES_MAX: usize = 8 << 20;

/// Bytes of one packet with its header: fits twice into the smallest usual socket buffer (net.core.wmem_default is
/// 208 KiB, of which the kernel's own accounting takes some).
pub const PACKET_BYTES_MAX: usize = 64 << 10;

/// Descriptors of one message: SCM_MAX_FD of the kernel.
pub const FDS_MAX: usize = 253;

/// Bytes of one path, argument, variable or text: MAX_ARG_STRLEN of the kernel.
pub const STRING_BYTES_MAX: usize = 128 << 10;

/// Bytes of one file's contents or compiled filter: a resolv.conf is at most some KiB, a hosts file with many aliases
/// some hundred, a filter 4096 instructions of 8 bytes.
pub const BLOB_BYTES_MAX: usize = 1 << 20;

/// Elements of one list. Environments grow longest: a namespace with 5000 services gives 35,000 variables.
pub const LIST_ITEMS_MAX: usize = 1 << 16;
