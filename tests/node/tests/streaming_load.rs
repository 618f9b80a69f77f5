//! Streams in great number and length: nothing is lost on the way, and nothing is left behind. What a session costs
//! the daemon and the shim is looked at after some hundred and after thousands: it must be the same.

use bytes::Bytes;
use knarr_node_tests::node::{Node, Pod};
use knarr_node_tests::pattern::Pattern;
use knarr_node_tests::requests::{container, pod};
use knarr_node_tests::streams::{ALL, OUTPUTS, TERMINAL, TRANSPORTS, connect, finish, must, open, send, until};
use knarr_node_tests::{Outcome, eventually, tests};
use knarr_streaming::client::{CommandClient, Forwarded, PortForwardClient, Target, Transport};
use knarr_streaming::{CommandEnd, TerminalSize, Wanted, client};
use std::time::Duration;

tests![
    a_gibibyte_comes_out_by_spdy,
    a_gibibyte_comes_out_by_websocket,
    a_gibibyte_goes_in_by_spdy,
    a_gibibyte_goes_in_by_websocket,
    ports_carry_much_both_ways,
    two_hundred_sessions_at_once,
    five_thousand_execs_by_spdy_half_of_them_cut_off,
    five_thousand_execs_by_websocket_half_of_them_cut_off,
    five_thousand_terminals_fail_by_spdy,
    five_thousand_terminals_fail_by_websocket,
    five_thousand_clients_come_and_go_by_spdy,
    five_thousand_clients_come_and_go_by_websocket,
];

const GIBIBYTE: u64 = 1 << 30;

/// How long a gibibyte may take: seconds on an idle machine, with unoptimised programs and other tests beside.
const LONG: Duration = Duration::from_secs(150);

/// Bytes of one send.
const PIECE_BYTES: usize = 64 << 10;

/// Sessions of one kind over one transport.
const MANY: usize = 5000;

/// Of these, so many come before the first look at what they cost.
const WARM_UP: usize = 500;

/// Sessions at the same time: a shim takes 256 execs.
const AT_ONCE: usize = 24;

async fn running(node: &mut Node, name: &str) -> Outcome<(Pod, String)> {
    let pod = node.run_pod(pod(name)).await?;
    let id = node.run(&pod, container("main", &["reap", ",", "pause"])).await?;
    Ok((pod, id))
}

async fn a_gibibyte_comes_out_by_spdy(node: &mut Node) -> Outcome {
    comes_out(node, Transport::Spdy).await
}

async fn a_gibibyte_comes_out_by_websocket(node: &mut Node) -> Outcome {
    comes_out(node, Transport::WebSocket).await
}

async fn comes_out(node: &mut Node, transport: Transport) -> Outcome {
    let (_, id) = running(node, "out").await?;
    let CommandClient { stdout, end, .. } =
        node.stream(&id, &["pattern", &GIBIBYTE.to_string()], OUTPUTS, transport).await?;
    let (mut stdout, mut pattern) = (must(stdout)?, Pattern::default());
    let taking = async {
        while let Some(bytes) = stdout.next().await {
            pattern.expect(&bytes)?;
        }
        end.wait().await.map_err(|e| e.0.into())
    };
    let end: Outcome<CommandEnd> = tokio::time::timeout(LONG, taking).await?;
    assert_eq!((end?, pattern.at()), (CommandEnd::Success, GIBIBYTE));
    Ok(())
}

async fn a_gibibyte_goes_in_by_spdy(node: &mut Node) -> Outcome {
    goes_in(node, Transport::Spdy).await
}

async fn a_gibibyte_goes_in_by_websocket(node: &mut Node) -> Outcome {
    goes_in(node, Transport::WebSocket).await
}

async fn goes_in(node: &mut Node, transport: Transport) -> Outcome {
    let (_, id) = running(node, "in").await?;
    let mut client = node.stream(&id, &["verify"], ALL, transport).await?;
    let (mut stdin, mut pattern) = (must(client.stdin.take())?, Pattern::default());
    let sending = async {
        while pattern.at() < GIBIBYTE {
            let length = (GIBIBYTE - pattern.at()).min(PIECE_BYTES as u64) as usize;
            stdin.send(pattern.next(length)).await.map_err(|e| format!("after {} bytes: {e:?}", pattern.at()))?;
        }
        stdin.finish().await.map_err(|e| format!("the end: {e:?}"))
    };
    tokio::time::timeout(LONG, sending).await??;
    let ended = finish(client).await?;
    assert_eq!(ended.stdout, format!("{GIBIBYTE} bytes of the pattern\n"));
    assert_eq!(ended.end, CommandEnd::Success);
    Ok(())
}

async fn ports_carry_much_both_ways(node: &mut Node) -> Outcome {
    const PORT: u16 = 7007;
    const CONNECTIONS: u64 = 4;
    const BYTES: u64 = 64 << 20;
    let (pod, _) = running(node, "ports").await?;
    let server = node.run(&pod, container("server", &["reflect", &PORT.to_string()])).await?;
    node.wait_for_log(&server, "reflecting").await?;
    for transport in TRANSPORTS {
        let ports = node.forward(&pod.id, transport).await?;
        let exchanges: Vec<Outcome> =
            tokio::time::timeout(LONG, join_all((0..CONNECTIONS).map(|_| reflected(&ports, PORT, BYTES)))).await?;
        exchanges.into_iter().collect::<Outcome<Vec<()>>>()?;
    }
    Ok(())
}

/// Sends the pattern through a port behind which everything is given back.
async fn reflected(ports: &PortForwardClient, port: u16, bytes: u64) -> Outcome {
    let Forwarded { mut sender, mut receiver, error } = open(ports, port).await?;
    let sending = async move {
        let mut pattern = Pattern::default();
        while pattern.at() < bytes {
            sender.send(pattern.next(PIECE_BYTES)).await.map_err(|e| format!("{e:?}"))?;
        }
        sender.finish().await.map_err(|e| format!("{e:?}"))
    };
    let taking = async {
        let mut pattern = Pattern::default();
        while let Some(bytes) = receiver.next().await {
            pattern.expect(&bytes)?;
        }
        Outcome::Ok(pattern.at())
    };
    let (sent, taken) = tokio::join!(sending, taking);
    sent?;
    assert_eq!((taken?, error.wait().await), (bytes, None));
    Ok(())
}

async fn two_hundred_sessions_at_once(node: &mut Node) -> Outcome {
    const SESSIONS: usize = 200;
    let (_, id) = running(node, "crowd").await?;
    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        let client = node.stream(&id, &["echo"], ALL, TRANSPORTS[number % 2]).await?;
        sessions.push(client);
    }
    // All are there; now each is spoken to.
    for (number, session) in sessions.iter_mut().enumerate() {
        let stdin = session.stdin.as_mut().ok_or("no stdin")?;
        send(stdin, &format!("this is {number}\n")).await?;
    }
    for (number, mut session) in sessions.into_iter().enumerate() {
        let stdout = session.stdout.as_mut().ok_or("no stdout")?;
        let heard = until(stdout, "\n").await?;
        assert_eq!(heard, format!("this is {number}\n"));
        must(session.stdin.take())?.finish().await.map_err(|e| format!("{e:?}"))?;
        assert_eq!(finish(session).await?.end, CommandEnd::Success);
    }
    Ok(())
}

async fn five_thousand_execs_by_spdy_half_of_them_cut_off(node: &mut Node) -> Outcome {
    execs(node, Transport::Spdy).await
}

async fn five_thousand_execs_by_websocket_half_of_them_cut_off(node: &mut Node) -> Outcome {
    execs(node, Transport::WebSocket).await
}

async fn execs(node: &mut Node, transport: Transport) -> Outcome {
    let (_, id) = running(node, "many").await?;
    many(node, async |node: &mut Node, number| {
        if number % 2 == 0 {
            let client = node.stream(&id, &["print", "whole"], OUTPUTS, transport).await?;
            let ended = finish(client).await?;
            assert_eq!((ended.stdout.as_str(), ended.end), ("whole\n", CommandEnd::Success));
            return Ok(());
        }
        let url = node.exec_url(&id, &["echo"], ALL).await?;
        cut_off(&url, transport, ALL, number).await
    })
    .await
}

async fn five_thousand_terminals_fail_by_spdy(node: &mut Node) -> Outcome {
    failing_terminals(node, Transport::Spdy).await
}

async fn five_thousand_terminals_fail_by_websocket(node: &mut Node) -> Outcome {
    failing_terminals(node, Transport::WebSocket).await
}

async fn failing_terminals(node: &mut Node, transport: Transport) -> Outcome {
    let (_, id) = running(node, "terminals").await?;
    many(node, async |node: &mut Node, number| {
        let request = knarr_cri_api::v1::ExecRequest {
            container_id: id.clone(),
            cmd: vec!["/no/such/program".into()],
            stdin: true,
            stdout: true,
            stderr: false,
            tty: true,
        };
        let url = node.runtime.exec(request).await?.into_inner().url;
        let client = connect(&url, transport, TERMINAL).await?;
        // A size for a terminal that will never be.
        if let Some(resizes) = &client.resizes {
            resizes.send(TerminalSize { columns: 80 + (number % 100) as u16, rows: 24 });
        }
        let ended = finish(client).await?;
        assert!(matches!(&ended.end, CommandEnd::Failed(why) if why.contains("/no/such/program")), "{ended:?}");
        Ok(())
    })
    .await
}

async fn five_thousand_clients_come_and_go_by_spdy(node: &mut Node) -> Outcome {
    attaches(node, Transport::Spdy).await
}

async fn five_thousand_clients_come_and_go_by_websocket(node: &mut Node) -> Outcome {
    attaches(node, Transport::WebSocket).await
}

async fn attaches(node: &mut Node, transport: Transport) -> Outcome {
    let pod = node.run_pod(pod("attached")).await?;
    let mut config = container("main", &["echo", ",", "pause"]);
    config.stdin = true;
    let id = node.run(&pod, config).await?;
    many(node, async |node: &mut Node, number| {
        let url = node.attach_url(&id, ALL).await?;
        cut_off(&url, transport, ALL, number).await
    })
    .await?;
    // It has heard nothing of them and is as it was.
    let mut client = node.attach(&id, ALL, transport).await?;
    send(client.stdin.as_mut().ok_or("no stdin")?, "still here\n").await?;
    until(client.stdout.as_mut().ok_or("no stdout")?, "still here\n").await?;
    Ok(())
}

/// Begins a session and goes away: before it has begun, at once, or after a moment.
async fn cut_off(url: &str, transport: Transport, wanted: Wanted, number: usize) -> Outcome {
    let target = Target { url: url.to_owned(), transport, tls: None };
    // A spread that is the same in each run, from nothing to longer than a whole session takes.
    let moment = Duration::from_micros((number as u64 * 7919) % 60_000);
    let session = async {
        let client = client::command(&target, wanted).await.map_err(|e| e.0)?;
        if let Some(mut stdin) = client.stdin {
            let _ = stdin.send(Bytes::from_static(b"cut\n")).await;
        }
        std::future::pending::<Result<(), String>>().await
    };
    match tokio::time::timeout(moment, session).await {
        Err(_) => Ok(()),
        Ok(ended) => Ok(ended?),
    }
}

/// Holds a session [`MANY`] times, some at once, and looks at what they cost.
async fn many(node: &mut Node, session: impl AsyncFn(&mut Node, usize) -> Outcome) -> Outcome {
    let mut first = None;
    for from in (0..MANY).step_by(AT_ONCE) {
        let sessions = (from..(from + AT_ONCE).min(MANY)).map(|number| {
            // Clones share the connection to the daemon.
            let (mut node, session) = (node.another_client(), &session);
            async move { session(&mut node, number).await.map_err(|e| format!("session {number}: {e}")) }
        });
        join_all(sessions).await.into_iter().collect::<Result<Vec<()>, String>>()?;
        if from >= WARM_UP && first.is_none() {
            first = Some(settled(node).await?);
        }
    }
    let (first, last) = (first.ok_or("no first look")?, settled(node).await?);
    assert!(last.is_no_more_than(&first), "after {WARM_UP}: {first:?}; after {MANY}: {last:?}");
    Ok(())
}

/// What the daemon and the shims have.
#[derive(Debug, Default, Clone, Copy)]
struct Cost {
    processes: usize,
    descriptors: [usize; 2],
    /// Private memory of the daemon and of the shims, KiB.
    memory_kib: [usize; 2],
}

impl Cost {
    /// The allocators' arenas of a few threads more or less are a megabyte or two; of thousands of sessions that each
    /// left a KiB it would be more.
    const MEMORY_SLACK_KIB: [usize; 2] = [3072, 128];

    fn is_no_more_than(&self, other: &Self) -> bool {
        let flat = |of: fn(&Self) -> [usize; 2], slack: [usize; 2]| {
            of(self).into_iter().zip(of(other)).zip(slack).all(|((now, before), slack)| now <= before + slack)
        };
        self.processes <= other.processes
            && flat(|cost| cost.descriptors, [0; 2])
            && flat(|cost| cost.memory_kib, Self::MEMORY_SLACK_KIB)
    }

    fn look(daemon: u32) -> Outcome<Self> {
        let mut cost = Self::default();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
            cost.processes += 1;
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let kind = match (pid == daemon, name.trim_end()) {
                (true, _) => 0,
                (false, "knarr-shim") => 1,
                _ => continue,
            };
            cost.descriptors[kind] += std::fs::read_dir(entry.path().join("fd"))?.count();
            let status = std::fs::read_to_string(entry.path().join("status"))?;
            let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
            cost.memory_kib[kind] += anonymous.and_then(|a| a.split_whitespace().next()?.parse().ok()).unwrap_or(0);
        }
        Ok(cost)
    }
}

/// Looks until two looks in a row see the same processes and descriptors: commands of clients that have gone are
/// given a moment before they are killed.
async fn settled(node: &Node) -> Outcome<Cost> {
    const PAUSE: Duration = Duration::from_millis(500);
    const PAUSES_ALIKE: usize = 8;
    let daemon = node.daemon_pid().ok_or("no daemon runs")?;
    let (mut last, mut alike) = (Cost::look(daemon)?, 0);
    eventually("sessions are over", Duration::from_secs(30), async || {
        tokio::time::sleep(PAUSE).await;
        let now = Cost::look(daemon)?;
        let same = (now.processes, now.descriptors) == (last.processes, last.descriptors);
        alike = if same { alike + 1 } else { 0 };
        last = now;
        Ok((alike >= PAUSES_ALIKE).then_some(now))
    })
    .await
}

/// Runs all at the same time on this thread.
async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut futures: Vec<_> = futures.map(Box::pin).collect();
    let mut done: Vec<Option<F::Output>> = futures.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        let mut all = true;
        for (future, done) in futures.iter_mut().zip(&mut done) {
            if done.is_none() {
                match future.as_mut().poll(context) {
                    std::task::Poll::Ready(output) => *done = Some(output),
                    std::task::Poll::Pending => all = false,
                }
            }
        }
        if all { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}
