//! Names, indexes and manifests.

use super::*;

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
