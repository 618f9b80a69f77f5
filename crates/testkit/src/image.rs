//! Container images made in memory: small, valid, and the same bytes on every run.
//!
//! What makes an image invalid is the test's business: every part is a public field that a test may change before it
//! puts the image into a registry or an archive. Digests are plain text here, because this crate must not share the
//! code that it is there to test.

use std::fmt::Write as _;
use std::io::Write as _;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// OCI's media types.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI's index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's schema 2 list.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// `sha256:<digits>` of `bytes`.
pub fn sha256(bytes: &[u8]) -> String {
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// An uncompressed tar with these regular files, 0644, owned by root, made at the epoch, no parent directories.
pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let files: Vec<_> = files.iter().map(|&(path, content)| (path, 0o644, content)).collect();
    tar_with(&files)
}

/// The same with permission bits for each file.
pub fn tar_with(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for &(path, mode, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_entry_type(tar::EntryType::Regular);
        builder.append_data(&mut header, path, content).expect("a path that fits a tar header");
    }
    builder.into_inner().expect("writing to memory")
}

/// An uncompressed tar with these symbolic links, as (path, target).
pub fn tar_of_links(links: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for &(path, target) in links {
        let mut header = tar::Header::new_ustar();
        header.set_size(0);
        header.set_entry_type(tar::EntryType::Symlink);
        builder.append_link(&mut header, path, target).expect("paths that fit a tar header");
    }
    builder.into_inner().expect("writing to memory")
}

/// One layer, as a registry has it and as it is unpacked.
#[derive(Debug, Clone)]
pub struct Layer {
    /// The media type that the manifest gives it.
    pub media_type: String,
    /// The bytes over the wire.
    pub blob: Vec<u8>,
    /// Digest of `tar`.
    pub diff_id: String,
    /// The unpacked bytes.
    pub tar: Vec<u8>,
}

impl Layer {
    /// A tar as it is.
    pub fn plain(tar: Vec<u8>) -> Self {
        Self::new("application/vnd.oci.image.layer.v1.tar", tar.clone(), tar)
    }

    /// A tar through gzip.
    pub fn gzip(tar: Vec<u8>) -> Self {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&tar).expect("writing to memory");
        let blob = encoder.finish().expect("writing to memory");
        Self::new("application/vnd.oci.image.layer.v1.tar+gzip", blob, tar)
    }

    /// A tar through zstd.
    pub fn zstd(tar: Vec<u8>) -> Self {
        let blob = zstd::encode_all(tar.as_slice(), 1).expect("writing to memory");
        Self::new("application/vnd.oci.image.layer.v1.tar+zstd", blob, tar)
    }

    fn new(media_type: &str, blob: Vec<u8>, tar: Vec<u8>) -> Self {
        Self { media_type: media_type.into(), blob, diff_id: sha256(&tar), tar }
    }

    /// Digest of the bytes over the wire.
    pub fn digest(&self) -> String {
        sha256(&self.blob)
    }
}

/// One image for one platform.
#[derive(Debug, Clone)]
pub struct Image {
    /// Lowest first.
    pub layers: Vec<Layer>,
    /// The image configuration.
    pub config: Vec<u8>,
    /// The manifest's media type.
    pub media_type: String,
    /// The manifest.
    pub manifest: Vec<u8>,
}

impl Image {
    /// For linux/amd64, with `/bin/sh` as its command.
    pub fn new(layers: Vec<Layer>) -> Self {
        Self::with_config(layers, json!({ "config": { "Cmd": ["/bin/sh"], "Env": ["PATH=/bin"] } }))
    }

    /// With a configuration of the test's own: `os`, `architecture` and `rootfs` are filled in where it has none.
    pub fn with_config(layers: Vec<Layer>, mut config: Value) -> Self {
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let defaults = [
            ("created", json!("2026-01-02T03:04:05Z")),
            ("architecture", json!("amd64")),
            ("os", json!("linux")),
            ("rootfs", json!({ "type": "layers", "diff_ids": diff_ids })),
        ];
        for (key, value) in defaults {
            if config.get(key).is_none() {
                config[key] = value;
            }
        }
        let config = config.to_string().into_bytes();
        let described: Vec<Value> = layers
            .iter()
            .map(|layer| json!({ "mediaType": layer.media_type, "digest": layer.digest(), "size": layer.blob.len() }))
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": sha256(&config),
                "size": config.len(),
            },
            "layers": described,
        });
        Self { layers, config, media_type: OCI_MANIFEST.into(), manifest: manifest.to_string().into_bytes() }
    }

    /// An artifact: its layers are these files as they are, named by OCI's annotation; its id is [`Self::digest`].
    pub fn artifact(files: &[(&str, &[u8])]) -> Self {
        let config = b"{}".to_vec();
        let layers: Vec<Layer> = files
            .iter()
            .map(|(_, content)| Layer::new("application/octet-stream", content.to_vec(), Vec::new()))
            .collect();
        let described: Vec<Value> = layers
            .iter()
            .zip(files)
            .map(|(layer, (name, _))| {
                json!({
                    "mediaType": layer.media_type,
                    "digest": layer.digest(),
                    "size": layer.blob.len(),
                    "annotations": { "org.opencontainers.image.title": name },
                })
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": "application/vnd.knarr.test.v1",
            "config": {
                "mediaType": "application/vnd.oci.empty.v1+json",
                "digest": sha256(&config),
                "size": config.len(),
            },
            "layers": described,
        });
        Self { layers, config, media_type: OCI_MANIFEST.into(), manifest: manifest.to_string().into_bytes() }
    }

    /// Digest of the configuration: the image's id.
    pub fn id(&self) -> String {
        sha256(&self.config)
    }

    /// Digest of the manifest.
    pub fn digest(&self) -> String {
        sha256(&self.manifest)
    }
}

/// An index of `images`, each for `(architecture, variant)` on linux; an empty variant is none.
pub fn index_of(images: &[(&str, &str, &Image)]) -> Vec<u8> {
    let entries: Vec<Value> = images
        .iter()
        .map(|(architecture, variant, image)| {
            let mut platform = json!({ "os": "linux", "architecture": architecture });
            if !variant.is_empty() {
                platform["variant"] = json!(variant);
            }
            json!({
                "mediaType": image.media_type,
                "digest": image.digest(),
                "size": image.manifest.len(),
                "platform": platform,
            })
        })
        .collect();
    json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries }).to_string().into_bytes()
}
