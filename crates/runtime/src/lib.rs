//! MAKES PROCESSES. The low-level runtime: carries a `knarr_model::plan` out.
//!
//! Callers must be single-threaded: between clone and exec only system calls are made.

use knarr_model::plan::{ContainerPlan, ExecPlan, PodPlan, StartFailure};
use std::os::fd::{BorrowedFd, OwnedFd};

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

fn not_yet() -> StartFailure {
    StartFailure { step: "not built yet".into(), errno: 0, about: String::new() }
}

/// Makes a pod's namespaces and the files that all its containers see. `fds` are those of the message.
pub fn set_up_pod(plan: &PodPlan, fds: &[OwnedFd]) -> Result<PodNamespaces, StartFailure> {
    let _ = (plan, fds);
    Err(not_yet())
}

/// Starts a container's first process; gives it once its execve has succeeded.
///
/// `target` is the pidfd of the container that `plan.pid_ns` names, when it is `Namespace::Of`.
pub fn start_container(
    pod: &PodNamespaces,
    plan: &ContainerPlan,
    fds: &[OwnedFd],
    stdio: Stdio,
    target: Option<BorrowedFd<'_>>,
) -> Result<Started, StartFailure> {
    let _ = (pod, plan, fds, stdio, target);
    Err(not_yet())
}

/// Starts one more process in the container whose first process `container` is the pidfd of.
pub fn exec(
    container: BorrowedFd<'_>,
    plan: &ExecPlan,
    fds: &[OwnedFd],
    stdio: Stdio,
) -> Result<Started, StartFailure> {
    let _ = (container, plan, fds, stdio);
    Err(not_yet())
}
