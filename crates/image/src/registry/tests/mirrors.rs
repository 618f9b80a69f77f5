//! Which host is asked, in which order, for how long.

use super::*;

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
async fn a_mirror_that_answers_again_is_the_first_again() {
    let (mirror, upstream) = (FakeRegistry::start().await, FakeRegistry::start().await);
    let (both, only_mirror) = (Layer::plain(vec![1; 100]), Layer::plain(vec![2; 100]));
    mirror.put_blob(both.blob.clone());
    mirror.put_blob(only_mirror.blob.clone());
    upstream.put_blob(both.blob.clone());
    let setup = Setup::with(|config| config.progress_timeout = SHORT);
    setup.hosts("reg.example", &format!("server = {:?}\n[host.{:?}]\n", upstream.url(), mirror.url()));
    let name = "reg.example/app:v1";
    mirror.fault("/blobs/", 1, Fault::Silent);
    assert_eq!(setup.download(name, &both, 0).await, Ok(came(&both.blob)));
    assert_eq!((mirror.seen().len(), upstream.seen().len()), (1, 1));
    // Taken for dead it comes last, and is asked all the same when nobody else has it.
    assert_eq!(setup.download(name, &only_mirror, 0).await, Ok(came(&only_mirror.blob)));
    assert_eq!((mirror.seen().len(), upstream.seen().len()), (2, 2));
    assert_eq!(setup.download(name, &both, 0).await, Ok(came(&both.blob)));
    assert_eq!((mirror.seen().len(), upstream.seen().len()), (3, 2));
}
