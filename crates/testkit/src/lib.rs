//! Development only: images made in memory, archives of them, and a registry that can be told to misbehave.

pub mod archive;
pub mod image;
pub mod registry;
