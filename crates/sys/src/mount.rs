//! The mount API by descriptor: detached mounts are made, given attributes and placed; no path is ever joined.
//!
//! The overlay of a container is built in [`overlay`](mod@overlay).

mod folder;
mod overlay;

pub use folder::folder_of;
pub use overlay::{OverlayThread, overlay};

use crate::call::syscall;
use rustix::fs::CWD;
use rustix::io::Result;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// MOUNT_ATTR_RDONLY
pub const RDONLY: u64 = 0x1;
/// MOUNT_ATTR_NOSUID
pub const NOSUID: u64 = 0x2;
/// MOUNT_ATTR_NODEV
pub const NODEV: u64 = 0x4;
/// MOUNT_ATTR_NOEXEC
pub const NOEXEC: u64 = 0x8;
/// MOUNT_ATTR__ATIME: the three access time modes are one field.
const ATIME: u64 = 0x70;
/// MOUNT_ATTR_RELATIME (the mode 0)
pub const RELATIME: u64 = 0x0;
/// MOUNT_ATTR_NOATIME
pub const NOATIME: u64 = 0x10;
/// MOUNT_ATTR_IDMAP
const IDMAP: u64 = 0x0010_0000;

/// What mount_setattr changes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Attributes<'a> {
    /// [`RDONLY`], [`NOSUID`], [`NODEV`], [`NOEXEC`], [`NOATIME`]
    pub set: u64,
    /// The same flags, taken away.
    pub clear: u64,
    /// The access time mode is among what is changed: to that in `set`, or to [`RELATIME`] when there is none in it.
    pub access_time: bool,
    /// MS_PRIVATE, MS_SLAVE, MS_SHARED, or 0 to leave it.
    pub propagation: u64,
    /// Map owners by this user namespace: for a mount that was never placed.
    pub id_map: Option<BorrowedFd<'a>>,
}

impl Attributes<'_> {
    /// What the MS_* flags RDONLY, NOSUID, NODEV, NOEXEC, RELATIME and NOATIME of mount(2) mean; others are left out.
    pub fn from_mount_flags(flags: u64) -> Self {
        let pairs = [
            (libc::MS_RDONLY, RDONLY),
            (libc::MS_NOSUID, NOSUID),
            (libc::MS_NODEV, NODEV),
            (libc::MS_NOEXEC, NOEXEC),
            (libc::MS_NOATIME, NOATIME),
        ];
        let set = pairs.iter().filter(|(ms, _)| flags & ms != 0).fold(0, |set, (_, attribute)| set | attribute);
        Self { set, access_time: flags & (libc::MS_NOATIME | libc::MS_RELATIME) != 0, ..Self::default() }
    }

    /// Only the propagation type.
    pub fn propagation(propagation: u64) -> Self {
        Self { propagation, ..Self::default() }
    }

    fn is_nothing(&self) -> bool {
        self.set | self.clear | self.propagation == 0 && !self.access_time && self.id_map.is_none()
    }
}

/// Changes the mount that `mount` is the root of, with all mounts below it if `recursive`.
pub fn set_attributes(mount: impl AsFd, recursive: bool, attributes: Attributes<'_>) -> Result<()> {
    if attributes.is_nothing() {
        return Ok(());
    }
    let kernel = libc::mount_attr {
        attr_set: attributes.set | if attributes.id_map.is_some() { IDMAP } else { 0 },
        attr_clr: attributes.clear | if attributes.access_time { ATIME } else { 0 },
        propagation: attributes.propagation,
        userns_fd: attributes.id_map.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let (fd, path, size) = (mount.as_fd().as_raw_fd(), c"".as_ptr(), size_of::<libc::mount_attr>());
    // SAFETY: the path is a literal, and `kernel` has the layout that its size stands for and outlives the call.
    unsafe { syscall!(libc::SYS_mount_setattr, fd, path, flags, &raw const kernel, size) }?;
    Ok(())
}

/// A detached copy of the mount tree at `path` (from `directory`; symbolic links are followed), or of the single mount.
/// What is mounted there later is not in it, see the caller of [`MountWatch`].
pub fn clone_tree(directory: impl AsFd, path: &CStr, recursive: bool) -> Result<OwnedFd> {
    open_tree(directory, path, clone_flags(recursive))
}

/// [`clone_tree`] of what a descriptor stands for: a directory or a file.
pub fn clone_of(thing: impl AsFd, recursive: bool) -> Result<OwnedFd> {
    open_tree(thing, c"", clone_flags(recursive) | OpenTreeFlags::AT_EMPTY_PATH)
}

fn clone_flags(recursive: bool) -> OpenTreeFlags {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive { flags | OpenTreeFlags::AT_RECURSIVE } else { flags }
}

/// Attaches a detached mount on what `target` stands for: a directory for a directory, a file for a file.
pub fn place(mount: impl AsFd, target: impl AsFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", target, c"", flags)
}

/// A new file system, detached, with options as (name, value); an empty value stands for an option that has none.
///
/// The kernel takes at most 255 bytes for a value.
pub fn new_filesystem<'a>(
    fstype: &CStr,
    options: impl IntoIterator<Item = (&'a CStr, &'a CStr)>,
    attributes: Attributes<'_>,
) -> Result<OwnedFd> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(&context, name)?;
        } else {
            fsconfig_set_string(&context, name, value)?;
        }
    }
    fsconfig_create(&context)?;
    let flags = MountAttrFlags::from_bits_retain(attributes.set as u32);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

/// Detaches the mount whose root directory is `root`, with all below it, and changes the working directory to it.
/// Mounts below a shared one are detached from its peers too: make it private first.
pub fn detach(root: impl AsFd) -> Result<()> {
    rustix::process::fchdir(root)?;
    unmount(c".", UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}

/// Tells whether the mount table of a namespace has changed.
///
/// A mount made on the host between the copying of a tree and its placing never reaches the copy, even a shared one.
#[derive(Debug)]
pub struct MountWatch {
    mountinfo: OwnedFd,
}

impl MountWatch {
    /// Watches the calling thread's present mount namespace, also after the thread has left it. `proc` is the root of a
    /// procfs.
    pub fn new(proc: impl AsFd) -> Result<Self> {
        use rustix::fs::{Mode, OFlags, openat};
        Ok(Self { mountinfo: openat(proc, c"thread-self/mountinfo", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())? })
    }

    /// Whether anything was mounted or unmounted since the last call, or since this was made.
    pub fn changed(&self) -> Result<bool> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let mut fds = [PollFd::new(&self.mountinfo, PollFlags::PRI)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut fds, Some(&now))?;
        Ok(fds[0].revents().intersects(PollFlags::PRI | PollFlags::ERR))
    }
}

/// The mount with an absolute path in the calling thread's namespace, as a descriptor that only names it.
pub fn open_path(path: &CStr) -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, openat};
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_access_time_mode_is_one_field() {
        let attributes = Attributes::from_mount_flags(libc::MS_NOATIME | libc::MS_RDONLY | libc::MS_BIND);
        assert_eq!((attributes.set, attributes.access_time), (NOATIME | RDONLY, true));
        assert!(!Attributes::from_mount_flags(libc::MS_NOSUID).access_time);
        assert!(Attributes::from_mount_flags(libc::MS_BIND).is_nothing());
    }

    #[test]
    fn a_watch_fires_once_for_a_change() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        std::thread::spawn(|| {
            let proc = open_path(c"/proc").unwrap();
            crate::thread::enter_private_mount_namespace().unwrap();
            let watch = MountWatch::new(&proc).unwrap();
            assert!(!watch.changed().unwrap());
            let tmpfs = new_filesystem(c"tmpfs", [(c"size", c"64k")], Attributes::default()).unwrap();
            place(tmpfs, open_path(c"/mnt").unwrap()).unwrap();
            assert!(watch.changed().unwrap());
            assert!(!watch.changed().unwrap());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn attributes_are_on_the_copy_and_not_on_the_original() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_owned();
        std::thread::spawn(move || {
            crate::thread::enter_private_mount_namespace().unwrap();
            let copy = clone_of(std::fs::File::open(&path).unwrap(), false).unwrap();
            set_attributes(&copy, true, Attributes { set: RDONLY, ..Attributes::default() }).unwrap();
            use rustix::fs::{Mode, OFlags, openat};
            let flags = OFlags::CREATE | OFlags::WRONLY;
            assert_eq!(openat(&copy, c"file", flags, Mode::RWXU).unwrap_err(), rustix::io::Errno::ROFS);
            std::fs::write(path.join("file"), "").unwrap();
        })
        .join()
        .unwrap();
    }
}
