//! Why a request was refused or failed: a kind for the machine, words for the human.
//!
//! A kind becomes a gRPC code in exactly one place, the daemon's `rpc::status`.

use std::fmt;

/// What sort of failure it is; decides the gRPC code and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong; the message names the field.
    InvalidArgument,
    /// No such pod, container or image.
    NotFound,
    /// The name is taken by something else that is alive.
    AlreadyExists,
    /// The thing is there but not in a state that allows this.
    FailedPrecondition,
    /// A limit of ours or of the node is used up.
    ResourceExhausted,
    /// It took longer than it may.
    DeadlineExceeded,
    /// The client went away or another request overtook this one.
    Cancelled,
    /// Not there yet, try again: start-up, a restart of the shim.
    Unavailable,
    /// This version does not do that; kubelet reads it as a signal and falls back.
    Unimplemented,
    /// Kubelet matches the message's prefix, which it sees only under gRPC code Unknown.
    KubeletPrefix,
    /// Everything else: the kernel, a plugin, the disk said no.
    Internal,
}

/// One failure. `message` names the step, the thing and the cause: it is read by a person at 3 a.m.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// For the machine.
    pub kind: ErrorKind,
    /// For the human.
    pub message: String,
}

impl Error {
    /// An error of any kind.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The request's `field` is wrong, and why.
    pub fn invalid(field: &str, why: impl fmt::Display) -> Self {
        Self::new(ErrorKind::InvalidArgument, format!("{field}: {why}"))
    }

    /// There is no such thing.
    pub fn not_found(what: &str, name: impl fmt::Display) -> Self {
        Self::new(ErrorKind::NotFound, format!("{what} {name} not found"))
    }

    /// Something outside failed.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Internal, message)
    }

    /// The same error, with what was being done put in front.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
