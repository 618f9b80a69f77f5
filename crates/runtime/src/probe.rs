//! Whether pods with a user namespace are possible here. It is tried, not concluded from version numbers: a kernel can be
//! built or told not to allow it, and a file system can lack what it takes.

use crate::Attempt;
use crate::launch::{Birth, failure, launch};
use crate::process::{lossy, string};
use crate::step::Step;
use crate::user_namespace;
use knarr_model::{IdMap, UserNamespace};
use knarr_sys::mount::{self, Attributes};
use knarr_sys::namespace::{self, Kind};
use knarr_sys::thread::unshare_namespaces;
use rustix::fs::CWD;
use rustix::thread::UnshareFlags;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Any range of ids shows whether ranges work.
const IDS: IdMap = IdMap { host: 65_536, container: 0, length: 65_536 };

/// Makes a user namespace with namespaces that belong to it, shows a sysfs of the host's network in it, and maps owners
/// of a tmpfs (secrets are on one; Linux 6.3) and of the `directories` where images are. All of it is gone afterwards.
///
/// The failure names the first that is not possible.
pub fn probe_user_namespaces(directories: &[&Path]) -> Attempt<()> {
    let proc = crate::host_proc()?;
    let birth = Birth { new: 0, cgroup: None, kept: vec![proc.as_fd()], sibling: false };
    let nothing = |_, _| String::new();
    let mut helper = launch(birth, |copy| {
        copy.report.step(Step::HostTemplates);
        let sysfs = mount::new_filesystem(c"sysfs", [], Attributes::default())?;
        user_namespace::make(copy)?;
        copy.report.step(Step::NewNamespaces);
        let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
        unshare_namespaces(flags)?;
        copy.report.step(Step::HostTemplates);
        mount::place(sysfs, mount::open_path(c"/")?)?;
        copy.made()?;
        Ok(())
    })?;
    let pid = helper.made(nothing)?;
    user_namespace::write_ids(proc.as_fd(), pid, &UserNamespace { uids: IDS, gids: IDS })?;
    helper.proceed()?;
    let pid = helper.made(nothing)?;
    let users = namespace::of_process(&proc, pid, Kind::User)
        .map_err(|error| crate::launch::io_failure("open namespace", &error, "user"))?;
    let can_be_mapped = |tree: rustix::io::Result<OwnedFd>, what: &str| {
        let id_map = Attributes { id_map: Some(users.as_fd()), ..Attributes::default() };
        let mapped = tree.and_then(|tree| mount::set_attributes(&tree, false, id_map));
        mapped.map_err(|errno| failure("map owners (the file system must support id-mapped mounts) of", errno, what))
    };
    can_be_mapped(mount::new_filesystem(c"tmpfs", [], Attributes::default()), "a tmpfs")?;
    for directory in directories {
        let path = directory.as_os_str().as_bytes();
        can_be_mapped(mount::clone_tree(CWD, &string(path)?, false), &lossy(path))?;
    }
    Ok(())
}
