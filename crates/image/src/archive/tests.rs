//! Archives in and out, good and hostile.

use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use knarr_testkit::image::{Image as TestImage, Layer, index_of, sha256, tar_of};
use serde_json::{Value, json};

use super::*;
use crate::Images;
use crate::pull::{Progress, PullConfig};
use crate::registry::{Registry, RegistryConfig};
use crate::store::{Image, Store, StoreConfig};

struct Node {
    dir: tempfile::TempDir,
    images: Images,
}

impl Node {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: layers need root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreConfig::default()).unwrap();
        store.settle();
        let registry = Registry::new(RegistryConfig::default()).unwrap();
        Some(Self { dir, images: Images::new(store, registry, &PullConfig::default()) })
    }

    fn import(&self, archive: &[u8]) -> Result<Vec<String>, ArchiveError> {
        self.images.import(archive, &ImportOptions::default(), None)
    }

    fn import_named(&self, archive: &[u8], name: &str) -> Result<Vec<String>, ArchiveError> {
        let options = ImportOptions { name: Some(name.to_owned()), ..ImportOptions::default() };
        self.images.import(archive, &options, None)
    }

    fn export(&self, names: &[&str], format: ExportFormat) -> Result<Vec<u8>, ArchiveError> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut archive = Vec::new();
        self.images.export(&names, format, &mut archive, None).map(|()| archive)
    }

    fn find(&self, name: &str) -> Option<Arc<Image>> {
        self.images.store().find(name)
    }
}

/// Members of an archive under construction.
#[derive(Default)]
struct Members(Vec<(String, Vec<u8>, Option<String>)>);

impl Members {
    fn file(mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.0.push((name.to_owned(), bytes.into(), None));
        self
    }

    fn link(mut self, name: &str, target: &str) -> Self {
        self.0.push((name.to_owned(), Vec::new(), Some(target.to_owned())));
        self
    }

    fn blob(self, bytes: &[u8]) -> Self {
        let name = format!("blobs/sha256/{}", &sha256(bytes)["sha256:".len()..]);
        self.file(&name, bytes)
    }

    fn image(mut self, image: &TestImage) -> Self {
        for layer in &image.layers {
            self = self.blob(&layer.blob);
        }
        self.blob(&image.config).blob(&image.manifest)
    }

    fn tar(&self) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes, link) in &self.0 {
            let mut header = tar::Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_mode(0o644);
            header.set_size(bytes.len() as u64);
            if let Some(link) = link {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_link_name(link).unwrap();
            }
            header.set_cksum();
            builder.append(&header, &bytes[..]).unwrap();
        }
        builder.into_inner().unwrap()
    }
}

fn layer(name: &str) -> Layer {
    Layer::gzip(tar_of(&[(name, name.repeat(1000).as_bytes())]))
}

fn entry(image: &TestImage, annotations: Value) -> Value {
    json!({"mediaType": image.media_type, "digest": image.digest(), "size": image.manifest.len(), "annotations": annotations})
}

fn layout(entries: &[Value]) -> Members {
    let index = json!({"schemaVersion": 2, "manifests": entries});
    Members::default().file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#).file("index.json", index.to_string())
}

fn saved(image: &TestImage, names: Value) -> Members {
    let config = format!("{}.json", &image.id()["sha256:".len()..]);
    let layers: Vec<String> = (0..image.layers.len()).map(|at| format!("{at}/layer.tar")).collect();
    let manifest = json!([{"Config": config, "RepoTags": names, "Layers": layers}]);
    let mut members = Members::default().file(&config, image.config.clone());
    for (at, layer) in image.layers.iter().enumerate() {
        members = members.file(&format!("{at}/layer.tar"), layer.tar.clone());
    }
    members.file("manifest.json", manifest.to_string())
}

#[test]
fn an_image_comes_back_with_the_same_id_in_both_formats() {
    let Some(node) = Node::new() else { return };
    let made = TestImage::new(vec![
        layer("a"),
        Layer::zstd(tar_of(&[("d/implied", b"x"), ("f", b"1"), ("f", b"2")])),
        layer("a"),
    ]);
    let archive = layout(&[entry(&made, json!({"io.containerd.image.name": "example.com/x:1"}))]).image(&made).tar();
    assert_eq!(node.import(&archive).unwrap(), ["example.com/x:1"]);
    let image = node.find("example.com/x:1").unwrap();
    assert_eq!(image.id, made.id());
    assert_eq!(image.digests, [format!("example.com/x@{}", made.digest())]);

    for format in [ExportFormat::Oci, ExportFormat::Docker] {
        let exported = node.export(&["example.com/x:1"], format).unwrap();
        assert_eq!(exported, node.export(&[&made.id()], format).unwrap(), "the same images give the same archive");
        let other = Node::new().unwrap();
        assert_eq!(other.import(&exported).unwrap(), ["example.com/x:1"]);
        let back = other.find(&made.id()).unwrap();
        assert_eq!((&back.names, &back.layers), (&image.names, &image.layers));
        assert_eq!(*back.config_bytes, made.config);
        let again = other.export(&["example.com/x:1"], format).unwrap();
        assert_eq!(again, exported);
        // And the layers in it are the very archives that went in.
        let members = names_and_bytes(&exported);
        for layer in &made.layers {
            assert!(members.iter().any(|(_, bytes)| *bytes == layer.tar));
        }
    }
}

fn names_and_bytes(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        all.push((entry.path().unwrap().to_str().unwrap().to_owned(), bytes));
    }
    all
}

#[test]
fn an_export_reads_as_a_layout_and_as_docker_saves() {
    let Some(node) = Node::new() else { return };
    let (a, b) = (TestImage::new(vec![layer("base"), layer("a")]), TestImage::new(vec![layer("base"), layer("b")]));
    node.import(&saved(&a, json!(["busybox:1", "busybox:2"])).tar()).unwrap();
    node.import(&saved(&b, json!(["localhost/b:1"])).tar()).unwrap();
    let exported = node.export(&["busybox:1", &b.id(), "busybox"], ExportFormat::Oci);
    assert!(matches!(exported, Err(ArchiveError::NotFound(name)) if name == "busybox"));
    let members = names_and_bytes(&node.export(&["busybox:1", &b.id(), "busybox:1"], ExportFormat::Oci).unwrap());
    let find = |name: &str| -> Value {
        let (_, bytes) = members.iter().find(|(known, _)| known == name).unwrap();
        serde_json::from_slice(bytes).unwrap()
    };
    let blobs: Vec<_> =
        members.iter().filter(|(name, _)| name.starts_with("blobs/sha256/") && name.len() > 13).collect();
    assert_eq!(blobs.len(), 3 + 2 + 2, "layers, the base once; configurations; manifests");
    for (name, bytes) in blobs {
        assert_eq!(name["blobs/sha256/".len()..], sha256(bytes)["sha256:".len()..]);
    }
    let index = find("index.json");
    let annotations: Vec<_> =
        index["manifests"].as_array().unwrap().iter().map(|entry| &entry["annotations"]).collect();
    assert_eq!(annotations[0]["io.containerd.image.name"], "docker.io/library/busybox:1");
    assert_eq!(annotations[0]["org.opencontainers.image.ref.name"], "1");
    assert_eq!(annotations[1]["io.containerd.image.name"], "localhost/b:1");
    assert_eq!(annotations.len(), 2, "busybox:2 was not asked for");
    let docker = find("manifest.json");
    assert_eq!(docker[0]["RepoTags"], json!(["busybox:1"]));
    assert_eq!(docker[0]["Layers"].as_array().unwrap().len(), 2);
}

#[test]
fn archives_may_be_compressed_as_a_whole() {
    let made = TestImage::new(vec![layer("a")]);
    let archive = saved(&made, json!(["x:1"])).tar();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&archive).unwrap();
    for packed in [gzip.finish().unwrap(), zstd::encode_all(&archive[..], 1).unwrap()] {
        let Some(node) = Node::new() else { return };
        assert_eq!(node.import(&packed).unwrap(), ["docker.io/library/x:1"]);
    }
}

#[test]
fn old_docker_archives_have_links_for_layers_that_repeat() {
    let Some(node) = Node::new() else { return };
    let made = TestImage::new(vec![layer("a"), layer("b"), layer("a")]);
    let mut members = saved(&made, Value::Null);
    members.0.retain(|(name, ..)| name != "2/layer.tar");
    let archive = members.link("2/layer.tar", "../0/layer.tar").tar();
    assert_eq!(node.import(&archive).unwrap(), [made.id()]);
    let image = node.find(&made.id()).unwrap();
    assert!(image.names.is_empty() && image.digests.is_empty());
    assert_eq!(node.images.store().layer_paths(&image).len(), 2, "overlayfs takes no directory twice");
}

#[test]
fn names_come_from_where_each_writer_puts_them() {
    let made = TestImage::new(vec![layer("a")]);
    let one = |annotations: Value| layout(&[entry(&made, annotations)]).image(&made).tar();
    for (annotations, option, expected) in [
        (json!({"org.opencontainers.image.ref.name": "busybox:1"}), None, "docker.io/library/busybox:1"),
        (json!({"org.opencontainers.image.ref.name": "quay.io/x/y"}), None, "quay.io/x/y:latest"),
        (
            json!({"io.containerd.image.name": "docker.io/library/z:3", "org.opencontainers.image.ref.name": "3"}),
            None,
            "docker.io/library/z:3",
        ),
        (json!({"org.opencontainers.image.ref.name": "1.0"}), Some("quay.io/x/y:9"), "quay.io/x/y:9"),
        (json!({}), Some("given"), "docker.io/library/given:latest"),
        (json!({"io.containerd.image.name": "kept:1"}), Some("given"), "docker.io/library/kept:1"),
    ] {
        let Some(node) = Node::new() else { return };
        let names = match option {
            Some(name) => node.import_named(&one(annotations), name),
            None => node.import(&one(annotations)),
        };
        assert_eq!(names.unwrap(), [expected]);
    }
    // Several bare tags are tags of the one repository that was given.
    let Some(node) = Node::new() else { return };
    let other = TestImage::new(vec![layer("b")]);
    let tag = |image, tag: &str| entry(image, json!({"org.opencontainers.image.ref.name": tag}));
    let archive = layout(&[tag(&made, "1"), tag(&other, "2")]).image(&made).image(&other).tar();
    let mut names = node.import_named(&archive, "quay.io/x/y").unwrap();
    names.sort();
    assert_eq!(names, ["quay.io/x/y:1", "quay.io/x/y:2"]);
    assert_eq!(node.find("quay.io/x/y:2").unwrap().id, other.id());
}

#[test]
fn docker_names_are_added_to_the_layouts_images() {
    let Some(node) = Node::new() else { return };
    let made = TestImage::new(vec![layer("a")]);
    let config = format!("blobs/sha256/{}", &made.id()["sha256:".len()..]);
    let manifest = json!([{"Config": config, "RepoTags": ["a:1", "a:2"], "Layers": []}]);
    let archive = layout(&[entry(&made, json!({}))]).image(&made).file("manifest.json", manifest.to_string()).tar();
    assert_eq!(node.import(&archive).unwrap(), ["docker.io/library/a:1", "docker.io/library/a:2"]);
}

#[test]
fn the_platforms_image_is_taken_from_indexes() {
    let Some(node) = Node::new() else { return };
    let of = |name: &str, architecture: &str| {
        TestImage::with_config(vec![layer(name)], json!({"architecture": architecture}))
    };
    let (amd, arm) = (of("amd", "amd64"), of("arm", "arm64"));
    let index = index_of(&[("arm64", "v8", &arm), ("amd64", "", &amd)]);
    let outer = json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": sha256(&index), "size": index.len(),
        "annotations": {"io.containerd.image.name": "example.com/multi:1"}});
    let archive = layout(&[outer]).image(&amd).image(&arm).blob(&index).tar();
    let options = |architecture: &str| ImportOptions {
        platform: Some(Platform { os: "linux".into(), architecture: architecture.into(), variant: None }),
        name: None,
    };
    for (architecture, made) in [("amd64", &amd), ("arm64", &arm)] {
        node.images.import(&archive[..], &options(architecture), None).unwrap();
        let image = node.find("example.com/multi:1").unwrap();
        assert_eq!(image.id, made.id());
        assert_eq!(image.digests, [format!("example.com/multi@{}", sha256(&index))], "what a pod would name");
    }
    let error = node.images.import(&archive[..], &options("riscv64"), None).unwrap_err();
    assert!(error.to_string().contains("no image for this platform"), "{error}");
}

#[test]
fn hostile_archives_are_errors_and_leave_nothing() {
    let Some(node) = Node::new() else { return };
    let made = TestImage::new(vec![layer("a"), layer("b")]);
    let good = || layout(&[entry(&made, json!({"io.containerd.image.name": "x:1"}))]);
    let wrong_blob = {
        let mut members = good().image(&made);
        members.0[2].1[50] ^= 1;
        members
    };
    let wrong_layer = {
        let mut members = saved(&made, json!(["x:1"]));
        members.0[1].1[600] ^= 1;
        members
    };
    let both = json!({"schemaVersion": 2, "manifests": [], "layers": [], "config": {"digest": made.id(), "size": 2}});
    let huge = vec![b' '; 5 << 20];
    let escaping = json!([{"Config": "../../../../etc/passwd", "RepoTags": [], "Layers": []}]);
    for (members, word) in [
        (wrong_blob, "other bytes"),
        (wrong_layer, "other content"),
        (good(), "is not in it"),
        (Members::default(), "no image"),
        (Members::default().file("index.json", both.to_string()), "ambiguous"),
        (Members::default().file("index.json", huge.clone()), "larger than"),
        (Members::default().file("manifest.json", huge), "larger than"),
        (Members::default().file("manifest.json", escaping.to_string()), "is not in it"),
        (Members::default().link("index.json", "b").link("b", "index.json"), "too many links"),
        (Members::default().link("index.json", "/etc/passwd"), "no image"),
        (Members::default().file("index.json", "[1"), "index.json"),
        (saved(&made, json!(["UPPER:1"])), "manifest.json"),
        (saved(&made, json!([format!("x@{}", made.digest())])), "DIGEST IS FINE"),
    ] {
        let outcome = node.import(&members.tar());
        if word == "DIGEST IS FINE" {
            // A digest that nobody has checked gives no name.
            assert_eq!(outcome.unwrap(), [made.id()]);
            node.images.store().remove(&made.id()).unwrap();
            continue;
        }
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains(word), "{error:?} does not speak of {word:?}");
    }
    let cut = good().image(&made).tar();
    assert!(node.import(&cut[..cut.len() / 2]).is_err());
    assert!(node.images.store().list().is_empty());
    wait_until_empty(node.dir.path());
}

fn wait_until_empty(root: &Path) {
    let left = || {
        ["staging", "trash", "layers", "records"]
            .map(|name| std::fs::read_dir(root.join("images").join(name)).unwrap().count())
    };
    for _ in 0..500 {
        if left() == [0; 4] {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("left in staging, trash, layers, records: {:?}", left());
}

#[test]
fn a_layer_that_was_changed_on_disk_is_not_exported_as_if_it_were_whole() {
    let Some(node) = Node::new() else { return };
    let made = TestImage::new(vec![layer("a")]);
    node.import(&saved(&made, json!(["x:1"])).tar()).unwrap();
    let image = node.find("x:1").unwrap();
    let path = node.images.store().layer_paths(&image)[0].join("a");
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[7] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(node.export(&["x:1"], ExportFormat::Oci), Err(ArchiveError::Damaged { .. })));
}

#[test]
fn a_reader_that_goes_away_ends_an_export() {
    let Some(node) = Node::new() else { return };
    let made = TestImage::new(vec![layer("a")]);
    node.import(&saved(&made, json!(["x:1"])).tar()).unwrap();
    struct Gone(usize);
    impl Write for Gone {
        fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(buffer.len()).ok_or(std::io::ErrorKind::BrokenPipe)?;
            Ok(buffer.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    for bytes in [0, 600, 4000] {
        let error = node.images.export(&["x:1".to_owned()], ExportFormat::Oci, Gone(bytes), None).unwrap_err();
        assert!(matches!(error, ArchiveError::Stream { step: "write the archive", .. }), "{error}");
    }
}

#[test]
fn imports_and_exports_say_how_far_they_are() {
    let Some(node) = Node::new() else { return };
    let made = TestImage::new(vec![layer("a")]);
    let (sender, receiver) = tokio::sync::watch::channel(Progress::default());
    let archive = layout(&[entry(&made, json!({}))]).image(&made).tar();
    node.images.import(&archive[..], &ImportOptions::default(), Some(&sender)).unwrap();
    assert_eq!(receiver.borrow().blobs.len(), 1);
    node.images.export(&[made.id()], ExportFormat::Oci, &mut Vec::new(), Some(&sender)).unwrap();
    let last = receiver.borrow().clone();
    assert_eq!((last.step, last.blobs[0].done_bytes), ("done", made.layers[0].tar.len() as u64));
}
