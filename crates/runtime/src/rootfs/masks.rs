//! Paths of a container that are hidden or made read-only. Each is opened once, and everything is done to what was
//! opened: exchanging the path afterwards changes nothing.

use crate::launch::Copy;
use crate::path::Make;
use crate::step::Step;
use knarr_sys::mount::{self, Attributes, NODEV, NOEXEC, NOSUID, RDONLY};
use knarr_sys::open;
use rustix::fs::{FileType, OFlags, fstat, makedev};
use rustix::io::{Errno, Result};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// /dev/null
const NULL: (u32, u32) = (1, 3);

/// Makes what lies at the paths read-only, with all mounts below.
pub(crate) fn make_read_only(paths: &[CString], copy: &Copy<'_>, root: BorrowedFd<'_>) -> Result<()> {
    for (index, path) in paths.iter().enumerate() {
        copy.report.step_of(Step::ReadonlyPath, index);
        let Some(target) = find(root, path)? else { continue };
        let tree = mount::clone_of(&target, true)?;
        mount::set_attributes(&tree, true, Attributes { set: RDONLY, ..Attributes::default() })?;
        mount::place(&tree, &target)?;
    }
    Ok(())
}

/// Hides what lies at the paths: a directory behind an empty one, anything else behind a null device.
///
/// The null device is the pod's own and is looked at before use: the container's /dev/null is the image's to forge.
pub(crate) fn mask(paths: &[CString], copy: &Copy<'_>, root: BorrowedFd<'_>, pod: BorrowedFd<'_>) -> Result<()> {
    if paths.is_empty() {
        return Ok(());
    }
    copy.report.step(Step::MaskPath);
    let null = open::beneath(pod, c"null", OFlags::PATH)?;
    let stat = fstat(&null)?;
    let harmless = match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => stat.st_rdev == makedev(NULL.0, NULL.1),
        FileType::RegularFile => stat.st_size == 0,
        _ => false,
    };
    if !harmless {
        return Err(Errno::NODEV);
    }
    let empty = empty_directory(pod)?;
    for (index, path) in paths.iter().enumerate() {
        copy.report.step_of(Step::MaskPath, index);
        let Some(target) = find(root, path)? else { continue };
        let cover = match Make::like(target.as_fd())? {
            Make::Directory => mount::clone_of(&empty, false)?,
            Make::File => mount::clone_of(&null, false)?,
        };
        mount::set_attributes(&cover, false, Attributes { set: RDONLY | NOSUID | NOEXEC, ..Attributes::default() })?;
        mount::place(&cover, &target)?;
    }
    Ok(())
}

/// An empty file system of this container's own, attached in the pod's, from where it can be copied.
fn empty_directory(pod: BorrowedFd<'_>) -> Result<OwnedFd> {
    let attributes = Attributes { set: RDONLY | NOSUID | NODEV | NOEXEC, ..Attributes::default() };
    let options = [(c"mode", c"0555"), (c"size", c"4k"), (c"nr_inodes", c"2")];
    let empty = mount::new_filesystem(c"tmpfs", options, attributes)?;
    mount::place(&empty, open::beneath(pod, c"empty", OFlags::PATH | OFlags::DIRECTORY)?)?;
    Ok(empty)
}

/// What lies at a path, if anything does.
fn find(root: BorrowedFd<'_>, path: &CString) -> Result<Option<OwnedFd>> {
    match open::in_root(root, path, OFlags::PATH) {
        Ok(target) => Ok(Some(target)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}
