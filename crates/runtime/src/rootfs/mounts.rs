//! The mounts of a container, in the order of the plan.
//!
//! Volumes are taken as detached copies while the process is still in the host's mount namespace, get their flags and
//! propagation there, and are placed later. What is mounted on the host between the two would be lost, even for a volume
//! that shares its mounts with the host; so for such a volume the host's mount table is watched, and the volume is taken
//! again if it changed before the volume was in its place.

use crate::Attempt;
use crate::launch::{Birth, Copy, failure, launch};
use crate::path::{Make, open_or_make};
use crate::process::{lossy, string};
use crate::step::Step;
use crate::user_namespace::Membership;
use knarr_model::plan::{ContainerPlan, MountKind, MountPlan, Namespace};
use knarr_sys::mount::{self, Attributes, MountWatch, NODEV, NOEXEC, NOSUID, RDONLY};
use knarr_sys::open;
use rustix::fs::{AtFlags, CWD, OFlags, Stat, fstatfs, statat};
use rustix::io::{Errno, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// MS_PRIVATE
pub(crate) const PRIVATE: u64 = 1 << 18;
/// MS_SLAVE
const SLAVE: u64 = 1 << 19;
/// MS_SHARED
const SHARED: u64 = 1 << 20;

/// PROC_SUPER_MAGIC
const PROC: i64 = 0x9fa0;

/// How often a volume is taken again because the host's mounts changed while it was being placed. Each try is open to
/// that for some 50 µs; a host that mounts all the time still lets one of so many through.
const RETAKES_MAX: usize = 16;

/// What may be mounted inside /proc: files that LXCFS replaces with the container's own numbers. Anything else there
/// would stand between a program and the kernel.
const ALLOWED_IN_PROC: &[&[u8]] = &[
    b"/proc/cpuinfo",
    b"/proc/diskstats",
    b"/proc/loadavg",
    b"/proc/meminfo",
    b"/proc/net/dev",
    b"/proc/slabinfo",
    b"/proc/stat",
    b"/proc/swaps",
    b"/proc/sys/crypto/fips_enabled",
    b"/proc/uptime",
];

/// The way back to the host, for a copy that is leaving it.
pub(crate) struct Host<'a> {
    /// root of the host's procfs
    pub(crate) proc: BorrowedFd<'a>,
    /// The user namespace from which there is none: then only the caller can do things on the host.
    pub(crate) user: Option<Membership<'a>>,
}

/// All mounts of a container.
pub(crate) struct Mounts<'a> {
    list: Vec<Mount<'a>>,
    /// The host's mount namespace, when a volume shares its mounts with it.
    shared_with_host: Option<SharedWithHost>,
}

struct SharedWithHost {
    namespace: OwnedFd,
    watch: MountWatch,
}

struct Mount<'a> {
    target: CString,
    attributes: Attributes<'static>,
    kind: Kind<'a>,
    /// The mount once it is made: first detached, then in its place.
    tree: Option<OwnedFd>,
    /// It is written to after it was placed, so it is made read-only last.
    read_only_last: bool,
}

enum Kind<'a> {
    Bind(Bind),
    /// One that must not be reached through a link, since programs trust what they find there.
    Kernel {
        fstype: CString,
        options: Vec<(CString, CString)>,
    },
    New {
        fstype: CString,
        options: Vec<(CString, CString)>,
    },
    /// The procfs of a PID namespace that this process cannot be in.
    ForeignProc {
        of_pod: bool,
    },
    /// A path in the pod's own file system.
    OfPod(CString),
    Detached(BorrowedFd<'a>),
    CgroupV1(Vec<Hierarchy>),
}

/// A path of the host.
struct Bind {
    source: CString,
    propagation: u64,
    recursive_flags: bool,
    id_mapped: bool,
}

struct Hierarchy {
    name: CString,
    source: CString,
    tree: Option<OwnedFd>,
}

impl<'a> Mounts<'a> {
    pub(crate) fn prepare(plan: &ContainerPlan, fds: &'a [OwnedFd], user: Option<Membership<'a>>) -> Attempt<Self> {
        let list = plan.mounts.iter().map(|mount| Mount::prepare(mount, plan, fds));
        let list: Vec<_> = list.collect::<Attempt<_>>()?;
        if user.is_none() && list.iter().any(|mount| matches!(mount.kind, Kind::Bind(Bind { id_mapped: true, .. }))) {
            return Err(failure(Step::MapVolume.words(), Errno::INVAL, "the pod has no user namespace"));
        }
        Ok(Self { list, shared_with_host: None })
    }

    /// The message's descriptors among the sources.
    pub(crate) fn kept(&self) -> Vec<BorrowedFd<'a>> {
        let detached = |mount: &Mount<'a>| if let Kind::Detached(fd) = mount.kind { Some(fd) } else { None };
        self.list.iter().filter_map(detached).collect()
    }

    /// Takes everything that comes from the host.
    pub(crate) fn open_sources(&mut self, copy: &Copy<'_>, host: &Host<'_>) -> Result<()> {
        if self.list.iter().any(Mount::shares_with_host) {
            copy.report.step(Step::OpenVolume);
            // From before the first volume is taken until the last is placed.
            let watch = MountWatch::new(host.proc)?;
            let namespace = own_mount_namespace(host.proc)?;
            self.shared_with_host = Some(SharedWithHost { namespace, watch });
        }
        for (index, mount) in self.list.iter_mut().enumerate() {
            match &mut mount.kind {
                Kind::Bind(bind) => mount.tree = Some(bind.take(copy, index, mount.attributes, host.user)?),
                Kind::CgroupV1(hierarchies) => {
                    copy.report.step_of(Step::OpenCgroup, index);
                    for hierarchy in hierarchies {
                        hierarchy.tree = Some(take(&hierarchy.source, PRIVATE, false, mount.attributes)?);
                    }
                }
                // Who mounts a sysfs must have rights over the network namespace that it shows.
                Kind::Kernel { fstype, .. }
                    if fstype.as_c_str() == c"sysfs" && host.user.is_some_and(|user| user.host_network) =>
                {
                    copy.report.step_of(Step::Mount, index);
                    mount.tree = Some(mount::new_filesystem(fstype, [], mount.attributes)?);
                }
                Kind::Kernel { .. } | Kind::New { .. } | Kind::ForeignProc { .. } | Kind::OfPod(_) => {}
                Kind::Detached(_) => {}
            }
        }
        Ok(())
    }

    /// Takes the procfs of the container that runs in the PID namespace which this process has joined for its children.
    ///
    /// A process mounts the procfs of the PID namespace that it is in itself, and this one stays outside. What is
    /// found at the container's /proc is used only if it is a procfs of that very namespace.
    pub(crate) fn take_proc(&mut self, copy: &Copy<'_>, target: BorrowedFd<'_>, proc: BorrowedFd<'_>) -> Result<()> {
        let wanted = |mount: &&mut Mount<'_>| matches!(mount.kind, Kind::ForeignProc { of_pod: false });
        for mount in self.list.iter_mut().filter(wanted) {
            copy.report.step(Step::TargetProc);
            let joined = statat(proc, c"thread-self/ns/pid_for_children", AtFlags::empty())?;
            let is_joined = |stat: Stat| (stat.st_dev, stat.st_ino) == (joined.st_dev, joined.st_ino);
            if is_joined(statat(proc, c"thread-self/ns/pid", AtFlags::empty())?) {
                // The target uses the host's, and so this process is in it after all.
                mount.tree = Some(mount::new_filesystem(c"proc", [], mount.attributes)?);
                continue;
            }
            let found = take_proc_of(target, proc)?;
            // The first process that a procfs shows is that of its namespace.
            if fstatfs(&found)?.f_type as i64 != PROC
                || !statat(&found, c"1/ns/pid", AtFlags::empty()).is_ok_and(is_joined)
            {
                return Err(Errno::NODEV);
            }
            let clear = RDONLY | NOSUID | NODEV | NOEXEC;
            mount::set_attributes(&found, false, Attributes { clear, ..Attributes::propagation(PRIVATE) })?;
            mount::set_attributes(&found, false, mount.attributes)?;
            mount.tree = Some(found);
        }
        Ok(())
    }

    /// Places everything beneath `root`; `pod` is the root of the pod's file system in this namespace.
    pub(crate) fn place(
        &mut self,
        copy: &Copy<'_>,
        root: BorrowedFd<'_>,
        pod: BorrowedFd<'_>,
        host: &Host<'_>,
    ) -> Result<()> {
        for (index, mount) in self.list.iter_mut().enumerate() {
            let shared = self.shared_with_host.as_ref().filter(|_| mount.shares_with_host());
            let step = if matches!(mount.kind, Kind::Bind(_)) { Step::MountVolume } else { Step::Mount };
            copy.report.step_of(step, index);
            mount.make(pod)?;
            let target = mount.open_target(root)?;
            mount.place_on(&target)?;
            if let Some(shared) = shared {
                mount.retake_until_quiet(copy, index, &target, shared, host)?;
            }
        }
        Ok(())
    }

    /// Makes those read-only that had to be written to before.
    pub(crate) fn make_read_only(&self, copy: &Copy<'_>) -> Result<()> {
        for (index, mount) in self.list.iter().enumerate().filter(|(_, mount)| mount.read_only_last) {
            copy.report.step_of(Step::Mount, index);
            if let Some(tree) = &mount.tree {
                mount::set_attributes(tree, false, Attributes { set: RDONLY, ..Attributes::default() })?;
            }
        }
        Ok(())
    }

    /// The devpts that was mounted last.
    pub(crate) fn devpts(&self) -> Option<BorrowedFd<'_>> {
        let devpts = |mount: &&Mount<'_>| matches!(&mount.kind, Kind::New { fstype, .. } if fstype == c"devpts");
        self.list.iter().rev().find(devpts)?.tree.as_ref().map(|tree| tree.as_fd())
    }
}

impl<'a> Mount<'a> {
    fn prepare(plan: &MountPlan, container: &ContainerPlan, fds: &'a [OwnedFd]) -> Attempt<Self> {
        let refused = |errno| failure(Step::Mount.words(), errno, lossy(&plan.target));
        let leads_somewhere = |part: &[u8]| !part.is_empty() && part != b"." && part != b"..";
        // Over the root itself nothing would be found any more.
        if !plan.target.starts_with(b"/") || !plan.target.split(|&byte| byte == b'/').any(leads_somewhere) {
            return Err(refused(Errno::INVAL));
        }
        let mut attributes = Attributes::from_mount_flags(plan.flags);
        let kind = Kind::prepare(&plan.kind, container, fds)?;
        if let Kind::Bind(Bind { propagation, .. }) = kind
            && ![PRIVATE, SLAVE, SHARED].contains(&propagation)
        {
            return Err(refused(Errno::INVAL));
        }
        let tmpfs = match &kind {
            Kind::New { fstype, .. } => fstype == c"tmpfs",
            Kind::CgroupV1(_) => true,
            _ => false,
        };
        let read_only_last = tmpfs && attributes.set & RDONLY != 0;
        if read_only_last && !matches!(kind, Kind::CgroupV1(_)) {
            attributes.set &= !RDONLY;
        }
        Ok(Self { target: string(&plan.target)?, attributes, kind, tree: None, read_only_last })
    }

    fn shares_with_host(&self) -> bool {
        matches!(self.kind, Kind::Bind(Bind { propagation: SLAVE | SHARED, .. }))
    }

    /// Makes the detached mount, unless it is there already.
    fn make(&mut self, pod: BorrowedFd<'_>) -> Result<()> {
        let new = |fstype: &CStr, options: &[(CString, CString)], attributes| {
            let options = options.iter().map(|(name, value)| (name.as_c_str(), value.as_c_str()));
            mount::new_filesystem(fstype, options, attributes)
        };
        let tree = match &self.kind {
            // Taken on the host.
            Kind::Kernel { .. } if self.tree.is_some() => return Ok(()),
            Kind::Kernel { fstype, options } | Kind::New { fstype, options } => new(fstype, options, self.attributes)?,
            Kind::CgroupV1(_) => {
                let attributes = Attributes { set: self.attributes.set & !RDONLY, ..self.attributes };
                mount::new_filesystem(c"tmpfs", [(c"mode", c"0755"), (c"size", c"64k")], attributes)?
            }
            Kind::OfPod(path) => self.of_pod(pod, path)?,
            Kind::ForeignProc { of_pod: true } => self.of_pod(pod, c"proc")?,
            // Taken already.
            Kind::Bind(_) | Kind::ForeignProc { of_pod: false } => return Ok(()),
            Kind::Detached(fd) => {
                mount::set_attributes(fd, true, Attributes::propagation(PRIVATE))?;
                mount::set_attributes(fd, false, self.attributes)?;
                return Ok(());
            }
        };
        self.tree = Some(tree);
        Ok(())
    }

    /// A copy of what lies at `path` of the pod's file system, without that file system's own flags.
    fn of_pod(&self, pod: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
        let tree = mount::clone_tree(pod, path, false)?;
        let clear = NOSUID | NODEV | NOEXEC;
        mount::set_attributes(&tree, false, Attributes { clear, ..Attributes::default() })?;
        mount::set_attributes(&tree, false, self.attributes)?;
        Ok(tree)
    }

    fn tree(&self) -> Result<BorrowedFd<'_>> {
        match (&self.kind, &self.tree) {
            (Kind::Detached(fd), _) => Ok(*fd),
            (_, Some(tree)) => Ok(tree.as_fd()),
            (_, None) => Err(Errno::BADF),
        }
    }

    fn open_target(&self, root: BorrowedFd<'_>) -> Result<OwnedFd> {
        if matches!(self.kind, Kind::Kernel { .. } | Kind::ForeignProc { .. }) {
            return open_plain_directory(root, &self.target);
        }
        let target = open_or_make(root, &self.target, Make::like(self.tree()?)?)?;
        self.check_target(&target)?;
        Ok(target)
    }

    /// Nothing may stand between a program and the kernel's procfs: what is written to a file of it (a label, an id map)
    /// must get there.
    fn check_target(&self, target: &OwnedFd) -> Result<()> {
        let path = self.target.to_bytes();
        let in_proc = fstatfs(target)?.f_type as i64 == PROC;
        if in_proc && !ALLOWED_IN_PROC.contains(&path) && fstatfs(self.tree()?)?.f_type as i64 != PROC {
            return Err(Errno::PERM);
        }
        if path == b"/proc" && fstatfs(self.tree()?)?.f_type as i64 != PROC {
            return Err(Errno::PERM);
        }
        Ok(())
    }

    fn place_on(&mut self, target: &OwnedFd) -> Result<()> {
        mount::place(self.tree()?, target)?;
        let Kind::CgroupV1(hierarchies) = &mut self.kind else {
            return Ok(());
        };
        let tmpfs = self.tree.as_ref().ok_or(Errno::BADF)?;
        for hierarchy in hierarchies {
            let tree = hierarchy.tree.as_ref().ok_or(Errno::BADF)?;
            mount::place(tree, open_or_make(tmpfs.as_fd(), &hierarchy.name, Make::Directory)?)?;
        }
        Ok(())
    }

    /// Takes the volume again until nothing was mounted on the host between its taking and its placing.
    fn retake_until_quiet(
        &mut self,
        copy: &Copy<'_>,
        index: usize,
        target: &OwnedFd,
        shared: &SharedWithHost,
        host: &Host<'_>,
    ) -> Result<()> {
        let Kind::Bind(bind) = &self.kind else {
            return Ok(());
        };
        if Make::like(self.tree()?)? == Make::File {
            // Nothing is mounted below a file.
            return Ok(());
        }
        for _ in 0..RETAKES_MAX {
            if !shared.watch.changed()? {
                return Ok(());
            }
            if let Some(old) = self.tree.take() {
                // Private first: what is unmounted below a shared mount is unmounted on the host too.
                mount::set_attributes(&old, true, Attributes::propagation(PRIVATE))?;
                mount::detach(&old)?;
            }
            let tree = if host.user.is_some() {
                copy.ask_for_volume(index)?
            } else {
                let here = own_mount_namespace(host.proc)?;
                move_into_link_name_space(shared.namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
                let taken = bind.take(copy, index, self.attributes, None);
                move_into_link_name_space(here.as_fd(), Some(LinkNameSpaceType::Mount))?;
                taken?
            };
            copy.report.step_of(Step::MountVolume, index);
            mount::place(&tree, target)?;
            self.tree = Some(tree);
        }
        Err(Errno::AGAIN)
    }
}

impl<'a> Kind<'a> {
    fn prepare(kind: &MountKind, plan: &ContainerPlan, fds: &'a [OwnedFd]) -> Attempt<Self> {
        let host_cgroups = || {
            Self::Bind(Bind {
                source: c"/sys/fs/cgroup".into(),
                propagation: PRIVATE,
                recursive_flags: true,
                id_mapped: false,
            })
        };
        Ok(match kind {
            MountKind::Bind { source, propagation, recursive_flags, id_mapped } => Self::Bind(Bind {
                source: string(source)?,
                propagation: *propagation,
                recursive_flags: *recursive_flags,
                id_mapped: *id_mapped,
            }),
            MountKind::New { fstype, options } => match (fstype.as_slice(), &plan.pid_ns) {
                (b"proc", Namespace::Pod) => Self::ForeignProc { of_pod: true },
                (b"proc", Namespace::Of(_)) => Self::ForeignProc { of_pod: false },
                (b"proc" | b"sysfs", _) => Self::Kernel { fstype: string(fstype)?, options: split_options(options)? },
                (b"cgroup2", _) if !plan.new_cgroup_ns => host_cgroups(),
                _ => Self::New { fstype: string(fstype)?, options: split_options(options)? },
            },
            MountKind::PodFile(name) => Self::OfPod(crate::pod::file_path(name)?),
            MountKind::PodShm => Self::OfPod(c"shm".into()),
            MountKind::Detached(index) => Self::Detached(crate::descriptor(fds, *index)?),
            // A new mount of cgroup2 in the host's cgroup namespace would change the options of the host's own.
            MountKind::Cgroup { v1 } if v1.is_empty() && !plan.new_cgroup_ns => host_cgroups(),
            MountKind::Cgroup { v1 } if v1.is_empty() => Self::New { fstype: c"cgroup2".into(), options: Vec::new() },
            MountKind::Cgroup { v1 } => {
                let hierarchy = |(name, source): &(Vec<u8>, Vec<u8>)| {
                    Ok(Hierarchy { name: string(name)?, source: string(source)?, tree: None })
                };
                Self::CgroupV1(v1.iter().map(hierarchy).collect::<Attempt<_>>()?)
            }
        })
    }
}

/// In the caller: takes a volume for a copy that has left the host for good. A process of its own does it, since a volume
/// whose server is gone hangs whoever opens it.
pub(crate) fn fetch(
    plans: &[MountPlan],
    index: usize,
    user: Option<Membership<'_>>,
    about: impl Fn(Step, usize) -> String,
) -> Attempt<OwnedFd> {
    let no_volume = || failure(Step::OpenVolume.words(), Errno::INVAL, index.to_string());
    let plan = plans.get(index).ok_or_else(no_volume)?;
    let MountKind::Bind { source, propagation, recursive_flags, id_mapped } = &plan.kind else {
        return Err(no_volume());
    };
    let bind = Bind {
        source: string(source)?,
        propagation: *propagation,
        recursive_flags: *recursive_flags,
        id_mapped: *id_mapped,
    };
    let attributes = Attributes::from_mount_flags(plan.flags);
    let kept = user.iter().map(|user| user.namespace).collect();
    let birth = Birth { new: 0, cgroup: None, kept, sibling: false };
    let helper = launch(birth, |copy| copy.hand_over(bind.take(copy, index, attributes, user)?.as_fd()))?;
    helper.fetched(about)
}

impl Bind {
    /// A detached copy with its flags and owners. The calling process is in the host's mount namespace, with its rights.
    fn take(
        &self,
        copy: &Copy<'_>,
        index: usize,
        attributes: Attributes<'_>,
        user: Option<Membership<'_>>,
    ) -> Result<OwnedFd> {
        copy.report.step_of(Step::OpenVolume, index);
        let tree = take(&self.source, self.propagation, self.recursive_flags, attributes)?;
        if let Some(user) = user.filter(|_| self.id_mapped) {
            copy.report.step_of(Step::MapVolume, index);
            map_owners(&tree, &user)?;
        }
        Ok(tree)
    }
}

/// Where something mounted below cannot be mapped (overlayfs, proc, …), what is below keeps the host's owners, and so is
/// nobody's to the pod.
fn map_owners(tree: &OwnedFd, user: &Membership<'_>) -> Result<()> {
    let attributes = Attributes { id_map: Some(user.namespace), ..Attributes::default() };
    match mount::set_attributes(tree, true, attributes) {
        Err(Errno::INVAL | Errno::PERM) => mount::set_attributes(tree, false, attributes),
        result => result,
    }
}

/// A detached copy of a path of the host with its flags. The calling process is in the host's mount namespace.
fn take(source: &CStr, propagation: u64, recursive_flags: bool, attributes: Attributes<'_>) -> Result<OwnedFd> {
    let tree = mount::clone_tree(CWD, source, true)?;
    mount::set_attributes(&tree, true, Attributes::propagation(propagation))?;
    mount::set_attributes(&tree, recursive_flags, attributes)?;
    Ok(tree)
}

/// A directory at a path without any link in it, made if it is missing. ELOOP or ENOTDIR where the image wants proc or
/// sysfs to be mounted elsewhere.
fn open_plain_directory(root: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    let directory = OFlags::PATH | OFlags::DIRECTORY;
    match open::in_root_without_links(root, path, directory) {
        Err(Errno::NOENT) => {
            open_or_make(root, path, Make::Directory)?;
            open::in_root_without_links(root, path, directory)
        }
        result => result,
    }
}

fn own_mount_namespace(proc: BorrowedFd<'_>) -> Result<OwnedFd> {
    rustix::fs::openat(proc, c"thread-self/ns/mnt", OFlags::RDONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty())
}

/// A copy of what is mounted at /proc in the container of the process `target`.
fn take_proc_of(target: BorrowedFd<'_>, proc: BorrowedFd<'_>) -> Result<OwnedFd> {
    let here = own_mount_namespace(proc)?;
    enter_mount_namespace_of(target)?;
    let root = mount::open_path(c"/")?;
    let found = open::in_root_without_links(root, c"/proc", OFlags::PATH | OFlags::DIRECTORY)
        .and_then(|found| mount::clone_of(found, false));
    move_into_link_name_space(here.as_fd(), Some(LinkNameSpaceType::Mount))?;
    found
}

fn enter_mount_namespace_of(process: BorrowedFd<'_>) -> Result<()> {
    use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};
    move_into_thread_name_spaces(process, ThreadNameSpaceType::MOUNT)
}

/// "a=1,b" as (name, value) pairs. A comma between double quotes belongs to the value, as in an SELinux context.
fn split_options(options: &[u8]) -> Attempt<Vec<(CString, CString)>> {
    let mut quoted = false;
    let parts = options.split(|&byte| {
        quoted ^= byte == b'"';
        byte == b',' && !quoted
    });
    let pair = |part: &[u8]| {
        let at = part.iter().position(|&byte| byte == b'=');
        let (name, value) = at.map_or((part, &b""[..]), |at| (&part[..at], &part[at + 1..]));
        let value: Vec<u8> = value.iter().copied().filter(|&byte| byte != b'"').collect();
        Ok((string(name)?, string(&value)?))
    };
    parts.filter(|part| !part.is_empty()).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_pairs_and_quotes_protect_commas() {
        let options = split_options(br#"size=64k,noswap,,context="u:r:t:s0:c1,c2",mode=0755"#).unwrap();
        let wanted: [(&CStr, &CStr); 4] =
            [(c"size", c"64k"), (c"noswap", c""), (c"context", c"u:r:t:s0:c1,c2"), (c"mode", c"0755")];
        let pairs: Vec<_> = options.iter().map(|(name, value)| (name.as_c_str(), value.as_c_str())).collect();
        assert_eq!(pairs, wanted);
        assert!(split_options(b"").unwrap().is_empty());
    }
}
