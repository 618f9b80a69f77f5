//! A pod with a user namespace: the shim keeps it and hands it to every daemon.

use knarr_model::{IdMap, UserNamespace};

use crate::needs_root;
use crate::pod::TestPod;

const IDS: IdMap = IdMap { host: 300_000, container: 0, length: 65_536 };

#[tokio::test]
async fn the_pods_user_namespace_is_handed_to_every_daemon() {
    needs_root!();
    let pod = TestPod::without_pod().await;
    let up = pod.set_up_with(|plan| plan.user = Some(UserNamespace { uids: IDS, gids: IDS })).await.unwrap();
    let inode = |fd: &std::os::fd::OwnedFd| rustix::fs::fstat(fd).unwrap().st_ino;
    let users = inode(&up.user.unwrap());
    let owner = knarr_sys::namespace::owner(up.net.unwrap()).unwrap();
    assert_eq!(inode(&owner), users, "what else the pod has belongs to it");
    let mut pod = pod.reconnect().await;
    let known = pod.client.list_containers().await.unwrap().pod.unwrap();
    assert_eq!(inode(&known.user.unwrap()), users);

    let (container, started) = pod.run(&["sleep", "60000"]).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", started.pid)).unwrap();
    assert!(status.contains("Uid:\t300000\t300000\t300000\t300000"), "{status}");
    let (exec, started, stdin, _) = pod.exec(&container, &["cat"]).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", started.pid)).unwrap();
    assert!(status.contains("Uid:\t300000\t300000\t300000\t300000"), "{status}");
    drop(stdin);
    assert_eq!(pod.exec_exit_of(exec).await.code, 0);
    pod.stop().await;
}

#[tokio::test]
async fn a_pod_without_one_has_none_to_hand_over() {
    needs_root!();
    let pod = TestPod::without_pod().await;
    assert!(pod.set_up().await.unwrap().user.is_none());
    pod.stop().await;
}

#[test]
fn whether_there_can_be_one_is_tried() {
    needs_root!();
    let shim = env!("CARGO_BIN_EXE_knarr-shim");
    let tried = |directory: &str| {
        let argument = knarr_wire::shim::PROBE_USER_NAMESPACES;
        std::process::Command::new(shim).args([argument, directory]).output().unwrap()
    };
    // What procfs has is not for anybody to be given.
    let on_proc = tried("/proc");
    assert!(!on_proc.status.success());
    let said = String::from_utf8_lossy(&on_proc.stderr).into_owned();
    assert!(said.contains("id-mapped mounts"), "{said}");
    // Elsewhere it depends on the kernel, and is said if it is not possible.
    let directory = tempfile::tempdir().unwrap();
    let there = tried(directory.path().to_str().unwrap());
    assert_eq!(there.status.success(), there.stderr.is_empty(), "{}", String::from_utf8_lossy(&there.stderr));
}
