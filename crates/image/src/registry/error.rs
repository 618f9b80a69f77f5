//! Why a registry did not give what was asked for: a kind to act on, and every host's own failure.

use std::fmt;

/// What sort of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryErrorKind {
    /// No such repository, tag, digest, or no image for the platform.
    NotFound,
    /// Credentials are needed or wrong (401).
    Unauthorized,
    /// Known, and not allowed (403).
    Denied,
    /// The registry asks for patience (429).
    RateLimited,
    /// No connection: refused, unreachable, no such host, TLS; or the server is out of order (5xx).
    Unavailable,
    /// Connecting took too long, or no byte came for too long.
    Timeout,
    /// What came is not what was asked for: digest, size, shape.
    Invalid,
    /// Everything else.
    Other,
}

/// A failure after every host was tried. The message names each of them and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryError {
    /// To act on.
    pub kind: RegistryErrorKind,
    message: String,
}

impl RegistryError {
    /// A failure of `kind` while doing `what`.
    pub fn new(kind: RegistryErrorKind, what: impl fmt::Display) -> Self {
        Self { kind, message: what.to_string() }
    }

    /// Neither of the named kinds.
    pub fn other(what: &str, why: impl fmt::Display) -> Self {
        Self { kind: RegistryErrorKind::Other, message: format!("{what}: {why}") }
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for RegistryError {}
