//! More processes in a running container.

use crate::node::{Container, Node, Running, process, strings};
use knarr_model::plan::ProcessPlan;
use knarr_runtime::PodNamespaces;
use knarr_sys::process::Ended;
use std::os::fd::AsFd;

crate::tests![
    it_is_in_all_namespaces_of_the_container,
    it_sees_the_containers_files_and_no_descriptors,
    its_exit_code_is_its_own,
    a_program_that_is_not_there_is_said,
    a_container_that_has_ended_is_not_running,
    no_working_directory_outside_of_the_root,
    a_working_directory_is_entered,
    it_is_in_its_own_cgroup,
    a_terminal_of_a_first_process,
    a_terminal_of_an_exec,
    a_killed_exec_does_not_hurt_the_container,
];

fn sleeping(node: &mut Node) -> (PodNamespaces, Container, Running) {
    let pod = node.pod();
    let container = node.container(&["sleep"]);
    let running = node.start(&pod, &container);
    (pod, container, running)
}

fn it_is_in_all_namespaces_of_the_container(node: &mut Node) {
    let kinds = ["mnt", "net", "ipc", "uts", "pid", "cgroup", "user"];
    let commands: Vec<String> = kinds.iter().map(|kind| format!("readlink /proc/self/ns/{kind} --")).collect();
    let commands: Vec<&str> = commands.iter().flat_map(|command| command.split(' ')).collect();
    let (_pod, container, running) = sleeping(node);
    let of_exec = node.exec(&container, &running.child, process(&commands)).lines();
    for (kind, seen) in kinds.iter().zip(&of_exec) {
        let path = format!("/proc/{}/ns/{kind}", running.child.pid);
        assert_eq!(std::fs::read_link(path).unwrap().to_str().unwrap(), seen);
        let of_host = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_eq!(*kind == "user", of_host.to_str().unwrap() == seen, "{kind}");
    }
}

fn it_sees_the_containers_files_and_no_descriptors(node: &mut Node) {
    let careless = rustix::io::fcntl_dupfd_cloexec(std::io::stderr(), 50).unwrap();
    rustix::io::fcntl_setfd(&careless, rustix::io::FdFlags::empty()).unwrap();
    let (_pod, container, running) = sleeping(node);
    let plan = process(&["fds", "--", "ids", "--", "cat", "/etc/resolv.conf", "--", "hostname"]);
    let lines = node.exec(&container, &running.child, plan).lines();
    assert_eq!(lines[0], "0 1 2");
    // Its parent is outside, as that of the first process is.
    assert!(lines[1].ends_with("ppid=0"), "{}", lines[1]);
    assert_eq!(lines[2..], ["nameserver 192.0.2.1", "pod-host"]);
}

fn its_exit_code_is_its_own(node: &mut Node) {
    let (_pod, container, running) = sleeping(node);
    for code in [0, 3] {
        let exec = node.exec(&container, &running.child, process(&["exit", &code.to_string()]));
        assert_eq!(exec.ended(), Ended::Exited(code));
    }
    assert_eq!(running.kill(), Ended::Killed(9));
}

fn a_program_that_is_not_there_is_said(node: &mut Node) {
    let (_pod, container, running) = sleeping(node);
    for (program, errno) in [("/nowhere", 2), ("nowhere", 2), ("/etc/passwd", 13)] {
        let plan = ProcessPlan { args: strings(&[program]), ..process(&[]) };
        let failure = node.try_exec(&container, &running.child, plan).err().unwrap();
        assert_eq!((failure.step.as_str(), failure.errno, failure.about.as_str()), ("execve", errno, program));
    }
    assert_eq!(knarr_sys::process::reap_any().unwrap(), None, "a child was left");
}

fn a_container_that_has_ended_is_not_running(node: &mut Node) {
    let (_pod, container, running) = sleeping(node);
    knarr_sys::process::send_signal(&running.child.pidfd, 9).unwrap();
    let not_running = |node: &mut Node| match node.try_exec(&container, &running.child, process(&["sleep"])) {
        Err(failure) => assert_eq!(failure.step, "container is not running", "{failure}"),
        // It came before the end, and ends with the container.
        Ok(exec) => assert_eq!(exec.ended(), Ended::Killed(9)),
    };
    // First it may still be dying, then it is a zombie, then it is reaped.
    not_running(node);
    assert_eq!(running.ended(), Ended::Killed(9));
    not_running(node);
    assert!(node.try_exec(&container, &running.child, process(&["sleep"])).is_err());
}

fn no_working_directory_outside_of_the_root(node: &mut Node) {
    let (_pod, container, running) = sleeping(node);
    for number in 3..64 {
        let plan = ProcessPlan { cwd: format!("/proc/self/fd/{number}").into_bytes(), ..process(&["cwd"]) };
        let failure = node.try_exec(&container, &running.child, plan).err().unwrap();
        assert_eq!(failure.step, "change to working directory");
    }
}

fn a_working_directory_is_entered(node: &mut Node) {
    let (_pod, container, running) = sleeping(node);
    let plan = ProcessPlan { cwd: b"/etc".to_vec(), ..process(&["cwd"]) };
    assert_eq!(node.exec(&container, &running.child, plan).lines(), ["/etc"]);
}

fn it_is_in_its_own_cgroup(node: &mut Node) {
    let (_pod, container, running) = sleeping(node);
    let lines = node.exec(&container, &running.child, process(&["cat", "/proc/self/cgroup"])).lines();
    let in_leaf = lines[0].split('|').filter(|line| line.contains(":/knarr-exec-")).count();
    assert_eq!(in_leaf, 1 + container.plan.cgroup.v1_tasks.len(), "{}", lines[0]);
}

/// What is written to a terminal until its last slave is closed, without the carriage returns.
pub fn everything_from(running: &Running) -> String {
    let master = running.terminal.as_ref().unwrap().as_fd();
    let (mut all, mut buffer) = (Vec::new(), [0; 512]);
    while let Ok(length) = rustix::io::read(master, &mut buffer) {
        all.extend_from_slice(&buffer[..length]);
    }
    String::from_utf8(all).unwrap().replace('\r', "")
}

fn a_terminal_of_a_first_process(node: &mut Node) {
    let mut container = node.container(&["tty", "--", "stat", "/dev/console", "--", "fds"]);
    container.plan.process.terminal = true;
    container.plan.process.console_size = (100, 30);
    container.plan.process.uid = 1000;
    let pod = node.pod();
    let running = node.start(&pod, &container);
    let text = everything_from(&running);
    assert_eq!(running.ended(), Ended::Exited(0));
    let wanted =
        "isatty=111 controlling=1 name=/dev/pts/0 size=100x30 console=1 leader=1\nchar 620 1000:5 136:0\n0 1 2\n";
    assert_eq!(text, wanted);
}

fn a_terminal_of_an_exec(node: &mut Node) {
    let (_pod, container, running) = sleeping(node);
    let plan = ProcessPlan { terminal: true, console_size: (80, 25), ..process(&["tty", "--", "fds"]) };
    let exec = node.exec(&container, &running.child, plan);
    let text = everything_from(&exec);
    assert_eq!(exec.ended(), Ended::Exited(0));
    assert_eq!(text, "isatty=111 controlling=1 name=/dev/pts/0 size=80x25 console=0 leader=1\n0 1 2\n");
}

fn a_killed_exec_does_not_hurt_the_container(node: &mut Node) {
    let (_pod, container, running) = sleeping(node);
    assert_eq!(node.exec(&container, &running.child, process(&["sleep"])).kill(), Ended::Killed(9));
    assert_eq!(node.exec(&container, &running.child, process(&["say", "alive"])).lines(), ["alive"]);
}
