//! The daemon's life: build, announce, wait, drain.
