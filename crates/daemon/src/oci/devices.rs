//! Device nodes: those that every container has, those that were asked for, and all of the host's.
//!
//! [`requested`] and [`all`] look at the host's /dev; the rest are values.

use super::build::bug;
use super::cdi;
use knarr_model::Error;
use knarr_model::spec::{Device, RunAs, Security};
use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};
use rustix::fs::{FileType, major, minor, stat};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};

/// Nodes of one container. A host with thousands of disks has this many.
const NODES_MAX: usize = 65_536;
/// Directories of one container's devices, counted while they are searched.
const DIRECTORIES_MAX: usize = 4096;
/// What is below /dev but no device of the host: file systems of their own, and the daemon's terminal.
const NOT_DEVICES: [&str; 8] =
    ["/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/hugepages", "/dev/.udev", "/dev/.lxc", "/dev/console"];

/// What a container that asks for devices takes from the host, as it was found when the container was created.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Taken {
    /// From [`requested`].
    pub nodes: Vec<DeviceNode>,
    /// From [`cdi::resolve`].
    pub cdi: cdi::Edits,
}

/// Whom device nodes belong to in a container, where that is not whom they belong to on the host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Owner {
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

impl Owner {
    /// Whom the request says that the container runs as. Root owns nothing that it did not own on the host.
    pub fn of_request(security: &Security) -> Self {
        let uid = if let RunAs::Uid(uid) = security.run_as { Some(uid) } else { None };
        Self { uid: uid.filter(|uid| *uid != 0), gid: security.run_as_group.filter(|gid| *gid != 0) }
    }
}

/// A device node as it will be in a container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct DeviceNode {
    /// absolute path in the container
    pub path: String,
    /// character device, else block device
    pub character: bool,
    /// major number
    pub major: u32,
    /// minor number
    pub minor: u32,
    /// permission bits
    pub mode: u32,
    /// owner
    pub uid: u32,
    /// group
    pub gid: u32,
    /// some of "rwm": what the container's device rules allow
    pub permissions: String,
}

/// Nodes that every container has, as (path, major, minor); all are character devices that anybody may use.
pub(super) const DEFAULTS: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];
/// Permission bits of the nodes that every container has.
pub(super) const DEFAULT_MODE: u32 = 0o666;

/// Links that every container has.
pub(super) const LINKS: [(&str, &str); 6] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/core", "/proc/kcore"),
];

/// Rules besides those of the nodes: any node may be made (not opened), /dev/console, /dev/pts/N and /dev/ptmx may be
/// used. `None` is any number.
const RULES: [(LinuxDeviceType, Option<i64>, Option<i64>, &str); 5] = [
    (LinuxDeviceType::C, None, None, "m"),
    (LinuxDeviceType::B, None, None, "m"),
    (LinuxDeviceType::C, Some(5), Some(1), "rwm"),
    (LinuxDeviceType::C, Some(136), None, "rwm"),
    (LinuxDeviceType::C, Some(5), Some(2), "rwm"),
];

/// The nodes of the devices that were asked for. A directory stands for every device below it. Links are followed.
pub fn requested(devices: &[Device], owner: Owner) -> Result<Vec<DeviceNode>, Error> {
    let mut nodes = Vec::new();
    for device in devices {
        let failed =
            |why: &dyn std::fmt::Display| Error::invalid("config.devices", format!("{}: {why}", device.host_path));
        let found = fs::metadata(&device.host_path).map_err(|error| failed(&error))?;
        if found.is_dir() {
            let below = walk(Path::new(&device.host_path), &[]).map_err(|error| failed(&error))?;
            nodes.extend(below.into_iter().filter_map(|path| {
                let rest = path.strip_prefix(&device.host_path).ok()?.to_str()?;
                node(&path, &format!("{}/{rest}", device.container_path.trim_end_matches('/')), &device.permissions)
            }));
        } else {
            let found = node(Path::new(&device.host_path), &device.container_path, &device.permissions);
            nodes.push(found.ok_or_else(|| failed(&"is no device"))?);
        }
        if nodes.len() > NODES_MAX {
            return Err(failed(&format!("more than {NODES_MAX} devices")));
        }
    }
    for node in &mut nodes {
        node.uid = owner.uid.unwrap_or(node.uid);
        node.gid = owner.gid.unwrap_or(node.gid);
    }
    Ok(nodes)
}

/// Every device of the host below /dev, for privileged containers. What vanishes meanwhile is left out.
pub fn all() -> std::io::Result<Vec<DeviceNode>> {
    let paths = walk(Path::new("/dev"), &NOT_DEVICES)?;
    Ok(paths.iter().filter_map(|path| node(path, path.to_str()?, "rwm")).take(NODES_MAX).collect())
}

/// Everything below `top` that is no directory and no link, in the order of the names.
fn walk(top: &Path, except: &[&str]) -> std::io::Result<Vec<PathBuf>> {
    let mut directories = VecDeque::from([top.to_owned()]);
    let mut found = Vec::new();
    let mut seen = 0;
    while let Some(directory) = directories.pop_front() {
        seen += 1;
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            // Directories come and go with their devices; the one that was asked for must be there.
            Err(_) if directory != top => continue,
            Err(error) => return Err(error),
        };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(kind) = entry.file_type() else { continue };
            if except.iter().any(|name| path == Path::new(name)) {
                continue;
            }
            if kind.is_dir() && seen + directories.len() < DIRECTORIES_MAX {
                directories.push_back(path);
            } else if !kind.is_dir() && !kind.is_symlink() && found.len() <= NODES_MAX {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn node(host_path: &Path, path: &str, permissions: &str) -> Option<DeviceNode> {
    let found = stat(host_path).ok()?;
    let character = match FileType::from_raw_mode(found.st_mode) {
        FileType::CharacterDevice => true,
        FileType::BlockDevice => false,
        _ => return None,
    };
    Some(DeviceNode {
        path: path.to_owned(),
        character,
        major: major(found.st_rdev),
        minor: minor(found.st_rdev),
        mode: found.st_mode & 0o777,
        uid: found.st_uid,
        gid: found.st_gid,
        permissions: permissions.to_owned(),
    })
}

/// The nodes for the specification; those that every container has are not named in it.
pub(super) fn nodes(nodes: &[DeviceNode]) -> Result<Vec<LinuxDevice>, Error> {
    let node = |node: &DeviceNode| {
        LinuxDeviceBuilder::default()
            .path(node.path.as_str())
            .typ(kind(node))
            .major(node.major)
            .minor(node.minor)
            .file_mode(node.mode)
            .uid(node.uid)
            .gid(node.gid)
            .build()
            .map_err(bug)
    };
    nodes.iter().map(node).collect()
}

/// First nothing is allowed, then what follows is: an empty list must mean that nothing is.
pub(super) fn rules(nodes: &[DeviceNode], all: bool) -> Result<Vec<LinuxDeviceCgroup>, Error> {
    if all {
        return Ok(vec![rule(true, LinuxDeviceType::A, None, None, "rwm")?]);
    }
    let mut rules = vec![rule(false, LinuxDeviceType::A, None, None, "rwm")?];
    for (kind, major, minor, access) in RULES {
        rules.push(rule(true, kind, major, minor, access)?);
    }
    for (_, major, minor) in DEFAULTS {
        rules.push(rule(true, LinuxDeviceType::C, Some(major.into()), Some(minor.into()), "rwm")?);
    }
    for node in nodes {
        rules.push(rule(true, kind(node), Some(node.major.into()), Some(node.minor.into()), &node.permissions)?);
    }
    Ok(rules)
}

fn kind(node: &DeviceNode) -> LinuxDeviceType {
    if node.character { LinuxDeviceType::C } else { LinuxDeviceType::B }
}

fn rule(
    allow: bool,
    kind: LinuxDeviceType,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> Result<LinuxDeviceCgroup, Error> {
    let mut rule = LinuxDeviceCgroupBuilder::default().allow(allow).typ(kind).access(access).build().map_err(bug)?;
    rule.set_major(major).set_minor(minor);
    Ok(rule)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(host: &str, container: &str) -> Device {
        Device { host_path: host.into(), container_path: container.into(), permissions: "rw".into() }
    }

    #[test]
    fn a_device_is_found_by_what_it_is_and_not_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        let nodes = requested(&[device(link.to_str().unwrap(), "/dev/mine")], Owner::default()).unwrap();
        assert_eq!(nodes.len(), 1);
        let node = &nodes[0];
        assert_eq!((node.path.as_str(), node.character, node.major, node.minor), ("/dev/mine", true, 1, 3));
        assert_eq!(node.permissions, "rw");

        let file = dir.path().join("file");
        std::fs::write(&file, b"").unwrap();
        for path in [file.to_str().unwrap(), "/nowhere"] {
            let error = requested(&[device(path, "/dev/x")], Owner::default()).unwrap_err();
            assert!(error.message.contains(path), "{error}");
        }
    }

    #[test]
    fn nodes_belong_to_the_containers_user_where_that_is_wanted() {
        let mut security = Security { run_as: RunAs::Uid(1000), run_as_group: Some(0), ..Security::default() };
        let owner = Owner::of_request(&security);
        assert_eq!(owner, Owner { uid: Some(1000), gid: None });
        let nodes = requested(&[device("/dev/null", "/dev/mine")], owner).unwrap();
        let host = stat("/dev/null").unwrap();
        assert_eq!((nodes[0].uid, nodes[0].gid), (1000, host.st_gid));
        (security.run_as, security.run_as_group) = (RunAs::Name("app".into()), Some(5));
        assert_eq!(Owner::of_request(&security), Owner { uid: None, gid: Some(5) });
    }

    #[test]
    fn a_directory_stands_for_every_device_below_it() {
        let nodes = requested(&[device("/dev", "/dev/host/")], Owner::default()).unwrap();
        let null = nodes.iter().find(|node| node.path == "/dev/host/null").unwrap();
        assert_eq!((null.major, null.minor, null.permissions.as_str()), (1, 3, "rw"));
    }

    #[test]
    fn all_of_the_hosts_devices_are_under_dev_and_none_is_a_terminal() {
        let nodes = all().unwrap();
        assert!(nodes.iter().any(|node| node.path == "/dev/null"));
        for node in &nodes {
            assert!(node.path.starts_with("/dev/"), "{}", node.path);
            assert!(!NOT_DEVICES.iter().any(|not| Path::new(&node.path).starts_with(not)), "{}", node.path);
        }
    }

    #[test]
    fn without_devices_the_rules_still_begin_with_no() {
        let rules = rules(&[], false).unwrap();
        assert!(!rules[0].allow());
        assert_eq!(rules[0].typ(), Some(LinuxDeviceType::A));
        assert!(rules[1..].iter().all(LinuxDeviceCgroup::allow));
        assert_eq!(rules.len(), 1 + RULES.len() + DEFAULTS.len());
    }
}
