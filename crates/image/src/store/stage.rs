//! What is being written and does not count yet.
//!
//! A stage is a directory of a random name that nobody looks for; when its owner is dropped without having kept it, it
//! goes to the trash. A layer is written in a stage and becomes one of the store's by being renamed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, mkdirat, open, openat, renameat};

use super::record::{self, LayerKey, LayerRecord};
use super::{Inner, LAYER_RECORD, StoreError};
use crate::layer::{self, Applied, LayerError, Limits};
use crate::reference::Digest;

/// A directory of its own for something unfinished.
#[derive(Debug)]
pub(crate) struct Stage {
    inner: Arc<Inner>,
    name: String,
    path: PathBuf,
    kept: bool,
}

impl Stage {
    pub fn new(inner: &Arc<Inner>) -> io::Result<Self> {
        let name = super::random_name()?;
        mkdirat(&inner.staging, &name, Mode::RWXU)?;
        let path = inner.root.join(super::STAGING_DIR).join(&name);
        Ok(Self { inner: inner.clone(), name, path, kept: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.kept {
            self.inner.discard(self.inner.staging.as_fd(), &self.name);
        }
    }
}

/// A layer that is written, hashed and compared, and that may not be known to the store yet.
#[derive(Debug)]
pub(crate) struct StagedLayer {
    inner: Arc<Inner>,
    pub applied: Applied,
    place: Mutex<Place>,
}

/// Where a staged layer is by now.
#[derive(Debug)]
enum Place {
    /// In its stage. It depends on the layers below when there is a `chain`: then it has taken from them what it needs.
    Staged { stage: Stage, chain: Option<Digest>, grown: (u64, u64) },
    /// One of the store's.
    Stored(LayerUse),
}

impl StagedLayer {
    /// Writes a layer from its stream. Blocks. Compares nothing: the caller has the digests.
    pub fn write(inner: &Arc<Inner>, input: impl io::Read, limits: &Limits) -> Result<Self, LayerError> {
        let stage = Stage::new(inner).map_err(|source| LayerError::Disk {
            step: "make a directory for",
            path: String::new(),
            source,
        })?;
        let applied = layer::apply(input, stage.path(), limits)?;
        let place = Mutex::new(Place::Staged { stage, chain: None, grown: (0, 0) });
        Ok(Self { inner: inner.clone(), applied, place })
    }

    /// Whether it is another layer on other layers.
    pub fn depends_on_lower(&self) -> bool {
        !self.applied.pending.is_empty()
    }

    /// Takes what is missing from the layers below it, highest first. `false` when it has already become the layer of
    /// another chain: then this chain needs one of its own. Blocks.
    pub fn complete(&self, chain: &Digest, lowers: &[LayerSource]) -> Result<bool, LayerError> {
        if !self.depends_on_lower() {
            return Ok(true);
        }
        // Nobody may rename the layers below while they are opened. This is rare, and copying up is rarer.
        let _disk = self.inner.disk.lock().unwrap_or_else(PoisonError::into_inner);
        // Before this layer's own lock: an image may have the same layer twice.
        let paths: Vec<PathBuf> = lowers.iter().map(LayerSource::path).collect();
        match &mut *self.place.lock().unwrap_or_else(PoisonError::into_inner) {
            Place::Staged { chain: Some(known), .. } => Ok(known == chain),
            Place::Stored(layer) => Ok(LayerKey::of(chain).as_ref() == Some(&layer.key)),
            Place::Staged { stage, chain: unset @ None, grown } => {
                let more = layer::complete(stage.path(), &paths, &self.applied.pending)?;
                *grown = (more.bytes, more.inodes);
                *unset = Some(chain.clone());
                Ok(true)
            }
        }
    }

    /// Writes the layer's record beside it and opens it, so that both can be made durable. `None` if the store has it.
    pub fn prepare(&self) -> io::Result<Option<OwnedFd>> {
        let place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let Place::Staged { stage, .. } = &*place else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = open(stage.path(), flags, Mode::empty())?;
        let record = self.record(&place)?;
        // Another image's commit may have come this far and failed.
        match rustix::fs::unlinkat(&directory, LAYER_RECORD, rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(e.into()),
        }
        record::create(directory.as_fd(), LAYER_RECORD, &record)?;
        Ok(Some(directory))
    }

    /// Makes it one of the store's; it must be durable by now. The caller holds the disk lock.
    pub fn store(&self) -> Result<LayerKey, StoreError> {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let record = match &*place {
            Place::Stored(layer) => return Ok(layer.key.clone()),
            Place::Staged { .. } => self.record(&place).map_err(|e| StoreError::disk("name the layer", e))?,
        };
        let key = record.key.clone();
        // Another image may have brought the same layer meanwhile; then this copy goes to the trash.
        if !self.inner.write_state().use_key(&key) {
            let Place::Staged { stage, .. } = &mut *place else { return Ok(key) };
            renameat(&self.inner.staging, &stage.name, &self.inner.layers, key.as_str())
                .map_err(|e| StoreError::disk("store the layer", e.into()))?;
            stage.kept = true;
            let mut state = self.inner.write_state();
            state.insert_layer(record);
            state.use_key(&key);
        }
        *place = Place::Stored(LayerUse { inner: self.inner.clone(), key: key.clone() });
        Ok(key)
    }

    fn record(&self, place: &Place) -> io::Result<LayerRecord> {
        let (chain, grown) = match place {
            Place::Staged { chain, grown, .. } => (chain.as_ref(), *grown),
            Place::Stored(_) => (None, (0, 0)),
        };
        let named_by = chain.unwrap_or(&self.applied.diff_id);
        let key = LayerKey::of(named_by).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(LayerRecord {
            version: record::ImageRecord::VERSION,
            key,
            diff_id: self.applied.diff_id.clone(),
            depends_on_lower: chain.is_some(),
            archive_bytes: self.applied.archive_bytes,
            bytes: self.applied.bytes + grown.0,
            inodes: self.applied.inodes + grown.1,
        })
    }
}

/// Keeps a layer of the store on disk although no image may name it yet.
#[derive(Debug)]
pub(crate) struct LayerUse {
    pub(super) inner: Arc<Inner>,
    pub key: LayerKey,
}

impl Drop for LayerUse {
    fn drop(&mut self) {
        self.inner.write_state().end_use(&self.key);
        self.inner.broom.wake();
    }
}

/// Where an image's layer comes from.
#[derive(Debug, Clone)]
pub(crate) enum LayerSource {
    /// The store had it.
    Present(Arc<LayerUse>),
    /// It was written for this image, or for another one at the same time.
    Staged(Arc<StagedLayer>),
}

impl LayerSource {
    /// The layer's directory as of now.
    fn path(&self) -> PathBuf {
        match self {
            Self::Present(layer) => layer.inner.layer_dir(&layer.key),
            Self::Staged(staged) => match &*staged.place.lock().unwrap_or_else(PoisonError::into_inner) {
                Place::Staged { stage, .. } => stage.path().to_owned(),
                Place::Stored(layer) => layer.inner.layer_dir(&layer.key),
            },
        }
    }
}

/// Opens a directory of the store, making it when it is not there.
pub(super) fn directory(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    match mkdirat(parent, name, Mode::RWXU) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(parent, name, flags, Mode::empty())?)
}
