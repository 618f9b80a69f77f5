//! Talking to registries.
