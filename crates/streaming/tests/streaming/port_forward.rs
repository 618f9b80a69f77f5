//! Port-forward, our client against our server, and clients that are not ours.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use knarr_streaming::client::{self, PortForwardClient, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::command::TRANSPORTS;
use crate::inside::{echo, inside};
use crate::raw::Spdy;
use crate::support::{TestServer, all, local, pattern, send_odd, settings, soon, target};

async fn connect(server: &TestServer, transport: Transport) -> PortForwardClient {
    let url = server.forward(&[], local());
    soon(client::port_forward(&target(url, transport))).await.expect("a session")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_go_through_one() {
    let server = TestServer::start(settings()).await;
    let port = echo().await;
    for transport in TRANSPORTS {
        let client = Arc::new(connect(&server, transport).await);
        let mut all_of_them = tokio::task::JoinSet::new();
        for at in 0..200_u64 {
            let client = client.clone();
            all_of_them.spawn(async move {
                let mut one = client.open(port).await.expect("a connection");
                let bytes = pattern(1000 + 977 * at as usize, at);
                let (sent, came) = tokio::join!(
                    async {
                        send_odd(&mut one.sender, bytes.clone()).await.unwrap();
                        one.sender.finish().await
                    },
                    all(&mut one.receiver)
                );
                sent.unwrap();
                assert!(came == bytes, "{transport:?} {at}: {} of {}", came.len(), bytes.len());
                assert_eq!(one.error.wait().await, None);
            });
        }
        soon(async {
            while let Some(done) = all_of_them.join_next().await {
                done.unwrap()
            }
        })
        .await;
    }
    server.stop().await;
}

#[tokio::test]
async fn each_direction_ends_by_itself() {
    let server = TestServer::start(settings()).await;
    // Answers when it has heard everything, and slowly.
    let asks_first = inside(|mut tcp| async move {
        let mut heard = Vec::new();
        tcp.read_to_end(&mut heard).await.unwrap();
        for piece in heard.chunks(1 + heard.len() / 3) {
            tokio::time::sleep(Duration::from_millis(600)).await;
            tcp.write_all(piece).await.unwrap();
        }
    })
    .await;
    // Says all it has and goes on listening.
    let (told, mut heard) = tokio::sync::mpsc::channel(10);
    let says_first = inside(move |mut tcp| {
        let told = told.clone();
        async move {
            tcp.write_all(b"bye").await.unwrap();
            tcp.shutdown().await.unwrap();
            let mut all = Vec::new();
            tcp.read_to_end(&mut all).await.unwrap();
            told.send(all).await.unwrap();
        }
    })
    .await;
    for transport in TRANSPORTS {
        let client = connect(&server, transport).await;
        let mut one = soon(client.open(asks_first)).await.unwrap();
        one.sender.send(pattern(30_000, 1)).await.unwrap();
        one.sender.finish().await.unwrap();
        assert!(soon(all(&mut one.receiver)).await == pattern(30_000, 1));
        assert_eq!(soon(one.error.wait()).await, None);

        let mut one = soon(client.open(says_first)).await.unwrap();
        assert_eq!(soon(all(&mut one.receiver)).await, b"bye");
        // Longer than anybody waits who takes the first end for the last.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        one.sender.send(pattern(300_000, 2)).await.unwrap();
        one.sender.finish().await.unwrap();
        assert!(soon(heard.recv()).await.unwrap() == pattern(300_000, 2));
        assert_eq!(soon(one.error.wait()).await, None);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_told_and_harms_no_other() {
    let server = TestServer::start(settings()).await;
    let port = echo().await;
    let closed = TcpListener::bind(("127.0.0.1", 0)).await.unwrap().local_addr().unwrap().port();
    for transport in TRANSPORTS {
        let client = connect(&server, transport).await;
        let mut lives = soon(client.open(port)).await.unwrap();
        for _ in 0..20 {
            let mut one = soon(client.open(closed)).await.unwrap();
            assert_eq!(soon(all(&mut one.receiver)).await, b"");
            let text = soon(one.error.wait()).await.unwrap();
            assert!(text.starts_with(&format!("forward port {closed}: ")) && text.contains("refused"), "{text}");
        }
        lives.sender.send("still".into()).await.unwrap();
        assert_eq!(soon(lives.receiver.next()).await.unwrap(), "still");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_connection_that_breaks_inside_is_given_up_alone() {
    let server = TestServer::start(settings()).await;
    let breaks = inside(|tcp| async move {
        tcp.set_zero_linger().unwrap();
        let _ = tcp.readable().await;
    })
    .await;
    let leaves = inside(|tcp| async move { drop(tcp) }).await;
    let client = connect(&server, Transport::Spdy).await;
    for at in 0..20 {
        let mut one = soon(client.open(if at % 2 == 0 { breaks } else { leaves })).await.unwrap();
        one.sender.send("x".into()).await.unwrap();
        assert_eq!(soon(one.receiver.next()).await, None);
        soon(async {
            while one.sender.send("x".into()).await.is_ok() {
                tokio::task::yield_now().await
            }
        })
        .await;
        assert_eq!(soon(one.error.wait()).await, None);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_one_connection_ends_it_inside() {
    let server = TestServer::start(settings()).await;
    let (told, mut is_told) = tokio::sync::mpsc::channel(10);
    let gives = inside(move |mut tcp| {
        let told = told.clone();
        async move {
            while tcp.write_all(&[7; 65_536]).await.is_ok() {}
            let _ = told.send(()).await;
        }
    })
    .await;
    for transport in TRANSPORTS {
        let client = connect(&server, transport).await;
        let mut one = soon(client.open(gives)).await.unwrap();
        assert!(soon(one.receiver.next()).await.is_some());
        drop(one);
        soon(is_told.recv()).await.expect("the connection inside is closed");
        // The others go on.
        let mut one = soon(client.open(gives)).await.unwrap();
        assert!(soon(one.receiver.next()).await.is_some());
        drop((client, one));
        soon(is_told.recv()).await.expect("the connection inside is closed");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_connection_that_stands_still_holds_little_memory() {
    let server = TestServer::start(settings()).await;
    let written = Arc::new(AtomicUsize::new(0));
    let counted = written.clone();
    let gives = inside(move |mut tcp| {
        let written = counted.clone();
        async move {
            while let Ok(count) = tcp.write(&[7; 65_536]).await {
                written.fetch_add(count, Ordering::Relaxed);
            }
        }
    })
    .await;
    let client = connect(&server, Transport::Spdy).await;
    let mut one = soon(client.open(gives)).await.unwrap();
    assert!(soon(one.receiver.next()).await.is_some());
    let mut last = 0;
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = written.load(Ordering::Relaxed);
        if now == last {
            break;
        }
        last = now;
    }
    // Buffers of three connections in the kernel are the most of it.
    assert!(last < 32 << 20, "{last} bytes are under way");
    drop((one, client));
    server.stop().await;
}

#[tokio::test]
async fn pairs_are_made_by_request_or_by_number_and_lone_or_bad_streams_are_refused() {
    let server = TestServer::start(settings()).await;
    let port = echo().await;
    let port_text = port.to_string();
    let of =
        |kind: &'static str, id: &'static str| [("streamtype", kind), ("port", port_text.as_str()), ("requestid", id)];
    let url = server.forward(&[], local());
    let streams: [&[(&str, &str)]; 9] = [
        &of("data", "b"),
        &of("error", "a"),
        &of("data", "a"),
        &of("error", "b"),
        // Without ids: the number of the error stream, and two more.
        &of("error", "")[..2],
        &of("data", "")[..2],
        &[("streamtype", "data"), ("port", "0"), ("requestid", "c")],
        &[("streamtype", "nonsense"), ("port", "80"), ("requestid", "d")],
        &of("error", "alone"),
    ];
    let (mut spdy, ids) = Spdy::connect(&url, "portforward.k8s.io", &streams).await;
    let refused = [ids[6].0, ids[7].0];
    let came = spdy.until(|came| came.len() == 9 && refused.iter().all(|id| came[id].reset)).await;
    assert!(ids.iter().filter(|id| !refused.contains(&id.0)).all(|id| came[&id.0].replied), "{came:?}");
    for data in [ids[0], ids[2], ids[5]] {
        spdy.send(data, format!("stream {data}").as_bytes(), true).await;
    }
    let ends = [ids[0], ids[1], ids[2], ids[3], ids[4], ids[5]];
    let came = spdy.until(|came| ends.iter().all(|id| came.get(&id.0).is_some_and(|came| came.fin))).await;
    for data in [ids[0], ids[2], ids[5]] {
        assert_eq!(came[&data.0].bytes, format!("stream {data}").as_bytes());
    }
    drop(spdy);
    server.stop().await;
}

#[tokio::test]
async fn bytes_that_come_before_the_connection_is_made_wait_for_it() {
    let server = TestServer::start(settings()).await;
    let port = echo().await;
    let slow: knarr_streaming::server::Connect = Arc::new(|port| {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            TcpStream::connect(("127.0.0.1", port)).await
        })
    });
    let url = server.forward(&[], slow);
    let client = soon(client::port_forward(&target(url, Transport::Spdy))).await.unwrap();
    let mut one = soon(client.open(port)).await.unwrap();
    for at in 0..100_u8 {
        one.sender.send(Bytes::from(vec![at])).await.unwrap();
    }
    one.sender.finish().await.unwrap();
    assert_eq!(soon(all(&mut one.receiver)).await, (0..100).collect::<Vec<u8>>());
    server.stop().await;
}

#[tokio::test]
async fn what_nobody_wants_stops_no_other() {
    let mut settings = settings();
    settings.idle_timeout = Duration::from_secs(5);
    let server = TestServer::start(settings).await;
    let port = echo().await;
    let port_text = port.to_string();
    let of =
        |kind: &'static str, id: &'static str| [("streamtype", kind), ("port", port_text.as_str()), ("requestid", id)];
    let url = server.forward(&[], local());
    let refused = [("streamtype", "data"), ("port", "1"), ("requestid", "z")];
    let refused_error = [("streamtype", "error"), ("port", "1"), ("requestid", "z")];
    let streams: [&[_]; 5] = [&of("error", "a"), &of("data", "a"), &refused_error, &refused, &of("data", "lone")];
    let (mut spdy, ids) = Spdy::connect(&url, "portforward.k8s.io", &streams).await;
    spdy.until(|came| came.len() == 5 && came.values().all(|came| came.replied)).await;
    let flood = vec![1; 1 << 20];
    // Where the client has nothing to say; into a port that is closed; and on one that is given up half way.
    spdy.send(ids[0], &flood, true).await;
    if spdy.session.can_send(ids[3]) {
        spdy.send(ids[3], &flood, true).await;
    }
    spdy.send(ids[4], &flood[..250_000], false).await;
    let mut reset = bytes::BytesMut::new();
    spdy.session.reset(ids[4], knarr_wire::spdy::ResetStatus::Cancel, &mut reset);
    spdy.tcp.write_all(&reset).await.unwrap();
    spdy.send(ids[1], b"hello", true).await;
    let came = spdy.until(|came| came.get(&ids[1].0).is_some_and(|came| came.fin)).await;
    assert_eq!(came[&ids[1].0].bytes, b"hello");
    server.stop().await;
}
