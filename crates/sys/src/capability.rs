//! Capability sets as bit masks.
