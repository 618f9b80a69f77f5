//! One pod's shim, seen from the daemon.
