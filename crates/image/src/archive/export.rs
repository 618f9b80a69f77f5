//! From the store into an archive.
//!
//! Layers go out uncompressed: that is what the store can give back to the byte, and the id of an image does not
//! depend on how its layers were packed. So the manifest is a new one, with diff-ids where digests of compressed blobs
//! were, and the configuration is the old one.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{ArchiveError, ExportFormat};
use crate::layer;
use crate::pull::{BlobCounter, BlobState, ProgressSender, Tracker};
use crate::reference::{Digest, Reference};
use crate::store::{Image, Inner, LayerUse};

const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const BLOCK_BYTES: u64 = 512;

/// Writes the images that `names` find as one archive. All of them are found before the first byte is written.
pub(crate) fn export(
    store: &Arc<Inner>,
    names: &[String],
    format: ExportFormat,
    output: &mut dyn Write,
    watcher: Option<&ProgressSender>,
) -> Result<(), ArchiveError> {
    let images = chosen(store, names)?;
    let tracker = Tracker::default();
    tracker.step("exporting");
    let layers = images.iter().flat_map(|image| &image.layers);
    tracker.blobs(layers.map(|layer| layer.counter.clone()).collect());
    tracker.tell(watcher);
    let mut archive = Archive { output, written: BTreeSet::new() };
    match format {
        ExportFormat::Oci => archive.oci(&images, || tracker.tell(watcher))?,
        ExportFormat::Docker => archive.docker(&images, || tracker.tell(watcher))?,
    }
    archive.output.write_all(&[0; 2 * BLOCK_BYTES as usize]).map_err(stream)?;
    archive.output.flush().map_err(stream)?;
    tracker.step("done");
    tracker.tell(watcher);
    Ok(())
}

struct Exported {
    image: Arc<Image>,
    id: Digest,
    names: Vec<Reference>,
    layers: Vec<ExportedLayer>,
}

struct ExportedLayer {
    diff_id: Digest,
    path: PathBuf,
    archive_bytes: u64,
    counter: Arc<BlobCounter>,
    /// Keeps the layer there until it is written.
    _use: LayerUse,
}

/// The images with their layers held. An image asked for by a tag gets that name; by its id or digest, all it has.
fn chosen(store: &Arc<Inner>, names: &[String]) -> Result<Vec<Exported>, ArchiveError> {
    let mut all: Vec<Exported> = Vec::new();
    for name in names {
        let image = store.find(name).ok_or_else(|| ArchiveError::NotFound(name.clone()))?;
        if image.config.artifact {
            return Err(ArchiveError::Artifact(name.clone()));
        }
        let asked =
            Reference::parse(name).ok().filter(|asked| asked.repo_tag().is_some_and(|tag| image.names.contains(&tag)));
        let more = match asked {
            Some(asked) => vec![asked],
            None => image.names.iter().filter_map(|name| Reference::parse(name).ok()).collect(),
        };
        if !all.iter().any(|known| known.image.id == image.id) {
            let mut layers = Vec::with_capacity(image.layers.len());
            for (key, source) in image.layers.iter().zip(&image.sources) {
                let held = store.use_key(key).ok_or_else(|| ArchiveError::NotFound(name.clone()))?;
                let (_use, path, archive_bytes) = held;
                let diff_id = source.diff_id.clone();
                let counter = Arc::new(BlobCounter::new(diff_id.clone(), archive_bytes, BlobState::Waiting));
                layers.push(ExportedLayer { diff_id, path, archive_bytes, counter, _use });
            }
            let id = Digest::sha256_of(&image.config_bytes);
            all.push(Exported { image: image.clone(), id, names: Vec::new(), layers });
        }
        if let Some(exported) = all.iter_mut().find(|known| known.image.id == image.id) {
            for name in more {
                if !exported.names.contains(&name) {
                    exported.names.push(name);
                }
            }
        }
    }
    Ok(all)
}

struct Archive<'a> {
    output: &'a mut dyn Write,
    /// Members that are there already: images share layers.
    written: BTreeSet<String>,
}

impl Archive<'_> {
    fn oci(&mut self, images: &[Exported], tell: impl Fn()) -> Result<(), ArchiveError> {
        self.directory("blobs/")?;
        self.directory("blobs/sha256/")?;
        self.document("oci-layout", &json!({"imageLayoutVersion": "1.0.0"}))?;
        let mut manifests = Vec::new();
        let mut saved = Vec::new();
        for exported in images {
            let config = blob_name(&exported.id);
            self.file(&config, &exported.image.config_bytes)?;
            let mut layers = Vec::new();
            for layer in &exported.layers {
                self.layer(&blob_name(&layer.diff_id), layer, &tell)?;
                layers.push(descriptor(OCI_LAYER, &layer.diff_id, layer.archive_bytes));
            }
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": descriptor(OCI_CONFIG, &exported.id, exported.image.config_bytes.len() as u64),
                "layers": layers,
            });
            let manifest = manifest.to_string().into_bytes();
            let digest = Digest::sha256_of(&manifest);
            self.file(&blob_name(&digest), &manifest)?;
            manifests.extend(exported.entries(&digest, manifest.len() as u64));
            saved.push(exported.saved(&config, |layer| blob_name(&layer.diff_id)));
        }
        self.document("index.json", &json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}))?;
        self.document("manifest.json", &Value::Array(saved))
    }

    fn docker(&mut self, images: &[Exported], tell: impl Fn()) -> Result<(), ArchiveError> {
        let layer_name = |layer: &ExportedLayer| format!("{}.tar", layer.diff_id.hex());
        let mut saved = Vec::new();
        for exported in images {
            let config = format!("{}.json", exported.id.hex());
            self.file(&config, &exported.image.config_bytes)?;
            for layer in &exported.layers {
                self.layer(&layer_name(layer), layer, &tell)?;
            }
            saved.push(exported.saved(&config, layer_name));
        }
        self.document("manifest.json", &Value::Array(saved))
    }

    /// Puts a layer's archive together again as a member, and compares it with what it must be.
    fn layer(&mut self, name: &str, layer: &ExportedLayer, tell: &impl Fn()) -> Result<(), ArchiveError> {
        layer.counter.set(BlobState::Downloading);
        tell();
        if self.begin(name, layer.archive_bytes)? {
            let mut output =
                Hashing { output: self.output, hasher: Sha256::new(), counter: &layer.counter, failed: false };
            let written = layer::reassemble(&layer.path, &mut output);
            let (actual, failed) = (Digest::from_sha256(&output.hasher.finalize().into()), output.failed);
            match written {
                Err(source) if failed => return Err(stream(source)),
                Err(source) => return Err(ArchiveError::Stream { step: "read a layer", source }),
                Ok(bytes) if actual != layer.diff_id || bytes != layer.archive_bytes => {
                    return Err(ArchiveError::Damaged { diff_id: layer.diff_id.clone(), actual });
                }
                Ok(bytes) => self.pad(bytes)?,
            }
        }
        layer.counter.set(BlobState::Done);
        tell();
        Ok(())
    }

    fn document(&mut self, name: &str, document: &Value) -> Result<(), ArchiveError> {
        self.file(name, document.to_string().as_bytes())
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), ArchiveError> {
        if !self.begin(name, bytes.len() as u64)? {
            return Ok(());
        }
        self.output.write_all(bytes).map_err(stream)?;
        self.pad(bytes.len() as u64)
    }

    fn directory(&mut self, name: &str) -> Result<(), ArchiveError> {
        self.header(name, 0, tar::EntryType::Directory, 0o755)
    }

    /// Begins a member; `false` when it is there already.
    fn begin(&mut self, name: &str, bytes: u64) -> Result<bool, ArchiveError> {
        if !self.written.insert(name.to_owned()) {
            return Ok(false);
        }
        self.header(name, bytes, tar::EntryType::Regular, 0o644)?;
        Ok(true)
    }

    fn header(&mut self, name: &str, bytes: u64, kind: tar::EntryType, mode: u32) -> Result<(), ArchiveError> {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).map_err(stream)?;
        header.set_entry_type(kind);
        header.set_size(bytes);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        // The same images give the same archive.
        header.set_mtime(0);
        header.set_cksum();
        self.output.write_all(header.as_bytes()).map_err(stream)
    }

    fn pad(&mut self, bytes: u64) -> Result<(), ArchiveError> {
        let padding = (bytes.wrapping_neg() % BLOCK_BYTES) as usize;
        self.output.write_all(&[0; BLOCK_BYTES as usize][..padding]).map_err(stream)
    }
}

impl Exported {
    /// Its entries in a layout's index: one for each name, or one without.
    fn entries(&self, manifest: &Digest, size: u64) -> Vec<Value> {
        let config = &self.image.config;
        let mut platform = json!({"architecture": config.architecture, "os": config.os});
        if !config.variant.is_empty() {
            platform["variant"] = json!(config.variant);
        }
        let mut entry = descriptor(OCI_MANIFEST, manifest, size);
        entry["platform"] = platform;
        if self.names.is_empty() {
            return vec![entry];
        }
        let named = |name: &Reference| {
            let mut entry = entry.clone();
            entry["annotations"] = json!({
                "io.containerd.image.name": name.to_string(),
                "org.opencontainers.image.ref.name": name.tag,
            });
            entry
        };
        self.names.iter().map(named).collect()
    }

    /// Its entry in `manifest.json`.
    fn saved(&self, config: &str, layer_name: impl Fn(&ExportedLayer) -> String) -> Value {
        let names: Vec<String> = self.names.iter().map(Reference::familiar).collect();
        let layers: Vec<String> = self.layers.iter().map(layer_name).collect();
        json!({"Config": config, "RepoTags": names, "Layers": layers})
    }
}

/// Hashes and counts what goes out.
struct Hashing<'a> {
    output: &'a mut dyn Write,
    hasher: Sha256,
    counter: &'a BlobCounter,
    /// The other end of the stream failed, and not the disk.
    failed: bool,
}

impl Write for Hashing<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let wrote = self.output.write(buffer).inspect_err(|_| self.failed = true)?;
        self.hasher.update(&buffer[..wrote]);
        self.counter.add(wrote as u64);
        Ok(wrote)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": digest.as_str(), "size": size})
}

fn stream(source: io::Error) -> ArchiveError {
    ArchiveError::Stream { step: "write the archive", source }
}
