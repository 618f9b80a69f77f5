//! OCI layouts and docker-save archives, in and out.
