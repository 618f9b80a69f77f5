//! Clients that watch a container and write to it: what they see, how they end, and what is left of them.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use knarr_model::{ContainerId, ErrorKind};
use knarr_wire::cri_log::Stream;
use knarr_wire::shim::{AttachId, Event};
use rustix::termios::Winsize;

use crate::needs_root;
use crate::pod::{SOON, TestPod, compile, output, until};

/// Lines of eight bytes in one chunk: half of what a pipe holds by default.
const CHUNK_LINES: usize = 4096;

#[tokio::test]
async fn a_client_that_stalls_is_cut_off_and_the_others_miss_no_byte() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let id = with_stdin(&mut pod, &["numbers", &CHUNK_LINES.to_string()], false).await;
    let mut first = pod.attach(&id, [true, true, true]).await.unwrap();
    let mut second = pod.attach(&id, [false, true, false]).await.unwrap();
    let stalled = pod.attach(&id, [false, true, false]).await.unwrap();
    let mut input = File::from(first.attached.input.take().unwrap());
    for chunk in 0..50 {
        input.write_all(b"x").unwrap();
        let expected = numbers(chunk * CHUNK_LINES..(chunk + 1) * CHUNK_LINES);
        for client in [&mut first, &mut second] {
            assert!(read_bytes(client.stdout.as_mut().unwrap(), expected.len()).await == expected, "chunk {chunk}");
        }
    }
    assert!(pod.end_of(stalled.id).await, "it fell behind");
    let seen = read_to_end(stalled.stdout.unwrap()).await;
    assert!(seen.len() >= CHUNK_LINES * 8 && numbers(0..50 * CHUNK_LINES).starts_with(&seen), "{}", seen.len());

    let mut late = pod.attach(&id, [false, true, false]).await.unwrap();
    input.write_all(b"x").unwrap();
    let expected = numbers(50 * CHUNK_LINES..51 * CHUNK_LINES);
    assert!(read_bytes(late.stdout.as_mut().unwrap(), expected.len()).await == expected, "all from its attach on");
    let whole = numbers(0..51 * CHUNK_LINES);
    assert!(output(&pod.log(&id), Stream::Stdout).into_bytes() == whole, "the log came before the clients");
    pod.stop().await;
}

#[tokio::test]
async fn ten_thousand_clients_of_a_silent_container_leave_nothing() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let id = with_stdin(&mut pod, &["sleep", "600000"], false).await;
    let attach_and_go = async |pod: &TestPod, times: usize| {
        for _ in 0..times {
            let client = pod.attach(&id, [true, true, true]).await.unwrap();
            assert!(client.attached.input.is_some() && !client.attached.stdin_closed && !client.attached.terminal);
        }
    };
    let before = pod.settled_descriptors().await;
    attach_and_go(&pod, 500).await;
    until("the first are gone", || pod.descriptors() == before).await;
    let memory = resident_kib(&pod);
    attach_and_go(&pod, 10_000).await;
    until("the last are gone", || pod.descriptors() == before).await;
    let grown = resident_kib(&pod).saturating_sub(memory);
    assert!(grown < 128, "{grown} KiB more after 10,000 clients");
    pod.stop().await;
}

#[tokio::test]
async fn a_client_that_closes_one_of_its_pipes_is_gone() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (id, _) = pod.run(&["sleep", "600000"]).await;
    let before = pod.settled_descriptors().await;
    let mut client = pod.attach(&id, [false, true, true]).await.unwrap();
    assert_eq!(pod.settled_descriptors().await, before + 2);
    drop(client.stderr.take());
    until("both of its pipes are closed", || pod.descriptors() == before).await;
    assert_eq!(read_to_end(client.stdout.unwrap()).await, b"");
    pod.stop().await;
}

#[tokio::test]
async fn stdin_stays_open_for_the_next_client() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let id = with_stdin(&mut pod, &["cat"], false).await;
    for text in ["one\n", "two\n"] {
        let mut client = pod.attach(&id, [true, true, false]).await.unwrap();
        File::from(client.attached.input.take().unwrap()).write_all(text.as_bytes()).unwrap();
        assert_eq!(read_bytes(client.stdout.as_mut().unwrap(), 4).await, text.as_bytes());
    }
    let only_input = pod.attach(&id, [true, false, false]).await.unwrap();
    drop(only_input);
    let state = pod.client.list_containers().await.unwrap();
    assert!(state.containers[0].0.exit.is_none() && state.containers[0].0.stdin_open);
    pod.stop().await;
}

#[tokio::test]
async fn stdin_for_one_client_closes_with_it_and_is_closed_for_others() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let id = with_stdin(&mut pod, &["cat"], true).await;
    let watcher = pod.attach(&id, [false, true, false]).await.unwrap();
    assert!(watcher.attached.input.is_none() && !watcher.attached.stdin_closed, "it did not ask for it");
    let mut first = pod.attach(&id, [true, true, false]).await.unwrap();
    let mut input = File::from(first.attached.input.take().unwrap());
    assert!(!first.attached.stdin_closed);
    let mut second = pod.attach(&id, [true, true, false]).await.unwrap();
    assert!(second.attached.stdin_closed && second.attached.input.is_none());
    assert!(!pod.client.list_containers().await.unwrap().containers[0].0.stdin_open);

    input.write_all(b"all\n").unwrap();
    assert_eq!(read_bytes(second.stdout.as_mut().unwrap(), 4).await, b"all\n", "its output is not closed");
    drop(input);
    assert_eq!(pod.exit_of(&id).await.code, 0, "cat has seen the end of its input");
    pod.stop().await;
}

#[tokio::test]
async fn stdin_that_a_container_was_started_without_is_closed() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (id, _) = pod.run(&["sleep", "600000"]).await;
    let client = pod.attach(&id, [true, true, false]).await.unwrap();
    assert!(client.attached.stdin_closed && client.attached.input.is_none());
    let mut plan = pod.plan(&["sleep", "600000"]);
    plan.process.terminal = true;
    pod.start_container(&plan).await.unwrap();
    let client = pod.attach(&plan.id, [true, true, false]).await.unwrap();
    assert!(client.attached.stdin_closed && client.attached.input.is_some(), "the terminal still has a size");
    pod.stop().await;
}

#[tokio::test]
async fn a_terminal_is_read_written_and_sized() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let mut plan = pod.plan(&["size"]);
    (plan.process.terminal, plan.process.console_size) = (true, (80, 25));
    pod.start_container(&plan).await.unwrap();
    until("the first size", || output(&pod.log(&plan.id), Stream::Stdout) == "80 25\r\n").await;
    let mut client = pod.attach(&plan.id, [false, true, false]).await.unwrap();
    assert!(client.attached.terminal && !client.attached.stdin_closed);
    let master = client.attached.input.take().unwrap();
    let size = Winsize { ws_row: 40, ws_col: 132, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, size).unwrap();
    assert_eq!(read_bytes(client.stdout.as_mut().unwrap(), 8).await, b"132 40\r\n");

    let mut plan = pod.plan(&["cat"]);
    (plan.process.terminal, plan.stdio.stdin, plan.stdio.stdin_once) = (true, true, true);
    pod.start_container(&plan).await.unwrap();
    for _ in 0..2 {
        let mut client = pod.attach(&plan.id, [true, true, false]).await.unwrap();
        assert!(client.attached.terminal && !client.attached.stdin_closed, "a terminal is there for everybody");
        File::from(client.attached.input.take().unwrap()).write_all(b"hello\n").unwrap();
        let echo = read_bytes(client.stdout.as_mut().unwrap(), 14).await;
        assert_eq!(echo, b"hello\r\nhello\r\n");
    }
    pod.stop().await;
}

#[tokio::test]
async fn the_end_of_a_container_ends_its_clients_after_all_its_output() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let id = with_stdin(&mut pod, &["streams", "2000"], false).await;
    let mut client = pod.attach(&id, [true, true, true]).await.unwrap();
    let only_errors = pod.attach(&id, [false, false, true]).await.unwrap();
    let (stdout, stderr) = (client.stdout.take().unwrap(), client.stderr.take().unwrap());
    File::from(client.attached.input.take().unwrap()).write_all(b"x").unwrap();
    let lines = |name: &str| (0..2000).map(|i| format!("{name} {i}\n")).collect::<String>().into_bytes();
    let (stdout, stderr, errors) =
        tokio::join!(read_to_end(stdout), read_to_end(stderr), read_to_end(only_errors.stderr.unwrap()));
    assert!(stdout == lines("out") && stderr == lines("err") && errors == lines("err"));
    assert_eq!(pod.exit_of(&id).await.code, 0);
    // Both are told before the exit is.
    for id in [client.id, only_errors.id] {
        assert!(pod.heard().contains(&Event::AttachEnded { attach: id, fell_behind: false }), "{:?}", pod.heard());
    }
    let error = pod.attach(&id, [false, true, false]).await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    assert!(error.message.contains(id.as_str()) && error.message.contains("has ended"), "{error}");
    pod.stop().await;
}

#[tokio::test]
async fn outputs_that_end_before_the_container_end_the_attach() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (id, _) = pod.run(&["quiet", "600000"]).await;
    let early = pod.attach(&id, [false, true, true]).await.unwrap();
    assert!(!pod.end_of(early.id).await);
    let late = pod.attach(&id, [false, true, true]).await.unwrap();
    assert!(!pod.end_of(late.id).await);
    assert_eq!(read_to_end(late.stdout.unwrap()).await, b"");
    assert!(pod.client.list_containers().await.unwrap().containers[0].0.exit.is_none());
    pod.stop().await;
}

#[tokio::test]
async fn what_a_child_prints_after_the_end_is_for_the_log_alone() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let mut plan = pod.plan(&["background", "600", "1"]);
    // In a PID namespace of its own the child would end with its parent.
    (plan.pid_ns, plan.stdio.stdin) = (knarr_model::plan::Namespace::Host, true);
    pod.start_container(&plan).await.unwrap();
    let mut client = pod.attach(&plan.id, [true, true, false]).await.unwrap();
    File::from(client.attached.input.take().unwrap()).write_all(b"x").unwrap();
    pod.exit_of(&plan.id).await;
    assert!(pod.heard().contains(&Event::AttachEnded { attach: client.id, fell_behind: false }));
    assert_eq!(read_to_end(client.stdout.unwrap()).await, b"parent\n");
    until("the child's line", || output(&pod.log(&plan.id), Stream::Stdout) == "parent\nchild\n").await;
    pod.stop().await;
}

#[tokio::test]
async fn a_terminal_that_a_client_still_holds_costs_the_shim_no_time() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let mut plan = pod.plan(&["sleep", "300"]);
    plan.process.terminal = true;
    pod.start_container(&plan).await.unwrap();
    let client = pod.attach(&plan.id, [false, true, false]).await.unwrap();
    let master = client.attached.input.unwrap();
    assert_eq!(pod.exit_of(&plan.id).await.code, 0);
    assert!(!pod.end_of(client.id).await);
    let before = cpu_ticks(&pod);
    tokio::time::sleep(Duration::from_millis(500)).await;
    pod.client.forget_container(plan.id).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    // A loop over an event that does not go away would have taken a hundred.
    assert!(cpu_ticks(&pod) - before < 20, "the shim is busy");
    drop(master);
    pod.stop().await;
}

#[tokio::test]
async fn clients_go_with_their_daemon_and_the_next_is_told_nothing_of_them() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let id = with_stdin(&mut pod, &["numbers", "1"], false).await;
    let before = pod.settled_descriptors().await;
    let gone = pod.attach(&id, [false, true, true]).await.unwrap();
    let mut kept = pod.attach(&id, [true, true, false]).await.unwrap();
    assert_eq!(pod.settled_descriptors().await, before + 3);
    drop(gone);
    let mut pod = pod.reconnect().await;
    until("only what is still read is left", || pod.descriptors() == before + 1).await;
    // Not even by a client that has the same name.
    let stdout = kept.stdout.take().unwrap();
    let mut input = File::from(kept.attached.input.take().unwrap());
    input.write_all(b"x").unwrap();
    drop(input);
    until("it is passed on", || !pod.log(&id).is_empty()).await;
    let (our_end, end) = rustix::pipe::pipe().unwrap();
    pod.client.attach(id.clone(), kept.id, false, Some(end), None).await.unwrap();
    let state = pod.client.list_containers().await.unwrap();
    let pidfd = state.containers[0].1.as_ref().unwrap();
    rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::KILL).unwrap();
    pod.exit_of(&id).await;
    assert_eq!(read_to_end(stdout).await, b"0000000\n");
    drop(our_end);
    let ends = pod.heard().iter().filter(|event| matches!(event, Event::AttachEnded { .. })).count();
    assert_eq!(ends, 1, "{:?}", pod.heard());
    pod.stop().await;
}

#[tokio::test]
async fn an_attach_that_cannot_be_is_refused_and_says_why() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let nobody = ContainerId::from_bytes(&[7; 32]);
    let error = pod.attach(&nobody, [false, true, false]).await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition);
    assert!(error.message.contains(nobody.as_str()) && error.message.contains("not known"), "{error}");

    let mut plan = pod.plan(&["sleep", "600000"]);
    plan.process.terminal = true;
    pod.start_container(&plan).await.unwrap();
    let error = pod.attach(&plan.id, [false, true, true]).await.err().unwrap();
    assert!(error.message.contains("has a terminal"), "{error}");

    let file: OwnedFd = tempfile::tempfile().unwrap().into();
    let error = pod.client.attach(plan.id.clone(), AttachId(0), false, Some(file), None).await.unwrap_err();
    assert!(error.message.contains("take the pipe for stdout"), "{error}");

    let (id, _) = pod.run(&["sleep", "600000"]).await;
    let before = pod.settled_descriptors().await;
    let mut clients = Vec::new();
    for _ in 0..256 {
        clients.push(pod.attach(&id, [false, true, false]).await.unwrap());
    }
    assert_eq!(pod.settled_descriptors().await, before + 256);
    let error = pod.attach(&plan.id, [true, true, false]).await.err().unwrap();
    assert_eq!(error.kind, ErrorKind::ResourceExhausted);
    assert!(error.message.contains("256 clients"), "{error}");
    clients.pop();
    until("one is gone", || pod.descriptors() == before + 255).await;
    pod.attach(&plan.id, [false, true, false]).await.unwrap();
    pod.stop().await;
}

#[tokio::test]
async fn processes_do_not_inherit_the_shims_own_limit_of_open_files() {
    needs_root!();
    let directory = tempfile::tempdir().unwrap();
    let limited = directory.path().join("limited");
    compile(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shim/limited.c"), &limited);
    let mut pod = TestPod::of_executable(&limited).await;
    pod.set_up().await.unwrap();
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", pod.client.shim().pid)).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let [soft, hard] = [3, 4].map(|word| line.split_whitespace().nth(word).unwrap().to_owned());
    assert_eq!(soft, hard.parse::<u64>().unwrap().min(4096).to_string());

    let (id, _) = pod.run(&["nofile"]).await;
    pod.exit_of(&id).await;
    assert_eq!(output(&pod.log(&id), Stream::Stdout), format!("1000 {hard}\n"));
    let mut plan = pod.plan(&["nofile"]);
    plan.process.rlimits = vec![knarr_model::plan::Rlimit { resource: 7, soft: 300, hard: 400 }];
    pod.start_container(&plan).await.unwrap();
    pod.exit_of(&plan.id).await;
    assert_eq!(output(&pod.log(&plan.id), Stream::Stdout), "300 400\n", "what a plan says holds");

    let (id, _) = pod.run(&["sleep", "600000"]).await;
    let (_, _, _, stdout) = pod.exec(&id, &["nofile"]).await;
    assert_eq!(read_to_end(stdout).await, format!("1000 {hard}\n").into_bytes());
    pod.stop().await;
}

/// A container with a pipe to its stdin.
pub async fn with_stdin(pod: &mut TestPod, args: &[&str], once: bool) -> ContainerId {
    let mut plan = pod.plan(args);
    (plan.stdio.stdin, plan.stdio.stdin_once) = (true, once);
    pod.start_container(&plan).await.unwrap();
    plan.id
}

/// The lines that `numbers` prints.
pub fn numbers(range: std::ops::Range<usize>) -> Vec<u8> {
    range.map(|number| format!("{number:07}\n")).collect::<String>().into_bytes()
}

async fn read_bytes(from: &mut File, count: usize) -> Vec<u8> {
    let mut from = from.try_clone().unwrap();
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = vec![0; count];
        from.read_exact(&mut bytes).map(|()| bytes)
    });
    tokio::time::timeout(SOON, read).await.expect("all of it").unwrap().unwrap()
}

pub async fn read_to_end(mut from: File) -> Vec<u8> {
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        from.read_to_end(&mut bytes).map(|_| bytes)
    });
    tokio::time::timeout(SOON, read).await.expect("the end").unwrap().unwrap()
}

fn resident_kib(pod: &TestPod) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", pod.client.shim().pid)).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// CPU time of the shim, in hundredths of a second.
fn cpu_ticks(pod: &TestPod) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pod.client.shim().pid)).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    after_name.split_whitespace().skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum()
}
