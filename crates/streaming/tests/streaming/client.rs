//! Our client against servers that are not ours, and do not do what they should.

use std::time::Duration;

use knarr_streaming::CommandEnd;
use knarr_streaming::client::{self, Target, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::command::TRANSPORTS;
use crate::support::{ALL, TestServer, soon, target};

/// A server that answers whatever it is asked with these bytes, and closes or waits.
async fn says(answer: Vec<u8>, closes: bool) -> String {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("loopback can be listened on");
    let url = format!("http://{}/exec/token", listener.local_addr().expect("an address"));
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = vec![0; 4096];
                let _ = tcp.read(&mut request).await;
                let _ = tcp.write_all(&answer).await;
                if !closes {
                    while tcp.read(&mut request).await.is_ok_and(|count| count > 0) {}
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn what_the_server_says_is_told() {
    let long =
        format!("HTTP/1.1 500 Internal Server Error\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(1_000_000));
    let upgraded = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
    let cases = [
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\n no such".to_owned(), "answered 404 Not Found: no such"),
        ("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n".to_owned(), "the server answered 403 Forbidden"),
        ("HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n".to_owned(), ": body"),
        (long, "500 Internal Server Error and more than can be repeated"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi".to_owned(), "the server answered 200 OK: hi"),
        ("SSH-2.0-OpenSSH_9.2p1\r\n".to_owned(), "HTTP: "),
        (String::new(), "HTTP: "),
        (format!("HTTP/1.1 200 OK\r\n{}\r\n", "X-Long: y\r\n".repeat(10_000)), "HTTP: "),
        (format!("{upgraded}\r\n"), "the server"),
        (format!("{upgraded}X-Stream-Protocol-Version: v9.channel.k8s.io\r\n\r\n"), "the server"),
        (
            format!("{upgraded}Sec-WebSocket-Accept: bm8=\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"),
            "the server",
        ),
    ];
    for (answer, text) in cases {
        let url = says(answer.into_bytes(), true).await;
        for transport in TRANSPORTS {
            let error = soon(client::command(&target(url.clone(), transport), ALL)).await.unwrap_err();
            assert!(error.0.contains(text), "{transport:?}, {text}: {error}");
            assert!(!error.0.contains("token"), "the path is a secret: {error}");
            let error = soon(client::port_forward(&target(url.clone(), transport))).await.unwrap_err();
            assert!(error.0.contains(text), "{transport:?}, {text}: {error}");
        }
    }
    for (url, text) in [
        ("", "URL"),
        ("ftp://127.0.0.1/exec/x", "\"ftp\" is none of http and https"),
        ("/exec/x", "none of http and https"),
        ("http://does-not-exist.invalid/exec/x", "connect to does-not-exist.invalid"),
        ("http://[::1]:1/exec/x", "connect to [::1]:1"),
    ] {
        let error = soon(client::command(&target(url.to_owned(), Transport::Spdy), ALL)).await.unwrap_err();
        assert!(error.0.contains(text), "{url}: {error}");
    }
}

/// With time that passes when nobody has anything to do.
#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_is_not_waited_for() {
    let silent = says(Vec::new(), false).await;
    for transport in TRANSPORTS {
        let start = tokio::time::Instant::now();
        let error = client::command(&target(silent.clone(), transport), ALL).await.unwrap_err();
        assert!(error.0.contains("no answer within 30s"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(31));
    }
    let tls =
        rustls::ClientConfig::builder_with_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
    let target_tls = Target {
        url: silent.replace("http:", "https:"),
        transport: Transport::Spdy,
        tls: Some(std::sync::Arc::new(tls)),
    };
    let error = client::command(&target_tls, ALL).await.unwrap_err();
    assert!(error.0.contains("TLS handshake") && error.0.contains("not done within 30s"), "{error}");
    // One that upgrades, and then does not agree to a stream.
    let answer = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
                  X-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n";
    let url = says(answer.as_bytes().to_vec(), false).await;
    let error = client::command(&target(url, Transport::Spdy), ALL).await.unwrap_err();
    assert!(error.0.contains("the server did not agree within 30s"), "{error}");
    let url = says(answer.as_bytes().to_vec(), true).await;
    let error = client::command(&target(url, Transport::Spdy), ALL).await.unwrap_err();
    assert!(error.0.contains("open stream") && error.0.contains("closed the connection"), "{error}");
}

#[tokio::test]
async fn a_server_that_vanishes_is_no_success() {
    for transport in TRANSPORTS {
        let server = TestServer::start(crate::support::settings()).await;
        let mut client = server
            .run(transport, ALL, |session| async move {
                session.stdout.unwrap().send("half a".into()).await.unwrap();
                std::future::pending::<CommandEnd>().await
            })
            .await;
        assert_eq!(soon(client.stdout.as_mut().unwrap().next()).await.unwrap(), "half a");
        server.stop().await;
        let error = soon(client.end.wait()).await.unwrap_err();
        assert!(error.0.contains("the command's end was not told: "), "{transport:?}: {error}");
    }
}
