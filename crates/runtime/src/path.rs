//! Paths inside a container's root: opened, and made where they are missing, without ever leaving it.
//!
//! Every look-up is one openat2 with the container's root as the root, so that whatever the image holds (links that are
//! absolute, relative, looping, or lead to things that are not there) and whatever another container changes meanwhile
//! in a shared volume, what comes out lies beneath the root. Nothing here allocates.

use knarr_sys::open::in_root;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, fstat, mkdirat, mknodat, readlinkat_raw, statat};
use rustix::io::{Errno, Result};
use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Most dangling links that are followed while something is made; the kernel's own number for links.
const LINKS_MAX: usize = 40;

/// The kernel's PATH_MAX, with the NUL.
const PATH_MAX: usize = 4096;

/// The kernel's NAME_MAX, and a NUL.
const NAME_BYTES: usize = 256;

/// What the last component is made as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Make {
    Directory,
    File,
}

impl Make {
    /// As what a mount point must be made for this thing to be mounted on it.
    pub(crate) fn like(thing: BorrowedFd<'_>) -> Result<Self> {
        let is_directory = FileType::from_raw_mode(fstat(thing)?.st_mode) == FileType::Directory;
        Ok(if is_directory { Self::Directory } else { Self::File })
    }
}

/// Opens `path` beneath `root`, making what is missing: directories (0755), and the last component as `make` says
/// (files 0644, empty). Links are followed inside the root, also to where nothing is yet. The descriptor only names it.
pub(crate) fn open_or_make(root: BorrowedFd<'_>, path: &CStr, make: Make) -> Result<OwnedFd> {
    match in_root(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    let mut text = Text::new(path.to_bytes())?;
    for _ in 0..=LINKS_MAX {
        match walk(root, &text, make)? {
            Walked::There(fd) => return Ok(fd),
            Walked::Dangling { name_at, name_end } => text = text.with_link_followed(root, name_at, name_end)?,
        }
    }
    Err(Errno::LOOP)
}

/// Opens the directory that the last component of `path` lies in, making it if it is missing, and copies that component.
pub(crate) fn open_or_make_parent(root: BorrowedFd<'_>, path: &CStr) -> Result<(OwnedFd, Name)> {
    let bytes = path.to_bytes();
    let end = bytes.iter().rposition(|&byte| byte != b'/').ok_or(Errno::INVAL)? + 1;
    let start = bytes[..end].iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    let name = Name::new(&bytes[start..end])?;
    let parent = Text::new(&bytes[..start])?;
    let parent = if start == 0 {
        rustix::io::fcntl_dupfd_cloexec(root, 3)?
    } else {
        open_or_make(root, parent.all()?, Make::Directory)?
    };
    Ok((parent, name))
}

enum Walked {
    There(OwnedFd),
    /// The component between these places is a link to something that is not there.
    Dangling {
        name_at: usize,
        name_end: usize,
    },
}

fn walk(root: BorrowedFd<'_>, text: &Text, make: Make) -> Result<Walked> {
    let mut parent: Option<OwnedFd> = None;
    let mut end = 0;
    while let Some((name_at, name_end)) = text.component_after(end) {
        let prefix = text.clone_prefix(name_end);
        let found = match in_root(root, prefix.all()?, OFlags::PATH) {
            Err(Errno::NOENT) => {
                let name = Name::new(&text.bytes()[name_at..name_end])?;
                let directory = parent.as_ref().map_or(root, |fd| fd.as_fd());
                let last = text.component_after(name_end).is_none();
                let kind = if last { make } else { Make::Directory };
                match make_one(directory, &name, kind) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno),
                }
                match in_root(root, prefix.all()?, OFlags::PATH) {
                    // It exists, and yet it does not: a link to nowhere.
                    Err(Errno::NOENT) => return Ok(Walked::Dangling { name_at, name_end }),
                    result => result?,
                }
            }
            result => result?,
        };
        parent = Some(found);
        end = name_end;
    }
    match parent {
        Some(fd) => Ok(Walked::There(fd)),
        None => Ok(Walked::There(rustix::io::fcntl_dupfd_cloexec(root, 3)?)),
    }
}

/// Neither call follows a link at the last component or replaces anything.
fn make_one(directory: BorrowedFd<'_>, name: &Name, make: Make) -> Result<()> {
    match make {
        Make::Directory => mkdirat(directory, name.as_c_str(), Mode::from_raw_mode(0o755)),
        Make::File => mknodat(directory, name.as_c_str(), FileType::RegularFile, Mode::from_raw_mode(0o644), 0),
    }
}

/// One component of a path.
pub(crate) struct Name {
    bytes: [u8; NAME_BYTES],
}

impl Name {
    fn new(name: &[u8]) -> Result<Self> {
        if name.len() >= NAME_BYTES {
            return Err(Errno::NAMETOOLONG);
        }
        let mut bytes = [0; NAME_BYTES];
        bytes[..name.len()].copy_from_slice(name);
        Ok(Self { bytes })
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c"")
    }
}

/// A path on the stack: paths are taken apart and links put into them between clone and exec.
struct Text {
    bytes: [u8; PATH_MAX],
    length: usize,
}

impl Text {
    fn new(path: &[u8]) -> Result<Self> {
        let mut text = Self { bytes: [0; PATH_MAX], length: 0 };
        text.push(path)?;
        Ok(text)
    }

    fn push(&mut self, more: &[u8]) -> Result<()> {
        let end = self.length + more.len();
        // One byte is kept for the NUL.
        if end >= PATH_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        self.bytes[self.length..end].copy_from_slice(more);
        self.bytes[end] = 0;
        self.length = end;
        Ok(())
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn all(&self) -> Result<&CStr> {
        CStr::from_bytes_with_nul(&self.bytes[..=self.length]).map_err(|_| Errno::INVAL)
    }

    fn clone_prefix(&self, end: usize) -> Self {
        let mut prefix = Self { bytes: self.bytes, length: end };
        prefix.bytes[end] = 0;
        prefix
    }

    /// Start and end of the first component at or after `from`.
    fn component_after(&self, from: usize) -> Option<(usize, usize)> {
        let bytes = self.bytes();
        let start = from + bytes[from..].iter().position(|&byte| byte != b'/')?;
        let length = bytes[start..].iter().position(|&byte| byte == b'/').unwrap_or(bytes.len() - start);
        Some((start, start + length))
    }

    /// This path with the link at `name_at..name_end` replaced by what it holds. The kernel resolves the part before it
    /// again, so that a `..` in the link means the directory in which the link really is.
    fn with_link_followed(&self, root: BorrowedFd<'_>, name_at: usize, name_end: usize) -> Result<Self> {
        let before = self.clone_prefix(name_at);
        let parent = if name_at == 0 { None } else { Some(in_root(root, before.all()?, OFlags::PATH)?) };
        let directory = parent.as_ref().map_or(root, |fd| fd.as_fd());
        let name = Name::new(&self.bytes()[name_at..name_end])?;
        if FileType::from_raw_mode(statat(directory, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
            != FileType::Symlink
        {
            // It was there, then not, then again: someone is playing with it.
            return Err(Errno::AGAIN);
        }
        let mut buffer = [MaybeUninit::<u8>::uninit(); PATH_MAX];
        let (link, _) = readlinkat_raw(directory, name.as_c_str(), &mut buffer)?;
        let mut text = Self::new(if link.first() == Some(&b'/') { b"" } else { before.bytes() })?;
        text.push(link)?;
        text.push(&self.bytes()[name_end..])?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, create_dir, read_dir};
    use std::os::unix::fs::symlink;
    use std::path::Path;

    /// A root beside a directory that must stay as it is.
    fn check(prepare: impl Fn(&Path), path: &CStr, make: Make, made: Result<&str>) {
        let dir = tempfile::tempdir().unwrap();
        let root_path = dir.path().join("root");
        create_dir(&root_path).unwrap();
        prepare(&root_path);
        let root = File::open(&root_path).unwrap();
        let result = open_or_make(root.as_fd(), path, make);
        match made {
            Ok(made) => {
                let fd = result.unwrap();
                let wanted = rustix::fs::stat(root_path.join(made)).unwrap();
                let stat = fstat(&fd).unwrap();
                assert_eq!((stat.st_dev, stat.st_ino), (wanted.st_dev, wanted.st_ino), "{path:?} is not {made}");
                let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                assert_eq!(is_directory, make == Make::Directory, "{path:?}");
            }
            Err(errno) => assert_eq!(result.unwrap_err(), errno, "{path:?}"),
        }
        assert_eq!(read_dir(dir.path()).unwrap().count(), 1, "something was made beside the root");
    }

    #[test]
    fn what_is_missing_is_made_component_by_component() {
        check(|_| (), c"/a/b/c", Make::Directory, Ok("a/b/c"));
        check(|_| (), c"/a//b/./file", Make::File, Ok("a/b/file"));
        check(|root| create_dir(root.join("a")).unwrap(), c"a/x", Make::File, Ok("a/x"));
        check(|_| (), c"/", Make::Directory, Ok("."));
    }

    #[test]
    fn links_stay_inside() {
        check(|root| symlink("/b", root.join("a")).unwrap(), c"/a/x", Make::Directory, Ok("b/x"));
        check(|root| symlink("../../../b", root.join("a")).unwrap(), c"/a", Make::File, Ok("b"));
        check(|root| symlink("../other", root.join("a")).unwrap(), c"/a/../x", Make::File, Ok("x"));
        check(|_| (), c"/../../../x", Make::File, Ok("x"));
        let nested = |root: &Path| {
            create_dir(root.join("etc")).unwrap();
            symlink("../run/systemd/resolv.conf", root.join("etc/resolv.conf")).unwrap();
        };
        check(nested, c"/etc/resolv.conf", Make::File, Ok("run/systemd/resolv.conf"));
    }

    #[test]
    fn loops_and_files_on_the_way_are_refused() {
        check(|root| symlink("a", root.join("a")).unwrap(), c"/a", Make::File, Err(Errno::LOOP));
        let two = |root: &Path| {
            symlink("b/x", root.join("a")).unwrap();
            symlink("a/x", root.join("b")).unwrap();
        };
        check(two, c"/a/file", Make::File, Err(Errno::LOOP));
        check(|root| std::fs::write(root.join("a"), "").unwrap(), c"/a/b", Make::File, Err(Errno::NOTDIR));
    }

    #[test]
    fn a_path_that_is_too_long_is_refused() {
        let long = std::ffi::CString::new(format!("/{}", "a/".repeat(3000))).unwrap();
        check(|_| (), &long, Make::Directory, Err(Errno::NAMETOOLONG));
        let name = std::ffi::CString::new("n".repeat(300)).unwrap();
        check(|_| (), &name, Make::File, Err(Errno::NAMETOOLONG));
    }

    #[test]
    fn the_parent_is_made_and_the_name_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = File::open(dir.path()).unwrap();
        let (_, name) = open_or_make_parent(root.as_fd(), c"/dev/net/tun").unwrap();
        assert_eq!(name.as_c_str(), c"tun");
        assert!(dir.path().join("dev/net").is_dir());
        assert!(!dir.path().join("dev/net/tun").exists());
        assert_eq!(open_or_make_parent(root.as_fd(), c"/null").unwrap().1.as_c_str(), c"null");
        assert!(open_or_make_parent(root.as_fd(), c"/").is_err());
    }
}
