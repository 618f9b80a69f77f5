//! CRI v1 and knarr's own gRPC additions, as generated from `proto/` by `cargo xtask codegen`.
//! Only the hiding of credentials in `Debug` is written by hand.
#![allow(missing_docs, clippy::all)]

/// `runtime.v1`: the Container Runtime Interface.
pub mod v1 {
    include!("generated/runtime.v1.rs");
}

/// `knarr.v1`: images as archives, pulls with progress.
pub mod knarr {
    include!("generated/knarr.v1.rs");
}

impl std::fmt::Debug for v1::AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for knarr::PullRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PullRequest")
            .field("image", &self.image)
            .field("platform", &self.platform)
            .finish_non_exhaustive()
    }
}
