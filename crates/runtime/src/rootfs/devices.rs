//! Device nodes and symbolic links of a container.

use crate::Attempt;
use crate::launch::Copy;
use crate::path::{Make, open_or_make, open_or_make_parent};
use crate::process::string;
use crate::step::Step;
use knarr_model::plan::DevicePlan;
use knarr_sys::{capability, mount};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, makedev, mknodat, openat, symlinkat};
use rustix::io::{Errno, Result};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Majors of the devices that every container has (null, zero, full, random, urandom; tty): no rule of a device cgroup
/// forbids to make them.
const ORDINARY_MAJORS: [u32; 2] = [1, 5];

/// One device node.
pub(crate) struct Device {
    path: CString,
    kind: FileType,
    number: u64,
    mode: u32,
    uid: Uid,
    gid: Gid,
    /// A copy of the host's node of the same path, for where making one is not allowed.
    fallback: Option<OwnedFd>,
    may_need_fallback: bool,
}

/// One symbolic link.
pub(crate) struct Link {
    path: CString,
    target: CString,
}

impl Device {
    pub(crate) fn prepare(plan: &DevicePlan) -> Attempt<Self> {
        let kind = match plan.kind {
            b'b' => FileType::BlockDevice,
            b'p' => FileType::Fifo,
            _ => FileType::CharacterDevice,
        };
        let may_make = capability::current().is_ok_and(|sets| sets.effective & capability::MKNOD != 0);
        Ok(Self {
            path: string(&plan.path)?,
            kind,
            number: if kind == FileType::Fifo { 0 } else { makedev(plan.major, plan.minor) },
            mode: plan.mode & 0o7777,
            uid: Uid::from_raw(plan.uid),
            gid: Gid::from_raw(plan.gid),
            fallback: None,
            may_need_fallback: kind != FileType::Fifo && (!may_make || !ORDINARY_MAJORS.contains(&plan.major)),
        })
    }

    fn is(&self, node: BorrowedFd<'_>) -> Result<bool> {
        let stat = fstat(node)?;
        Ok(FileType::from_raw_mode(stat.st_mode) == self.kind
            && (self.kind == FileType::Fifo || stat.st_rdev == self.number))
    }

    fn make(&self, root: BorrowedFd<'_>) -> Result<()> {
        let (parent, name) = open_or_make_parent(root, &self.path)?;
        let made = mknodat(&parent, name.as_c_str(), self.kind, Mode::from_raw_mode(self.mode), self.number);
        match (made, &self.fallback) {
            (Ok(()) | Err(Errno::EXIST), _) => {}
            // No capability (a user namespace), or the container's device cgroup forbids it.
            (Err(Errno::PERM), Some(host)) => {
                return mount::place(host, open_or_make(root, &self.path, Make::File)?);
            }
            (Err(errno), _) => return Err(errno),
        }
        let node = openat(&parent, name.as_c_str(), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        if !self.is(node.as_fd())? {
            // Something else of that name was there.
            return Err(Errno::EXIST);
        }
        chownat(&node, c"", Some(self.uid), Some(self.gid), AtFlags::EMPTY_PATH)
    }
}

impl Link {
    pub(crate) fn prepare((path, target): &(Vec<u8>, Vec<u8>)) -> Attempt<Self> {
        Ok(Self { path: string(path)?, target: string(target)? })
    }
}

/// Takes copies of the host's nodes for devices that perhaps cannot be made. The calling process is on the host.
pub(crate) fn open_sources(devices: &mut [Device], copy: &Copy<'_>) -> Result<()> {
    for (index, device) in devices.iter_mut().enumerate().filter(|(_, device)| device.may_need_fallback) {
        copy.report.step_of(Step::MakeDevice, index);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // A device that the host has under another name, or not at all, can only be made.
        if let Ok(node) = openat(CWD, &device.path, flags, Mode::empty())
            && device.is(node.as_fd())?
        {
            device.fallback = Some(mount::clone_of(node, false)?);
        }
    }
    Ok(())
}

/// Makes or binds all devices.
pub(crate) fn make_all(devices: &[Device], copy: &Copy<'_>, root: BorrowedFd<'_>) -> Result<()> {
    for (index, device) in devices.iter().enumerate() {
        copy.report.step_of(Step::MakeDevice, index);
        device.make(root)?;
    }
    Ok(())
}

/// Makes all links; where something of the name is there already, it stays.
pub(crate) fn link_all(links: &[Link], copy: &Copy<'_>, root: BorrowedFd<'_>) -> Result<()> {
    for (index, link) in links.iter().enumerate() {
        copy.report.step_of(Step::MakeLink, index);
        let (parent, name) = open_or_make_parent(root, &link.path)?;
        match symlinkat(&link.target, &parent, name.as_c_str()) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
