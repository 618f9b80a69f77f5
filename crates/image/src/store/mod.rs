//! Images and layers on disk.
//!
//! ```text
//! <root>/images/                      0700, root's
//! ├── lock                            held by the one program that has the store open
//! ├── records/<config digest>.json    one image: names, digests, layers, configuration, manifests
//! ├── layers/<key>/                   one layer; the key is its diff-id, or its chain-id when it depends on lower ones
//! │   ├── fs/                         what overlayfs takes as a lowerdir: whiteouts and opaque marks are overlayfs' own
//! │   ├── displaced/                  contents that the archive itself replaced, for an exact export; seldom there
//! │   ├── skeleton.zst                the archive without the contents
//! │   └── layer.json                  diff-id, sizes
//! ├── staging/<random>/               being written; nothing in here counts
//! └── trash/                          being deleted
//! ```
//!
//! There is no index: what is there is what the directories say. An image counts when its record is there and whole,
//! and a record is written after all layers that it names are on disk (`syncfs`, then rename, then fsync of the
//! directory). So a power cut at any moment leaves the images from before, and perhaps the new one, whole. A record that
//! a disk has spoilt costs that image and no other.
//!
//! Memory holds all records, so that listing and finding never touch the disk; its lock is never held across I/O. The
//! disk lock orders everything that changes names on disk. Calls that write block and belong on a blocking thread;
//! dropping a lease or a stage does not.

mod durable;
mod load;
mod pin;
mod record;
mod stage;
mod state;
mod sweep;

#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, openat, renameat, unlinkat};

use self::pin::Pattern;
use self::record::{ImageLayer, ImageRecord, ManifestRecord};
use self::stage::directory;
use self::state::State;
use self::sweep::Broom;
use crate::artifact;
use crate::layer::{self, Limits};
use crate::manifest::ImageConfig;
use crate::reference::Digest;

pub use self::record::LayerKey;
pub(crate) use self::stage::{LayerSource, LayerUse, Stage, StagedLayer};

const RECORDS_DIR: &str = "records";
const LAYERS_DIR: &str = "layers";
const STAGING_DIR: &str = "staging";
const TRASH_DIR: &str = "trash";
const LAYER_RECORD: &str = "layer.json";
/// How many manifests of one image are kept; it has another one for every registry that packs it anew.
const MANIFESTS_MAX: usize = 8;

/// What the store's owner may choose.
#[derive(Debug, Clone, Default)]
pub struct StoreConfig {
    /// Images that the kubelet is told never to collect: names, `glob*`, `*keyword*`.
    pub pinned: Vec<String>,
    /// What one layer may be at most.
    pub layer_limits: Limits,
}

/// One image. Immutable: a change of its names makes a new one.
#[derive(Debug)]
pub struct Image {
    /// `sha256:` and the digest of the configuration, or of the manifest of an artifact: CRI's `image_ref` and `id`.
    pub id: String,
    /// Tags in full form (`docker.io/library/busybox:latest`), in the order they came: CRI's `repo_tags`.
    pub names: Vec<String>,
    /// `docker.io/library/busybox@sha256:…`, in the order they came: CRI's `repo_digests`.
    pub digests: Vec<String>,
    /// Bytes of the layers as they came over the wire and of the configuration, as containerd counts; never 0.
    pub size: u64,
    /// Space that its layers take on disk, shared ones included.
    pub unpacked_bytes: u64,
    /// What the image says of itself.
    pub config: Arc<ImageConfig>,
    /// The configuration as it came, or the manifest of an artifact; its hash is the id.
    pub config_bytes: Arc<[u8]>,
    /// Lowest first.
    pub layers: Vec<LayerKey>,
    /// The kubelet is told never to collect it.
    pub pinned: bool,
    /// When it was first stored.
    pub created_at: SystemTime,
    /// The layers with what they were made of; as long as `layers`.
    pub(crate) sources: Vec<LayerOrigin>,
}

/// What a layer of an image was made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LayerOrigin {
    pub diff_id: Digest,
    pub digest: Digest,
    pub size: u64,
}

/// What all layers take on disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// In units of 4 KiB per file.
    pub bytes: u64,
    /// Files, directories, links and devices.
    pub inodes: u64,
}

/// Something that was found broken when the store was opened, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file or directory, relative to the store.
    pub what: String,
    /// What is wrong with it, and the consequence.
    pub why: String,
}

/// What removing did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// There was no such image.
    Nothing,
    /// The image with all its names. Its layers follow when nobody needs them.
    Image,
    /// The same, but containers stand on it: it is not listed any more, and its layers stay for them.
    StillHeld,
}

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk said no.
    #[error("image store: {step}: {source}")]
    Disk {
        /// What was being done.
        step: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Another program has it open.
    #[error("image store {0}: another program has it open")]
    Locked(PathBuf),
    /// A layer of the image was not what its configuration says.
    #[error("image store: {0}")]
    Invalid(String),
}

impl StoreError {
    fn disk(step: &'static str, source: io::Error) -> Self {
        Self::Disk { step, source }
    }
}

/// The images and layers of one node. One program at a time has it open.
#[derive(Debug)]
pub struct Store {
    inner: Arc<Inner>,
    sweeper: Option<JoinHandle<()>>,
}

/// What outlives the [`Store`] while a lease, a stage or a pull still needs it.
#[derive(Debug)]
pub(crate) struct Inner {
    root: PathBuf,
    /// Opened before anything is written, so that a sync on it reports all write errors.
    directory: OwnedFd,
    records: OwnedFd,
    layers: OwnedFd,
    staging: OwnedFd,
    trash: OwnedFd,
    state: RwLock<State>,
    /// Orders all changes of names on disk. Held across I/O, so only on threads that may block.
    disk: Mutex<()>,
    broom: Broom,
    /// Random, so that names in the trash meet none that an earlier process left there.
    trash_prefix: String,
    pinned: Vec<Pattern>,
    pub(crate) layer_limits: Limits,
    _lock: OwnedFd,
}

/// Keeps an image's layers on disk for a container, whatever happens to the image. Dropping it gives that up.
#[derive(Debug)]
pub struct Lease {
    inner: Arc<Inner>,
    id: Digest,
}

/// An image that is ready to be stored.
#[derive(Debug)]
pub(crate) struct NewImage {
    pub config: ImageConfig,
    pub config_bytes: Vec<u8>,
    /// Tags that it gets, in full form; whoever had them loses them.
    pub names: Vec<String>,
    /// Repositories with digests that it gets, in full form.
    pub digests: Vec<String>,
    /// The manifest that it came with.
    pub manifest: Option<Vec<u8>>,
    /// Lowest first; one for each diff-id of the configuration.
    pub layers: Vec<NewLayer>,
}

/// A layer of an image that is ready to be stored.
#[derive(Debug, Clone)]
pub(crate) struct NewLayer {
    pub origin: LayerOrigin,
    pub source: LayerSource,
}

impl Store {
    /// Opens or makes the store in `<root>/images`. Reads all records; what is broken is set aside and reported.
    ///
    /// Until [`settle`](Self::settle) nothing is deleted that a container might stand on.
    pub fn open(root: &Path, config: StoreConfig) -> Result<(Self, Vec<Problem>), StoreError> {
        let root = root.join("images");
        let step = |step| move |e: io::Error| StoreError::disk(step, e);
        std::fs::create_dir_all(&root).map_err(step("make its directory"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&root, flags, Mode::empty()).map_err(|e| StoreError::disk("open", e.into()))?;
        rustix::fs::fchmod(&fd, Mode::RWXU).map_err(|e| StoreError::disk("close it to others", e.into()))?;
        let lock = lock(&fd, &root)?;
        let open = |name| directory(&fd, name).map_err(step("open its directories"));
        let inner = Inner {
            records: open(RECORDS_DIR)?,
            layers: open(LAYERS_DIR)?,
            staging: open(STAGING_DIR)?,
            trash: open(TRASH_DIR)?,
            state: RwLock::default(),
            disk: Mutex::default(),
            broom: Broom::default(),
            trash_prefix: random_name().map_err(step("draw a random name"))?,
            pinned: config.pinned.iter().map(|text| Pattern::parse(text)).collect(),
            layer_limits: config.layer_limits,
            root,
            directory: fd,
            _lock: lock,
        };
        let problems = inner.load().map_err(step("read its records"))?;
        let inner = Arc::new(inner);
        let sweeping = inner.clone();
        let sweeper = std::thread::Builder::new().name("image-sweep".to_owned()).spawn(move || {
            while !sweeping.broom.is_stopped() {
                let swept = sweeping.sweep().inspect_err(|e| tracing::warn!("delete unused image layers: {e}"));
                sweeping.broom.wait(swept.is_err());
            }
        });
        let sweeper = Some(sweeper.map_err(step("start its thread"))?);
        inner.broom.wake();
        Ok((Self { inner, sweeper }, problems))
    }

    /// All images, by id.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.read_state().list()
    }

    /// Finds an image by, in this order: its full id with or without `sha256:`; a name with tag or digest in any form
    /// (`busybox` is `docker.io/library/busybox:latest`; with a tag and a digest the digest counts); a beginning of
    /// its id of at least four digits that no other image shares.
    pub fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.inner.read_state().find(name)
    }

    /// Removes the image that `name` finds, with all its names, and pinned or not, as CRI wants it. Blocks.
    pub fn remove(&self, name: &str) -> Result<Removed, StoreError> {
        self.inner.remove(name)
    }

    /// The image's layers as overlayfs takes them, highest first. A layer that an image has twice is there once: what
    /// the lower one does, the higher one does again.
    pub fn layer_paths(&self, image: &Image) -> Vec<PathBuf> {
        let mut paths: Vec<PathBuf> = Vec::with_capacity(image.layers.len());
        for key in image.layers.iter().rev() {
            let path = self.inner.layer_dir(key).join(layer::TREE_DIR);
            if !paths.contains(&path) {
                paths.push(path);
            }
        }
        paths
    }

    /// Keeps the layers of the image with this id on disk until the lease is dropped, even when the image is removed;
    /// also of one that was removed while somebody else held it. `None` if there is no such image.
    pub fn hold(&self, id: &str) -> Option<Lease> {
        let id = Digest::parse(id).ok()?;
        let held = self.inner.write_state().hold(&id);
        held.then(|| Lease { inner: self.inner.clone(), id })
    }

    /// An image that containers hold although it was removed, as well as any that is listed; by its full id.
    pub fn held(&self, id: &str) -> Option<Arc<Image>> {
        let id = Digest::parse(id).ok()?;
        self.inner.read_state().image_or_removed(&id).cloned()
    }

    /// The owner has taken leases for all containers that there are: from now on, what nobody needs is deleted.
    pub fn settle(&self) {
        self.inner.write_state().settle();
        self.inner.broom.wake();
    }

    /// What all layers take on disk. Does not look at the disk.
    pub fn usage(&self) -> Usage {
        self.inner.read_state().usage()
    }

    /// The directory that holds the images: CRI's `fs_id.mountpoint`.
    pub fn path(&self) -> &Path {
        &self.inner.root
    }

    pub(crate) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.inner.broom.stop();
        if let Some(sweeper) = self.sweeper.take() {
            // It panics only where a lock is poisoned, and then there is nothing left to clean up with.
            let _ = sweeper.join();
        }
    }
}

impl Lease {
    /// The image's full id.
    pub fn id(&self) -> &str {
        self.id.as_str()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.inner.write_state().release(&self.id);
        self.inner.broom.wake();
    }
}

impl Inner {
    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn layer_dir(&self, key: &LayerKey) -> PathBuf {
        self.root.join(LAYERS_DIR).join(key.as_str())
    }

    /// The store's own layer with this diff-id on this chain, kept there while the answer lives.
    pub fn use_layer(self: &Arc<Self>, diff_id: &Digest, chain_id: &Digest) -> Option<LayerUse> {
        let key = self.write_state().use_layer(diff_id, chain_id)?;
        Some(LayerUse { inner: self.clone(), key })
    }

    /// Keeps a layer of an image there while the answer lives, with its directory and the size of its archive.
    pub fn use_key(self: &Arc<Self>, key: &LayerKey) -> Option<(LayerUse, PathBuf, u64)> {
        let mut state = self.write_state();
        let archive_bytes = state.layer(key)?.archive_bytes;
        state.use_key(key);
        drop(state);
        Some((LayerUse { inner: self.clone(), key: key.clone() }, self.layer_dir(key), archive_bytes))
    }

    /// Whether an image with this configuration is listed.
    pub fn image(&self, id: &Digest) -> Option<Arc<Image>> {
        self.read_state().image(id).cloned()
    }

    /// Finds as [`Store::find`] does.
    pub fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.read_state().find(name)
    }

    /// Stores an image: its layers become durable, then the store's, then the record names them. Blocks.
    pub fn commit(self: &Arc<Self>, new: NewImage) -> Result<Arc<Image>, StoreError> {
        let step = |step| move |e: io::Error| StoreError::disk(step, e);
        let id = Digest::sha256_of(&new.config_bytes);
        let given: Vec<&Digest> = new.layers.iter().map(|layer| &layer.origin.diff_id).collect();
        if given != new.config.diff_ids.iter().collect::<Vec<_>>() {
            return Err(StoreError::Invalid(format!("the layers of {id} are not those of its configuration")));
        }
        let mut directories = Vec::new();
        for layer in &new.layers {
            if let LayerSource::Staged(staged) = &layer.source {
                directories.extend(staged.prepare().map_err(step("write a layer's record"))?);
            }
        }
        if !directories.is_empty() {
            durable::make_durable(self.directory.as_fd(), &directories).map_err(step("sync the layers"))?;
        }
        drop(directories);

        let _disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = Vec::with_capacity(new.layers.len());
        for layer in &new.layers {
            keys.push(match &layer.source {
                LayerSource::Present(layer) => layer.key.clone(),
                LayerSource::Staged(staged) => staged.store()?,
            });
        }
        record::sync_directory(self.layers.as_fd()).map_err(step("sync the layers' names"))?;
        let record = self.merged_record(&id, &new, &keys).map_err(step("read the image's record"))?;
        record::write(self.records.as_fd(), &record_name(&id), &record).map_err(step("write the image's record"))?;
        let image = self.image_of(&record).map_err(step("read the image's configuration"))?;
        // Between these two writes a crash leaves two images with one tag; the later record has it then.
        for name in &new.names {
            let before = self.read_state().owner_of(name).cloned();
            if let Some(before) = before.filter(|before| before.id != image.id) {
                self.take_name(&before, name).map_err(step("take a tag from another image"))?;
            }
        }
        self.write_state().insert_image(id, image.clone());
        // Uses that the new layers had from the pull end only after this: they are named by now.
        drop(new.layers);
        Ok(image)
    }

    /// The record of an image that may be there already: names and digests are added, everything else stays.
    fn merged_record(&self, id: &Digest, new: &NewImage, keys: &[LayerKey]) -> io::Result<ImageRecord> {
        let now = nanoseconds_now();
        let memory = self.read_state().image_or_removed(id).cloned();
        // A record that the disk has spoilt since is written anew, with the names that memory still has.
        let known = match &memory {
            Some(_) => record::read::<ImageRecord>(self.records.as_fd(), &record_name(id)).ok(),
            None => None,
        };
        let layers = new.layers.iter().zip(keys).map(|(layer, key)| ImageLayer {
            key: key.clone(),
            diff_id: layer.origin.diff_id.clone(),
            digest: layer.origin.digest.clone(),
            size: layer.origin.size,
        });
        let mut record = known.unwrap_or_else(|| ImageRecord {
            version: ImageRecord::VERSION,
            id: id.clone(),
            names: memory.as_ref().map(|image| image.names.clone()).unwrap_or_default(),
            digests: memory.as_ref().map(|image| image.digests.clone()).unwrap_or_default(),
            layers: Vec::new(),
            size: new.layers.iter().map(|layer| layer.origin.size).sum::<u64>() + new.config_bytes.len() as u64,
            created_at: now,
            updated_at: now,
            removed: false,
            artifact: new.config.artifact,
            config: BASE64.encode(&new.config_bytes),
            manifests: Vec::new(),
        });
        if record.removed {
            record.removed = false;
            record.created_at = now;
        }
        record.updated_at = now.max(record.updated_at + 1);
        record.layers = layers.collect();
        add_missing(&mut record.names, &new.names);
        add_missing(&mut record.digests, &new.digests);
        if let Some(bytes) = &new.manifest {
            let manifest = ManifestRecord { digest: Digest::sha256_of(bytes), bytes: BASE64.encode(bytes) };
            record.manifests.retain(|known| known.digest != manifest.digest);
            record.manifests.insert(0, manifest);
            record.manifests.truncate(MANIFESTS_MAX);
        }
        Ok(record)
    }

    /// Another image has this tag now. The caller holds the disk lock.
    fn take_name(&self, image: &Image, name: &str) -> io::Result<()> {
        let id = Digest::parse(&image.id).map_err(io::Error::other)?;
        let mut record = record::read::<ImageRecord>(self.records.as_fd(), &record_name(&id))?;
        record.names.retain(|known| known != name);
        record.updated_at = nanoseconds_now().max(record.updated_at + 1);
        record::write(self.records.as_fd(), &record_name(&id), &record)?;
        let image = self.image_of(&record)?;
        self.write_state().insert_image(id, image);
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<Removed, StoreError> {
        let step = |step| move |e: io::Error| StoreError::disk(step, e);
        let _disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(image) = self.read_state().find(name) else { return Ok(Removed::Nothing) };
        let id = Digest::parse(&image.id).map_err(|e| StoreError::Invalid(e.to_string()))?;
        let held = self.read_state().is_held(&id);
        let removed = if held {
            let record = record::read::<ImageRecord>(self.records.as_fd(), &record_name(&id));
            let mut record = record.map_err(step("read the image's record"))?;
            record.removed = true;
            record.names.clear();
            record.digests.clear();
            record::write(self.records.as_fd(), &record_name(&id), &record)
                .map_err(step("write the image's record"))?;
            let image = self.image_of(&record).map_err(step("read the image's configuration"))?;
            // Who had the last lease may have given it up meanwhile: then the sweep finds it.
            self.write_state().insert_removed(id, image);
            Removed::StillHeld
        } else {
            self.delete_record(&id).map_err(step("delete the image's record"))?;
            self.write_state().forget_image(&id);
            Removed::Image
        };
        self.broom.wake();
        Ok(removed)
    }

    fn delete_record(&self, id: &Digest) -> io::Result<()> {
        match unlinkat(&self.records, record_name(id), AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => record::sync_directory(self.records.as_fd()),
            Err(e) => Err(e.into()),
        }
    }

    /// Gives up what nobody needs, and empties the trash. Runs on the sweeper's thread alone.
    fn sweep(&self) -> io::Result<()> {
        {
            let _disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
            let doomed = self.read_state().doomed();
            for id in doomed.images {
                // Between the question and now somebody may have come to hold it.
                if self.read_state().is_held(&id) {
                    continue;
                }
                self.delete_record(&id)?;
                self.write_state().forget_image(&id);
            }
            let doomed = self.read_state().doomed();
            for key in doomed.layers {
                if self.write_state().take_layer(&key) {
                    self.discard(self.layers.as_fd(), key.as_str());
                }
            }
        }
        self.broom.empty(self.trash.as_fd(), &self.trash_prefix)
    }

    /// Moves something into the trash. What cannot be moved now is found again when the store is opened next.
    fn discard(&self, directory: BorrowedFd<'_>, name: &str) {
        let trash_name = self.broom.name(&self.trash_prefix);
        match renameat(directory, name, &self.trash, trash_name) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => self.broom.wake(),
            Err(e) => tracing::warn!("move {name} of the image store into its trash: {e}"),
        }
    }

    fn image_of(&self, record: &ImageRecord) -> io::Result<Arc<Image>> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        let config_bytes = BASE64.decode(&record.config).map_err(|e| invalid(format!("its configuration: {e}")))?;
        if !record.id.matches(&config_bytes) {
            return Err(invalid("its configuration is not the one that it is named after".to_owned()));
        }
        let config = match record.artifact {
            true => artifact::config(record.layers.iter().map(|layer| layer.diff_id.clone()).collect()),
            false => ImageConfig::parse(&config_bytes).map_err(|e| invalid(format!("its configuration: {e}")))?,
        };
        let state = self.read_state();
        let mut unpacked_bytes = 0;
        for layer in &record.layers {
            let known =
                state.layer(&layer.key).ok_or_else(|| invalid(format!("its layer {} is not there", layer.key)))?;
            unpacked_bytes += known.bytes;
        }
        let pinned = |name: &String| self.pinned.iter().any(|pattern| pattern.matches(name));
        Ok(Arc::new(Image {
            id: record.id.to_string(),
            names: record.names.clone(),
            digests: record.digests.clone(),
            size: record.size.max(1),
            unpacked_bytes,
            config: Arc::new(config),
            config_bytes: config_bytes.into(),
            layers: record.layers.iter().map(|layer| layer.key.clone()).collect(),
            pinned: record.names.iter().chain(&record.digests).any(pinned),
            created_at: SystemTime::UNIX_EPOCH + Duration::from_nanos(record.created_at),
            sources: record
                .layers
                .iter()
                .map(|layer| LayerOrigin {
                    diff_id: layer.diff_id.clone(),
                    digest: layer.digest.clone(),
                    size: layer.size,
                })
                .collect(),
        }))
    }
}

fn lock(directory: &OwnedFd, root: &Path) -> Result<OwnedFd, StoreError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(directory, "lock", flags, Mode::RUSR | Mode::WUSR);
    let file = file.map_err(|e| StoreError::disk("open its lock", e.into()))?;
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOCK_RETRY),
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(StoreError::Locked(root.to_owned())),
            Err(e) => return Err(StoreError::disk("lock it", e.into())),
        }
    }
}

/// A daemon that was killed in the middle of starting a process is survived by that process, with its lock, until the
/// new program begins; a moment, on a busy machine a longer one.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(20);

fn record_name(id: &Digest) -> String {
    format!("{}.json", id.hex())
}

/// 128 random bits: nobody else has this name.
fn random_name() -> io::Result<String> {
    let mut bytes = [0u8; 16];
    let got = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
    if got < bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn add_missing(all: &mut Vec<String>, more: &[String]) {
    for name in more {
        if !all.contains(name) {
            all.push(name.clone());
        }
    }
}

fn nanoseconds_now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
