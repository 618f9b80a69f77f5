//! The container's file system: from the root that the daemon built to the place where the program runs. Everything is
//! opened and placed by descriptor beneath the new root, before the process is in it.
//!
//! In the order of the calls: [`mounts`], [`devices`], [`masks`].

pub(crate) mod devices;
pub(crate) mod masks;
pub(crate) mod mounts;

use crate::Attempt;
use crate::launch::Copy;
use crate::path::{Make, open_or_make};
use crate::process::{Process, string};
use crate::step::Step;
use crate::user_namespace::Membership;
use devices::{Devices, Link};
use knarr_model::plan::ContainerPlan;
use knarr_sys::mount::{self, Attributes};
use knarr_sys::{namespace, open};
use mounts::{Host, Mounts};
use rustix::fs::OFlags;
use rustix::io::Result;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A container's file system, laid out so that nothing has to be allocated any more.
pub(crate) struct Rootfs<'a> {
    root: BorrowedFd<'a>,
    read_only: bool,
    mounts: Mounts<'a>,
    devices: Devices,
    links: Vec<Link>,
    readonly_paths: Vec<CString>,
    masked_paths: Vec<CString>,
}

impl<'a> Rootfs<'a> {
    /// Lays a plan out; `fds` are the message's.
    pub(crate) fn prepare(plan: &ContainerPlan, fds: &'a [OwnedFd], user: Option<Membership<'a>>) -> Attempt<Self> {
        let paths = |list: &[Vec<u8>]| list.iter().map(|path| string(path)).collect::<Attempt<_>>();
        Ok(Self {
            root: crate::descriptor(fds, plan.rootfs)?,
            read_only: plan.read_only_rootfs,
            mounts: Mounts::prepare(plan, fds, user)?,
            devices: Devices::prepare(&plan.devices, user.is_some())?,
            links: plan.links.iter().map(Link::prepare).collect::<Attempt<_>>()?,
            readonly_paths: paths(&plan.readonly_paths)?,
            masked_paths: paths(&plan.masked_paths)?,
        })
    }

    /// The message's descriptors that the copy needs.
    pub(crate) fn kept(&self) -> Vec<BorrowedFd<'a>> {
        let mut kept = self.mounts.kept();
        kept.push(self.root);
        kept
    }

    /// Opens everything that comes from the host, while the copy is still there.
    pub(crate) fn open_sources(&mut self, copy: &Copy<'_>, host: &Host<'_>) -> Result<()> {
        self.mounts.open_sources(copy, host)?;
        self.devices.open_sources(copy, host.user)
    }

    /// Takes over the procfs of the PID namespace that was joined, from a container that runs in it.
    pub(crate) fn take_proc(&mut self, copy: &Copy<'_>, target: BorrowedFd<'_>, proc: BorrowedFd<'_>) -> Result<()> {
        self.mounts.take_proc(copy, target, proc)
    }

    /// Puts everything into place and makes it the root of the calling process, which is in a mount namespace of its
    /// own: a copy of the pod's. Gives the slave of the process's terminal.
    pub(crate) fn build(&mut self, copy: &Copy<'_>, process: &Process, host: &Host<'_>) -> Result<Option<OwnedFd>> {
        copy.report.step(Step::PlaceRoot);
        let pod = mount::open_path(c"/")?;
        mount::set_attributes(self.root, true, Attributes::propagation(mounts::PRIVATE))?;
        mount::place(self.root, open::beneath(&pod, c"rootfs", OFlags::PATH | OFlags::DIRECTORY)?)?;
        self.mounts.place(copy, self.root, pod.as_fd(), host)?;
        self.devices.make_all(copy, self.root, pod.as_fd())?;
        devices::link_all(&self.links, copy, self.root)?;
        let terminal = if process.terminal { Some(self.place_console(copy, process)?) } else { None };
        masks::make_read_only(&self.readonly_paths, copy, self.root)?;
        masks::mask(&self.masked_paths, copy, self.root, pod.as_fd())?;
        if process.create_cwd {
            copy.report.step(Step::MakeWorkingDirectory);
            open_or_make(self.root, &process.cwd, Make::Directory)?;
        }
        self.mounts.make_read_only(copy)?;
        if self.read_only {
            copy.report.step(Step::ReadOnlyRoot);
            let read_only = Attributes { set: mount::RDONLY, ..Attributes::default() };
            mount::set_attributes(self.root, false, read_only)?;
        }
        copy.report.step(Step::PivotRoot);
        namespace::change_root_mount(self.root)?;
        Ok(terminal)
    }

    /// The terminal is opened in the devpts that was mounted, not in whatever a path leads to, and /dev/console is the
    /// slave's own file: there is no name that could be exchanged in between.
    fn place_console(&self, copy: &Copy<'_>, process: &Process) -> Result<OwnedFd> {
        copy.report.step(Step::OpenTerminal);
        let slave = match self.mounts.devpts() {
            Some(devpts) => process.open_terminal(copy, devpts)?,
            None => {
                let devpts = open::in_root(self.root, c"/dev/pts", OFlags::PATH | OFlags::DIRECTORY)?;
                process.open_terminal(copy, devpts.as_fd())?
            }
        };
        copy.report.step(Step::Console);
        let target = open_or_make(self.root, c"/dev/console", Make::File)?;
        mount::place(mount::clone_of(&slave, false)?, target)?;
        Ok(slave)
    }
}
