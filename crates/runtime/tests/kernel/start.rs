//! Starting: what comes back when it works, and what is said when it does not.

use crate::node::{Node, process, strings};
use knarr_model::plan::Namespace;
use knarr_sys::process::Ended;
use std::fs;
use std::os::unix::fs::PermissionsExt;

crate::tests![
    a_start_that_hangs_is_given_up_and_killed,
    the_exit_code_is_the_programs,
    a_signal_that_ends_it_is_told,
    a_program_that_is_not_there_is_enoent_at_execve,
    a_program_that_may_not_be_run_is_eacces_at_execve,
    a_program_in_no_known_format_is_enoexec_at_execve,
    a_name_is_looked_for_in_the_containers_path,
    only_the_three_standard_descriptors_are_open,
    it_is_the_first_process_and_leads_a_session,
    the_environment_is_the_plans,
    signals_are_neither_blocked_nor_ignored,
    a_working_directory_is_made_when_asked_for,
    a_working_directory_that_is_missing_is_said,
    no_working_directory_outside_of_the_root,
    a_missing_descriptor_is_said,
    the_hosts_pid_namespace_can_be_used,
    a_failed_start_leaves_nothing,
    limits_are_set_or_clamped,
    the_oom_score_is_set_or_clamped,
    the_process_is_in_its_cgroups,
];

fn a_start_that_hangs_is_given_up_and_killed(node: &mut Node) {
    let container = node.container(&["exit", "0"]);
    node.freeze(&container);
    let started = std::time::Instant::now();
    let failure = node.failure(&container);
    assert_eq!(failure.step, "process did not start in time, it was at: prepare the process");
    assert_eq!(failure.errno, 110);
    let took = started.elapsed().as_secs();
    assert!((30..35).contains(&took), "{took} s");
    assert_eq!(knarr_sys::process::reap_any().unwrap(), None, "a child was left");
}

fn the_exit_code_is_the_programs(node: &mut Node) {
    for code in [0, 7, 255] {
        let container = node.container(&["exit", &code.to_string()]);
        let pod = node.pod();
        assert_eq!(node.start(&pod, &container).ended(), Ended::Exited(code));
    }
}

fn a_signal_that_ends_it_is_told(node: &mut Node) {
    let container = node.container(&["sleep"]);
    let pod = node.pod();
    assert_eq!(node.start(&pod, &container).kill(), Ended::Killed(9));
}

fn a_program_that_is_not_there_is_enoent_at_execve(node: &mut Node) {
    for program in ["/nowhere", "nowhere"] {
        let mut container = node.container(&[]);
        container.plan.process.args = strings(&[program]);
        let failure = node.failure(&container);
        assert_eq!((failure.step.as_str(), failure.errno, failure.about.as_str()), ("execve", 2, program));
    }
}

fn a_program_that_may_not_be_run_is_eacces_at_execve(node: &mut Node) {
    let root = node.rootfs();
    fs::write(root.join("bin/data"), "x").unwrap();
    for program in ["/bin/data", "data", "/etc"] {
        let mut container = node.container_on(&root, &[]);
        container.plan.process.args = strings(&[program]);
        let failure = node.failure(&container);
        assert_eq!((failure.step.as_str(), failure.errno), ("execve", 13), "{program}");
    }
}

fn a_program_in_no_known_format_is_enoexec_at_execve(node: &mut Node) {
    let root = node.rootfs();
    fs::write(root.join("bin/data"), "no program").unwrap();
    fs::set_permissions(root.join("bin/data"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut container = node.container_on(&root, &[]);
    container.plan.process.args = strings(&["data"]);
    let failure = node.failure(&container);
    assert_eq!((failure.step.as_str(), failure.errno), ("execve", 8));
}

fn a_name_is_looked_for_in_the_containers_path(node: &mut Node) {
    let mut container = node.container(&["say", "found"]);
    container.plan.process.args[0] = b"probe".to_vec();
    assert_eq!(node.lines(&container), ["found"]);
}

fn only_the_three_standard_descriptors_are_open(node: &mut Node) {
    // Left open without close-on-exec, as a careless caller would.
    let careless = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), 40).unwrap();
    rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
    let container = node.container(&["fds"]);
    assert_eq!(node.lines(&container), ["0 1 2"]);
}

fn it_is_the_first_process_and_leads_a_session(node: &mut Node) {
    let container = node.container(&["ids", "--", "tty"]);
    let lines = node.lines(&container);
    assert_eq!(lines[0], "pid=1 ppid=0");
    assert!(lines[1].starts_with("isatty=000 controlling=0") && lines[1].ends_with("leader=1"), "{}", lines[1]);
}

fn the_environment_is_the_plans(node: &mut Node) {
    let container = node.container(&["env", "NAME", "--", "env", "HOME"]);
    assert_eq!(node.lines(&container), ["value", "(unset)"]);
}

fn signals_are_neither_blocked_nor_ignored(node: &mut Node) {
    knarr_sys::signal::ignore(13).unwrap();
    knarr_sys::signal::block(knarr_sys::signal::Set::of(&[15, 17])).unwrap();
    let container = node.container(&["status"]);
    let line = &node.lines(&container)[0];
    assert!(line.contains("SigBlk=0000000000000000;SigIgn=0000000000000000;"), "{line}");
}

fn a_working_directory_is_made_when_asked_for(node: &mut Node) {
    let mut container = node.container(&["cwd", "--", "stat", "."]);
    container.plan.process.cwd = b"/srv/app/data".to_vec();
    container.plan.process.create_cwd = true;
    container.plan.read_only_rootfs = true;
    assert_eq!(node.lines(&container), ["/srv/app/data", "dir 755 0:0"]);
}

fn a_working_directory_that_is_missing_is_said(node: &mut Node) {
    let mut container = node.container(&["cwd"]);
    container.plan.process.cwd = b"/nowhere".to_vec();
    let failure = node.failure(&container);
    let wanted = ("change to working directory", 2, "/nowhere");
    assert_eq!((failure.step.as_str(), failure.errno, failure.about.as_str()), wanted);
}

fn no_working_directory_outside_of_the_root(node: &mut Node) {
    for number in 3..64 {
        let mut container = node.container(&["cwd"]);
        container.plan.process.cwd = format!("/proc/self/fd/{number}").into_bytes();
        let failure = node.failure(&container);
        assert_eq!(failure.step, "change to working directory");
    }
    let root = node.rootfs();
    std::os::unix::fs::symlink("/proc/self/fd/7/../..", root.join("work")).unwrap();
    let mut container = node.container_on(&root, &["cwd"]);
    container.plan.process.cwd = b"/work".to_vec();
    assert_eq!(node.failure(&container).step, "change to working directory");
}

fn a_missing_descriptor_is_said(node: &mut Node) {
    let mut container = node.container(&["exit", "0"]);
    container.plan.rootfs = knarr_model::plan::FdIndex(99);
    let failure = node.failure(&container);
    assert_eq!((failure.step.as_str(), failure.about.as_str()), ("find a descriptor of the message", "99"));
}

fn the_hosts_pid_namespace_can_be_used(node: &mut Node) {
    let own = std::process::id();
    let mut container = node.container(&["ids", "--", "stat", &format!("/proc/{own}")]);
    container.plan.pid_ns = Namespace::Host;
    let pod = node.pod();
    let running = node.start(&pod, &container);
    let pid = running.child.pid;
    let lines = running.lines();
    assert_eq!(lines[0], format!("pid={pid} ppid={own}"));
    assert!(lines[1].starts_with("dir "), "{}", lines[1]);
}

fn a_failed_start_leaves_nothing(node: &mut Node) {
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let pod = node.pod();
    let mut container = node.container(&[]);
    container.plan.process.args = strings(&["/nowhere"]);
    let before = open();
    for pid_ns in [Namespace::Own, Namespace::Host] {
        // A root that was placed once is gone with the namespace it was placed in.
        let root = node.rootfs();
        container.fds[0] = knarr_sys::mount::clone_of(crate::node::open(&root), true).unwrap();
        container.plan.pid_ns = pid_ns;
        assert_eq!(node.try_start(&pod, &container, None).err().unwrap().step, "execve");
    }
    assert_eq!(open(), before, "descriptors were left open");
    assert_eq!(knarr_sys::process::reap_any().unwrap(), None, "a child was left");
}

fn limits_are_set_or_clamped(node: &mut Node) {
    let limit = |soft, hard| knarr_model::plan::Rlimit { resource: 7, soft, hard };
    let mut container = node.container(&["nofile"]);
    container.plan.process.rlimits = vec![limit(100, 200)];
    assert_eq!(node.lines(&container), ["100"]);
    let mut container = node.container(&["nofile"]);
    container.plan.process.rlimits = vec![limit(1 << 30, 1 << 30)];
    let most: u64 = node.lines(&container)[0].parse().unwrap();
    assert!(most >= 1024, "{most}");
}

fn the_oom_score_is_set_or_clamped(node: &mut Node) {
    let score = |node: &mut Node, score| {
        let mut container = node.container(&["cat", "/proc/self/oom_score_adj"]);
        container.plan.process.oom_score_adj = Some(score);
        node.lines(&container)[0].parse::<i32>().unwrap()
    };
    assert_eq!(score(node, 300), 300);
    assert_eq!(score(node, 1000), 1000);
    let own: i32 = fs::read_to_string("/proc/self/oom_score_adj").unwrap().trim().parse().unwrap();
    let lowest = score(node, -998);
    assert!((-998..=own).contains(&lowest), "{lowest}, and the test itself has {own}");
}

fn the_process_is_in_its_cgroups(node: &mut Node) {
    let mut container = node.container(&["sleep"]);
    container.plan.process = process(&["sleep"]);
    let pod = node.pod();
    let running = node.start(&pod, &container);
    let seen = fs::read_to_string(format!("/proc/{}/cgroup", running.child.pid)).unwrap();
    let wanted = format!("knarr-runtime-test-{}/{}", std::process::id(), container.cgroup);
    let joined = seen.lines().filter(|line| line.ends_with(&wanted)).count();
    assert_eq!(joined, 1 + container.plan.cgroup.v1_tasks.len(), "{seen}");
}
