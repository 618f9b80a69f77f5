//! One image from a registry into the store.
