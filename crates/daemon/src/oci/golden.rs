//! Plans of typical containers as text, held against files, and the rules that no single plan shows.
//!
//! `KNARR_UPDATE_GOLDEN=1 cargo test -p knarr-daemon golden` writes the files anew; the difference is for a person to
//! read.

use super::users::ResolvedUser;
use super::*;
use knarr_model::plan::{CgroupPlan, ContainerPlan, FdIndex, MountKind, Namespace, ProcessPlan};
use knarr_model::resources::Resources;
use knarr_model::spec::{
    Device, Mount, MountSource, PidNamespace, PodNamespaces, Profile, Propagation, Security, SelinuxOptions,
};
use knarr_model::{Error, ErrorKind, IdMap, UserNamespace};
use oci_spec::runtime::{HookBuilder, HooksBuilder, LinuxNamespace, LinuxNamespaceType, Spec};
use std::fmt::Write as _;

/// Everything that [`Inputs`] borrows.
struct Case {
    pod_id: PodId,
    pod: PodSpec,
    container: ContainerSpec,
    image: ImageConfig,
    user: ResolvedUser,
    pod_dir: PodDir,
    devices: Vec<DeviceNode>,
    host: HostFacts,
}

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

fn bind(container_path: &str, host_path: &str) -> Mount {
    Mount {
        container_path: container_path.into(),
        source: MountSource::Host(host_path.into()),
        read_only: false,
        recursive_read_only: false,
        selinux_relabel: false,
        propagation: Propagation::Private,
        uid_mappings: Vec::<IdMap>::new(),
        gid_mappings: Vec::new(),
    }
}

/// An ordinary container of an ordinary pod as kubelet makes it, on a cgroup v2 host.
fn kubelet() -> Case {
    let kubelet_dir = "/var/lib/kubelet/pods/6f1e";
    Case {
        pod_id: PodId::from_bytes(&[0xab; 32]),
        pod: PodSpec {
            name: "web-0".into(),
            namespace: "default".into(),
            uid: "6f1e".into(),
            hostname: "web-0".into(),
            log_directory: "/var/log/pods/default_web-0_6f1e".into(),
            ..PodSpec::default()
        },
        container: ContainerSpec {
            name: "nginx".into(),
            image: "sha256:0f2a".into(),
            envs: vec![("KUBERNETES_PORT".into(), "tcp://10.96.0.1:443".into()), ("PATH".into(), "/bin".into())],
            mounts: vec![
                Mount { read_only: true, ..bind("/var/run/secrets/kubernetes.io/serviceaccount", "/kubelet/token") },
                bind("/etc/hosts", &format!("{kubelet_dir}/etc-hosts")),
                bind("/dev/termination-log", &format!("{kubelet_dir}/containers/nginx/1")),
                bind("/data", &format!("{kubelet_dir}/volumes/data")),
            ],
            log_path: "nginx/0.log".into(),
            resources: Resources { oom_score_adj: Some(985), memory_limit: Some(64 << 20), ..Resources::default() },
            security: Security {
                masked_paths: strings(&["/proc/kcore", "/sys/firmware"]),
                readonly_paths: strings(&["/proc/sys"]),
                seccomp: Profile::RuntimeDefault,
                apparmor: Profile::RuntimeDefault,
                ..Security::default()
            },
            ..ContainerSpec::default()
        },
        image: ImageConfig {
            entrypoint: strings(&["/docker-entrypoint.sh"]),
            cmd: strings(&["nginx", "-g", "daemon off;"]),
            env: strings(&["PATH=/usr/sbin:/usr/bin", "NGINX_VERSION=1.27", "no equals sign"]),
            working_dir: "srv".into(),
            ..ImageConfig::default()
        },
        user: ResolvedUser {
            uid: 101,
            gid: 101,
            groups: vec![101, 7],
            home: "/nonexistent".into(),
            name: "nginx".into(),
        },
        pod_dir: PodDir::new("/run/knarr/pods/abab"),
        devices: Vec::new(),
        host: HostFacts {
            default_capabilities: crate::oci::capability::mask(crate::oci::capability::DEFAULT),
            hostname: "node-1".into(),
            kernel: KernelVersion(6, 1),
            cgroup_v2: true,
            capabilities: capability::ALL,
            seccomp: true,
            apparmor: false,
            apparmor_default: None,
            selinux: false,
        },
    }
}

fn privileged() -> Case {
    let mut case = kubelet();
    case.pod.privileged = true;
    case.container.security.privileged = true;
    case.container.mounts = vec![Mount { propagation: Propagation::Bidirectional, ..bind("/host", "/") }];
    case.devices = vec![DeviceNode {
        path: "/dev/fuse".into(),
        character: true,
        major: 10,
        minor: 229,
        mode: 0o660,
        uid: 0,
        gid: 44,
        permissions: "rwm".into(),
    }];
    case
}

fn host_network() -> Case {
    let mut case = kubelet();
    case.pod.hostname = String::new();
    case.pod.namespaces =
        PodNamespaces { host_network: true, host_ipc: true, host_pid: true, ..PodNamespaces::default() };
    let security = &mut case.container.security;
    (security.host_network, security.host_ipc, security.pid) = (true, true, PidNamespace::Host);
    security.read_only_rootfs = true;
    security.drop_capabilities = strings(&["ALL"]);
    security.add_capabilities = strings(&["NET_BIND_SERVICE"]);
    security.add_ambient_capabilities = strings(&["NET_BIND_SERVICE"]);
    security.no_new_privs = true;
    case.host.cgroup_v2 = false;
    case
}

fn terminal() -> Case {
    let mut case = kubelet();
    let container = &mut case.container;
    (container.tty, container.stdin, container.stdin_once) = (true, true, true);
    container.command = strings(&["sh"]);
    container.working_dir = "/tmp".into();
    container.mounts = vec![Mount { propagation: Propagation::HostToContainer, ..bind("/dev/shm", "/dev/shm") }];
    container.security.pid = PidNamespace::Pod;
    container.security.seccomp = Profile::Unconfined;
    case.user = ResolvedUser { uid: 0, gid: 0, groups: vec![0], home: "/root".into(), name: "root".into() };
    case
}

/// A pod with a user namespace, as kubelet asks for it.
fn user_namespace() -> Case {
    let mut case = kubelet();
    let ids = IdMap { host: 1_310_720, container: 0, length: 65_536 };
    case.pod.namespaces.user = Some(UserNamespace { uids: ids, gids: ids });
    for mount in &mut case.container.mounts {
        (mount.uid_mappings, mount.gid_mappings) = (vec![ids], vec![ids]);
    }
    case.container.mounts.push(bind("/not-mapped", "/srv/not-mapped"));
    case
}

fn built(case: &Case) -> Result<Spec, Error> {
    let seccomp = seccomp::choose(&case.container.security)?;
    build(&Inputs {
        pod_id: &case.pod_id,
        pod: &case.pod,
        container: &case.container,
        image: &case.image,
        user: &case.user,
        pod_dir: &case.pod_dir,
        cgroups_path: "/kubepods/pod6f1e/cd",
        seccomp: seccomp.as_deref(),
        devices: &case.devices,
        all_devices: case.container.security.privileged,
        host: &case.host,
    })
}

/// Eight bytes stand for the filter: what is in it is tested where it is compiled.
fn filter(spec: &Spec) -> &'static [u8] {
    if spec.linux().as_ref().is_some_and(|linux| linux.seccomp().is_some()) { &[6, 0, 0, 0, 0, 0, 0, 0] } else { &[] }
}

fn planned(case: &Case) -> Result<ContainerPlan, Error> {
    plan_of(case, &built(case)?)
}

fn plan_of(case: &Case, spec: &Spec) -> Result<ContainerPlan, Error> {
    let v1 = [(b"memory".to_vec(), b"/sys/fs/cgroup/memory/kubepods/pod6f1e/cd".to_vec())];
    let inputs = PlanInputs {
        id: &ContainerId::from_bytes(&[0xcd; 32]),
        pod_dir: &case.pod_dir,
        rootfs: FdIndex(0),
        image_volumes: &[FdIndex(7), FdIndex(8)],
        cgroup: CgroupPlan { into: FdIndex(1), v1_tasks: Vec::new() },
        cgroup_v1: if case.host.cgroup_v2 { &[] } else { &v1 },
        seccomp: filter(spec),
        stdio: stdio(&case.pod, &case.container),
    };
    plan(spec, inputs)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn flags(bits: u64) -> String {
    let names = [(1, "ro"), (2, "nosuid"), (4, "nodev"), (8, "noexec"), (1 << 10, "noatime"), (1 << 21, "relatime")];
    let words: Vec<&str> = names.iter().filter(|(bit, _)| bits & bit != 0).map(|(_, name)| *name).collect();
    let known = names.iter().fold(0, |sum, (bit, _)| sum | bit);
    assert_eq!(bits & !known, 0, "flags {bits:#x}");
    words.join(",")
}

fn propagation(bits: u64) -> &'static str {
    match bits {
        0x4_0000 => "private",
        0x8_0000 => "slave",
        0x10_0000 => "shared",
        other => panic!("propagation {other:#x}"),
    }
}

fn kind(kind: &MountKind) -> String {
    match kind {
        MountKind::Bind { source, propagation: bits, recursive_flags, id_mapped } => {
            let recursive = if *recursive_flags { " recursive" } else { "" };
            let mapped = if *id_mapped { " id-mapped" } else { "" };
            format!("bind {} {}{recursive}{mapped}", text(source), propagation(*bits))
        }
        MountKind::New { fstype, options } => format!("{} {}", text(fstype), text(options)),
        MountKind::PodFile(name) => format!("pod file {}", text(name)),
        MountKind::PodShm => "pod shm".into(),
        MountKind::Detached(index) => format!("detached {}", index.0),
        MountKind::Cgroup { v1 } => {
            let v1: Vec<String> = v1.iter().map(|(name, path)| format!("{}={}", text(name), text(path))).collect();
            format!("cgroup {}", v1.join(" "))
        }
    }
}

fn render_process(process: &ProcessPlan) -> String {
    let mut out = String::new();
    let words = |list: &[Vec<u8>]| list.iter().map(|one| format!("{:?}", text(one))).collect::<Vec<_>>().join(" ");
    let _ = writeln!(out, "args {}", words(&process.args));
    for entry in &process.env {
        let _ = writeln!(out, "env {}", text(entry));
    }
    let _ = writeln!(out, "cwd {} create {}", text(&process.cwd), process.create_cwd);
    let _ = writeln!(out, "user {}:{} groups {:?} umask {:o}", process.uid, process.gid, process.groups, process.umask);
    let capabilities = process.capabilities;
    let _ = writeln!(
        out,
        "capabilities bounding {:x} effective {:x} permitted {:x} ambient {:x}",
        capabilities.bounding, capabilities.effective, capabilities.permitted, capabilities.ambient
    );
    let _ = writeln!(out, "no_new_privs {} seccomp {}", process.no_new_privs, !process.seccomp.is_empty());
    let _ = writeln!(out, "apparmor {:?} selinux {:?}", text(&process.apparmor), text(&process.selinux));
    let _ = writeln!(out, "rlimits {:?} oom {:?}", process.rlimits, process.oom_score_adj);
    let _ = writeln!(out, "terminal {} {:?}", process.terminal, process.console_size);
    out
}

fn render(plan: &ContainerPlan) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "namespaces pid {:?} net {:?} ipc {:?} uts {:?} new cgroup {}",
        plan.pid_ns, plan.net_ns, plan.ipc_ns, plan.uts_ns, plan.new_cgroup_ns
    );
    if plan.user_ns != Namespace::Host {
        let _ = writeln!(out, "user namespace {:?}", plan.user_ns);
    }
    let _ = writeln!(out, "rootfs {} read-only {}", plan.rootfs.0, plan.read_only_rootfs);
    for mount in &plan.mounts {
        let _ =
            writeln!(out, "mount {} [{}] {}", text(&mount.target), flags(mount.flags), kind(&mount.kind).trim_end());
    }
    for node in &plan.devices {
        let _ = writeln!(
            out,
            "device {} {} {}:{} {:o} {}:{}",
            text(&node.path),
            char::from(node.kind),
            node.major,
            node.minor,
            node.mode,
            node.uid,
            node.gid
        );
    }
    for (path, target) in &plan.links {
        let _ = writeln!(out, "link {} -> {}", text(path), text(target));
    }
    for path in &plan.masked_paths {
        let _ = writeln!(out, "masked {}", text(path));
    }
    for path in &plan.readonly_paths {
        let _ = writeln!(out, "read-only {}", text(path));
    }
    out.push_str(&render_process(&plan.process));
    let stdio = &plan.stdio;
    let _ = writeln!(out, "log {} stdin {} once {}", text(&stdio.log_path), stdio.stdin, stdio.stdin_once);
    out
}

fn check(name: &str, actual: &str) {
    let path = format!("{}/src/oci/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("KNARR_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).expect("write the golden file");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(actual, expected, "{path}");
}

#[test]
fn plans_of_typical_containers_are_as_written_down() {
    for (name, case) in [
        ("kubelet", kubelet()),
        ("privileged", privileged()),
        ("host_network", host_network()),
        ("terminal", terminal()),
        ("user_namespace", user_namespace()),
    ] {
        check(name, &render(&planned(&case).unwrap()));
    }
}

#[test]
fn an_exec_differs_from_the_first_process_only_in_what_it_runs() {
    for case in [kubelet(), privileged(), host_network(), terminal()] {
        let first = planned(&case).unwrap().process;
        let spec = built(&case).unwrap();
        let request = ExecRequest { args: strings(&["id"]), tty: case.container.tty, console_size: (80, 24) };
        let exec = exec_plan(&spec, &request, filter(&spec)).unwrap();
        let expected = ProcessPlan { args: vec![b"id".to_vec()], create_cwd: false, console_size: (80, 24), ..first };
        assert_eq!(exec, expected);
    }
    let spec = built(&kubelet()).unwrap();
    let request = ExecRequest { args: strings(&["sh"]), tty: true, ..ExecRequest::default() };
    let exec = exec_plan(&spec, &request, filter(&spec)).unwrap();
    assert!(exec.env.contains(&b"TERM=xterm".to_vec()) && exec.terminal);
    assert!(exec_plan(&spec, &ExecRequest::default(), filter(&spec)).is_err(), "nothing to run");
}

#[test]
fn nothing_runs_without_the_filter_that_its_specification_has() {
    let spec = built(&kubelet()).unwrap();
    let request = ExecRequest { args: strings(&["id"]), ..ExecRequest::default() };
    assert!(exec_plan(&spec, &request, &[]).is_err());
}

#[test]
fn arguments_follow_kubernetes_table() {
    for (command, args, entrypoint, cmd, expected) in [
        (&[][..], &[][..], &["e"][..], &["c"][..], &["e", "c"][..]),
        (&["x"], &[], &["e"], &["c"], &["x"]),
        (&[], &["y"], &["e"], &["c"], &["e", "y"]),
        (&["x"], &["y"], &["e"], &["c"], &["x", "y"]),
        (&[], &[], &[], &["c"], &["c"]),
        (&[], &["y"], &[], &["c"], &["y"]),
    ] {
        let mut case = kubelet();
        case.container.command = strings(command);
        case.container.args = strings(args);
        case.image.entrypoint = strings(entrypoint);
        case.image.cmd = strings(cmd);
        let process = planned(&case).unwrap().process;
        assert_eq!(process.args.iter().map(|arg| text(arg)).collect::<Vec<_>>(), expected);
    }
    let mut case = kubelet();
    (case.image.entrypoint, case.image.cmd) = (vec![], vec![]);
    let error = planned(&case).unwrap_err();
    assert_eq!(error.kind, ErrorKind::InvalidArgument);
    assert!(error.message.contains("no command specified"), "{error}");
}

fn targets(plan: &ContainerPlan) -> Vec<String> {
    plan.mounts.iter().map(|mount| text(&mount.target)).collect()
}

#[test]
fn a_volume_replaces_what_would_be_there_and_none_hides_another() {
    let mut case = kubelet();
    case.container.mounts = vec![
        bind("/a/b/c", "/1"),
        bind("/a", "/2"),
        bind("/etc//resolv.conf", "/3"),
        bind("/a/b/../d", "/4"),
        bind("/sys/fs/cgroup/", "/5"),
        bind("/z", "/6"),
    ];
    let targets = targets(&planned(&case).unwrap());
    let tail = [
        "/a",
        "/z",
        "/etc/hostname",
        "/etc/hosts",
        "/dev/shm",
        "/etc//resolv.conf",
        "/a/b/../d",
        "/a/b/c",
        "/sys/fs/cgroup/",
    ];
    assert_eq!(targets[..5], ["/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys"]);
    let mut sorted = tail.to_vec();
    sorted.sort_unstable();
    let mut got: Vec<&str> = targets[5..].iter().map(String::as_str).collect();
    let at = |name: &str| targets.iter().position(|target| target == name).unwrap();
    assert!(at("/a") < at("/a/b/../d") && at("/a/b/../d") < at("/a/b/c"));
    assert!(at("/a") < at("/z"), "as many parts: the request's order");
    got.sort_unstable();
    assert_eq!(got, sorted);
}

#[test]
fn a_volume_over_dev_brings_its_own_nodes() {
    let mut case = kubelet();
    case.container.mounts = vec![bind("/dev/", "/dev")];
    let plan = planned(&case).unwrap();
    assert!(plan.devices.is_empty() && plan.links.is_empty());
    let targets = targets(&plan);
    assert!(!targets.iter().any(|target| target == "/dev/pts" || target == "/dev/mqueue"), "{targets:?}");
}

#[test]
fn read_only_can_reach_below_the_volume() {
    let mut case = kubelet();
    case.container.mounts = vec![Mount { read_only: true, recursive_read_only: true, ..bind("/data", "/mnt") }];
    let plan = planned(&case).unwrap();
    let mount = plan.mounts.iter().find(|mount| mount.target == b"/data").unwrap();
    assert_eq!(kind(&mount.kind), "bind /mnt private recursive");
    assert_eq!(mount.flags, 1);
}

#[test]
fn a_target_is_another_containers_pid_namespace() {
    let mut case = kubelet();
    let target = ContainerId::from_bytes(&[0xee; 32]);
    case.container.security.pid = PidNamespace::Target(target.clone());
    assert_eq!(planned(&case).unwrap().pid_ns, Namespace::Of(target));
}

#[test]
fn devices_that_were_asked_for_come_after_the_default_ones() {
    let mut case = kubelet();
    let null = Device { container_path: "/dev/mine".into(), host_path: "/dev/null".into(), permissions: "r".into() };
    case.devices = devices::requested(&[null], devices::Owner::default()).unwrap();
    let plan = planned(&case).unwrap();
    let mine = plan.devices.last().unwrap();
    assert_eq!((text(&mine.path).as_str(), mine.kind, mine.major, mine.minor), ("/dev/mine", b'c', 1, 3));
    let spec = built(&case).unwrap();
    let rules = spec.linux().as_ref().unwrap().resources().as_ref().unwrap().devices().clone().unwrap();
    assert_eq!(rules.last().unwrap().access().as_deref(), Some("r"));
    assert!(!rules[0].allow());
}

#[test]
fn devices_of_the_device_interface_are_in_the_plan() {
    let edits = "{env: [GPU=one], additionalGids: [44], deviceNodes: [{path: /dev/gpu0, hostPath: /dev/zero}], \
                 mounts: [{hostPath: /usr/lib/gpu, containerPath: /data/gpu, options: [ro, nosuid, rbind]}]}";
    let directory = tempfile::tempdir().unwrap();
    let file = format!("{{cdiVersion: 0.7.0, kind: v/gpu, devices: [{{name: one, containerEdits: {edits}}}]}}");
    std::fs::write(directory.path().join("gpu.yaml"), file).unwrap();
    let edits = cdi::resolve(&[directory.path().to_owned()], &strings(&["v/gpu=one"])).unwrap();
    let case = kubelet();
    let mut spec = built(&case).unwrap();
    edits.apply(&mut spec).unwrap();
    check_plannable(&spec).unwrap();
    let plan = plan_of(&case, &spec).unwrap();
    let node = plan.devices.last().unwrap();
    assert_eq!((text(&node.path).as_str(), node.major, node.minor, node.uid), ("/dev/gpu0", 1, 5, 101));
    assert!(plan.process.env.contains(&b"GPU=one".to_vec()) && plan.process.groups.contains(&44));
    let places = targets(&plan);
    let place = |wanted: &str| places.iter().position(|target| target == wanted).unwrap();
    assert!(place("/data") < place("/data/gpu"), "{places:?}");
    let mount = &plan.mounts[place("/data/gpu")];
    assert_eq!(flags(mount.flags), "ro,nosuid");
    assert!(matches!(&mount.kind, MountKind::Bind { source, .. } if text(source) == "/usr/lib/gpu"));
}

#[test]
fn volumes_that_are_images_are_descriptors_in_the_order_of_the_request() {
    let mut case = kubelet();
    let image = |place: &str| Mount {
        source: MountSource::Image { image: "sha256:11".into(), sub_path: String::new() },
        read_only: true,
        ..bind(place, "")
    };
    case.container.mounts.extend([image("/models/deep/one"), image("/two")]);
    let plan = planned(&case).unwrap();
    let of = |place: &str| plan.mounts.iter().find(|mount| text(&mount.target) == place).unwrap();
    assert_eq!(of("/models/deep/one").kind, MountKind::Detached(FdIndex(7)));
    assert_eq!(of("/two").kind, MountKind::Detached(FdIndex(8)));
    assert_eq!(flags(of("/two").flags), "ro");
    case.container.mounts.push(image("/three"));
    planned(&case).unwrap_err();
}

#[test]
fn apparmor_must_be_there_for_a_named_profile_only() {
    let mut case = kubelet();
    let apparmor = |case: &Case| planned(case).map(|plan| text(&plan.process.apparmor));
    assert_eq!(apparmor(&case), Ok(String::new()));
    case.container.security.apparmor = Profile::Localhost("mine".into());
    assert!(apparmor(&case).unwrap_err().message.contains("mine"));
    case.host.apparmor = true;
    case.host.apparmor_default = Some("knarr-default".into());
    assert_eq!(apparmor(&case), Ok("mine".into()));
    case.container.security.apparmor = Profile::RuntimeDefault;
    assert_eq!(apparmor(&case), Ok("knarr-default".into()));
    case.container.security.apparmor = Profile::Unconfined;
    assert_eq!(apparmor(&case), Ok(String::new()));
    case.container.security.privileged = true;
    case.container.security.apparmor = Profile::Localhost("mine".into());
    assert_eq!(apparmor(&case), Ok(String::new()));
}

#[test]
fn selinux_labels_come_from_the_request_and_the_pod() {
    let mut case = kubelet();
    case.host.selinux = true;
    let label = |case: &Case| text(&planned(case).unwrap().process.selinux);
    let first = label(&case);
    assert!(first.starts_with("system_u:system_r:container_t:s0:c"), "{first}");
    assert_eq!(label(&case), first);
    case.pod_id = PodId::from_bytes(&[0x17; 32]);
    assert_ne!(label(&case), first, "another pod");
    case.container.security.selinux =
        Some(SelinuxOptions { kind: "my_t".into(), level: "s0:c1,c2".into(), ..SelinuxOptions::default() });
    assert_eq!(label(&case), "system_u:system_r:my_t:s0:c1,c2");
    case.container.security.privileged = true;
    assert_eq!(label(&case), "");
}

#[test]
fn a_kernel_without_filters_is_no_excuse_for_a_named_profile() {
    let mut case = kubelet();
    case.host.seccomp = false;
    assert!(planned(&case).unwrap().process.seccomp.is_empty());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), br#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap();
    case.container.security.seccomp = Profile::Localhost(file.path().to_str().unwrap().into());
    assert!(planned(&case).is_err());
    case.host.seccomp = true;
    assert!(planned(&case).is_ok());
}

#[test]
fn what_a_plan_cannot_say_is_refused() {
    let case = kubelet();
    let mut spec = built(&case).unwrap();
    let hook = HookBuilder::default().path("/usr/bin/prepare").build().unwrap();
    spec.set_hooks(Some(HooksBuilder::default().poststart([hook]).build().unwrap()));
    let error = plan_of(&case, &spec).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unimplemented);
    assert!(error.message.contains("the poststart hook /usr/bin/prepare"), "{error}");
}

#[test]
fn only_the_pods_user_namespace_can_be_had() {
    let refused = |change: &dyn Fn(&mut Spec)| {
        let case = user_namespace();
        let mut spec = built(&case).unwrap();
        change(&mut spec);
        let error = plan_of(&case, &spec).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unimplemented, "{error}");
        error.message
    };
    let in_linux = |spec: &mut Spec, change: &dyn Fn(&mut oci_spec::runtime::Linux)| {
        let mut linux = spec.linux().clone().unwrap();
        change(&mut linux);
        spec.set_linux(Some(linux));
    };
    let is_user = |namespace: &LinuxNamespace| namespace.typ() == LinuxNamespaceType::User;
    let without = refused(&|spec| {
        in_linux(spec, &|linux| {
            let others = linux.namespaces().iter().flatten().filter(|one| !is_user(one)).cloned().collect();
            linux.set_namespaces(Some(others));
        });
    });
    assert!(without.contains("user namespace"), "{without}");
    let own = refused(&|spec| {
        in_linux(spec, &|linux| {
            let mut all = linux.namespaces().clone().unwrap();
            for one in all.iter_mut().filter(|one| is_user(one)) {
                one.set_path(None);
            }
            linux.set_namespaces(Some(all));
        });
    });
    assert!(own.contains("user namespace"), "{own}");
    let other_owners = refused(&|spec| {
        let mut mounts = spec.mounts().clone().unwrap();
        for one in mounts.iter_mut().filter(|one| one.uid_mappings().is_some()) {
            one.set_uid_mappings(None);
        }
        spec.set_mounts(Some(mounts));
    });
    assert!(other_owners.contains("id mappings"), "{other_owners}");
}

#[test]
fn the_specification_is_json_that_reads_back_the_same() {
    for case in [kubelet(), privileged(), host_network(), terminal(), user_namespace()] {
        let spec = built(&case).unwrap();
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), spec);
        let annotations = spec.annotations().as_ref().unwrap();
        assert_eq!(annotations["io.kubernetes.cri.sandbox-id"], "ab".repeat(32));
        assert!(annotations.keys().all(|key| key.starts_with("io.kubernetes.cri.")));
    }
}

#[test]
fn swap_is_not_given_unless_it_is_asked_for() {
    let mut case = kubelet();
    let memory = |case: &Case| {
        let spec = built(case).unwrap();
        let memory = spec.linux().as_ref().unwrap().resources().as_ref().unwrap().memory().unwrap();
        (memory.limit(), memory.swap())
    };
    assert_eq!(memory(&case), (Some(64 << 20), Some(64 << 20)));
    case.container.resources.memory_swap_limit = Some(-1);
    assert_eq!(memory(&case), (Some(64 << 20), Some(-1)));
    case.container.resources = Resources::default();
    assert_eq!(memory(&case), (None, None));
}
