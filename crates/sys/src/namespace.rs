//! Namespaces by descriptor.
