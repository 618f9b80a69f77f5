//! Manifests, indexes and image configurations: OCI's and Docker's schema 2.
//!
//! Every document comes from outside. Unknown fields are let through, because every registry adds some; a document
//! that can be read in two ways is refused, because two readers would see two images. Nothing here checks a digest:
//! that is done on the bytes, before they get here.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeOwned, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

use crate::artifact::named_files;
use crate::platform::Platform;
use crate::reference::Digest;

/// OCI's manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI's index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker's manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's list of manifests.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// What an image's configuration calls itself; old Dockers said nothing better than `octet-stream`.
const CONFIG_TYPES: [&str; 3] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
    "application/octet-stream",
];

/// Bytes of a manifest or index; the distribution spec asks registries to take at least this and few take more.
pub const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Bytes of an image configuration; the largest seen in the field are some hundred kilobytes of history.
pub const CONFIG_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Layers of one image: overlay stacks at most 500 with the writable one.
pub const LAYERS_MAX: usize = 499;

/// Entries of an index: a builder's largest have some dozens, signatures included.
const INDEX_ENTRIES_MAX: usize = 4096;

/// A pointer to content: what it is, its digest and its size in bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// One of `media_type`'s, or anything.
    #[serde(default, deserialize_with = "null_is_default")]
    pub media_type: String,
    /// Of the bytes as they come over the wire.
    pub digest: Digest,
    /// Bytes over the wire.
    pub size: u64,
    /// Where foreign layers say they are. Never followed.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free remarks of the builder.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// In an index: what it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// How a layer's tar is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Plain tar.
    None,
    /// gzip.
    Gzip,
    /// zstd, skippable frames included.
    Zstd,
}

/// One image for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The document's own media type.
    pub media_type: String,
    /// The image configuration; its digest is the image's id.
    pub config: Descriptor,
    /// Lowest first; at most `LAYERS_MAX`.
    pub layers: Vec<Descriptor>,
    /// Of an artifact: the name of each layer's file. `None` for an image.
    pub files: Option<Vec<String>>,
}

/// The same image for several platforms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// The document's own media type.
    pub media_type: String,
    /// In the builder's order.
    pub manifests: Vec<Descriptor>,
}

/// What a registry has under a tag or digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// A choice of images.
    Index(Index),
}

/// What an image says of itself; the fields that a runtime needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// It is no image but an artifact: files without anything to run.
    pub artifact: bool,
    /// RFC 3339, or empty.
    pub created: String,
    /// Go's name of the architecture.
    pub architecture: String,
    /// Go's name of the operating system.
    pub os: String,
    /// `v7` of arm/v7, or empty.
    pub variant: String,
    /// `user`, `uid`, `user:group`, …; empty for root.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// In front of `cmd`.
    pub entrypoint: Vec<String>,
    /// The default arguments.
    pub cmd: Vec<String>,
    /// Absolute, or empty for `/`.
    pub working_dir: String,
    /// A name or number, or empty for SIGTERM.
    pub stop_signal: String,
    /// Paths in the container that are to be volumes, sorted.
    pub volumes: Vec<String>,
    /// `80/tcp`, sorted; for show only.
    pub exposed_ports: Vec<String>,
    /// Free remarks.
    pub labels: BTreeMap<String, String>,
    /// Digests of the unpacked layers, lowest first.
    pub diff_ids: Vec<Digest>,
    /// How it was built.
    pub history: Vec<History>,
}

/// One step of a build.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// A remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether this step made no layer.
    #[serde(default, deserialize_with = "null_is_default")]
    pub empty_layer: bool,
}

/// Why a document is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadManifest(String);

impl BadManifest {
    pub(crate) fn new(why: String) -> Self {
        Self(why)
    }
}

impl Document {
    /// Reads a manifest or an index; `content_type` is what the registry or the pointing descriptor said it is, when
    /// one did. A manifest that is neither a container image nor has files with names (a chart, a signature) is refused
    /// here too.
    pub fn parse(bytes: &[u8], content_type: Option<&str>) -> Result<Self, BadManifest> {
        if bytes.len() > MANIFEST_BYTES_MAX {
            return Err(BadManifest(format!("manifest of more than {MANIFEST_BYTES_MAX} bytes")));
        }
        check_keys(bytes)?;
        let raw: RawDocument = read("manifest", bytes)?;
        if raw.fs_layers.is_some() || raw.schema_version == Some(1) {
            return Err(BadManifest("manifest of schema 1, which knarr does not read: push the image again".into()));
        }
        let looks_like_index = raw.manifests.is_some();
        let looks_like_manifest = raw.config.is_some() || raw.layers.is_some();
        if looks_like_index && looks_like_manifest {
            return Err(BadManifest("ambiguous manifest: it is an index and an image at once".into()));
        }
        for said in [raw.media_type.as_deref(), content_type].into_iter().flatten() {
            check_kind(said, looks_like_index)?;
        }
        let default_type = if looks_like_index { OCI_INDEX } else { OCI_MANIFEST };
        let media_type = raw.media_type.unwrap_or_else(|| essence(content_type.unwrap_or(default_type)).to_owned());
        match (raw.manifests, raw.config, raw.layers) {
            (Some(manifests), ..) if manifests.len() > INDEX_ENTRIES_MAX => {
                Err(BadManifest(format!("index of more than {INDEX_ENTRIES_MAX} images")))
            }
            (Some(manifests), ..) => Ok(Self::Index(Index { media_type, manifests })),
            (None, Some(config), Some(layers)) => {
                Manifest { media_type, config, layers, files: None }.checked().map(Self::Manifest)
            }
            (None, None, None) => Err(BadManifest("manifest with neither layers nor manifests".into())),
            (None, Some(_), None) => Err(BadManifest("manifest without layers".into())),
            (None, None, Some(_)) => Err(BadManifest("manifest without config".into())),
        }
    }
}

impl Manifest {
    fn checked(self) -> Result<Self, BadManifest> {
        let config_type = essence(&self.config.media_type);
        if !CONFIG_TYPES.contains(&config_type) {
            return self.artifact();
        }
        if self.config.size > CONFIG_BYTES_MAX as u64 {
            return Err(BadManifest(format!("image configuration of more than {CONFIG_BYTES_MAX} bytes")));
        }
        if self.layers.len() > LAYERS_MAX {
            return Err(BadManifest(format!(
                "image of {} layers; at most {LAYERS_MAX} can be mounted",
                self.layers.len()
            )));
        }
        let odd = self.layers.iter().find(|layer| layer.compression().is_none());
        match odd {
            Some(layer) => {
                Err(BadManifest(format!("layer {} is of unknown type {:?}", layer.digest, layer.media_type)))
            }
            None => Ok(self),
        }
    }
}

impl Manifest {
    fn artifact(self) -> Result<Self, BadManifest> {
        let (layers, files) = named_files(self.layers)?;
        let kind = essence(&self.config.media_type);
        match layers.len() {
            0 => {
                let why = format!("its config is of type {kind:?}, and no layer has the name of a file");
                Err(BadManifest(format!("neither a container image nor an artifact with files: {why}")))
            }
            1..=LAYERS_MAX => Ok(Self { layers, files: Some(files), ..self }),
            many => Err(BadManifest(format!("artifact of {many} files; at most {LAYERS_MAX} can be mounted"))),
        }
    }
}

impl Descriptor {
    /// How this layer is packed, by its media type; `None` when the type is no layer's.
    pub fn compression(&self) -> Option<Compression> {
        match essence(&self.media_type) {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar" => Some(Compression::None),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Some(Compression::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Some(Compression::Zstd),
            _ => None,
        }
    }
}

impl ImageConfig {
    /// Reads an image configuration.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadManifest> {
        if bytes.len() > CONFIG_BYTES_MAX {
            return Err(BadManifest(format!("image configuration of more than {CONFIG_BYTES_MAX} bytes")));
        }
        let raw: RawConfig = read("image configuration", bytes)?;
        if raw.rootfs.kind != "layers" {
            return Err(BadManifest(format!("image configuration: rootfs is of unknown type {:?}", raw.rootfs.kind)));
        }
        if raw.rootfs.diff_ids.len() > LAYERS_MAX {
            return Err(BadManifest(format!("image configuration: more than {LAYERS_MAX} layers")));
        }
        Ok(Self {
            artifact: false,
            created: raw.created,
            architecture: raw.architecture,
            os: raw.os,
            variant: raw.variant,
            user: raw.config.user,
            env: raw.config.env,
            entrypoint: raw.config.entrypoint.0,
            cmd: raw.config.cmd.0,
            working_dir: raw.config.working_dir,
            stop_signal: raw.config.stop_signal,
            volumes: raw.config.volumes.into_keys().collect(),
            exposed_ports: raw.config.exposed_ports.into_keys().collect(),
            labels: raw.config.labels.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect(),
            diff_ids: raw.rootfs.diff_ids,
            history: raw.history,
        })
    }

    /// Whether this belongs to `manifest`: one diff-id for each layer.
    pub fn check_fits(&self, manifest: &Manifest) -> Result<(), BadManifest> {
        match (self.diff_ids.len(), manifest.layers.len()) {
            (diff_ids, layers) if diff_ids == layers => Ok(()),
            (diff_ids, layers) => {
                Err(BadManifest(format!("manifest has {layers} layers, its configuration {diff_ids}")))
            }
        }
    }
}

/// A manifest or an index before it is known which; every field that tells them apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    fs_layers: Option<IgnoredAny>,
}

/// The names of `RawDocument`'s fields.
const KEYS: [&str; 6] = ["schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers"];

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default, deserialize_with = "null_is_default")]
    created: String,
    #[serde(default, deserialize_with = "null_is_default")]
    architecture: String,
    #[serde(default, deserialize_with = "null_is_default")]
    os: String,
    #[serde(default, deserialize_with = "null_is_default")]
    variant: String,
    #[serde(default, deserialize_with = "null_is_default")]
    config: RawDefaults,
    rootfs: RawRootFs,
    #[serde(default, deserialize_with = "null_is_default")]
    history: Vec<History>,
}

#[derive(Deserialize)]
struct RawRootFs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, deserialize_with = "null_is_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct RawDefaults {
    #[serde(deserialize_with = "null_is_default")]
    user: String,
    #[serde(deserialize_with = "null_is_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    entrypoint: Words,
    #[serde(deserialize_with = "null_is_default")]
    cmd: Words,
    #[serde(deserialize_with = "null_is_default")]
    working_dir: String,
    #[serde(deserialize_with = "null_is_default")]
    stop_signal: String,
    #[serde(deserialize_with = "null_is_default")]
    volumes: BTreeMap<String, IgnoredAny>,
    #[serde(deserialize_with = "null_is_default")]
    exposed_ports: BTreeMap<String, IgnoredAny>,
    #[serde(deserialize_with = "null_is_default")]
    labels: BTreeMap<String, Option<String>>,
}

/// A list of words; old builders wrote a single one without the list.
#[derive(Default)]
struct Words(Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            One(String),
            Many(Vec<String>),
        }
        Ok(Self(match Either::deserialize(deserializer)? {
            Either::One(word) => vec![word],
            Either::Many(words) => words,
        }))
    }
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

fn read<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, BadManifest> {
    serde_json::from_slice(bytes).map_err(|error| BadManifest(format!("{what}: {error}")))
}

/// `a/b; charset=utf-8` → `a/b`.
fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or("").trim()
}

/// Refuses a document that calls itself the other kind. Types that say nothing, such as `application/json` of a plain
/// web server, are let through: the shape decides.
fn check_kind(said: &str, looks_like_index: bool) -> Result<(), BadManifest> {
    let says_index = match essence(said) {
        OCI_INDEX | DOCKER_INDEX => true,
        OCI_MANIFEST | DOCKER_MANIFEST => false,
        _ => return Ok(()),
    };
    match says_index == looks_like_index {
        true => Ok(()),
        false if says_index => Err(BadManifest("ambiguous manifest: called an index, but it is an image".into())),
        false => Err(BadManifest("ambiguous manifest: called an image, but it is an index".into())),
    }
}

/// Refuses `Layers` beside or instead of `layers`: readers that ignore case, as Go's do, would see another document.
fn check_keys(bytes: &[u8]) -> Result<(), BadManifest> {
    struct Keys;
    impl<'de> Visitor<'de> for Keys {
        type Value = Option<String>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut odd = None;
            while let Some((key, _)) = map.next_entry::<String, IgnoredAny>()? {
                if KEYS.iter().any(|known| *known != key && known.eq_ignore_ascii_case(&key)) {
                    odd.get_or_insert(key);
                }
            }
            Ok(odd)
        }
    }
    let odd = serde_json::Deserializer::from_slice(bytes).deserialize_map(Keys);
    match odd.map_err(|error| BadManifest(format!("manifest: {error}")))? {
        Some(key) => {
            Err(BadManifest(format!("ambiguous manifest: the field {key:?} differs from a known one by case")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn descriptor(media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": Digest::sha256_of(media_type.as_bytes()), "size": 7 })
    }

    fn manifest() -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(CONFIG_TYPES[0]),
            "layers": [
                descriptor("application/vnd.oci.image.layer.v1.tar+gzip"),
                descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip"),
                descriptor("application/vnd.oci.image.layer.v1.tar+zstd"),
                descriptor("application/vnd.oci.image.layer.v1.tar"),
            ],
            "annotations": { "future": "field" },
            "subject": null,
        })
    }

    fn index() -> Value {
        let mut entry = descriptor(OCI_MANIFEST);
        entry["platform"] = json!({ "os": "linux", "architecture": "arm", "variant": "v7", "os.features": ["x"] });
        json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry] })
    }

    fn parse(document: &Value, content_type: Option<&str>) -> Result<Document, BadManifest> {
        Document::parse(document.to_string().as_bytes(), content_type)
    }

    #[test]
    fn manifests_and_indexes_are_told_apart() {
        let Ok(Document::Manifest(image)) = parse(&manifest(), Some(OCI_MANIFEST)) else { panic!("a manifest") };
        let packed: Vec<_> = image.layers.iter().filter_map(Descriptor::compression).collect();
        assert_eq!(packed, [Compression::Gzip, Compression::Gzip, Compression::Zstd, Compression::None]);
        let Ok(Document::Index(list)) = parse(&index(), Some(&format!("{OCI_INDEX}; charset=utf-8"))) else {
            panic!("an index")
        };
        assert_eq!(list.manifests[0].platform.as_ref().map(Platform::to_string).as_deref(), Some("linux/arm/v7"));
    }

    #[test]
    fn without_a_type_the_shape_decides() {
        for (mut document, expected) in [(manifest(), OCI_MANIFEST), (index(), OCI_INDEX)] {
            document.as_object_mut().expect("an object").remove("mediaType");
            for content_type in [None, Some("application/json"), Some("text/plain")] {
                assert!(parse(&document, content_type).is_ok(), "{content_type:?}");
            }
            let media_type = match parse(&document, None) {
                Ok(Document::Manifest(manifest)) => manifest.media_type,
                Ok(Document::Index(index)) => index.media_type,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(media_type, expected);
        }
    }

    #[test]
    fn a_document_that_can_be_read_in_two_ways_is_refused() {
        let change = |base: Value, key: &str, value: Value| {
            let mut document = base;
            document[key] = value;
            document
        };
        let cases = [
            change(manifest(), "manifests", json!([])),
            change(manifest(), "manifests", index()["manifests"].clone()),
            change(index(), "layers", json!([])),
            change(index(), "config", descriptor(CONFIG_TYPES[0])),
            change(manifest(), "mediaType", json!(OCI_INDEX)),
            change(manifest(), "mediaType", json!(DOCKER_INDEX)),
            change(index(), "mediaType", json!(OCI_MANIFEST)),
            change(manifest(), "Layers", json!([])),
            change(index(), "MANIFESTS", json!([])),
            change(manifest(), "fsLayers", json!([])),
            change(manifest(), "schemaVersion", json!(1)),
        ];
        for document in cases {
            assert!(parse(&document, None).is_err(), "{document}");
        }
        assert!(parse(&manifest(), Some(OCI_INDEX)).is_err(), "the registry says it is an index");
        assert!(parse(&index(), Some(DOCKER_MANIFEST)).is_err(), "the registry says it is an image");
        let twice = r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#;
        assert!(Document::parse(twice.as_bytes(), None).is_err(), "a field given twice");
    }

    #[test]
    fn what_is_no_container_image_is_refused_by_name() {
        let cases = [
            ("config", json!(descriptor("application/vnd.cncf.helm.config.v1+json")), "helm"),
            ("layers", json!([descriptor("application/vnd.oci.image.layer.v1.tar+encrypted")]), "encrypted"),
            ("layers", json!(vec![descriptor("application/vnd.oci.image.layer.v1.tar"); LAYERS_MAX + 1]), "500 layers"),
            ("config", Value::Null, "without config"),
            ("layers", Value::Null, "without layers"),
        ];
        for (key, value, expected) in cases {
            let mut document = manifest();
            document[key] = value;
            let error = parse(&document, None).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        }
        let mut document = manifest();
        document["config"]["size"] = json!(CONFIG_BYTES_MAX + 1);
        assert!(parse(&document, None).is_err());
        document = manifest();
        document["layers"][0]["size"] = json!(-1);
        assert!(parse(&document, None).is_err());
        document["layers"][0]["size"] = json!(1);
        document["layers"][0]["digest"] = json!("sha256:../../x");
        assert!(parse(&document, None).is_err());
    }

    #[test]
    fn too_long_documents_are_not_even_read() {
        let mut padded = manifest().to_string();
        padded.extend(std::iter::repeat_n(' ', MANIFEST_BYTES_MAX));
        assert!(Document::parse(padded.as_bytes(), None).is_err());
        assert!(ImageConfig::parse(&vec![b' '; CONFIG_BYTES_MAX + 1]).is_err());
        let deep = "[".repeat(100_000);
        assert!(Document::parse(deep.as_bytes(), None).is_err());
    }

    #[test]
    fn a_configuration_gives_what_a_runtime_needs() {
        let bytes = json!({
            "created": "2026-01-02T03:04:05Z",
            "architecture": "arm", "os": "linux", "variant": "v7",
            "config": {
                "User": "1002:3", "Env": ["A=b"], "Entrypoint": ["/e"], "Cmd": ["c"], "WorkingDir": "/w",
                "StopSignal": "SIGINT", "Volumes": { "/v": {}, "/a": {} }, "ExposedPorts": { "80/tcp": {} },
                "Labels": { "k": "v", "null": null }, "Healthcheck": { "Test": ["NONE"] },
            },
            "rootfs": { "type": "layers", "diff_ids": [Digest::sha256_of(b"layer")] },
            "history": [{ "created_by": "ADD", "empty_layer": true }, {}],
        });
        let config = ImageConfig::parse(bytes.to_string().as_bytes()).expect("valid");
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("1002:3", "/w"));
        assert_eq!((config.entrypoint, config.cmd), (vec!["/e".to_owned()], vec!["c".to_owned()]));
        assert_eq!(config.volumes, ["/a", "/v"]);
        assert_eq!(config.exposed_ports, ["80/tcp"]);
        assert_eq!(config.labels.get("null").map(String::as_str), Some(""));
        assert_eq!(config.diff_ids, [Digest::sha256_of(b"layer")]);
        assert!(config.history[0].empty_layer && !config.history[1].empty_layer);
    }

    #[test]
    fn nulls_and_single_words_of_old_builders_are_read() {
        let bytes = json!({
            "architecture": "amd64", "os": "linux", "history": null,
            "config": {
                "User": null, "Env": null, "Entrypoint": "/single", "Cmd": null, "WorkingDir": null,
                "StopSignal": null, "Volumes": null, "ExposedPorts": null, "Labels": null,
            },
            "rootfs": { "type": "layers", "diff_ids": null },
        });
        let config = ImageConfig::parse(bytes.to_string().as_bytes()).expect("valid");
        assert_eq!((config.entrypoint, config.cmd), (vec!["/single".to_owned()], Vec::new()));
        let bare = json!({ "rootfs": { "type": "layers" }, "config": null });
        assert!(ImageConfig::parse(bare.to_string().as_bytes()).is_ok());
        for broken in [json!({}), json!({ "rootfs": { "type": "windows" } }), json!([]), json!(null)] {
            assert!(ImageConfig::parse(broken.to_string().as_bytes()).is_err(), "{broken}");
        }
    }

    #[test]
    fn layers_and_diff_ids_must_be_as_many() {
        let Ok(Document::Manifest(manifest)) = parse(&manifest(), None) else { panic!("a manifest") };
        let mut config = ImageConfig { diff_ids: vec![Digest::sha256_of(b"x"); 4], ..ImageConfig::default() };
        assert_eq!(config.check_fits(&manifest), Ok(()));
        config.diff_ids.pop();
        assert!(config.check_fits(&manifest).is_err());
    }

    /// JSON that looks like a manifest's, with every field present, absent, of the wrong type or doubled.
    fn any_document() -> impl Strategy<Value = String> {
        let value = prop_oneof![
            Just("null".to_owned()),
            Just("[]".to_owned()),
            Just("{}".to_owned()),
            Just("2".to_owned()),
            Just(format!("{OCI_INDEX:?}")),
            Just(format!("{DOCKER_MANIFEST:?}")),
            Just(descriptor(CONFIG_TYPES[1]).to_string()),
            Just(manifest()["layers"].to_string()),
            Just(index()["manifests"].to_string()),
        ];
        let key = prop_oneof![prop::sample::select(KEYS.as_slice()), Just("Layers"), Just("manifestS"), Just("other")];
        prop::collection::vec((key, value), 0..7).prop_map(|fields| {
            let fields: Vec<String> = fields.iter().map(|(key, value)| format!("{key:?}:{value}")).collect();
            format!("{{{}}}", fields.join(","))
        })
    }

    proptest! {
        #[test]
        fn any_shape_of_configuration_is_survived(
            key in prop::sample::select(vec![
                "User", "Env", "Entrypoint", "Cmd", "WorkingDir", "StopSignal", "Volumes", "ExposedPorts", "Labels",
            ]),
            value in prop::sample::select(vec![
                "null", "1", "\"x\"", "[]", "[\"a\"]", "[1]", "[null]", "{}", "{\"a\":1}", "{\"a\":null}", "true",
            ]),
            top in prop::sample::select(vec!["", "\"history\":[{\"empty_layer\":null}],", "\"os\":null,", "\"created\":1,"]),
        ) {
            let text = format!("{{{top}\"config\":{{{key:?}:{value}}},\"rootfs\":{{\"type\":\"layers\"}}}}");
            if let Ok(config) = ImageConfig::parse(text.as_bytes()) {
                prop_assert!(config.diff_ids.is_empty());
            }
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
            let _ = Document::parse(&bytes, None);
            let _ = ImageConfig::parse(&bytes);
        }

        #[test]
        fn whatever_is_taken_has_one_reading(text in any_document()) {
            if let Ok(document) = Document::parse(text.as_bytes(), None) {
                // Go's reader ignores case and lets the last of two fields win; seen so, it must be the same kind.
                let lower = text.to_ascii_lowercase();
                let is_index = matches!(document, Document::Index(_));
                let filled = |key: &str| {
                    lower.contains(&format!("\"{key}\":[")) || lower.contains(&format!("\"{key}\":{{"))
                };
                prop_assert_eq!(is_index, filled("manifests"), "{}", text);
                prop_assert!(!(is_index && (filled("layers") || filled("config"))), "{}", text);
            }
        }
    }
}
