//! Development only: images made in memory and a registry that can be told to misbehave.

pub mod image;
pub mod registry;
