//! clone3, pidfds, exits, limits.
