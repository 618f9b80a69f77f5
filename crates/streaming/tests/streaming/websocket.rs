//! WebSocket clients that are not ours: tungstenite's own handshake and frames.

use std::net::TcpStream;
use std::time::Duration;

use knarr_streaming::server::CommandSession;
use knarr_streaming::{CommandEnd, TerminalSize, Wanted};
use tungstenite::client::IntoClientRequest;
use tungstenite::protocol::frame::coding::CloseCode;
use tungstenite::{Message, WebSocket};

use crate::support::{ALL, LONG, TTY, TestServer, all, local, settings, soon};

/// Runs something that blocks.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    soon(tokio::task::spawn_blocking(work)).await.expect("it does not panic")
}

/// Connects; gives what the server chose.
fn connect(url: &str, offered: &str) -> (WebSocket<TcpStream>, Option<String>) {
    let mut request = url.replacen("http://", "ws://", 1).into_client_request().expect("a URL");
    if !offered.is_empty() {
        request.headers_mut().insert("Sec-WebSocket-Protocol", offered.parse().expect("a header"));
    }
    let place = request.uri().authority().expect("an address").as_str().to_owned();
    let tcp = TcpStream::connect(place).expect("it listens");
    tcp.set_read_timeout(Some(LONG)).expect("a timeout");
    tcp.set_nodelay(true).expect("no delay");
    // tungstenite wants an answer to what it offers, and none where it offers nothing.
    let (socket, answer) = tungstenite::client(request, tcp).expect("a handshake");
    let chosen = answer.headers().get("Sec-WebSocket-Protocol").map(|name| name.to_str().expect("text").to_owned());
    (socket, chosen)
}

/// A message of a channel, however it is written.
fn message(text: bool, channel: u8, bytes: &[u8]) -> Message {
    use base64::Engine;
    if text {
        let encoded = base64::engine::general_purpose::STANDARD.encode(bytes);
        Message::text(format!("{channel}{encoded}"))
    } else {
        Message::binary([&[channel], bytes].concat())
    }
}

/// Sizes until one ends it; what it was; how it went.
async fn command(session: CommandSession) -> CommandEnd {
    let mut stdout = session.stdout.expect("stdout");
    if let Some(mut resizes) = session.resizes {
        let size = resizes.next().await;
        stdout.send(format!("{size:?}").into()).await.expect("a reader");
        return CommandEnd::Success;
    }
    let mut stdin = session.stdin.expect("stdin");
    let mut heard = Vec::new();
    while !heard.ends_with(b"\n") {
        heard.extend_from_slice(&stdin.next().await.expect("a line"));
    }
    stdout.send(heard.into()).await.expect("a reader");
    session.stderr.expect("stderr").send("word".into()).await.expect("a reader");
    CommandEnd::Exited(3)
}

/// Every data message up to the close, and its code.
fn rest(socket: &mut WebSocket<TcpStream>) -> (Vec<Message>, Option<CloseCode>) {
    let mut messages = Vec::new();
    loop {
        match socket.read() {
            Ok(Message::Close(frame)) => {
                let code = frame.map(|frame| frame.code);
                // Answers the close; the server closes the connection then.
                while socket.read().is_ok() {}
                return (messages, code);
            }
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            Ok(message) => messages.push(message),
            Err(error) => panic!("{error} after {messages:?}"),
        }
    }
}

#[tokio::test]
async fn every_subprotocol_carries_a_command() {
    let server = TestServer::start(settings()).await;
    for (offered, chosen, text, status) in [
        ("", None, false, false),
        ("channel.k8s.io", Some("channel.k8s.io"), false, false),
        ("base64.channel.k8s.io", Some("base64.channel.k8s.io"), true, false),
        ("v4.channel.k8s.io", Some("v4.channel.k8s.io"), false, true),
        ("v4.base64.channel.k8s.io", Some("v4.base64.channel.k8s.io"), true, true),
        ("v5.channel.k8s.io", Some("v5.channel.k8s.io"), false, true),
        ("v9.channel.k8s.io, v5.channel.k8s.io, v4.channel.k8s.io", Some("v5.channel.k8s.io"), false, true),
    ] {
        for wanted in [ALL, TTY] {
            let url = server.exec(wanted, command);
            blocking(move || {
                let (mut socket, answer) = connect(&url, offered);
                assert_eq!(answer.as_deref(), chosen);
                assert_eq!(socket.read().expect("a greeting"), message(text, 1, b""), "{offered}");
                socket.send(Message::Ping("are you there?".into())).expect("a ping");
                assert_eq!(socket.read().expect("a pong"), Message::Pong("are you there?".into()));
                // To channels that are not there, and that are not for the client to write to.
                for channel in [1, 2, 3, 9] {
                    socket.send(message(text, channel, b"nonsense")).expect("it is taken");
                }
                let mut expected = Vec::new();
                if wanted == TTY {
                    socket.send(message(text, 4, br#"{"Width":80,"Height":25}"#)).expect("a size");
                    let size = TerminalSize { columns: 80, rows: 25 };
                    expected.push(message(text, 1, format!("{:?}", Some(size)).as_bytes()));
                    if status {
                        expected.push(message(text, 3, br#"{"status":"Success"}"#));
                    }
                } else {
                    for piece in [&b"a l"[..], b"", b"ine\n"] {
                        socket.send(message(text, 0, piece)).expect("stdin");
                    }
                    expected.push(message(text, 1, b"a line\n"));
                    expected.push(message(text, 2, b"word"));
                }
                let (mut came, code) = rest(&mut socket);
                if wanted == ALL {
                    let end = came.pop().expect("an end");
                    let failure = "command terminated with non-zero exit code: exit status 3";
                    if status {
                        let decoded = CommandEnd::decode(&payload(text, 3, &end), true);
                        assert_eq!(decoded, CommandEnd::Exited(3), "{offered}");
                    } else {
                        assert_eq!(end, message(text, 3, failure.as_bytes()), "{offered}");
                    }
                }
                assert_eq!(came, expected, "{offered}");
                assert_eq!(code, Some(CloseCode::Normal), "{offered}");
            })
            .await;
        }
    }
    server.stop().await;
}

fn payload(text: bool, channel: u8, message: &Message) -> Vec<u8> {
    use base64::Engine;
    let bytes = message.clone().into_data();
    let first = if text { b'0' + channel } else { channel };
    assert_eq!(bytes[0], first, "{message:?}");
    match text {
        true => base64::engine::general_purpose::STANDARD.decode(&bytes[1..]).expect("base64"),
        false => bytes[1..].to_vec(),
    }
}

#[tokio::test]
async fn the_greeting_is_on_the_lowest_output() {
    let server = TestServer::start(settings()).await;
    let stdin = Wanted { stdin: true, ..Wanted::default() };
    for (wanted, channel) in [(stdin, 3), (Wanted { stderr: true, ..stdin }, 2), (Wanted { stdout: true, ..ALL }, 1)] {
        let url = server.exec(wanted, |_| async { CommandEnd::Success });
        blocking(move || {
            let (mut socket, _) = connect(&url, "v4.channel.k8s.io");
            assert_eq!(socket.read().expect("a greeting"), message(false, channel, b""));
            rest(&mut socket);
        })
        .await;
    }
    server.stop().await;
}

#[tokio::test]
async fn v5_alone_ends_stdin() {
    let server = TestServer::start(settings()).await;
    let url = server.exec(ALL, |session| async move {
        let heard = all(&mut session.stdin.expect("stdin")).await;
        session.stdout.expect("stdout").send(heard.into()).await.expect("a reader");
        CommandEnd::Success
    });
    blocking(move || {
        let (mut socket, _) = connect(&url, "v5.channel.k8s.io");
        socket.send(Message::binary(b"\x00one".to_vec())).expect("stdin");
        // In two frames, with a ping between them.
        use tungstenite::protocol::frame::Frame;
        use tungstenite::protocol::frame::coding::{Data, OpCode};
        let first = Frame::message(b"\x00tw".to_vec(), OpCode::Data(Data::Binary), false);
        socket.send(Message::Frame(first)).expect("half a message");
        socket.send(Message::Ping("".into())).expect("a ping");
        let second = Frame::message(b"o".to_vec(), OpCode::Data(Data::Continue), true);
        socket.send(Message::Frame(second)).expect("the other half");
        socket.send(Message::binary(vec![255, 0])).expect("the end of stdin");
        let (came, _) = rest(&mut socket);
        let status = message(false, 3, br#"{"status":"Success"}"#);
        assert_eq!(came, [message(false, 1, b""), message(false, 1, b"onetwo"), status]);
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn a_message_that_cannot_be_ends_the_session_with_its_reason() {
    let server = TestServer::start(settings()).await;
    let large = Message::binary(vec![0; (1 << 20) + 1]);
    let fits = Message::binary(vec![0; 1 << 20]);
    for (offered, what, code) in [
        ("v4.channel.k8s.io", large, CloseCode::Size),
        ("v4.base64.channel.k8s.io", Message::text("0###"), CloseCode::Invalid),
        ("v5.channel.k8s.io", Message::binary(vec![255, 0, 1]), CloseCode::Invalid),
        ("v5.channel.k8s.io", Message::binary(vec![255]), CloseCode::Invalid),
    ] {
        let (told, is_told) = tokio::sync::oneshot::channel();
        let url = server.exec(ALL, |session| async move {
            let heard = all(&mut session.stdin.expect("stdin")).await.len();
            session.client.gone().await;
            let _ = told.send(heard);
            CommandEnd::Success
        });
        let fits = fits.clone();
        blocking(move || {
            let (mut socket, _) = connect(&url, offered);
            assert!(socket.read().is_ok());
            if offered.starts_with("v4.ch") {
                socket.send(fits).expect("the largest that may be");
            }
            let _ = socket.send(what);
            match socket.read() {
                Ok(Message::Close(Some(frame))) => assert_eq!(frame.code, code, "{offered}"),
                other => panic!("{offered}: {other:?}"),
            }
        })
        .await;
        let heard = if offered == "v4.channel.k8s.io" { (1 << 20) - 1 } else { 0 };
        assert_eq!(soon(is_told).await.expect("the command is told"), heard);
    }
    server.stop().await;
}

#[tokio::test]
async fn ports_go_over_channels() {
    let server = TestServer::start(settings()).await;
    let port = crate::inside::echo().await;
    let ends = crate::inside::inside(|mut tcp| async move {
        let _ = tokio::io::AsyncWriteExt::write_all(&mut tcp, b"bye").await;
    })
    .await;
    let closed = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
    for (offered, text) in [("", false), ("v4.channel.k8s.io", false), ("v4.base64.channel.k8s.io", true)] {
        for in_query in [true, false] {
            let ports = [port, closed, ends];
            let url = match in_query {
                true => {
                    let url = server.forward(&[1], local());
                    format!("{url}?x=y&port={port}&port={closed}%2C{ends}")
                }
                false => server.forward(&ports, local()),
            };
            blocking(move || {
                let (mut socket, _) = connect(&url, offered);
                let mut came = vec![Vec::new(); 6];
                let mut read = |socket: &mut WebSocket<TcpStream>, until: &dyn Fn(&[Vec<u8>]) -> bool| {
                    while !until(&came) {
                        let message = socket.read().expect("a message");
                        let first = message.clone().into_data()[0];
                        let channel = if text { first - b'0' } else { first };
                        came[usize::from(channel)].extend(payload(text, channel, &message));
                    }
                    came.clone()
                };
                socket.send(message(text, 0, b"hello")).expect("it is taken");
                let came = read(&mut socket, &|came| {
                    came[0].len() == 7 && came[3].len() > 2 && came[4].len() == 5 && came[5].len() == 2
                });
                for (at, port) in ports.iter().enumerate() {
                    for channel in [2 * at, 2 * at + 1] {
                        assert_eq!(came[channel][..2], port.to_le_bytes(), "{offered} {channel}");
                    }
                }
                assert_eq!((&came[0][2..], &came[4][2..]), (&b"hello"[..], &b"bye"[..]));
                let error = String::from_utf8_lossy(&came[3][2..]).into_owned();
                assert!(error.starts_with(&format!("forward port {closed}: ")), "{error}");
                socket.close(None).expect("a close");
                while socket.read().is_ok() {}
            })
            .await;
        }
    }
    // When nothing is left to forward, the server closes.
    let url = server.forward(&[ends], local());
    blocking(move || {
        let (mut socket, _) = connect(&url, "v4.channel.k8s.io");
        let (came, code) = rest(&mut socket);
        assert_eq!((came.len(), code), (3, Some(CloseCode::Normal)), "{came:?}");
    })
    .await;
    for query in ["port=0", "port=70000", "port=", "port=80,x"] {
        let (address, path) = crate::raw::place(&server.forward(&[80], local()));
        let headers = [
            ("Connection", "keep-alive, Upgrade"),
            ("Upgrade", "WebSocket"),
            ("Sec-WebSocket-Version", "13"),
            ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        let request = crate::raw::request(&format!("{path}?{query}"), &headers).replacen("POST", "GET", 1);
        let answer = crate::raw::ask(address, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("query parameter port"), "{query}: {answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_closes_is_answered() {
    let server = TestServer::start(settings()).await;
    let (told, is_told) = tokio::sync::oneshot::channel();
    let url = server.exec(ALL, |session| async move {
        session.client.gone().await;
        let _ = told.send(());
        CommandEnd::Success
    });
    blocking(move || {
        let (mut socket, _) = connect(&url, "v5.channel.k8s.io");
        assert!(socket.read().is_ok());
        socket.close(None).expect("a close");
        assert!(matches!(socket.read(), Ok(Message::Close(_))));
        assert!(matches!(socket.read(), Err(tungstenite::Error::ConnectionClosed)));
    })
    .await;
    tokio::time::timeout(Duration::from_secs(5), is_told).await.expect("soon").expect("the command is told");
    server.stop().await;
}
