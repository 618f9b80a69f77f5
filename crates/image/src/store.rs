//! Images and layers on disk.
