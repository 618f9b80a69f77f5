//! What a container finds in its file system.

use crate::node::{MS_NODEV, MS_NOSUID, MS_RDONLY, Node, bind, capabilities, new_mount, open};
use knarr_model::plan::{DevicePlan, FdIndex, MountKind, MountPlan};
use std::fs;

crate::tests![
    the_usual_file_systems_are_there,
    nothing_of_the_host_is_mounted,
    devices_are_as_planned,
    a_device_of_another_kind_in_the_way_is_refused,
    a_device_that_may_not_be_made_is_taken_from_the_host,
    masked_paths_are_empty,
    readonly_paths_refuse_writes,
    a_read_only_root_refuses_writes_and_its_volumes_do_not,
    a_read_only_tmpfs_holds_what_is_mounted_in_it,
    pod_files_and_links_that_lead_nowhere,
    detached_mounts_are_placed,
    files_and_sockets_can_be_volumes,
    flags_of_volumes_hold,
    the_cgroup_view_is_its_own,
    cgroup2_is_mounted_in_its_own_namespace,
    the_hosts_cgroup_namespace_shows_the_hosts_hierarchies,
    sysctls_of_the_container_cannot_be_written,
];

fn the_usual_file_systems_are_there(node: &mut Node) {
    let container = node.container(&[
        "fstype",
        "/proc",
        "--",
        "fstype",
        "/sys",
        "--",
        "fstype",
        "/dev",
        "--",
        "fstype",
        "/dev/pts",
        "--",
        "fstype",
        "/dev/mqueue",
        "--",
        "fstype",
        "/dev/shm",
        "--",
        "readlink",
        "/dev/ptmx",
        "--",
        "cat",
        "/etc/resolv.conf",
        "--",
        "ls",
        "/dev/pts",
    ]);
    let wanted =
        ["9fa0", "62656572", "1021994", "1cd1", "19800202", "1021994", "pts/ptmx", "nameserver 192.0.2.1", "ptmx"];
    assert_eq!(node.lines(&container), wanted);
}

fn nothing_of_the_host_is_mounted(node: &mut Node) {
    let container = node.container(&["cat", "/proc/self/mountinfo", "--", "ls", "/"]);
    let lines = node.lines(&container);
    let points: Vec<&str> = lines[0].split('|').map(|line| line.split(' ').nth(4).unwrap()).collect();
    for point in &points {
        let known = ["/", "/proc", "/dev", "/sys", "/etc/resolv.conf"];
        assert!(known.iter().any(|top| point == top || point.starts_with(&format!("{top}/"))), "{point} in {points:?}");
    }
    assert_eq!(points[0], "/");
    assert!(!points.iter().any(|point| point.contains("rootfs")), "{points:?}");
    assert!(!lines[0].contains("shared:") && !lines[0].contains("master:"), "{}", lines[0]);
    assert_eq!(lines[1], "bin dev etc proc sys tmp");
}

fn devices_are_as_planned(node: &mut Node) {
    let mut container = node.container(&[
        "stat",
        "/dev/null",
        "--",
        "stat",
        "/dev/sub/odd",
        "--",
        "stat",
        "/dev/fifo",
        "--",
        "write",
        "/dev/null",
        "x",
        "--",
        "readlink",
        "/dev/fd",
    ]);
    let device = |path: &str, kind, major, minor, mode, uid, gid| DevicePlan {
        path: path.as_bytes().to_vec(),
        kind,
        major,
        minor,
        mode,
        uid,
        gid,
    };
    container.plan.devices.push(device("/dev/sub/odd", b'c', 1, 5, 0o600, 7, 8));
    container.plan.devices.push(device("/dev/fifo", b'p', 0, 0, 0o622, 0, 0));
    let wanted = ["char 666 0:0 1:3", "char 600 7:8 1:5", "fifo 622 0:0", "ok", "/proc/self/fd"];
    assert_eq!(node.lines(&container), wanted);
}

fn a_device_of_another_kind_in_the_way_is_refused(node: &mut Node) {
    let root = node.rootfs();
    fs::create_dir(root.join("dev")).unwrap();
    fs::write(root.join("dev/null"), "").unwrap();
    let mut container = node.container_on(&root, &["exit", "0"]);
    container.plan.mounts.retain(|mount| !mount.target.starts_with(b"/dev"));
    let failure = node.failure(&container);
    assert_eq!((failure.step.as_str(), failure.errno, failure.about.as_str()), ("make device", 17, "/dev/null"));
}

fn a_device_that_may_not_be_made_is_taken_from_the_host(node: &mut Node) {
    use std::os::unix::fs::MetadataExt;
    let candidates = ["/dev/ttyS0", "/dev/tty0", "/dev/fuse", "/dev/net/tun"];
    let Some((path, meta)) = candidates.iter().find_map(|path| Some((*path, fs::metadata(path).ok()?))) else {
        return;
    };
    let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let mut container = node.container(&["stat", path]);
    if !node.deny_device(&container, &format!("c {major}:{minor} m")) {
        return;
    }
    container.plan.devices.push(DevicePlan {
        path: path.as_bytes().to_vec(),
        kind: b'c',
        major,
        minor,
        mode: 0o600,
        uid: 0,
        gid: 0,
    });
    let line = &node.lines(&container)[0];
    assert!(line.starts_with("char ") && line.ends_with(&format!(" {major}:{minor}")), "{line}");
    // Without a node of the host to take, it is an error.
    let mut container = node.container(&["exit", "0"]);
    node.deny_device(&container, &format!("c {major}:{minor} m"));
    let device = DevicePlan { path: b"/dev/other".to_vec(), kind: b'c', major, minor, mode: 0o600, uid: 0, gid: 0 };
    container.plan.devices.push(device);
    let failure = node.failure(&container);
    assert_eq!((failure.step.as_str(), failure.errno, failure.about.as_str()), ("make device", 1, "/dev/other"));
}

fn masked_paths_are_empty(node: &mut Node) {
    let root = node.rootfs();
    fs::create_dir(root.join("secret")).unwrap();
    fs::write(root.join("secret/key"), "key").unwrap();
    fs::write(root.join("etc/shadow"), "shadow").unwrap();
    let mut container = node.container_on(
        &root,
        &[
            "cat",
            "/proc/timer_list",
            "--",
            "stat",
            "/proc/timer_list",
            "--",
            "ls",
            "/secret",
            "--",
            "create",
            "/secret/new",
            "x",
            "--",
            "cat",
            "/etc/shadow",
            "--",
            "ls",
            "/sys/firmware",
        ],
    );
    container.plan.masked_paths.extend([b"/secret".to_vec(), b"/etc/shadow".to_vec()]);
    // Masking holds for those with every capability but to unmount.
    container.plan.process.capabilities = capabilities(!(1 << 21));
    assert_eq!(node.lines(&container), ["", "char 666 0:0 1:3", "", "!EROFS", "", ""]);
    assert_eq!(fs::read_to_string(root.join("etc/shadow")).unwrap(), "shadow");
}

fn readonly_paths_refuse_writes(node: &mut Node) {
    let root = node.rootfs();
    fs::create_dir(root.join("etc/sub")).unwrap();
    let mut container = node.container_on(
        &root,
        &[
            "write",
            "/proc/sys/kernel/domainname",
            "x",
            "--",
            "create",
            "/etc/sub/f",
            "x",
            "--",
            "create",
            "/tmp/f",
            "x",
        ],
    );
    container.plan.readonly_paths.push(b"/etc".to_vec());
    container.plan.process.capabilities = capabilities(u64::MAX);
    assert_eq!(node.lines(&container), ["!EROFS", "!EROFS", "ok"]);
}

fn a_read_only_root_refuses_writes_and_its_volumes_do_not(node: &mut Node) {
    let volume = node.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    let mut container = node.container(&[
        "create",
        "/file",
        "x",
        "--",
        "create",
        "/data/file",
        "x",
        "--",
        "create",
        "/dev/shm/file",
        "x",
        "--",
        "mkdir",
        "/tmp/dir",
    ]);
    container.plan.read_only_rootfs = true;
    container.plan.mounts.push(bind(&volume, "/data"));
    assert_eq!(node.lines(&container), ["!EROFS", "ok", "ok", "!EROFS"]);
    assert_eq!(fs::read_to_string(volume.join("file")).unwrap(), "x");
}

fn a_read_only_tmpfs_holds_what_is_mounted_in_it(node: &mut Node) {
    let mut container =
        node.container(&["create", "/run/f", "x", "--", "create", "/run/in/f", "x", "--", "ls", "/run"]);
    container.plan.mounts.push(new_mount("tmpfs", "/run", "size=64k", MS_RDONLY));
    container.plan.mounts.push(new_mount("tmpfs", "/run/in", "size=64k,mode=700", 0));
    assert_eq!(node.lines(&container), ["!EROFS", "ok", "in"]);
}

fn pod_files_and_links_that_lead_nowhere(node: &mut Node) {
    let root = node.rootfs();
    std::os::unix::fs::symlink("../run/resolve/stub.conf", root.join("etc/resolv.conf")).unwrap();
    let container = node.container_on(&root, &["cat", "/etc/resolv.conf", "--", "stat", "/run/resolve/stub.conf"]);
    assert_eq!(node.lines(&container), ["nameserver 192.0.2.1", "file 644 0:0"]);
}

fn detached_mounts_are_placed(node: &mut Node) {
    let image = node.dir.join("image");
    fs::create_dir(&image).unwrap();
    fs::write(image.join("file"), "content").unwrap();
    let mut container = node.container(&["cat", "/image/file", "--", "create", "/image/new", "x"]);
    container.fds.push(knarr_sys::mount::clone_of(open(&image), false).unwrap());
    let kind = MountKind::Detached(FdIndex(container.fds.len() as u32 - 1));
    container.plan.mounts.push(MountPlan { target: b"/image".to_vec(), kind, flags: MS_RDONLY });
    assert_eq!(node.lines(&container), ["content", "!EROFS"]);
}

fn files_and_sockets_can_be_volumes(node: &mut Node) {
    let (file, socket, link) = (node.dir.join("file"), node.dir.join("socket"), node.dir.join("link"));
    fs::write(&file, "content").unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    let mut container = node.container(&[
        "cat",
        "/data/file",
        "--",
        "stat",
        "/run/socket",
        "--",
        "cat",
        "/data/linked",
        "--",
        "stat",
        "/dev/zero2",
    ]);
    container.plan.mounts.push(bind(&file, "/data/file"));
    container.plan.mounts.push(bind(&socket, "/run/socket"));
    container.plan.mounts.push(bind(&link, "/data/linked"));
    container.plan.mounts.push(bind(std::path::Path::new("/dev/zero"), "/dev/zero2"));
    let lines = node.lines(&container);
    assert_eq!((lines[0].as_str(), lines[2].as_str()), ("content", "content"));
    assert!(lines[1].starts_with("other ") && lines[3].ends_with("1:5"), "{lines:?}");
}

fn flags_of_volumes_hold(node: &mut Node) {
    let volume = node.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    let mut container = node.container(&["cat", "/proc/self/mountinfo"]);
    let mut mount = bind(&volume, "/data");
    mount.flags = MS_NOSUID | MS_NODEV | MS_RDONLY;
    container.plan.mounts.push(mount);
    let lines = node.lines(&container);
    let options = lines[0].split('|').find(|line| line.contains(" /data ")).unwrap().split(' ').nth(5).unwrap();
    assert_eq!(options, "ro,nosuid,nodev,relatime");
}

fn the_cgroup_view_is_its_own(node: &mut Node) {
    let container =
        node.container(&["cat", "/proc/self/cgroup", "--", "ls", "/sys/fs/cgroup", "--", "mkdir", "/sys/fs/cgroup/x"]);
    let is_v1 = node.is_v1();
    let v1 = container.plan.cgroup.v1_tasks.len();
    let lines = node.lines(&container);
    let own = lines[0].split('|').filter(|line| line.ends_with(":/")).count();
    assert!(own > v1, "{}", lines[0]);
    assert!(!lines[0].contains("knarr-runtime-test"), "{}", lines[0]);
    if is_v1 {
        assert_eq!(lines[1].split(' ').count(), v1, "{}", lines[1]);
    } else {
        assert!(lines[1].contains("cgroup.procs"), "{}", lines[1]);
    }
    assert_eq!(lines[2], "!EROFS");
}

fn only_cgroup2(container: &mut crate::node::Container) {
    for mount in &mut container.plan.mounts {
        if let MountKind::Cgroup { v1 } = &mut mount.kind {
            v1.clear();
        }
    }
}

fn cgroup2_is_mounted_in_its_own_namespace(node: &mut Node) {
    let mut container = node.container(&["fstype", "/sys/fs/cgroup", "--", "cat", "/sys/fs/cgroup/cgroup.procs"]);
    only_cgroup2(&mut container);
    assert_eq!(node.lines(&container), ["63677270", "1"]);
}

fn the_hosts_cgroup_namespace_shows_the_hosts_hierarchies(node: &mut Node) {
    let mut container = node.container(&["ls", "/sys/fs/cgroup", "--", "cat", "/proc/self/cgroup"]);
    container.plan.new_cgroup_ns = false;
    only_cgroup2(&mut container);
    let lines = node.lines(&container);
    let mut of_host: Vec<String> = fs::read_dir("/sys/fs/cgroup")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    of_host.sort();
    assert_eq!(lines[0], of_host.join(" "));
    assert!(lines[1].contains("knarr-runtime-test"), "{}", lines[1]);
}

fn sysctls_of_the_container_cannot_be_written(node: &mut Node) {
    let mut container = node.container(&["write", "/proc/sys/net/ipv4/ip_forward", "1"]);
    container.plan.process.capabilities = capabilities(u64::MAX);
    assert_eq!(node.lines(&container), ["!EROFS"]);
}
