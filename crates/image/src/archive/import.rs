//! From an archive into the store.
//!
//! An archive with `index.json` is an OCI layout: each entry of the index is an image, or an index of images for
//! several platforms. Without one, `manifest.json` is what `docker save` writes. Docker writes both nowadays, and then
//! the layout counts and the other only adds names. All images are unpacked before the first one is committed.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::sync::Arc;

use serde::Deserialize;

use super::spool::{Spool, Spooled};
use super::{ArchiveError, ImportOptions};
use crate::manifest::{
    CONFIG_BYTES_MAX, Descriptor, Document, ImageConfig, Index, LAYERS_MAX, MANIFEST_BYTES_MAX, Manifest,
};
use crate::platform::Platform;
use crate::pull::{BlobCounter, BlobState, ProgressSender, Tracker, chain_id};
use crate::reference::{Digest, Reference};
use crate::store::{Inner, LayerOrigin, LayerSource, NewImage, NewLayer, StagedLayer};

/// Images of one archive.
const IMAGES_MAX: usize = 1000;
/// An index in an index in the layout's index: nobody goes deeper.
const NESTING_MAX: usize = 3;
/// Where containerd and docker put an image's full name.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Where everybody else puts it, and some only its tag.
const OCI_NAME: &str = "org.opencontainers.image.ref.name";

/// Reads an archive and stores its images. Returns a name of each, or its id where it has none.
pub(crate) fn import(
    store: &Arc<Inner>,
    input: &mut dyn Read,
    options: &ImportOptions,
    watcher: Option<&ProgressSender>,
) -> Result<Vec<String>, ArchiveError> {
    let tracker = Tracker::default();
    let step = |step| {
        tracker.step(step);
        tracker.tell(watcher);
    };
    step("reading the archive");
    let spool = Spool::read(store, input, store.layer_limits.archive_bytes_max)?;
    let mut found = Found::default();
    found.read_layout(&spool, options)?;
    found.read_docker(&spool)?;
    if found.images.is_empty() {
        return Err(ArchiveError::Invalid("it holds no image for this platform".to_owned()));
    }
    found.name_the_nameless(options)?;

    step("unpacking layers");
    let counters = found.images.values().flat_map(|image| &image.layers).map(|layer| layer.counter.clone());
    tracker.blobs(counters.collect());
    let mut unpacked = HashMap::new();
    let mut ready = Vec::new();
    for (id, image) in found.images {
        ready.push((id, image.unpack(store, &spool, &mut unpacked, || tracker.tell(watcher))?));
    }

    step("committing");
    let mut names = Vec::new();
    for (id, image) in ready {
        let own = image.names.clone();
        store.commit(image)?;
        if own.is_empty() { names.push(id.to_string()) } else { names.extend(own) }
    }
    step("done");
    Ok(names)
}

/// The images of an archive by id, so that one that is there under several names is one.
#[derive(Default)]
struct Found {
    images: BTreeMap<Digest, FoundImage>,
}

struct FoundImage {
    config: ImageConfig,
    config_bytes: Vec<u8>,
    manifest: Option<Vec<u8>>,
    names: Vec<String>,
    digests: Vec<String>,
    /// What the layout's index calls it by, when its name is still to be found.
    index_digest: Option<Digest>,
    /// A tag that the archive gives without a repository.
    bare_tag: Option<String>,
    layers: Vec<FoundLayer>,
}

struct FoundLayer {
    diff_id: Digest,
    /// The member that has it.
    member: String,
    /// What its bytes must hash to, where the archive says.
    digest: Option<Digest>,
    counter: Arc<BlobCounter>,
}

impl Found {
    fn read_layout(&mut self, spool: &Spool, options: &ImportOptions) -> Result<(), ArchiveError> {
        let Some(bytes) = spool.document("index.json", MANIFEST_BYTES_MAX)? else { return Ok(()) };
        let index = match Document::parse(&bytes, None).map_err(|e| invalid("index.json", e))? {
            Document::Index(index) => index,
            Document::Manifest(_) => return Err(ArchiveError::Invalid("index.json is no index".to_owned())),
        };
        if index.manifests.len() > IMAGES_MAX {
            return Err(ArchiveError::TooMany { what: "images", limit: IMAGES_MAX as u64 });
        }
        let platform = options.platform.clone().unwrap_or_else(Platform::host);
        for descriptor in &index.manifests {
            // An entry for another platform is none of ours; one without a platform may be anything.
            let alone = Index { media_type: String::new(), manifests: vec![descriptor.clone()] };
            if descriptor.platform.is_some() && platform.choose(&alone).is_err() {
                continue;
            }
            let Some((manifest, bytes)) = choose_manifest(spool, descriptor, &platform)? else { continue };
            self.add_manifest(spool, descriptor, &manifest, bytes)?;
        }
        Ok(())
    }

    fn add_manifest(
        &mut self,
        spool: &Spool,
        descriptor: &Descriptor,
        manifest: &Manifest,
        bytes: Vec<u8>,
    ) -> Result<(), ArchiveError> {
        if manifest.files.is_some() {
            return Err(ArchiveError::Artifact(descriptor.digest.to_string()));
        }
        let config_bytes = blob_document(spool, &manifest.config.digest, CONFIG_BYTES_MAX)?;
        let config = ImageConfig::parse(&config_bytes).map_err(|e| invalid("image", e))?;
        config.check_fits(manifest).map_err(|e| invalid("image", e))?;
        let layers: Vec<FoundLayer> = manifest
            .layers
            .iter()
            .zip(&config.diff_ids)
            .map(|(layer, diff_id)| FoundLayer {
                diff_id: diff_id.clone(),
                member: format!("blobs/{}/{}", layer.digest.algorithm(), layer.digest.hex()),
                digest: Some(layer.digest.clone()),
                counter: Arc::new(BlobCounter::new(layer.digest.clone(), layer.size, BlobState::Waiting)),
            })
            .collect();
        let id = Digest::sha256_of(&config_bytes);
        let image = self.images.entry(id).or_insert_with(|| FoundImage {
            layers,
            config,
            config_bytes,
            manifest: Some(bytes),
            names: Vec::new(),
            digests: Vec::new(),
            index_digest: Some(descriptor.digest.clone()),
            bare_tag: None,
        });
        match name_of(descriptor) {
            Name::Full(reference) => image.add_name(&reference),
            Name::Tag(tag) => image.bare_tag = Some(tag),
            Name::None => {}
        }
        Ok(())
    }

    fn read_docker(&mut self, spool: &Spool) -> Result<(), ArchiveError> {
        let Some(bytes) = spool.document("manifest.json", MANIFEST_BYTES_MAX)? else { return Ok(()) };
        let saved: Vec<DockerImage> = serde_json::from_slice(&bytes).map_err(|e| invalid("manifest.json", e))?;
        if saved.len() > IMAGES_MAX {
            return Err(ArchiveError::TooMany { what: "images", limit: IMAGES_MAX as u64 });
        }
        // Where there is a layout, it has said which images there are.
        let only_names = !self.images.is_empty();
        for saved in saved {
            let config_bytes = spool.document(&saved.config, CONFIG_BYTES_MAX)?;
            let config_bytes = config_bytes.ok_or_else(|| missing(&saved.config))?;
            let id = Digest::sha256_of(&config_bytes);
            if !self.images.contains_key(&id) && !only_names {
                self.images.insert(id.clone(), docker_image(&saved, config_bytes)?);
            }
            let Some(image) = self.images.get_mut(&id) else { continue };
            for name in saved.repo_tags.unwrap_or_default() {
                image.add_name(&Reference::parse(&name).map_err(|e| invalid("manifest.json", e))?);
            }
        }
        Ok(())
    }

    /// A bare tag belongs to the repository that the caller named; the caller's own name to the one image without any.
    fn name_the_nameless(&mut self, options: &ImportOptions) -> Result<(), ArchiveError> {
        let Some(name) = &options.name else { return Ok(()) };
        let given = Reference::parse(name).map_err(|e| ArchiveError::Invalid(e.to_string()))?;
        let mut nameless: Vec<&mut FoundImage> =
            self.images.values_mut().filter(|image| image.names.is_empty()).collect();
        let alone = nameless.len() == 1;
        for image in &mut nameless {
            match image.bare_tag.take() {
                _ if alone => image.add_name(&given),
                Some(tag) => image.add_name(&Reference { tag: Some(tag), digest: None, ..given.clone() }),
                None => {}
            }
        }
        Ok(())
    }
}

impl FoundImage {
    fn add_name(&mut self, reference: &Reference) {
        let digest = self.index_digest.as_ref().map(|digest| reference.repo_digest(digest));
        for (all, name) in [(&mut self.names, reference.repo_tag()), (&mut self.digests, digest)] {
            if let Some(name) = name.filter(|name| !all.contains(name)) {
                all.push(name);
            }
        }
    }

    /// Writes the layers that the store does not have; those of earlier images of the same archive are at hand.
    fn unpack(
        self,
        store: &Arc<Inner>,
        spool: &Spool,
        unpacked: &mut HashMap<Digest, Arc<StagedLayer>>,
        tell: impl Fn(),
    ) -> Result<NewImage, ArchiveError> {
        let mut layers: Vec<NewLayer> = Vec::with_capacity(self.layers.len());
        let mut chain: Option<Digest> = None;
        for layer in &self.layers {
            let this_chain = chain_id(chain.as_ref(), &layer.diff_id);
            let member = spool.open(&layer.member)?.ok_or_else(|| missing(&layer.member))?;
            let origin =
                LayerOrigin { diff_id: layer.diff_id.clone(), digest: member.digest.clone(), size: member.size };
            let source = match store.use_layer(&layer.diff_id, &this_chain) {
                Some(present) => {
                    layer.counter.set(BlobState::Present);
                    LayerSource::Present(Arc::new(present))
                }
                None => {
                    layer.counter.set(BlobState::Downloading);
                    tell();
                    let lowers: Vec<LayerSource> = layers.iter().rev().map(|layer| layer.source.clone()).collect();
                    let staged = layer.unpack(store, member, &this_chain, &lowers, unpacked)?;
                    layer.counter.set(BlobState::Done);
                    LayerSource::Staged(staged)
                }
            };
            tell();
            layers.push(NewLayer { origin, source });
            chain = Some(this_chain);
        }
        Ok(NewImage {
            config: self.config,
            config_bytes: self.config_bytes,
            names: self.names,
            digests: self.digests,
            manifest: self.manifest,
            layers,
        })
    }
}

impl FoundLayer {
    fn unpack(
        &self,
        store: &Arc<Inner>,
        member: Spooled,
        chain: &Digest,
        lowers: &[LayerSource],
        unpacked: &mut HashMap<Digest, Arc<StagedLayer>>,
    ) -> Result<Arc<StagedLayer>, ArchiveError> {
        let failed = |error| ArchiveError::Layer { diff_id: self.diff_id.clone(), error };
        if let Some(known) = unpacked.get(&self.diff_id)
            && known.complete(chain, lowers).map_err(failed)?
        {
            return Ok(known.clone());
        }
        if let Some(expected) = self.digest.as_ref().filter(|digest| digest.algorithm() == "sha256")
            && member.digest != *expected
        {
            return Err(ArchiveError::Invalid(format!(
                "blob {expected} has other bytes, with digest {}",
                member.digest
            )));
        }
        let counted = Counted { inner: member, counter: &self.counter };
        let staged = StagedLayer::write(store, counted, &store.layer_limits).map_err(failed)?;
        if staged.applied.diff_id != self.diff_id {
            let (expected, actual) = (&self.diff_id, &staged.applied.diff_id);
            return Err(ArchiveError::Invalid(format!("layer {expected} has other content, with digest {actual}")));
        }
        let staged = Arc::new(staged);
        if !staged.complete(chain, lowers).map_err(failed)? {
            return Err(ArchiveError::Invalid(format!("layer {} changed its chain", self.diff_id)));
        }
        unpacked.insert(self.diff_id.clone(), staged.clone());
        Ok(staged)
    }
}

/// Follows indexes down to the manifest for the platform; `None` when there is none for it.
fn choose_manifest(
    spool: &Spool,
    descriptor: &Descriptor,
    platform: &Platform,
) -> Result<Option<(Manifest, Vec<u8>)>, ArchiveError> {
    let mut digest = descriptor.digest.clone();
    let mut media_type = descriptor.media_type.clone();
    for _ in 0..NESTING_MAX {
        let bytes = blob_document(spool, &digest, MANIFEST_BYTES_MAX)?;
        let said = (!media_type.is_empty()).then_some(media_type.as_str());
        match Document::parse(&bytes, said).map_err(|e| invalid("manifest", e))? {
            Document::Manifest(manifest) => return Ok(Some((manifest, bytes))),
            Document::Index(index) => match platform.choose(&index) {
                Ok(chosen) => (digest, media_type) = (chosen.digest.clone(), chosen.media_type.clone()),
                Err(_) => return Ok(None),
            },
        }
    }
    Err(ArchiveError::Invalid(format!("more than {NESTING_MAX} indexes inside each other")))
}

fn blob_document(spool: &Spool, digest: &Digest, bytes_max: usize) -> Result<Vec<u8>, ArchiveError> {
    let name = format!("blobs/{}/{}", digest.algorithm(), digest.hex());
    let bytes = spool.document(&name, bytes_max)?.ok_or_else(|| missing(&name))?;
    if digest.matches(&bytes) {
        return Ok(bytes);
    }
    Err(ArchiveError::Invalid(format!("blob {digest} has other bytes")))
}

/// One image of `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

fn docker_image(saved: &DockerImage, config_bytes: Vec<u8>) -> Result<FoundImage, ArchiveError> {
    let config = ImageConfig::parse(&config_bytes).map_err(|e| invalid("image", e))?;
    if saved.layers.len() != config.diff_ids.len() || saved.layers.len() > LAYERS_MAX {
        let why = format!("{} layers, its configuration has {}", saved.layers.len(), config.diff_ids.len());
        return Err(ArchiveError::Invalid(format!("manifest.json: an image has {why}")));
    }
    let layers: Vec<FoundLayer> = saved
        .layers
        .iter()
        .zip(&config.diff_ids)
        .map(|(member, diff_id)| FoundLayer {
            diff_id: diff_id.clone(),
            member: member.clone(),
            digest: None,
            counter: Arc::new(BlobCounter::new(diff_id.clone(), 0, BlobState::Waiting)),
        })
        .collect();
    Ok(FoundImage {
        layers,
        config,
        config_bytes,
        manifest: None,
        names: Vec::new(),
        digests: Vec::new(),
        index_digest: None,
        bare_tag: None,
    })
}

enum Name {
    Full(Reference),
    Tag(String),
    None,
}

/// What a layout calls an image. `org.opencontainers.image.ref.name` is a tag alone unless it looks like more.
fn name_of(descriptor: &Descriptor) -> Name {
    let annotation = |key| descriptor.annotations.get(key).map(String::as_str).filter(|name| !name.is_empty());
    let full = |name| Reference::parse(name).map_or(Name::None, Name::Full);
    match (annotation(CONTAINERD_NAME), annotation(OCI_NAME)) {
        (Some(name), _) => full(name),
        (None, Some(name)) if name.contains(['/', ':', '@']) => full(name),
        (None, Some(tag)) => Name::Tag(tag.to_owned()),
        (None, None) => Name::None,
    }
}

/// Tells a counter what is read through it.
struct Counted<'a> {
    inner: Spooled,
    counter: &'a BlobCounter,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.counter.add(got as u64);
        Ok(got)
    }
}

fn invalid(what: &str, why: impl std::fmt::Display) -> ArchiveError {
    ArchiveError::Invalid(format!("{what}: {why}"))
}

fn missing(member: &str) -> ArchiveError {
    ArchiveError::Invalid(format!("{member:?} is not in it"))
}
