//! Manifests, indexes and image configurations: OCI's and Docker's schema 2.
//!
//! Every document comes from outside. Unknown fields are let through, because every registry adds some; a document
//! that can be read in two ways is refused, because two readers would see two images. Nothing here checks a digest:
//! that is done on the bytes, before they get here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::platform::Platform;
use crate::reference::Digest;

/// Bytes of a manifest or index; the distribution spec asks registries to take at least this and few take more.
pub const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of an image configuration; the largest seen in the field are some hundred kilobytes of history.
pub const CONFIG_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Layers of one image: overlay stacks at most 500 with the writable one.
pub const LAYERS_MAX: usize = 499;

/// A pointer to content: what it is, its digest and its size in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// One of `media_type`'s, or anything.
    #[serde(default)]
    pub media_type: String,
    /// Of the bytes as they come over the wire.
    pub digest: Digest,
    /// Bytes over the wire.
    pub size: u64,
    /// Where foreign layers say they are. Never followed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free remarks of the builder.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// In an index: what it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// How a layer's tar is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Plain tar.
    None,
    /// gzip.
    Gzip,
    /// zstd, skippable frames included.
    Zstd,
}

/// One image for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The document's own media type.
    pub media_type: String,
    /// The image configuration; its digest is the image's id.
    pub config: Descriptor,
    /// Lowest first; at most `LAYERS_MAX`.
    pub layers: Vec<Descriptor>,
}

/// The same image for several platforms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// The document's own media type.
    pub media_type: String,
    /// In the builder's order.
    pub manifests: Vec<Descriptor>,
}

/// What a registry has under a tag or digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// A choice of images.
    Index(Index),
}

/// What an image says of itself; the fields that a runtime needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// RFC 3339, or empty.
    pub created: String,
    /// Go's name of the architecture.
    pub architecture: String,
    /// Go's name of the operating system.
    pub os: String,
    /// `v7` of arm/v7, or empty.
    pub variant: String,
    /// `user`, `uid`, `user:group`, …; empty for root.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// In front of `cmd`.
    pub entrypoint: Vec<String>,
    /// The default arguments.
    pub cmd: Vec<String>,
    /// Absolute, or empty for `/`.
    pub working_dir: String,
    /// A name or number, or empty for SIGTERM.
    pub stop_signal: String,
    /// Paths in the container that are to be volumes, sorted.
    pub volumes: Vec<String>,
    /// `80/tcp`, sorted; for show only.
    pub exposed_ports: Vec<String>,
    /// Free remarks.
    pub labels: BTreeMap<String, String>,
    /// Digests of the unpacked layers, lowest first.
    pub diff_ids: Vec<Digest>,
    /// How it was built.
    pub history: Vec<History>,
}

/// One step of a build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// A remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether this step made no layer.
    #[serde(default)]
    pub empty_layer: bool,
}

/// Why a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadManifest(String);

impl Document {
    /// Reads a manifest or an index; `content_type` is what the registry said it is, when it did.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, BadManifest> {
        let _ = (bytes, content_type);
        Err(BadManifest(String::new()))
    }
}

impl ImageConfig {
    /// Reads an image configuration.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadManifest> {
        let _ = bytes;
        Err(BadManifest(String::new()))
    }
}

impl Descriptor {
    /// How this layer is packed, by its media type; `None` when the type is no layer's.
    pub fn compression(&self) -> Option<Compression> {
        None
    }
}
