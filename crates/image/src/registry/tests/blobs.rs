//! Streams that break, stall, lie and are dropped.

use super::*;

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
