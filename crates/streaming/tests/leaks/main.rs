//! What is left of clients that went: no task, no descriptor. A program of its own with one test, because descriptors are
//! counted for the whole process.

#[path = "../streaming/inside.rs"]
mod inside;
#[path = "../streaming/raw.rs"]
mod raw;
#[path = "../streaming/support.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use knarr_streaming::client::{self, Transport};
use knarr_wire::spdy::{Role, Session};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use inside::{echo, inside};
use raw::{place, spdy_request};
use support::{ALL, Counted, TestServer, busy, descriptors, local, settings, soon, target, tasks, until};

const TRANSPORTS: [Transport; 2] = [Transport::Spdy, Transport::WebSocket];
const STREAMS: [&[(&str, &str)]; 4] =
    [&[("streamtype", "error")], &[("streamtype", "stdin")], &[("streamtype", "stdout")], &[("streamtype", "stderr")]];

/// A generator that needs no crate, and says how to repeat what it did.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_of_clients_that_went() {
    a_thousand_cut().await;
    ours_given_up().await;
    forwarding_dropped().await;
}

/// By hand, cut at any byte of what they say, with a reset or without.
async fn a_thousand_cut() {
    let server = TestServer::start(settings()).await;
    let counted = Counted::default();
    let port = echo().await;
    sleep(Duration::from_millis(20)).await;
    let (tasks_before, descriptors_before) = (tasks(), descriptors());
    let seed = u64::from(std::process::id()) << 20 | 1;
    let mut chance = Chance(seed);
    for at in 0..1000 {
        let begun = counted.begin_later();
        let forward = at % 4 == 3;
        let url =
            if forward { server.forward(&[port], local()) } else { server.exec(ALL, |session| busy(session, begun())) };
        let (address, path) = place(&url);
        let version = if forward { "portforward.k8s.io" } else { "v4.channel.k8s.io" };
        let mut bytes = BytesMut::from(spdy_request(&path, version).as_bytes());
        let mut session = Session::new(Role::Client);
        let port = port.to_string();
        for headers in STREAMS {
            let pair = [("streamtype", "error"), ("port", port.as_str()), ("requestid", "1")];
            let data = [("streamtype", "data"), ("port", port.as_str()), ("requestid", "1")];
            match (forward, headers[0].1) {
                (false, _) => _ = session.open(headers, &mut bytes),
                (true, "error") => _ = session.open(&pair, &mut bytes),
                (true, "stdin") => _ = session.open(&data, &mut bytes),
                _ => {}
            }
        }
        for _ in 0..chance.below(20) {
            let length = chance.below(9000) as usize;
            if let Ok(header) = session.data_header(knarr_wire::spdy::StreamId(3), length, false) {
                bytes.extend_from_slice(&header);
                bytes.put_bytes(1, length);
            }
        }
        // Half of them early, when every byte makes a difference.
        let limit = if at % 2 == 0 { 800 } else { bytes.len() as u64 };
        let cut = (chance.below(limit) as usize).min(bytes.len());
        let resets = chance.below(2) == 0;
        let waits = chance.below(4);
        let tcp = TcpStream::connect(address).await.unwrap();
        tokio::spawn(async move {
            let mut tcp = tcp;
            let _ = tcp.write_all(&bytes[..cut]).await;
            sleep(Duration::from_millis(waits)).await;
            if resets {
                let _ = tcp.set_zero_linger();
            }
        });
        if at % 50 == 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }
    until("every command is dropped", || counted.is_over()).await;
    until("no task is left", || tasks() <= tasks_before).await;
    until("no descriptor is left", || descriptors() <= descriptors_before).await;
    assert!(counted.begun.load(Ordering::SeqCst) > 100, "seed {seed}: hardly any got as far as its command");
    server.stop().await;
}

/// Ours, given up at any moment of their way to a session and in it.
async fn ours_given_up() {
    let server = TestServer::start(settings()).await;
    let counted = Counted::default();
    sleep(Duration::from_millis(20)).await;
    let (tasks_before, descriptors_before) = (tasks(), descriptors());
    let seed = u64::from(std::process::id()) << 20 | 3;
    let mut chance = Chance(seed);
    for at in 0..400 {
        let begun = counted.begin_later();
        let url = server.exec(ALL, |session| busy(session, begun()));
        let session = tokio::spawn(async move {
            let mut client = client::command(&target(url, TRANSPORTS[at % 2]), ALL).await.expect("a session");
            let mut stdin = client.stdin.take().expect("stdin");
            let stdout = client.stdout.as_mut().expect("stdout");
            loop {
                tokio::select! {
                    sent = stdin.send(vec![2; 3000].into()) => sent.expect("a reader"),
                    came = stdout.next() => drop(came.expect("a writer")),
                }
            }
        });
        sleep(Duration::from_micros(chance.below(3000))).await;
        session.abort();
        assert!(session.await.is_err_and(|error| error.is_cancelled()), "seed {seed}");
    }
    until("every command is dropped", || counted.is_over()).await;
    until("no task is left", || tasks() <= tasks_before).await;
    until("no descriptor is left", || descriptors() <= descriptors_before).await;
    assert!(counted.begun.load(Ordering::SeqCst) > 50, "seed {seed}: hardly any got as far as its command");
    server.stop().await;
}

/// Ours, each with five ports.
async fn forwarding_dropped() {
    let server = TestServer::start(settings()).await;
    let gone = Arc::new(AtomicUsize::new(0));
    let counted = gone.clone();
    let holds = inside(move |mut tcp| {
        let gone = counted.clone();
        async move {
            let _ = tcp.write_all(b"hello").await;
            let _ = tcp.read_to_end(&mut Vec::new()).await;
            gone.fetch_add(1, Ordering::Relaxed);
        }
    })
    .await;
    let (tasks_before, descriptors_before) = (tasks(), descriptors());
    for transport in TRANSPORTS {
        for _ in 0..20 {
            let url = server.forward(&[], local());
            let client = soon(client::port_forward(&target(url, transport))).await.expect("a session");
            let mut held = Vec::new();
            for _ in 0..5 {
                let mut one = soon(client.open(holds)).await.unwrap();
                assert_eq!(soon(one.receiver.next()).await.unwrap(), "hello");
                held.push(one);
            }
            drop((client, held));
        }
    }
    until("each connection inside ends", || gone.load(Ordering::Relaxed) == 200).await;
    until("no task is left", || tasks() <= tasks_before).await;
    until("no descriptor is left", || descriptors() <= descriptors_before).await;
    server.stop().await;
}
