//! What the shim is told to do: flat, resolved, with nothing left to decide. The daemon compiles it; `wire::shim`
//! carries it; `runtime` carries it out.
//!
//! Descriptors do not fit into a value: a plan says at which place of the message's descriptor list each one stands
//! ([`FdIndex`]). Paths and strings are bytes as the kernel takes them, without the closing NUL; the codec refuses any
//! that hold one.
//!
//! These types change only by fields added at the end of a struct and variants added at the end of an enum: an older
//! shim is served by a newer daemon (see `wire::shim`).

use crate::{ContainerId, ExecId, PodId, UserNamespace};

/// The place of a descriptor in the list that came with the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FdIndex(pub u32);

/// Makes what a pod owns as a whole: its namespaces and the files that all its containers see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodPlan {
    /// Whose shim this is.
    pub id: PodId,
    /// A mount namespace with nothing in it but an empty tmpfs as `/`; the pod's own starts as a copy of it.
    pub base_mount_ns: FdIndex,
    /// The pod's run-time directory: the shim keeps exit records below it.
    pub run_dir: FdIndex,
    /// Make a network namespace; else the pod uses the host's.
    pub new_net: bool,
    /// Make an IPC namespace; else the pod uses the host's.
    pub new_ipc: bool,
    /// Make a UTS namespace and set the host name in it; else the pod uses the host's.
    pub new_uts: bool,
    /// Fork an init that holds one PID namespace for all containers.
    pub shared_pid: bool,
    /// Set in the new UTS namespace; empty leaves it.
    pub hostname: Vec<u8>,
    /// `/proc/sys` names with slashes ("net/ipv4/ip_forward") and values, written inside the new namespaces.
    pub sysctls: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of the pod's /dev/shm; 0 for none (the host's is used).
    pub shm_size: u64,
    /// Files of the pod by name ("resolv.conf"), which [`MountKind::PodFile`] puts into containers.
    pub files: Vec<(Vec<u8>, Vec<u8>)>,
    /// The shim's own OOM score.
    pub shim_oom_score_adj: i32,
    /// Make a user namespace with these ids, which owns the pod's other new namespaces; else the pod uses the host's.
    pub user: Option<UserNamespace>,
}

/// Which namespace of one kind a process gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Namespace {
    /// The host's.
    Host,
    /// The pod's, made by [`PodPlan`].
    #[default]
    Pod,
    /// A new one.
    Own,
    /// That of another running container of the pod.
    Of(ContainerId),
}

/// The first process of a container and everything around it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerPlan {
    /// Which container.
    pub id: ContainerId,
    /// `Host`, `Pod` (shared), `Own` or `Of`.
    pub pid_ns: Namespace,
    /// `Host` or `Pod`.
    pub net_ns: Namespace,
    /// `Host` or `Pod`.
    pub ipc_ns: Namespace,
    /// `Host` or `Pod`.
    pub uts_ns: Namespace,
    /// Unshare the cgroup namespace.
    pub new_cgroup_ns: bool,
    /// A detached mount: the root file system, complete and writable.
    pub rootfs: FdIndex,
    /// Make the root read-only once everything is in its place.
    pub read_only_rootfs: bool,
    /// In order.
    pub mounts: Vec<MountPlan>,
    /// Device nodes to make or bind, in order.
    pub devices: Vec<DevicePlan>,
    /// Symbolic links to make, (path, target), in order.
    pub links: Vec<(Vec<u8>, Vec<u8>)>,
    /// Absolute paths to make unreadable; those that are not there are passed over.
    pub masked_paths: Vec<Vec<u8>>,
    /// Absolute paths to make read-only; those that are not there are passed over.
    pub readonly_paths: Vec<Vec<u8>>,
    /// Where the process is put.
    pub cgroup: CgroupPlan,
    /// Who and what it runs.
    pub process: ProcessPlan,
    /// Where its input and output go.
    pub stdio: StdioPlan,
    /// `Host` or `Pod`.
    pub user_ns: Namespace,
}

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountPlan {
    /// Absolute path in the container, resolved beneath its root; made if it is not there.
    pub target: Vec<u8>,
    /// What is mounted.
    pub kind: MountKind,
    /// Kernel MS_* flags among RDONLY, NOSUID, NODEV, NOEXEC, RELATIME, NOATIME.
    pub flags: u64,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A path of the host (symbolic links resolved there), with everything mounted below it.
    Bind {
        /// absolute path on the host
        source: Vec<u8>,
        /// the MS_* propagation of the tree in the container: MS_PRIVATE, MS_SLAVE or MS_SHARED
        propagation: u64,
        /// `flags` hold for submounts too
        recursive_flags: bool,
        /// Owners are mapped by the pod's user namespace: its root owns what root owns on the host's file system.
        id_mapped: bool,
    },
    /// A new file system.
    New {
        /// "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup2"
        fstype: Vec<u8>,
        /// comma-separated options of the file system
        options: Vec<u8>,
    },
    /// One of [`PodPlan::files`].
    PodFile(Vec<u8>),
    /// The pod's /dev/shm.
    PodShm,
    /// A detached mount from the message's descriptors.
    Detached(FdIndex),
    /// The container's view of the host's cgroup hierarchies: cgroup2 where it is unified, else a tmpfs with one bind
    /// mount per hierarchy, each showing the container's own cgroup as its root.
    Cgroup {
        /// v1 only: (name in the tmpfs, absolute path of the container's cgroup on the host); empty for pure v2
        v1: Vec<(Vec<u8>, Vec<u8>)>,
    },
}

/// One device node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevicePlan {
    /// absolute path in the container
    pub path: Vec<u8>,
    /// `b'c'`, `b'b'` or `b'p'`
    pub kind: u8,
    /// major number
    pub major: u32,
    /// minor number
    pub minor: u32,
    /// permission bits
    pub mode: u32,
    /// owner
    pub uid: u32,
    /// group
    pub gid: u32,
}

/// Where a process is put. The daemon has made the cgroups and set their limits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CgroupPlan {
    /// Directory of the cgroup in the cgroup2 hierarchy, for CLONE_INTO_CGROUP.
    pub into: FdIndex,
    /// v1: open `tasks` files, to which the still single-threaded child writes 0.
    pub v1_tasks: Vec<FdIndex>,
}

/// A process: the same for a container's first and for an exec, so that the two cannot diverge.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProcessPlan {
    /// argv; not empty. The first is looked up in the PATH of `env` when it has no slash.
    pub args: Vec<Vec<u8>>,
    /// NAME=value
    pub env: Vec<Vec<u8>>,
    /// absolute; made (as root, 0755) if `create_cwd`
    pub cwd: Vec<u8>,
    /// Make `cwd` when it is missing.
    pub create_cwd: bool,
    /// user id
    pub uid: u32,
    /// group id
    pub gid: u32,
    /// all supplementary groups
    pub groups: Vec<u32>,
    /// file mode creation mask
    pub umask: u32,
    /// prctl(PR_SET_NO_NEW_PRIVS)
    pub no_new_privs: bool,
    /// capability sets
    pub capabilities: Capabilities,
    /// limits
    pub rlimits: Vec<Rlimit>,
    /// Compiled filter: struct sock_filter[] as bytes; empty for none.
    pub seccomp: Vec<u8>,
    /// For /proc/self/attr/apparmor/exec; empty for none.
    pub apparmor: Vec<u8>,
    /// For /proc/self/attr/exec; empty for none.
    pub selinux: Vec<u8>,
    /// /proc/self/oom_score_adj; `None` leaves it. Lowering below what the shim may is clamped.
    pub oom_score_adj: Option<i32>,
    /// Give it a terminal as controlling terminal.
    pub terminal: bool,
    /// columns, rows of the terminal; 0 leaves it
    pub console_size: (u16, u16),
}

/// Capability sets as bit masks; inheritable is always empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Capabilities {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub ambient: u64,
}

/// One resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Rlimit {
    /// RLIMIT_* number
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// A container's input and output.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StdioPlan {
    /// Absolute path of the CRI log; empty for no log.
    pub log_path: Vec<u8>,
    /// Keep a pipe to stdin open for attach.
    pub stdin: bool,
    /// Close stdin when the first client that attached with it is gone.
    pub stdin_once: bool,
}

/// One more process in a running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecPlan {
    /// Its name in events.
    pub id: ExecId,
    /// In which container.
    pub container: ContainerId,
    /// A leaf of its own below the container's cgroup.
    pub cgroup: CgroupPlan,
    /// Who and what it runs.
    pub process: ProcessPlan,
    /// The end for its stdin; `None` is /dev/null. Ignored when `process.terminal`.
    pub stdin: Option<FdIndex>,
    /// The end for its stdout; `None` is /dev/null. Ignored when `process.terminal`.
    pub stdout: Option<FdIndex>,
    /// The end for its stderr; `None` is /dev/null. Ignored when `process.terminal`.
    pub stderr: Option<FdIndex>,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// 0..=255; 128 + signal when a signal ended it.
    pub code: i32,
    /// The signal that ended it, if one did.
    pub signal: Option<u8>,
    /// Nanoseconds since 1970 by the shim's clock.
    pub finished_at: i64,
}

/// Why a process could not be started: which step, what the kernel said, about what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartFailure {
    /// In words: "mount volume", "execve", …
    pub step: String,
    /// errno; 0 when no call failed.
    pub errno: i32,
    /// The path, the program, the device.
    pub about: String,
}

impl std::fmt::Display for StartFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.step)?;
        if !self.about.is_empty() {
            write!(f, " {:?}", self.about)?;
        }
        if self.errno != 0 {
            write!(f, ": {}", std::io::Error::from_raw_os_error(self.errno))?;
        }
        Ok(())
    }
}
