//! Device nodes and symbolic links of a container.
//!
//! In a user namespace no device can be made, whatever the capabilities. So the copy makes them before it joins one, on a
//! file system apart, and they are bound to their places later.

use crate::Attempt;
use crate::launch::Copy;
use crate::path::{Make, open_or_make, open_or_make_parent};
use crate::process::string;
use crate::step::Step;
use crate::user_namespace::Membership;
use knarr_model::plan::DevicePlan;
use knarr_sys::mount::{self, Attributes, NOEXEC, NOSUID};
use knarr_sys::{capability, open};
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, makedev, mknodat, openat, symlinkat};
use rustix::io::{Errno, Result};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Majors of the devices that every container has (null, zero, full, random, urandom; tty): no rule of a device cgroup
/// forbids to make them.
const ORDINARY_MAJORS: [u32; 2] = [1, 5];

/// The devices that every container has, by number. Only these belong to the ids of a user namespace that the plan names;
/// any other node keeps the host's owner: a disk of the host's is not opened up because a container has a root.
const HARMLESS: [(u32, u32); 6] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0)];

/// All device nodes of a container.
pub(crate) struct Devices {
    list: Vec<Device>,
    /// For a container in a user namespace: where they are made.
    nodes: Option<OwnedFd>,
}

/// One device node.
struct Device {
    path: CString,
    kind: FileType,
    number: u64,
    mode: u32,
    uid: Uid,
    gid: Gid,
    /// A copy of the host's node of the same path, for where making one is not allowed.
    fallback: Option<OwnedFd>,
    may_need_fallback: bool,
    harmless: bool,
    /// Its name on [`Devices::nodes`].
    name: Option<CString>,
}

/// One symbolic link.
pub(crate) struct Link {
    path: CString,
    target: CString,
}

impl Device {
    fn prepare(plan: &DevicePlan) -> Attempt<Self> {
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
            harmless: kind == FileType::CharacterDevice && HARMLESS.contains(&(plan.major, plan.minor)),
            name: None,
        })
    }

    fn is(&self, node: BorrowedFd<'_>) -> Result<bool> {
        let stat = fstat(node)?;
        Ok(FileType::from_raw_mode(stat.st_mode) == self.kind
            && (self.kind == FileType::Fifo || stat.st_rdev == self.number))
    }

    /// A copy of the host's node of the same path. `None` for a device that the host has under another name, or not at
    /// all. The calling process is on the host.
    fn of_host(&self) -> Result<Option<OwnedFd>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(CWD, &self.path, flags, Mode::empty()) {
            Ok(node) if self.is(node.as_fd())? => mount::clone_of(node, false).map(Some),
            _ => Ok(None),
        }
    }

    /// Makes the node on `nodes`, with the owner as he is on the host.
    fn make_apart(&self, nodes: BorrowedFd<'_>, name: &CStr, user: &Membership<'_>) -> Result<()> {
        // An owner whom the pod does not have stays the host's.
        let uid = user.ids.uids.to_host(self.uid.as_raw()).filter(|_| self.harmless).map_or(self.uid, Uid::from_raw);
        let gid = user.ids.gids.to_host(self.gid.as_raw()).filter(|_| self.harmless).map_or(self.gid, Gid::from_raw);
        mknodat(nodes, name, self.kind, Mode::from_raw_mode(self.mode), self.number)?;
        chownat(nodes, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
    }

    /// Puts what is ready into its place: a copy of the host's node, or of the one that was made on `nodes`.
    fn bind(&self, root: BorrowedFd<'_>, nodes: &OwnedFd, name: &CStr) -> Result<()> {
        let target = open_or_make(root, &self.path, Make::File)?;
        match &self.fallback {
            Some(of_host) => mount::place(of_host, target),
            None => mount::place(mount::clone_tree(nodes, name, false)?, target),
        }
    }

    fn make(&self, root: BorrowedFd<'_>) -> Result<()> {
        let (parent, name) = open_or_make_parent(root, &self.path)?;
        let made = mknodat(&parent, name.as_c_str(), self.kind, Mode::from_raw_mode(self.mode), self.number);
        match (made, &self.fallback) {
            (Ok(()) | Err(Errno::EXIST), _) => {}
            // No capability, or the container's device cgroup forbids it.
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

impl Devices {
    pub(crate) fn prepare(plans: &[DevicePlan], in_user_namespace: bool) -> Attempt<Self> {
        let prepare = |(number, plan): (usize, &DevicePlan)| {
            let mut device = Device::prepare(plan)?;
            if in_user_namespace && device.kind != FileType::Fifo {
                device.name = Some(string(number.to_string().as_bytes())?);
            }
            Ok(device)
        };
        Ok(Self { list: plans.iter().enumerate().map(prepare).collect::<Attempt<_>>()?, nodes: None })
    }

    /// Takes copies of the host's nodes for devices that perhaps cannot be made; for a user namespace, has all of them
    /// ready. The calling process is on the host.
    pub(crate) fn open_sources(&mut self, copy: &Copy<'_>, user: Option<Membership<'_>>) -> Result<()> {
        if let Some(user) = user {
            return self.make_apart(copy, &user);
        }
        for (index, device) in self.list.iter_mut().enumerate().filter(|(_, device)| device.may_need_fallback) {
            copy.report.step_of(Step::MakeDevice, index);
            device.fallback = device.of_host()?;
        }
        Ok(())
    }

    fn make_apart(&mut self, copy: &Copy<'_>, user: &Membership<'_>) -> Result<()> {
        copy.report.step(Step::MakeDevice);
        // A node is an inode and no data. The root of a user namespace is nobody here, and has to find them.
        let attributes = Attributes { set: NOSUID | NOEXEC, ..Attributes::default() };
        let nodes = mount::new_filesystem(c"tmpfs", [(c"mode", c"0755"), (c"size", c"4k")], attributes)?;
        for (index, device) in self.list.iter_mut().enumerate() {
            let Some(name) = &device.name else { continue };
            copy.report.step_of(Step::MakeDevice, index);
            if !device.harmless {
                device.fallback = device.of_host()?;
            }
            if device.fallback.is_some() {
                continue;
            }
            match device.make_apart(nodes.as_fd(), name, user) {
                Ok(()) => {}
                Err(Errno::PERM) => device.fallback = Some(device.of_host()?.ok_or(Errno::PERM)?),
                Err(errno) => return Err(errno),
            }
        }
        self.nodes = Some(nodes);
        Ok(())
    }

    /// Makes or binds all devices; `pod` is the root of the pod's file system in this namespace.
    pub(crate) fn make_all(&self, copy: &Copy<'_>, root: BorrowedFd<'_>, pod: BorrowedFd<'_>) -> Result<()> {
        if let Some(nodes) = &self.nodes {
            copy.report.step(Step::MakeDevice);
            // Only what is attached can be copied.
            mount::place(nodes, open::beneath(pod, c"nodes", OFlags::PATH | OFlags::DIRECTORY)?)?;
        }
        for (index, device) in self.list.iter().enumerate() {
            copy.report.step_of(Step::MakeDevice, index);
            match (&self.nodes, &device.name) {
                (Some(nodes), Some(name)) => device.bind(root, nodes, name)?,
                _ => device.make(root)?,
            }
        }
        Ok(())
    }
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
