//! Every version of the protocol over SPDY, spoken by hand.

use std::time::Duration;

use bytes::BytesMut;
use knarr_streaming::server::CommandSession;
use knarr_streaming::{CommandEnd, TerminalSize, Wanted};
use knarr_wire::spdy::StreamId;

use crate::raw::{Came, Spdy};
use crate::support::{ALL, TTY, TestServer, all, settings, soon};

const VERSIONS: [&str; 4] = ["channel.k8s.io", "v2.channel.k8s.io", "v3.channel.k8s.io", "v4.channel.k8s.io"];

const ERROR: &[(&str, &str)] = &[("streamtype", "error")];
const STDIN: &[(&str, &str)] = &[("streamtype", "stdin")];
const STDOUT: &[(&str, &str)] = &[("streamtype", "stdout")];
const STDERR: &[(&str, &str)] = &[("streamtype", "stderr")];
const RESIZE: &[(&str, &str)] = &[("streamtype", "resize")];

/// Says on stdout what it hears, a word on stderr, and ends as told.
async fn echo(session: CommandSession, end: CommandEnd) -> CommandEnd {
    let heard = all(&mut session.stdin.unwrap()).await;
    session.stdout.unwrap().send(heard.into()).await.unwrap();
    if let Some(mut stderr) = session.stderr {
        stderr.send("word".into()).await.unwrap();
    }
    end
}

#[tokio::test]
async fn a_command_ends_as_each_version_says() {
    let server = TestServer::start(settings()).await;
    let failure = "command terminated with non-zero exit code: exit status 3";
    for version in VERSIONS {
        for end in [CommandEnd::Success, CommandEnd::Exited(3), CommandEnd::Failed("gone wrong".into())] {
            let told = end.clone();
            let url = server.exec(ALL, |session| echo(session, told));
            // stdout and stderr in another order than usual.
            let (mut spdy, ids) = Spdy::connect(&url, version, &[ERROR, STDERR, STDIN, STDOUT]).await;
            let [error, stderr, stdin, stdout] = ids[..] else { panic!("four streams") };
            spdy.until(|came| came.len() == 4 && came.values().all(|came| came.replied)).await;
            spdy.send(stdin, b"abc", false).await;
            spdy.send(stdin, b"def", true).await;
            let came = spdy.rest().await;
            assert_eq!(came[&stdout.0], Came { bytes: b"abcdef".to_vec(), fin: true, ..Came::default() }, "{version}");
            assert_eq!(came[&stderr.0], Came { bytes: b"word".to_vec(), fin: true, ..Came::default() }, "{version}");
            let error = came.get(&error.0).cloned().unwrap_or_default();
            let text = String::from_utf8(error.bytes).unwrap();
            match (version, &end) {
                // Given up before the command ran.
                ("channel.k8s.io", _) => assert_eq!(text, "", "{version}"),
                ("v4.channel.k8s.io", CommandEnd::Success) => assert_eq!(text, r#"{"status":"Success"}"#),
                ("v4.channel.k8s.io", CommandEnd::Exited(_)) => {
                    assert!(text.contains(r#""causes":[{"reason":"ExitCode","message":"3"}]"#), "{text}");
                    assert!(text.contains(r#""reason":"NonZeroExitCode""#) && text.contains(failure), "{text}");
                }
                ("v4.channel.k8s.io", _) => assert!(text.contains(r#""status":"Failure""#), "{text}"),
                (_, CommandEnd::Success) => assert_eq!(text, "", "{version}"),
                (_, CommandEnd::Exited(_)) => assert_eq!(text, failure, "{version}"),
                (_, CommandEnd::Failed(_)) => assert_eq!(text, "Internal error occurred: gone wrong", "{version}"),
            }
            assert!(error.fin || version == "channel.k8s.io", "{version}");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn a_terminal_has_sizes_from_v3_on() {
    let server = TestServer::start(settings()).await;
    for version in VERSIONS {
        let url = server.exec(TTY, |session| async move {
            let text = match session.resizes {
                Some(mut resizes) => {
                    let first = resizes.next().await;
                    format!("{first:?}, {:?}", resizes.next().await)
                }
                None => "none".to_owned(),
            };
            session.stdout.unwrap().send(text.into()).await.unwrap();
            CommandEnd::Success
        });
        let has_sizes = version >= "v3";
        let streams: &[&[_]] = if has_sizes { &[ERROR, STDIN, STDOUT, RESIZE] } else { &[ERROR, STDIN, STDOUT] };
        let (mut spdy, ids) = Spdy::connect(&url, version, streams).await;
        if has_sizes {
            // As Go writes it, cut in two; an empty size before it; and then the end.
            spdy.send(ids[3], b"{\"Width\":0,\"Height\":0}\n{\"Width\":12", false).await;
            spdy.send(ids[3], b"0,\"Height\":40}\n", false).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            spdy.send(ids[3], b"", true).await;
        }
        let came = spdy.rest().await;
        let size = TerminalSize { columns: 120, rows: 40 };
        let expected = if has_sizes { format!("{:?}, None", Some(size)) } else { "none".to_owned() };
        assert_eq!(String::from_utf8_lossy(&came[&ids[2].0].bytes), expected, "{version}");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_is_sent_behind_the_request_is_not_lost() {
    let server = TestServer::start(settings()).await;
    let url = server.exec(ALL, |session| echo(session, CommandEnd::Success));
    let (_, path) = crate::raw::place(&url);
    // The request, four streams and all of stdin in one write.
    let mut session = knarr_wire::spdy::Session::new(knarr_wire::spdy::Role::Client);
    let mut out = BytesMut::from(crate::raw::spdy_request(&path, VERSIONS[3]).as_bytes());
    let ids: Vec<StreamId> =
        [ERROR, STDIN, STDOUT, STDERR].iter().map(|headers| session.open(headers, &mut out).unwrap()).collect();
    let header = session.data_header(ids[1], 20_000, true).unwrap();
    out.extend_from_slice(&header);
    out.extend_from_slice(&[9; 20_000]);
    let (tcp, head, input) = crate::raw::upgrade(&url, &out).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let mut spdy = Spdy { tcp, session, input };
    let came = spdy.rest().await;
    assert_eq!(came[&ids[2].0].bytes, [9; 20_000]);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_opens_too_little_is_told_and_one_that_opens_too_much_is_served() {
    let mut settings = settings();
    settings.creation_timeout = Duration::from_millis(500);
    let server = TestServer::start(settings).await;
    let url = server.exec(ALL, |_| async { panic!("it has no stderr") });
    let (mut spdy, ids) = Spdy::connect(&url, VERSIONS[3], &[ERROR, STDIN, STDOUT]).await;
    let came = spdy.rest().await;
    let text = String::from_utf8_lossy(&came[&ids[0].0].bytes).into_owned();
    assert!(text.contains("the client has not opened stderr within 500ms"), "{text}");
    // Without an error stream nobody can be told.
    let url = server.exec(ALL, |_| async { panic!("it has nothing") });
    let (mut spdy, _) = Spdy::connect(&url, VERSIONS[3], &[]).await;
    assert!(spdy.rest().await.is_empty());

    let wanted = Wanted { stdout: true, ..Wanted::default() };
    let url = server.exec(wanted, |session| async move {
        assert!(session.stdin.is_none() && session.stderr.is_none() && session.resizes.is_none());
        session.stdout.unwrap().send("out".into()).await.unwrap();
        CommandEnd::Success
    });
    let nonsense: &[_] = &[("streamtype", "nonsense")];
    let streams = [STDERR, STDIN, nonsense, &[], ERROR, ERROR, STDOUT];
    let (mut spdy, ids) = Spdy::connect(&url, VERSIONS[3], &streams).await;
    spdy.send(ids[1], &[1; 1000], false).await;
    let came = spdy.rest().await;
    assert_eq!(came[&ids[6].0].bytes, b"out");
    assert_eq!(came[&ids[4].0].bytes, br#"{"status":"Success"}"#);
    assert!(came[&ids[0].0].fin, "nothing comes on an output that was not asked for");
    for refused in [ids[2], ids[3], ids[5]] {
        assert!(came[&refused.0].reset && !came[&refused.0].replied, "{refused}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_stream_that_its_client_gives_up_is_gone_for_the_command_alone() {
    let server = TestServer::start(settings()).await;
    let url = server.exec(ALL, |session| async move {
        let (mut stdout, mut stderr) = (session.stdout.unwrap(), session.stderr.unwrap());
        while stdout.send(vec![1; 10_000].into()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        stderr.send("stdout is gone".into()).await.unwrap();
        CommandEnd::Success
    });
    let (mut spdy, ids) = Spdy::connect(&url, VERSIONS[3], &[ERROR, STDIN, STDOUT, STDERR]).await;
    soon(spdy.until(|came| came.get(&ids[2].0).is_some_and(|came| came.bytes.len() > 30_000))).await;
    let mut out = BytesMut::new();
    spdy.session.reset(ids[2], knarr_wire::spdy::ResetStatus::Cancel, &mut out);
    tokio::io::AsyncWriteExt::write_all(&mut spdy.tcp, &out).await.unwrap();
    let came = spdy.rest().await;
    assert_eq!(came[&ids[3].0].bytes, b"stdout is gone");
    server.stop().await;
}
