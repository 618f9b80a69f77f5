//! Images and neighbours that try to get at the host: whatever they do, the host's files and mounts stay as they are.

use crate::node::{IDS, Node, bind, capabilities, new_mount, process, tree};
use knarr_model::plan::{Namespace, PodPlan, ProcessPlan};
use knarr_runtime::PodNamespaces;
use knarr_sys::process::Ended;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

crate::tests![
    links_in_the_image_do_not_reach_the_host,
    proc_and_sysfs_are_not_mounted_through_links,
    a_forged_null_device_masks_nothing_else,
    nothing_is_mounted_over_proc_but_a_procfs,
    a_neighbour_that_exchanges_the_mount_target_gains_nothing,
    a_process_that_may_trace_finds_nothing_in_what_is_starting,
    nor_does_it_in_a_user_namespace,
];

/// A directory of the host that must stay as it is.
fn victim(node: &Node) -> PathBuf {
    let victim = node.dir.join("victim");
    fs::create_dir_all(victim.join("pts")).unwrap();
    fs::create_dir_all(victim.join("shm")).unwrap();
    for file in ["null", "resolv.conf", "hosts", "console", "kcore"] {
        fs::write(victim.join(file), file).unwrap();
    }
    victim
}

fn mounts() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap()
}

fn links_in_the_image_do_not_reach_the_host(node: &mut Node) {
    let victim = victim(node);
    let up = format!("../../../../../../../../..{}", victim.display());
    let absolute = victim.to_str().unwrap().to_owned();
    let names =
        ["dev", "etc", "run", "tmp", "dev/pts", "dev/shm", "dev/null", "etc/resolv.conf", "dev/console", "work"];
    let (before, mounts_before) = (tree(&victim), mounts());
    let mut started = 0;
    for name in names {
        for target in
            [absolute.as_str(), up.as_str(), name.rsplit('/').next().unwrap(), "/proc/self/root", "nowhere/at/all"]
        {
            let root = node.rootfs();
            let _ = fs::remove_dir(root.join(name));
            if name == "etc" {
                fs::remove_dir_all(root.join("etc")).unwrap();
            }
            fs::create_dir_all(root.join(name).parent().unwrap()).unwrap();
            symlink(target, root.join(name)).unwrap();
            let mut container = node.container_on(&root, &["exit", "0"]);
            if name.starts_with("dev/") {
                // Then it is the image's /dev that things are put into.
                container.plan.mounts.retain(|mount| mount.target != b"/dev");
            }
            container.plan.process.cwd = b"/work".to_vec();
            container.plan.process.create_cwd = true;
            container.plan.mounts.push(new_mount("tmpfs", "/run/secrets", "size=64k", 0));
            container.plan.masked_paths.push(b"/etc/hosts".to_vec());
            let pod = node.pod();
            if let Ok(running) = node.try_start(&pod, &container, None) {
                assert_eq!(running.ended(), Ended::Exited(0), "{name} -> {target}");
                started += 1;
            }
            assert_eq!(tree(&victim), before, "{name} -> {target}");
            assert_eq!(mounts(), mounts_before, "{name} -> {target}");
        }
    }
    // Links that stay inside the image are no reason not to start.
    assert!(started >= 20, "only {started} containers started");
}

fn proc_and_sysfs_are_not_mounted_through_links(node: &mut Node) {
    for (name, target) in [("proc", "tmp"), ("sys", "/tmp"), ("proc", "/mnt"), ("sys", "sys"), ("proc", "nowhere")] {
        let root = node.rootfs();
        symlink(target, root.join(name)).unwrap();
        let failure = {
            let container = node.container_on(&root, &["exit", "0"]);
            node.failure(&container)
        };
        assert_eq!((failure.step.as_str(), failure.errno), ("mount", 40), "{name} -> {target}");
        assert_eq!(failure.about, format!("/{name}"));
    }
    let root = node.rootfs();
    fs::write(root.join("proc"), "a file").unwrap();
    let container = node.container_on(&root, &["exit", "0"]);
    assert_eq!(node.failure(&container).errno, 20);
}

fn a_forged_null_device_masks_nothing_else(node: &mut Node) {
    let root = node.rootfs();
    fs::create_dir(root.join("dev")).unwrap();
    fs::write(root.join("secret"), "secret").unwrap();
    fs::write(root.join("etc/other"), "other").unwrap();
    symlink("/etc/other", root.join("dev/null")).unwrap();
    let mut container =
        node.container_on(&root, &["stat", "/secret", "--", "cat", "/secret", "--", "write", "/secret", "x"]);
    container.plan.mounts.retain(|mount| !mount.target.starts_with(b"/dev"));
    container.plan.devices.clear();
    container.plan.links.clear();
    container.plan.masked_paths = vec![b"/secret".to_vec()];
    assert_eq!(node.lines(&container), ["char 666 0:0 1:3", "", "ok"]);
    assert_eq!(fs::read_to_string(root.join("etc/other")).unwrap(), "other");
}

fn nothing_is_mounted_over_proc_but_a_procfs(node: &mut Node) {
    let volume = node.dir.join("volume");
    fs::create_dir_all(volume.join("self/attr")).unwrap();
    fs::write(volume.join("uptime"), "0 0\n").unwrap();
    let refused = |node: &mut Node, source: &Path, target: &str| {
        let mut container = node.container(&["exit", "0"]);
        container.plan.mounts.push(bind(source, target));
        let failure = node.failure(&container);
        assert_eq!((failure.step.as_str(), failure.errno), ("mount volume", 1), "{target}");
    };
    refused(node, &volume, "/proc");
    refused(node, &volume.join("self/attr"), "/proc/1/attr");
    refused(node, &volume.join("uptime"), "/proc/version");
    let root = node.rootfs();
    symlink("/proc/sys", root.join("innocent")).unwrap();
    let mut container = node.container_on(&root, &["exit", "0"]);
    container.plan.mounts.push(bind(&volume, "/innocent"));
    assert_eq!(node.failure(&container).errno, 1);

    let mut container = node.container(&["cat", "/proc/uptime", "--", "fstype", "/proc"]);
    container.plan.mounts.push(bind(&volume.join("uptime"), "/proc/uptime"));
    assert_eq!(node.lines(&container), ["0 0", "9fa0"]);
}

fn a_neighbour_that_exchanges_the_mount_target_gains_nothing(node: &mut Node) {
    let victim = victim(node);
    let volume = node.dir.join("volume");
    fs::create_dir_all(volume.join("target")).unwrap();
    symlink(format!("../../../../../..{}", victim.display()), volume.join("link")).unwrap();
    let (before, mounts_before) = (tree(&victim), mounts());
    let pod = node.pod();
    let mut flipper = node.container(&["flip", "/vol/target", "/vol/link"]);
    flipper.plan.mounts.push(bind(&volume, "/vol"));
    let flipping = node.start(&pod, &flipper);
    let mut started = 0;
    for _ in 0..150 {
        let mut container = node.container(&["exit", "0"]);
        container.plan.mounts.push(bind(&volume, "/vol"));
        container.plan.mounts.push(new_mount("tmpfs", "/vol/target/new/mount", "size=64k", 0));
        container.plan.masked_paths.push(b"/vol/target/null".to_vec());
        container.plan.readonly_paths.push(b"/vol/target".to_vec());
        if let Ok(running) = node.try_start(&pod, &container, None) {
            assert_eq!(running.ended(), Ended::Exited(0));
            started += 1;
        }
        assert_eq!(tree(&victim), before);
    }
    assert_eq!(mounts(), mounts_before);
    assert!(started > 0, "none of the containers started");
    flipping.kill();
}

fn a_process_that_may_trace_finds_nothing_in_what_is_starting(node: &mut Node) {
    fs::write(node.dir.join("only-on-the-host"), "").unwrap();
    let pod = node.pod_with_shared_pid();
    snoop(node, &pod);
}

fn nor_does_it_in_a_user_namespace(node: &mut Node) {
    fs::write(node.dir.join("only-on-the-host"), "").unwrap();
    let plan = PodPlan { user: Some(IDS), shared_pid: true, ..node.pod_plan() };
    let pod = node.set_up(&plan).unwrap();
    snoop(node, &pod);
}

fn snoop(node: &mut Node, pod: &PodNamespaces) {
    let mut snooper = node.container_of(pod, &["say", "ready", "--", "snoop", "10000"]);
    snooper.plan.pid_ns = Namespace::Pod;
    snooper.plan.process.capabilities = capabilities(u64::MAX);
    let mut snooping = node.start(pod, &snooper);
    assert_eq!(snooping.first_line(), "ready");
    // Well within the snooper's time, however busy the machine is: it must still run when the last exec starts.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(2);
    while std::time::Instant::now() < until {
        let mut container = node.container_of(pod, &["exit", "0"]);
        container.plan.pid_ns = Namespace::Pod;
        container.plan.process.capabilities = capabilities(1);
        node.start(pod, &container).ended();
        let plan = ProcessPlan { capabilities: capabilities(1), ..process(&["exit", "0"]) };
        let exec = node.try_exec_in(pod.user.as_ref(), &snooper, &snooping.child, plan);
        exec.unwrap_or_else(|failure| panic!("{failure}")).ended();
    }
    assert_eq!(snooping.output(), "caps=1 files=0 outside=0 some=1\n");
    snooping.ended();
}
