//! The whole client against a registry on loopback that misbehaves on demand.

use std::path::Path;
use std::time::{Duration, Instant};

use knarr_testkit::image::{Image, Layer, OCI_INDEX, OCI_MANIFEST, index_of, tar_of};
use knarr_testkit::registry::{
    Access, CA_CERTIFICATE, CLIENT_CERTIFICATE, CLIENT_KEY, FakeRegistry, Fault, SERVER_CERTIFICATE,
};

use super::*;

/// Long enough for a slow machine, short enough to wait for in a test.
const SHORT: Duration = Duration::from_millis(700);
/// A test that takes longer than this has hung.
const HUNG: Duration = Duration::from_secs(60);

struct Setup {
    root: tempfile::TempDir,
    registry: Registry,
}

impl Setup {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut RegistryConfig)) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        let mut config = RegistryConfig {
            config_path: vec![root.path().into()],
            connect_timeout: Duration::from_secs(5),
            progress_timeout: Duration::from_secs(20),
            ..RegistryConfig::default()
        };
        change(&mut config);
        Self { registry: Registry::new(config).expect("a valid configuration"), root }
    }

    fn hosts(&self, registry: &str, text: &str) {
        write(&self.root.path().join(registry).join("hosts.toml"), text);
    }

    async fn resolve(&self, name: &str) -> Result<ResolvedImage, RegistryError> {
        self.resolve_as(name, &Credentials::anonymous()).await
    }

    async fn resolve_as(&self, name: &str, credentials: &Credentials) -> Result<ResolvedImage, RegistryError> {
        let platform = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        let reference = reference(name);
        let resolving = self.registry.resolve(&reference, credentials, &platform);
        tokio::time::timeout(HUNG, resolving).await.expect("the resolver hangs")
    }

    async fn open(&self, name: &str, layer: &Layer, offset: u64) -> Result<BlobStream, RegistryError> {
        let (reference, descriptor, nobody) = (reference(name), descriptor(&layer.blob), Credentials::anonymous());
        let opening = self.registry.blob(&reference, &nobody, &descriptor, offset);
        tokio::time::timeout(HUNG, opening).await.expect("opening a blob hangs")
    }

    async fn download(&self, name: &str, layer: &Layer, offset: u64) -> Result<Came, RegistryError> {
        let mut stream = self.open(name, layer, offset).await?;
        drain(&mut stream).await
    }
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("making a directory");
    std::fs::write(path, text).expect("writing a file");
}

fn reference(name: &str) -> Reference {
    Reference::parse(name).unwrap_or_else(|error| panic!("{error}"))
}

fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.layer.v1.tar".into(),
        digest: Digest::sha256_of(bytes),
        size: bytes.len() as u64,
        urls: Vec::new(),
        annotations: Default::default(),
        platform: None,
    }
}

/// What came; a failed assertion shows how much it was, not a megabyte of numbers.
#[derive(PartialEq, Eq)]
struct Came(Vec<u8>);

impl std::fmt::Debug for Came {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of digest {}", self.0.len(), Digest::sha256_of(&self.0))
    }
}

fn came(bytes: &[u8]) -> Came {
    Came(bytes.to_vec())
}

async fn drain(stream: &mut BlobStream) -> Result<Came, RegistryError> {
    let draining = async {
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(Came(bytes))
    };
    tokio::time::timeout(HUNG, draining).await.expect("the stream hangs")
}

fn image() -> Image {
    Image::new(vec![Layer::gzip(tar_of(&[("etc/os-release", b"ID=test\n")]))])
}

/// A layer of more bytes than any buffer on the way holds, none of them like its neighbour.
fn big_layer() -> Layer {
    let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    Layer::plain(bytes)
}

fn login(username: &str, password: &str) -> Credentials {
    Credentials { username: username.into(), password: password.into(), ..Credentials::default() }
}

#[test]
fn a_pull_may_move_between_threads() {
    fn assert_send<T: Send>(_: impl FnOnce(&'static Registry, &'static Reference, &'static Credentials) -> T) {}
    fn assert_stream_send<T: Send>(_: impl FnOnce(&'static mut BlobStream) -> T) {}
    fn leaked<T>() -> &'static T {
        unreachable!("only the types are looked at")
    }
    assert_send(|registry, reference, credentials| registry.resolve(reference, credentials, leaked()));
    assert_send(|registry, reference, credentials| registry.config(reference, credentials, leaked()));
    assert_send(|registry, reference, credentials| registry.blob(reference, credentials, leaked(), 0));
    assert_send(|registry, reference, credentials| registry.digest_of(reference, credentials));
    assert_stream_send(BlobStream::next);
}

#[tokio::test]
async fn a_tag_of_an_index_leads_to_the_image_of_the_platform() {
    let fake = FakeRegistry::start().await;
    let (amd64, arm64) = (image(), Image::new(Vec::new()));
    let digest = fake.put_index("team/app", "v1", &[("arm64", "v8", &arm64), ("amd64", "", &amd64)]);
    let setup = Setup::new();
    let name = format!("{}/team/app:v1", fake.host());
    let resolved = setup.resolve(&name).await.expect("it is there");
    assert_eq!(resolved.manifest_digest.as_str(), digest);
    assert_eq!(resolved.manifest_bytes, amd64.manifest);
    assert_eq!(resolved.index_bytes.as_deref(), Some(&index_of(&[("arm64", "v8", &arm64), ("amd64", "", &amd64)])[..]));
    assert_eq!(resolved.config.digest.as_str(), amd64.id());
    assert_eq!(resolved.layers.len(), 1);

    let (config, bytes) = setup
        .registry
        .config(&reference(&name), &Credentials::anonymous(), &resolved.config)
        .await
        .expect("the configuration is there");
    assert_eq!(bytes, amd64.config);
    assert_eq!(config.cmd, ["/bin/sh"]);
    assert_eq!(config.check_fits(&resolved.manifest), Ok(()));
    assert_eq!(setup.download(&name, &amd64.layers[0], 0).await, Ok(came(&amd64.layers[0].blob)));

    let asked = setup.registry.digest_of(&reference(&name), &Credentials::anonymous()).await;
    assert_eq!(asked.expect("HEAD works").map(|digest| digest.to_string()), Some(digest));
    assert!(fake.seen().iter().all(|seen| seen.header("user-agent").starts_with("knarr/")));
    // A registry asked by its own name is no proxy.
    assert!(fake.seen().iter().all(|seen| seen.query.is_empty()));
}

#[tokio::test]
async fn a_platform_that_is_missing_is_not_found_and_the_others_are_named() {
    let fake = FakeRegistry::start().await;
    fake.put_index("app", "v1", &[("arm64", "v8", &image())]);
    let error = Setup::new().resolve(&format!("{}/app:v1", fake.host())).await.expect_err("no amd64");
    assert_eq!(error.kind, RegistryErrorKind::NotFound);
    assert!(error.to_string().contains("linux/amd64; there is linux/arm64/v8"), "{error}");
}

#[tokio::test]
async fn a_digest_is_believed_only_when_the_bytes_have_it() {
    let fake = FakeRegistry::start().await;
    let digest = fake.put_image("app", "v1", &image());
    let setup = Setup::new();
    let name = format!("{}/app@{digest}", fake.host());
    assert_eq!(setup.resolve(&name).await.expect("it is there").manifest_digest.as_str(), digest);

    fake.fault("/manifests/", 1, Fault::WrongBytes);
    let error = setup.resolve(&name).await.expect_err("a bit is wrong");
    assert_eq!(error.kind, RegistryErrorKind::Invalid);
    assert!(error.to_string().contains("another digest"), "{error}");

    // By tag, the registry's own word for the digest is all there is to check against.
    fake.fault("/manifests/", 1, Fault::WrongBytes);
    let error = setup.resolve(&format!("{}/app:v1", fake.host())).await.expect_err("a bit is wrong");
    assert_eq!(error.kind, RegistryErrorKind::Invalid);

    let resolved = setup.resolve(&name).await.expect("it is there");
    fake.fault("/blobs/", 1, Fault::WrongBytes);
    let config = setup.registry.config(&reference(&name), &Credentials::anonymous(), &resolved.config).await;
    assert_eq!(config.expect_err("a bit is wrong").kind, RegistryErrorKind::Invalid);
}

#[tokio::test]
async fn hostile_manifests_are_refused() {
    let fake = FakeRegistry::start().await;
    let setup = Setup::new();
    let good = image();
    let both = String::from_utf8(good.manifest.clone()).expect("JSON").replacen('{', "{\"manifests\":[],", 1);
    fake.put_manifest("app", "both", OCI_MANIFEST, both);
    fake.put_manifest("app", "mislabelled", OCI_INDEX, good.manifest.clone());
    fake.put_manifest("app", "huge", OCI_MANIFEST, vec![b' '; MANIFEST_BYTES_MAX + 1]);
    fake.put_manifest("app", "junk", OCI_MANIFEST, "not JSON");
    for tag in ["both", "mislabelled", "huge", "junk"] {
        let error = setup.resolve(&format!("{}/app:{tag}", fake.host())).await.expect_err(tag);
        assert_eq!(error.kind, RegistryErrorKind::Invalid, "{tag}: {error}");
    }

    // An index whose entry has another size than it says, and one that leads to itself by way of others.
    fake.put_image("app", "", &good);
    let index = index_of(&[("amd64", "", &good)]);
    let lies =
        String::from_utf8(index).expect("JSON").replace(&format!("\"size\":{}", good.manifest.len()), "\"size\":5");
    fake.put_manifest("app", "lies", OCI_INDEX, lies);
    let error = setup.resolve(&format!("{}/app:lies", fake.host())).await.expect_err("the size is wrong");
    assert_eq!(error.kind, RegistryErrorKind::Invalid, "{error}");
    let mut inner = good.clone();
    for depth in 0..6 {
        let bytes = index_of(&[("amd64", "", &inner)]);
        fake.put_manifest("app", &format!("deep{depth}"), OCI_INDEX, bytes.clone());
        inner = Image { manifest: bytes, media_type: OCI_INDEX.into(), ..inner };
    }
    assert!(setup.resolve(&format!("{}/app:deep1", fake.host())).await.is_ok());
    let error = setup.resolve(&format!("{}/app:deep5", fake.host())).await.expect_err("too deep");
    assert_eq!(error.kind, RegistryErrorKind::Invalid, "{error}");
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once_for_a_pull() {
    let fake = FakeRegistry::start().await;
    fake.set_access(Access::AnonymousToken);
    let image = image();
    fake.put_image("team/app", "v1", &image);
    let setup = Setup::new();
    let name = format!("{}/team/app:v1", fake.host());
    setup.resolve(&name).await.expect("a token is given to anyone");
    setup.download(&name, &image.layers[0], 0).await.expect("the token is good for blobs");
    let tokens = fake.seen_of("/token");
    assert_eq!(tokens.len(), 1);
    assert_eq!(tokens[0].query, "service=fake+registry&scope=repository%3Ateam%2Fapp%3Apull");
    assert_eq!(tokens[0].header("authorization"), "");
    // The token for one repository is not shown for another.
    fake.put_image("team/other", "v1", &image);
    setup.resolve(&format!("{}/team/other:v1", fake.host())).await.expect("another token");
    assert_eq!(fake.seen_of("/token").len(), 2);
}

#[tokio::test]
async fn a_token_that_dies_in_flight_is_replaced() {
    let fake = FakeRegistry::start().await;
    fake.set_access(Access::Token("me".into(), "pw".into()));
    fake.put_image("app", "v1", &image());
    let setup = Setup::new();
    let name = format!("{}/app:v1", fake.host());
    setup.resolve_as(&name, &login("me", "pw")).await.expect("the password is right");
    fake.revoke_tokens();
    setup.resolve_as(&name, &login("me", "pw")).await.expect("a fresh token is fetched");
    assert_eq!(fake.seen_of("/token").len(), 2);

    // A token that would die on the way is not shown at all.
    fake.revoke_tokens();
    fake.set_token_life(1);
    setup.resolve_as(&name, &login("me", "pw")).await.expect("a fresh token is fetched");
    fake.clear_seen();
    setup.resolve_as(&name, &login("me", "pw")).await.expect("and again");
    let shown: Vec<_> =
        fake.seen_of("/manifests/").iter().map(|seen| seen.header("authorization").to_owned()).collect();
    assert_eq!((shown.len(), shown[0].as_str()), (2, ""), "{shown:?}");
}

#[tokio::test]
async fn wrong_credentials_are_unauthorized_and_do_not_stay_behind() {
    for access in [Access::Token("me".into(), "pw".into()), Access::Basic("me".into(), "pw".into())] {
        let fake = FakeRegistry::start().await;
        fake.set_access(access.clone());
        fake.put_image("app", "v1", &image());
        let setup = Setup::new();
        let name = format!("{}/app:v1", fake.host());
        for credentials in [login("me", "hunter2"), login("you", "pw"), Credentials::anonymous()] {
            let error = setup.resolve_as(&name, &credentials).await.expect_err("wrong");
            assert_eq!(error.kind, RegistryErrorKind::Unauthorized, "{access:?}: {error}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
        setup.resolve_as(&name, &login("me", "pw")).await.expect("right");
        // Who comes next with the wrong password gains nothing from who was there before.
        assert!(setup.resolve_as(&name, &login("me", "hunter2")).await.is_err());
        assert!(setup.resolve(&name).await.is_err());
    }
}

#[tokio::test]
async fn identity_and_registry_tokens_are_spent_in_their_own_ways() {
    let fake = FakeRegistry::start().await;
    fake.put_image("app", "v1", &image());
    let name = format!("{}/app:v1", fake.host());
    let setup = Setup::new();
    fake.set_access(Access::Token("me".into(), "refresh-secret".into()));
    let identity = Credentials { identity_token: "refresh-secret".into(), ..login("me", "ignored") };
    setup.resolve_as(&name, &identity).await.expect("the refresh token is right");
    let tokens = fake.seen_of("/token");
    assert_eq!((tokens.len(), tokens[0].method.as_str(), tokens[0].query.as_str()), (1, "POST", ""));
    assert!(tokens[0].body.contains("grant_type=refresh_token"), "{}", tokens[0].body);

    fake.set_access(Access::Bearer("ready-made".into()));
    fake.clear_seen();
    let ready = Credentials { registry_token: "ready-made".into(), ..Credentials::default() };
    setup.resolve_as(&name, &ready).await.expect("the registry token is right");
    assert!(fake.seen_of("/token").is_empty());
}

#[tokio::test]
async fn credentials_for_another_server_are_not_shown() {
    let fake = FakeRegistry::start().await;
    fake.set_access(Access::Basic("me".into(), "pw".into()));
    fake.put_image("app", "v1", &image());
    let setup = Setup::new();
    let name = format!("{}/app:v1", fake.host());
    let elsewhere = Credentials { server_address: "quay.io".into(), ..login("me", "pw") };
    let error = setup.resolve_as(&name, &elsewhere).await.expect_err("they are for quay.io");
    assert_eq!(error.kind, RegistryErrorKind::Unauthorized);
    assert!(fake.seen().iter().all(|seen| seen.header("authorization").is_empty()));
    let here = Credentials { server_address: format!("https://{}", fake.host()), ..login("me", "pw") };
    setup.resolve_as(&name, &here).await.expect("they are for this host");
}

#[tokio::test]
async fn a_redirect_to_another_host_sees_no_secret() {
    let (fake, storage) = (FakeRegistry::start().await, FakeRegistry::start().await);
    fake.set_access(Access::Basic("me".into(), "pw".into()));
    let image = image();
    fake.put_image("app", "v1", &image);
    storage.put_blob(image.layers[0].blob.clone());
    let setup = Setup::new();
    setup.hosts(&fake.host(), &format!("server = {0:?}\n[header]\nx-secret = \"hosts-toml\"\n", fake.url()));
    let name = format!("{}/app:v1", fake.host());
    setup.resolve_as(&name, &login("me", "pw")).await.expect("the password is right");

    fake.fault("/blobs/", 1, Fault::RedirectTo(storage.url()));
    let opened =
        setup.registry.blob(&reference(&name), &login("me", "pw"), &descriptor(&image.layers[0].blob), 3).await;
    let bytes = drain(&mut opened.expect("the storage has it")).await.expect("the storage has it");
    assert_eq!(bytes, came(&image.layers[0].blob[3..]));

    let at_registry = &fake.seen_of("/blobs/")[0];
    assert!(at_registry.header("authorization").starts_with("Basic "));
    assert_eq!(at_registry.header("x-secret"), "hosts-toml");
    let at_storage = &storage.seen()[0];
    assert_eq!((at_storage.header("authorization"), at_storage.header("x-secret")), ("", ""));
    assert_eq!(at_storage.header("range"), "bytes=3-");
}

#[tokio::test]
async fn a_storage_that_asks_for_a_password_gets_none() {
    let (fake, evil) = (FakeRegistry::start().await, FakeRegistry::start().await);
    evil.set_access(Access::Basic("me".into(), "pw".into()));
    let image = image();
    fake.put_image("app", "v1", &image);
    evil.put_blob(image.layers[0].blob.clone());
    fake.fault("/blobs/", 100, Fault::RedirectTo(evil.url()));
    let setup = Setup::new();
    let name = reference(&format!("{}/app:v1", fake.host()));
    let opened = setup.registry.blob(&name, &login("me", "pw"), &descriptor(&image.layers[0].blob), 0).await;
    let error = opened.expect_err("it was refused");
    assert_eq!(error.kind, RegistryErrorKind::Unauthorized);
    // Not even the words of a host that the registry chose come into the message.
    assert!(!error.to_string().contains("fake registry says"), "{error}");
    assert!(evil.seen().iter().all(|seen| seen.header("authorization").is_empty()));
}

#[tokio::test]
async fn redirects_without_end_end() {
    let fake = FakeRegistry::start().await;
    fake.put_image("app", "v1", &image());
    fake.fault("/manifests/", usize::MAX, Fault::RedirectTo(fake.url()));
    let error = Setup::new().resolve(&format!("{}/app:v1", fake.host())).await.expect_err("a loop");
    assert!(error.to_string().contains("redirects more than"), "{error}");
    assert!(fake.seen().len() < 20);
}

#[tokio::test]
async fn foreign_layers_are_asked_of_the_registry_and_their_urls_never() {
    let (fake, evil) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let setup = Setup::new();
    let foreign = Descriptor { urls: vec![evil.url()], ..descriptor(b"foreign layer") };
    let name = reference(&format!("{}/app:v1", fake.host()));
    let error = setup.registry.blob(&name, &login("me", "pw"), &foreign, 0).await.expect_err("it is not there");
    assert_eq!(error.kind, RegistryErrorKind::NotFound);
    assert!(evil.seen().is_empty());
}

#[tokio::test]
async fn mirrors_are_asked_in_order_with_the_namespace_and_the_registry_last() {
    let (first, second, upstream) =
        (FakeRegistry::start().await, FakeRegistry::start().await, FakeRegistry::start().await);
    upstream.put_image("library/busybox", "1", &image());
    first.fault("", usize::MAX, Fault::Status(503, Vec::new()));
    let setup = Setup::new();
    // The order of the file is neither that of the alphabet nor that of the ports.
    let text = format!(
        "server = {:?}\n[host.{:?}]\n[host.{:?}]\n",
        upstream.url(),
        first.url(),
        format!("{}/hub", second.url())
    );
    setup.hosts("docker.io", &text);
    setup.resolve("busybox:1").await.expect("the server has it");
    assert_eq!(first.seen()[0].path, "/v2/library/busybox/manifests/1");
    assert_eq!(second.seen()[0].path, "/hub/v2/library/busybox/manifests/1");
    for fake in [&first, &second, &upstream] {
        assert_eq!(fake.seen()[0].query, "ns=docker.io");
        assert_eq!(fake.seen().len(), 1, "one answer of each is enough");
    }

    // Once a mirror has it, nobody else is asked.
    second.put_image("library/busybox", "2", &image());
    upstream.clear_seen();
    second.fault("/hub", 1, Fault::RedirectTo(second.url()));
    let _ = setup.resolve("busybox:2").await;
    first.clear_faults();
    first.put_image("library/busybox", "3", &image());
    setup.resolve("busybox:3").await.expect("the first mirror has it");
    assert!(upstream.seen_of("/manifests/3").is_empty() && second.seen_of("/manifests/3").is_empty());
}

#[tokio::test]
async fn every_host_s_failure_is_in_the_message_and_the_registry_s_decides() {
    let (mirror, upstream) = (FakeRegistry::start().await, FakeRegistry::start().await);
    mirror.fault("", usize::MAX, Fault::Status(403, Vec::new()));
    let setup = Setup::new();
    let dead = "http://127.0.0.1:1";
    setup.hosts("docker.io", &format!("server = {:?}\n[host.{dead:?}]\n[host.{:?}]\n", upstream.url(), mirror.url()));
    let error = setup.resolve("busybox:none").await.expect_err("nobody has it");
    assert_eq!(error.kind, RegistryErrorKind::NotFound);
    let text = error.to_string();
    assert!(text.starts_with("manifest of docker.io/library/busybox:none: 127.0.0.1:1: "), "{text}");
    assert!(text.contains("Connection refused"), "{text}");
    assert!(text.contains(&format!("; {}: 403 Forbidden: the fake registry says FAULT", mirror.host())), "{text}");
    assert!(text.contains(&format!("; {}: 404 Not Found: ", upstream.host())), "{text}");

    setup.hosts("docker.io", &format!("server = {dead:?}\n[host.{:?}]\n", mirror.url()));
    let error = setup.resolve("busybox:none").await.expect_err("nobody has it");
    assert_eq!(error.kind, RegistryErrorKind::Unavailable);
}

#[tokio::test]
async fn a_dead_mirror_costs_one_timeout_and_not_one_for_every_blob() {
    // One that refuses and one that says nothing: what is remembered is the host, not the reason.
    let (mirror, upstream) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let dead_url = mirror.url();
    drop(mirror);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let silent = FakeRegistry::start().await;
    silent.fault("", usize::MAX, Fault::Silent);
    let image = image();
    upstream.put_image("app", "v1", &image);
    let setup = Setup::with(|config| config.progress_timeout = SHORT);
    let text = format!("server = {:?}\n[host.{dead_url:?}]\n[host.{:?}]\n", upstream.url(), silent.url());
    setup.hosts("reg.example", &text);
    let began = Instant::now();
    for _ in 0..5 {
        let bytes = setup.download("reg.example/app:v1", &image.layers[0], 0).await.expect("the server has it");
        assert_eq!(bytes, came(&image.layers[0].blob));
    }
    assert!(began.elapsed() < 4 * SHORT, "each blob waited: {:?}", began.elapsed());
    assert_eq!(silent.seen().len(), 1);
}

#[tokio::test]
async fn when_everybody_is_dead_they_are_asked_all_the_same() {
    let fake = FakeRegistry::start().await;
    fake.put_image("app", "v1", &image());
    let setup = Setup::with(|config| config.progress_timeout = SHORT);
    let name = format!("{}/app:v1", fake.host());
    fake.fault("/blobs/", 1, Fault::Silent);
    let layer = &image().layers[0];
    let error = setup.open(&name, layer, 0).await.expect_err("silence");
    assert_eq!(error.kind, RegistryErrorKind::Timeout);
    assert_eq!(setup.download(&name, layer, 0).await, Ok(came(&layer.blob)));
}

#[tokio::test]
async fn capabilities_decide_who_is_asked_for_what() {
    let (mirror, upstream) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let image = image();
    mirror.put_image("app", "v1", &image);
    upstream.put_image("app", "v1", &image);
    let setup = Setup::new();
    let mirror_may = |capabilities: &str| {
        format!("server = {:?}\n[host.{:?}]\ncapabilities = {capabilities}\n", upstream.url(), mirror.url())
    };
    setup.hosts("reg.example", &mirror_may("[\"pull\"]"));
    setup.resolve("reg.example/app:v1").await.expect("both have it");
    // The server says what the tag means, and the mirror gives it.
    let asked: Vec<_> = upstream.seen().iter().map(|seen| seen.method.clone()).collect();
    assert_eq!(asked, ["HEAD"]);
    assert_eq!(mirror.seen()[0].path, format!("/v2/app/manifests/{}", image.digest()));

    mirror.clear_seen();
    setup.hosts("reg.example", &mirror_may("[\"resolve\"]"));
    setup.resolve("reg.example/app:v1").await.expect("both have it");
    setup.download("reg.example/app:v1", &image.layers[0], 0).await.expect("the server has it");
    assert_eq!(mirror.seen_of("/blobs/").len(), 0);
    assert_eq!(mirror.seen_of("/manifests/v1").len(), 1);
}

#[tokio::test]
async fn patience_is_asked_for_and_given_within_bounds() {
    let fake = FakeRegistry::start().await;
    fake.put_image("app", "v1", &image());
    let setup = Setup::new();
    let name = format!("{}/app:v1", fake.host());
    let wait = |seconds: &str| vec![("retry-after".to_owned(), seconds.to_owned())];

    fake.fault("/manifests/", 1, Fault::Status(429, wait("1")));
    let began = Instant::now();
    setup.resolve(&name).await.expect("it answers the second time");
    assert!(began.elapsed() >= Duration::from_secs(1));
    fake.fault("/manifests/", 2, Fault::Status(503, Vec::new()));
    setup.resolve(&name).await.expect("it answers the third time");
    fake.fault("/manifests/", 1, Fault::Hangup);
    setup.resolve(&name).await.expect("a connection that broke is made anew");

    fake.clear_seen();
    fake.fault("/manifests/", 1, Fault::Status(429, wait("3600")));
    let began = Instant::now();
    let error = setup.resolve(&name).await.expect_err("nobody waits an hour");
    assert_eq!(error.kind, RegistryErrorKind::RateLimited);
    assert!(began.elapsed() < Duration::from_secs(10) && fake.seen().len() == 1);

    fake.fault("/manifests/", usize::MAX, Fault::Status(500, Vec::new()));
    fake.clear_seen();
    let error = setup.resolve(&name).await.expect_err("it never answers");
    assert_eq!((error.kind, fake.seen().len()), (RegistryErrorKind::Unavailable, 4));
}

#[tokio::test]
async fn a_blob_that_breaks_off_goes_on_where_it_stopped() {
    let fake = FakeRegistry::start().await;
    let layer = big_layer();
    fake.put_blob(layer.blob.clone());
    let setup = Setup::new();
    let name = format!("{}/app:v1", fake.host());
    fake.fault("/blobs/", 3, Fault::Truncate(200_000));
    assert_eq!(setup.download(&name, &layer, 0).await.expect("it comes in parts"), came(&layer.blob));
    let ranges: Vec<_> = fake.seen().iter().map(|seen| seen.header("range").to_owned()).collect();
    assert_eq!(ranges, ["", "bytes=200000-", "bytes=400000-", "bytes=600000-"]);

    // A host that knows no ranges sends everything again; what is known of it is left out.
    fake.fault("/blobs/", 1, Fault::Truncate(300_000));
    fake.fault("/blobs/", 1, Fault::IgnoreRange);
    assert_eq!(setup.download(&name, &layer, 0).await.expect("it comes twice"), came(&layer.blob));
    fake.fault("/blobs/", 1, Fault::IgnoreRange);
    assert_eq!(setup.download(&name, &layer, 999_990).await.expect("the tail"), came(&layer.blob[999_990..]));
    assert_eq!(setup.download(&name, &layer, 1_000_000).await.expect("nothing is left"), came(b""));
    assert!(setup.download(&name, &layer, 1_000_001).await.is_err());
}

#[tokio::test]
async fn a_blob_that_stalls_is_fetched_from_the_next_host() {
    let (mirror, upstream) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let layer = big_layer();
    mirror.put_blob(layer.blob.clone());
    upstream.put_blob(layer.blob.clone());
    let setup = Setup::with(|config| config.progress_timeout = SHORT);
    setup.hosts("reg.example", &format!("server = {:?}\n[host.{:?}]\n", upstream.url(), mirror.url()));
    mirror.fault("/blobs/", usize::MAX, Fault::Stall(300_000));
    assert_eq!(
        setup.download("reg.example/app:v1", &layer, 0).await.expect("the server has the rest"),
        came(&layer.blob)
    );
    assert_eq!(upstream.seen()[0].header("range"), "bytes=300000-");
    assert_eq!(mirror.seen().len(), 1);
}

#[tokio::test]
async fn slow_is_not_silent() {
    let fake = FakeRegistry::start().await;
    let layer = Layer::plain(vec![7; 10]);
    fake.put_blob(layer.blob.clone());
    let setup = Setup::with(|config| config.progress_timeout = SHORT);
    fake.fault("/blobs/", 1, Fault::Drip(1, SHORT / 4));
    let bytes = setup.download(&format!("{}/app:v1", fake.host()), &layer, 0).await.expect("it comes byte by byte");
    assert_eq!((bytes, fake.seen().len()), (came(&layer.blob), 1));
}

#[tokio::test]
async fn a_reader_that_takes_its_time_is_no_stall() {
    let fake = FakeRegistry::start().await;
    let layer = big_layer();
    fake.put_blob(layer.blob.clone());
    let setup = Setup::with(|config| config.progress_timeout = SHORT);
    let mut stream = setup.open(&format!("{}/app:v1", fake.host()), &layer, 0).await.expect("it is there");
    let first = stream.next().await.expect("it goes on").expect("there is more");
    tokio::time::sleep(3 * SHORT).await;
    let rest = drain(&mut stream).await.expect("the connection is still there");
    assert_eq!(Came([&first[..], &rest.0[..]].concat()), came(&layer.blob));
    assert_eq!(fake.seen().len(), 1);
}

#[tokio::test]
async fn a_host_that_gives_a_byte_at_a_time_does_not_hold_a_pull_for_ever() {
    let fake = FakeRegistry::start().await;
    let layer = big_layer();
    fake.put_blob(layer.blob.clone());
    fake.fault("/blobs/", usize::MAX, Fault::Truncate(1));
    let error = Setup::new().download(&format!("{}/app:v1", fake.host()), &layer, 0).await.expect_err("it is no use");
    assert_eq!(error.kind, RegistryErrorKind::Unavailable);
    assert!(error.to_string().contains("at byte 64 of 1000000"), "{error}");
    assert!(fake.seen().len() <= 64);
}

#[tokio::test]
async fn a_blob_of_the_wrong_length_is_refused_before_and_after() {
    let (mirror, upstream) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let layer = big_layer();
    mirror.put_blob_as(&layer.digest(), layer.blob[..10].to_vec());
    upstream.put_blob(layer.blob.clone());
    let setup = Setup::new();
    setup.hosts("reg.example", &format!("server = {:?}\n[host.{:?}]\n", upstream.url(), mirror.url()));
    assert_eq!(setup.download("reg.example/app:v1", &layer, 0).await.expect("the server has it"), came(&layer.blob));

    upstream.fault("/blobs/", usize::MAX, Fault::Excess(1));
    let error = setup.download("reg.example/app:v1", &layer, 0).await.expect_err("nobody has it");
    assert_eq!(error.kind, RegistryErrorKind::Invalid);
    assert!(error.to_string().contains("has 10 bytes where the manifest says 1000000"), "{error}");
    assert!(error.to_string().contains("has 1000001 bytes"), "{error}");
}

#[tokio::test]
async fn a_rejected_blob_is_asked_of_another_mirror_first() {
    let (mirror, upstream) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let layer = big_layer();
    mirror.put_blob(layer.blob.clone());
    upstream.put_blob(layer.blob.clone());
    let setup = Setup::new();
    setup.hosts("reg.example", &format!("server = {:?}\n[host.{:?}]\n", upstream.url(), mirror.url()));
    mirror.fault("/blobs/", usize::MAX, Fault::WrongBytes);
    let mut stream = setup.open("reg.example/app:v1", &layer, 0).await.expect("the mirror has something");
    let bytes = drain(&mut stream).await.expect("as many bytes as there should be");
    assert!(!descriptor(&layer.blob).digest.matches(&bytes.0));
    stream.reject();
    assert_eq!(setup.download("reg.example/app:v1", &layer, 0).await.expect("the server has it"), came(&layer.blob));
    // For other blobs the mirror is still the first.
    let other = Layer::plain(vec![1; 100]);
    mirror.clear_faults();
    mirror.put_blob(other.blob.clone());
    upstream.clear_seen();
    assert_eq!(setup.download("reg.example/app:v1", &other, 0).await.expect("the mirror has it"), came(&other.blob));
    assert!(upstream.seen().is_empty());
}

#[tokio::test]
async fn dropping_next_at_any_moment_loses_nothing() {
    let fake = FakeRegistry::start().await;
    let layer = big_layer();
    fake.put_blob(layer.blob.clone());
    fake.fault("/blobs/", 2, Fault::Truncate(100_000));
    fake.fault("/blobs/", 1, Fault::Status(503, Vec::new()));
    fake.fault("/blobs/", 1, Fault::Drip(50_000, Duration::from_millis(3)));
    let setup = Setup::new();
    let mut stream = setup.open(&format!("{}/app:v1", fake.host()), &layer, 0).await.expect("it is there");
    let mut bytes = Vec::new();
    let began = Instant::now();
    for round in 0u64.. {
        assert!(began.elapsed() < HUNG, "no end is in sight at {}", bytes.len());
        // Impatience of all degrees, from none at all to enough for a pause between two attempts.
        let patience = Duration::from_micros(round * 977 % 600_000);
        match tokio::time::timeout(patience, stream.next()).await {
            Err(_) => assert_eq!(stream.position(), bytes.len() as u64),
            Ok(Ok(Some(piece))) => bytes.extend_from_slice(&piece),
            Ok(Ok(None)) => break,
            Ok(Err(error)) => panic!("{error}"),
        }
    }
    assert_eq!(Came(bytes), came(&layer.blob));
}

#[tokio::test]
async fn a_failed_stream_stays_failed() {
    let fake = FakeRegistry::start().await;
    let layer = big_layer();
    fake.put_blob(layer.blob.clone());
    fake.fault("/blobs/", 1, Fault::Stall(300_000));
    let setup = Setup::new();
    let mut stream = setup.open(&format!("{}/app:v1", fake.host()), &layer, 0).await.expect("it is there");
    drop(fake);
    let error = drain(&mut stream).await.expect_err("the host is gone");
    assert_eq!(error.kind, RegistryErrorKind::Unavailable);
    assert!(stream.next().await.is_err());
}

#[tokio::test]
async fn certificates_are_checked_unless_the_file_says_otherwise() {
    let fake = FakeRegistry::start_tls(false).await;
    fake.put_image("app", "v1", &image());
    let setup = Setup::new();
    let hosts = |more: &str| format!("server = {:?}\n{more}", fake.url());
    setup.hosts("reg.example", &hosts(""));
    let error = setup.resolve("reg.example/app:v1").await.expect_err("nobody knows this authority");
    assert_eq!(error.kind, RegistryErrorKind::Unavailable);
    assert!(error.to_string().contains("certificate"), "{error}");

    setup.hosts("reg.example", &hosts("skip_verify = true"));
    setup.resolve("reg.example/app:v1").await.expect("any certificate will do");
    write(&setup.root.path().join("reg.example/ca.crt"), CA_CERTIFICATE);
    setup.hosts("reg.example", &hosts("ca = \"ca.crt\""));
    setup.resolve("reg.example/app:v1").await.expect("the authority is known");
    // The certificate is checked against the name, too.
    let by_name =
        format!("server = \"https://127.0.0.2:{}\"\nca = \"ca.crt\"", fake.host().rsplit(':').next().unwrap_or(""));
    setup.hosts("reg.example", &by_name);
    assert!(setup.resolve("reg.example/app:v1").await.is_err());
}

#[tokio::test]
async fn docker_s_certificate_files_work_and_so_does_a_client_certificate() {
    let fake = FakeRegistry::start_tls(true).await;
    fake.put_image("app", "v1", &image());
    let setup = Setup::new();
    let directory = setup.root.path().join(fake.host());
    let name = format!("{}/app:v1", fake.host());
    write(&directory.join("ca.crt"), CA_CERTIFICATE);
    assert!(setup.resolve(&name).await.is_err(), "the host asks for a certificate");
    write(&directory.join("me.cert"), CLIENT_CERTIFICATE);
    write(&directory.join("me.key"), CLIENT_KEY);
    setup.resolve(&name).await.expect("the certificate is shown");
    write(&directory.join("me.cert"), SERVER_CERTIFICATE);
    let error = setup.resolve(&name).await.expect_err("the key is another's");
    assert!(error.to_string().contains("me.cert"), "{error}");
    write(
        &directory.join("hosts.toml"),
        &format!("server = {:?}\nca = \"ca.crt\"\nclient = [[\"both.pem\"]]", fake.url()),
    );
    assert!(setup.resolve(&name).await.is_err());
    write(&directory.join("both.pem"), &format!("{CLIENT_CERTIFICATE}{CLIENT_KEY}"));
    write(&directory.join("hosts.toml"), &format!("server = {:?}\nca = \"ca.crt\"\nclient = \"both.pem\"", fake.url()));
    setup.resolve(&name).await.expect("certificate and key are in one file");
}

#[tokio::test]
async fn loopback_is_reached_with_and_without_tls_and_nothing_else_is_downgraded() {
    let secure = FakeRegistry::start_tls(false).await;
    secure.put_image("app", "v1", &image());
    Setup::new().resolve(&format!("{}/app:v1", secure.host())).await.expect("any certificate will do on loopback");
    let plain = FakeRegistry::start().await;
    plain.put_image("app", "v1", &image());
    Setup::new().resolve(&format!("{}/app:v1", plain.host())).await.expect("HTTP will do on loopback");

    // Named as a server, over https, a host without TLS is not spoken to in clear.
    let setup = Setup::new();
    setup.hosts("reg.example", &format!("server = \"https://{}\"", plain.host()));
    plain.clear_seen();
    assert!(setup.resolve("reg.example/app:v1").await.is_err());
    assert!(plain.seen().is_empty());
    // Unless it is named insecure.
    let insecure = plain.host();
    let setup = Setup::with(|config| config.insecure_registries = vec![insecure]);
    setup.hosts("reg.example", &format!("server = \"https://{}\"", plain.host()));
    setup.resolve("reg.example/app:v1").await.expect("it is insecure, and said to be");
    // A wrong certificate is no reason to do without.
    let setup = Setup::new();
    write(&setup.root.path().join("reg.example/ca.crt"), CA_CERTIFICATE);
    let port = secure.host().rsplit(':').next().unwrap_or("").to_owned();
    setup.hosts("reg.example", &format!("server = \"http://127.0.0.2:{port}\"\nca = \"ca.crt\""));
    let error = setup.resolve("reg.example/app:v1").await.expect_err("the certificate is for another name");
    assert!(!error.to_string().contains("400"), "{error}");
}

#[tokio::test]
async fn headers_of_the_configuration_are_sent() {
    let fake = FakeRegistry::start().await;
    fake.put_image("app", "v1", &image());
    let setup = Setup::with(|config| config.headers = vec![("x-site".into(), "one".into())]);
    setup.hosts(&fake.host(), &format!("server = {:?}\n[header]\nx-list = [\"a\", \"b\"]\n", fake.url()));
    setup.resolve(&format!("{}/app:v1", fake.host())).await.expect("it is there");
    let seen = &fake.seen()[0];
    assert_eq!((seen.header("x-site"), seen.headers.get_all("x-list").iter().count()), ("one", 2));
    for header in [("bad name", "x"), ("good", "bad\nvalue")] {
        let config = RegistryConfig { headers: vec![(header.0.into(), header.1.into())], ..RegistryConfig::default() };
        assert!(Registry::new(config).is_err(), "{header:?}");
    }
}

#[tokio::test]
async fn many_pulls_at_once_do_not_disturb_each_other() {
    let fake = FakeRegistry::start().await;
    fake.set_access(Access::Token("me".into(), "pw".into()));
    let layers: Vec<Layer> = (0u8..16).map(|n| Layer::plain(vec![n; 100_000 + usize::from(n)])).collect();
    let image = Image::new(layers);
    fake.put_image("app", "v1", &image);
    fake.fault("/blobs/", 8, Fault::Truncate(50_000));
    let setup = Setup::new();
    let name = reference(&format!("{}/app:v1", fake.host()));
    let mut pulls = tokio::task::JoinSet::new();
    for layer in image.layers.clone() {
        let (registry, name) = (setup.registry.clone(), name.clone());
        pulls.spawn(async move {
            let wanted = descriptor(&layer.blob);
            let mut stream = registry.blob(&name, &login("me", "pw"), &wanted, 0).await.expect("it is there");
            wanted.digest.matches(&drain(&mut stream).await.expect("it is there").0)
        });
    }
    assert!(pulls.join_all().await.into_iter().all(|good| good));
}
