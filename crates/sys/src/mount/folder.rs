//! One folder of a detached mount, as a detached mount of its own.
//!
//! Up to Linux 6.14 only what is attached in the caller's own mount namespace can be copied. So a thread that lives
//! for this alone attaches the mount in a namespace of its own, copies the folder and ends, and the namespace with it.

use super::{clone_of, place};
use crate::open::beneath_with_links;
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

/// How long it may take: less than a millisecond, without end on a dead disk.
const FOLDER_DEADLINE: Duration = Duration::from_secs(30);

/// The directory at the relative `path` of a mount that is attached nowhere. Symbolic links are followed within the
/// mount; one that leads out of it, absolute ones included, is EXDEV. ENOTDIR if it is no directory, ETIMEDOUT after
/// 30 s. Blocks.
pub fn folder_of(tree: OwnedFd, path: CString) -> io::Result<OwnedFd> {
    let (answer, answered) = sync_channel(1);
    std::thread::Builder::new().name("folder".into()).spawn(move || {
        // Nobody listens any more after the deadline: the copy goes with its descriptor.
        let _ = answer.send(copy_folder(&tree, &path));
    })?;
    answered.recv_timeout(FOLDER_DEADLINE).map_err(|_| Errno::TIMEDOUT)?
}

fn copy_folder(tree: &OwnedFd, path: &CString) -> io::Result<OwnedFd> {
    crate::namespace::enter_empty_mount_namespace()?;
    mkdirat(CWD, c"tree", Mode::RWXU)?;
    place(tree, openat(CWD, c"tree", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)?;
    let folder = beneath_with_links(tree, path, OFlags::PATH | OFlags::DIRECTORY)?;
    Ok(clone_of(folder, true)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mount::{Attributes, RDONLY, set_attributes};
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_folder_is_within_its_mount_and_keeps_its_flags() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir(dir.path().join("outside")).unwrap();
        fs::write(root.join("a/b/file"), "x").unwrap();
        for (target, link) in [("a/b", "inside"), ("../outside", "out"), ("/etc", "absolute"), ("loop", "loop")] {
            symlink(target, root.join(link)).unwrap();
        }
        let tree = || {
            let tree = clone_of(fs::File::open(&root).unwrap(), false).unwrap();
            set_attributes(&tree, true, Attributes { set: RDONLY, ..Attributes::default() }).unwrap();
            tree
        };
        for path in ["a/b", "inside", "./a//b/", "a/../a/b"] {
            let folder = folder_of(tree(), CString::new(path).unwrap()).expect(path);
            openat(&folder, c"file", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).expect(path);
            let made = openat(&folder, c"new", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU);
            assert_eq!(made.unwrap_err(), Errno::ROFS, "{path}");
        }
        for (path, errno) in [
            ("absent", Errno::NOENT),
            ("a/b/file", Errno::NOTDIR),
            ("out", Errno::XDEV),
            ("absolute", Errno::XDEV),
            ("../outside", Errno::XDEV),
            ("/a", Errno::XDEV),
            ("loop", Errno::LOOP),
        ] {
            let error = folder_of(tree(), CString::new(path).unwrap()).expect_err(path);
            assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{path}");
        }
    }
}
