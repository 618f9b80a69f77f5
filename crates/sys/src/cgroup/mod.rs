//! Control groups, v2 and v1: where the hierarchies of this machine are, and the few steps on their directories that
//! rustix has no single call for.
//!
//! Everything is reached through a descriptor of a hierarchy's root and a path relative to it, because the cgroup2
//! hierarchy of a pure v1 machine has no mount point at all. Which limits go into which file, who owns a cgroup and
//! what is done when the kernel refuses is decided elsewhere.

mod files;

pub use files::{
    children, kill, make_dirs, open_dir, open_for_write, processes, read, remove_tree, wait_until_empty, write,
};

use rustix::fd::OwnedFd;
use rustix::fs::{CWD, Mode, OFlags, fstatfs, openat};
use rustix::io::{self, Errno};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// statfs magic of cgroup v1 and v2, from linux/magic.h.
const CGROUP_SUPER_MAGIC: u64 = 0x0027_e0eb;
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// How this machine uses control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// Only cgroup2.
    Unified,
    /// Controllers in v1 hierarchies, cgroup2 mounted beside them.
    Hybrid,
    /// Controllers in v1 hierarchies, cgroup2 not mounted anywhere; it is used through a detached mount.
    Legacy,
}

/// One hierarchy.
#[derive(Debug)]
pub struct Hierarchy {
    /// Its root directory.
    pub root: OwnedFd,
    /// Where it is mounted; `None` for the detached one.
    pub mount_point: Option<PathBuf>,
    /// The controllers in it ("memory"), or "name=systemd" for a v1 hierarchy that has only a name.
    pub controllers: Vec<String>,
}

/// All hierarchies of this machine.
#[derive(Debug)]
pub struct Hierarchies {
    /// pure v2, hybrid or pure v1
    pub layout: Layout,
    /// The cgroup2 hierarchy, in which process trees are tracked and killed on every machine. Its controllers are
    /// those that are not taken by a v1 hierarchy: often none.
    pub tree: Hierarchy,
    /// The v1 hierarchies, in the order of their mounts.
    pub v1: Vec<Hierarchy>,
    /// Controllers that a v1 hierarchy has taken which is not mounted here, so that nobody can use them.
    pub unreachable: Vec<String>,
}

impl Hierarchies {
    /// Looks at /proc/self/mountinfo and /proc/self/cgroup and opens every hierarchy's root.
    pub fn detect() -> io::Result<Self> {
        let mounts = parse_mountinfo(&read_proc("/proc/self/mountinfo")?);
        let memberships = read_proc("/proc/self/cgroup")?;
        let mut v1 = Vec::new();
        let mut tree = None;
        for mount in mounts {
            let Some(root) = open_root(&mount.mount_point, mount.version)? else { continue };
            let mount_point = Some(mount.mount_point);
            match mount.version {
                Version::V1 => v1.push(Hierarchy { root, mount_point, controllers: mount.controllers }),
                Version::V2 => tree = Some((root, mount_point)),
            }
        }
        let layout = match (&tree, v1.is_empty()) {
            (Some(_), true) => Layout::Unified,
            (Some(_), false) => Layout::Hybrid,
            (None, _) => Layout::Legacy,
        };
        let (root, mount_point) = match tree {
            Some(found) => found,
            None => (detached_cgroup2()?, None),
        };
        let controllers = read(&root, "cgroup.controllers")?.split_whitespace().map(str::to_owned).collect();
        let unreachable = unmounted_v1(&memberships, &v1);
        Ok(Self { layout, tree: Hierarchy { root, mount_point, controllers }, v1, unreachable })
    }
}

/// A cgroup2 mount that is in no mount namespace; it shows the same files as a mounted one.
pub fn detached_cgroup2() -> io::Result<OwnedFd> {
    let context = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct CgroupMount {
    version: Version,
    mount_point: PathBuf,
    controllers: Vec<String>,
}

/// Finds one mount per hierarchy. Of several it takes one that shows the hierarchy's root, and of those the first:
/// later ones are bind mounts of containers and tests.
fn parse_mountinfo(text: &[u8]) -> Vec<CgroupMount> {
    let mut order = Vec::new();
    let mut found: BTreeMap<Vec<u8>, (bool, CgroupMount)> = BTreeMap::new();
    for line in text.split(|&b| b == b'\n') {
        let fields: Vec<&[u8]> = line.split(|&b| b == b' ').filter(|f| !f.is_empty()).collect();
        let Some(dash) = fields.iter().position(|&f| f == b"-") else { continue };
        let (Some(&device), Some(&root), Some(&point)) = (fields.get(2), fields.get(3), fields.get(4)) else {
            continue;
        };
        let (Some(&fstype), Some(&options)) = (fields.get(dash + 1), fields.get(dash + 3)) else { continue };
        let version = match fstype {
            b"cgroup" => Version::V1,
            b"cgroup2" => Version::V2,
            _ => continue,
        };
        let controllers = if version == Version::V1 { v1_controllers(options) } else { Vec::new() };
        let shows_root = root == b"/";
        let mount = CgroupMount { version, mount_point: PathBuf::from(unescape(point)), controllers };
        match found.get(device) {
            Some((true, _)) => {}
            Some((false, _)) if !shows_root => {}
            known => {
                if known.is_none() {
                    order.push(device.to_vec());
                }
                found.insert(device.to_vec(), (shows_root, mount));
            }
        }
    }
    order.into_iter().filter_map(|device| found.remove(&device)).map(|(_, mount)| mount).collect()
}

/// Of a v1 mount's options those that name a controller or the hierarchy itself.
fn v1_controllers(options: &[u8]) -> Vec<String> {
    const FLAGS: [&str; 8] = ["rw", "ro", "none", "all", "xattr", "noprefix", "clone_children", "cpuset_v2_mode"];
    let text = String::from_utf8_lossy(options);
    text.split(',')
        .filter(|o| !FLAGS.contains(o) && !o.starts_with("release_agent=") && !o.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Controllers of the lines of /proc/self/cgroup that no mount in `v1` has. Hierarchies with only a name do not count.
fn unmounted_v1(memberships: &[u8], v1: &[Hierarchy]) -> Vec<String> {
    let text = String::from_utf8_lossy(memberships);
    let mut missing = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(names)) = (fields.next(), fields.next()) else { continue };
        for name in names.split(',').filter(|n| !n.is_empty() && !n.starts_with("name=")) {
            if !v1.iter().any(|h| h.controllers.iter().any(|c| c == name)) {
                missing.push(name.to_owned());
            }
        }
    }
    missing
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
fn unescape(field: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                out.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                rest = tail;
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

/// Opens a hierarchy's mount point, or gives `None` where something else is mounted over it.
fn open_root(path: &Path, version: Version) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = match openat(CWD, path.as_os_str().as_bytes(), flags, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => return Ok(None),
        Err(error) => return Err(error),
    };
    let magic = match version {
        Version::V1 => CGROUP_SUPER_MAGIC,
        Version::V2 => CGROUP2_SUPER_MAGIC,
    };
    let is = fstatfs(&root)?.f_type as u64;
    Ok((is == magic).then_some(root))
}

fn read_proc(path: &str) -> io::Result<Vec<u8>> {
    let file = openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    files::read_to_end(&file)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
23 1 254:0 / / rw,relatime - ext4 /dev/vda rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
37 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup systemd rw,xattr,release_agent=/lib/agent,name=systemd
38 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
90 80 0:29 /a/b /run/x/cpu rw - cgroup cgroup rw,cpu,cpuacct
91 80 0:38 / /mnt/a\\040b rw - cgroup2 none rw
";

    #[test]
    fn one_mount_is_found_per_hierarchy_and_the_first_wins() {
        let mounts = parse_mountinfo(HYBRID.as_bytes());
        let seen: Vec<_> = mounts.iter().map(|m| (m.mount_point.to_str().unwrap(), m.controllers.join(" "))).collect();
        assert_eq!(
            seen,
            [
                ("/sys/fs/cgroup/cpu,cpuacct", "cpu cpuacct".to_owned()),
                ("/sys/fs/cgroup/systemd", "name=systemd".to_owned()),
                ("/sys/fs/cgroup/unified", String::new()),
            ]
        );
    }

    #[test]
    fn a_mount_that_shows_the_root_beats_an_earlier_one_that_does_not() {
        let text = "1 0 0:5 /sub /a rw - cgroup2 x rw\n2 0 0:5 / /b rw - cgroup2 x rw\n";
        let mounts = parse_mountinfo(text.as_bytes());
        assert_eq!(mounts.len(), 1);
        assert_eq!(mounts[0].mount_point, Path::new("/b"));
    }

    #[test]
    fn broken_lines_are_passed_over() {
        for text in ["", "-", "1 2 3 - cgroup", "1 2 0:5 / /x rw - cgroup2", "\u{0}\n - - -\n"] {
            assert_eq!(parse_mountinfo(text.as_bytes()), [], "{text:?}");
        }
    }

    #[test]
    fn escapes_are_undone() {
        assert_eq!(unescape(br"/a\040b\134\011"), OsString::from("/a b\\\t"));
        assert_eq!(unescape(br"/a\04"), OsString::from(r"/a\04"));
    }

    #[test]
    fn a_controller_of_an_unmounted_hierarchy_is_named() {
        assert_eq!(unmounted_v1(b"4:memory:/x\n3:name=foo:/\n0::/\n", &[]), ["memory"]);
    }

    #[test]
    fn this_machine_has_a_cgroup2_hierarchy_that_can_be_read() {
        let found = match Hierarchies::detect() {
            Ok(found) => found,
            Err(Errno::PERM) => {
                eprintln!("skipped: a machine without mounted cgroup2 needs root");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        assert!(read(&found.tree.root, "cgroup.procs").is_ok());
        if found.layout == Layout::Unified {
            assert!(found.v1.is_empty());
        }
    }

    #[test]
    fn a_detached_mount_shows_the_same_tree() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let found = Hierarchies::detect().unwrap();
        let detached = detached_cgroup2().unwrap();
        let name = format!("knarr-test-detached-{}", std::process::id());
        make_dirs(&found.tree.root, &name).unwrap();
        assert!(read(&detached, &format!("{name}/cgroup.procs")).is_ok());
        remove_tree(&detached, &name).unwrap();
        assert_eq!(read(&found.tree.root, &format!("{name}/cgroup.procs")), Err(Errno::NOENT));
    }
}
