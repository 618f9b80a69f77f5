//! The store across restarts and damage.

use std::fs;
use std::path::PathBuf;

use knarr_testkit::image::{Image as TestImage, Layer, tar_of};

use super::*;
use crate::pull::chain_id;

struct Home(tempfile::TempDir);

impl Home {
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: layers need root");
            return None;
        }
        Some(Self(tempfile::tempdir().unwrap()))
    }

    fn open(&self) -> (Store, Vec<Problem>) {
        Store::open(self.0.path(), StoreConfig::default()).unwrap()
    }

    fn path(&self, rest: &str) -> PathBuf {
        self.0.path().join("images").join(rest)
    }

    fn record(&self, image: &TestImage) -> PathBuf {
        self.path(&format!("records/{}.json", &image.id()["sha256:".len()..]))
    }

    fn count(&self, rest: &str) -> usize {
        fs::read_dir(self.path(rest)).unwrap().count()
    }

    /// Waits until so many layers are left and nothing is on its way out.
    fn swept_to(&self, layers: usize) {
        for _ in 0..500 {
            if (self.count("layers"), self.count("trash") + self.count("staging")) == (layers, 0) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!(
            "{} layers, {} in trash, {} in staging",
            self.count("layers"),
            self.count("trash"),
            self.count("staging")
        );
    }
}

fn made(layers: &[&str]) -> TestImage {
    TestImage::new(layers.iter().map(|name| Layer::gzip(tar_of(&[(name, name.as_bytes())]))).collect())
}

fn put(store: &Store, made: &TestImage, name: &str) -> Arc<Image> {
    let inner = store.inner();
    let config = ImageConfig::parse(&made.config).unwrap();
    let mut layers: Vec<NewLayer> = Vec::new();
    let mut chain: Option<Digest> = None;
    for layer in &made.layers {
        let diff_id = Digest::parse(&layer.diff_id).unwrap();
        let this = chain_id(chain.as_ref(), &diff_id);
        let source = match inner.use_layer(&diff_id, &this) {
            Some(present) => LayerSource::Present(Arc::new(present)),
            None => {
                let staged = StagedLayer::write(inner, &layer.blob[..], &Limits::default()).unwrap();
                let lowers: Vec<LayerSource> = layers.iter().rev().map(|layer| layer.source.clone()).collect();
                assert!(staged.complete(&this, &lowers).unwrap());
                LayerSource::Staged(Arc::new(staged))
            }
        };
        let digest = Digest::parse(&layer.digest()).unwrap();
        layers.push(NewLayer { origin: LayerOrigin { diff_id, digest, size: layer.blob.len() as u64 }, source });
        chain = Some(this);
    }
    let new = NewImage {
        config,
        config_bytes: made.config.clone(),
        names: vec![name.to_owned()],
        digests: vec![format!("{}@{}", name.rsplit_once(':').unwrap().0, made.digest())],
        manifest: Some(made.manifest.clone()),
        layers,
    };
    inner.commit(new).unwrap()
}

#[test]
fn what_is_stored_is_there_after_a_restart() {
    let Some(home) = Home::new() else { return };
    let (store, problems) = home.open();
    assert!(problems.is_empty());
    let image = put(&store, &made(&["a", "b"]), "docker.io/library/x:1");
    let usage = store.usage();
    assert!(usage.bytes >= image.unpacked_bytes && usage.inodes == 4);
    drop(store);
    let (store, problems) = home.open();
    assert!(problems.is_empty(), "{problems:?}");
    store.settle();
    let back = store.find("x:1").unwrap();
    assert_eq!(
        (&back.id, &back.names, &back.digests, &back.layers),
        (&image.id, &image.names, &image.digests, &image.layers)
    );
    assert_eq!((back.size, back.unpacked_bytes, back.created_at), (image.size, image.unpacked_bytes, image.created_at));
    assert_eq!((&back.config_bytes, &back.sources), (&image.config_bytes, &image.sources));
    assert_eq!(store.usage(), usage);
    home.swept_to(2);
}

#[test]
fn only_one_program_has_it_open() {
    let Some(home) = Home::new() else { return };
    let (store, _) = home.open();
    assert!(matches!(Store::open(home.0.path(), StoreConfig::default()), Err(StoreError::Locked(_))));
    drop(store);
    drop(home.open());
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(home.path("")).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_spoilt_record_costs_that_image_only() {
    let Some(home) = Home::new() else { return };
    let (store, _) = home.open();
    let (good, bad) = (made(&["base", "good"]), made(&["base", "bad"]));
    put(&store, &good, "docker.io/library/good:1");
    put(&store, &bad, "docker.io/library/bad:1");
    drop(store);
    let mut record = fs::read(home.record(&bad)).unwrap();
    let middle = record.len() / 2;
    record[middle] ^= 4;
    fs::write(home.record(&bad), record).unwrap();

    let (store, problems) = home.open();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].why.contains("checksum"), "{problems:?}");
    store.settle();
    assert_eq!(store.list().len(), 1);
    // A container may stand on the layer that only the spoilt record named.
    home.swept_to(3);
    put(&store, &bad, "docker.io/library/bad:1");
    assert_eq!(store.list().len(), 2);
    drop(store);
    let (store, problems) = home.open();
    assert!(problems.is_empty(), "{problems:?}");
    assert_eq!((store.list().len(), home.count("records")), (2, 2));
}

#[test]
fn a_broken_layer_costs_the_images_that_need_it_and_pulling_again_heals() {
    let Some(home) = Home::new() else { return };
    let (store, _) = home.open();
    let (a, b) = (made(&["base", "a"]), made(&["other", "b"]));
    let image = put(&store, &a, "docker.io/library/a:1");
    put(&store, &b, "docker.io/library/b:1");
    drop(store);
    fs::remove_file(home.path(&format!("layers/{}/layer.json", image.layers[0]))).unwrap();
    let (store, problems) = home.open();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(store.find("a:1").is_none() && store.find("b:1").is_some());
    put(&store, &a, "docker.io/library/a:1");
    drop(store);
    assert!(home.open().1.is_empty());
}

#[test]
fn what_was_being_written_at_a_crash_is_thrown_away() {
    let Some(home) = Home::new() else { return };
    drop(home.open());
    fs::create_dir_all(home.path("staging/half/fs/etc")).unwrap();
    fs::write(home.path("staging/half/fs/etc/passwd"), "").unwrap();
    fs::create_dir_all(home.path("trash/x/y")).unwrap();
    fs::write(home.path("records/some.json.new"), "half").unwrap();
    let (store, problems) = home.open();
    assert!(problems.is_empty(), "{problems:?}");
    home.swept_to(0);
    assert_eq!(home.count("records"), 0);
    drop(store);
}

#[test]
fn a_stored_layer_without_its_image_goes_when_the_owner_has_settled() {
    let Some(home) = Home::new() else { return };
    let (store, _) = home.open();
    let image = made(&["a"]);
    put(&store, &image, "docker.io/library/a:1");
    drop(store);
    // The crash came between the layer and the record.
    fs::remove_file(home.record(&image)).unwrap();
    let (store, problems) = home.open();
    assert!(problems.is_empty());
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(home.count("layers"), 1);
    store.settle();
    home.swept_to(0);
}

#[test]
fn of_two_records_with_one_tag_the_later_has_it() {
    let Some(home) = Home::new() else { return };
    let (store, _) = home.open();
    let (old, new) = (made(&["old"]), made(&["new"]));
    put(&store, &old, "docker.io/library/x:1");
    let before = fs::read(home.record(&old)).unwrap();
    put(&store, &new, "docker.io/library/x:1");
    assert!(store.find(&old.id()).unwrap().names.is_empty());
    drop(store);
    // The crash came before the old image's record was written anew.
    fs::write(home.record(&old), before).unwrap();
    for _ in 0..2 {
        let (store, problems) = home.open();
        assert!(problems.is_empty());
        assert_eq!(store.find("x:1").unwrap().id, new.id());
        assert!(store.find(&old.id()).unwrap().names.is_empty());
    }
}

#[test]
fn a_removed_image_that_is_held_survives_restarts_until_it_is_let_go() {
    let Some(home) = Home::new() else { return };
    let (store, _) = home.open();
    store.settle();
    let image = put(&store, &made(&["a"]), "docker.io/library/a:1");
    let lease = store.hold(&image.id).unwrap();
    assert_eq!(store.remove("a:1").unwrap(), Removed::StillHeld);
    assert_eq!(store.remove("a:1").unwrap(), Removed::Nothing);
    // Dying does not let go.
    std::mem::forget(lease);
    drop(store);
    // The process has not ended here, so its lock is still held by the forgotten lease: another place, same content.
    let moved = Home(tempfile::tempdir().unwrap());
    assert!(
        std::process::Command::new("cp").arg("-a").arg(home.path("")).arg(moved.0.path()).status().unwrap().success()
    );
    let (store, problems) = moved.open();
    assert!(problems.is_empty() && store.list().is_empty());
    let lease = store.hold(&image.id).unwrap();
    store.settle();
    std::thread::sleep(Duration::from_millis(50));
    assert!(store.layer_paths(&store.held(&image.id).unwrap())[0].join("a").exists());
    drop(lease);
    moved.swept_to(0);
    assert_eq!(moved.count("records"), 0);
}

#[test]
fn pinned_images_say_so_and_can_still_be_removed() {
    let Some(home) = Home::new() else { return };
    let config =
        StoreConfig { pinned: vec!["pause*".into(), "docker.io/library/pause*".into()], ..StoreConfig::default() };
    let (store, _) = Store::open(home.0.path(), config).unwrap();
    store.settle();
    assert!(put(&store, &made(&["p"]), "docker.io/library/pause:3").pinned);
    assert!(!put(&store, &made(&["x"]), "docker.io/library/x:3").pinned);
    assert_eq!(store.remove("pause:3").unwrap(), Removed::Image);
    home.swept_to(1);
}

#[test]
fn two_images_at_once_share_what_they_both_brought() {
    let Some(home) = Home::new() else { return };
    let (store, _) = home.open();
    store.settle();
    let images: Vec<TestImage> = (0..8).map(|n| made(&["base", "common", &format!("own{n}")])).collect();
    std::thread::scope(|scope| {
        for (number, image) in images.iter().enumerate() {
            let store = &store;
            scope.spawn(move || put(store, image, &format!("docker.io/library/x:{number}")));
        }
    });
    assert_eq!(store.list().len(), 8);
    home.swept_to(10);
}
