//! Peers that speak to the streaming server what no client would: each is refused and its connection ended, the daemon
//! takes no memory for it, and somebody else's session beside it notices nothing.

use knarr_node_tests::node::{Config, Node};
use knarr_node_tests::requests::{container, pod};
use knarr_node_tests::streams::{ALL, TRANSPORTS, finish, in_time, must, send, until};
use knarr_node_tests::{Outcome, tests};
use knarr_streaming::CommandEnd;
use knarr_streaming::client::CommandClient;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

tests![
    broken_spdy_ends_its_connection_only with short_waits,
    broken_websocket_frames_end_their_connection_only with short_waits,
    broken_spdy_in_a_tunnel_ends_its_connection_only with short_waits,
    peers_of_one_byte_at_a_time_are_ended with short_waits,
    requests_without_an_end_are_ended with short_waits,
];

fn short_waits() -> Config {
    Config { toml: "[streaming]\ncreation_timeout = \"2s\"\n".into(), ..Config::default() }
}

/// How long a connection may live after it was found broken, or has let its time pass.
const ENDED_WITHIN: Duration = Duration::from_secs(10);

/// Private memory that the daemon may have more after all of this, KiB: a few buffers of its allocator.
const MEMORY_SLACK_KIB: usize = 4096;

/// Each breaks a session as a whole. They are what the codecs' own fuzzers begin with; a first byte tells those how to
/// cut them.
const BROKEN_SPDY: [(&str, &[u8]); 8] = [
    ("a control frame of 16 MiB", include_bytes!("../../../fuzz/seeds/spdy_session/control_frame_of_16_mib")),
    ("an even number", include_bytes!("../../../fuzz/seeds/spdy_session/even_number")),
    ("a header block that inflates without end", include_bytes!("../../../fuzz/seeds/spdy_session/header_bomb")),
    ("4 billion headers", include_bytes!("../../../fuzz/seeds/spdy_session/header_count_of_4_billion")),
    ("a header of 4 GiB", include_bytes!("../../../fuzz/seeds/spdy_session/header_length_of_4_billion")),
    ("a number that does not grow", include_bytes!("../../../fuzz/seeds/spdy_session/number_does_not_grow")),
    ("stream zero", include_bytes!("../../../fuzz/seeds/spdy_session/stream_zero")),
    ("version 2", include_bytes!("../../../fuzz/seeds/spdy_session/version_2")),
];

/// Each breaks one stream or nothing: what ends the session of an exec is that its streams never come.
const USELESS_SPDY: [(&str, &[u8]); 4] = [
    ("a header given twice", include_bytes!("../../../fuzz/seeds/spdy_session/duplicate_header")),
    ("an upper-case header", include_bytes!("../../../fuzz/seeds/spdy_session/upper_case_header")),
    ("HTTP, which looks like data", include_bytes!("../../../fuzz/seeds/spdy_session/http")),
    ("data for nobody", include_bytes!("../../../fuzz/seeds/spdy_session/data_for_nobody")),
];

/// A session that is spoken to again and again while others misbehave.
struct Bystander {
    client: CommandClient,
    said: usize,
}

impl Bystander {
    async fn begin(node: &mut Node, id: &str, number: usize) -> Outcome<Self> {
        Ok(Self { client: node.stream(id, &["echo"], ALL, TRANSPORTS[number % 2]).await?, said: 0 })
    }

    async fn is_heard(&mut self) -> Outcome {
        self.said += 1;
        let text = format!("{} times\n", self.said);
        send(must(self.client.stdin.as_mut())?, &text).await?;
        assert_eq!(until(must(self.client.stdout.as_mut())?, "\n").await?, text);
        Ok(())
    }

    async fn end(mut self) -> Outcome {
        self.is_heard().await?;
        must(self.client.stdin.take())?.finish().await.map_err(|e| format!("{e:?}"))?;
        assert_eq!(finish(self.client).await?.end, CommandEnd::Success);
        Ok(())
    }
}

async fn running(node: &mut Node) -> Outcome<String> {
    let pod = node.run_pod(pod("hostile")).await?;
    Ok(node.run(&pod, container("main", &["reap", ",", "pause"])).await?)
}

/// Address and path of a URL.
fn parts(url: &str) -> Outcome<(&str, &str)> {
    let rest = url.strip_prefix("http://").ok_or("no http URL")?;
    let at = rest.find('/').ok_or("no path in the URL")?;
    Ok(rest.split_at(at))
}

/// A connection that has been upgraded.
async fn upgraded(url: &str, upgrade: &str, headers: &str) -> Outcome<TcpStream> {
    let (address, path) = parts(url)?;
    let mut peer = TcpStream::connect(address).await?;
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n{headers}\r\n");
    peer.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    let read = async {
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(peer.read_u8().await?);
        }
        Outcome::Ok(())
    };
    in_time("the upgrade is answered", read).await??;
    let answer = String::from_utf8_lossy(&answer);
    if !answer.starts_with("HTTP/1.1 101") {
        return Err(format!("not upgraded: {answer}").into());
    }
    Ok(peer)
}

async fn spdy(url: &str) -> Outcome<TcpStream> {
    upgraded(url, "SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io\r\n").await
}

async fn websocket(url: &str, protocol: &str) -> Outcome<TcpStream> {
    let headers = format!(
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: {protocol}\r\n"
    );
    upgraded(url, "websocket", &headers).await
}

/// A frame of a client, with a mask of zeros.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first, 0x80 | 126];
    frame.extend((payload.len() as u16).to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// Reads until the server has ended the connection; gives how many bytes it said.
async fn ended(what: &str, peer: &mut TcpStream) -> Outcome<usize> {
    let mut buffer = [0; 4096];
    let mut said = 0;
    let reading = async {
        // A reset is an end, too: what was not read makes it one.
        while let Ok(count @ 1..) = peer.read(&mut buffer).await {
            said += count;
        }
    };
    tokio::time::timeout(ENDED_WITHIN, reading).await.map_err(|_| format!("{what}: not ended by the server"))?;
    Ok(said)
}

fn memory_kib(node: &Node) -> Outcome<usize> {
    let daemon = node.daemon_pid().ok_or("no daemon runs")?;
    let status = std::fs::read_to_string(format!("/proc/{daemon}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
    Ok(line.split_whitespace().next().unwrap_or_default().parse()?)
}

/// Lets every attack run beside two sessions, one for each transport, and looks at the daemon's memory.
async fn beside_others(
    node: &mut Node,
    attack: impl AsyncFn(&mut Node, &str, usize) -> Outcome,
    count: usize,
) -> Outcome {
    let id = running(node).await?;
    let mut bystanders = [Bystander::begin(node, &id, 0).await?, Bystander::begin(node, &id, 1).await?];
    // Once for what is allocated only once.
    attack(node, &id, 0).await?;
    let before = memory_kib(node)?;
    for number in 0..count {
        attack(node, &id, number).await?;
        for bystander in &mut bystanders {
            bystander.is_heard().await?;
        }
    }
    let after = memory_kib(node)?;
    assert!(after <= before + MEMORY_SLACK_KIB, "{before} KiB before, {after} KiB after");
    for bystander in bystanders {
        bystander.end().await?;
    }
    Ok(())
}

async fn broken_spdy_ends_its_connection_only(node: &mut Node) -> Outcome {
    let attack = async |node: &mut Node, id: &str, number: usize| {
        let (what, seed) = BROKEN_SPDY.iter().chain(&USELESS_SPDY).nth(number).ok_or("no such attack")?;
        let mut peer = spdy(&node.exec_url(id, &["echo"], ALL).await?).await?;
        peer.write_all(&seed[1..]).await?;
        ended(what, &mut peer).await?;
        Ok(())
    };
    beside_others(node, attack, BROKEN_SPDY.len() + USELESS_SPDY.len()).await
}

async fn broken_spdy_in_a_tunnel_ends_its_connection_only(node: &mut Node) -> Outcome {
    let attack = async |node: &mut Node, _: &str, number: usize| {
        let (what, seed) = BROKEN_SPDY[number];
        let pod = node.pods().await?.first().ok_or("no pod")?.id.clone();
        let request = knarr_cri_api::v1::PortForwardRequest { pod_sandbox_id: pod, port: Vec::new() };
        let url = node.runtime.port_forward(request).await?.into_inner().url;
        let mut peer = websocket(&url, "SPDY/3.1+portforward.k8s.io").await?;
        peer.write_all(&frame(0x82, &seed[1..])).await?;
        ended(what, &mut peer).await?;
        Ok(())
    };
    // Not the useless ones: a connection for ports may be without streams for hours.
    beside_others(node, attack, BROKEN_SPDY.len()).await
}

async fn broken_websocket_frames_end_their_connection_only(node: &mut Node) -> Outcome {
    let mut large = vec![0x82, 0x80 | 127];
    large.extend((1_u64 << 62).to_be_bytes());
    large.extend([0; 4]);
    let unmasked = vec![0x82, 5, 0, b'l', b'o', b'u', b'd'];
    let mut fragments = frame(0x02, &[0]);
    (0..4096).for_each(|_| fragments.extend(frame(0x00, &[b'x'; 4096])));
    fragments.extend(frame(0x82, &[0, b'x']));
    let attacks: [(&str, Vec<u8>); 7] = [
        ("a frame of 2^62 bytes", large),
        ("a frame without a mask", unmasked),
        ("an opcode that is none", frame(0x8b, b"what")),
        ("reserved bits", frame(0xf2, &[0])),
        ("a ping of 4 KiB", frame(0x89, &[0; 4096])),
        ("a continuation of nothing", frame(0x80, &[0])),
        ("a message within a message", fragments),
    ];
    let attack = async |node: &mut Node, id: &str, number: usize| {
        let (what, bytes) = &attacks[number];
        let mut peer = websocket(&node.exec_url(id, &["sleep", "30"], ALL).await?, "v4.channel.k8s.io").await?;
        // The server may have ended it in the middle.
        let (mut reader, mut writer) = peer.split();
        let writing = async {
            let _ = writer.write_all(bytes).await;
        };
        let reading = async {
            let mut buffer = [0; 4096];
            while let Ok(1..) = reader.read(&mut buffer).await {}
        };
        let both = async { tokio::join!(writing, reading) };
        tokio::time::timeout(ENDED_WITHIN, both).await.map_err(|_| format!("{what}: not ended by the server"))?;
        Ok(())
    };
    beside_others(node, attack, attacks.len()).await
}

async fn peers_of_one_byte_at_a_time_are_ended(node: &mut Node) -> Outcome {
    const PEERS: usize = 32;
    let attack = async |node: &mut Node, id: &str, _: usize| {
        let mut peers = Vec::new();
        for number in 0..PEERS {
            let url = node.exec_url(id, &["echo"], ALL).await?;
            let (address, path) = parts(&url)?;
            // Half of them dawdle in the request, half in the frames behind it.
            let (peer, rest) = if number % 2 == 0 {
                let request = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nConnection: Upgrade\r\n");
                (TcpStream::connect(address).await?, request.into_bytes())
            } else {
                (spdy(&url).await?, include_bytes!("../../../fuzz/seeds/spdy_session/exec_client")[1..40].to_vec())
            };
            peers.push(tokio::spawn(dawdle(peer, rest)));
        }
        for peer in peers {
            peer.await?.map_err(|e| e.to_string())?;
        }
        Ok(())
    };
    beside_others(node, attack, 2).await
}

/// Sends a byte now and then until the server has had enough.
async fn dawdle(mut peer: TcpStream, bytes: Vec<u8>) -> Result<(), String> {
    const PAUSE: Duration = Duration::from_millis(200);
    let mut bytes = bytes.into_iter();
    let mut buffer = [0; 4096];
    let dawdling = async {
        loop {
            tokio::select! {
                read = peer.read(&mut buffer) => match read {
                    Ok(1..) => {}
                    _ => return,
                },
                () = tokio::time::sleep(PAUSE) => {
                    if let Some(byte) = bytes.next() && peer.write_all(&[byte]).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    tokio::time::timeout(ENDED_WITHIN, dawdling).await.map_err(|_| "a slow peer: not ended by the server".to_owned())
}

async fn requests_without_an_end_are_ended(node: &mut Node) -> Outcome {
    const REQUEST_BYTES: usize = 4 << 20;
    let attack = async |node: &mut Node, id: &str, number: usize| {
        let url = node.exec_url(id, &["echo"], ALL).await?;
        let (address, path) = parts(&url)?;
        let mut peer = TcpStream::connect(address).await?;
        let (beginning, again) = [
            (format!("GET {path} HTTP/1.1\r\nA: "), "a".repeat(1024)),
            (format!("GET {path} HTTP/1.1\r\n"), "A: a\r\n".repeat(100)),
            (format!("GET {path}"), "a".repeat(1024)),
        ][number]
            .clone();
        let mut request = beginning.into_bytes();
        while request.len() < REQUEST_BYTES {
            request.extend_from_slice(again.as_bytes());
        }
        let (mut reader, mut writer) = peer.split();
        let writing = async {
            let _ = writer.write_all(&request).await;
        };
        let reading = async {
            let mut answer = Vec::new();
            let _ = reader.read_to_end(&mut answer).await;
            answer
        };
        let both = async { tokio::join!(writing, reading).1 };
        let answer = tokio::time::timeout(ENDED_WITHIN, both).await.map_err(|_| "not ended by the server")?;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
        Ok(())
    };
    beside_others(node, attack, 3).await
}
