//! What is shown to whom: tokens, passwords, redirects.

use super::*;

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
    let image = image();
    for access in [Access::Basic("me".into(), "pw".into()), Access::Token("me".into(), "pw".into())] {
        let (fake, evil) = (FakeRegistry::start().await, FakeRegistry::start().await);
        evil.set_access(access);
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
        assert!(evil.seen_of("/token").is_empty());
        assert!(evil.seen().iter().all(|seen| seen.header("authorization").is_empty()));
    }
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
async fn only_what_a_digest_protects_may_be_redirected_into_the_clear() {
    let (secure, plain) = (FakeRegistry::start_tls(false).await, FakeRegistry::start().await);
    let image = image();
    secure.set_access(Access::Basic("me".into(), "pw".into()));
    for fake in [&secure, &plain] {
        fake.put_image("app", "v1", &image);
    }
    let setup = Setup::new();
    let name = format!("{}/app:v1", secure.host());
    secure.fault("/manifests/v1", 1, Fault::RedirectTo(plain.url()));
    let error = setup.resolve_as(&name, &login("me", "pw")).await.expect_err("anyone in between could answer");
    assert_eq!(error.kind, RegistryErrorKind::Invalid);
    assert!(plain.seen().is_empty());

    secure.fault("/manifests/sha256", 1, Fault::RedirectTo(plain.url()));
    let pinned = format!("{}/app@{}", secure.host(), image.digest());
    setup.resolve_as(&pinned, &login("me", "pw")).await.expect("the digest tells");
    assert_eq!(plain.seen().len(), 1);
    assert_eq!(plain.seen()[0].header("authorization"), "");
}
