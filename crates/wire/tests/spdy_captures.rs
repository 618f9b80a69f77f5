//! What Kubernetes' own client and server sent over SPDY, byte for byte (tests/captures), through our sessions; and what
//! of ours they were seen to accept.

use bytes::BytesMut;
use knarr_wire::port_forward::{Opened, Pair, Pairing};
use knarr_wire::remotecommand::{CommandEnd, SizeDecoder, StreamType, TerminalSize};
use knarr_wire::spdy::{Event, GoAwayStatus, Headers, ResetStatus, Role, Session, StreamId};
use std::collections::BTreeMap;
use std::time::Instant;

/// The bytes of tests/captures/`name`.hex.
fn capture(name: &str) -> Vec<u8> {
    let path = format!("{}/tests/captures/{name}.hex", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let digits: Vec<u32> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::chars)
        .map(|c| c.to_digit(16).unwrap())
        .collect();
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}

/// What one end sees of a capture that comes in pieces of `piece` bytes.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    opened: Vec<(u32, Headers)>,
    replied: Vec<u32>,
    data: BTreeMap<u32, String>,
    finished: Vec<u32>,
    resets: BTreeMap<u32, ResetStatus>,
    gone_away: Option<(u32, GoAwayStatus)>,
}

fn see(mut session: Session, capture: &[u8], piece: usize) -> Seen {
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let mut seen = Seen::default();
    for bytes in capture.chunks(piece) {
        input.extend_from_slice(bytes);
        while let Some(event) = session.next_event(&mut input, &mut output).expect("no violation") {
            match event {
                Event::Opened { stream, headers, fin } => {
                    assert!(!fin);
                    session.reply(stream, &mut output).unwrap();
                    seen.opened.push((stream.0, headers));
                }
                Event::Replied { stream, fin } => {
                    assert!(!fin);
                    seen.replied.push(stream.0);
                }
                Event::Data { stream, bytes, fin } => {
                    seen.data.entry(stream.0).or_default().push_str(str::from_utf8(&bytes).unwrap());
                    if fin {
                        seen.finished.push(stream.0);
                    }
                }
                Event::Reset { stream, status } => assert_eq!(seen.resets.insert(stream.0, status), None),
                Event::Pong(_) => panic!("nobody asked"),
                Event::GoAway { last_good, status } => seen.gone_away = Some((last_good.0, status)),
            }
        }
    }
    assert!(input.is_empty());
    seen
}

/// What a server sees of what a client sent, however it is cut.
fn from_client(name: &str) -> Seen {
    let bytes = capture(name);
    let whole = see(Session::new(Role::Server), &bytes, bytes.len());
    for piece in 1..40 {
        assert_eq!(see(Session::new(Role::Server), &bytes, piece), whole);
    }
    whole
}

/// What a client that has opened `streams` sees of what a server sent, however it is cut.
fn from_server(name: &str, streams: usize) -> Seen {
    let bytes = capture(name);
    let client = || {
        let mut session = Session::new(Role::Client);
        for _ in 0..streams {
            session.open(&[("streamType", "any")], &mut BytesMut::new()).unwrap();
        }
        session
    };
    let whole = see(client(), &bytes, bytes.len());
    for piece in 1..40 {
        assert_eq!(see(client(), &bytes, piece), whole);
    }
    whole
}

fn types(seen: &Seen) -> Vec<(u32, StreamType)> {
    let name = |headers: &Headers| StreamType::from_name(headers.get("streamtype").unwrap()).unwrap();
    seen.opened.iter().map(|(stream, headers)| (*stream, name(headers))).collect()
}

#[test]
fn an_exec_of_kubernetes_client_is_understood() {
    use StreamType::{Error, Stderr, Stdin, Stdout};
    let seen = from_client("exec.client");
    assert_eq!(types(&seen), [(1, Error), (3, Stdin), (5, Stdout), (7, Stderr)]);
    assert_eq!(seen.data, [(3, "hello from stdin".to_owned())].into());
    assert_eq!(seen.finished, [3]);
}

#[test]
fn a_terminals_sizes_are_understood() {
    use StreamType::{Error, Resize, Stdin, Stdout};
    let seen = from_client("exec_terminal.client");
    assert_eq!(types(&seen), [(1, Error), (3, Stdin), (5, Stdout), (7, Resize)]);
    assert_eq!(seen.data[&3], "typed");
    let mut sizes = SizeDecoder::new();
    let sizes: Vec<_> = seen.data[&7].lines().map(|line| sizes.feed(line.as_bytes()).unwrap()).collect();
    let size = |columns, rows| Some(TerminalSize { columns, rows });
    assert_eq!(sizes, [size(80, 24), size(132, 43)]);
}

#[test]
fn an_exec_of_kubernetes_server_is_understood() {
    let seen = from_server("exec.server", 4);
    assert_eq!(seen.replied, [1, 3, 5, 7]);
    assert_eq!((&*seen.data[&5], &*seen.data[&7]), ("hello from stdin", "to stderr\n"));
    assert_eq!(CommandEnd::decode(seen.data[&1].as_bytes(), true), CommandEnd::Exited(42));
    // It ends no half: it resets all streams, and goes.
    assert!(seen.finished.is_empty());
    assert_eq!(seen.resets, [1, 3, 5, 7].map(|stream| (stream, ResetStatus::Cancel)).into());
    assert_eq!(seen.gone_away, Some((7, GoAwayStatus::Ok)));
}

#[test]
fn a_terminal_of_kubernetes_server_is_understood() {
    let seen = from_server("exec_terminal.server", 4);
    assert_eq!(seen.data[&5], "size 80x24\r\nsize 132x43\r\ntyped");
    assert_eq!(CommandEnd::decode(seen.data[&1].as_bytes(), true), CommandEnd::Success);
}

#[test]
fn port_forwards_of_kubernetes_client_are_paired() {
    let seen = from_client("port_forward.client");
    let (mut pairing, now) = (Pairing::new(), Instant::now());
    let opened: Vec<_> =
        seen.opened.iter().map(|(stream, headers)| pairing.opened(StreamId(*stream), headers, now)).collect();
    let pair = |error, data, port| Opened::Pair(Pair { data: StreamId(data), error: StreamId(error), port });
    let waiting = || Opened::Waiting;
    assert_eq!(opened, [waiting(), pair(1, 3, 80), waiting(), pair(5, 7, 80), waiting(), pair(9, 11, 81)]);
    assert_eq!((&*seen.data[&3], &*seen.data[&7]), ("first connection", "second connection"));
    assert!([1, 5, 9, 3, 7].iter().all(|stream| seen.finished.contains(stream)));
}

#[test]
fn port_forwards_of_kubernetes_server_are_understood() {
    let seen = from_server("port_forward.server", 6);
    assert_eq!(seen.replied, [1, 3, 5, 7, 9, 11]);
    assert_eq!((&*seen.data[&3], &*seen.data[&7]), ("first connection", "second connection"));
    assert!(seen.data[&9].ends_with("connection refused"), "{:?}", seen.data[&9]);
}

/// Kubernetes' client and server (client-go 0.36, cri-streaming 0.36, moby/spdystream 0.5) were seen to take exactly
/// these bytes: header blocks are stored, not compressed, and name no dictionary.
#[test]
fn what_is_sent_is_what_kubernetes_was_seen_to_accept() {
    let mut output = BytesMut::new();
    let mut client = Session::new(Role::Client);
    client.open(&[("streamType", "error")], &mut output).unwrap();
    client.open(&[("streamType", "stdin")], &mut output).unwrap();
    let syn_stream = |number: u8, start: &[u8], name: &[u8]| {
        let head = [0x80, 3, 0, 1, 0, 0, 0, (47 + start.len()) as u8, 0, 0, 0, number, 0, 0, 0, 0, 0, 0];
        let stored = [0, 27, 0, !27, 0xff, 0, 0, 0, 1, 0, 0, 0, 10];
        [&head[..], start, &stored, b"streamtype", &[0, 0, 0, 5], name, &[0, 0, 0, 0xff, 0xff]].concat()
    };
    assert_eq!(output, [syn_stream(1, &[0x78, 0x01], b"error"), syn_stream(3, &[], b"stdin")].concat());

    let mut server = Session::new(Role::Server);
    let mut answer = BytesMut::new();
    while server.next_event(&mut output, &mut answer).unwrap().is_some() {}
    server.reply(StreamId(1), &mut answer).unwrap();
    server.reply(StreamId(3), &mut answer).unwrap();
    let stored = [0, 4, 0, !4, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let first = [&[0x80, 3, 0, 2, 0, 0, 0, 20, 0, 0, 0, 1, 0x78, 0x01], &stored[..]].concat();
    let second = [&[0x80, 3, 0, 2, 0, 0, 0, 18, 0, 0, 0, 3], &stored[..]].concat();
    assert_eq!(answer, [first, second].concat());
}
