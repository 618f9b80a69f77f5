//! Exec and attach, our client against our server.

use std::time::Duration;

use bytes::Bytes;
use knarr_streaming::client::Transport;
use knarr_streaming::{CommandEnd, TerminalSize, Wanted};

use crate::support::{ALL, TTY, TestServer, all, pattern, send_odd, settings, soon};

pub const TRANSPORTS: [Transport; 2] = [Transport::Spdy, Transport::WebSocket];

#[tokio::test]
async fn every_stream_carries_what_it_is_for() {
    let server = TestServer::start(settings()).await;
    for transport in TRANSPORTS {
        let mut client = server
            .run(transport, ALL, |session| async move {
                let (mut stdin, mut stdout, mut stderr) =
                    (session.stdin.unwrap(), session.stdout.unwrap(), session.stderr.unwrap());
                assert!(session.resizes.is_none());
                let came = all(&mut stdin).await;
                stdout.send(came.clone().into()).await.unwrap();
                stderr.send(Bytes::from(came.iter().rev().copied().collect::<Vec<_>>())).await.unwrap();
                CommandEnd::Success
            })
            .await;
        let (mut stdin, mut stdout, mut stderr) =
            (client.stdin.take().unwrap(), client.stdout.take().unwrap(), client.stderr.take().unwrap());
        stdin.send("hello".into()).await.unwrap();
        stdin.send(" world".into()).await.unwrap();
        stdin.finish().await.unwrap();
        let (out, err, end) = soon(async { tokio::join!(all(&mut stdout), all(&mut stderr), client.end.wait()) }).await;
        assert_eq!((out.as_slice(), err.as_slice()), (&b"hello world"[..], &b"dlrow olleh"[..]), "{transport:?}");
        assert_eq!(end.unwrap(), CommandEnd::Success);
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_transfers_arrive_whole_in_all_directions_at_once() {
    let server = TestServer::start(settings()).await;
    for transport in TRANSPORTS {
        const LENGTH: usize = 24 << 20;
        let mut client = server
            .run(transport, ALL, |session| async move {
                let (mut stdin, mut stdout, mut stderr) =
                    (session.stdin.unwrap(), session.stdout.unwrap(), session.stderr.unwrap());
                let (came, out, err) = tokio::join!(
                    all(&mut stdin),
                    send_odd(&mut stdout, pattern(LENGTH, 1)),
                    send_odd(&mut stderr, pattern(LENGTH, 2))
                );
                out.unwrap();
                err.unwrap();
                if came == pattern(LENGTH, 3) { CommandEnd::Exited(7) } else { CommandEnd::Failed("stdin".into()) }
            })
            .await;
        let (mut stdin, mut stdout, mut stderr) =
            (client.stdin.take().unwrap(), client.stdout.take().unwrap(), client.stderr.take().unwrap());
        let (out, err, ()) = soon(async {
            tokio::join!(all(&mut stdout), all(&mut stderr), async {
                send_odd(&mut stdin, pattern(LENGTH, 3)).await.unwrap();
                stdin.finish().await.unwrap();
            })
        })
        .await;
        assert!(out == pattern(LENGTH, 1), "{transport:?}: stdout has {} bytes", out.len());
        assert!(err == pattern(LENGTH, 2), "{transport:?}: stderr has {} bytes", err.len());
        assert_eq!(soon(client.end.wait()).await.unwrap(), CommandEnd::Exited(7));
    }
    server.stop().await;
}

#[tokio::test]
async fn every_end_of_a_command_is_told() {
    let server = TestServer::start(settings()).await;
    let ends = [
        CommandEnd::Success,
        CommandEnd::Exited(1),
        CommandEnd::Exited(137),
        CommandEnd::Exited(255),
        CommandEnd::Failed("no such \"file\"\n".into()),
    ];
    for transport in TRANSPORTS {
        for end in &ends {
            for wanted in [ALL, TTY, Wanted { stdin: true, ..Wanted::default() }] {
                let told = end.clone();
                let client = server.run(transport, wanted, |_| async move { told }).await;
                let expected = match end {
                    CommandEnd::Failed(text) => CommandEnd::Failed(format!("Internal error occurred: {text}")),
                    end => end.clone(),
                };
                assert_eq!(soon(client.end.wait()).await.unwrap(), expected, "{transport:?} {wanted:?}");
            }
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn the_latest_size_of_the_terminal_comes_even_while_stdin_stands_still() {
    let server = TestServer::start(settings()).await;
    for transport in TRANSPORTS {
        let mut client = server
            .run(transport, TTY, |session| async move {
                let (mut stdin, mut resizes) = (session.stdin.unwrap(), session.resizes.unwrap());
                assert!(session.stderr.is_none());
                // Nothing of stdin is taken until the last size is there.
                loop {
                    match resizes.next().await {
                        Some(TerminalSize { columns: 300, rows: 99 }) => break,
                        Some(_) => {}
                        None => return CommandEnd::Failed("sizes ended".into()),
                    }
                }
                let came = all(&mut stdin).await.len();
                session.stdout.unwrap().send(came.to_string().into()).await.unwrap();
                CommandEnd::Success
            })
            .await;
        let (mut stdin, mut stdout, resizes) =
            (client.stdin.take().unwrap(), client.stdout.take().unwrap(), client.resizes.take().unwrap());
        // Below what stops the connection.
        stdin.send(pattern(200 << 10, 1)).await.unwrap();
        for columns in 1..=300 {
            resizes.send(TerminalSize { columns, rows: 99 });
        }
        stdin.finish().await.unwrap();
        assert_eq!(soon(all(&mut stdout)).await, (200 << 10).to_string().as_bytes());
        assert_eq!(soon(client.end.wait()).await.unwrap(), CommandEnd::Success);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_slow_reader_loses_nothing_and_holds_the_command_back() {
    let server = TestServer::start(settings()).await;
    for transport in TRANSPORTS {
        let (progress, mut sent) = tokio::sync::watch::channel(0_usize);
        let mut client = server
            .run(transport, Wanted { stdout: true, ..Wanted::default() }, |session| async move {
                let mut stdout = session.stdout.unwrap();
                for _ in 0..1024 {
                    stdout.send(pattern(64 << 10, 5)).await.unwrap();
                    progress.send_modify(|sent| *sent += 64 << 10);
                }
                CommandEnd::Success
            })
            .await;
        let mut stdout = client.stdout.take().unwrap();
        // It stops by itself while nobody reads: what is under way is bounded.
        let mut last = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let now = *sent.borrow_and_update();
            if now == last && now > 0 {
                break;
            }
            last = now;
        }
        assert!(last < 24 << 20, "{transport:?}: {last} bytes were taken though nobody reads");
        let out = soon(all(&mut stdout)).await;
        assert!(out.len() == 64 << 20 && out.chunks(64 << 10).all(|piece| piece == pattern(64 << 10, 5)));
        assert_eq!(soon(client.end.wait()).await.unwrap(), CommandEnd::Success);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_reader_that_comes_late_gets_what_the_server_left_behind() {
    let server = TestServer::start(settings()).await;
    for transport in TRANSPORTS {
        // More than a stream holds, and less than the kernel: the server has long closed its end.
        let mut client = server
            .run(transport, Wanted { stdout: true, ..Wanted::default() }, |session| async move {
                session.stdout.unwrap().send(pattern(512 << 10, 6)).await.unwrap();
                CommandEnd::Exited(8)
            })
            .await;
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let out = soon(all(client.stdout.as_mut().unwrap())).await;
        assert!(out == pattern(512 << 10, 6), "{transport:?}: {} bytes", out.len());
        assert_eq!(soon(client.end.wait()).await.unwrap(), CommandEnd::Exited(8));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_command_that_closes_its_stdin_does_not_stop_its_output() {
    let server = TestServer::start(settings()).await;
    for transport in TRANSPORTS {
        let mut client = server
            .run(transport, ALL, |mut session| async move {
                let mut stdin = session.stdin.take().unwrap();
                assert_eq!(stdin.next().await.unwrap()[..1], b"x"[..]);
                drop(stdin);
                let mut stdout = session.stdout.take().unwrap();
                send_odd(&mut stdout, pattern(1 << 20, 9)).await.unwrap();
                CommandEnd::Exited(3)
            })
            .await;
        let (mut stdin, mut stdout) = (client.stdin.take().unwrap(), client.stdout.take().unwrap());
        let feeding = tokio::spawn(async move {
            // Until the session is over.
            while stdin.send(Bytes::from_static(&[b'x'; 8192])).await.is_ok() {}
        });
        assert!(soon(all(&mut stdout)).await == pattern(1 << 20, 9));
        assert_eq!(soon(client.end.wait()).await.unwrap(), CommandEnd::Exited(3));
        drop(stdout);
        soon(feeding).await.unwrap();
    }
    server.stop().await;
}
