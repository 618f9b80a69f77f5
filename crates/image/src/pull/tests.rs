//! Pulls from a registry that misbehaves on demand.
