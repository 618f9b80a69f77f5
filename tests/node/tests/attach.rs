//! Clients at a container's own streams: they come and go, and the container does not notice.

use knarr_node_tests::node::{Node, read_log};
use knarr_node_tests::requests::{container, pod};
use knarr_node_tests::streams::{ALL, OUTPUTS, TERMINAL, TRANSPORTS, all, finish, in_time, must, send, until};
use knarr_node_tests::{Outcome, eventually, tests};
use knarr_streaming::client::Transport;
use knarr_streaming::{CommandEnd, TerminalSize, Wanted};
use std::time::Duration;

tests![
    clients_see_the_same_and_none_is_missed,
    an_attach_ends_with_its_container,
    stdin_once_ends_with_its_client,
    stdin_outlives_a_client_otherwise,
    a_containers_terminal_is_resized,
    a_terminal_can_be_seen_without_being_one,
    a_client_that_sleeps_is_cut_off_and_the_log_is_whole,
    a_client_that_only_types,
    a_crowd_of_sleeping_clients_does_not_end_the_pod,
];

async fn clients_see_the_same_and_none_is_missed(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("fan-out")).await?;
    let mut config = container("main", &["echo"]);
    config.stdin = true;
    let id = node.run(&pod, config).await?;
    let mut typing = node.attach(&id, ALL, Transport::Spdy).await?;
    let mut looking = node.attach(&id, OUTPUTS, Transport::WebSocket).await?;
    let mut stdin = must(typing.stdin.take())?;
    for number in 0..50 {
        let line = format!("line {number}\n");
        send(&mut stdin, &line).await?;
        assert_eq!(until(must(typing.stdout.as_mut())?, &line).await?, line);
        assert_eq!(until(must(looking.stdout.as_mut())?, &line).await?, line);
    }
    drop(looking);
    send(&mut stdin, "one fewer\n").await?;
    until(must(typing.stdout.as_mut())?, "one fewer\n").await?;
    drop((stdin, typing));
    let mut back = node.attach(&id, ALL, Transport::WebSocket).await?;
    send(must(back.stdin.as_mut())?, "back again\n").await?;
    assert_eq!(until(must(back.stdout.as_mut())?, "again\n").await?, "back again\n");
    let lines: Vec<String> = node.log(&id).await?.into_iter().map(|line| line.text).collect();
    assert_eq!(lines.len(), 52);
    assert_eq!(lines[51], "back again");
    Ok(())
}

async fn an_attach_ends_with_its_container(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("over")).await?;
    for transport in TRANSPORTS {
        let name = format!("over-{transport:?}").to_lowercase();
        let mut config = container(&name, &["line", ",", "print", "out", ",", "err", "wrong", ",", "exit", "5"]);
        config.stdin = true;
        let id = node.run(&pod, config).await?;
        let mut client = node.attach(&id, ALL, transport).await?;
        send(must(client.stdin.as_mut())?, "\n").await?;
        let end = finish(client).await?;
        assert_eq!((end.stdout.as_str(), end.stderr.as_str()), ("out\n", "wrong\n"));
        // The attach has worked; how the container ended is told by its status.
        assert_eq!(end.end, CommandEnd::Success);
        assert_eq!(node.wait_exited(&id).await?.exit_code, 5);
    }
    Ok(())
}

async fn stdin_once_ends_with_its_client(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("once")).await?;
    for transport in TRANSPORTS {
        for says_so in [true, false] {
            let name = format!("once-{transport:?}-{says_so}").to_lowercase();
            let mut config = container(&name, &["count", ",", "exit", "4"]);
            (config.stdin, config.stdin_once) = (true, true);
            let id = node.run(&pod, config).await?;
            let mut client = node.attach(&id, ALL, transport).await?;
            let mut stdin = must(client.stdin.take())?;
            send(&mut stdin, "twelve bytes").await?;
            if says_so {
                in_time("the end is taken", stdin.finish()).await?.map_err(|e| format!("{e:?}"))?;
                let end = finish(client).await?;
                assert_eq!((end.stdout.as_str(), end.end), ("12 bytes\n", CommandEnd::Success));
            } else {
                // Else the connection could break before the bytes are read.
                tokio::time::sleep(Duration::from_millis(200)).await;
                drop((client, stdin));
            }
            assert_eq!(node.wait_exited(&id).await?.exit_code, 4);
            assert_eq!(node.log(&id).await?[0].text, "12 bytes");
        }
    }
    Ok(())
}

async fn stdin_outlives_a_client_otherwise(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("open")).await?;
    for transport in TRANSPORTS {
        let mut config = container(&format!("open-{transport:?}").to_lowercase(), &["echo", ",", "print", "over"]);
        config.stdin = true;
        let id = node.run(&pod, config).await?;
        let mut first = node.attach(&id, ALL, transport).await?;
        let mut stdin = must(first.stdin.take())?;
        send(&mut stdin, "first\n").await?;
        in_time("the end is taken", stdin.finish()).await?.map_err(|e| format!("{e:?}"))?;
        let mut second = node.attach(&id, ALL, transport).await?;
        send(must(second.stdin.as_mut())?, "second\n").await?;
        // The first sees on, though it types no more.
        let mut stdout = must(first.stdout.take())?;
        assert_eq!(until(&mut stdout, "second\n").await?, "first\nsecond\n");
        node.stop_container(&id, 0).await?;
        assert_eq!(finish(second).await?.end, CommandEnd::Success);
    }
    Ok(())
}

async fn a_containers_terminal_is_resized(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("terminal")).await?;
    for transport in TRANSPORTS {
        let words = ["await-size", "101", "31", ",", "tty", ",", "await-size", "122", "42", ",", "echo"];
        let mut config = container(&format!("tty-{transport:?}").to_lowercase(), &words);
        (config.tty, config.stdin) = (true, true);
        let id = node.run(&pod, config).await?;
        let mut client = node.attach(&id, TERMINAL, transport).await?;
        let (mut stdin, mut stdout) = (must(client.stdin.take())?, must(client.stdout.take())?);
        let resizes = must(client.resizes.take())?;
        resizes.send(TerminalSize { columns: 101, rows: 31 });
        until(&mut stdout, "1 1 1 101x31\r\n").await?;
        resizes.send(TerminalSize { columns: 122, rows: 42 });
        send(&mut stdin, "typed\n").await?;
        // The terminal's own echo, and the program's; they can come together.
        until(&mut stdout, "typed\r\ntyped\r\n").await?;
        drop((client, stdin, stdout, resizes));
        // Nobody is attached, and the terminal is as it was.
        let mut again = node.attach(&id, TERMINAL, transport).await?;
        send(must(again.stdin.as_mut())?, "more\n").await?;
        until(must(again.stdout.as_mut())?, "more\r\nmore\r\n").await?;
        send(must(again.stdin.as_mut())?, "\u{4}").await?;
        assert_eq!(finish(again).await?.end, CommandEnd::Success);
        assert_eq!(node.wait_exited(&id).await?.exit_code, 0);
    }
    Ok(())
}

async fn a_terminal_can_be_seen_without_being_one(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("seen")).await?;
    let mut config = container("main", &["echo"]);
    (config.tty, config.stdin) = (true, true);
    let id = node.run(&pod, config).await?;
    let mut client = node.attach(&id, ALL, Transport::Spdy).await?;
    send(must(client.stdin.as_mut())?, "plain\n\u{4}").await?;
    let end = finish(client).await?;
    assert_eq!((end.stdout.as_str(), end.stderr.as_str()), ("plain\r\nplain\r\n", ""));
    assert_eq!(end.end, CommandEnd::Success);
    Ok(())
}

async fn a_client_that_sleeps_is_cut_off_and_the_log_is_whole(node: &mut Node) -> Outcome {
    // More than all buffers on the way. Another client asks for piece after piece, so that it is never behind.
    const PIECE: usize = 1 << 20;
    const PIECES: usize = 40;
    let pod = node.run_pod(pod("sleepy")).await?;
    for transport in TRANSPORTS {
        let piece = PIECE.to_string();
        let mut words = Vec::new();
        for _ in 0..PIECES {
            words.extend(["line", ",", "bytes", &piece, ","]);
        }
        words.extend(["print", "", ",", "pause"]);
        let mut config = container(&format!("much-{transport:?}").to_lowercase(), &words);
        config.stdin = true;
        let id = node.run(&pod, config).await?;
        let mut asleep = node.attach(&id, OUTPUTS, transport).await?;
        let mut awake = node.attach(&id, ALL, transport).await?;
        let mut stdin = must(awake.stdin.take())?;
        for number in 0..PIECES {
            send(&mut stdin, "\n").await?;
            let mut come = 0;
            while come < PIECE {
                let more = in_time("the next piece", must(awake.stdout.as_mut())?.next()).await?;
                come += more.ok_or_else(|| format!("cut off in piece {number}"))?.len();
            }
        }
        let log = node.status(&id).await?.log_path;
        eventually("the log is whole", Duration::from_secs(20), async || {
            let size: usize = read_log(&log)?.iter().map(|line| line.text.len()).sum();
            Ok((size == PIECE * PIECES).then_some(()))
        })
        .await?;
        // Only now does the other read: the beginning, without a hole, and why there is no more.
        let stdout = in_time("the output ends", all(&mut asleep.stdout)).await?;
        assert!(stdout.len() >= 512 << 10 && stdout.len() < PIECE * PIECES, "{}", stdout.len());
        assert!(stdout.iter().all(|byte| *byte == b'x'));
        let end = finish(asleep).await?.end;
        assert!(matches!(&end, CommandEnd::Failed(why) if why.contains("is cut off")), "{end:?}");
        node.stop_container(&id, 0).await?;
        assert_eq!(finish(awake).await?.end, CommandEnd::Success);
        node.remove_container(&id).await?;
    }
    Ok(())
}

async fn a_client_that_only_types(node: &mut Node) -> Outcome {
    let pod = node.run_pod(pod("typist")).await?;
    let mut config = container("main", &["echo"]);
    config.stdin = true;
    let id = node.run(&pod, config).await?;
    let only_stdin = Wanted { stdin: true, ..Wanted::default() };
    for transport in TRANSPORTS {
        let mut client = node.attach(&id, only_stdin, transport).await?;
        let text = format!("by {transport:?}");
        send(must(client.stdin.as_mut())?, &format!("{text}\n")).await?;
        node.wait_for_log(&id, &text).await?;
    }
    let client = node.attach(&id, only_stdin, Transport::Spdy).await?;
    node.stop_container(&id, 0).await?;
    assert_eq!(finish(client).await?.end, CommandEnd::Success);
    Ok(())
}

/// Bytes that wait in pipes are charged to who wrote them: the shim, which has 32 MiB.
async fn a_crowd_of_sleeping_clients_does_not_end_the_pod(node: &mut Node) -> Outcome {
    const CLIENTS: usize = 40;
    const PIECE: usize = 100_000;
    const PIECES: usize = 80;
    let pod = node.run_pod(pod("crowd")).await?;
    let piece = PIECE.to_string();
    let mut words = Vec::new();
    for _ in 0..PIECES {
        words.extend(["line", ",", "bytes", &piece, ",", "bytes", &piece, "stderr", ","]);
    }
    words.push("pause");
    let mut config = container("main", &words);
    config.stdin = true;
    let id = node.run(&pod, config).await?;
    let mut asleep = Vec::new();
    for number in 0..CLIENTS {
        asleep.push(node.attach(&id, OUTPUTS, TRANSPORTS[number % 2]).await?);
    }
    let mut awake = node.attach(&id, ALL, Transport::Spdy).await?;
    let mut stdin = must(awake.stdin.take())?;
    for number in 0..PIECES {
        send(&mut stdin, "\n").await?;
        for stream in [&mut awake.stdout, &mut awake.stderr] {
            let mut come = 0;
            while come < PIECE {
                let more = in_time("the next piece", must(stream.as_mut())?.next()).await?;
                come += more.ok_or_else(|| format!("cut off in piece {number}"))?.len();
            }
        }
    }
    drop(asleep);
    assert_eq!(node.exec_output(&id, &["print", "alive"]).await?, "alive\n");
    Ok(())
}
