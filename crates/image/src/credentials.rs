//! What a client may show a registry.
