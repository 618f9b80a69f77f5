//! STORES. Registry, layers, store. Never trusts a byte that it did not hash.
//!
//! [`Images`] is what the daemon holds: it pulls, imports, exports, lists and removes. Below it, [`registry`] talks to
//! registries and touches no disk, [`layer`] turns streams into directories and knows no images, [`store`] keeps both
//! and knows no network.

pub mod archive;
mod artifact;
pub mod credentials;
pub mod layer;
pub mod manifest;
pub mod platform;
pub mod pull;
pub mod reference;
pub mod registry;
pub mod store;

use std::io::{Read, Write};
use std::sync::Arc;

use crate::archive::{ArchiveError, ExportFormat, ImportOptions};
use crate::credentials::Credentials;
use crate::platform::Platform;
use crate::pull::{ProgressSender, PullConfig, PullError, Puller};
use crate::registry::Registry;
use crate::store::{Image, Removed, Store, StoreError};

/// The node's images. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub struct Images {
    store: Arc<Store>,
    puller: Arc<Puller>,
}

impl Images {
    /// Puts an open store and a registry client together.
    pub fn new(store: Store, registry: Registry, config: &PullConfig) -> Self {
        let puller = Arc::new(Puller::new(store.inner().clone(), registry, config));
        Self { store: Arc::new(store), puller }
    }

    /// What is there. Listing, finding and leasing do not block.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Pulls the image that `name` stands for, for `platform` or the host's, and gives it the name. Layers that are
    /// there are not fetched. Asked for twice at the same time with the same credentials, it is pulled once; dropping
    /// the future of the last who asked cancels it and leaves nothing behind.
    pub async fn pull(
        &self,
        name: &str,
        credentials: Credentials,
        platform: Option<Platform>,
        progress: Option<&ProgressSender>,
    ) -> Result<Arc<Image>, PullError> {
        self.puller.pull(name, credentials, platform, progress).await
    }

    /// Removes an image as [`Store::remove`] does, on a thread that may block.
    pub async fn remove(&self, name: &str) -> Result<Removed, StoreError> {
        let (store, name) = (self.store.clone(), name.to_owned());
        match tokio::task::spawn_blocking(move || store.remove(&name)).await {
            Ok(removed) => removed,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }

    /// Takes all images of an OCI layout or a docker-save archive, plain or compressed as a whole. Returns a name of
    /// each, or its id where it has none. Blocks; memory does not depend on the archive's size.
    pub fn import(
        &self,
        mut input: impl Read + Send,
        options: &ImportOptions,
        progress: Option<&ProgressSender>,
    ) -> Result<Vec<String>, ArchiveError> {
        archive::import(self.store.inner(), &mut input, options, progress)
    }

    /// Writes the images that `names` find as one archive. Blocks.
    pub fn export(
        &self,
        names: &[String],
        format: ExportFormat,
        mut output: impl Write,
        progress: Option<&ProgressSender>,
    ) -> Result<(), ArchiveError> {
        archive::export(self.store.inner(), names, format, &mut output, progress)
    }
}
