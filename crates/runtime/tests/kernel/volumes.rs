//! Volumes and what is mounted in them later, on either side.

use crate::node::{MS_PRIVATE, MS_RDONLY, MS_SHARED, MS_SLAVE, Node, Running, bind, capabilities};
use knarr_model::plan::{MountKind, MountPlan};
use knarr_sys::mount::{self, Attributes};
use std::ffi::CString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

crate::tests![
    later_mounts_of_the_host_are_seen_as_the_propagation_says,
    mounts_of_the_container_are_seen_as_the_propagation_says,
    mounts_made_while_starting_are_not_lost,
    a_missing_volume_is_said,
    nothing_is_mounted_over_the_root,
    read_only_holds_for_submounts_when_asked_for,
];

/// A tmpfs of the host that shares its mounts.
fn shared_directory(node: &Node) -> PathBuf {
    let path = node.dir.join("shared");
    fs::create_dir(&path).unwrap();
    mount_tmpfs(&path);
    let root = mount::open_path(&c_path(&path)).unwrap();
    mount::set_attributes(root, false, Attributes::propagation(MS_SHARED)).unwrap();
    path
}

fn c_path(path: &Path) -> CString {
    CString::new(path.to_str().unwrap()).unwrap()
}

fn mount_tmpfs(path: &Path) {
    let tmpfs = mount::new_filesystem(c"tmpfs", [(c"size", c"64k")], Attributes::default()).unwrap();
    mount::place(tmpfs, mount::open_path(&c_path(path)).unwrap()).unwrap();
}

fn volume(source: &Path, target: &str, propagation: u64) -> MountPlan {
    let source = source.to_str().unwrap().as_bytes().to_vec();
    let kind = MountKind::Bind { source, propagation, recursive_flags: false, id_mapped: false };
    MountPlan { target: target.as_bytes().to_vec(), kind, flags: 0 }
}

fn start(node: &mut Node, source: &Path, propagation: u64, commands: &[&str]) -> Running {
    let mut container = node.container(commands);
    container.plan.mounts.push(volume(source, "/vol", propagation));
    container.plan.process.capabilities = capabilities(u64::MAX);
    let pod = node.pod();
    node.start(&pod, &container)
}

fn mounted_below(path: &Path) -> usize {
    let prefix = format!("{}/", path.display());
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.split(' ').nth(4).is_some_and(|point| point.starts_with(&prefix))).count()
}

fn later_mounts_of_the_host_are_seen_as_the_propagation_says(node: &mut Node) {
    let source = shared_directory(node);
    fs::create_dir(source.join("early")).unwrap();
    fs::create_dir(source.join("late")).unwrap();
    mount_tmpfs(&source.join("early"));
    fs::write(source.join("early/file"), "").unwrap();
    let commands =
        ["stat", "/vol/early/file", "--", "say", "-", "--", "wait-for", "/vol/go", "--", "stat", "/vol/late/file"];
    let mut all: Vec<(u64, Running)> = [MS_PRIVATE, MS_SLAVE, MS_SHARED]
        .into_iter()
        .map(|kind| (kind, start(node, &source, kind, &commands)))
        .collect();
    for (_, running) in &mut all {
        assert_eq!(running.first_line(), "file 644 0:0");
    }
    mount_tmpfs(&source.join("late"));
    fs::write(source.join("late/file"), "").unwrap();
    fs::write(source.join("go"), "").unwrap();
    for (kind, running) in all {
        let wanted = if kind == MS_PRIVATE { "!ENOENT" } else { "file 644 0:0" };
        assert_eq!(running.lines().last().unwrap(), wanted, "propagation {kind:x}");
    }
}

fn mounts_of_the_container_are_seen_as_the_propagation_says(node: &mut Node) {
    for (kind, seen) in [(MS_PRIVATE, 0), (MS_SLAVE, 0), (MS_SHARED, 1)] {
        let source = shared_directory(node);
        fs::create_dir(source.join("sub")).unwrap();
        let running = start(node, &source, kind, &["mount-tmpfs", "/vol/sub"]);
        assert_eq!(running.lines(), ["ok"]);
        // Also after the container and its namespace are gone.
        assert_eq!(mounted_below(&source), seen, "propagation {kind:x}");
        rustix::mount::unmount(&source, rustix::mount::UnmountFlags::DETACH).unwrap();
        fs::remove_dir(&source).unwrap();
    }
}

fn mounts_made_while_starting_are_not_lost(node: &mut Node) {
    const MOUNTS: usize = 150;
    let source = shared_directory(node);
    let script = format!(
        "for i in $(seq {MOUNTS}); do mkdir {0}/m$i; mount -t tmpfs -o size=4k t {0}/m$i || exit 1; done; : >{0}/go",
        source.display()
    );
    let mut mounter = Command::new("sh").arg("-c").arg(script).spawn().unwrap();
    let mut all = Vec::new();
    while mounter.try_wait().unwrap().is_none() {
        for kind in [MS_SLAVE, MS_SHARED] {
            all.push(start(node, &source, kind, &["wait-for", "/vol/go", "--", "points", "/vol/m"]));
        }
    }
    assert!(mounter.wait().unwrap().success());
    assert!(all.len() > 10, "only {} containers were started meanwhile", all.len());
    for running in all {
        assert_eq!(running.lines(), ["there", &MOUNTS.to_string()]);
    }
    assert_eq!(mounted_below(&source), MOUNTS, "a mount of the host was undone");
}

fn a_missing_volume_is_said(node: &mut Node) {
    let mut container = node.container(&["exit", "0"]);
    container.plan.mounts.push(bind(Path::new("/mnt/nowhere"), "/vol"));
    let failure = node.failure(&container);
    assert_eq!((failure.step.as_str(), failure.errno, failure.about.as_str()), ("open volume", 2, "/mnt/nowhere"));
}

fn nothing_is_mounted_over_the_root(node: &mut Node) {
    for target in ["/", "//", "/..", "/./", "relative"] {
        let mut container = node.container(&["exit", "0"]);
        let source = node.dir.clone();
        container.plan.mounts.push(bind(&source, target));
        let failure = node.failure(&container);
        assert_eq!((failure.step.as_str(), failure.errno, failure.about.as_str()), ("mount", 22, target));
    }
}

fn read_only_holds_for_submounts_when_asked_for(node: &mut Node) {
    let source = node.dir.join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    mount_tmpfs(&source.join("sub"));
    for recursive in [false, true] {
        let mut container = node.container(&["create", "/vol/f", "x", "--", "create", "/vol/sub/f", "x"]);
        let mut mount = bind(&source, "/vol");
        mount.flags = MS_RDONLY;
        if let MountKind::Bind { recursive_flags, .. } = &mut mount.kind {
            *recursive_flags = recursive;
        }
        container.plan.mounts.push(mount);
        let wanted = if recursive { "!EROFS" } else { "ok" };
        assert_eq!(node.lines(&container), ["!EROFS", wanted]);
    }
    assert!(source.join("sub/f").exists() && !source.join("f").exists());
}
