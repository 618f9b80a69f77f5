//! The first process of a shared PID namespace: holds it, and has the kernel reap what is orphaned in it.
//!
//! It is a copy of the caller (of a helper in the pod's user namespace, if the pod has one, since the PID namespace has to
//! belong to that) that never executes anything. Nothing can be reached through it: no descriptor, an empty
//! directory as its root, no privilege, and it cannot be traced. It ends with the caller.

use crate::Attempt;
use crate::launch::{Birth, Copy, io_failure, launch};
use crate::step::Step;
use crate::user_namespace::{self, Membership};
use crate::{Child, PodNamespaces};
use knarr_sys::capability::{self, Sets};
use knarr_sys::mount::{self, Attributes, NODEV, NOEXEC, NOSUID};
use knarr_sys::namespace::{self, Kind};
use knarr_sys::process::{NEW_PID, copy_process_as_sibling, die_with_parent, forbid_dumps};
use knarr_sys::{open, signal};
use rustix::fs::{Gid, OFlags, Uid};
use rustix::io::{Errno, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::os::fd::{AsFd, BorrowedFd};

/// "nobody's" id, as the pause containers of the field use: the pod sees it as pid 1's owner.
const NOBODY: u32 = 65535;

/// Starts it in the pod's namespaces and gives them with it.
pub(crate) fn start(mut pod: PodNamespaces, proc: BorrowedFd<'_>) -> Attempt<PodNamespaces> {
    let joins = [
        (LinkNameSpaceType::Network, pod.net.as_ref()),
        (LinkNameSpaceType::InterProcessCommunication, pod.ipc.as_ref()),
        (LinkNameSpaceType::HostNameAndNISDomainName, pod.uts.as_ref()),
        (LinkNameSpaceType::Mount, Some(&pod.mount)),
    ];
    let user = pod.membership();
    let mut kept: Vec<_> = joins.iter().filter_map(|(_, fd)| Some((*fd)?.as_fd())).collect();
    kept.extend(user.map(|user| user.namespace));
    let new = if user.is_some() { 0 } else { NEW_PID };
    let birth = Birth { new, cgroup: None, kept, sibling: user.is_some() };
    let join_and_run = |copy: &Copy<'_>| {
        for (kind, fd) in joins {
            if let Some(fd) = fd {
                move_into_link_name_space(fd.as_fd(), Some(kind))?;
            }
        }
        run(copy, user)
    };
    let mut launched = launch(birth, |copy| {
        copy.report.step(Step::PodInit);
        let Some(user) = user else { return join_and_run(copy) };
        user_namespace::enter(user.namespace)?;
        let pid = copy_process_as_sibling(NEW_PID, || copy.status_of(join_and_run(copy)))?;
        copy.report.set_sibling(pid);
        Ok(())
    })?;
    let pid = launched.made(|_, _| String::new())?;
    let namespace =
        namespace::of_process(proc, pid, Kind::Pid).map_err(|error| io_failure("open namespace", &error, "pid"))?;
    let child: Child = launched.release()?;
    pod.pid = Some(namespace);
    pod.pid_init = Some(child);
    Ok(pod)
}

fn run(copy: &Copy<'_>, user: Option<Membership<'_>>) -> Result<()> {
    // Of this PID namespace; containers take it from here, since they stay outside while they set up.
    let proc =
        mount::new_filesystem(c"proc", [], Attributes { set: NOSUID | NODEV | NOEXEC, ..Attributes::default() })?;
    {
        let root = mount::open_path(c"/")?;
        mount::place(&proc, open::beneath(root, c"proc", OFlags::PATH | OFlags::DIRECTORY)?)?;
    }
    drop(proc);
    rustix::process::chdir(c"/empty")?;
    rustix::process::chroot(c".")?;
    signal::reset_all()?;
    // Ignored, children are reaped by the kernel as they end: also those that pass to this process.
    signal::ignore(knarr_sys::signal::CHILD)?;
    rustix::process::setsid()?;
    rustix::thread::set_name(c"knarr-init")?;
    drop_privilege(user)?;
    forbid_dumps()?;
    // Forgotten when credentials change, so after that; and if the caller ended before it, the answer does not come.
    die_with_parent()?;
    copy.close_all()?;
    if !copy.made()? {
        return Err(Errno::PIPE);
    }
    copy.close_everything()?;
    loop {
        // Everything but SIGKILL and SIGSTOP from outside is ignored: the kernel keeps other signals from the first
        // process of a PID namespace that has no handler for them.
        rustix::event::pause();
    }
}

fn drop_privilege(user: Option<Membership<'_>>) -> Result<()> {
    // A user namespace may be too small to have a nobody.
    let nobody = |last: Option<u32>| last.map_or(NOBODY, |last| last.min(NOBODY));
    let (uid, gid) =
        (nobody(user.and_then(|user| user.ids.uids.last())), nobody(user.and_then(|user| user.ids.gids.last())));

    capability::keep_in_bounding(0)?;
    rustix::thread::set_no_new_privs(true)?;
    rustix::thread::set_thread_groups(&[])?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    capability::set(Sets::default())
}
