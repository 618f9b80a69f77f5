//! MAKES PROCESSES. The low-level runtime: carries a `knarr_model::plan` out.
//!
//! Callers must be single-threaded: between clone and exec only system calls are made, on things that were laid out
//! before. They keep descriptors 0, 1 and 2 open, and are undumpable from their start, which a copy stays until it
//! executes the program.
//!
//! In reading order: [`pod`] makes what a pod owns, [`container`] and [`exec`] make processes in it; both end in
//! [`process`]. [`rootfs`] builds a container's file system, on [`path`]. [`launch`] is the parent's side, [`step`] what
//! it hears from the copy.

mod cgroup;
mod container;
mod exec;
mod launch;
mod path;
mod pod;
mod pod_init;
mod probe;
mod process;
mod rootfs;
mod step;
mod user_namespace;

pub use probe::probe_user_namespaces;

use knarr_model::UserNamespace;
use knarr_model::plan::{ContainerPlan, ExecPlan, FdIndex, PodPlan, StartFailure};
use launch::failure;
use rustix::fs::{Mode, OFlags, fstatfs};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use user_namespace::Membership;

/// What a pod owns as a whole. Dropping it drops the last reference to its namespaces, once no process is in them.
#[derive(Debug)]
pub struct PodNamespaces {
    /// The pod's mount namespace: `/rootfs` (a place to mount at), `/shm`, `/files/<name>`; containers start from copies.
    pub mount: OwnedFd,
    /// `None`: the host's.
    pub net: Option<OwnedFd>,
    /// `None`: the host's.
    pub ipc: Option<OwnedFd>,
    /// `None`: the host's.
    pub uts: Option<OwnedFd>,
    /// The shared PID namespace, if the pod has one.
    pub pid: Option<OwnedFd>,
    /// The first process of the shared PID namespace; a child of the caller, dies with it.
    pub pid_init: Option<Child>,
    /// Owns all of the above; `None`: the host's.
    pub user: Option<PodUser>,
}

impl PodNamespaces {
    /// What the pod's user namespace means for a process of it.
    pub(crate) fn membership(&self) -> Option<Membership<'_>> {
        self.user.as_ref().map(|user| user.membership(self.net.is_none()))
    }
}

/// A pod's user namespace.
#[derive(Debug)]
pub struct PodUser {
    /// the namespace
    pub namespace: OwnedFd,
    /// who is who in it
    pub ids: UserNamespace,
}

impl PodUser {
    fn membership(&self, host_network: bool) -> Membership<'_> {
        Membership { namespace: self.namespace.as_fd(), ids: self.ids, host_network }
    }
}

/// A child of the caller that it has to reap.
#[derive(Debug)]
pub struct Child {
    /// in the caller's PID namespace
    pub pid: u32,
    /// of the same process
    pub pidfd: OwnedFd,
}

/// The child's ends of its input and output. Ignored when the process gets a terminal.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Stdio {
    pub stdin: OwnedFd,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// A process whose execve has succeeded.
#[derive(Debug)]
pub struct Started {
    /// the process
    pub child: Child,
    /// The master of its terminal, when it was to have one.
    pub terminal: Option<OwnedFd>,
}

/// Makes a pod's namespaces and the files that all its containers see. `fds` are those of the message.
///
/// `plan.run_dir` and `plan.shim_oom_score_adj` are the caller's own affair.
pub fn set_up_pod(plan: &PodPlan, fds: &[OwnedFd]) -> Result<PodNamespaces, StartFailure> {
    pod::set_up(plan, fds)
}

/// Starts a container's first process; gives it once its execve has succeeded.
///
/// `target` is the pidfd of the container that `plan.pid_ns` names, when it is `Namespace::Of`. Whatever fails, no
/// process of it is left, except one that hangs in the kernel: it is killed, and reaped by the caller's own loop.
pub fn start_container(
    pod: &PodNamespaces,
    plan: &ContainerPlan,
    fds: &[OwnedFd],
    stdio: Stdio,
    target: Option<BorrowedFd<'_>>,
) -> Result<Started, StartFailure> {
    container::start(pod, plan, fds, stdio, target)
}

/// Starts one more process in the container whose first process `container` is the pidfd of; `user` is that of its pod.
///
/// "container is not running" is the failure's step when it has ended.
pub fn exec(
    user: Option<&PodUser>,
    container: BorrowedFd<'_>,
    plan: &ExecPlan,
    fds: &[OwnedFd],
    stdio: Stdio,
) -> Result<Started, StartFailure> {
    exec::start(user, container, plan, fds, stdio)
}

/// What the parent's side gives.
pub(crate) type Attempt<T> = Result<T, StartFailure>;

/// The message's descriptor at a plan's index.
pub(crate) fn descriptor(fds: &[OwnedFd], index: FdIndex) -> Result<BorrowedFd<'_>, StartFailure> {
    let fd = fds.get(index.0 as usize).map(|fd| fd.as_fd());
    fd.ok_or_else(|| failure("find a descriptor of the message", Errno::BADF, index.0.to_string()))
}

/// The host's procfs, by which a copy finds its own files after it has left the host.
pub(crate) fn host_proc() -> Result<OwnedFd, StartFailure> {
    /// PROC_SUPER_MAGIC
    const PROC: i64 = 0x9fa0;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open(c"/proc", flags, Mode::empty());
    let checked =
        proc.and_then(|proc| if fstatfs(&proc)?.f_type as i64 == PROC { Ok(proc) } else { Err(Errno::NODEV) });
    checked.map_err(|errno| failure("open", errno, "/proc"))
}

/// The child's ends, none of them among the numbers that they are to be copied to.
pub(crate) struct StandardEnds {
    ends: [OwnedFd; 3],
}

impl StandardEnds {
    pub(crate) fn new(stdio: Stdio) -> Result<Self, StartFailure> {
        let lift = |fd: OwnedFd| {
            use std::os::fd::AsRawFd;
            if fd.as_raw_fd() > 2 {
                return Ok(fd);
            }
            fcntl_dupfd_cloexec(&fd, 3).map_err(|errno| failure("duplicate a descriptor", errno, ""))
        };
        Ok(Self { ends: [lift(stdio.stdin)?, lift(stdio.stdout)?, lift(stdio.stderr)?] })
    }

    pub(crate) fn borrowed(&self) -> [BorrowedFd<'_>; 3] {
        [self.ends[0].as_fd(), self.ends[1].as_fd(), self.ends[2].as_fd()]
    }
}
