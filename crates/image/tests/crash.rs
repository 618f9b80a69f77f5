//! SIGKILL at any moment of a pull or an import: what is listed afterwards is whole, and the next attempt heals.
//!
//! The killed process is this test's own executable, started again for one test that does nothing but work on the
//! store it is given. A kill keeps the page cache, so this is about the order of what is done and not about syncing.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use knarr_image::Images;
use knarr_image::archive::{ExportFormat, ImportOptions};
use knarr_image::credentials::Credentials;
use knarr_image::pull::PullConfig;
use knarr_image::registry::{Registry, RegistryConfig};
use knarr_image::store::{Store, StoreConfig};
use knarr_testkit::image::{Image, Layer};
use knarr_testkit::registry::FakeRegistry;

const ROOT: &str = "KNARR_CRASH_TEST_ROOT";
const SOURCE: &str = "KNARR_CRASH_TEST_SOURCE";
const KILLS: u64 = 40;

fn images(root: &Path, registry: &str) -> (Images, usize) {
    let (store, problems) = Store::open(root, StoreConfig::default()).unwrap();
    store.settle();
    let config = RegistryConfig {
        config_path: Vec::new(),
        insecure_registries: vec![registry.to_owned()],
        ..RegistryConfig::default()
    };
    (Images::new(store, Registry::new(config).unwrap(), &PullConfig::default()), problems.len())
}

/// An image of three layers with some hundred files each, one of them with implied directories and replaced files.
fn image(number: u64) -> Image {
    let layer = |layer: u64| {
        let mut builder = tar::Builder::new(Vec::new());
        for file in 0..300u64 {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            let content = format!("{number} {layer} {file} ").repeat(file as usize % 50);
            header.set_size(content.len() as u64);
            let path = format!("d{}/e{}/f{}", layer, file % 10, file % 250);
            builder.append_data(&mut header, path, content.as_bytes()).unwrap();
        }
        Layer::gzip(builder.into_inner().unwrap())
    };
    Image::new(vec![layer(0), layer(1), layer(2 + number)])
}

#[test]
fn the_process_that_the_crash_test_kills() {
    let (Some(root), Some(source)) = (std::env::var_os(ROOT), std::env::var(SOURCE).ok()) else {
        eprintln!("nothing to do: the crash test starts this one with a store of its own");
        return;
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let registry = source.split('/').next().unwrap().to_owned();
    let (images, _) = images(Path::new(&root), &registry);
    for number in 0.. {
        let name = format!("x:{}", number % 3);
        match source.strip_prefix("archive:") {
            Some(archive) => {
                let archive = std::fs::File::open(format!("{archive}/{}", number % 3)).unwrap();
                images.import(archive, &ImportOptions::default(), None).unwrap();
            }
            None => {
                let name = format!("{source}/{name}");
                runtime.block_on(images.pull(&name, Credentials::anonymous(), None, None)).unwrap();
            }
        }
        if number % 3 == 2 {
            for image in images.store().list() {
                images.store().remove(&image.id).unwrap();
            }
        }
    }
}

fn start(root: &Path, source: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_that_the_crash_test_kills", "--nocapture"])
        .env(ROOT, root)
        .env(SOURCE, source)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Every image that is listed gives back the exact archives of its layers.
fn check_whole(images: &Images, when: &str) {
    for image in images.store().list() {
        images
            .export(std::slice::from_ref(&image.id), ExportFormat::Oci, std::io::sink(), None)
            .unwrap_or_else(|e| panic!("{when}: {e}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_leaves_whole_images() {
    // Without root neither owners nor trusted attributes can be written.
    if std::fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) != 0) {
        eprintln!("skipped: layers need root");
        return;
    }
    let registry = FakeRegistry::start().await;
    let home = tempfile::tempdir().unwrap();
    let archives = home.path().join("archives");
    std::fs::create_dir(&archives).unwrap();
    let scratch = home.path().join("scratch");
    let made: Vec<Image> = (0..3).map(image).collect();
    {
        let (images, _) = images(&scratch, &registry.host());
        for (number, image) in made.iter().enumerate() {
            registry.put_image("x", &number.to_string(), image);
            let name = format!("{}/x:{number}", registry.host());
            images.pull(&name, Credentials::anonymous(), None, None).await.unwrap();
            let archive = std::fs::File::create(archives.join(number.to_string())).unwrap();
            images.export(&[name], ExportFormat::Oci, archive, None).unwrap();
        }
    }
    let root = home.path().join("root");
    let mut listed = 0;
    for round in 0..KILLS {
        let source = match round % 2 {
            0 => registry.host(),
            _ => format!("archive:{}", archives.display()),
        };
        let mut child = start(&root, &source);
        // Spread over the life of the child: its start takes some milliseconds, one image some tens.
        let delay = Duration::from_micros(5_000 + (round * 7919) % 200_000);
        tokio::time::sleep(delay).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let when = format!("round {round}, {source}, after {delay:?}");
        let (images, problems) = images(&root, &registry.host());
        assert_eq!(problems, 0, "{when}: a kill is no damage");
        check_whole(&images, &when);
        listed += images.store().list().len();
        if round % 8 == 7 {
            for (number, made) in made.iter().enumerate() {
                let name = format!("{}/x:{number}", registry.host());
                let image = images.pull(&name, Credentials::anonymous(), None, None).await.unwrap();
                assert_eq!(image.id, made.id());
            }
            check_whole(&images, &when);
        }
    }
    assert!(listed > 0, "the kills always came before anything was stored");
    eprintln!("{listed} images were listed after {KILLS} kills");
}
