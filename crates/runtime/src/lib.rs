//! MAKES PROCESSES. The low-level runtime: carries a `knarr_model::plan` out.
//!
//! Callers must be single-threaded: between clone and exec only system calls are made.
