//! Kubernetes Pod manifests: from YAML to what CRI is asked for.
//!
//! Pure: nothing here looks at the machine or talks to a runtime. `parse*` turn text into [`schema`]'s types and name every
//! field that is not honoured; `environment`, `sandbox_config` and `container_config` turn those into CRI messages, given
//! what only the running pod knows.

pub mod container_config;
pub mod environment;
pub mod expand;
mod parse;
mod parse_container;
mod parse_security;
mod parse_volume;
pub mod quantity;
mod reader;
pub mod sandbox_config;
pub mod schema;

pub use parse::{MAX_MANIFEST_BYTES, manifest};
pub use reader::Validation;

#[cfg(test)]
mod tests;
