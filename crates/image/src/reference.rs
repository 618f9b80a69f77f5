//! Image names.
