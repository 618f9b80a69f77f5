//! STORES. Registry, layers, store. Never trusts a byte that it did not hash.

pub mod archive;
pub mod credentials;
pub mod layer;
pub mod manifest;
pub mod platform;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod store;
