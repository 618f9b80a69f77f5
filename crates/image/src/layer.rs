//! From a stream of tar to a directory, and back to the same bytes.
