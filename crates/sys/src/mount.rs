//! The mount API by descriptor.
