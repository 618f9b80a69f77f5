//! Manifests, indexes and image configurations.
