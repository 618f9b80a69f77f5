//! Signals by descriptor.
