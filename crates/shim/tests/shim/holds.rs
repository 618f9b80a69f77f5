//! Clients that are slower than their container: how long it waits for them, and what they get after its end.

use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use knarr_model::ContainerId;
use knarr_wire::cri_log::Stream;
use knarr_wire::shim::{AttachId, Event};

use crate::attaches::{numbers, read_to_end, with_stdin};
use crate::needs_root;
use crate::pod::{Client, TestPod, output};

/// Bytes that fit between a container and a client that does not read: the container's pipe, what the shim holds and
/// the client's pipe are 144 KiB.
const HELD_LINES: usize = 16_000;

#[tokio::test]
async fn a_client_that_is_slow_all_the_time_gets_everything_and_so_do_all() {
    needs_root!();
    let lines = 1 << 20;
    let mut pod = TestPod::start().await;
    let id = with_stdin(&mut pod, &["numbers", &lines.to_string()], true).await;
    let mut quick = pod.attach(&id, [true, true, false]).await.unwrap();
    let slow = pod.attach(&id, [false, true, true]).await.unwrap();
    let begin = Instant::now();
    begin_and_end(&mut quick);
    let (seen_quick, seen_slow) = tokio::join!(
        read_to_end(quick.stdout.unwrap()),
        read_at(slow.stdout.unwrap(), 64 << 10, Duration::from_millis(64))
    );
    let took = begin.elapsed();
    let whole = numbers(0..lines);
    assert!(seen_quick == whole && seen_slow == whole, "{} and {} bytes", seen_quick.len(), seen_slow.len());
    assert!(took > Duration::from_secs(6), "the slow one sets the pace: {took:?}");
    assert_eq!(pod.exit_of(&id).await.code, 0);
    for id in [quick.id, slow.id] {
        assert!(!pod.end_of(id).await);
    }
    assert!(output(&pod.log(&id), Stream::Stdout).into_bytes() == whole);
    pod.stop().await;
}

#[tokio::test]
async fn a_client_that_never_reads_holds_its_container_for_two_seconds() {
    needs_root!();
    let lines = 1 << 20;
    let mut pod = TestPod::start().await;
    let id = with_stdin(&mut pod, &["numbers", &lines.to_string()], true).await;
    let mut quick = pod.attach(&id, [true, true, false]).await.unwrap();
    let dead = pod.attach(&id, [false, true, false]).await.unwrap();
    let begin = Instant::now();
    begin_and_end(&mut quick);
    let seen = read_to_end(quick.stdout.unwrap()).await;
    let took = begin.elapsed();
    assert!(took > Duration::from_millis(1900) && took < Duration::from_secs(6), "{took:?}");
    let whole = numbers(0..lines);
    assert!(seen == whole, "{} bytes", seen.len());
    assert!(pod.end_of(dead.id).await, "it fell behind");
    assert!(!pod.end_of(quick.id).await);
    let seen = read_to_end(dead.stdout.unwrap()).await;
    assert!(seen.len() >= 32 << 10 && whole.starts_with(&seen), "{} bytes without a hole", seen.len());
    assert_eq!(pod.exit_of(&id).await.code, 0);
    assert!(output(&pod.log(&id), Stream::Stdout).into_bytes() == whole);
    pod.stop().await;
}

#[tokio::test]
async fn a_client_may_stall_again_and_again() {
    needs_root!();
    let lines = 100_000;
    let mut pod = TestPod::start().await;
    let id = with_stdin(&mut pod, &["numbers", &lines.to_string()], true).await;
    let mut client = pod.attach(&id, [true, true, false]).await.unwrap();
    begin_and_end(&mut client);
    // Longer in all than a client may stall at once.
    let seen = read_at(client.stdout.take().unwrap(), 256 << 10, Duration::from_millis(900)).await;
    assert!(seen == numbers(0..lines), "{} bytes", seen.len());
    assert!(!pod.end_of(client.id).await);
    pod.stop().await;
}

#[tokio::test]
async fn an_exit_is_told_at_once_and_a_slow_client_gets_the_rest() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let before = pod.settled_descriptors().await;
    let (id, mut client) = ended_before_its_client_reads(&mut pod).await;
    assert!(!heard_end_of(&pod, client.id), "it has not got everything");
    let whole = numbers(0..HELD_LINES);
    assert!(output(&pod.log(&id), Stream::Stdout).into_bytes() == whole, "the log waits for nobody");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let seen = read_at(client.stdout.take().unwrap(), 8 << 10, Duration::from_millis(20)).await;
    assert!(seen == whole, "{} bytes", seen.len());
    assert!(!pod.end_of(client.id).await);
    assert_eq!(pod.settled_descriptors().await, before + 2, "the log and the process are left");
    pod.stop().await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_let_go_after_the_exit() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (_, client) = ended_before_its_client_reads(&mut pod).await;
    assert!(pod.end_of(client.id).await, "it fell behind");
    pod.stop().await;
}

#[tokio::test]
async fn the_end_of_the_pod_waits_for_what_clients_are_owed_and_a_forgotten_container_does_not() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (id, forgotten) = ended_before_its_client_reads(&mut pod).await;
    let (_, waited_for) = ended_before_its_client_reads(&mut pod).await;
    let (_, dead) = ended_before_its_client_reads(&mut pod).await;
    pod.client.forget_container(id).await.unwrap();
    assert!(pod.end_of(forgotten.id).await, "it does not get the rest");
    assert!(!heard_end_of(&pod, waited_for.id) && !heard_end_of(&pod, dead.id));
    let read_later = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        read_to_end(waited_for.stdout.unwrap()).await
    };
    let ((), seen) = tokio::join!(pod.stop(), read_later);
    assert!(seen == numbers(0..HELD_LINES), "{} bytes", seen.len());
    assert!(read_to_end(dead.stdout.unwrap()).await.len() < HELD_LINES * 8);
}

#[tokio::test]
async fn a_slow_client_of_a_terminal_sees_the_last_of_it() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let mut plan = pod.plan(&["streams", "6000"]);
    (plan.process.terminal, plan.stdio.stdin) = (true, true);
    pod.start_container(&plan).await.unwrap();
    let mut client = pod.attach(&plan.id, [true, true, false]).await.unwrap();
    File::from(client.attached.input.take().unwrap()).write_all(b"x\n").unwrap();
    let stdout = client.stdout.take().unwrap();
    let reading = tokio::spawn(read_at(stdout, 4096, Duration::from_millis(10)));
    assert_eq!(pod.exit_of(&plan.id).await.code, 0);
    let seen = reading.await.unwrap();
    assert!(!pod.end_of(client.id).await);
    assert!(seen.ends_with(b"err 5999\r\n") && seen == output(&pod.log(&plan.id), Stream::Stdout).into_bytes());
    pod.stop().await;
}

/// A container that has written [`HELD_LINES`] and ended, and a client that has read nothing of them.
async fn ended_before_its_client_reads(pod: &mut TestPod) -> (ContainerId, Client) {
    let id = with_stdin(pod, &["numbers", &HELD_LINES.to_string()], true).await;
    let mut client = pod.attach(&id, [true, true, false]).await.unwrap();
    let begin = Instant::now();
    begin_and_end(&mut client);
    assert_eq!(pod.exit_of(&id).await.code, 0);
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    (id, client)
}

/// Lets a container of a client that has the only copy of its stdin print its numbers once.
fn begin_and_end(client: &mut Client) {
    File::from(client.attached.input.take().unwrap()).write_all(b"x").unwrap();
}

fn heard_end_of(pod: &TestPod, id: AttachId) -> bool {
    pod.heard().iter().any(|event| matches!(event, Event::AttachEnded { attach, .. } if *attach == id))
}

/// Reads so many bytes, then rests, until the end.
async fn read_at(from: File, bytes: usize, rest: Duration) -> Vec<u8> {
    let read = tokio::task::spawn_blocking(move || {
        let mut seen = Vec::new();
        while (&from).take(bytes as u64).read_to_end(&mut seen).unwrap() > 0 {
            std::thread::sleep(rest);
        }
        seen
    });
    tokio::time::timeout(Duration::from_secs(60), read).await.expect("the end").unwrap()
}
