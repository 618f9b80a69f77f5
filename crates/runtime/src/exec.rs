//! One more process in a running container.
//!
//! A helper is born in the process's cgroup (the other way round, the container's cgroup namespace would hide it), joins
//! all namespaces of the container's first process, and leaves the process behind: see [`crate::process`]. In a pod with a
//! user namespace, what needs the host's rights comes before the joining.

use crate::Attempt;
use crate::cgroup::Cgroup;
use crate::launch::{Birth, CLONE_INTO_CGROUP, Copy, ends_within, failure, launch};
use crate::path::{Make, open_or_make};
use crate::process::Process;
use crate::step::Step;
use crate::user_namespace;
use crate::{PodUser, StandardEnds, Started, Stdio};
use knarr_model::plan::{ExecPlan, StartFailure};
use knarr_sys::{mount, open};
use rustix::fs::OFlags;
use rustix::io::{Errno, Result};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

/// How long after the death of an exec's process the end of its container is still taken for the cause.
const CONTAINER_END: Duration = Duration::from_millis(100);

/// See [`crate::exec`].
pub(crate) fn start(
    user: Option<&PodUser>,
    container: BorrowedFd<'_>,
    plan: &ExecPlan,
    fds: &[OwnedFd],
    stdio: Stdio,
) -> Attempt<Started> {
    let ids = user.map(|user| &user.ids);
    let process = Process::prepare(&plan.process, &plan.container, ids)?;
    let cgroup = Cgroup::prepare(&plan.cgroup, fds)?;
    let stdio = StandardEnds::new(stdio)?;
    let proc = crate::host_proc()?;
    let mut kept = cgroup.kept();
    kept.extend([container, proc.as_fd()]);
    kept.extend(stdio.borrowed());
    let birth = Birth { new: 0, cgroup: Some(cgroup.into), kept, sibling: true };
    let place = Place { cgroup: &cgroup, container, in_user_namespace: user.is_some() };
    let launched = launch(birth, |copy| carry_out(copy, &process, &place, proc.as_fd(), stdio.borrowed()));
    let about = |step, index| crate::process::about(&plan.process, step, index);
    let no_volume = |_| Err(failure(Step::OpenVolume.words(), Errno::INVAL, ""));
    let started = launched.and_then(|launched| launched.executed(about, no_volume));
    started.map_err(|failure| of_container(failure, container, plan))
}

/// Where the process goes.
struct Place<'a> {
    cgroup: &'a Cgroup<'a>,
    /// pidfd of the container's first process
    container: BorrowedFd<'a>,
    in_user_namespace: bool,
}

fn carry_out(
    copy: &Copy<'_>,
    process: &Process,
    place: &Place<'_>,
    proc: BorrowedFd<'_>,
    stdio: [BorrowedFd<'_>; 3],
) -> Result<()> {
    process.begin(copy, proc)?;
    place.cgroup.join(copy)?;
    if place.in_user_namespace {
        process.prepare_for_user(copy, stdio)?;
    }
    copy.report.step(Step::JoinContainer);
    join_all(place.container, place.in_user_namespace)?;
    if place.in_user_namespace {
        user_namespace::become_root()?;
    }
    let terminal = open_terminal(copy, process)?;
    match &terminal {
        Some(slave) => process.connect_stdio(copy, [slave.as_fd(); 3])?,
        None => process.connect_stdio(copy, stdio)?,
    }
    drop(terminal);
    if process.create_cwd {
        copy.report.step(Step::MakeWorkingDirectory);
        drop(open_or_make(mount::open_path(c"/")?.as_fd(), &process.cwd, Make::Directory)?);
    }
    process.finish(copy, true)
}

/// All or nothing, so that the process cannot end between two of them.
fn join_all(container: BorrowedFd<'_>, with_user: bool) -> Result<()> {
    let mut all = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::CONTROL_GROUP
        | ThreadNameSpaceType::PROCESS_ID;
    // One's own user namespace cannot be joined again.
    all.set(ThreadNameSpaceType::USER, with_user);
    move_into_thread_name_spaces(container, all)
}

fn open_terminal(copy: &Copy<'_>, process: &Process) -> Result<Option<OwnedFd>> {
    if !process.terminal {
        return Ok(None);
    }
    copy.report.step(Step::OpenTerminal);
    let root = mount::open_path(c"/")?;
    let devpts = open::in_root(root, c"/dev/pts", OFlags::PATH | OFlags::DIRECTORY)?;
    process.open_terminal(copy, devpts.as_fd()).map(Some)
}

/// The ways in which the kernel says that the container has ended meanwhile.
fn of_container(failure: StartFailure, container: BorrowedFd<'_>, plan: &ExecPlan) -> StartFailure {
    let is = |errnos: &[Errno]| errnos.iter().any(|errno| errno.raw_os_error() == failure.errno);
    let gone = match failure.step.as_str() {
        step if step == Step::JoinContainer.words() => is(&[Errno::SRCH, Errno::NOENT, Errno::NODEV]),
        step if step == Step::JoinCgroup.words() => is(&[Errno::NODEV, Errno::NOENT]),
        CLONE_INTO_CGROUP => is(&[Errno::NOENT, Errno::NODEV]),
        // A PID namespace without its init takes nobody in.
        step if step == Step::EnterPidNamespace.words() => is(&[Errno::NOMEM]),
        // It died by itself: with the container, if that ends now. Its end comes after that of all others in it.
        _ if failure.errno == 0 => ends_within(container, CONTAINER_END),
        _ => false,
    };
    if gone {
        return StartFailure { step: "container is not running".into(), about: plan.container.to_string(), ..failure };
    }
    failure
}
