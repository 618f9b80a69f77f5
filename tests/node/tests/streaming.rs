//! Exec with a client at the streams: what it sends arrives, what comes back is whole, its end is the command's end.

use knarr_cri_api::v1;
use knarr_node_tests::node::Node;
use knarr_node_tests::requests::{container, pod};
use knarr_node_tests::streams::{
    ALL, Ended, OUTPUTS, TERMINAL, TRANSPORTS, all, connect, finish, in_time, must, send, until,
};
use knarr_node_tests::{Outcome, TOOL, eventually, refused, tests};
use knarr_streaming::client::{self, Target, Transport};
use knarr_streaming::{CommandEnd, TerminalSize, Wanted};
use knarr_testkit::registry::{CA_CERTIFICATE, CLIENT_CERTIFICATE, CLIENT_KEY, SERVER_CERTIFICATE, SERVER_KEY};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::Code;

tests![
    output_and_exit_code_come_back_by_streams,
    a_command_that_cannot_be_run_says_why,
    input_arrives_whole_and_ends,
    a_command_that_wants_no_input_goes_on,
    a_terminal_has_its_clients_size,
    nothing_is_lost_on_a_client_that_reads_late,
    a_command_in_the_background_holds_no_session,
    a_command_ends_with_its_client,
    a_command_ends_with_its_container,
    a_url_is_good_for_one_client,
    streams_that_cannot_be,
    urls_that_nobody_uses_are_counted,
    sessions_end_with_the_daemon,
    the_address_is_told,
    tls_is_spoken_and_clients_are_asked_for_certificates,
];

async fn running(node: &mut Node, name: &str) -> Outcome<String> {
    let pod = node.run_pod(pod(name)).await?;
    Ok(node.run(&pod, container("main", &["reap", ",", "pause"])).await?)
}

fn ended(stdout: &str, stderr: &str, end: CommandEnd) -> Ended {
    Ended { stdout: stdout.into(), stderr: stderr.into(), end }
}

async fn output_and_exit_code_come_back_by_streams(node: &mut Node) -> Outcome {
    let id = running(node, "output").await?;
    for transport in TRANSPORTS {
        let words = ["print", "out", ",", "err", "wrong", ",", "exit", "7"];
        let client = node.stream(&id, &words, OUTPUTS, transport).await?;
        assert_eq!(finish(client).await?, ended("out\n", "wrong\n", CommandEnd::Exited(7)), "{transport:?}");
        let client = node.stream(&id, &["print", "fine"], OUTPUTS, transport).await?;
        assert_eq!(finish(client).await?, ended("fine\n", "", CommandEnd::Success), "{transport:?}");
        let client = node.stream(&id, &["signal-self", "9"], OUTPUTS, transport).await?;
        assert_eq!(finish(client).await?, ended("", "", CommandEnd::Exited(137)), "{transport:?}");
        // A stream that was not asked for is not missed.
        let only_stderr = Wanted { stderr: true, ..Wanted::default() };
        let client = node.stream(&id, &["print", "unheard", ",", "err", "heard"], only_stderr, transport).await?;
        assert_eq!(finish(client).await?, ended("", "heard\n", CommandEnd::Success), "{transport:?}");
    }
    Ok(())
}

async fn a_command_that_cannot_be_run_says_why(node: &mut Node) -> Outcome {
    let id = running(node, "absent").await?;
    for (transport, wanted) in [(Transport::Spdy, OUTPUTS), (Transport::WebSocket, ALL), (Transport::Spdy, TERMINAL)] {
        let Wanted { stdin, stdout, stderr, tty } = wanted;
        let cmd = vec!["/no/such/program".into()];
        let request = v1::ExecRequest { container_id: id.clone(), cmd, stdin, stdout, stderr, tty };
        let url = node.runtime.exec(request).await?.into_inner().url;
        let end = finish(connect(&url, transport, wanted).await?).await?;
        let CommandEnd::Failed(why) = &end.end else { panic!("{end:?}") };
        assert!(why.contains("/no/such/program"), "{why}");
        assert_eq!((end.stdout.as_str(), end.stderr.as_str()), ("", ""));
    }
    Ok(())
}

async fn input_arrives_whole_and_ends(node: &mut Node) -> Outcome {
    const CHUNKS: usize = 100;
    const CHUNK_BYTES: usize = 30_001;
    let id = running(node, "input").await?;
    for transport in TRANSPORTS {
        let mut client = node.stream(&id, &["count", ",", "exit", "3"], ALL, transport).await?;
        let mut stdin = must(client.stdin.take())?;
        for _ in 0..CHUNKS {
            send(&mut stdin, &"i".repeat(CHUNK_BYTES)).await?;
        }
        in_time("the input's end is taken", stdin.finish()).await?.map_err(|e| format!("{e:?}"))?;
        let said = format!("{} bytes\n", CHUNKS * CHUNK_BYTES);
        assert_eq!(finish(client).await?, ended(&said, "", CommandEnd::Exited(3)), "{transport:?}");
    }
    Ok(())
}

async fn a_command_that_wants_no_input_goes_on(node: &mut Node) -> Outcome {
    let id = running(node, "unread").await?;
    for transport in TRANSPORTS {
        for words in [
            ["close", "0", ",", "sleep", "0.3", ",", "print", "done"],
            ["sleep", "0", ",", "sleep", "0.3", ",", "print", "done"],
        ] {
            let mut client = node.stream(&id, &words, ALL, transport).await?;
            let mut stdin = must(client.stdin.take())?;
            // More than every buffer on the way: the sender waits until the end.
            let sending = tokio::spawn(async move {
                let bytes = bytes::Bytes::from(vec![b'x'; 64 << 10]);
                for _ in 0..1024 {
                    if stdin.send(bytes.clone()).await.is_err() {
                        return;
                    }
                }
            });
            let end = finish(client).await?;
            sending.abort();
            assert_eq!(end, ended("done\n", "", CommandEnd::Success), "{transport:?} {words:?}");
        }
    }
    Ok(())
}

async fn a_terminal_has_its_clients_size(node: &mut Node) -> Outcome {
    let id = running(node, "terminal").await?;
    for transport in TRANSPORTS {
        let words = ["await-size", "100", "30", ",", "tty", ",", "await-size", "121", "41", ",", "echo"];
        let mut client = node.stream(&id, &words, TERMINAL, transport).await?;
        let (mut stdin, mut stdout) = (must(client.stdin.take())?, must(client.stdout.take())?);
        let resizes = must(client.resizes.take())?;
        resizes.send(TerminalSize { columns: 100, rows: 30 });
        until(&mut stdout, "1 1 1 100x30\r\n").await?;
        resizes.send(TerminalSize { columns: 121, rows: 41 });
        send(&mut stdin, "typed\n").await?;
        // Once by the terminal's echo, once by the program; they can come together.
        until(&mut stdout, "typed\r\ntyped\r\n").await?;
        // Ctrl-D
        send(&mut stdin, "\u{4}").await?;
        client.stdout = Some(stdout);
        assert_eq!(finish(client).await?.end, CommandEnd::Success, "{transport:?}");
    }
    Ok(())
}

async fn nothing_is_lost_on_a_client_that_reads_late(node: &mut Node) -> Outcome {
    let id = running(node, "late").await?;
    for transport in TRANSPORTS {
        // What fits into the pipe, so that the process is long over; and what does not.
        for bytes in [60_000, 40 << 20] {
            let words = ["bytes", &bytes.to_string()];
            let mut client = node.stream(&id, &words, OUTPUTS, transport).await?;
            tokio::time::sleep(Duration::from_millis(500)).await;
            let stdout = in_time("the output ends", all(&mut client.stdout)).await?;
            assert_eq!(stdout.len(), bytes, "{transport:?}");
            assert!(stdout.iter().all(|byte| *byte == b'x'));
            assert_eq!(finish(client).await?.end, CommandEnd::Success);
        }
    }
    Ok(())
}

async fn a_command_in_the_background_holds_no_session(node: &mut Node) -> Outcome {
    let id = running(node, "background").await?;
    for (transport, wanted) in [(Transport::Spdy, OUTPUTS), (Transport::WebSocket, ALL), (Transport::Spdy, TERMINAL)] {
        let started = Instant::now();
        let client = node.stream(&id, &["fork", "1", "1000", ",", "print", "done"], wanted, transport).await?;
        let end = finish(client).await?;
        assert_eq!((end.stdout.trim_end(), &end.end), ("done", &CommandEnd::Success), "{wanted:?}");
        assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    }
    Ok(())
}

async fn a_command_ends_with_its_client(node: &mut Node) -> Outcome {
    let id = running(node, "gone").await?;
    let processes =
        async |node: &mut Node| -> Outcome<usize> { Ok(node.exec_output(&id, &["procs"]).await?.lines().count()) };
    let before = processes(node).await?;
    let stubborn =
        ["ignore-term", ",", "ignore-hup", ",", "fork", "2", "1000", ",", "print", "here", ",", "sleep", "1000"];
    for transport in TRANSPORTS {
        for wanted in [OUTPUTS, ALL, TERMINAL] {
            let mut client = node.stream(&id, &stubborn, wanted, transport).await?;
            until(must(client.stdout.as_mut())?, "here").await?;
            assert_eq!(processes(node).await?, before + 3, "{wanted:?}");
            drop(client);
            eventually("the command is ended", Duration::from_secs(8), async || {
                Ok((processes(node).await? == before).then_some(()))
            })
            .await?;
        }
    }
    Ok(())
}

async fn a_command_ends_with_its_container(node: &mut Node) -> Outcome {
    for transport in TRANSPORTS {
        for wanted in [OUTPUTS, TERMINAL] {
            let name = format!("over-{transport:?}-{}", wanted.tty).to_lowercase();
            let id = running(node, &name).await?;
            let mut client = node.stream(&id, &["print", "here", ",", "pause"], wanted, transport).await?;
            until(must(client.stdout.as_mut())?, "here").await?;
            node.stop_container(&id, 0).await?;
            assert_eq!(finish(client).await?.end, CommandEnd::Exited(137), "{name}");
        }
    }
    Ok(())
}

async fn a_url_is_good_for_one_client(node: &mut Node) -> Outcome {
    let id = running(node, "once").await?;
    for transport in TRANSPORTS {
        let url = node.exec_url(&id, &["print", "once"], OUTPUTS).await?;
        let target = |url: String| Target { url, transport, tls: None };
        let first = connect(&url, transport, OUTPUTS).await?;
        let second = in_time("an answer", client::command(&target(url.clone()), OUTPUTS)).await?;
        assert!(second.expect_err("the URL is used up").0.contains("404"), "{transport:?}");
        assert_eq!(finish(first).await?.stdout, "once\n");
        let invented = format!("{}x", &url[..url.len() - 1]);
        let third = in_time("an answer", client::command(&target(invented), OUTPUTS)).await?;
        assert!(third.is_err());
        // A URL of one kind opens no door of another.
        let attach = node.exec_url(&id, &["print", "x"], OUTPUTS).await?.replace("/exec/", "/attach/");
        assert!(in_time("an answer", client::command(&target(attach), OUTPUTS)).await?.is_err());
    }
    // What was given while the container ran is checked again when it is used.
    let url = node.exec_url(&id, &["print", "late"], OUTPUTS).await?;
    node.stop_container(&id, 0).await?;
    let end = finish(connect(&url, Transport::Spdy, OUTPUTS).await?).await?.end;
    assert!(matches!(&end, CommandEnd::Failed(why) if why.contains("is not running")), "{end:?}");
    Ok(())
}

async fn streams_that_cannot_be(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("bad")).await?;
    let id = node.run(&pod, container("main", &["pause"])).await?;
    let none = Wanted::default();
    let both = Wanted { tty: true, ..OUTPUTS };
    for (wanted, field) in [(none, "stdin, stdout, stderr"), (both, "stderr")] {
        let message = refused(node.exec_url(&id, &["print"], wanted).await, Code::InvalidArgument);
        assert!(message.contains(field), "{message}");
        let message = refused(node.attach_url(&id, wanted).await, Code::InvalidArgument);
        assert!(message.contains(field), "{message}");
    }
    for (wanted, field) in [(TERMINAL, "tty"), (ALL, "stdin")] {
        let message = refused(node.attach_url(&id, wanted).await, Code::InvalidArgument);
        assert!(message.contains(field), "{message}");
    }
    let request = v1::ExecRequest { container_id: id.clone(), stdout: true, ..Default::default() };
    assert!(refused(node.runtime.exec(request).await, Code::InvalidArgument).contains("cmd"));
    refused(node.exec_url("", &["print"], OUTPUTS).await, Code::InvalidArgument);
    refused(node.attach_url("", OUTPUTS).await, Code::InvalidArgument);
    let unknown = "f".repeat(64);
    refused(node.exec_url(&unknown, &["print"], OUTPUTS).await, Code::NotFound);
    refused(node.attach_url(&unknown, OUTPUTS).await, Code::NotFound);
    let created = node.create(&pod, container("created", &["pause"])).await?;
    refused(node.exec_url(&created, &["print"], OUTPUTS).await, Code::FailedPrecondition);
    refused(node.attach_url(&created, OUTPUTS).await, Code::FailedPrecondition);
    for port in [0, -1, 65_536] {
        let request = v1::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![port] };
        let message = refused(node.runtime.port_forward(request).await, Code::InvalidArgument);
        assert!(message.contains(&port.to_string()), "{message}");
    }
    let ports = |id: &str| v1::PortForwardRequest { pod_sandbox_id: id.into(), port: vec![] };
    refused(node.runtime.port_forward(ports("")).await, Code::InvalidArgument);
    refused(node.runtime.port_forward(ports(&unknown)).await, Code::NotFound);
    node.stop_pod(&pod.id).await?;
    refused(node.runtime.port_forward(ports(&pod.id)).await, Code::FailedPrecondition);
    Ok(())
}

async fn urls_that_nobody_uses_are_counted(node: &mut Node) -> Outcome {
    const URLS: usize = 1000;
    let id = running(node, "hoard").await?;
    for _ in 0..URLS {
        node.exec_url(&id, &["print"], OUTPUTS).await?;
    }
    let message = refused(node.exec_url(&id, &["print"], OUTPUTS).await, Code::ResourceExhausted);
    assert!(message.contains("1000"), "{message}");
    // Probes are not touched by it.
    node.exec_output(&id, &["print", "x"]).await?;
    Ok(())
}

async fn sessions_end_with_the_daemon(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("drained")).await?;
    let mut config = container("main", &["echo"]);
    config.stdin = true;
    let id = node.run(&pod, config).await?;
    let mut exec = node.stream(&id, &["print", "here", ",", "pause"], OUTPUTS, Transport::Spdy).await?;
    until(must(exec.stdout.as_mut())?, "here").await?;
    let attached = node.attach(&id, ALL, Transport::WebSocket).await?;
    let started = Instant::now();
    node.stop().await?;
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    for client in [exec, attached] {
        let end = in_time("the session ends", client.end.wait()).await?;
        assert!(!matches!(end, Ok(CommandEnd::Success | CommandEnd::Exited(_))), "{end:?}");
    }
    node.start_again().await?;
    let mut attached = node.attach(&id, ALL, Transport::Spdy).await?;
    send(must(attached.stdin.as_mut())?, "still there\n").await?;
    until(must(attached.stdout.as_mut())?, "still there\n").await?;
    eventually("the command is gone", Duration::from_secs(8), async || {
        let processes = node.exec_output(&id, &["procs"]).await?;
        Ok((processes.lines().count() == 2).then_some(()))
    })
    .await
}

async fn the_address_is_told(node: &mut Node) -> Outcome {
    let info = node.runtime.status(v1::StatusRequest { verbose: true }).await?.into_inner().info;
    let streaming: serde_json::Value = serde_json::from_str(info.get("streaming").ok_or("no streaming in the info")?)?;
    let address = streaming["address"].as_str().ok_or("no address")?;
    let id = running(node, "address").await?;
    let url = node.exec_url(&id, &["print"], OUTPUTS).await?;
    assert!(url.starts_with(&format!("http://{address}/exec/")), "{url} {address}");
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let request = v1::ExecRequest { container_id: id, cmd: vec![TOOL.into()], stdout: true, ..Default::default() };
    let other = node.runtime.exec(request).await?.into_inner().url;
    assert_ne!(url, other);
    Ok(())
}

/// A client that trusts the tests' authority and shows its certificate if it has one to show.
fn tls(shows: bool) -> Outcome<Arc<rustls::ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CA_CERTIFICATE.as_bytes())?)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(Arc::new(if shows {
        let chain = vec![CertificateDer::from_pem_slice(CLIENT_CERTIFICATE.as_bytes())?];
        builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(CLIENT_KEY.as_bytes())?)?
    } else {
        builder.with_no_client_auth()
    }))
}

async fn tls_is_spoken_and_clients_are_asked_for_certificates(node: &mut Node) -> Outcome {
    let id = running(node, "tls").await?;
    node.stop().await?;
    let path = |name: &str| node.directory.join(name);
    for (name, pem) in [("ca.crt", CA_CERTIFICATE), ("server.crt", SERVER_CERTIFICATE), ("server.key", SERVER_KEY)] {
        std::fs::write(path(name), pem)?;
    }
    let toml = format!(
        "[streaming]\ntls_cert = {:?}\ntls_key = {:?}\ntls_client_ca = {:?}\n",
        path("server.crt"),
        path("server.key"),
        path("ca.crt")
    );
    std::fs::write(node.root.join("config.d/tls.toml"), toml)?;
    node.start_again().await?;
    for transport in TRANSPORTS {
        let mut url = node.exec_url(&id, &["print", "sealed"], OUTPUTS).await?;
        assert!(url.starts_with("https://127.0.0.1:"), "{url}");
        for refused in [Some(tls(false)?), None] {
            if refused.is_none() {
                url = url.replace("https://", "http://");
            }
            let target = Target { url: url.clone(), transport, tls: refused };
            assert!(in_time("an answer", client::command(&target, OUTPUTS)).await?.is_err(), "{transport:?}");
        }
        // Who was refused has not used the URL up.
        let target = Target { url: url.replace("http://", "https://"), transport, tls: Some(tls(true)?) };
        let client = in_time("the session begins", client::command(&target, OUTPUTS)).await?.map_err(|e| e.0)?;
        assert_eq!(finish(client).await?, ended("sealed\n", "", CommandEnd::Success));
    }
    std::fs::remove_file(node.root.join("config.d/tls.toml"))?;
    Ok(())
}
