//! Daemons come, go, stop reading and send nonsense; the shim goes on.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use knarr_daemon::shim_client::{ShimClient, sealed_executable};
use knarr_model::ErrorKind;
use knarr_wire::cri_log::Stream;
use knarr_wire::shim::codec::encode;
use knarr_wire::shim::{Kind, Request, split};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, Signal};

use crate::needs_root;
use crate::pod::{SOON, TestPod, output, until};

#[tokio::test]
async fn an_exit_without_a_daemon_is_known_to_the_next() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (ended, _) = pod.run(&["sleep", "100", "5"]).await;
    let (running, started) = pod.run(&["sleep", "60000"]).await;
    let (id, record) = (pod.id.clone(), pod.directory.path().join("exits").join(ended.as_str()));
    assert!(!record.exists(), "it still runs");
    let mut pod = pod.reconnect_when("the record is written", || record.exists()).await;
    assert_eq!(pod.client.shim().pod, Some(id));

    let state = pod.client.list_containers().await.unwrap();
    let namespaces = state.pod.unwrap();
    assert!(namespaces.net.is_some() && namespaces.ipc.is_some() && namespaces.uts.is_some());
    assert_eq!(state.containers.len(), 2);
    for (entry, pidfd) in state.containers {
        if entry.id == ended {
            assert_eq!((entry.exit.unwrap().code, pidfd.is_none()), (5, true));
        } else {
            assert_eq!((entry.id, entry.pid, entry.exit), (running.clone(), started.pid, None));
            rustix::process::pidfd_send_signal(pidfd.unwrap(), Signal::KILL).unwrap();
        }
    }
    assert_eq!(pod.exit_of(&running).await.code, 137);
    pod.stop().await;
}

#[tokio::test]
async fn the_log_has_no_hole_where_the_daemon_was_away() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (id, _) = pod.run(&["ticks", "300", "2"]).await;
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_millis(60)).await;
        pod = pod.reconnect().await;
    }
    let path = pod.log_path(&id);
    let expected: String = (0..300).map(|i| format!("{i}\n")).collect();
    until("all lines", || output(&std::fs::read(&path).unwrap(), Stream::Stdout) == expected).await;
    pod.stop().await;
}

#[tokio::test]
async fn a_shim_that_is_killed_fails_what_is_under_way_and_ends_the_events() {
    needs_root!();
    let mut pod = TestPod::without_pod().await;
    let shim = Pid::from_raw(pod.client.shim().pid as i32).unwrap();
    rustix::process::kill_process(shim, Signal::STOP).unwrap();
    let client = pod.client.clone();
    let call = tokio::spawn(async move { client.ping().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    rustix::process::kill_process(shim, Signal::KILL).unwrap();
    let error = tokio::time::timeout(SOON, call).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert_eq!(tokio::time::timeout(SOON, pod.events.next()).await.unwrap(), None);
    assert_eq!(pod.client.ping().await.unwrap_err().kind, ErrorKind::Unavailable);
    let process = format!("/proc/{}", shim.as_raw_nonzero());
    until("the shim is reaped", || !Path::new(&process).exists()).await;
    assert_eq!(ShimClient::connect(&pod.id, pod.directory.path()).await.unwrap_err().kind, ErrorKind::Unavailable);
}

#[tokio::test]
async fn the_newest_daemon_takes_the_place_of_the_one_before() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (second, _events) = ShimClient::connect(&pod.id, pod.directory.path()).await.unwrap();
    assert_eq!(tokio::time::timeout(SOON, pod.events.next()).await.unwrap(), None, "the first is disconnected");
    second.ping().await.unwrap();
    assert!(pod.client.ping().await.is_err());
    second.shutdown(true).await.unwrap();
}

#[tokio::test]
async fn a_daemon_that_does_not_read_is_cut_off_and_the_containers_are_not() {
    needs_root!();
    let mut pod = TestPod::start().await;
    let (id, _) = pod.run(&["ticks", "400", "5"]).await;
    let socket = raw_connection(pod.directory.path());
    let body = encode(&Request::ListContainers).unwrap();
    let packet = split(Kind::Request, 1, &body, 0).unwrap().remove(0);
    // Replies that nobody reads: the sending must end in an error, not in waiting.
    let mut sent = 0;
    let error = loop {
        match knarr_sys::fd_passing::send(socket.as_fd(), &packet, &[], SendFlags::DONTWAIT) {
            Ok(()) => sent += 1,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => break error,
        }
        assert!(sent < 1_000_000, "the shim takes requests for ever");
    };
    assert!(matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::PIPE | Errno::CONNRESET)));

    let pod = pod.reconnect().await;
    let path = pod.log_path(&id);
    let expected: String = (0..400).map(|i| format!("{i}\n")).collect();
    until("all lines", || output(&std::fs::read(&path).unwrap(), Stream::Stdout) == expected).await;
    pod.stop().await;
}

#[tokio::test]
async fn nonsense_ends_the_connection_and_not_the_shim() {
    needs_root!();
    let pod = TestPod::start().await;
    for nonsense in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], b"kn"] {
        let socket = raw_connection(pod.directory.path());
        knarr_sys::fd_passing::send(socket.as_fd(), nonsense, &[], SendFlags::empty()).unwrap();
        let (mut buffer, mut fds) = (Vec::new(), Vec::new());
        assert_eq!(knarr_sys::fd_passing::receive(socket.as_fd(), &mut buffer, &mut fds).unwrap(), 0);
    }
    // A request from the future is answered.
    let socket = raw_connection(pod.directory.path());
    let packet = split(Kind::Request, 1, &[1, 0, 0, 0, 250], 0).unwrap().remove(0);
    knarr_sys::fd_passing::send(socket.as_fd(), &packet, &[], SendFlags::empty()).unwrap();
    let (mut buffer, mut fds) = (Vec::new(), Vec::new());
    assert!(knarr_sys::fd_passing::receive(socket.as_fd(), &mut buffer, &mut fds).unwrap() > 0);
    assert!(String::from_utf8_lossy(&buffer).contains("unknown to this version"));
    drop(socket);
    pod.reconnect().await.stop().await;
}

#[tokio::test]
async fn a_pod_has_one_shim() {
    needs_root!();
    let pod = TestPod::start().await;
    let exe = sealed_executable(Path::new(env!("CARGO_BIN_EXE_knarr-shim"))).unwrap();
    let error = ShimClient::spawn(exe.as_fd(), &pod.id, pod.directory.path(), None).await.unwrap_err();
    assert!(error.message.contains("already"), "{error}");
    pod.reconnect().await.stop().await;
}

#[tokio::test]
async fn a_socket_that_a_dead_shim_has_left_is_in_nobodys_way() {
    needs_root!();
    let pod = TestPod::start().await;
    let shim = Pid::from_raw(pod.client.shim().pid as i32).unwrap();
    rustix::process::kill_process(shim, Signal::KILL).unwrap();
    until("the connection is lost", || pod.client.is_closed()).await;
    assert!(pod.directory.path().join("shim.sock").exists());
    let exe = sealed_executable(Path::new(env!("CARGO_BIN_EXE_knarr-shim"))).unwrap();
    let (client, _events) = ShimClient::spawn(exe.as_fd(), &pod.id, pod.directory.path(), None).await.unwrap();
    client.shutdown(false).await.unwrap();
}

#[tokio::test]
async fn many_calls_overlap() {
    needs_root!();
    let pod = TestPod::start().await;
    let calls: Vec<_> = (0..200)
        .map(|_| {
            let client = pod.client.clone();
            tokio::spawn(async move { client.list_containers().await.map(|state| state.pod.is_some()) })
        })
        .collect();
    for call in calls {
        assert!(call.await.unwrap().unwrap());
    }
    pod.stop().await;
}

#[tokio::test]
async fn a_pod_is_set_up_once() {
    needs_root!();
    let pod = TestPod::without_pod().await;
    assert!(pod.client.list_containers().await.unwrap().pod.is_none());
    let up = pod.set_up().await.unwrap();
    assert!(up.net.is_some() && up.pid.is_none());
    assert!(pod.set_up().await.is_err());
    pod.stop().await;
}

fn raw_connection(directory: &Path) -> OwnedFd {
    let directory = std::fs::File::open(directory).unwrap();
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/shim.sock", directory.as_raw_fd())).unwrap();
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::connect(&socket, &address).unwrap();
    socket
}
