//! Images as archives: OCI layouts and what `docker save` writes, in and out.
//!
//! What comes in is as hostile as a registry: every size is bounded before it is read, no name of the archive becomes
//! a path on disk, and layers go through the same digests, applier and commit as pulled ones. What goes out is put
//! together again from directories and skeletons, and its hashes are compared while it is written.
//!
//! All of this blocks and belongs on a thread that may.

mod export;
mod import;
mod spool;

#[cfg(test)]
mod tests;

use std::io;

use knarr_model::error::{Error, ErrorKind};

use crate::layer::LayerError;
use crate::platform::Platform;
use crate::reference::Digest;
use crate::store::StoreError;

pub(crate) use self::export::export;
pub(crate) use self::import::import;

/// How an archive is read.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// The name for an image that the archive gives none; where the archive gives only a tag, its repository.
    pub name: Option<String>,
    /// Which image of several is taken; the host's by default.
    pub platform: Option<Platform>,
}

/// What an archive is written as.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ExportFormat {
    /// An OCI layout that also has `docker save`'s index: containerd, podman, skopeo and docker read it.
    #[default]
    Oci,
    /// What `docker save` wrote before it knew OCI, for old readers.
    Docker,
}

/// Why an archive cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The other end of the stream.
    #[error("{step}: {source}")]
    Stream {
        /// What was being done.
        step: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The archive is none of the kinds that are read, or is broken.
    #[error("archive: {0}")]
    Invalid(String),
    /// A limit is passed.
    #[error("archive: more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A layer could not be unpacked.
    #[error("archive: layer {diff_id}: {error}")]
    Layer {
        /// As the configuration names it.
        diff_id: Digest,
        /// The reason.
        error: LayerError,
    },
    /// No such image to export.
    #[error("image {0} not found")]
    NotFound(String),
    /// Archives hold images.
    #[error("{0} is an artifact; archives hold images only")]
    Artifact(String),
    /// A layer on disk is not what it was.
    #[error("export: layer {diff_id} on disk gives an archive with digest {actual}: it was changed or damaged")]
    Damaged {
        /// What it was.
        diff_id: Digest,
        /// What it is.
        actual: Digest,
    },
    /// The disk's side.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ArchiveError {
    /// What sort of failure it is, for the answer to a client.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) => ErrorKind::InvalidArgument,
            Self::TooMany { .. } => ErrorKind::ResourceExhausted,
            Self::NotFound(_) => ErrorKind::NotFound,
            Self::Artifact(_) => ErrorKind::FailedPrecondition,
            Self::Layer { .. } | Self::Stream { .. } | Self::Damaged { .. } | Self::Store(_) => ErrorKind::Internal,
        }
    }
}

impl From<ArchiveError> for Error {
    fn from(error: ArchiveError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}
