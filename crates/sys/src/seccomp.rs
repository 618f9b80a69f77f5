//! Loading a compiled system call filter.
