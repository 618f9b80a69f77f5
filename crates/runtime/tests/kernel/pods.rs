//! What the containers of a pod share.

use crate::node::{Node, open};
use knarr_model::plan::{Namespace, PodPlan};
use knarr_sys::process::{Ended, copy_process, reap, send_signal};
use std::fs;
use std::time::{Duration, Instant};

crate::tests![
    the_host_name_is_the_pods,
    sysctls_are_written_inside_and_not_outside,
    a_sysctl_that_is_refused_is_said,
    shm_is_shared_between_containers_and_bounded,
    containers_of_one_pod_share_their_network_and_ipc,
    a_pod_on_the_host_uses_its_namespaces,
    a_shared_pid_namespace_has_our_init_and_all_containers,
    orphans_in_a_shared_pid_namespace_are_reaped,
    the_init_ends_with_its_caller,
    the_init_gives_nothing_away,
    a_target_containers_pid_namespace_is_joined,
    a_target_that_has_ended_is_said,
    a_target_whose_proc_is_something_else_is_refused,
    a_pod_leaves_no_process_and_no_descriptor,
];

fn the_host_name_is_the_pods(node: &mut Node) {
    let container = node.container(&["hostname"]);
    assert_eq!(node.lines(&container), ["pod-host"]);
    assert_ne!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim(), "pod-host");
}

fn sysctls_are_written_inside_and_not_outside(node: &mut Node) {
    let names = ["net/ipv4/ip_unprivileged_port_start", "kernel/shm_rmid_forced", "kernel/msgmax"];
    let before = names.map(|name| fs::read_to_string(format!("/proc/sys/{name}")).unwrap());
    let mut plan = node.pod_plan();
    plan.sysctls =
        names.iter().zip(["77", "1", "4321"]).map(|(n, v)| (n.as_bytes().to_vec(), v.as_bytes().to_vec())).collect();
    let pod = node.set_up(&plan).unwrap();
    let paths = names.map(|name| format!("/proc/sys/{name}"));
    let container = node.container(&["cat", &paths[0], "--", "cat", &paths[1], "--", "cat", &paths[2]]);
    assert_eq!(node.start(&pod, &container).lines(), ["77", "1", "4321"]);
    assert_eq!(names.map(|name| fs::read_to_string(format!("/proc/sys/{name}")).unwrap()), before);
}

fn a_sysctl_that_is_refused_is_said(node: &mut Node) {
    let mut plan = node.pod_plan();
    for (name, errno) in [("net/ipv4/nowhere", 2), ("net/../kernel/core_pattern", 22), ("kernel/ostype", 13)] {
        plan.sysctls = vec![(name.as_bytes().to_vec(), b"x".to_vec())];
        let failure = node.set_up(&plan).err().unwrap();
        assert_eq!((failure.step.as_str(), failure.about.as_str()), ("set sysctl", name));
        assert!(failure.errno == errno || name == "kernel/ostype", "{failure}");
    }
}

fn shm_is_shared_between_containers_and_bounded(node: &mut Node) {
    let pod = node.pod();
    let writer = node.container(&["create", "/dev/shm/file", "from the other", "--", "stat", "/dev/shm"]);
    assert_eq!(node.start(&pod, &writer).lines(), ["ok", "dir 1777 0:0"]);
    let reader = node.container(&["cat", "/dev/shm/file", "--", "cat", "/proc/self/mountinfo"]);
    let lines = node.start(&pod, &reader).lines();
    assert_eq!(lines[0], "from the other");
    let mount = lines[1].split('|').find(|line| line.contains(" /dev/shm ")).unwrap().to_owned();
    assert!(mount.contains("size=1024k") && mount.contains("nosuid,nodev,noexec"), "{mount}");
    let of_another_pod = node.container(&["ls", "/dev/shm"]);
    assert_eq!(node.lines(&of_another_pod), [""]);
}

fn containers_of_one_pod_share_their_network_and_ipc(node: &mut Node) {
    let pod = node.pod();
    let commands =
        ["readlink", "/proc/self/ns/net", "--", "readlink", "/proc/self/ns/ipc", "--", "readlink", "/proc/self/ns/uts"];
    let (one, other) = (node.container(&commands), node.container(&commands));
    let of_one = node.start(&pod, &one).lines();
    assert_eq!(of_one, node.start(&pod, &other).lines());
    for (kind, seen) in ["net", "ipc", "uts"].iter().zip(&of_one) {
        assert_ne!(fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().to_str().unwrap(), seen);
    }
}

fn a_pod_on_the_host_uses_its_namespaces(node: &mut Node) {
    let plan = PodPlan { new_net: false, new_ipc: false, new_uts: false, ..node.pod_plan() };
    let pod = node.set_up(&plan).unwrap();
    assert!(pod.net.is_none() && pod.ipc.is_none() && pod.uts.is_none());
    let container = node.container(&["readlink", "/proc/self/ns/net", "--", "fstype", "/sys", "--", "hostname"]);
    let lines = node.start(&pod, &container).lines();
    assert_eq!(lines[0], fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap());
    assert_eq!(lines[2], fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());
}

fn a_shared_pid_namespace_has_our_init_and_all_containers(node: &mut Node) {
    let pod = node.pod_with_shared_pid();
    let mut one = node.container(&["sleep"]);
    one.plan.pid_ns = Namespace::Pod;
    let sleeping = node.start(&pod, &one);
    let mut other =
        node.container(&["ids", "--", "cat", "/proc/1/comm", "--", "cat", "/proc/2/comm", "--", "fstype", "/proc"]);
    other.plan.pid_ns = Namespace::Pod;
    let lines = node.start(&pod, &other).lines();
    assert!(lines[0].starts_with("pid=") && lines[0] != "pid=1 ppid=0" && lines[0].ends_with("ppid=0"), "{lines:?}");
    assert_eq!(lines[1..], ["knarr-init", "probe", "9fa0"]);
    sleeping.kill();
}

fn orphans_in_a_shared_pid_namespace_are_reaped(node: &mut Node) {
    let pod = node.pod_with_shared_pid();
    let mut sleeper = node.container(&["sleep"]);
    sleeper.plan.pid_ns = Namespace::Pod;
    let sleeping = node.start(&pod, &sleeper);
    let mut container = node.container(&["orphan"]);
    container.plan.pid_ns = Namespace::Pod;
    let orphan = node.start(&pod, &container).lines()[0].clone();
    let watch = crate::node::process(&["wait-gone", &format!("/proc/{orphan}")]);
    assert_eq!(node.exec(&sleeper, &sleeping.child, watch).lines(), ["gone"]);
}

fn the_init_ends_with_its_caller(node: &mut Node) {
    let plan = PodPlan { shared_pid: true, ..node.pod_plan() };
    let (read, write) = rustix::pipe::pipe().unwrap();
    let caller = copy_process(0, None, || {
        let pod = node.set_up(&plan).unwrap();
        let pid = pod.pid_init.as_ref().unwrap().pid;
        rustix::io::write(&write, &pid.to_ne_bytes()).unwrap();
        // Until it is killed.
        rustix::event::pause();
        0
    });
    let caller = caller.unwrap();
    let mut pid = [0; 4];
    assert_eq!(rustix::io::read(&read, &mut pid).unwrap(), 4);
    let init = std::path::PathBuf::from(format!("/proc/{}", u32::from_ne_bytes(pid)));
    assert!(init.exists());
    send_signal(&caller.pidfd, 9).unwrap();
    assert_eq!(reap(&caller.pidfd, true).unwrap(), Some(Ended::Killed(9)));
    let deadline = Instant::now() + Duration::from_secs(5);
    while init.exists() && Instant::now() < deadline {
        // It has passed to this process, a subreaper.
        let _ = knarr_sys::process::reap_any();
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(!init.exists());
}

fn the_init_gives_nothing_away(node: &mut Node) {
    let pod = node.pod_with_shared_pid();
    let init = pod.pid_init.as_ref().unwrap();
    let of_init = |name: &str| format!("/proc/{}/{name}", init.pid);
    let deadline = Instant::now() + Duration::from_secs(5);
    while fs::read_dir(of_init("fd")).unwrap().count() > 0 {
        assert!(Instant::now() < deadline, "descriptors are still open");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(fs::read_dir(of_init("root")).unwrap().count(), 0);
    let status = fs::read_to_string(of_init("status")).unwrap();
    for line in
        ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "Uid:\t65535\t65535\t65535\t65535", "NoNewPrivs:\t1"]
    {
        assert!(status.contains(line), "{line}: {status}");
    }
    for signal in [1, 2, 10, 15] {
        send_signal(&init.pidfd, signal).unwrap();
    }
    assert_eq!(reap(&init.pidfd, false).unwrap(), None, "it ended");
    send_signal(&init.pidfd, 9).unwrap();
    assert_eq!(reap(&init.pidfd, true).unwrap(), Some(Ended::Killed(9)));
}

fn a_target_containers_pid_namespace_is_joined(node: &mut Node) {
    let pod = node.pod();
    for target_ns in [Namespace::Own, Namespace::Host] {
        let mut target = node.container(&["sleep"]);
        target.plan.pid_ns = target_ns;
        let sleeping = node.start(&pod, &target);
        let mut container =
            node.container(&["readlink", "/proc/self/ns/pid", "--", "fstype", "/proc", "--", "stat", "/bin/probe"]);
        container.plan.pid_ns = Namespace::Of(target.plan.id.clone());
        let running =
            node.try_start(&pod, &container, Some(&sleeping.child)).unwrap_or_else(|failure| panic!("{failure}"));
        let lines = running.lines();
        let wanted = fs::read_link(format!("/proc/{}/ns/pid", sleeping.child.pid)).unwrap();
        assert_eq!(lines[0], wanted.to_str().unwrap());
        assert_eq!(lines[1], "9fa0");
        sleeping.kill();
    }
}

fn a_target_that_has_ended_is_said(node: &mut Node) {
    let pod = node.pod();
    let target = node.container(&["sleep"]);
    let sleeping = node.start(&pod, &target);
    send_signal(&sleeping.child.pidfd, 9).unwrap();
    sleeping.ended();
    let mut container = node.container(&["exit", "0"]);
    container.plan.pid_ns = Namespace::Of(target.plan.id.clone());
    let failure = node.try_start(&pod, &container, Some(&sleeping.child)).err().unwrap();
    assert_eq!(failure.step, "target container is not running", "{failure}");
}

fn a_target_whose_proc_is_something_else_is_refused(node: &mut Node) {
    let pod = node.pod();
    let mut target = node.container(&["sleep"]);
    target.plan.mounts.push(crate::node::bind(std::path::Path::new("/proc"), "/proc"));
    let sleeping = node.start(&pod, &target);
    let mut container = node.container(&["exit", "0"]);
    container.plan.pid_ns = Namespace::Of(target.plan.id.clone());
    let failure = node.try_start(&pod, &container, Some(&sleeping.child)).err().unwrap();
    assert_eq!((failure.step.as_str(), failure.errno), ("take over the target container's /proc", 19));
}

fn a_pod_leaves_no_process_and_no_descriptor(node: &mut Node) {
    let count = || fs::read_dir("/proc/self/fd").unwrap().count();
    let _kept = open(&node.dir);
    let before = count();
    for _ in 0..3 {
        let pod = node.pod();
        assert_eq!(count(), before + 4);
        drop(pod);
    }
    assert_eq!(count(), before);
    assert_eq!(knarr_sys::process::reap_any().unwrap(), None, "a child was left");
}
