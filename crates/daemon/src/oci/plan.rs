//! From the specification to the plan: flat, with nothing left to decide.
//!
//! What a specification can say and a plan cannot is an error here, never left out in silence: something that adjusts
//! containers would otherwise believe that it had.

use super::pod::log_path;
use super::process::{exec_environment, mask_of};
use super::{PodDir, devices};
use knarr_model::plan::{
    Capabilities, CgroupPlan, ContainerPlan, DevicePlan, FdIndex, MountKind, MountPlan, Namespace, ProcessPlan, Rlimit,
    StdioPlan,
};
use knarr_model::spec::{ContainerSpec, PodSpec};
use knarr_model::{ContainerId, Error, ErrorKind};
use oci_spec::runtime::{
    Hook, Hooks, Linux, LinuxDevice, LinuxDeviceType, LinuxNamespaceType, Mount, PosixRlimitType, Process, Spec,
};
use rustix::mount::{MountFlags, MountPropagationFlags};
use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// What a plan needs besides the specification.
#[derive(Debug, Clone)]
pub struct PlanInputs<'a> {
    /// Which container.
    pub id: &'a ContainerId,
    /// As given to [`super::build`].
    pub pod_dir: &'a PodDir,
    /// The root file system's place among the descriptors.
    pub rootfs: FdIndex,
    /// The places of the image volumes, in the order of the request.
    pub image_volumes: &'a [FdIndex],
    /// Where the process is put.
    pub cgroup: CgroupPlan,
    /// Version 1 only: (name below /sys/fs/cgroup, the container's cgroup on the host) of each hierarchy.
    pub cgroup_v1: &'a [(Vec<u8>, Vec<u8>)],
    /// The compiled filter; empty exactly when the specification has none.
    pub seccomp: &'a [u8],
    /// From [`stdio`].
    pub stdio: StdioPlan,
}

/// One more process in a container.
#[derive(Debug, Clone, Default)]
pub struct ExecRequest {
    /// argv; not empty
    pub args: Vec<String>,
    /// Give it a terminal.
    pub tty: bool,
    /// columns, rows; 0 leaves it
    pub console_size: (u16, u16),
}

/// Where a container's input and output go.
pub fn stdio(pod: &PodSpec, container: &ContainerSpec) -> StdioPlan {
    StdioPlan {
        log_path: log_path(pod, container).into_bytes(),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
    }
}

/// Compiles the specification of a container.
pub fn plan(spec: &Spec, inputs: PlanInputs<'_>) -> Result<ContainerPlan, Error> {
    check_plannable(spec)?;
    let linux = spec.linux().as_ref().ok_or_else(|| missing("linux"))?;
    let process = spec.process().as_ref().ok_or_else(|| missing("process"))?;
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    // What is bound over /dev brings its own nodes, and ours would be made on the host.
    let dev_is_bound =
        mounts.iter().any(|mount| super::cleaned(&lossy(mount.destination())) == "/dev" && is_bind(mount));
    Ok(ContainerPlan {
        id: inputs.id.clone(),
        pid_ns: namespace(linux, LinuxNamespaceType::Pid, inputs.pod_dir)?,
        net_ns: namespace(linux, LinuxNamespaceType::Network, inputs.pod_dir)?,
        ipc_ns: namespace(linux, LinuxNamespaceType::Ipc, inputs.pod_dir)?,
        uts_ns: namespace(linux, LinuxNamespaceType::Uts, inputs.pod_dir)?,
        new_cgroup_ns: namespace(linux, LinuxNamespaceType::Cgroup, inputs.pod_dir)? == Namespace::Own,
        rootfs: inputs.rootfs,
        read_only_rootfs: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false),
        mounts: mounts.iter().map(|one| mount(one, linux, &inputs)).collect::<Result<_, _>>()?,
        devices: if dev_is_bound { Vec::new() } else { devices(linux)? },
        links: if dev_is_bound { Vec::new() } else { links() },
        masked_paths: paths("masked path", linux.masked_paths())?,
        readonly_paths: paths("read-only path", linux.readonly_paths())?,
        cgroup: inputs.cgroup,
        process: ProcessPlan { create_cwd: true, ..process_plan(spec, process, inputs.seccomp)? },
        user_ns: user_namespace(linux, inputs.pod_dir)?,
        stdio: inputs.stdio,
    })
}

/// One more process in the container of this specification: same user, capabilities, filter, labels, limits and
/// environment as the first.
pub fn exec_plan(spec: &Spec, request: &ExecRequest, seccomp: &[u8]) -> Result<ProcessPlan, Error> {
    let process = spec.process().as_ref().ok_or_else(|| missing("process"))?;
    let of_container = process.env().as_deref().unwrap_or_default();
    if request.args.is_empty() {
        return Err(Error::invalid("cmd", "is empty"));
    }
    let mut plan = process_plan(spec, process, seccomp)?;
    plan.args = request.args.iter().map(|text| bytes("cmd", text.as_bytes())).collect::<Result<_, _>>()?;
    let env = exec_environment(of_container, request.tty);
    plan.env = env.iter().map(|text| bytes("env", text.as_bytes())).collect::<Result<_, _>>()?;
    plan.terminal = request.tty;
    plan.console_size = request.console_size;
    Ok(plan)
}

fn missing(part: &str) -> Error {
    Error::internal(format!("the OCI specification has no {part}"))
}

/// Refuses what a specification can say and no plan can.
pub fn check_plannable(spec: &Spec) -> Result<(), Error> {
    let process = spec.process().as_ref();
    let linux = spec.linux().as_ref();
    if let Some((kind, path)) = spec.hooks().as_ref().and_then(first_hook) {
        let why = format!("the {kind} hook {path} is not supported by the native runtime");
        return Err(Error::new(ErrorKind::Unimplemented, why));
    }
    let said = [
        ("process.ioPriority", process.is_some_and(|process| process.io_priority().is_some())),
        ("process.scheduler", process.is_some_and(|process| process.scheduler().is_some())),
        ("process.execCPUAffinity", process.is_some_and(|process| process.exec_cpu_affinity().is_some())),
        ("linux.personality", linux.is_some_and(|linux| linux.personality().is_some())),
        ("linux.timeOffsets", linux.is_some_and(|linux| linux.time_offsets().is_some())),
        ("linux.intelRdt", linux.is_some_and(|linux| linux.intel_rdt().is_some())),
        ("linux.memoryPolicy", linux.is_some_and(|linux| linux.memory_policy().is_some())),
        ("linux.netDevices", linux.is_some_and(|linux| linux.net_devices().is_some())),
    ];
    match said.iter().find(|(_, said)| *said) {
        Some((name, _)) => {
            let why = format!("the OCI specification's {name} is not supported by the native runtime");
            Err(Error::new(ErrorKind::Unimplemented, why))
        }
        None => Ok(()),
    }
}

/// When the first of the hooks runs, and what.
fn first_hook(hooks: &Hooks) -> Option<(&'static str, String)> {
    #[allow(deprecated)]
    let all = [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
        ("createContainer", hooks.create_container()),
        ("startContainer", hooks.start_container()),
        ("poststart", hooks.poststart()),
        ("poststop", hooks.poststop()),
    ];
    let first = |(kind, list): (_, &Option<Vec<_>>)| Some((kind, lossy(list.iter().flatten().next().map(Hook::path)?)));
    all.into_iter().find_map(first)
}

fn namespace(linux: &Linux, kind: LinuxNamespaceType, pod_dir: &PodDir) -> Result<Namespace, Error> {
    let found = linux.namespaces().iter().flatten().find(|namespace| namespace.typ() == kind);
    let Some(path) = found.map(|namespace| namespace.path()) else { return Ok(Namespace::Host) };
    let Some(path) = path else { return Ok(Namespace::Own) };
    let path = lossy(path);
    if let Some(container) = pod_dir.pid_namespace_at(&path) {
        return Ok(Namespace::Of(container));
    }
    let names = ["net", "ipc", "uts", "pid", "user"];
    if names.iter().any(|name| pod_dir.namespace(name) == path) {
        return Ok(Namespace::Pod);
    }
    Err(Error::internal(format!("the {kind} namespace {path} is not one of the pod's")))
}

/// The pod's or the host's: only whole pods have user namespaces, and their ids are given with the pod.
fn user_namespace(linux: &Linux, pod_dir: &PodDir) -> Result<Namespace, Error> {
    let namespace = namespace(linux, LinuxNamespaceType::User, pod_dir)?;
    let mapped = linux.uid_mappings().is_some() || linux.gid_mappings().is_some();
    match namespace {
        Namespace::Pod => Ok(namespace),
        Namespace::Host if !mapped => Ok(namespace),
        _ => {
            let why = "a user namespace that is not the pod's is not supported by the native runtime";
            Err(Error::new(ErrorKind::Unimplemented, why))
        }
    }
}

/// What the words of fstab mean, for one mount.
#[derive(Debug)]
struct Options {
    flags: MountFlags,
    propagation: Option<MountPropagationFlags>,
    recursive: bool,
    /// For the file system.
    data: Vec<String>,
}

impl Options {
    fn parse(words: &[String]) -> Self {
        let mut options = Self { flags: MountFlags::empty(), propagation: None, recursive: false, data: Vec::new() };
        for word in words {
            match word.as_str() {
                "ro" => options.flags |= MountFlags::RDONLY,
                "rro" => {
                    options.flags |= MountFlags::RDONLY;
                    options.recursive = true;
                }
                "nosuid" => options.flags |= MountFlags::NOSUID,
                "nodev" => options.flags |= MountFlags::NODEV,
                "noexec" => options.flags |= MountFlags::NOEXEC,
                "relatime" => options.flags |= MountFlags::RELATIME,
                "noatime" => options.flags |= MountFlags::NOATIME,
                "private" | "rprivate" => options.propagation = Some(MountPropagationFlags::PRIVATE),
                "slave" | "rslave" => options.propagation = Some(MountPropagationFlags::DOWNSTREAM),
                "shared" | "rshared" => options.propagation = Some(MountPropagationFlags::SHARED),
                // What is so anyway.
                "rw" | "bind" | "rbind" | "suid" | "dev" | "exec" | "defaults" => {}
                other => options.data.push(other.to_owned()),
            }
        }
        options
    }
}

fn is_bind(mount: &Mount) -> bool {
    let says = |word: &str| mount.options().iter().flatten().any(|option| option == word);
    mount.typ().as_deref() == Some("bind") || says("bind") || says("rbind")
}

fn mount(mount: &Mount, linux: &Linux, inputs: &PlanInputs<'_>) -> Result<MountPlan, Error> {
    let target = lossy(mount.destination());
    let id_mapped = id_mapped(mount, linux)?;
    let options = Options::parse(mount.options().as_deref().unwrap_or_default());
    let source = mount.source().as_ref().map(|source| lossy(source)).unwrap_or_default();
    let kind = match mount.typ().as_deref() {
        _ if is_bind(mount) => bind(&target, &source, &options, id_mapped, inputs)?,
        Some("cgroup" | "cgroup2") => MountKind::Cgroup { v1: inputs.cgroup_v1.to_vec() },
        Some(fstype @ ("proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue")) => MountKind::New {
            fstype: fstype.into(),
            options: bytes("mount options", options.data.join(",").as_bytes())?,
        },
        other => {
            let why = format!("a mount of type {} at {target} is not supported", other.unwrap_or("none"));
            return Err(Error::new(ErrorKind::Unimplemented, why));
        }
    };
    if !target.starts_with('/') {
        return Err(Error::internal(format!("the mount's place {target:?} is not absolute")));
    }
    let target = bytes("mount", mount.destination().as_os_str().as_bytes())?;
    Ok(MountPlan { target, kind, flags: u64::from(options.flags.bits()) })
}

/// Owners are mapped as in the container's own user namespace, or not at all.
fn id_mapped(mount: &Mount, linux: &Linux) -> Result<bool, Error> {
    let (uids, gids) = (mount.uid_mappings(), mount.gid_mappings());
    if uids.is_none() && gids.is_none() {
        return Ok(false);
    }
    if uids == linux.uid_mappings() && gids == linux.gid_mappings() {
        return Ok(true);
    }
    let why = format!("the id mappings of the mount at {} are not the container's", mount.destination().display());
    Err(Error::new(ErrorKind::Unimplemented, why))
}

fn bind(
    target: &str,
    source: &str,
    options: &Options,
    id_mapped: bool,
    inputs: &PlanInputs<'_>,
) -> Result<MountKind, Error> {
    let pod_dir = inputs.pod_dir;
    if let Some(number) = pod_dir.image_volume_at(source) {
        // Its layers were mapped when it was mounted.
        let place = inputs.image_volumes.get(number);
        return place.map(|place| MountKind::Detached(*place)).ok_or_else(|| missing("image volume of that number"));
    }
    if let Some(name) = pod_dir.file_at(source) {
        return Ok(MountKind::PodFile(name.into()));
    }
    if source == pod_dir.shm() {
        return Ok(MountKind::PodShm);
    }
    if let Some(word) = options.data.first() {
        let why = format!("the mount option {word:?} of {target} is not supported");
        return Err(Error::new(ErrorKind::Unimplemented, why));
    }
    if !source.starts_with('/') {
        return Err(Error::internal(format!("the source {source:?} of {target} is not absolute")));
    }
    let propagation = options.propagation.unwrap_or(MountPropagationFlags::PRIVATE);
    Ok(MountKind::Bind {
        source: bytes("mount", source.as_bytes())?,
        propagation: u64::from(propagation.bits()),
        recursive_flags: options.recursive,
        id_mapped,
    })
}

/// The nodes that every container has, then those of the specification; of two at one place the later counts.
fn devices(linux: &Linux) -> Result<Vec<DevicePlan>, Error> {
    let mut plans: Vec<DevicePlan> = devices::DEFAULTS
        .iter()
        .map(|(path, major, minor)| DevicePlan {
            path: (*path).into(),
            kind: b'c',
            major: *major,
            minor: *minor,
            mode: devices::DEFAULT_MODE,
            uid: 0,
            gid: 0,
        })
        .collect();
    // A host can have tens of thousands, and a privileged container has them all.
    let mut places: HashMap<Vec<u8>, usize> =
        plans.iter().enumerate().map(|(place, plan)| (plan.path.clone(), place)).collect();
    for device in linux.devices().iter().flatten() {
        let plan = self::device(device)?;
        if let Some(place) = places.get(&plan.path) {
            plans[*place] = plan;
        } else {
            places.insert(plan.path.clone(), plans.len());
            plans.push(plan);
        }
    }
    Ok(plans)
}

fn device(device: &LinuxDevice) -> Result<DevicePlan, Error> {
    let bad = |what: &str| Error::internal(format!("the device {} has no {what}", device.path().display()));
    let kind = match device.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => b'c',
        LinuxDeviceType::B => b'b',
        LinuxDeviceType::P => b'p',
        LinuxDeviceType::A => return Err(bad("type")),
    };
    Ok(DevicePlan {
        path: bytes("device", device.path().as_os_str().as_bytes())?,
        kind,
        major: u32::try_from(device.major()).map_err(|_| bad("major number"))?,
        minor: u32::try_from(device.minor()).map_err(|_| bad("minor number"))?,
        mode: device.file_mode().unwrap_or(devices::DEFAULT_MODE) & 0o7777,
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

fn links() -> Vec<(Vec<u8>, Vec<u8>)> {
    devices::LINKS.iter().map(|(path, target)| ((*path).into(), (*target).into())).collect()
}

/// The first process and every exec.
fn process_plan(spec: &Spec, process: &Process, seccomp: &[u8]) -> Result<ProcessPlan, Error> {
    let filtered = spec.linux().as_ref().is_some_and(|linux| linux.seccomp().is_some());
    // A container must never run without the filter that its specification has.
    if filtered == seccomp.is_empty() {
        return Err(Error::internal("the compiled seccomp filter and the specification disagree"));
    }
    let user = process.user();
    let all = |what: &str, list: Option<&Vec<String>>| -> Result<Vec<Vec<u8>>, Error> {
        list.into_iter().flatten().map(|text| bytes(what, text.as_bytes())).collect()
    };
    let text = |what: &str, text: Option<&String>| bytes(what, text.map(String::as_bytes).unwrap_or_default());
    let args = all("argument", process.args().as_ref())?;
    if args.is_empty() {
        return Err(missing("process.args"));
    }
    Ok(ProcessPlan {
        args,
        env: all("environment", process.env().as_ref())?,
        cwd: bytes("working directory", process.cwd().as_os_str().as_bytes())?,
        create_cwd: false,
        uid: user.uid(),
        gid: user.gid(),
        groups: user.additional_gids().clone().unwrap_or_default(),
        umask: user.umask().unwrap_or(0o022),
        no_new_privs: process.no_new_privileges().unwrap_or(false),
        capabilities: capabilities(process),
        rlimits: process
            .rlimits()
            .iter()
            .flatten()
            .map(|limit| rlimit(limit.typ(), limit.soft(), limit.hard()))
            .collect(),
        seccomp: seccomp.to_vec(),
        apparmor: text("AppArmor profile", process.apparmor_profile().as_ref())?,
        selinux: text("SELinux label", process.selinux_label().as_ref())?,
        oom_score_adj: process.oom_score_adj(),
        terminal: process.terminal().unwrap_or(false),
        console_size: console_size(process),
    })
}

fn console_size(process: &Process) -> (u16, u16) {
    let cells = |count: u64| u16::try_from(count).unwrap_or(0);
    process.console_size().map_or((0, 0), |size| (cells(size.width()), cells(size.height())))
}

fn capabilities(process: &Process) -> Capabilities {
    let Some(sets) = process.capabilities() else { return Capabilities::default() };
    Capabilities {
        bounding: mask_of(sets.bounding().as_ref()),
        effective: mask_of(sets.effective().as_ref()),
        permitted: mask_of(sets.permitted().as_ref()),
        ambient: mask_of(sets.ambient().as_ref()),
    }
}

/// The kernel's RLIMIT_* numbers, which are the same on all machines but Alpha, MIPS and SPARC.
fn rlimit(kind: PosixRlimitType, soft: u64, hard: u64) -> Rlimit {
    let resource = match kind {
        PosixRlimitType::RlimitCpu => 0,
        PosixRlimitType::RlimitFsize => 1,
        PosixRlimitType::RlimitData => 2,
        PosixRlimitType::RlimitStack => 3,
        PosixRlimitType::RlimitCore => 4,
        PosixRlimitType::RlimitRss => 5,
        PosixRlimitType::RlimitNproc => 6,
        PosixRlimitType::RlimitNofile => 7,
        PosixRlimitType::RlimitMemlock => 8,
        PosixRlimitType::RlimitAs => 9,
        PosixRlimitType::RlimitLocks => 10,
        PosixRlimitType::RlimitSigpending => 11,
        PosixRlimitType::RlimitMsgqueue => 12,
        PosixRlimitType::RlimitNice => 13,
        PosixRlimitType::RlimitRtprio => 14,
        PosixRlimitType::RlimitRttime => 15,
    };
    Rlimit { resource, soft, hard }
}

fn paths(what: &str, paths: &Option<Vec<String>>) -> Result<Vec<Vec<u8>>, Error> {
    paths.iter().flatten().map(|path| bytes(what, path.as_bytes())).collect()
}

/// As the kernel takes it: a NUL would end it early.
fn bytes(what: &str, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    if bytes.contains(&0) {
        return Err(Error::invalid(what, "holds a NUL byte"));
    }
    Ok(bytes.to_vec())
}

/// For comparing and for messages; what is no UTF-8 is never equal to a name of ours.
fn lossy(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
