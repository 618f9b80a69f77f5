//! Pulls from a registry that misbehaves on demand, into a real store.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use knarr_testkit::image::{Image as TestImage, Layer, tar_of};
use knarr_testkit::registry::{Access, FakeRegistry, Fault};
use serde_json::json;
use tokio::sync::watch;

use super::*;
use crate::Images;
use crate::registry::RegistryConfig;
use crate::store::{Removed, Store, StoreConfig};

/// A store, a registry, and a client between them.
struct Node {
    dir: tempfile::TempDir,
    images: Images,
    registry: FakeRegistry,
}

impl Node {
    async fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: layers need root");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let registry = FakeRegistry::start().await;
        let (store, problems) = Store::open(dir.path(), StoreConfig::default()).unwrap();
        assert!(problems.is_empty());
        store.settle();
        let config = RegistryConfig {
            config_path: Vec::new(),
            insecure_registries: vec![registry.host()],
            progress_timeout: Duration::from_millis(500),
            ..RegistryConfig::default()
        };
        let images = Images::new(store, Registry::new(config).unwrap(), &PullConfig::default());
        Some(Self { dir, images, registry })
    }

    fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.registry.host())
    }

    async fn pull(&self, rest: &str) -> Result<Arc<Image>, PullError> {
        self.images.pull(&self.name(rest), Credentials::anonymous(), None, None).await
    }

    fn path(&self, rest: &str) -> PathBuf {
        self.dir.path().join("images").join(rest)
    }

    /// Waits until everything that was given up is deleted and so many layers are left.
    async fn swept_to(&self, layers: usize) {
        let mut seen = (0, 0);
        for _ in 0..500 {
            seen = (count(&self.path("trash")) + count(&self.path("staging")), count(&self.path("layers")));
            if seen == (0, layers) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{} things in staging and trash, {} layers", seen.0, seen.1);
    }

    fn blobs_asked(&self) -> usize {
        self.registry.seen_of("/blobs/").len()
    }
}

fn count(directory: &Path) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

fn layer(name: &str) -> Layer {
    Layer::gzip(tar_of(&[(name, name.repeat(1000).as_bytes())]))
}

fn big_layer(seed: u64) -> Layer {
    let mut state = seed | 1;
    let noise: Vec<u8> = (0..300_000)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    Layer::gzip(tar_of(&[("noise", &noise)]))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pulled_image_has_its_names_its_layers_and_its_id() {
    let Some(node) = Node::new().await else { return };
    let made = TestImage::new(vec![
        layer("low"),
        Layer::zstd(tar_of(&[("mid", b"x")])),
        Layer::plain(tar_of(&[("top", b"y")])),
    ]);
    let digest = node.registry.put_image("a/b", "1", &made);
    let image = node.pull("a/b:1").await.unwrap();
    assert_eq!(image.id, made.id());
    assert_eq!(image.names, [node.name("a/b:1")]);
    assert_eq!(image.digests, [node.name(&format!("a/b@{digest}"))]);
    let blobs: usize = made.layers.iter().map(|layer| layer.blob.len()).sum();
    assert_eq!(image.size, (blobs + made.config.len()) as u64);
    assert_eq!(*image.config_bytes, made.config);
    let paths = node.images.store().layer_paths(&image);
    assert_eq!(paths.len(), 3);
    for (path, name) in paths.iter().zip(["top", "mid", "low"]) {
        assert!(path.join(name).is_file(), "{path:?} has {name}");
    }
    assert_eq!(node.images.store().usage().inodes, 6);
    node.swept_to(3).await;

    node.registry.clear_seen();
    let again = node.pull("a/b:1").await.unwrap();
    assert_eq!((&again.id, &again.names, &again.digests), (&image.id, &image.names, &image.digests));
    assert_eq!(node.blobs_asked(), 0, "everything was there");
}

fn read(node: &Node, image: &Image, name: &str) -> Option<Vec<u8>> {
    let paths = node.images.store().layer_paths(image);
    paths.iter().find_map(|path| std::fs::read(path.join(name)).ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_is_its_files_and_its_id_that_of_its_manifest() {
    let Some(node) = Node::new().await else { return };
    let large = vec![7; 100_000];
    let made = TestImage::artifact(&[("model/weights.bin", &large), ("README", b"read me"), ("model/empty", b"")]);
    let digest = node.registry.put_image("models/one", "1", &made);
    let image = node.pull("models/one:1").await.unwrap();
    assert_eq!((image.id.as_str(), image.config.artifact), (digest.as_str(), true));
    assert_eq!(image.digests, [node.name(&format!("models/one@{digest}"))]);
    assert_eq!(image.size, 100_007 + made.manifest.len() as u64);
    for (name, content) in [("model/weights.bin", large.as_slice()), ("README", b"read me"), ("model/empty", b"")] {
        assert_eq!(read(&node, &image, name).as_deref(), Some(content), "{name}");
    }
    node.swept_to(3).await;

    node.registry.clear_seen();
    node.registry.put_image("models/one", "2", &made);
    let again = node.pull("models/one:2").await.unwrap();
    assert_eq!((&again.id, again.names.len(), node.blobs_asked()), (&image.id, 2, 0));
    // Another artifact shares the file that has the same name and content.
    let other = TestImage::artifact(&[("README", b"read me"), ("more", b"read me")]);
    node.registry.put_image("models/two", "1", &other);
    let two = node.pull("models/two:1").await.unwrap();
    assert_eq!(two.layers[0], image.layers[1]);
    node.swept_to(4).await;

    // What the records say is what was pulled.
    let Node { dir, images, .. } = node;
    drop(images);
    let (store, problems) = Store::open(dir.path(), StoreConfig::default()).unwrap();
    assert_eq!(problems, []);
    let found = store.find(&image.id).unwrap();
    assert_eq!((found.config.artifact, &found.layers), (true, &image.layers));
    let mut sink = Vec::new();
    let error = crate::archive::export(
        store.inner(),
        std::slice::from_ref(&image.id),
        crate::archive::ExportFormat::Oci,
        &mut sink,
        None,
    );
    assert!(error.unwrap_err().to_string().contains("is an artifact"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_with_wrong_bytes_or_names_is_refused() {
    let Some(node) = Node::new().await else { return };
    let made = TestImage::artifact(&[("f", b"good bytes")]);
    node.registry.put_image("wrong", "1", &made);
    for wrong in [&b"evil bytes"[..], b"short", b"good bytes and more"] {
        node.registry.put_blob_as(&made.layers[0].digest(), wrong.to_vec());
        let error = node.pull("wrong:1").await.unwrap_err();
        assert!(!error.to_string().is_empty());
        node.swept_to(0).await;
    }
    for bad in ["../f", "/f", ".wh.f"] {
        node.registry.put_image("bad", "1", &TestImage::artifact(&[(bad, b"x")]));
        let error = node.pull("bad:1").await.unwrap_err();
        assert!(error.to_string().contains(bad), "{error}");
    }
    let mut nameless = TestImage::artifact(&[("f", b"chart")]);
    nameless.manifest =
        String::from_utf8(nameless.manifest).unwrap().replace("org.opencontainers.image.title", "x").into_bytes();
    node.registry.put_image("chart", "1", &nameless);
    let error = node.pull("chart:1").await.unwrap_err();
    assert!(error.to_string().contains("neither a container image nor an artifact"), "{error}");
    node.swept_to(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_by_digest_gives_no_tag() {
    let Some(node) = Node::new().await else { return };
    let made = TestImage::new(vec![layer("a")]);
    let digest = node.registry.put_image("x", "t", &made);
    let image = node.pull(&format!("x@{digest}")).await.unwrap();
    assert!(image.names.is_empty());
    assert_eq!(image.digests, [node.name(&format!("x@{digest}"))]);
    assert!(node.images.store().find(&node.name("x:t")).is_none());
    assert!(node.images.store().find(&node.name(&format!("x@{digest}"))).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn several_tags_are_one_image_and_go_together() {
    let Some(node) = Node::new().await else { return };
    let made = TestImage::new(vec![layer("a")]);
    for tag in ["1", "2", "3"] {
        node.registry.put_image("x", tag, &made);
        node.pull(&format!("x:{tag}")).await.unwrap();
    }
    node.registry.put_image("other/repository", "4", &made);
    node.pull("other/repository:4").await.unwrap();
    let store = node.images.store();
    assert_eq!(store.list().len(), 1);
    assert_eq!(store.list()[0].names.len(), 4);
    let mut removals = JoinSet::new();
    for _ in 0..5 {
        let (images, id) = (node.images.clone(), made.id());
        removals.spawn(async move { images.remove(&id[..20]).await.unwrap() });
    }
    let outcomes = removals.join_all().await;
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Removed::Image).count(), 1);
    assert!(store.list().is_empty() && store.find(&node.name("x:1")).is_none());
    node.swept_to(0).await;
    assert_eq!(store.usage(), crate::store::Usage::default());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_moves_and_the_old_image_stays_without_it() {
    let Some(node) = Node::new().await else { return };
    let (old, new) =
        (TestImage::new(vec![layer("base"), layer("old")]), TestImage::new(vec![layer("base"), layer("new")]));
    node.registry.put_image("x", "latest", &old);
    node.pull("x").await.unwrap();
    node.registry.put_image("x", "latest", &new);
    node.registry.clear_seen();
    let image = node.pull("x").await.unwrap();
    assert_eq!(image.id, new.id());
    assert_eq!(node.blobs_asked(), 2, "configuration and one layer: the base is shared");
    let store = node.images.store();
    let dangling = store.find(&old.id()).unwrap();
    assert!(dangling.names.is_empty() && dangling.digests.len() == 1);
    assert_eq!(store.find(&node.name("x")).unwrap().id, new.id());
    node.images.remove(&old.id()).await.unwrap();
    node.swept_to(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_image_asked_for_by_many_is_pulled_once() {
    let Some(node) = Node::new().await else { return };
    let made = TestImage::new(vec![big_layer(1), layer("b")]);
    node.registry.put_image("x", "1", &made);
    node.registry.fault(&made.layers[0].digest(), 1, Fault::Drip(50_000, Duration::from_millis(30)));
    let (a, b, c) = tokio::join!(node.pull("x:1"), node.pull("x:1"), node.pull("x:1"));
    assert!(a.unwrap().id == b.unwrap().id && c.is_ok());
    assert_eq!(node.blobs_asked(), 3);
    assert_eq!(node.registry.seen_of("/manifests/").iter().filter(|seen| seen.method == "GET").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_credentials_are_another_pull() {
    let Some(node) = Node::new().await else { return };
    node.registry.put_image("x", "1", &TestImage::new(vec![layer("a")]));
    node.registry.set_access(Access::Basic("user".into(), "right".into()));
    let name = node.name("x:1");
    let login =
        |password: &str| Credentials { username: "user".into(), password: password.into(), ..Credentials::default() };
    let (good, bad) = tokio::join!(
        node.images.pull(&name, login("right"), None, None),
        node.images.pull(&name, login("wrong"), None, None)
    );
    assert!(good.is_ok());
    assert!(matches!(bad, Err(PullError::Registry(_))), "who may not pull does not profit from who may");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_two_images_is_fetched_once() {
    let Some(node) = Node::new().await else { return };
    let shared = big_layer(2);
    let (a, b) = (TestImage::new(vec![shared.clone(), layer("a")]), TestImage::new(vec![shared.clone(), layer("b")]));
    node.registry.put_image("a", "1", &a);
    node.registry.put_image("b", "1", &b);
    node.registry.fault(&shared.digest(), 1, Fault::Drip(50_000, Duration::from_millis(30)));
    let (x, y) = tokio::join!(node.pull("a:1"), node.pull("b:1"));
    assert_eq!((x.unwrap().id.clone(), y.unwrap().id.clone()), (a.id(), b.id()));
    assert_eq!(node.registry.seen_of(&shared.digest()).len(), 1);
    node.swept_to(3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joined_goes_on_when_the_first_has_gone() {
    let Some(node) = Node::new().await else { return };
    let shared = big_layer(3);
    let (a, b) = (TestImage::new(vec![shared.clone(), layer("a")]), TestImage::new(vec![shared.clone(), layer("b")]));
    node.registry.put_image("a", "1", &a);
    node.registry.put_image("b", "1", &b);
    node.registry.fault(&shared.digest(), 1, Fault::Drip(30_000, Duration::from_millis(50)));
    let first = node.pull("a:1");
    let second = node.pull("b:1");
    let gone = tokio::time::timeout(Duration::from_millis(200), first);
    let (gone, stayed) = tokio::join!(gone, second);
    assert!(gone.is_err());
    assert_eq!(stayed.unwrap().id, b.id());
    assert_eq!(node.registry.seen_of(&shared.digest()).len(), 1);
    assert_eq!(node.images.store().list().len(), 1);
    node.swept_to(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_pull_leaves_nothing_and_the_next_one_works() {
    let Some(node) = Node::new().await else { return };
    let made = TestImage::new(vec![layer("a"), big_layer(4)]);
    node.registry.put_image("x", "1", &made);
    for stalled in [made.layers[1].digest(), made.id(), "/manifests/".to_owned()] {
        node.registry.fault(&stalled, 1, Fault::Stall(100));
        let given_up = tokio::time::timeout(Duration::from_millis(150), node.pull("x:1")).await;
        assert!(given_up.is_err(), "{stalled} stalls");
        node.swept_to(0).await;
        assert_eq!(count(&node.path("records")), 0);
        node.registry.clear_faults();
    }
    assert_eq!(node.pull("x:1").await.unwrap().id, made.id());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_is_taken_up_where_it_broke() {
    let Some(node) = Node::new().await else { return };
    let made = TestImage::new(vec![big_layer(5)]);
    node.registry.put_image("x", "1", &made);
    node.registry.fault(&made.layers[0].digest(), 1, Fault::Truncate(200_000));
    assert_eq!(node.pull("x:1").await.unwrap().id, made.id());
    let asked = node.registry.seen_of(&made.layers[0].digest());
    assert!(asked.len() == 2 && asked[1].header("range").starts_with("bytes="), "{:?}", asked[1].headers);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_are_an_error_and_nothing_is_kept() {
    let Some(node) = Node::new().await else { return };
    // Plain, so that only the digest can tell.
    let made = TestImage::new(vec![layer("good"), Layer::plain(tar_of(&[("f", &[7; 5000])]))]);
    node.registry.put_image("x", "1", &made);
    let other = tar_of(&[("f", &[8; 5000])]);
    node.registry.put_blob_as(&made.layers[1].digest(), other);
    let error = node.pull("x:1").await.unwrap_err();
    assert!(
        matches!(&error, PullError::WrongDigest { expected, .. } if expected.as_str() == made.layers[1].digest()),
        "{error}"
    );
    assert!(node.images.store().list().is_empty());
    // Not even the good layer.
    node.swept_to(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_must_be_the_one_that_the_configuration_names() {
    let Some(node) = Node::new().await else { return };
    let other = knarr_testkit::image::sha256(b"another layer");
    let made = TestImage::with_config(vec![layer("a")], json!({"rootfs": {"type": "layers", "diff_ids": [other]}}));
    node.registry.put_image("x", "1", &made);
    let error = node.pull("x:1").await.unwrap_err();
    assert!(matches!(error, PullError::WrongDiffId { .. }), "{error}");
    let too_many = TestImage::with_config(vec![layer("a")], json!({"rootfs": {"type": "layers", "diff_ids": []}}));
    node.registry.put_image("x", "2", &too_many);
    let error = node.pull("x:2").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::FailedPrecondition, "{error}");
    node.swept_to(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_layer_is_an_error_that_names_it() {
    let Some(node) = Node::new().await else { return };
    let hostile = Layer::gzip(tar_of(&[("a/.wh...", b"")]));
    let made = TestImage::new(vec![hostile.clone()]);
    node.registry.put_image("x", "1", &made);
    let error = node.pull("x:1").await.unwrap_err().to_string();
    assert!(error.contains(&hostile.digest()) && error.contains("whiteout"), "{error}");
    node.swept_to(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_implies_directories_is_another_on_every_base() {
    let Some(node) = Node::new().await else { return };
    let base = |mode: u32| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        header.set_mode(mode);
        builder.append_data(&mut header, "d", &b""[..]).unwrap();
        Layer::gzip(builder.into_inner().unwrap())
    };
    let top = Layer::gzip(tar_of(&[("d/f", b"content")]));
    let (a, b) = (TestImage::new(vec![base(0o700), top.clone(), top.clone()]), TestImage::new(vec![base(0o711), top]));
    node.registry.put_image("a", "1", &a);
    node.registry.put_image("b", "1", &b);
    let (a, b) = tokio::join!(node.pull("a:1"), node.pull("b:1"));
    let mode = |image: &Image| {
        use std::os::unix::fs::PermissionsExt;
        let top = &node.images.store().layer_paths(image)[0];
        std::fs::metadata(top.join("d")).unwrap().permissions().mode() & 0o7777
    };
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!((mode(&a), mode(&b)), (0o700, 0o711));
    assert_eq!(node.images.store().layer_paths(&a).len(), 3, "the same archive twice is two layers here");
    node.swept_to(5).await;
    node.images.remove(&a.id).await.unwrap();
    node.swept_to(2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_keep_the_layers_of_a_removed_image() {
    let Some(node) = Node::new().await else { return };
    let made = TestImage::new(vec![layer("a")]);
    node.registry.put_image("x", "1", &made);
    let image = node.pull("x:1").await.unwrap();
    let store = node.images.store();
    let lease = store.hold(&image.id).unwrap();
    assert_eq!(node.images.remove(&node.name("x:1")).await.unwrap(), Removed::StillHeld);
    assert!(store.list().is_empty() && store.find(&image.id).is_none() && store.held(&image.id).is_some());
    assert!(store.layer_paths(&image)[0].join("a").exists());
    // Pulled again it is an image again, without a byte being fetched.
    node.registry.clear_seen();
    let back = node.pull("x:1").await.unwrap();
    assert_eq!((back.names.len(), node.registry.seen_of(&made.layers[0].digest()).len()), (1, 0));
    assert_eq!(node.images.remove(&image.id).await.unwrap(), Removed::StillHeld);
    drop(lease);
    node.swept_to(0).await;
    assert_eq!(count(&node.path("records")), 0);
    assert!(store.hold(&image.id).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_says_what_is_there_and_what_comes() {
    let Some(node) = Node::new().await else { return };
    let (base, big) = (layer("base"), big_layer(6));
    node.registry.put_image("a", "1", &TestImage::new(vec![base.clone()]));
    node.pull("a:1").await.unwrap();
    node.registry.put_image("b", "1", &TestImage::new(vec![base, big.clone()]));
    node.registry.fault(&big.digest(), 1, Fault::Drip(60_000, Duration::from_millis(80)));
    let (sender, mut receiver) = watch::channel(Progress::default());
    let watching = tokio::spawn(async move {
        let mut seen = Vec::new();
        while receiver.changed().await.is_ok() {
            seen.push(receiver.borrow_and_update().clone());
        }
        seen
    });
    let name = node.name("b:1");
    node.images.pull(&name, Credentials::anonymous(), None, Some(&sender)).await.unwrap();
    drop(sender);
    let seen = watching.await.unwrap();
    let last = seen.last().unwrap();
    assert_eq!(last.step, "done");
    assert_eq!(last.blobs[0].state, BlobState::Present);
    assert_eq!((last.blobs[1].state, last.blobs[1].done_bytes), (BlobState::Done, big.blob.len() as u64));
    let halfway = |progress: &Progress| {
        progress.blobs.get(1).is_some_and(|blob| {
            blob.state == BlobState::Downloading && blob.done_bytes > 0 && blob.done_bytes < blob.total_bytes
        })
    };
    assert!(seen.iter().any(halfway), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_and_removals_at_random_leave_whole_images() {
    let Some(node) = Node::new().await else { return };
    let layers: Vec<Layer> = (0..5).map(|n| layer(&format!("layer{n}"))).collect();
    for (number, picks) in [[0, 1], [0, 2], [1, 2], [3, 4], [2, 3]].iter().enumerate() {
        let made = TestImage::new(picks.iter().map(|&at| layers[at].clone()).collect());
        node.registry.put_image("x", &number.to_string(), &made);
    }
    let node = Arc::new(node);
    let mut tasks = JoinSet::new();
    for worker in 0..8u64 {
        let node = node.clone();
        tasks.spawn(async move {
            let mut state = worker * 7919 + 1;
            for _ in 0..12 {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let name = format!("x:{}", (state >> 33) % 5);
                match (state >> 40) % 3 {
                    0 => drop(node.images.remove(&node.name(&name)).await.unwrap()),
                    1 => drop(tokio::time::timeout(Duration::from_millis((state >> 50) % 20), node.pull(&name)).await),
                    _ => drop(node.pull(&name).await.unwrap()),
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    let store = node.images.store();
    let mut needed = std::collections::BTreeSet::new();
    for image in store.list() {
        for path in store.layer_paths(&image) {
            assert!(path.is_dir(), "{path:?}");
            needed.insert(path);
        }
    }
    node.swept_to(needed.len()).await;
    assert_eq!(count(&node.path("records")), store.list().len());
}
