//! Who a process is and what it may do: the same for a container's first process and for an exec.

use crate::node::{DEFAULT_CAPABILITIES, Node, capabilities, process};
use knarr_model::plan::{Capabilities, Namespace, ProcessPlan};

crate::tests![
    first_process_and_exec_have_the_same_identity,
    capabilities_are_exactly_the_plans,
    root_without_capabilities_gets_none_back,
    ambient_capabilities_survive_execve_of_a_user,
    no_new_privs_is_set_only_when_asked_for,
    a_filter_is_loaded_with_and_without_no_new_privs,
    a_filter_that_hides_clone3_and_forbids_unshare_does_not_hinder_an_exec,
    a_filter_that_is_no_program_is_refused,
    an_apparmor_profile_without_apparmor_is_an_error,
    a_user_may_reopen_its_output,
    the_umask_is_the_plans,
];

const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_NET_BIND: u64 = 1 << 10;

/// As a default profile does it: getppid and unshare fail with EPERM, clone3 with ENOSYS, all else is allowed.
fn filter() -> Vec<u8> {
    let (getppid, unshare, clone3) = if cfg!(target_arch = "x86_64") { (110, 272, 435) } else { (173, 97, 435) };
    let program: [(u16, u8, u8, u32); 7] = [
        (0x20, 0, 0, 0),
        (0x15, 3, 0, getppid),
        (0x15, 2, 0, unshare),
        (0x15, 2, 0, clone3),
        (0x06, 0, 0, 0x7fff_0000),
        (0x06, 0, 0, 0x0005_0001),
        (0x06, 0, 0, 0x0005_0026),
    ];
    let bytes =
        |&(code, jt, jf, k): &(u16, u8, u8, u32)| [code.to_ne_bytes().as_slice(), &[jt, jf], &k.to_ne_bytes()].concat();
    program.iter().flat_map(bytes).collect()
}

pub fn variants(groups: &[u32]) -> Vec<ProcessPlan> {
    let commands = ["status", "--", "getppid"];
    let root = process(&commands);
    let user = ProcessPlan { uid: 1000, gid: 1001, groups: groups.to_vec(), umask: 0o027, ..process(&commands) };
    let strict = ProcessPlan { no_new_privs: true, seccomp: filter(), ..user.clone() };
    let filtered = ProcessPlan { seccomp: filter(), ..user.clone() };
    let filtered_root = ProcessPlan { seccomp: filter(), ..root.clone() };
    let ambient = Capabilities { ambient: CAP_NET_BIND, ..capabilities(DEFAULT_CAPABILITIES) };
    let with_ambient = ProcessPlan { capabilities: ambient, ..user.clone() };
    let none = ProcessPlan { capabilities: capabilities(0), ..root.clone() };
    vec![root, user, strict, filtered, filtered_root, with_ambient, none]
}

fn first_process_and_exec_have_the_same_identity(node: &mut Node) {
    let pods = [(node.pod(), Namespace::Own), (node.pod_with_shared_pid(), Namespace::Pod)];
    for (pod, pid_ns) in &pods {
        for variant in variants(&[5, 1001, 70_000]) {
            let mut first = node.container(&[]);
            first.plan.pid_ns = pid_ns.clone();
            first.plan.process = ProcessPlan { args: variant.args.clone(), ..variant.clone() };
            let of_first = node.start(pod, &first).lines();

            let mut sleeper = node.container(&["sleep"]);
            sleeper.plan.pid_ns = pid_ns.clone();
            let sleeping = node.start(pod, &sleeper);
            let of_exec = node.exec(&sleeper, &sleeping.child, variant.clone()).lines();
            assert_eq!(of_first, of_exec, "{variant:?}");
            assert!(of_first[0].contains(&format!("Uid={0} {0} {0} {0};", variant.uid)), "{of_first:?}");
            let groups: Vec<String> = variant.groups.iter().map(u32::to_string).collect();
            assert!(of_first[0].contains(&format!("Groups={}", groups.join(" "))), "{of_first:?}");
            sleeping.kill();
        }
    }
}

fn field(line: &str, name: &str) -> u64 {
    let at = line.find(&format!("{name}=")).unwrap_or_else(|| panic!("no {name} in {line}")) + name.len() + 1;
    u64::from_str_radix(line[at..].split(';').next().unwrap(), 16).unwrap()
}

fn capabilities_are_exactly_the_plans(node: &mut Node) {
    let held = knarr_sys::capability::current().unwrap().permitted;
    for mask in [DEFAULT_CAPABILITIES, CAP_SYS_ADMIN, 0, u64::MAX] {
        let mut container = node.container(&["status"]);
        container.plan.process.capabilities = capabilities(mask);
        let line = &node.lines(&container)[0];
        for name in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(field(line, name), mask & held, "{name} of {mask:x}: {line}");
        }
        assert_eq!((field(line, "CapInh"), field(line, "CapAmb")), (0, 0), "{line}");
    }
}

fn root_without_capabilities_gets_none_back(node: &mut Node) {
    let mut container = node.container(&["mount-tmpfs", "/tmp"]);
    container.plan.process.capabilities = capabilities(0);
    assert_eq!(node.lines(&container), ["!EPERM"]);
}

fn ambient_capabilities_survive_execve_of_a_user(node: &mut Node) {
    let mut container = node.container(&["status"]);
    container.plan.process.uid = 1000;
    container.plan.process.capabilities = Capabilities { ambient: CAP_NET_BIND, ..capabilities(DEFAULT_CAPABILITIES) };
    let line = &node.lines(&container)[0];
    for name in ["CapPrm", "CapEff", "CapAmb", "CapInh"] {
        assert_eq!(field(line, name), CAP_NET_BIND, "{name}: {line}");
    }
}

fn no_new_privs_is_set_only_when_asked_for(node: &mut Node) {
    for wanted in [false, true] {
        let mut container = node.container(&["status"]);
        container.plan.process.no_new_privs = wanted;
        assert_eq!(field(&node.lines(&container)[0], "NoNewPrivs"), u64::from(wanted));
    }
}

fn a_filter_is_loaded_with_and_without_no_new_privs(node: &mut Node) {
    for no_new_privs in [false, true] {
        for mask in [DEFAULT_CAPABILITIES, 0] {
            let mut container = node.container(&["status", "--", "getppid"]);
            container.plan.process.seccomp = filter();
            container.plan.process.no_new_privs = no_new_privs;
            container.plan.process.capabilities = capabilities(mask);
            let lines = node.lines(&container);
            assert_eq!(field(&lines[0], "Seccomp"), 2);
            assert_eq!(field(&lines[0], "CapPrm"), mask, "what loading the filter needed was kept");
            assert_eq!(field(&lines[0], "NoNewPrivs"), u64::from(no_new_privs));
            assert_eq!(lines[1], "!EPERM");
        }
    }
}

fn a_filter_that_hides_clone3_and_forbids_unshare_does_not_hinder_an_exec(node: &mut Node) {
    let pod = node.pod();
    let container = node.container(&["sleep"]);
    let running = node.start(&pod, &container);
    let plan = ProcessPlan { seccomp: filter(), ..process(&["getppid"]) };
    assert_eq!(node.exec(&container, &running.child, plan).lines(), ["!EPERM"]);
}

fn a_filter_that_is_no_program_is_refused(node: &mut Node) {
    let mut container = node.container(&["exit", "0"]);
    container.plan.process.seccomp = vec![1, 2, 3];
    assert_eq!(node.failure(&container).step, "load the seccomp filter");
}

fn an_apparmor_profile_without_apparmor_is_an_error(node: &mut Node) {
    if std::path::Path::new("/sys/module/apparmor").exists() {
        return;
    }
    let mut container = node.container(&["exit", "0"]);
    container.plan.process.apparmor = b"profile".to_vec();
    let failure = node.failure(&container);
    assert_eq!((failure.step.as_str(), failure.about.as_str()), ("set the AppArmor profile", "profile"));
}

fn a_user_may_reopen_its_output(node: &mut Node) {
    let mut container = node.container(&["create", "/dev/stdout", "by name\n", "--", "create", "/dev/stderr", "too\n"]);
    container.plan.process.uid = 1000;
    container.plan.process.gid = 1000;
    assert_eq!(node.lines(&container), ["by name", "ok", "too", "ok"]);
}

fn the_umask_is_the_plans(node: &mut Node) {
    let mut container = node.container(&["status", "--", "create", "/tmp/file", "x", "--", "stat", "/tmp/file"]);
    container.plan.process.umask = 0o077;
    let lines = node.lines(&container);
    assert!(lines[0].contains("Umask=0077;"), "{}", lines[0]);
    assert_eq!(lines[2], "file 600 0:0");
}
