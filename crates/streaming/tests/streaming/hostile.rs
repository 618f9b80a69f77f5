//! Peers that break the protocol, vanish, stand still or take their time, and others that must not notice.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::{BufMut, BytesMut};
use knarr_streaming::client::{self, Transport};
use knarr_streaming::{CommandEnd, Wanted};
use knarr_wire::spdy::{Role, Session};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::command::TRANSPORTS;
use crate::raw::{Spdy, place, spdy_request, upgrade};
use crate::support::{ALL, Counted, TestServer, all, busy, local, pattern, settings, soon, target, until};

const STREAMS: [&[(&str, &str)]; 4] =
    [&[("streamtype", "error")], &[("streamtype", "stdin")], &[("streamtype", "stdout")], &[("streamtype", "stderr")]];

/// A session that talks all the time, beside whatever else happens.
async fn bystander(server: &TestServer, transport: Transport) -> tokio::task::JoinHandle<usize> {
    let mut client = server
        .run(transport, Wanted { stdin: true, stdout: true, ..Wanted::default() }, |session| async move {
            let (mut stdin, mut stdout) = (session.stdin.unwrap(), session.stdout.unwrap());
            while let Some(bytes) = stdin.next().await {
                if stdout.send(bytes).await.is_err() {
                    break;
                }
            }
            CommandEnd::Success
        })
        .await;
    let (mut stdin, mut stdout) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
    tokio::spawn(async move {
        let _end = client.end;
        let start = Instant::now();
        let mut rounds = 0;
        while start.elapsed() < Duration::from_millis(1500) {
            let bytes = pattern(1000, rounds as u64);
            stdin.send(bytes.clone()).await.unwrap();
            let mut came = Vec::new();
            while came.len() < bytes.len() {
                let piece = timeout(Duration::from_secs(2), stdout.next()).await.expect("others do not matter");
                came.extend_from_slice(&piece.unwrap());
            }
            assert!(came == bytes);
            rounds += 1;
        }
        rounds
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_while_nobody_takes_its_stdin_is_noticed() {
    let server = TestServer::start(settings()).await;
    for resets in [false, true] {
        let (told, is_told) = tokio::sync::oneshot::channel();
        let url = server.exec(ALL, |session| async move {
            // It stays where it is.
            let stdin = session.stdin;
            session.client.gone().await;
            let _ = told.send(());
            drop(stdin);
            CommandEnd::Success
        });
        let (mut spdy, ids) = Spdy::connect(&url, "v4.channel.k8s.io", &STREAMS).await;
        let mut sent = 0;
        let piece = vec![1; 64 << 10];
        while let Ok(()) = timeout(Duration::from_millis(500), spdy.send(ids[1], &piece, false)).await {
            sent += piece.len();
            assert!(sent < 64 << 20, "nothing holds it back");
        }
        if resets {
            spdy.tcp.set_zero_linger().unwrap();
        }
        drop(spdy);
        timeout(Duration::from_secs(5), is_told).await.expect("it is noticed").unwrap();
    }
    server.stop().await;
}

#[tokio::test]
async fn a_command_is_dropped_some_time_after_its_client() {
    let server = TestServer::start(settings()).await;
    for transport in TRANSPORTS {
        let counted = Counted::default();
        let begun = counted.begin_later();
        let (cleaned, is_cleaned) = tokio::sync::oneshot::channel();
        let mut client = server
            .run(transport, ALL, |session| async move {
                let _begun = begun();
                session.client.gone().await;
                let (mut stdin, mut stdout) = (session.stdin.unwrap(), session.stdout.unwrap());
                // What came before the client went is still there; then there is nothing any more.
                assert_eq!(stdin.next().await.unwrap(), "last words");
                assert_eq!(stdin.next().await, None);
                assert!(stdout.send("x".into()).await.is_err());
                sleep(Duration::from_millis(300)).await;
                let _ = cleaned.send(());
                std::future::pending().await
            })
            .await;
        client.stdin.as_mut().unwrap().send("last words".into()).await.unwrap();
        sleep(Duration::from_millis(100)).await;
        drop(client);
        soon(is_cleaned).await.expect("there is time to clean up");
        assert!(!counted.is_over());
        until("it is dropped", || counted.is_over()).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_pauses_gets_what_the_kernel_holds_for_it() {
    let server = TestServer::start(settings()).await;
    const LENGTH: usize = 150 << 10;
    let (told, is_told) = tokio::sync::oneshot::channel();
    let url = server.exec(ALL, |session| async move {
        session.stdout.unwrap().send(pattern(LENGTH, 3)).await.unwrap();
        let _ = told.send(());
        CommandEnd::Exited(2)
    });
    let (address, path) = place(&url);
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    // Most of it has to wait in the server's kernel.
    socket.set_recv_buffer_size(16 << 10).unwrap();
    let tcp = socket.connect(address).await.unwrap();
    let mut session = Session::new(Role::Client);
    let mut out = BytesMut::from(spdy_request(&path, "v4.channel.k8s.io").as_bytes());
    let ids: Vec<_> = STREAMS.iter().map(|headers| session.open(headers, &mut out).unwrap()).collect();
    let (tcp, head, input) = crate::raw::upgrade_on(tcp, &out).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut spdy = Spdy { tcp, session, input };
    soon(is_told).await.unwrap();
    // For longer than a peer is given to close, and with the pings that client-go sends meanwhile.
    for _ in 0..16 {
        sleep(Duration::from_millis(500)).await;
        let mut ping = BytesMut::new();
        spdy.session.ping(&mut ping);
        spdy.tcp.write_all(&ping).await.unwrap();
    }
    let came = spdy.rest().await;
    let stdout = &came[&ids[2].0];
    assert!(stdout.bytes == pattern(LENGTH, 3) && stdout.fin, "{} bytes", stdout.bytes.len());
    assert!(came[&ids[0].0].fin, "no status");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_breaks_the_protocol_harms_itself_alone() {
    let server = TestServer::start(settings()).await;
    let watching = [bystander(&server, TRANSPORTS[0]).await, bystander(&server, TRANSPORTS[1]).await];
    let control = |kind: u16, length: u32, body: &[u8]| {
        let mut frame = BytesMut::new();
        frame.put_u16(0x8003);
        frame.put_u16(kind);
        frame.put_u32(length);
        frame.put_slice(body);
        frame.to_vec()
    };
    let mut bomb = vec![0, 0, 0, 9, 0, 0, 0, 0, 0, 0];
    bomb.extend(zlib_of_zeros());
    let many = {
        let mut bytes = BytesMut::new();
        let mut session = Session::new(Role::Client);
        for at in 0..3000 {
            let id = at.to_string();
            let _ = session.open(&[("streamtype", "error"), ("n", id.as_str())], &mut bytes);
        }
        bytes.to_vec()
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("no SPDY at all", b"\x80GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("another version", vec![0x80, 0x02, 0, 1, 0, 0, 0, 0]),
        ("an endless control frame", control(1, 0x00ff_ffff, &[0; 100])),
        ("headers that inflate without end", control(1, bomb.len() as u32, &bomb)),
        ("headers that do not inflate", control(1, 30, &[0xff; 30])),
        ("a frame that is too short", control(3, 3, &[0; 3])),
        ("data for no stream", vec![0, 0, 0, 0, 0, 0, 0, 4, 1, 2, 3, 4]),
        ("a stream of ours", control(1, 10, &[0, 0, 0, 2, 0, 0, 0, 0, 0, 0])),
        ("thousands of streams", many),
    ];
    for (what, bytes) in cases {
        let url = server.exec(ALL, |_| async { panic!("it reached the command") });
        let (_, path) = place(&url);
        let (mut tcp, head, _) = upgrade(&url, spdy_request(&path, "v4.channel.k8s.io").as_bytes()).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let _ = tcp.write_all(&bytes).await;
        if what == "thousands of streams" {
            // Refused, one by one, and the session goes on waiting for the streams that it needs.
            let mut spdy = Spdy { tcp, session: Session::new(Role::Client), input: BytesMut::new() };
            let _ = spdy.session.open(STREAMS[0], &mut BytesMut::new());
            let answer = timeout(Duration::from_secs(1), spdy.tcp.read_buf(&mut spdy.input)).await;
            assert!(answer.expect("an answer").unwrap() > 0);
            continue;
        }
        let mut answer = Vec::new();
        let took = Instant::now();
        let _ = soon(tcp.read_to_end(&mut answer)).await;
        // Its good-bye says that the protocol was broken: GOAWAY with status 1.
        assert_eq!(answer.get(..4), Some(&[0x80, 3, 0, 7][..]), "{what}: {answer:?}");
        assert_eq!(answer.get(12..16), Some(&[0, 0, 0, 1][..]), "{what}: {answer:?}");
        assert!(took.elapsed() < Duration::from_secs(5), "{what}");
    }
    for watching in watching {
        assert!(soon(watching).await.unwrap() > 100);
    }
    server.stop().await;
}

/// A zlib stream with SPDY's dictionary that inflates to megabytes out of little: made once with a deflate of 4 MiB of
/// zeros in fixed blocks, which is this pattern again and again.
fn zlib_of_zeros() -> Vec<u8> {
    // CMF, FLG with FDICT, the dictionary's Adler-32.
    let mut bytes = vec![0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2];
    // One fixed block that is not the last: a literal 0, then matches of length 258 at distance 1. Bits go in from the
    // low end: 0, 01, literal 0 = 00110000 and length code 285 = 11000101, distance 0 = 00000 (codes from the high end).
    let mut bits = Vec::new();
    bits.extend([0_u8, 1, 0]);
    bits.extend([0, 0, 1, 1, 0, 0, 0, 0]);
    for _ in 0..8000 {
        bits.extend([1, 1, 0, 0, 0, 1, 0, 1]);
        bits.extend([0, 0, 0, 0, 0]);
    }
    for eight in bits.chunks(8) {
        bytes.push(eight.iter().enumerate().fold(0, |byte, (at, bit)| byte | bit << at));
    }
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_takes_its_time_is_ended_by_the_deadline() {
    let mut settings = settings();
    settings.creation_timeout = Duration::from_millis(700);
    let server = TestServer::start(settings).await;
    let watching = bystander(&server, Transport::Spdy).await;
    let url = server.exec(ALL, |_| async { panic!("it reached the command") });
    let (_, path) = place(&url);
    let (mut tcp, _, _) = upgrade(&url, spdy_request(&path, "v4.channel.k8s.io").as_bytes()).await;
    let mut streams = BytesMut::new();
    let mut session = Session::new(Role::Client);
    STREAMS.iter().for_each(|headers| _ = session.open(headers, &mut streams));
    let start = Instant::now();
    for byte in streams {
        if tcp.write_all(&[byte]).await.is_err() {
            break;
        }
        sleep(Duration::from_millis(30)).await;
    }
    // It may write on for as long as it is waited for, and no longer.
    soon(async {
        while tcp.write_all(&[0]).await.is_ok() {
            sleep(Duration::from_millis(30)).await
        }
    })
    .await;
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(soon(watching).await.unwrap() > 100);
    server.stop().await;
}

#[tokio::test]
async fn a_session_in_which_nothing_moves_is_ended() {
    let mut settings = settings();
    settings.idle_timeout = Duration::from_secs(1);
    let server = TestServer::start(settings).await;
    for transport in TRANSPORTS {
        let (told, is_told) = tokio::sync::oneshot::channel();
        let mut client = server
            .run(transport, ALL, |session| async move {
                session.client.gone().await;
                let _ = told.send(());
                CommandEnd::Success
            })
            .await;
        // A byte now and then keeps it.
        let mut last = Instant::now();
        for _ in 0..8 {
            last = Instant::now();
            client.stdin.as_mut().unwrap().send("x".into()).await.expect("it is not idle");
            sleep(Duration::from_millis(250)).await;
        }
        soon(is_told).await.expect("it is told");
        assert!(last.elapsed() >= Duration::from_secs(1), "{:?}", last.elapsed());
        assert!(soon(client.end.wait()).await.is_err(), "no status was sent");

        let url = server.forward(&[], local());
        let client = soon(client::port_forward(&target(url, transport))).await.unwrap();
        soon(client.gone()).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_asks_and_never_listens_is_held_back() {
    let server = TestServer::start(settings()).await;
    let url = server.exec(ALL, |_| std::future::pending());
    let (mut spdy, _) = Spdy::connect(&url, "v4.channel.k8s.io", &STREAMS).await;
    let mut pings = BytesMut::new();
    for _ in 0..5000 {
        spdy.session.ping(&mut pings);
    }
    let mut sent = 0;
    while let Ok(result) = timeout(Duration::from_millis(500), spdy.tcp.write_all(&pings)).await {
        result.unwrap();
        sent += pings.len();
        assert!(sent < 64 << 20, "the answers are kept, or dropped");
    }
    drop(spdy);
    server.stop().await;
}

#[tokio::test]
async fn stopping_ends_sessions_and_frees_the_address() {
    let server = TestServer::start(settings()).await;
    let address = server.server.address();
    let counted = Counted::default();
    let mut clients = Vec::new();
    for at in 0..20 {
        let begun = counted.begin_later();
        clients.push(server.run(TRANSPORTS[at % 2], ALL, |session| busy(session, begun())).await);
    }
    let url = server.forward(&[], local());
    let forwarding = soon(client::port_forward(&target(url, Transport::Spdy))).await.unwrap();
    let waiting = server.exec(ALL, |_| async { CommandEnd::Success });
    let start = Instant::now();
    server.stop().await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(counted.begun.load(Ordering::SeqCst), 20);
    assert!(counted.is_over());
    soon(forwarding.gone()).await;
    for client in &mut clients {
        soon(all(client.stdout.as_mut().unwrap())).await;
    }
    assert!(soon(client::command(&target(waiting, Transport::Spdy), ALL)).await.is_err());
    drop(clients);
    std::net::TcpListener::bind(address).expect("nobody listens there any more");
}
