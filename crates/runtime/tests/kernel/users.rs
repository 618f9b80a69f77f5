//! Pods with a user namespace: whose processes, files and devices are whose, inside and on the host.

use crate::node::{
    Container, DEFAULT_CAPABILITIES, IDS, MS_SLAVE, Node, Running, bind, capabilities, new_mount, process,
};
use knarr_model::plan::{DevicePlan, MountKind, MountPlan, Namespace, PodPlan, ProcessPlan, Rlimit};
use knarr_model::{IdMap, UserNamespace};
use knarr_runtime::PodNamespaces;
use knarr_sys::mount::{self, Attributes};
use knarr_sys::process::Ended;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::process::Command;

crate::tests![
    root_is_somebody_else_on_the_host,
    its_namespaces_belong_to_the_pods_user_namespace,
    first_process_and_exec_have_the_same_identity,
    capabilities_hold_inside_and_nowhere_else,
    the_pods_files_and_devices_are_roots,
    the_templates_are_gone_from_a_container,
    devices_of_the_host_keep_their_owners,
    a_volume_is_mapped_when_asked_for,
    a_volume_that_cannot_be_mapped_is_said,
    what_is_mounted_below_a_volume_is_mapped_where_it_can_be,
    mounts_made_while_starting_are_not_lost,
    a_user_may_reopen_its_output,
    a_terminal_is_its_users,
    a_shared_pid_namespace_works,
    a_targets_pid_namespace_is_joined,
    the_hosts_network_is_seen_and_not_owned,
    sysctls_are_written,
    cgroup2_is_mounted_for_the_pods_root,
    limits_are_raised_before_the_right_to_is_gone,
    an_id_that_is_not_mapped_is_refused,
    ids_that_the_kernel_refuses_are_said,
    a_small_namespace_will_do,
    a_plan_for_the_hosts_users_is_refused,
    a_mapped_volume_without_a_user_namespace_is_refused,
];

const CAP_SYS_ADMIN: u64 = 1 << 21;

fn sleeping(node: &mut Node, pod: &PodNamespaces) -> (Container, Running) {
    let container = node.container_of(pod, &["sleep"]);
    let running = node.start(pod, &container);
    (container, running)
}

fn exec(node: &mut Node, pod: &PodNamespaces, first: &(Container, Running), process: ProcessPlan) -> Running {
    let started = node.try_exec_in(pod.user.as_ref(), &first.0, &first.1.child, process);
    started.unwrap_or_else(|failure| panic!("{failure}"))
}

fn start(node: &mut Node, commands: &[&str]) -> Vec<String> {
    let pod = node.user_pod();
    let container = node.container_of(&pod, commands);
    node.start(&pod, &container).lines()
}

fn root_is_somebody_else_on_the_host(node: &mut Node) {
    let pod = node.user_pod();
    let first = sleeping(node, &pod);
    let commands =
        ["cat", "/proc/self/uid_map", "--", "cat", "/proc/self/gid_map", "--", "cat", "/proc/self/setgroups"];
    let lines = exec(node, &pod, &first, process(&commands)).lines();
    let numbers = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(numbers(&lines[0]), ["0", "100000", "65536"]);
    assert_eq!(numbers(&lines[1]), ["0", "200000", "65536"]);
    assert_eq!(lines[2], "allow");
    let status = fs::read_to_string(format!("/proc/{}/status", first.1.child.pid)).unwrap();
    assert!(status.contains("Uid:\t100000\t100000\t100000\t100000"), "{status}");
    assert!(status.contains("Gid:\t200000\t200000\t200000\t200000"), "{status}");
}

fn its_namespaces_belong_to_the_pods_user_namespace(node: &mut Node) {
    let pod = node.user_pod();
    let first = sleeping(node, &pod);
    let namespace = |pid: u32, kind: &str| fs::File::open(format!("/proc/{pid}/ns/{kind}")).unwrap();
    let users = namespace(first.1.child.pid, "user").metadata().unwrap().ino();
    assert_ne!(users, namespace(std::process::id(), "user").metadata().unwrap().ino());
    for kind in ["mnt", "net", "ipc", "uts", "pid", "cgroup"] {
        let owner = knarr_sys::namespace::owner(namespace(first.1.child.pid, kind)).unwrap();
        assert_eq!(rustix::fs::fstat(owner).unwrap().st_ino, users, "{kind}");
    }
    let kinds = ["mnt", "net", "ipc", "uts", "pid", "cgroup", "user"];
    let commands: Vec<String> = kinds.iter().map(|kind| format!("readlink /proc/self/ns/{kind} --")).collect();
    let commands: Vec<&str> = commands.iter().flat_map(|command| command.split(' ')).collect();
    let of_exec = exec(node, &pod, &first, process(&commands)).lines();
    for (kind, seen) in kinds.iter().zip(&of_exec) {
        let path = format!("/proc/{}/ns/{kind}", first.1.child.pid);
        assert_eq!(fs::read_link(path).unwrap().to_str().unwrap(), seen);
    }
}

fn first_process_and_exec_have_the_same_identity(node: &mut Node) {
    let own = node.user_pod();
    let shared = {
        let plan = PodPlan { user: Some(IDS), shared_pid: true, ..node.pod_plan() };
        node.set_up(&plan).unwrap()
    };
    for (pod, pid_ns) in [(&own, Namespace::Own), (&shared, Namespace::Pod)] {
        for variant in crate::identity::variants(&[5, 1001, 65_000]) {
            let mut container = node.container_of(pod, &[]);
            container.plan.pid_ns = pid_ns.clone();
            container.plan.process = variant.clone();
            let of_first = node.start(pod, &container).lines();

            let mut sleeper = node.container_of(pod, &["sleep"]);
            sleeper.plan.pid_ns = pid_ns.clone();
            let running = node.start(pod, &sleeper);
            let first = (sleeper, running);
            let of_exec = exec(node, pod, &first, variant.clone()).lines();
            assert_eq!(of_first, of_exec, "{variant:?}");
            assert!(of_first[0].contains(&format!("Uid={0} {0} {0} {0};", variant.uid)), "{of_first:?}");
            let groups: Vec<String> = variant.groups.iter().map(u32::to_string).collect();
            assert!(of_first[0].contains(&format!("Groups={}", groups.join(" "))), "{of_first:?}");
            first.1.kill();
        }
    }
}

fn capabilities_hold_inside_and_nowhere_else(node: &mut Node) {
    let theirs = node.dir.join("theirs");
    fs::write(&theirs, "of the host").unwrap();
    for mask in [DEFAULT_CAPABILITIES, u64::MAX] {
        let pod = node.user_pod();
        let commands = [
            "status",
            "--",
            "mknod",
            "/tmp/disk",
            "1",
            "3",
            "--",
            "mount-tmpfs",
            "/tmp",
            "--",
            "write",
            "/theirs",
            "x",
            "--",
            "chown",
            "/theirs",
            "--",
            "signal",
            &std::process::id().to_string(),
            "--",
            "settime",
        ];
        let mut container = node.container_of(&pod, &commands);
        container.plan.mounts.push(bind(&theirs, "/theirs"));
        container.plan.process.capabilities = capabilities(mask);
        let lines = node.start(&pod, &container).lines();
        let held = knarr_sys::capability::current().unwrap().permitted & mask;
        assert!(lines[0].contains(&format!("CapEff={held:016x};")), "{}", lines[0]);
        let mounts = if mask & CAP_SYS_ADMIN == 0 { "!EPERM" } else { "ok" };
        assert_eq!(lines[1..], ["!EPERM", mounts, "!EACCES", "!EPERM", "!ESRCH", "!EPERM"], "{mask:x}");
    }
    assert_eq!(fs::read_to_string(&theirs).unwrap(), "of the host");
    assert_eq!(theirs.metadata().unwrap().uid(), 0);
}

fn the_pods_files_and_devices_are_roots(node: &mut Node) {
    let commands = [
        "stat",
        "/etc/resolv.conf",
        "--",
        "stat",
        "/dev/shm",
        "--",
        "stat",
        "/dev",
        "--",
        "stat",
        "/dev/null",
        "--",
        "stat",
        "/dev/tty",
        "--",
        "write",
        "/dev/null",
        "x",
        "--",
        "stat",
        "/dev/pts/ptmx",
        "--",
        "stat",
        "/bin/probe",
        "--",
        "create",
        "/tmp/new",
        "x",
        "--",
        "stat",
        "/tmp/new",
        "--",
        "stat",
        "/proc/self/stat",
        "--",
        "stat",
        "/dev/mqueue",
        "--",
        "fstype",
        "/sys",
        "--",
        "stat",
        "/sys/fs/cgroup",
        "--",
        "cat",
        "/proc/timer_list",
        "--",
        "stat",
        "/proc/timer_list",
        "--",
        "ls",
        "/sys/firmware",
        "--",
        "write",
        "/etc/resolv.conf",
        "nameserver",
    ];
    let lines = start(node, &commands);
    let wanted = [
        "file 644 0:0",
        "dir 1777 0:0",
        "dir 755 0:0",
        "char 666 0:0 1:3",
        "char 666 0:0 5:0",
        "ok",
        "char 666 0:0 5:2",
        "file 755 0:0",
        "ok",
        "file 644 0:0",
        "file 444 0:0",
        "dir 1777 0:0",
        "62656572",
    ];
    assert_eq!(lines[..wanted.len()], wanted);
    // A tmpfs of ours beside hierarchies of version 1, else the host's.
    assert!(lines[13].starts_with("dir "), "{}", lines[13]);
    assert_eq!(lines[14..], ["", "file 444 0:0", "", "ok"]);
}

fn the_templates_are_gone_from_a_container(node: &mut Node) {
    let table = start(node, &["cat", "/proc/self/mountinfo"]).remove(0);
    for (fstype, place) in [("proc", "/proc"), ("sysfs", "/sys")] {
        let whole = table.split('|').filter(|line| line.contains(&format!(" - {fstype} ")));
        let places =
            whole.filter(|line| line.split(' ').nth(3) == Some("/")).map(|line| line.split(' ').nth(4).unwrap());
        assert_eq!(places.collect::<Vec<_>>(), [place], "{table}");
    }
}

fn devices_of_the_host_keep_their_owners(node: &mut Node) {
    let device = |path: &str, minor: u32| DevicePlan {
        path: path.as_bytes().to_vec(),
        kind: b'c',
        major: 1,
        minor,
        mode: 0o600,
        uid: 0,
        gid: 0,
    };
    let pod = node.user_pod();
    let names = ["/dev/null", "/dev/kmsg", "/dev/renamed", "/dev/renamed-null"];
    let commands: Vec<String> = names.iter().map(|name| format!("stat {name} -- cat {name} --")).collect();
    let commands: Vec<&str> = commands.iter().flat_map(|command| command.split(' ')).collect();
    let mut container = node.container_of(&pod, &commands);
    container.plan.process.capabilities = capabilities(u64::MAX);
    // One that the host has at the same place, one that it has nowhere by that name, and a harmless one of that kind.
    container.plan.devices.push(device("/dev/kmsg", 11));
    container.plan.devices.push(device("/dev/renamed", 11));
    container.plan.devices.push(device("/dev/renamed-null", 3));
    let lines = node.start(&pod, &container).lines();
    assert_eq!(lines[..2], ["char 666 0:0 1:3", ""]);
    assert!(lines[2].starts_with("char ") && lines[2].ends_with(" 65534:65534 1:11"), "{}", lines[2]);
    assert_eq!(lines[4..], ["char 600 65534:65534 1:11", "!EACCES", "char 600 0:0 1:3", ""]);
}

fn mapped(source: &Path, target: &str) -> MountPlan {
    let mut mount = bind(source, target);
    if let MountKind::Bind { id_mapped, .. } = &mut mount.kind {
        *id_mapped = true;
    }
    mount
}

fn a_volume_is_mapped_when_asked_for(node: &mut Node) {
    let [plain, owned] = ["plain", "mapped"].map(|name| node.dir.join(name));
    for volume in [&plain, &owned] {
        fs::create_dir(volume).unwrap();
        for (name, uid, gid) in [("root", 0, 0), ("user", 1000, 1001), ("pods", 101_000, 201_000)] {
            fs::write(volume.join(name), "").unwrap();
            chown(volume.join(name), Some(uid), Some(gid)).unwrap();
        }
    }
    let pod = node.user_pod();
    let commands = ["plain", "mapped"].map(|volume| {
        format!("stat /{volume}/root -- stat /{volume}/user -- stat /{volume}/pods -- create /{volume}/new x -- ")
    });
    let commands: Vec<&str> = commands.iter().flat_map(|command| command.split_whitespace()).collect();
    let mut container = node.container_of(&pod, &commands);
    container.plan.mounts.extend([bind(&plain, "/plain"), mapped(&owned, "/mapped")]);
    let lines = node.start(&pod, &container).lines();
    let nobodys = "file 644 65534:65534";
    assert_eq!(lines[..4], [nobodys, nobodys, "file 644 1000:1000", "!EACCES"]);
    assert_eq!(lines[4..], ["file 644 0:0", "file 644 1000:1001", nobodys, "ok"]);
    let new = owned.join("new").metadata().unwrap();
    assert_eq!((new.uid(), new.gid()), (0, 0));
    // The same volume, where it is not mapped, has what the pod writes under the pod's ids.
    chown(&plain, Some(100_000), Some(200_000)).unwrap();
    let mut container = node.container_of(&pod, &["create", "/plain/new", "x"]);
    container.plan.mounts.push(bind(&plain, "/plain"));
    assert_eq!(node.start(&pod, &container).lines(), ["ok"]);
    let new = plain.join("new").metadata().unwrap();
    assert_eq!((new.uid(), new.gid()), (100_000, 200_000));
}

fn a_volume_that_cannot_be_mapped_is_said(node: &mut Node) {
    let pod = node.user_pod();
    let mut container = node.container_of(&pod, &["exit", "0"]);
    container.plan.mounts.push(mapped(Path::new("/proc/sys"), "/vol"));
    let failure = node.try_start(&pod, &container, None).err().unwrap();
    let wanted = "map the owners of volume (its file system must support id-mapped mounts)";
    assert_eq!((failure.step.as_str(), failure.errno, failure.about.as_str()), (wanted, 22, "/proc/sys"));
}

fn place(fstype: &std::ffi::CStr, path: &Path) {
    fs::create_dir(path).unwrap();
    let new = mount::new_filesystem(fstype, [], Attributes::default()).unwrap();
    let target = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    mount::place(new, mount::open_path(&target).unwrap()).unwrap();
}

fn what_is_mounted_below_a_volume_is_mapped_where_it_can_be(node: &mut Node) {
    let volume = node.dir.join("volume");
    fs::create_dir(&volume).unwrap();
    place(c"tmpfs", &volume.join("below"));
    let pod = node.user_pod();
    let commands = ["stat", "/vol", "--", "stat", "/vol/below"];
    let mut container = node.container_of(&pod, &commands);
    container.plan.mounts.push(mapped(&volume, "/vol"));
    assert_eq!(node.start(&pod, &container).lines(), ["dir 755 0:0", "dir 1777 0:0"]);
    place(c"proc", &volume.join("proc"));
    let mut container = node.container_of(&pod, &commands);
    container.plan.mounts.push(mapped(&volume, "/vol"));
    assert_eq!(node.start(&pod, &container).lines(), ["dir 755 0:0", "dir 1777 65534:65534"]);
}

fn mounts_made_while_starting_are_not_lost(node: &mut Node) {
    const MOUNTS: usize = 150;
    let source = node.dir.join("shared");
    place(c"tmpfs", &source);
    let root = mount::open_path(c"/mnt/shared").unwrap();
    mount::set_attributes(root, false, Attributes::propagation(crate::node::MS_SHARED)).unwrap();
    let script = format!(
        "for i in $(seq {MOUNTS}); do mkdir {0}/m$i; mount -t tmpfs -o size=4k t {0}/m$i || exit 1; done; : >{0}/go",
        source.display()
    );
    let pod = node.user_pod();
    let mut mounter = Command::new("sh").arg("-c").arg(script).spawn().unwrap();
    let mut all = Vec::new();
    while mounter.try_wait().unwrap().is_none() {
        let mut container = node.container_of(&pod, &["wait-for", "/vol/go", "--", "points", "/vol/m"]);
        let mut volume = mapped(&source, "/vol");
        if let MountKind::Bind { propagation, .. } = &mut volume.kind {
            *propagation = MS_SLAVE;
        }
        container.plan.mounts.push(volume);
        all.push(node.start(&pod, &container));
    }
    assert!(mounter.wait().unwrap().success());
    assert!(all.len() > 10, "only {} containers were started meanwhile", all.len());
    for running in all {
        assert_eq!(running.lines(), ["there", &MOUNTS.to_string()]);
    }
}

fn a_user_may_reopen_its_output(node: &mut Node) {
    for (uid, gid) in [(0, 0), (1000, 1000)] {
        let pod = node.user_pod();
        let commands = ["create", "/dev/stdout", "by name\n", "--", "create", "/dev/stderr", "too\n"];
        let mut container = node.container_of(&pod, &commands);
        (container.plan.process.uid, container.plan.process.gid) = (uid, gid);
        assert_eq!(node.start(&pod, &container).lines(), ["by name", "ok", "too", "ok"], "{uid}");
        let first = sleeping(node, &pod);
        let plan = ProcessPlan { uid, gid, ..process(&commands) };
        assert_eq!(exec(node, &pod, &first, plan).lines(), ["by name", "ok", "too", "ok"], "{uid}");
    }
}

fn a_terminal_is_its_users(node: &mut Node) {
    let pod = node.user_pod();
    let mut container = node.container_of(&pod, &["tty", "--", "stat", "/dev/console", "--", "fds"]);
    container.plan.process.terminal = true;
    container.plan.process.console_size = (100, 30);
    container.plan.process.uid = 1000;
    let running = node.start(&pod, &container);
    let text = crate::exec::everything_from(&running);
    assert_eq!(running.ended(), Ended::Exited(0));
    let wanted =
        "isatty=111 controlling=1 name=/dev/pts/0 size=100x30 console=1 leader=1\nchar 620 1000:5 136:0\n0 1 2\n";
    assert_eq!(text, wanted);
    let first = sleeping(node, &pod);
    let plan = ProcessPlan { terminal: true, console_size: (80, 25), uid: 1000, ..process(&["tty", "--", "fds"]) };
    let exec = exec(node, &pod, &first, plan);
    let text = crate::exec::everything_from(&exec);
    assert_eq!(exec.ended(), Ended::Exited(0));
    assert_eq!(text, "isatty=111 controlling=1 name=/dev/pts/0 size=80x25 console=0 leader=1\n0 1 2\n");
}

fn a_shared_pid_namespace_works(node: &mut Node) {
    let plan = PodPlan { user: Some(IDS), shared_pid: true, ..node.pod_plan() };
    let pod = node.set_up(&plan).unwrap();
    let init = pod.pid_init.as_ref().unwrap().pid;
    let status = fs::read_to_string(format!("/proc/{init}/status")).unwrap();
    for line in ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "Uid:\t165535\t165535", "NoNewPrivs:\t1"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    let mut one = node.container_of(&pod, &["sleep"]);
    one.plan.pid_ns = Namespace::Pod;
    let sleeping = node.start(&pod, &one);
    let commands = [
        "ids",
        "--",
        "cat",
        "/proc/1/comm",
        "--",
        "cat",
        "/proc/2/comm",
        "--",
        "fstype",
        "/proc",
        "--",
        "readlink",
        "/proc/1/root",
    ];
    let mut other = node.container_of(&pod, &commands);
    other.plan.pid_ns = Namespace::Pod;
    other.plan.process.capabilities = capabilities(u64::MAX);
    let lines = node.start(&pod, &other).lines();
    assert!(lines[0] != "pid=1 ppid=0" && lines[0].ends_with("ppid=0"), "{lines:?}");
    assert_eq!(lines[1..], ["knarr-init", "probe", "9fa0", "!EACCES"]);
    sleeping.kill();
}

fn a_targets_pid_namespace_is_joined(node: &mut Node) {
    let pod = node.user_pod();
    let (target, sleeping) = sleeping(node, &pod);
    let mut container =
        node.container_of(&pod, &["readlink", "/proc/self/ns/pid", "--", "fstype", "/proc", "--", "ids"]);
    container.plan.pid_ns = Namespace::Of(target.plan.id.clone());
    let running = node.try_start(&pod, &container, Some(&sleeping.child)).unwrap_or_else(|failure| panic!("{failure}"));
    let lines = running.lines();
    let wanted = fs::read_link(format!("/proc/{}/ns/pid", sleeping.child.pid)).unwrap();
    assert_eq!(lines[..2], [wanted.to_str().unwrap(), "9fa0"]);
    sleeping.kill();
}

fn the_hosts_network_is_seen_and_not_owned(node: &mut Node) {
    let plan = PodPlan { user: Some(IDS), new_net: false, new_uts: false, ..node.pod_plan() };
    let pod = node.set_up(&plan).unwrap();
    let commands = [
        "readlink",
        "/proc/self/ns/net",
        "--",
        "fstype",
        "/sys",
        "--",
        "ls",
        "/sys/class/net",
        "--",
        "stat",
        "/sys/kernel",
        "--",
        "write",
        "/sys/class/net/lo/mtu",
        "1500",
        "--",
        "write",
        "/proc/sys/net/ipv4/ip_forward",
        "1",
    ];
    let mut container = node.container_of(&pod, &commands);
    container.plan.process.capabilities = capabilities(u64::MAX);
    container.plan.readonly_paths.clear();
    container.plan.mounts.retain(|mount| !mount.target.starts_with(b"/sys"));
    container.plan.mounts.push(new_mount("sysfs", "/sys", "", 0));
    let lines = node.start(&pod, &container).lines();
    assert_eq!(lines[0], fs::read_link("/proc/self/ns/net").unwrap().to_str().unwrap());
    assert_eq!(lines[1], "62656572");
    assert!(lines[2].split(' ').any(|link| link == "lo"), "{}", lines[2]);
    assert_eq!(lines[3..], ["dir 755 65534:65534", "!EACCES", "!EACCES"]);
}

fn sysctls_are_written(node: &mut Node) {
    let names =
        ["net/ipv4/ip_unprivileged_port_start", "net/ipv4/ping_group_range", "kernel/shm_rmid_forced", "kernel/msgmax"];
    let values = ["77", "0\t65535", "1", "4321"];
    let sysctls = names.iter().zip(values).map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec()));
    let plan = PodPlan { user: Some(IDS), sysctls: sysctls.collect(), ..node.pod_plan() };
    let pod = node.set_up(&plan).unwrap();
    let commands: Vec<String> = names.iter().map(|name| format!("cat /proc/sys/{name} --")).collect();
    let commands: Vec<&str> = commands.iter().flat_map(|command| command.split(' ')).collect();
    let container = node.container_of(&pod, &commands);
    assert_eq!(node.start(&pod, &container).lines(), values);
    // A group that is nobody's is not taken.
    let sysctls = vec![(names[1].as_bytes().to_vec(), b"0 2147483647".to_vec())];
    let plan = PodPlan { user: Some(IDS), sysctls, ..node.pod_plan() };
    let failure = node.set_up(&plan).err().unwrap();
    assert_eq!((failure.step.as_str(), failure.errno, failure.about.as_str()), ("set sysctl", 22, names[1]));
}

fn cgroup2_is_mounted_for_the_pods_root(node: &mut Node) {
    let pod = node.user_pod();
    let mut container = node.container_of(&pod, &["fstype", "/sys/fs/cgroup", "--", "cat", "/proc/self/cgroup"]);
    for mount in &mut container.plan.mounts {
        if let MountKind::Cgroup { v1 } = &mut mount.kind {
            v1.clear();
        }
    }
    let lines = node.start(&pod, &container).lines();
    assert_eq!(lines[0], "63677270");
    assert!(lines[1].split('|').all(|line| line.ends_with(":/")), "{}", lines[1]);
}

fn limits_are_raised_before_the_right_to_is_gone(node: &mut Node) {
    let limit = |soft, hard| Rlimit { resource: 7, soft, hard };
    let now = fs::read_to_string("/proc/self/limits").unwrap();
    let line = now.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let hard: u64 = line.split_whitespace().nth(4).unwrap().parse().unwrap();
    let may_raise = knarr_sys::capability::current().unwrap().effective & knarr_sys::capability::SYS_RESOURCE != 0;
    let pod = node.user_pod();
    for (asked, wanted) in [(hard + 10, if may_raise { hard + 10 } else { hard }), (77, 77)] {
        let mut container = node.container_of(&pod, &["nofile"]);
        container.plan.process.rlimits = vec![limit(asked, asked)];
        assert_eq!(node.start(&pod, &container).lines(), [wanted.to_string()]);
    }
}

fn an_id_that_is_not_mapped_is_refused(node: &mut Node) {
    let pod = node.user_pod();
    let plans = [
        ("set user id", ProcessPlan { uid: 65_536, ..process(&["exit", "0"]) }),
        ("set group id", ProcessPlan { gid: 70_000, ..process(&["exit", "0"]) }),
        ("set supplementary groups", ProcessPlan { groups: vec![1, 65_536], ..process(&["exit", "0"]) }),
    ];
    for (step, plan) in plans {
        let mut container = node.container_of(&pod, &[]);
        container.plan.process = plan;
        let failure = node.try_start(&pod, &container, None).err().unwrap();
        assert_eq!((failure.step.as_str(), failure.errno), (step, 22));
        assert!(failure.about.ends_with(", which is not mapped"), "{failure}");
    }
}

fn ids_that_the_kernel_refuses_are_said(node: &mut Node) {
    let too_many = IdMap { host: u32::MAX - 1, container: 0, length: 65_536 };
    let plan = PodPlan { user: Some(UserNamespace { gids: too_many, ..IDS }), ..node.pod_plan() };
    let failure = node.set_up(&plan).err().unwrap();
    assert_eq!(failure.step, "map the ids of the user namespace", "{failure}");
    assert_eq!(failure.about, "0 4294967294 65536");
    assert_eq!(knarr_sys::process::reap_any().unwrap(), None, "a child was left");
}

fn a_small_namespace_will_do(node: &mut Node) {
    let small = IdMap { host: 100_000, container: 0, length: 2 };
    let ids = UserNamespace { uids: small, gids: small };
    let plan = PodPlan { user: Some(ids), shared_pid: true, ..node.pod_plan() };
    let pod = node.set_up(&plan).unwrap();
    let mut container = node.container_of(&pod, &["cat", "/proc/self/uid_map"]);
    container.plan.pid_ns = Namespace::Pod;
    for mount in &mut container.plan.mounts {
        if mount.target == b"/dev/pts" {
            *mount = new_mount("devpts", "/dev/pts", "newinstance,ptmxmode=0666,mode=0620", 0);
        }
    }
    assert!(node.start(&pod, &container).lines()[0].ends_with(" 2"));
}

fn a_plan_for_the_hosts_users_is_refused(node: &mut Node) {
    let pod = node.user_pod();
    let mut container = node.container_of(&pod, &["exit", "0"]);
    container.plan.user_ns = Namespace::Host;
    assert_eq!(node.try_start(&pod, &container, None).err().unwrap().step, "join the pod's user namespace");
}

fn a_mapped_volume_without_a_user_namespace_is_refused(node: &mut Node) {
    let mut container = node.container(&["exit", "0"]);
    let volume = node.dir.clone();
    container.plan.mounts.push(mapped(&volume, "/vol"));
    let failure = node.failure(&container);
    assert_eq!((failure.errno, failure.about.as_str()), (22, "the pod has no user namespace"));
}
