//! Namespaces by descriptor, and the empty mount namespace from which all others start.

use crate::call::syscall;
use crate::mount::{self, Attributes};
use crate::thread::enter_private_mount_namespace;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, Result};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{chroot, fchdir, pivot_root};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// A namespace kind by its name in /proc/<pid>/ns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Mount,
    Net,
    Ipc,
    Uts,
    Pid,
    Cgroup,
    User,
}

impl Kind {
    /// The file's name below /proc/<pid>/ns.
    pub fn name(self) -> &'static CStr {
        match self {
            Self::Mount => c"mnt",
            Self::Net => c"net",
            Self::Ipc => c"ipc",
            Self::Uts => c"uts",
            Self::Pid => c"pid",
            Self::Cgroup => c"cgroup",
            Self::User => c"user",
        }
    }
}

/// The namespace of a process that cannot end and be replaced meanwhile: a child not yet reaped. `proc` is a directory
/// of the procfs that knows the process by `pid`.
pub fn of_process(proc: impl AsFd, pid: u32, kind: Kind) -> io::Result<OwnedFd> {
    let path = CString::new(format!("{pid}/ns/{}", kind.name().to_string_lossy()))?;
    Ok(openat(proc, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The calling thread's own namespace of one kind.
pub fn own(kind: Kind) -> io::Result<OwnedFd> {
    let path = CString::new(format!("/proc/thread-self/ns/{}", kind.name().to_string_lossy()))?;
    Ok(openat(CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The user namespace that a namespace belongs to. EPERM if it is not the caller's or one of its descendants.
pub fn owner(namespace: impl AsFd) -> Result<OwnedFd> {
    let fd = namespace.as_fd().as_raw_fd();
    // SAFETY: this ioctl takes no argument.
    let owner = unsafe { syscall!(libc::SYS_ioctl, fd, libc::NS_GET_USERNS, 0) }?;
    // SAFETY: the kernel has just made this descriptor for us alone, close-on-exec.
    Ok(unsafe { OwnedFd::from_raw_fd(owner as i32) })
}

/// Makes a mount namespace that holds nothing but an empty tmpfs as `/`, and gives its descriptor.
///
/// A new mount namespace is a copy of the one it is made from: starting from this one costs the same whatever the host
/// has mounted, and none of the host's mounts is kept busy by a container.
pub fn make_base_mount_ns() -> io::Result<OwnedFd> {
    let thread = std::thread::Builder::new().name("base-mount-ns".into()).spawn(|| {
        enter_empty_mount_namespace()?;
        // Opened before the new root hid /proc, this would be the host's namespace: so a procfs of this thread's own.
        let proc = mount::new_filesystem(c"proc", [], Attributes::default())?;
        Ok(openat(&proc, c"thread-self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    })?;
    thread.join().unwrap_or_else(|_| Err(Errno::IO.into()))
}

/// Moves the calling thread into a new mount namespace with an empty tmpfs as its root and nothing else.
pub fn enter_empty_mount_namespace() -> Result<()> {
    enter_private_mount_namespace()?;
    let attributes = Attributes { set: mount::NOSUID | mount::NOEXEC, ..Attributes::default() };
    let root = mount::new_filesystem(c"tmpfs", [(c"mode", c"0755")], attributes)?;
    mount::place(&root, rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)?;
    match change_root_mount(&root) {
        // The old root is the kernel's initial ramfs, which cannot be replaced: the new one lies over it.
        Err(Errno::INVAL) => {
            chroot(c".")?;
            rustix::process::chdir(c"/")
        }
        result => result,
    }
}

/// Makes an attached mount the root of the calling thread and its namespace, and detaches all that was there before.
/// The mounts must be private, and the mount must not be the root already.
pub fn change_root_mount(root: impl AsFd) -> Result<()> {
    fchdir(root)?;
    pivot_root(c".", c".")?;
    // Both names meant the new root, on which the old one now lies: the topmost is unmounted.
    unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::thread::enter_mount_namespace;

    #[test]
    fn the_base_namespace_is_empty_and_the_hosts_is_as_it_was() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let before = mounts();
        let base = make_base_mount_ns().unwrap();
        let listed = std::thread::spawn(move || {
            enter_mount_namespace(base).unwrap();
            std::fs::read_dir("/").unwrap().count()
        })
        .join()
        .unwrap();
        assert_eq!(listed, 0);
        assert_eq!(before, mounts());
    }
}
