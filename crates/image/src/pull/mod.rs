//! One image from a registry into the store.
//!
//! Resolve the name, fetch the configuration, fetch all layers at the same time that the store does not have, let the
//! few that depend on lower ones take what they need, commit. Nothing counts before the commit, so a pull that fails or
//! is dropped leaves the store as it was.
//!
//! Two kinds of work are done once however often they are asked for: a pull, by name, platform and credentials; and a
//! layer, by diff-id, across pulls. Neither is resumed across a restart of the daemon: staging is emptied then. A
//! broken connection is resumed by the registry client, below this module.

mod fetch;
mod flight;
mod progress;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use knarr_model::error::{Error, ErrorKind};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use self::fetch::Wanted;
use self::flight::{Flights, Joined};
use crate::artifact;
use crate::credentials::Credentials;
use crate::layer::LayerError;
use crate::manifest::{Descriptor, ImageConfig};
use crate::platform::Platform;
use crate::reference::{BadReference, Digest, Reference};
use crate::registry::{Registry, RegistryError, RegistryErrorKind, ResolvedImage};
use crate::store::{Image, Inner, LayerOrigin, LayerSource, NewImage, NewLayer, StagedLayer, StoreError};

pub(crate) use self::progress::{BlobCounter, PROGRESS_EVERY, Tracker};
pub use self::progress::{BlobProgress, BlobState, Progress, ProgressSender};

/// How pulls behave.
#[derive(Debug, Clone)]
pub struct PullConfig {
    /// How many layers are fetched and unpacked at the same time, over all pulls. Each takes two threads and a few
    /// megabytes.
    pub layers_at_once: usize,
}

impl Default for PullConfig {
    /// Registries answer a handful of streams from one client gladly, and two cores are busy with that many layers.
    fn default() -> Self {
        Self { layers_at_once: 6 }
    }
}

/// Why a pull failed. Cheap to clone: all who waited for it get the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PullError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] BadReference),
    /// The registry's side.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The manifest and the configuration contradict each other, or are of a kind that is no image.
    #[error("{0}")]
    NotAnImage(String),
    /// A layer could not be unpacked.
    #[error("layer {digest}: {error}")]
    Layer {
        /// Of the layer as the manifest names it.
        digest: Digest,
        /// The reason.
        error: Arc<LayerError>,
    },
    /// The bytes were not the ones named.
    #[error("layer {expected}: the registry gave other bytes, with digest {actual}")]
    WrongDigest {
        /// What the manifest names.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// The layer is not the one that the configuration names.
    #[error("layer {digest}: its archive has digest {actual}, the image's configuration names {expected}")]
    WrongDiffId {
        /// Of the layer as the manifest names it.
        digest: Digest,
        /// What the configuration names.
        expected: Digest,
        /// What the archive is.
        actual: Digest,
    },
    /// The disk's side.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// A task or thread of the pull died.
    #[error("the pull's worker died; its panic is in the log")]
    Lost,
}

impl PullError {
    fn layer(digest: &Digest, error: LayerError) -> Self {
        Self::Layer { digest: digest.clone(), error: Arc::new(error) }
    }

    fn wrong_digest(expected: &Digest, actual: &Digest) -> Self {
        Self::WrongDigest { expected: expected.clone(), actual: actual.clone() }
    }

    /// Whether the bytes themselves may be at fault: then another mirror may have better ones.
    fn may_be_wrong_bytes(&self) -> bool {
        match self {
            Self::WrongDigest { .. } => true,
            Self::Layer { error, .. } => {
                matches!(**error, LayerError::Decompress(_) | LayerError::Archive { .. } | LayerError::Entry { .. })
            }
            _ => false,
        }
    }

    /// What sort of failure it is, for the answer to a client.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Name(_) => ErrorKind::InvalidArgument,
            Self::Registry(error) => match error.kind {
                RegistryErrorKind::NotFound => ErrorKind::NotFound,
                RegistryErrorKind::RateLimited => ErrorKind::ResourceExhausted,
                RegistryErrorKind::Unavailable => ErrorKind::Unavailable,
                RegistryErrorKind::Timeout => ErrorKind::DeadlineExceeded,
                RegistryErrorKind::Unauthorized
                | RegistryErrorKind::Denied
                | RegistryErrorKind::Invalid
                | RegistryErrorKind::Other => ErrorKind::Internal,
            },
            Self::NotAnImage(_) => ErrorKind::FailedPrecondition,
            Self::Layer { .. } | Self::WrongDigest { .. } | Self::WrongDiffId { .. } | Self::Store(_) | Self::Lost => {
                ErrorKind::Internal
            }
        }
    }
}

impl From<StoreError> for PullError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

impl From<PullError> for Error {
    fn from(error: PullError) -> Self {
        Self::new(error.kind(), error.to_string())
    }
}

type ImageOutcome = Result<Arc<Image>, PullError>;
type LayerOutcome = Result<Arc<StagedLayer>, PullError>;
/// A diff-id; and the chain, for a layer that another chain has taken already.
type LayerName = (Digest, Option<Digest>);

/// Pulls images. One for the whole daemon, so that the same work is found under way.
#[derive(Debug)]
pub(crate) struct Puller {
    store: Arc<Inner>,
    registry: Registry,
    images: Arc<Flights<PullName, ImageOutcome, Arc<Tracker>>>,
    layers: Arc<Flights<LayerName, LayerOutcome, Arc<BlobCounter>>>,
    at_once: Arc<Semaphore>,
}

/// What makes two pulls the same one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PullName {
    reference: Reference,
    platform: Platform,
    /// A hash: who may pull is part of the question, and secrets are kept nowhere.
    credentials: Digest,
}

impl Puller {
    pub fn new(store: Arc<Inner>, registry: Registry, config: &PullConfig) -> Self {
        let at_once = Arc::new(Semaphore::new(config.layers_at_once.max(1)));
        Self { store, registry, images: Arc::default(), layers: Arc::default(), at_once }
    }

    /// Pulls, or joins a pull of the same. Dropping the future gives up this asker's claim.
    pub async fn pull(
        self: &Arc<Self>,
        name: &str,
        credentials: Credentials,
        platform: Option<Platform>,
        watcher: Option<&ProgressSender>,
    ) -> Result<Arc<Image>, PullError> {
        let reference = Reference::parse(name)?;
        let platform = platform.unwrap_or_else(Platform::host);
        let key = PullName {
            reference: reference.clone(),
            platform: platform.clone(),
            credentials: fingerprint(&credentials),
        };
        let puller = self.clone();
        let mut joined = self.images.join(key, Arc::new(Tracker::default()), move |tracker| async move {
            Pull { puller, reference, credentials, platform, tracker }.run().await
        });
        let tracker = joined.shared.clone();
        loop {
            tokio::select! {
                outcome = joined.outcome() => {
                    tracker.tell(watcher);
                    return outcome.unwrap_or(Err(PullError::Lost));
                }
                () = tokio::time::sleep(PROGRESS_EVERY), if watcher.is_some() => tracker.tell(watcher),
            }
        }
    }
}

/// One pull under way.
struct Pull {
    puller: Arc<Puller>,
    reference: Reference,
    credentials: Credentials,
    platform: Platform,
    tracker: Arc<Tracker>,
}

/// A layer's place in the image.
struct Slot {
    wanted: Wanted,
    chain: Digest,
    source: Option<LayerSource>,
}

impl Pull {
    async fn run(self) -> ImageOutcome {
        self.tracker.step("resolving");
        let resolved = self.puller.registry.resolve(&self.reference, &self.credentials, &self.platform).await?;
        let (image_config, mut slots) = match &resolved.manifest.files {
            Some(files) => (None, self.slots_of_files(&resolved, files)),
            None => {
                let (config, bytes) = self.config(&resolved).await?;
                let fits = config.check_fits(&resolved.manifest);
                fits.map_err(|e| PullError::NotAnImage(format!("{}: {e}", self.reference)))?;
                let slots = self.slots(&resolved, &config)?;
                (Some((config, bytes)), slots)
            }
        };

        self.tracker.step("pulling layers");
        self.fetch_missing(&mut slots).await?;
        self.complete(&mut slots).await?;

        self.tracker.step("committing");
        let layers: Vec<NewLayer> = slots.into_iter().filter_map(Slot::into_layer).collect();
        let diff_ids = || layers.iter().map(|layer| layer.origin.diff_id.clone()).collect();
        let of_artifact = || (artifact::config(diff_ids()), resolved.manifest_bytes.clone());
        let (config, config_bytes) = image_config.unwrap_or_else(of_artifact);
        let new = NewImage {
            config,
            config_bytes,
            names: self.reference.repo_tag().into_iter().collect(),
            digests: vec![self.reference.repo_digest(&resolved.manifest_digest)],
            manifest: Some(resolved.manifest_bytes),
            layers,
        };
        let store = self.puller.store.clone();
        // Goes on to its end even when nobody waits any more: an image is committed or it is not.
        let image = blocking(move || store.commit(new)).await??;
        self.tracker.step("done");
        Ok(image)
    }

    /// The configuration; a stored image with that id has it already.
    async fn config(&self, resolved: &ResolvedImage) -> Result<(ImageConfig, Vec<u8>), PullError> {
        if let Some(known) = self.puller.store.image(&resolved.config.digest) {
            return Ok(((*known.config).clone(), known.config_bytes.to_vec()));
        }
        Ok(self.puller.registry.config(&self.reference, &self.credentials, &resolved.config).await?)
    }

    fn slots(&self, resolved: &ResolvedImage, config: &ImageConfig) -> Result<Vec<Slot>, PullError> {
        let mut slots: Vec<Slot> = Vec::with_capacity(resolved.layers.len());
        for (descriptor, diff_id) in resolved.layers.iter().zip(&config.diff_ids) {
            if diff_id.algorithm() != "sha256" {
                let why = format!("{}: the diff-id {diff_id} is no SHA-256", self.reference);
                return Err(PullError::NotAnImage(why));
            }
            let chain = chain_id(slots.last().map(|below| &below.chain), diff_id);
            let source =
                self.puller.store.use_layer(diff_id, &chain).map(|layer| LayerSource::Present(Arc::new(layer)));
            let wanted = Wanted {
                reference: self.reference.clone(),
                credentials: self.credentials.clone(),
                descriptor: descriptor.clone(),
                diff_id: diff_id.clone(),
                file: None,
            };
            slots.push(Slot { wanted, chain, source });
        }
        Ok(slots)
    }

    /// The files of an artifact. Which archive each becomes is known only of an artifact that is in the store.
    fn slots_of_files(&self, resolved: &ResolvedImage, files: &[String]) -> Vec<Slot> {
        let known = self.puller.store.image(&Digest::sha256_of(&resolved.manifest_bytes));
        let slot = |(at, (descriptor, name)): (usize, (&Descriptor, &String))| {
            let origin = known.as_ref().and_then(|known| known.sources.get(at));
            let present = origin.filter(|origin| origin.digest == descriptor.digest).and_then(|origin| {
                let layer = self.puller.store.use_layer(&origin.diff_id, &origin.diff_id)?;
                Some((origin.diff_id.clone(), LayerSource::Present(Arc::new(layer))))
            });
            let (diff_id, source) = present.unzip();
            let diff_id = diff_id.unwrap_or_else(|| artifact::fingerprint(name, &descriptor.digest));
            let wanted = Wanted {
                reference: self.reference.clone(),
                credentials: self.credentials.clone(),
                descriptor: descriptor.clone(),
                diff_id: diff_id.clone(),
                file: Some(name.clone()),
            };
            Slot { wanted, chain: diff_id, source }
        };
        resolved.layers.iter().zip(files).enumerate().map(slot).collect()
    }

    /// All layers that the store does not have, at the same time. The first failure ends the others.
    async fn fetch_missing(&self, slots: &mut [Slot]) -> Result<(), PullError> {
        let mut counters = Vec::with_capacity(slots.len());
        let mut fetching = JoinSet::new();
        for (at, slot) in slots.iter().enumerate() {
            let descriptor = &slot.wanted.descriptor;
            let state = if slot.source.is_some() { BlobState::Present } else { BlobState::Waiting };
            let counter = Arc::new(BlobCounter::new(descriptor.digest.clone(), descriptor.size, state));
            if slot.source.is_some() {
                counters.push(counter);
                continue;
            }
            let joined = self.join_layer(&slot.wanted, None, counter);
            counters.push(joined.shared.clone());
            let (puller, wanted) = (self.puller.clone(), slot.wanted.clone());
            fetching.spawn(async move { (at, layer_outcome(&puller, &wanted, joined).await) });
        }
        self.tracker.blobs(counters);
        while let Some(fetched) = fetching.join_next().await {
            let (at, staged) = fetched.map_err(|_| PullError::Lost)?;
            slots[at].source = Some(LayerSource::Staged(staged?));
        }
        Ok(())
    }

    /// From the lowest up, lets layers take from those below them what their archives left open.
    async fn complete(&self, slots: &mut [Slot]) -> Result<(), PullError> {
        for at in 0..slots.len() {
            let chain = slots[at].chain.clone();
            let digest = slots[at].wanted.descriptor.digest.clone();
            let lowers: Vec<LayerSource> = slots[..at].iter().rev().filter_map(|slot| slot.source.clone()).collect();
            let Some(LayerSource::Staged(staged)) = slots[at].source.clone() else { continue };
            if !staged.depends_on_lower() || complete_layer(staged, &chain, &lowers, &digest).await? {
                continue;
            }
            // Another pull has made it the layer of another chain: this chain needs one of its own.
            let counter = Arc::new(BlobCounter::new(digest.clone(), 0, BlobState::Waiting));
            let joined = self.join_layer(&slots[at].wanted, Some(chain.clone()), counter);
            let staged = layer_outcome(&self.puller, &slots[at].wanted, joined).await?;
            if !complete_layer(staged.clone(), &chain, &lowers, &digest).await? {
                return Err(PullError::Lost);
            }
            slots[at].source = Some(LayerSource::Staged(staged));
        }
        Ok(())
    }

    fn join_layer(&self, wanted: &Wanted, chain: Option<Digest>, counter: Arc<BlobCounter>) -> LayerJoined {
        join_layer(&self.puller, wanted, chain, counter)
    }
}

type LayerJoined = Joined<LayerName, LayerOutcome, Arc<BlobCounter>>;

fn join_layer(puller: &Arc<Puller>, wanted: &Wanted, chain: Option<Digest>, counter: Arc<BlobCounter>) -> LayerJoined {
    let name = (wanted.diff_id.clone(), chain);
    let (store, registry) = (puller.store.clone(), puller.registry.clone());
    let (at_once, wanted) = (puller.at_once.clone(), wanted.clone());
    puller.layers.join(name, counter, move |counter| async move {
        // Closed never, as the semaphore lives as long as the daemon.
        let _turn = at_once.acquire_owned().await.map_err(|_| PullError::Lost)?;
        fetch::fetch(&registry, &store, &wanted, &counter).await
    })
}

/// Waits for a layer. When it was another pull's and failed, the fault may be that pull's (its registry, its
/// credentials), so this pull tries by itself.
async fn layer_outcome(puller: &Arc<Puller>, wanted: &Wanted, mut joined: LayerJoined) -> LayerOutcome {
    loop {
        let outcome = joined.outcome().await.unwrap_or(Err(PullError::Lost));
        if outcome.is_ok() || joined.is_first {
            return outcome;
        }
        let counter = joined.shared.clone();
        let chain = joined.key().1.clone();
        joined = join_layer(puller, wanted, chain, counter);
    }
}

async fn complete_layer(
    staged: Arc<StagedLayer>,
    chain: &Digest,
    lowers: &[LayerSource],
    digest: &Digest,
) -> Result<bool, PullError> {
    let (chain, lowers) = (chain.clone(), lowers.to_vec());
    blocking(move || staged.complete(&chain, &lowers)).await?.map_err(|e| PullError::layer(digest, e))
}

impl Slot {
    fn into_layer(self) -> Option<NewLayer> {
        let Wanted { descriptor, diff_id, .. } = self.wanted;
        let source = self.source?;
        let diff_id = match &source {
            LayerSource::Staged(staged) => staged.applied.diff_id.clone(),
            LayerSource::Present(_) => diff_id,
        };
        let origin = LayerOrigin { diff_id, digest: descriptor.digest, size: descriptor.size };
        Some(NewLayer { origin, source })
    }
}

/// The name of a stack of layers: of the layer itself at the bottom, above that a hash of the stack below and it.
pub(crate) fn chain_id(below: Option<&Digest>, diff_id: &Digest) -> Digest {
    match below {
        None => diff_id.clone(),
        Some(below) => Digest::sha256_of(format!("{below} {diff_id}").as_bytes()),
    }
}

fn fingerprint(credentials: &Credentials) -> Digest {
    let Credentials { username, password, identity_token, registry_token, server_address } = credentials;
    // NUL is in none of them that a registry would take; it keeps ("a", "bc") and ("ab", "c") apart.
    Digest::sha256_of(
        [username, password, identity_token, registry_token, server_address].map(String::as_str).join("\0").as_bytes(),
    )
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, PullError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| PullError::Lost)
}
