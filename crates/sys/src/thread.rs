//! Things that hold for one thread only: its root, its file system state.
