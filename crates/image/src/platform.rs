//! Which of an index' images fits this machine.
//!
//! Order of preference and the spellings that mean the same follow containerd's `platforms` package, so that a node
//! gets the same image from either runtime. Nothing here runs an image of another architecture.

use std::fmt;

use serde::{Deserialize, Serialize};

/// An operating system, an architecture and, for arm and amd64, its level.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// Go's name: `amd64`, `arm64`, `arm`, ….
    pub architecture: String,
    /// `v7` of arm/v7, `v3` of amd64/v3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

/// No image of an index fits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no image for {wanted}; there is {}", if .offered.is_empty() { "none".to_owned() } else { .offered.join(", ") })]
pub struct NoSuchPlatform {
    /// What was asked for.
    pub wanted: Platform,
    /// What the index offers, in its order.
    pub offered: Vec<String>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(f, "/{variant}"),
            None => Ok(()),
        }
    }
}

impl Platform {
    /// What this machine runs.
    pub fn host() -> Self {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", None),
            "x86" => ("386", None),
            "aarch64" => ("arm64", Some("v8")),
            other => (other, None),
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: variant.map(str::to_owned) }
    }
}
