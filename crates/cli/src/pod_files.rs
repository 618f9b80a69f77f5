//! The files of a pod that `knarr run` made: its logs, its volumes, its /etc/hosts. The runtime knows nothing of them but
//! paths; kubelet keeps the like for its own pods.
//!
//! ```text
//! <cli>/pods/<uid>/logs/<container>/<attempt>.log    written by the runtime
//! <cli>/pods/<uid>/volumes/<volume>                  emptyDir, configMap, secret; a tmpfs where it must be in memory
//! <cli>/pods/<uid>/subpaths/<container>-<attempt>-<n>   bind mounts of parts of volumes
//! <cli>/pods/<uid>/hosts                             mounted as /etc/hosts
//! ```

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::pod_manifest::schema::{Data, HostPathKind, Volume};

/// One pod's directory.
#[derive(Debug, Clone)]
pub struct PodFiles {
    directory: PathBuf,
}

/// Everything may write into an emptyDir, as in Kubernetes: whoever runs in the pod owns it.
const EMPTY_DIR_MODE: u32 = 0o777;
/// And with an fsGroup, what is made inside belongs to the group.
const GROUP_DIR_MODE: u32 = 0o2777;

impl PodFiles {
    /// The directory of the pod with this uid; `None` for a uid that could be a path. Nothing is created.
    pub fn of(cli_dir: &Path, uid: &str) -> Option<Self> {
        let plain = uid.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
        (!uid.is_empty() && plain).then(|| Self { directory: cli_dir.join("pods").join(uid) })
    }

    /// Creates the directory, readable by root alone: volumes may hold secrets.
    pub fn create(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        for name in ["logs", "volumes", "subpaths"] {
            DirBuilder::new().recursive(true).mode(0o700).create(self.directory.join(name))?;
        }
        Ok(())
    }

    /// Where the pod's logs are written.
    pub fn logs(&self) -> PathBuf {
        self.directory.join("logs")
    }

    /// Creates the directory of one container's logs; the runtime opens files only.
    pub fn create_log_directory(&self, container: &str) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o755).create(self.logs().join(container))
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.directory.join("volumes").join(name)
    }

    /// Makes a volume ready and returns its path on this machine; `None` for an image, which the runtime mounts.
    /// `files` is what a ConfigMap or Secret holds for it.
    pub fn prepare_volume(
        &self,
        name: &str,
        volume: &Volume,
        files: &[(String, Vec<u8>, u32)],
        fs_group: Option<u32>,
    ) -> io::Result<Option<PathBuf>> {
        match volume {
            Volume::Image { .. } => Ok(None),
            Volume::HostPath { path, kind } => {
                prepare_host_path(Path::new(path), *kind)?;
                Ok(Some(path.into()))
            }
            Volume::EmptyDir { memory, size_limit_bytes } => {
                let path = self.volume(name);
                fs::create_dir(&path)?;
                if *memory {
                    mount_memory(&path, *size_limit_bytes)?;
                }
                let mode = if fs_group.is_some() { GROUP_DIR_MODE } else { EMPTY_DIR_MODE };
                give_to_group(&path, fs_group)?;
                // After chown, which clears the set-group-id bit; and by chmod, which no umask cuts.
                fs::set_permissions(&path, Permissions::from_mode(mode))?;
                Ok(Some(path))
            }
            Volume::Files { secret, .. } => {
                let path = self.volume(name);
                fs::create_dir(&path)?;
                if *secret {
                    mount_memory(&path, None)?;
                }
                fs::set_permissions(&path, Permissions::from_mode(0o755))?;
                give_to_group(&path, fs_group)?;
                for (relative, content, mode) in files {
                    write_volume_file(&path, relative, content, *mode, fs_group)?;
                }
                Ok(Some(path))
            }
        }
    }

    /// Pins a part of a volume by a bind mount and returns the mount's path. The volume may be written by containers that
    /// run already, so the part is found by descriptors that cannot leave the volume, and what the runtime is given is
    /// not a path through it: a symbolic link put there later leads nowhere.
    pub fn pin_sub_path(&self, volume: &Path, sub_path: &str, pin_name: &str) -> io::Result<PathBuf> {
        let root = rustix::fs::open(volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let part = open_or_make_beneath(&root, Path::new(sub_path))?;
        let target = self.directory.join("subpaths").join(pin_name);
        let is_directory = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&part)?.st_mode).is_dir();
        if is_directory {
            fs::create_dir(&target)?;
        } else {
            File::create_new(&target)?;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = rustix::mount::open_tree(&part, "", flags)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", rustix::fs::CWD, &target, flags)?;
        Ok(target)
    }

    /// Takes away the parts that were pinned for one attempt of a container.
    pub fn unpin_sub_paths(&self, container: &str, attempt: u32) -> io::Result<()> {
        let prefix = sub_path_pin(container, attempt, "");
        for entry in fs::read_dir(self.directory.join("subpaths"))? {
            let entry = entry?;
            if entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
                unmount_if_mounted(&entry.path())?;
                if entry.file_type()?.is_dir() { fs::remove_dir(entry.path()) } else { fs::remove_file(entry.path()) }?;
            }
        }
        Ok(())
    }

    /// Writes the pod's /etc/hosts and returns its path.
    pub fn write_hosts(&self, content: &str) -> io::Result<PathBuf> {
        let path = self.directory.join("hosts");
        fs::write(&path, content)?;
        fs::set_permissions(&path, Permissions::from_mode(0o644))?;
        Ok(path)
    }

    /// Takes away everything. A directory that something is still mounted in stays: deleting through a mount would delete
    /// somebody's data.
    pub fn remove(&self) -> io::Result<()> {
        remove_tree(&self.directory)
    }
}

/// The name of one pinned part. A container's name holds no further meaning for `-`, so the attempt and the number stand
/// after a dot, which no container's name can hold.
pub fn sub_path_pin(container: &str, attempt: u32, number: impl std::fmt::Display) -> String {
    format!("{container}.{attempt}.{number}")
}

fn prepare_host_path(path: &Path, kind: HostPathKind) -> io::Result<()> {
    let found = match fs::metadata(path) {
        Ok(metadata) => Some(metadata),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let Some(metadata) = found else {
        return match kind {
            HostPathKind::Anything | HostPathKind::DirectoryOrCreate => {
                DirBuilder::new().recursive(true).mode(0o755).create(path)
            }
            HostPathKind::FileOrCreate => File::create_new(path).map(|_| ()),
            _ => Err(io::Error::new(io::ErrorKind::NotFound, "there is no such path")),
        };
    };
    let file_type = metadata.file_type();
    let (good, expected) = match kind {
        HostPathKind::Anything => (true, ""),
        HostPathKind::DirectoryOrCreate | HostPathKind::Directory => (file_type.is_dir(), "directory"),
        HostPathKind::FileOrCreate | HostPathKind::File => (file_type.is_file(), "file"),
        HostPathKind::Socket => (file_type.is_socket(), "socket"),
        HostPathKind::CharDevice => (file_type.is_char_device(), "character device"),
        HostPathKind::BlockDevice => (file_type.is_block_device(), "block device"),
    };
    if good { Ok(()) } else { Err(io::Error::other(format!("it is no {expected}"))) }
}

fn mount_memory(path: &Path, size_limit_bytes: Option<u64>) -> io::Result<()> {
    let mut options = "mode=0755".to_owned();
    if let Some(size) = size_limit_bytes {
        options.push_str(&format!(",size={size}"));
    }
    let options = std::ffi::CString::new(options).map_err(io::Error::other)?;
    rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, options.as_c_str())?;
    Ok(())
}

fn give_to_group(path: &Path, group: Option<u32>) -> io::Result<()> {
    match group {
        Some(group) => chown(path, None, Some(group)),
        None => Ok(()),
    }
}

/// `relative` was checked to hold plain names only.
fn write_volume_file(root: &Path, relative: &str, content: &[u8], mode: u32, group: Option<u32>) -> io::Result<()> {
    let path = root.join(relative);
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    let mut file = File::create_new(&path)?;
    file.write_all(content)?;
    give_to_group(&path, group)?;
    // kubelet lets the group read what the owner may: without it fsGroup would be of no use.
    let mode = if group.is_some() { mode | ((mode & 0o600) >> 3) } else { mode };
    file.set_permissions(Permissions::from_mode(mode))
}

fn open_or_make_beneath(root: &OwnedFd, relative: &Path) -> io::Result<OwnedFd> {
    let open = |path: &Path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
    };
    match open(relative) {
        Err(rustix::io::Errno::NOENT) => {}
        found => return Ok(found?),
    }
    // kubelet gives a part that it has to make the mode of the volume.
    let mode = Mode::from_raw_mode(rustix::fs::fstat(root)?.st_mode & 0o7777);
    let mut so_far = PathBuf::new();
    for component in relative.components() {
        let Component::Normal(name) = component else { continue };
        let parent = open(&so_far)?;
        so_far.push(name);
        match open(&so_far) {
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(parent.as_fd(), name, Mode::from_raw_mode(0o700))?;
                let made = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = rustix::fs::openat(parent.as_fd(), name, made, Mode::empty())?;
                rustix::fs::fchmod(&made, mode)?;
            }
            found => drop(found?),
        }
    }
    Ok(open(relative)?)
}

/// Mount points at or below a directory, deepest first.
fn mounts_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let text = fs::read("/proc/self/mountinfo")?;
    let directory = match fs::canonicalize(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        directory => directory?,
    };
    let lines = text.split(|byte| *byte == b'\n');
    let points = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4)).map(unescape);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(&directory)).collect();
    // The kernel lists a mount after the one it stands on.
    below.reverse();
    Ok(below)
}

/// mountinfo writes space, tab, line break and backslash as octal escapes.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let escaped = if *first == b'\\' { after.get(..3) } else { None };
        let value = escaped.and_then(|digits| std::str::from_utf8(digits).ok());
        match value.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn unmount_if_mounted(path: &Path) -> io::Result<()> {
    match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
        // EINVAL: nothing is mounted here.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        outcome => Ok(outcome?),
    }
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    for point in mounts_below(directory)? {
        unmount_if_mounted(&point).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("{} is still mounted, and so nothing is deleted: {error}", point.display()),
            )
        })?;
    }
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// The files of a ConfigMap or Secret volume: (relative path, content, mode).
///
/// # Errors
/// A key that is asked for and is not there.
pub fn volume_files(
    data: &Data,
    items: &[(String, String, Option<u32>)],
    default_mode: u32,
    optional: bool,
) -> Result<Vec<(String, Vec<u8>, u32)>, String> {
    if items.is_empty() {
        return Ok(data.iter().map(|(key, content)| (key.clone(), content.clone(), default_mode)).collect());
    }
    let mut files = Vec::new();
    for (key, path, mode) in items {
        match data.get(key) {
            Some(content) => files.push((path.clone(), content.clone(), mode.unwrap_or(default_mode))),
            None if optional => {}
            None => return Err(format!("there is no key {key:?}")),
        }
    }
    Ok(files)
}

/// What kubelet writes into a pod's /etc/hosts.
pub fn hosts_content(pod_ips: &[String], hostname: &str, aliases: &[(String, Vec<String>)]) -> String {
    let mut text = "# Written by knarr for this pod.\n\
                    127.0.0.1\tlocalhost\n\
                    ::1\tlocalhost ip6-localhost ip6-loopback\n\
                    fe00::\tip6-localnet\nfe00::\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n"
        .to_owned();
    for ip in pod_ips {
        text.push_str(&format!("{ip}\t{hostname}\n"));
    }
    text.push_str(&alias_lines(aliases));
    text
}

/// The lines of hostAliases alone, to be added to the host's own file.
pub fn alias_lines(aliases: &[(String, Vec<String>)]) -> String {
    let lines = aliases.iter().filter(|(_, names)| !names.is_empty());
    lines.map(|(ip, names)| format!("{ip}\t{}\n", names.join("\t"))).collect()
}

#[cfg(test)]
mod tests;
