//! What containers print is in their logs, all of it and in order.

use std::time::{Duration, Instant};

use knarr_model::ErrorKind;
use knarr_wire::cri_log::{Stream, parse};

use crate::needs_root;
use crate::pod::{SOON, TestPod, detached_tmpfs, output, path_of, until};

#[tokio::test]
async fn a_fast_writer_loses_no_line() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (id, _) = pod.run(&["lines", "100000"]).await;
    assert_eq!(pod.exit_of(&id).await.code, 0);
    // The end is told after the last line is in the log: nothing is waited for here.
    let log = pod.log(&id);
    for (stream, name) in [(Stream::Stdout, "out"), (Stream::Stderr, "err")] {
        let expected: String = (0..100_000).map(|i| format!("{name} {i}\n")).collect();
        assert!(output(&log, stream) == expected, "{name} differs");
    }
    pod.stop().await;
}

#[tokio::test]
async fn an_empty_log_is_there_when_the_start_returns() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (id, _) = pod.run(&["sleep", "10000"]).await;
    assert_eq!(pod.log(&id), b"");
    pod.stop().await;
}

#[tokio::test]
async fn a_prompt_is_seen_before_its_line_ends() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (id, _) = pod.run(&["prompt", "10000"]).await;
    until("the prompt", || !pod.log(&id).is_empty()).await;
    let log = pod.log(&id);
    let record = parse(log.strip_suffix(b"\n").unwrap()).unwrap();
    assert_eq!((record.content, record.partial), (&b"name? "[..], true));
    pod.stop().await;
}

#[tokio::test]
async fn rotation_loses_no_line() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (id, _) = pod.run(&["ticks", "300", "2"]).await;
    let path = pod.log_path(&id);
    let mut rotated = Vec::new();
    for n in 0..4 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        rotated.push(path.with_extension(n.to_string()));
        std::fs::rename(&path, &rotated[n]).unwrap();
        pod.client.reopen_log(id.clone()).await.unwrap();
        assert!(path.exists(), "the new log is there when the call returns");
    }
    pod.exit_of(&id).await;
    let whole: Vec<u8> = rotated.iter().chain([&path]).flat_map(|path| std::fs::read(path).unwrap()).collect();
    assert_eq!(output(&whole, Stream::Stdout), (0..300).map(|i| format!("{i}\n")).collect::<String>());
    pod.stop().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_reopened_goes_on_in_the_old_file() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let logs = tempfile::tempdir().unwrap();
    let mut plan = pod.plan(&["ticks", "1000", "5"]);
    let path = logs.path().join("sub/0.log");
    std::fs::create_dir(logs.path().join("sub")).unwrap();
    plan.stdio.log_path = path.clone().into_os_string().into_encoded_bytes();
    pod.start_container(&plan).await.unwrap();
    until("output", || std::fs::metadata(&path).unwrap().len() > 0).await;

    std::fs::rename(logs.path().join("sub"), logs.path().join("moved")).unwrap();
    let error = pod.client.reopen_log(plan.id.clone()).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::FailedPrecondition, "{error}");
    assert!(!logs.path().join("sub").exists());
    let old = logs.path().join("moved/0.log");
    let length = std::fs::metadata(&old).unwrap().len();
    until("more output", || std::fs::metadata(&old).unwrap().len() > length).await;
    pod.stop().await;
}

#[tokio::test]
async fn a_full_disk_delays_lines_and_loses_none() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let disk = detached_tmpfs("128k");
    let ballast = path_of(&disk).join("ballast");
    std::fs::write(&ballast, vec![0; 96 << 10]).unwrap();
    let mut plan = pod.plan(&["lines", "800"]);
    let path = path_of(&disk).join("0.log");
    plan.stdio.log_path = path.clone().into_os_string().into_encoded_bytes();
    pod.start_container(&plan).await.unwrap();
    until("the disk is full", || std::fs::metadata(&path).unwrap().len() >= 32 << 10).await;
    let complaint = pod.directory.path().join("shim.log");
    until("a complaint", || std::fs::read_to_string(&complaint).unwrap().contains("No space left")).await;
    // The end is told even so: the log must not keep a pod from being stopped.
    assert_eq!(pod.exit_of(&plan.id).await.code, 0);

    std::fs::remove_file(&ballast).unwrap();
    let expected: String = (0..800).map(|i| format!("out {i}\n")).collect();
    until("the log is whole", || {
        let log = std::fs::read(&path).unwrap();
        log.ends_with(b"\n") && output(&log, Stream::Stdout) == expected
    })
    .await;
    pod.stop().await;
}

#[tokio::test]
async fn what_a_child_in_the_background_prints_is_logged_after_the_exit() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let mut plan = pod.plan(&["background", "600"]);
    // In a PID namespace of its own the child would end with its parent.
    plan.pid_ns = knarr_model::plan::Namespace::Host;
    let begin = Instant::now();
    pod.start_container(&plan).await.unwrap();
    pod.exit_of(&plan.id).await;
    assert!(begin.elapsed() < Duration::from_millis(500), "the end is told while the child lives");
    assert_eq!(output(&pod.log(&plan.id), Stream::Stdout), "parent\n");
    until("the child's line", || output(&pod.log(&plan.id), Stream::Stdout) == "parent\nchild\n").await;
    pod.stop().await;
}

#[tokio::test]
async fn a_terminal_is_logged_as_stdout() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let mut plan = pod.plan(&["tty"]);
    plan.process.terminal = true;
    pod.start_container(&plan).await.unwrap();
    assert_eq!(pod.exit_of(&plan.id).await.code, 0);
    assert_eq!(output(&pod.log(&plan.id), Stream::Stdout), "tty 111\r\n");
    pod.stop().await;
}

#[tokio::test]
async fn a_user_that_is_not_root_may_open_its_output_by_path() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let mut plan = pod.plan(&["reopen"]);
    (plan.process.uid, plan.process.gid) = (1000, 1000);
    pod.start_container(&plan).await.unwrap();
    assert_eq!(pod.exit_of(&plan.id).await.code, 0);
    assert_eq!(output(&pod.log(&plan.id), Stream::Stdout), "by path\n");
    pod.stop().await;
}

#[tokio::test]
async fn a_log_without_its_directory_fails_the_start() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let mut plan = pod.plan(&["exit", "0"]);
    plan.stdio.log_path = b"/nowhere/at/all/0.log".to_vec();
    let error = pod.start_container(&plan).await.unwrap_err().to_string();
    assert!(error.contains("open log") && error.contains("/nowhere/at/all/0.log"), "{error}");
    assert!(pod.client.list_containers().await.unwrap().containers.is_empty());
    tokio::time::timeout(SOON, pod.stop()).await.unwrap();
}
