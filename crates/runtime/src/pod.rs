//! What a pod owns as a whole: its namespaces, and in its mount namespace the files that all its containers see.
//!
//! ```text
//! /            tmpfs of the pod; containers start from a copy of this namespace
//! ├── rootfs/  where a container's root is placed before it becomes the root
//! ├── shm/     the pod's /dev/shm, a tmpfs
//! ├── files/   resolv.conf and the like
//! ├── proc/    procfs of the shared PID namespace, if there is one
//! ├── empty/   covers masked directories; root of the shared PID namespace's init
//! ├── host/    with a user namespace: proc/ and sys/, see [`Templates`]
//! ├── nodes/   with a user namespace: where a container's device nodes are copied from
//! └── null     covers masked files
//! ```

use crate::Attempt;
use crate::launch::{Birth, Copy, Launched, failure, io_failure, launch};
use crate::pod_init;
use crate::process::{lossy, string};
use crate::step::Step;
use crate::user_namespace;
use crate::{PodNamespaces, PodUser, descriptor};
use knarr_model::UserNamespace;
use knarr_model::plan::PodPlan;
use knarr_sys::mount::{self, Attributes, NODEV, NOEXEC, NOSUID, RDONLY};
use knarr_sys::namespace::{self, Kind};
use knarr_sys::open;
use knarr_sys::thread::unshare_namespaces;
use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mkdirat, mknodat, openat};
use rustix::io::{Errno, Result};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Bytes of the pod's own file system: a few text files of some kilobytes each.
const POD_ROOT_SIZE: &std::ffi::CStr = c"8m";

/// A pod's plan, laid out so that nothing has to be allocated any more.
struct Pod<'a> {
    base: BorrowedFd<'a>,
    new: UnshareFlags,
    hostname: &'a [u8],
    /// Beneath /proc.
    sysctls: Vec<(CString, &'a [u8])>,
    shm_size: Option<CString>,
    files: Vec<(CString, &'a [u8])>,
    user: Option<UserNamespace>,
}

/// A procfs and a sysfs of the host's.
///
/// In a mount namespace that belongs to a user namespace, the kernel lets either be mounted only where one is to be seen
/// already, so that nobody gets to see by it what was hidden from him. These are read-only, and gone from a container
/// with the pod's root, before anything of it runs.
struct Templates {
    proc: OwnedFd,
    sysfs: OwnedFd,
}

/// See [`crate::set_up_pod`].
pub(crate) fn set_up(plan: &PodPlan, fds: &[OwnedFd]) -> Attempt<PodNamespaces> {
    let pod = Pod::prepare(plan, fds)?;
    let proc = crate::host_proc()?;
    let birth = Birth { new: 0, cgroup: None, kept: vec![pod.base, proc.as_fd()], sibling: false };
    let mut helper = launch(birth, |copy| pod.carry_out(copy, proc.as_fd()))?;
    if let Some(ids) = &plan.user {
        let pid = helper.made(|step, index| about(plan, step, index))?;
        user_namespace::write_ids(proc.as_fd(), pid, ids)?;
        helper.proceed()?;
    }
    let namespaces = take_namespaces(plan, &mut helper, proc.as_fd())?;
    // Its namespaces live on in our descriptors.
    drop(helper);
    if plan.shared_pid { pod_init::start(namespaces, proc.as_fd()) } else { Ok(namespaces) }
}

/// The path of one of the pod's files in its mount namespace.
pub(crate) fn file_path(name: &[u8]) -> Attempt<CString> {
    if name.is_empty() || name.contains(&b'/') || name == b"." || name == b".." {
        return Err(failure(Step::PodFile.words(), Errno::INVAL, lossy(name)));
    }
    string(&[b"files/", name].concat())
}

fn take_namespaces(plan: &PodPlan, helper: &mut Launched, proc: BorrowedFd<'_>) -> Attempt<PodNamespaces> {
    let pid = helper.made(|step, index| about(plan, step, index))?;
    let of = |kind: Kind| {
        namespace::of_process(proc, pid, kind)
            .map_err(|error| io_failure("open namespace", &error, kind.name().to_string_lossy()))
    };
    let of_if = |wanted: bool, kind| if wanted { of(kind).map(Some) } else { Ok(None) };
    let user = plan.user.map(|ids| Ok(PodUser { namespace: of(Kind::User)?, ids }));
    Ok(PodNamespaces {
        mount: of(Kind::Mount)?,
        net: of_if(plan.new_net, Kind::Net)?,
        ipc: of_if(plan.new_ipc, Kind::Ipc)?,
        uts: of_if(plan.new_uts, Kind::Uts)?,
        pid: None,
        pid_init: None,
        user: user.transpose()?,
    })
}

impl<'a> Pod<'a> {
    fn prepare(plan: &'a PodPlan, fds: &'a [OwnedFd]) -> Attempt<Self> {
        let mut new = UnshareFlags::NEWNS;
        new.set(UnshareFlags::NEWNET, plan.new_net);
        new.set(UnshareFlags::NEWIPC, plan.new_ipc);
        new.set(UnshareFlags::NEWUTS, plan.new_uts);
        let sysctls = plan.sysctls.iter().map(|(name, value)| Ok((sysctl_path(name)?, value.as_slice())));
        let files = plan.files.iter().map(|(name, content)| Ok((file_path(name)?, content.as_slice())));
        Ok(Self {
            base: descriptor(fds, plan.base_mount_ns)?,
            new,
            hostname: if plan.new_uts { &plan.hostname } else { b"" },
            sysctls: sysctls.collect::<Attempt<_>>()?,
            shm_size: (plan.shm_size != 0).then(|| string(plan.shm_size.to_string().as_bytes())).transpose()?,
            files: files.collect::<Attempt<_>>()?,
            user: plan.user,
        })
    }

    fn carry_out(&self, copy: &Copy<'_>, proc: BorrowedFd<'_>) -> Result<()> {
        rustix::process::umask(Mode::empty());
        let templates = if self.user.is_some() { Some(Templates::make(copy)?) } else { None };
        copy.report.step(Step::NewNamespaces);
        move_into_link_name_space(self.base, Some(LinkNameSpaceType::Mount))?;
        if self.user.is_some() {
            user_namespace::make(copy)?;
            copy.report.step(Step::NewNamespaces);
        }
        unshare_namespaces(self.new)?;
        copy.report.step(Step::PodRoot);
        self.make_root()?;
        if let Some(templates) = templates {
            copy.report.step(Step::HostTemplates);
            templates.place()?;
        }
        self.make_shm(copy)?;
        for (index, (path, content)) in self.files.iter().enumerate() {
            copy.report.step_of(Step::PodFile, index);
            write_file(path, content)?;
        }
        if !self.hostname.is_empty() {
            copy.report.step(Step::Hostname);
            rustix::system::sethostname(self.hostname)?;
        }
        for (index, (path, value)) in self.sysctls.iter().enumerate() {
            copy.report.step_of(Step::Sysctl, index);
            // These files show the namespaces of the process that opens them, wherever the procfs comes from.
            let file = open::beneath(proc, path, OFlags::WRONLY)?;
            if rustix::io::write(&file, value)? != value.len() {
                return Err(Errno::INVAL);
            }
        }
        copy.made()?;
        Ok(())
    }

    /// A file system of the pod's own: that of the base namespace is the same for all.
    fn make_root(&self) -> Result<()> {
        let attributes = Attributes { set: NOSUID | NOEXEC, ..Attributes::default() };
        let options = [(c"mode", c"0755"), (c"size", POD_ROOT_SIZE)];
        let root = mount::new_filesystem(c"tmpfs", options, attributes)?;
        mount::place(&root, mount::open_path(c"/")?)?;
        namespace::change_root_mount(&root)?;
        for directory in [c"rootfs", c"files", c"shm", c"proc", c"empty"] {
            let mode = if directory == c"empty" { 0o555 } else { 0o755 };
            mkdirat(CWD, directory, Mode::from_raw_mode(mode))?;
        }
        match mknodat(CWD, c"null", FileType::CharacterDevice, Mode::from_raw_mode(0o666), makedev(1, 3)) {
            // Not allowed everywhere; an empty file reads the same.
            Err(Errno::PERM) => mknodat(CWD, c"null", FileType::RegularFile, Mode::from_raw_mode(0o444), 0),
            result => result,
        }
    }

    fn make_shm(&self, copy: &Copy<'_>) -> Result<()> {
        let Some(size) = &self.shm_size else { return Ok(()) };
        copy.report.step(Step::PodShm);
        let attributes = Attributes { set: NOSUID | NODEV | NOEXEC, ..Attributes::default() };
        let shm = mount::new_filesystem(c"tmpfs", [(c"mode", c"1777"), (c"size", size.as_c_str())], attributes)?;
        mount::place(shm, openat(CWD, c"shm", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }
}

impl Templates {
    /// On the host, whose rights this needs.
    fn make(copy: &Copy<'_>) -> Result<Self> {
        copy.report.step(Step::HostTemplates);
        let attributes = Attributes { set: RDONLY | NOSUID | NODEV | NOEXEC, ..Attributes::default() };
        let make = |fstype| mount::new_filesystem(fstype, [], attributes);
        Ok(Self { proc: make(c"proc")?, sysfs: make(c"sysfs")? })
    }

    fn place(self) -> Result<()> {
        let mode = Mode::from_raw_mode(0o700);
        mkdirat(CWD, c"nodes", mode)?;
        mkdirat(CWD, c"host", mode)?;
        for (path, template) in [(c"host/proc", self.proc), (c"host/sys", self.sysfs)] {
            mkdirat(CWD, path, mode)?;
            let target = openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            mount::place(template, target)?;
        }
        Ok(())
    }
}

fn write_file(path: &CString, mut content: &[u8]) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(CWD, path, flags, Mode::from_raw_mode(0o644))?;
    while !content.is_empty() {
        match rustix::io::write(&file, content) {
            Ok(written) => content = &content[written..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// "net/ipv4/ip_forward" as a path beneath /proc.
fn sysctl_path(name: &[u8]) -> Attempt<CString> {
    let known = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-/".contains(byte);
    let component = |part: &[u8]| !part.is_empty() && part != b"." && part != b"..";
    if !name.iter().all(known) || !name.split(|&byte| byte == b'/').all(component) {
        return Err(failure(Step::Sysctl.words(), Errno::INVAL, lossy(name)));
    }
    string(&[b"sys/", name].concat())
}

/// The thing of the plan that a step is about.
fn about(plan: &PodPlan, step: Step, index: usize) -> String {
    match step {
        Step::PodFile => plan.files.get(index).map(|(name, _)| lossy(name)).unwrap_or_default(),
        Step::Sysctl => plan.sysctls.get(index).map(|(name, _)| lossy(name)).unwrap_or_default(),
        Step::Hostname => lossy(&plan.hostname),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_name_stays_beneath_proc_sys() {
        assert_eq!(
            sysctl_path(b"net/ipv4/conf/eth0.100/forwarding").unwrap().to_bytes(),
            b"sys/net/ipv4/conf/eth0.100/forwarding"
        );
        for bad in [&b""[..], b"/net", b"net//x", b"net/../x", b"net/", b"a b", b"Kernel", b"a\0b", b".."] {
            assert!(sysctl_path(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_pod_file_is_a_plain_name() {
        assert_eq!(file_path(b"resolv.conf").unwrap().to_bytes(), b"files/resolv.conf");
        for bad in [&b""[..], b"..", b".", b"a/b", b"/a", b"a\0"] {
            assert!(file_path(bad).is_err(), "{bad:?}");
        }
    }
}
