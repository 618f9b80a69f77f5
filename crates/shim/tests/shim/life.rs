//! Containers and the shim itself: how they begin and end, and what is left.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use knarr_daemon::shim_client::sealed_executable;
use knarr_model::ErrorKind;
use knarr_model::plan::Namespace;
use knarr_wire::cri_log::Stream;
use knarr_wire::shim::exit_record::ExitRecord;
use rustix::process::{Pid, Signal};

use crate::needs_root;
use crate::pod::{TestPod, output, until};

#[tokio::test]
async fn an_exit_code_and_a_signal_are_told() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (id, _) = pod.run(&["exit", "7"]).await;
    let exit = pod.exit_of(&id).await;
    assert_eq!((exit.code, exit.signal), (7, None));

    let (id, started) = pod.run(&["sleep", "60000"]).await;
    rustix::process::pidfd_send_signal(&started.pidfd, Signal::KILL).unwrap();
    let exit = pod.exit_of(&id).await;
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    assert!(exit.finished_at >= started.started_at);
    pod.stop().await;
}

#[tokio::test]
async fn an_exit_record_is_on_disk_until_it_is_forgotten() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (id, started) = pod.run(&["exit", "3"]).await;
    let exit = pod.exit_of(&id).await;
    let path = pod.directory.path().join("exits").join(id.as_str());
    let record = ExitRecord::parse(&std::fs::read(&path).unwrap());
    assert_eq!(record, Some(ExitRecord { started_at: started.started_at, exit }));

    pod.client.forget_container(id.clone()).await.unwrap();
    assert!(!path.exists());
    assert!(pod.client.list_containers().await.unwrap().containers.is_empty());
    assert_eq!(pod.client.forget_container(id).await.unwrap_err().kind, ErrorKind::FailedPrecondition);
    pod.stop().await;
}

#[tokio::test]
async fn a_running_container_is_not_forgotten_nor_started_twice() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let plan = pod.plan(&["sleep", "60000"]);
    pod.start_container(&plan).await.unwrap();
    assert!(pod.client.forget_container(plan.id.clone()).await.is_err());
    let fds = vec![crate::pod::root_file_system(), pod.cgroup("second")];
    assert!(pod.client.start_container(plan.clone(), fds).await.is_err());
    assert_eq!(pod.client.list_containers().await.unwrap().containers.len(), 1);
    pod.stop().await;
}

#[tokio::test]
async fn a_program_that_is_not_there_fails_the_start() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let mut plan = pod.plan(&[]);
    plan.process.args = vec![b"/missing".to_vec()];
    let error = pod.start_container(&plan).await.unwrap_err().to_string();
    assert!(error.contains("No such file"), "{error}");
    assert!(pod.log_path(&plan.id).exists(), "kubelet looks for the log of a container that did not start");
    assert!(pod.client.list_containers().await.unwrap().containers.is_empty());
    pod.stop().await;
}

#[tokio::test]
async fn an_environment_of_more_than_a_mebibyte_arrives() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let mut plan = pod.plan(&["environment"]);
    plan.process.env = (0..12).map(|n| format!("V{n:03}={}", "x".repeat(99_995)).into_bytes()).collect();
    pod.start_container(&plan).await.unwrap();
    assert_eq!(pod.exit_of(&plan.id).await.code, 0);
    assert_eq!(output(&pod.log(&plan.id), Stream::Stdout), "1200000\n");
    pod.stop().await;
}

#[tokio::test]
async fn the_end_of_the_pods_init_is_told_and_is_the_end_of_its_containers() {
    needs_root!();
    let mut pod = TestPod::without_pod().await;
    let up = pod.set_up_with(|plan| plan.shared_pid = true).await.unwrap();
    let mut plan = pod.plan(&["sleep", "60000"]);
    plan.pid_ns = Namespace::Pod;
    pod.start_container(&plan).await.unwrap();
    rustix::process::pidfd_send_signal(up.pid_init.unwrap(), Signal::KILL).unwrap();
    assert_eq!(pod.exit_of_pod_init().await.code, 137);
    assert_eq!(pod.exit_of(&plan.id).await.code, 137);
    assert!(pod.client.list_containers().await.unwrap().pod.unwrap().pid_init.is_none());
    pod.stop().await;
}

#[tokio::test]
async fn a_pods_init_ends_with_the_shim() {
    needs_root!();
    let pod = TestPod::without_pod().await;
    let up = pod.set_up_with(|plan| plan.shared_pid = true).await.unwrap();
    pod.stop().await;
    assert!(rustix::process::pidfd_send_signal(up.pid_init.unwrap(), Signal::KILL).is_err());
}

#[tokio::test]
async fn a_container_can_share_the_processes_of_another() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (target, _) = pod.run(&["sleep", "60000"]).await;
    let mut plan = pod.plan(&["sleep", "60000"]);
    plan.pid_ns = Namespace::Of(target.clone());
    let started = pod.start_container(&plan).await.unwrap();
    let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    let state = pod.client.list_containers().await.unwrap();
    let (entry, pidfd) = state.containers.iter().find(|(entry, _)| entry.id == target).unwrap();
    assert_eq!(namespace(started.pid), namespace(entry.pid));

    rustix::process::pidfd_send_signal(pidfd.as_ref().unwrap(), Signal::KILL).unwrap();
    pod.exit_of(&target).await;
    assert_eq!(pod.exit_of(&plan.id).await.code, 137);
    let mut plan = pod.plan(&["exit", "0"]);
    plan.pid_ns = Namespace::Of(target);
    assert!(pod.start_container(&plan).await.is_err(), "the other is gone");
    pod.stop().await;
}

#[tokio::test]
async fn stdin_is_empty_unless_it_is_asked_for() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (closed, _) = pod.run(&["cat"]).await;
    assert_eq!(pod.exit_of(&closed).await.code, 0);

    let mut plan = pod.plan(&["cat"]);
    plan.stdio.stdin = true;
    pod.start_container(&plan).await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let state = pod.client.list_containers().await.unwrap();
    let (entry, _) = state.containers.iter().find(|(entry, _)| entry.id == plan.id).unwrap();
    assert!(entry.exit.is_none() && entry.stdin_open);
    pod.stop().await;
}

#[tokio::test]
async fn a_container_starts_with_a_clean_slate_of_signals() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (id, _) = pod.run(&["signals"]).await;
    pod.exit_of(&id).await;
    assert_eq!(output(&pod.log(&id), Stream::Stdout), "clean\n");
    pod.stop().await;
}

#[tokio::test]
async fn two_hundred_containers_one_after_the_other_leave_nothing_in_the_shim() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let shim = pod.client.shim().pid;
    let descriptors = || std::fs::read_dir(format!("/proc/{shim}/fd")).unwrap().count();
    let mut before = 0;
    for n in 0..200 {
        let (id, _) = pod.run(&["exit", "0"]).await;
        assert_eq!(pod.exit_of(&id).await.code, 0);
        pod.client.forget_container(id).await.unwrap();
        if n == 0 {
            before = descriptors();
        }
    }
    assert_eq!(descriptors(), before);
    let tasks = std::fs::read_dir(format!("/proc/{shim}/task")).unwrap().count();
    assert_eq!(tasks, 1, "the shim has one thread");
    let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
    assert_eq!(children, "", "no zombie is left");
    pod.stop().await;
}

#[tokio::test]
async fn a_shutdown_is_refused_while_a_container_runs_unless_forced() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (_, started) = pod.run(&["sleep", "60000"]).await;
    let shim = pod.client.shim().pid;
    assert_eq!(pod.client.shutdown(false).await.unwrap_err().kind, ErrorKind::FailedPrecondition);
    pod.client.ping().await.unwrap();

    pod.client.shutdown(true).await.unwrap();
    assert!(rustix::process::pidfd_send_signal(&started.pidfd, Signal::KILL).is_err(), "the container is gone");
    until("the shim ends", || !Path::new(&format!("/proc/{shim}")).exists()).await;
    assert!(!pod.directory.path().join("shim.sock").exists());
    assert!(pod.client.ping().await.is_err());
}

#[tokio::test]
async fn sigterm_ends_a_shim_only_without_containers() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (id, started) = pod.run(&["sleep", "60000"]).await;
    let shim = pod.client.shim().pid;
    let pid = Pid::from_raw(shim as i32).unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::PIPE, Signal::USR1] {
        rustix::process::kill_process(pid, signal).unwrap();
    }
    pod.client.ping().await.unwrap();
    rustix::process::pidfd_send_signal(&started.pidfd, Signal::KILL).unwrap();
    pod.exit_of(&id).await;
    rustix::process::kill_process(pid, Signal::TERM).unwrap();
    until("the shim ends", || !Path::new(&format!("/proc/{shim}")).exists()).await;
}

#[tokio::test]
async fn the_hosts_binary_cannot_be_written_through_the_shim() {
    needs_root!();
    // A file of its own: the one that other tests execute meanwhile would be busy.
    let copy = tempfile::tempdir().unwrap();
    let path = copy.path().join("knarr-shim");
    std::fs::copy(env!("CARGO_BIN_EXE_knarr-shim"), &path).unwrap();
    let pod = TestPod::of_executable(&path).await;
    let shim = pod.client.shim().pid;
    let exe = std::fs::File::open(format!("/proc/{shim}/exe")).unwrap();
    pod.stop().await;
    until("the shim ends", || !Path::new(&format!("/proc/{shim}")).exists()).await;
    // Nobody executes it now, so what refuses is the mount.
    let again = std::fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", exe.as_raw_fd()));
    assert_eq!(again.unwrap_err().raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
}

#[test]
fn a_sealed_executable_is_not_in_the_mount_table() {
    needs_root!();
    let before = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let _exe = sealed_executable(Path::new(env!("CARGO_BIN_EXE_knarr-shim"))).unwrap();
    assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), before);
}
