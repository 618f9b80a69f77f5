//! The pod's user namespace: how it is made, and how a copy of the caller comes into it.
//!
//! A copy begins with the host's rights. What needs them (volumes, device nodes, owners of pipes, limits) it does first;
//! from [`enter`] on it is root of the namespace, as far as that reaches, and there is no way back.

use crate::Attempt;
use crate::launch::{Copy, failure};
use crate::step::Step;
use knarr_model::{IdMap, UserNamespace};
use knarr_sys::process::forbid_dumps;
use knarr_sys::thread::unshare_namespaces;
use rustix::fs::{Gid, Mode, OFlags, Uid, openat};
use rustix::io::{Errno, Result};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::os::fd::{AsFd, BorrowedFd};

/// A process's place in the pod's user namespace.
#[derive(Clone, Copy)]
pub(crate) struct Membership<'a> {
    /// the namespace
    pub(crate) namespace: BorrowedFd<'a>,
    /// who is who in it
    pub(crate) ids: UserNamespace,
    /// The process has the host's network, which another user namespace owns.
    pub(crate) host_network: bool,
}

/// In a copy with the host's rights: makes a new user namespace, waits until the caller has written its ids
/// ([`write_ids`]), and becomes its root.
pub(crate) fn make(copy: &Copy<'_>) -> Result<()> {
    copy.report.step(Step::NewUserNamespace);
    unshare_namespaces(UnshareFlags::NEWUSER)?;
    if !copy.made()? {
        return Err(Errno::PIPE);
    }
    become_root()
}

/// In a copy with the host's rights: goes into the namespace and becomes its root.
pub(crate) fn enter(namespace: impl AsFd) -> Result<()> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))?;
    become_root()
}

/// Until then the process has the host's ids, which are nobody in the namespace: what it makes would belong to nobody.
pub(crate) fn become_root() -> Result<()> {
    let (uid, gid) = (Uid::ROOT, Gid::ROOT);
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    // A change of ids sets this to what fs.suid_dumpable says.
    forbid_dumps()
}

/// In the caller: gives the namespace of the child `pid`, which waits in [`make`], its ids. `proc` is the host's procfs.
pub(crate) fn write_ids(proc: BorrowedFd<'_>, pid: u32, ids: &UserNamespace) -> Attempt<()> {
    let write = |name: &str, map: &IdMap| {
        let text = format!("{} {} {}\n", map.container, map.host, map.length);
        let written = openat(proc, format!("{pid}/{name}"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| rustix::io::write(&file, text.as_bytes()));
        match written {
            Ok(length) if length == text.len() => Ok(()),
            Ok(_) => Err(failure(Step::MapIds.words(), Errno::IO, text.trim_end())),
            Err(errno) => Err(failure(Step::MapIds.words(), errno, text.trim_end())),
        }
    };
    write("uid_map", &ids.uids)?;
    write("gid_map", &ids.gids)
}
