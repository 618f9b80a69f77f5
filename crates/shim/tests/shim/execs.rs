//! Execs: the shim starts and reaps them; their pipes are the daemon's alone.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use knarr_daemon::shim_client::StartError;
use knarr_model::plan::FdIndex;
use rustix::process::Signal;

use crate::needs_root;
use crate::pod::{TestPod, root_file_system, until};

#[tokio::test]
async fn an_exec_has_the_daemons_pipes_and_nobody_else_holds_them() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (container, _) = pod.run(&["sleep", "60000"]).await;
    let (id, _, mut stdin, mut stdout) = pod.exec(&container, &["cat"]).await;
    stdin.write_all(b"to and fro").unwrap();
    drop(stdin);
    // Both ends come only when the shim keeps no copy.
    let mut text = String::new();
    let reader = tokio::task::spawn_blocking(move || {
        stdout.read_to_string(&mut text).unwrap();
        text
    });
    assert_eq!(reader.await.unwrap(), "to and fro");
    assert_eq!(pod.exec_exit_of(id).await.code, 0);
    pod.stop().await;
}

#[tokio::test]
async fn an_exec_can_have_a_terminal() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (container, _) = pod.run(&["sleep", "60000"]).await;
    let mut plan = pod.exec_plan(&container, &["tty"]);
    plan.process.terminal = true;
    let fds = vec![pod.cgroup("exec"), root_file_system()];
    let started = pod.client.exec(plan.clone(), fds).await.unwrap();
    let mut terminal = std::fs::File::from(started.terminal.unwrap());
    let mut text = [0; 64];
    let count = terminal.read(&mut text).unwrap();
    assert_eq!(&text[..count], b"tty 111\r\n");
    assert_eq!(pod.exec_exit_of(plan.id).await.code, 0);
    pod.stop().await;
}

#[tokio::test]
async fn an_exec_in_a_container_that_has_ended_fails() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (container, _) = pod.run(&["exit", "0"]).await;
    pod.exit_of(&container).await;
    let plan = pod.exec_plan(&container, &["exit", "0"]);
    let fds = vec![pod.cgroup("exec"), root_file_system()];
    match pod.client.exec(plan, fds).await {
        Err(StartError::Failed(failure)) => assert_eq!(failure.errno, rustix::io::Errno::SRCH.raw_os_error()),
        other => panic!("{other:?}"),
    }
    pod.stop().await;
}

#[tokio::test]
async fn a_descriptor_that_was_not_sent_is_refused() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (container, _) = pod.run(&["sleep", "60000"]).await;
    let mut plan = pod.exec_plan(&container, &["exit", "0"]);
    plan.stdout = Some(FdIndex(77));
    let fds = vec![pod.cgroup("exec"), root_file_system()];
    assert!(pod.client.exec(plan, fds).await.is_err());
    pod.client.ping().await.unwrap();
    pod.stop().await;
}

#[tokio::test]
async fn an_exec_ends_some_seconds_after_its_daemon() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (container, _) = pod.run(&["sleep", "60000"]).await;
    let (_, exec, _stdin, _stdout) = pod.exec(&container, &["sleep", "60000"]).await;
    let alive = || rustix::process::pidfd_send_signal(&exec.pidfd, Signal::CONT).is_ok();
    let gone = Instant::now();
    let pod = pod.reconnect().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(alive(), "what is about to finish may finish");
    until("the exec ends", || !alive()).await;
    assert!(gone.elapsed() < Duration::from_secs(8));
    assert!(pod.client.list_containers().await.unwrap().containers[0].0.exit.is_none(), "the container goes on");
    pod.stop().await;
}
