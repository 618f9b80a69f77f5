//! What is asked before a connection is upgraded.

use std::time::Duration;

use knarr_streaming::CommandEnd;
use knarr_streaming::client::{self, Transport};
use knarr_streaming::server::{Offer, PortForward};

use crate::raw::{ask, place, request, spdy_request, upgrade};
use crate::support::{ALL, TestServer, local, settings, soon, target};

const UPGRADE: (&str, &str) = ("Connection", "Upgrade");
const SPDY: (&str, &str) = ("Upgrade", "SPDY/3.1");
const V4: (&str, &str) = ("X-Stream-Protocol-Version", "v4.channel.k8s.io");

fn get(text: String) -> String {
    text.replacen("POST", "GET", 1)
}

#[tokio::test]
async fn a_bad_request_is_told_what_is_wrong_with_it() {
    let server = TestServer::start(settings()).await;
    let websocket = [UPGRADE, ("Upgrade", "websocket"), ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==")];
    let with = |more: &[(&'static str, &'static str)]| [&websocket[..], more].concat();
    let version = ("Sec-WebSocket-Version", "13");
    let unknown = ("Sec-WebSocket-Protocol", "v9.channel.k8s.io, nonsense");
    let long = "x".repeat(5000);
    let cases: Vec<(&str, String, u16, &str)> = vec![
        ("no version", request("/T", &[UPGRADE, SPDY]), 400, "X-Stream-Protocol-Version is missing"),
        ("empty version", request("/T", &[UPGRADE, SPDY, (V4.0, " , ,")]), 400, "X-Stream-Protocol-Version is missing"),
        ("unknown version", request("/T", &[UPGRADE, SPDY, (V4.0, "v9, v8")]), 403, "\"v9, v8\""),
        ("endless version", request("/T", &[UPGRADE, SPDY, (V4.0, &long)]), 403, "x…\""),
        ("no upgrade", request("/T", &[V4]), 400, "Upgrade: SPDY/3.1 or websocket are missing"),
        ("no connection", request("/T", &[SPDY, V4]), 400, "are missing"),
        ("other upgrade", request("/T", &[UPGRADE, ("Upgrade", "h2c"), V4]), 400, "are missing"),
        ("method", request("/T", &[UPGRADE, SPDY, V4]).replacen("POST", "PUT", 1), 405, "PUT is none of GET and POST"),
        ("no path", request("/", &[UPGRADE, SPDY, V4]), 404, "/exec/<token>"),
        ("other path", request("/cri/T", &[UPGRADE, SPDY, V4]), 404, "/exec/<token>"),
        ("unknown token", request("/exec/AAAAAAAAAAAAAAAAAAAAAA", &[UPGRADE, SPDY, V4]), 404, "token is not known"),
        ("no token", request("/exec/", &[UPGRADE, SPDY, V4]), 404, "token is not known"),
        ("wrong kind", request("/portforward/T", &[UPGRADE, SPDY, V4]), 404, "not for portforward"),
        ("old HTTP", spdy_request("/T", V4.1).replacen("HTTP/1.1", "HTTP/1.0", 1), 400, "HTTP/1.1"),
        ("no WebSocket version", get(request("/T", &websocket)), 400, "Sec-WebSocket-Version is not 13"),
        ("old WebSocket", get(request("/T", &with(&[("Sec-WebSocket-Version", "8")]))), 400, "is not 13"),
        ("no key", get(request("/T", &[UPGRADE, websocket[1], version])), 400, "Sec-WebSocket-Key is missing"),
        ("unknown subprotocol", get(request("/T", &with(&[version, unknown]))), 403, "v9.channel.k8s.io, nonsense"),
        ("POST for a WebSocket", request("/T", &with(&[version])), 405, "begins with GET"),
        ("no HTTP", "hello\r\n\r\n".to_owned(), 400, ""),
        ("HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(), 0, ""),
    ];
    for (what, request, status, text) in cases {
        let url = server.exec(ALL, |_| async { panic!("a bad request reached the command") });
        let (address, path) = place(&url);
        // A table is short with /T for the path that would be right.
        let token = path.rsplit('/').next().expect("a token").to_owned();
        let request = request.replacen("/portforward/T ", &format!("/portforward/{token} "), 1);
        let request = request.replacen(" /T ", &format!(" {path} "), 1);
        let answer = ask(address, request.as_bytes()).await;
        if status == 0 {
            assert!(!answer.contains(" 101 "), "{what}: {answer}");
            continue;
        }
        let line = answer.strip_prefix("HTTP/1.1").or(answer.strip_prefix("HTTP/1.0")).unwrap_or_default();
        assert!(line.starts_with(&format!(" {status} ")), "{what}: {answer}");
        assert!(answer.contains(text), "{what}: {answer}");
        if status == 403 && !what.contains("subprotocol") {
            let accepted: Vec<_> =
                answer.lines().filter_map(|line| line.strip_prefix("x-accepted-stream-protocol-versions: ")).collect();
            let known = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
            assert_eq!(accepted, known, "{what}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_token_is_used_up_by_the_request_that_brings_it() {
    let server = TestServer::start(settings()).await;
    for (what, bad, is_used_up) in [
        ("no version", request("/T", &[UPGRADE, SPDY]), true),
        ("unknown version", request("/T", &[UPGRADE, SPDY, (V4.0, "v9")]), true),
        ("wrong method", spdy_request("/T", V4.1).replacen("POST", "DELETE", 1), false),
    ] {
        let url = server.exec(ALL, |_| async { CommandEnd::Success });
        let (address, path) = place(&url);
        let answer = ask(address, bad.replacen("/T", &path, 1).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
        let second = soon(client::command(&target(url, Transport::Spdy), ALL)).await;
        match second {
            Err(error) => {
                assert!(is_used_up && error.0.contains("404 Not Found: the token is not known"), "{what}: {error}");
            }
            Ok(client) => {
                assert!(!is_used_up, "{what}");
                assert_eq!(soon(client.end.wait()).await.unwrap(), CommandEnd::Success);
            }
        }
    }
    // Asked for in another way than it was given.
    let url = server.exec(ALL, |_| async { CommandEnd::Success });
    for kind in ["attach", "exec"] {
        let url = url.replace("/exec/", &format!("/{kind}/"));
        let error = soon(client::command(&target(url, Transport::Spdy), ALL)).await.unwrap_err();
        assert!(error.0.contains("404"), "{error}");
    }
    server.stop().await;
}

#[tokio::test]
async fn tokens_run_out_and_grow_old() {
    let settings =
        knarr_streaming::server::Settings { tokens_max: 3, token_lifetime: Duration::from_millis(300), ..settings() };
    let server = TestServer::start(settings).await;
    let offer = || Offer::PortForward(PortForward { ports: vec![80], connect: local() });
    let urls: Vec<_> = (0..3).map(|_| server.server.offer(offer()).unwrap()).collect();
    assert_eq!(server.server.offer(offer()).unwrap_err().0, 3);
    tokio::time::sleep(Duration::from_millis(400)).await;
    let error = soon(client::port_forward(&target(urls[0].clone(), Transport::Spdy))).await.unwrap_err();
    assert!(error.0.contains("404 Not Found"), "{error}");
    for _ in 0..3 {
        server.server.offer(offer()).expect("there is room again");
    }
    server.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_so_and_keep_their_token() {
    let settings = knarr_streaming::server::Settings { sessions_max: 2, ..settings() };
    let server = TestServer::start(settings).await;
    let waits = |session: knarr_streaming::server::CommandSession| async move {
        session.client.gone().await;
        CommandEnd::Success
    };
    let first = server.run(Transport::Spdy, ALL, waits).await;
    let second = server.run(Transport::WebSocket, ALL, waits).await;
    let url = server.exec(ALL, |_| async { CommandEnd::Exited(4) });
    for _ in 0..40 {
        let error = soon(client::command(&target(url.clone(), Transport::Spdy), ALL)).await.unwrap_err();
        assert!(error.0.contains("503 Service Unavailable: as many sessions"), "{error}");
    }
    drop(first);
    let client = soon(async {
        loop {
            match client::command(&target(url.clone(), Transport::Spdy), ALL).await {
                Ok(client) => break client,
                Err(error) => assert!(error.0.contains("503"), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(soon(client.end.wait()).await.unwrap(), CommandEnd::Exited(4));
    drop(second);
    server.stop().await;
}

#[tokio::test]
async fn a_base_url_is_told_to_clients_and_its_path_may_come_back() {
    let mut settings = settings();
    settings.base_url = Some("https://node.example:8443/cri/stream/".to_owned());
    let server = TestServer::start(settings).await;
    for prefix in ["", "/cri/stream"] {
        let url = server.exec(ALL, |_| async { CommandEnd::Success });
        let path = url.strip_prefix("https://node.example:8443/cri/stream/exec/").expect("the base URL");
        let url = format!("http://{}{prefix}/exec/{path}", server.server.address());
        let client = soon(client::command(&target(url, Transport::Spdy), ALL)).await.expect("a session");
        assert_eq!(soon(client.end.wait()).await.unwrap(), CommandEnd::Success);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_request_with_too_much_in_it_or_too_slow_is_ended() {
    let mut settings = settings();
    settings.creation_timeout = Duration::from_millis(700);
    let server = TestServer::start(settings).await;
    let url = server.exec(ALL, |_| async { CommandEnd::Success });
    let (address, path) = place(&url);
    let many: Vec<_> = (0..200).map(|at| (format!("X-{at}"), "y".to_owned())).collect();
    let many: Vec<_> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let answer = ask(address, request(&path, &many).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let answer = ask(address, request(&path, &[("X-Large", &"y".repeat(1 << 20))]).as_bytes()).await;
    assert!(!answer.contains(" 101 "), "{answer}");
    // One that says nothing, and one that says a byte now and then.
    let start = std::time::Instant::now();
    assert_eq!(ask(address, b"").await, "");
    let slow = async {
        use tokio::io::AsyncWriteExt;
        let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        for byte in spdy_request(&path, V4.1).bytes() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            if tcp.write_all(&[byte]).await.is_err() {
                return;
            }
        }
        panic!("it was heard to its end");
    };
    soon(slow).await;
    assert!(start.elapsed() < Duration::from_secs(10));
    // The token is still there for the one to whom it belongs.
    let (_, head, _) = upgrade(&url, spdy_request(&path, V4.1).as_bytes()).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    server.stop().await;
}
