//! Messages with descriptors over Unix sockets.
