//! A container's first process.
//!
//! With a PID namespace of its own, or the host's, the copy of the caller becomes the program. In a PID namespace where
//! others run, the copy stays outside as a helper, and only what it leaves is born inside: see [`crate::process`]. In a
//! pod with a user namespace, that of PIDs has to belong to it: the copy does what needs the host's rights, joins the
//! user namespace, and leaves a process in a new PID namespace, which does the rest.

use crate::Attempt;
use crate::cgroup::Cgroup;
use crate::launch::{Birth, Copy, failure, launch};
use crate::process::{Process, lossy};
use crate::rootfs::Rootfs;
use crate::rootfs::mounts::{self, Host};
use crate::step::Step;
use crate::user_namespace::{self, Membership};
use crate::{PodNamespaces, StandardEnds, Started, Stdio};
use knarr_model::plan::{ContainerPlan, MountKind, Namespace, StartFailure};
use knarr_sys::process::{NEW_PID, copy_process_as_sibling};
use knarr_sys::thread::unshare_namespaces;
use rustix::io::{Errno, Result};
use rustix::thread::{
    LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags, move_into_link_name_space, move_into_thread_name_spaces,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Where the process's PID namespace comes from.
enum PidNamespace<'a> {
    /// The copy has it already: a new one, or the host's.
    Born,
    /// A new one, once the copy is in the pod's user namespace.
    OfUser,
    Pod(BorrowedFd<'a>),
    /// pidfd of the container
    Of(BorrowedFd<'a>),
}

/// What the copy carries out.
struct Work<'a> {
    process: Process,
    rootfs: Rootfs<'a>,
    cgroup: Cgroup<'a>,
    pid: PidNamespace<'a>,
    joins: Vec<(LinkNameSpaceType, BorrowedFd<'a>)>,
    pod_mount: BorrowedFd<'a>,
    new_cgroup_ns: bool,
    user: Option<Membership<'a>>,
}

/// See [`crate::start_container`].
pub(crate) fn start(
    pod: &PodNamespaces,
    plan: &ContainerPlan,
    fds: &[OwnedFd],
    stdio: Stdio,
    target: Option<BorrowedFd<'_>>,
) -> Attempt<Started> {
    let user = membership(pod, plan)?;
    let (pid, new) = pid_namespace(pod, plan, target)?;
    let mut work = Work {
        process: Process::prepare(&plan.process, &plan.id, user.as_ref().map(|user| &user.ids))?,
        rootfs: Rootfs::prepare(plan, fds, user)?,
        cgroup: Cgroup::prepare(&plan.cgroup, fds)?,
        pid,
        joins: joins(pod, plan)?,
        pod_mount: pod.mount.as_fd(),
        new_cgroup_ns: plan.new_cgroup_ns,
        user,
    };
    let sibling = !matches!(work.pid, PidNamespace::Born);
    let stdio = StandardEnds::new(stdio)?;
    let proc = crate::host_proc()?;
    let mut kept = work.rootfs.kept();
    kept.extend(work.cgroup.kept());
    kept.extend(work.joins.iter().map(|(_, fd)| *fd));
    kept.push(work.pod_mount);
    kept.push(proc.as_fd());
    kept.extend(stdio.borrowed());
    kept.extend(user.map(|user| user.namespace));
    match work.pid {
        PidNamespace::Born | PidNamespace::OfUser => {}
        PidNamespace::Pod(fd) | PidNamespace::Of(fd) => kept.push(fd),
    }
    let host = Host { proc: proc.as_fd(), user };
    let birth = Birth { new, cgroup: Some(work.cgroup.into), kept, sibling };
    let launched = launch(birth, |copy| work.carry_out(copy, &host, stdio.borrowed()))?;
    let about = |step, index| about(plan, step, index);
    let volume = |index| mounts::fetch(&plan.mounts, index, user, about);
    launched.executed(about, volume).map_err(|failure| of_target(failure, plan))
}

impl Work<'_> {
    fn carry_out(&mut self, copy: &Copy<'_>, host: &Host<'_>, stdio: [BorrowedFd<'_>; 3]) -> Result<()> {
        self.process.begin(copy, host.proc)?;
        self.cgroup.join(copy)?;
        self.rootfs.open_sources(copy, host)?;
        copy.report.step(Step::JoinNamespaces);
        match self.pid {
            PidNamespace::Born | PidNamespace::OfUser => {}
            PidNamespace::Pod(fd) => move_into_link_name_space(fd, Some(LinkNameSpaceType::ProcessID))?,
            PidNamespace::Of(target) => {
                copy.report.step(Step::JoinTarget);
                move_into_thread_name_spaces(target, ThreadNameSpaceType::PROCESS_ID)?;
                self.rootfs.take_proc(copy, target, host.proc)?;
            }
        }
        let Some(user) = self.user else { return self.go_on(copy, host, stdio) };
        self.process.prepare_for_user(copy, stdio)?;
        copy.report.step(Step::JoinUserNamespace);
        user_namespace::enter(user.namespace)?;
        if !matches!(self.pid, PidNamespace::OfUser) {
            return self.go_on(copy, host, stdio);
        }
        copy.report.step(Step::EnterPidNamespace);
        let pid = copy_process_as_sibling(NEW_PID, || copy.status_of(self.go_on(copy, host, stdio)))?;
        copy.report.set_sibling(pid);
        Ok(())
    }

    /// The rest, in the pod's user namespace if it has one.
    fn go_on(&mut self, copy: &Copy<'_>, host: &Host<'_>, stdio: [BorrowedFd<'_>; 3]) -> Result<()> {
        copy.report.step(Step::JoinNamespaces);
        for (kind, fd) in &self.joins {
            move_into_link_name_space(*fd, Some(*kind))?;
        }
        move_into_link_name_space(self.pod_mount, Some(LinkNameSpaceType::Mount))?;
        copy.report.step(Step::NewNamespaces);
        // The cgroup namespace's root is where the process is at this moment: it has joined its cgroups before.
        let cgroup = if self.new_cgroup_ns { UnshareFlags::NEWCGROUP } else { UnshareFlags::empty() };
        unshare_namespaces(UnshareFlags::NEWNS | cgroup)?;
        let terminal = self.rootfs.build(copy, &self.process, host)?;
        match &terminal {
            Some(slave) => self.process.connect_stdio(copy, [slave.as_fd(); 3])?,
            None => self.process.connect_stdio(copy, stdio)?,
        }
        drop(terminal);
        self.process.finish(copy, matches!(self.pid, PidNamespace::Pod(_) | PidNamespace::Of(_)))
    }
}

fn pid_namespace<'a>(
    pod: &'a PodNamespaces,
    plan: &ContainerPlan,
    target: Option<BorrowedFd<'a>>,
) -> Attempt<(PidNamespace<'a>, u64)> {
    let missing = |what: &str| failure(Step::JoinNamespaces.words(), Errno::INVAL, what);
    Ok(match &plan.pid_ns {
        Namespace::Own if pod.user.is_some() => (PidNamespace::OfUser, 0),
        Namespace::Own => (PidNamespace::Born, NEW_PID),
        Namespace::Host => (PidNamespace::Born, 0),
        Namespace::Pod => {
            let fd = pod.pid.as_ref().ok_or_else(|| missing("the pod has no PID namespace"))?;
            (PidNamespace::Pod(fd.as_fd()), 0)
        }
        Namespace::Of(_) => (PidNamespace::Of(target.ok_or_else(|| missing("no target container was given"))?), 0),
    })
}

/// A pod without a user namespace uses the host's, and so do its containers; no container leaves its pod's.
fn membership<'a>(pod: &'a PodNamespaces, plan: &ContainerPlan) -> Attempt<Option<Membership<'a>>> {
    match (&plan.user_ns, pod.membership()) {
        (Namespace::Pod, user) => Ok(user),
        (Namespace::Host, None) => Ok(None),
        (Namespace::Host | Namespace::Own | Namespace::Of(_), _) => {
            Err(failure(Step::JoinUserNamespace.words(), Errno::INVAL, "the plan has another one"))
        }
    }
}

fn joins<'a>(pod: &'a PodNamespaces, plan: &ContainerPlan) -> Attempt<Vec<(LinkNameSpaceType, BorrowedFd<'a>)>> {
    let kinds = [
        (LinkNameSpaceType::Network, &plan.net_ns, &pod.net, "network"),
        (LinkNameSpaceType::InterProcessCommunication, &plan.ipc_ns, &pod.ipc, "IPC"),
        (LinkNameSpaceType::HostNameAndNISDomainName, &plan.uts_ns, &pod.uts, "UTS"),
    ];
    let mut joins = Vec::new();
    for (kind, wanted, of_pod, name) in kinds {
        match (wanted, of_pod) {
            (Namespace::Pod, Some(fd)) => joins.push((kind, fd.as_fd())),
            // A pod without one of its own uses the host's.
            (Namespace::Pod, None) | (Namespace::Host, _) => {}
            (Namespace::Own | Namespace::Of(_), _) => {
                return Err(failure(Step::JoinNamespaces.words(), Errno::INVAL, format!("{name} namespace")));
            }
        }
    }
    Ok(joins)
}

/// The thing of the plan that a step is about.
fn about(plan: &ContainerPlan, step: Step, index: usize) -> String {
    let path = |paths: &[Vec<u8>]| paths.get(index).map(|path| lossy(path)).unwrap_or_default();
    match step {
        Step::OpenVolume | Step::MapVolume => match plan.mounts.get(index).map(|mount| &mount.kind) {
            Some(MountKind::Bind { source, .. }) => lossy(source),
            _ => String::new(),
        },
        Step::MountVolume | Step::Mount | Step::OpenCgroup => {
            plan.mounts.get(index).map(|mount| lossy(&mount.target)).unwrap_or_default()
        }
        Step::MakeDevice => plan.devices.get(index).map(|device| lossy(&device.path)).unwrap_or_default(),
        Step::MakeLink => plan.links.get(index).map(|(path, _)| lossy(path)).unwrap_or_default(),
        Step::ReadonlyPath => path(&plan.readonly_paths),
        Step::MaskPath => path(&plan.masked_paths),
        step => crate::process::about(&plan.process, step, index),
    }
}

/// ESRCH from joining the target means that it has ended.
fn of_target(failure: StartFailure, plan: &ContainerPlan) -> StartFailure {
    let Namespace::Of(target) = &plan.pid_ns else { return failure };
    let gone = [Errno::SRCH.raw_os_error(), Errno::NOENT.raw_os_error()].contains(&failure.errno);
    if gone && failure.step == Step::JoinTarget.words() {
        return StartFailure { step: "target container is not running".into(), about: target.to_string(), ..failure };
    }
    failure
}
