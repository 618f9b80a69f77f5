//! The directory that a layer is written into, reached by descriptors only.
//!
//! Every open goes through `openat2` with BENEATH, NO_SYMLINKS and NO_MAGICLINKS, so the kernel itself refuses to leave
//! the root, whatever the archive put there. Where an archive goes through a symbolic link that it made earlier
//! (`lib -> usr/lib`, then `lib/a`), the link is read here and its target walked from the root, again component by
//! component. What comes out is a path without links, the canonical path, and that is the only kind that is stored.
//! Nobody else writes here meanwhile: the directory is a staging directory that only root may enter.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, openat, openat2, readlinkat, statat};
use rustix::io::Errno;

use super::name::{self, PATH_BYTES_MAX, is_at_or_below};

/// How many open directories are remembered. Archives go through a tree in order, so few are enough; each costs a
/// descriptor, and a dozen layers are written at once.
const OPEN_DIRECTORIES_MAX: usize = 64;
/// As many symbolic links as the kernel itself follows in one path.
const LINKS_MAX: usize = 40;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const DIRECTORY: OFlags = OFlags::DIRECTORY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What is at a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Nothing,
    Directory,
    /// The character device 0:0, overlayfs' mark for "gone".
    Whiteout,
    /// A file, and how many bytes it has.
    File(u64),
    Symlink,
    Other,
}

/// What to do with a parent directory that the archive has not made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make it; the caller learns which were made.
    Make,
    /// There is none then.
    Leave,
}

/// A directory without links in its path, open.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    pub path: Vec<u8>,
    pub fd: Rc<OwnedFd>,
}

/// A directory that had to be made on the way.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Made {
    pub path: Vec<u8>,
    /// A whiteout stood there: what lower layers have in it must stay hidden.
    pub hides_lower: bool,
}

/// The root of the layer and the directories opened lately.
pub(crate) struct Tree {
    root: Rc<OwnedFd>,
    open: HashMap<Vec<u8>, Rc<OwnedFd>>,
}

impl Tree {
    /// `root` is the layer's `fs` directory.
    pub fn new(root: OwnedFd) -> Self {
        Self { root: Rc::new(root), open: HashMap::new() }
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Opens the directory that `path` (clean) names, following links of the layer itself. Directories that had to be
    /// made are added to `made`. `None` if something is missing and `missing` says to leave it.
    pub fn directory(&mut self, path: &[u8], missing: Missing, made: &mut Vec<Made>) -> io::Result<Option<Directory>> {
        match self.open_canonical(path) {
            Ok(fd) => Ok(Some(Directory { path: path.to_vec(), fd })),
            Err(Errno::LOOP | Errno::NOENT | Errno::NOTDIR) => self.walk(path, missing, made),
            Err(e) => Err(e.into()),
        }
    }

    /// Opens a directory whose path has no links; ELOOP if it has one.
    pub fn open_canonical(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Errno> {
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        if let Some(fd) = self.open.get(path) {
            return Ok(fd.clone());
        }
        let fd = Rc::new(openat2(&self.root, path, OFlags::PATH | DIRECTORY, Mode::empty(), BENEATH)?);
        self.remember(path, &fd);
        Ok(fd)
    }

    /// The directory at `path` is gone, and everything below it.
    pub fn forget(&mut self, path: &[u8]) {
        self.open.retain(|known, _| !is_at_or_below(known, path));
    }

    fn remember(&mut self, path: &[u8], fd: &Rc<OwnedFd>) {
        if self.open.len() >= OPEN_DIRECTORIES_MAX {
            self.open.clear();
        }
        self.open.insert(path.to_vec(), fd.clone());
    }

    /// Component by component, reading links by hand. Descends only by NOFOLLOW opens of one name.
    fn walk(&mut self, path: &[u8], missing: Missing, made: &mut Vec<Made>) -> io::Result<Option<Directory>> {
        // The components still to go, last first.
        let mut rest: Vec<Vec<u8>> = path.split(|&b| b == b'/').rev().map(<[u8]>::to_vec).collect();
        let mut at: Vec<Directory> = Vec::new();
        let mut links = 0;
        while let Some(component) = rest.pop() {
            match &component[..] {
                b"" | b"." => continue,
                b".." => {
                    at.pop();
                    continue;
                }
                _ => {}
            }
            let (here_path, here) = match at.last() {
                Some(directory) => (directory.path.clone(), directory.fd.clone()),
                None => (Vec::new(), self.root.clone()),
            };
            let mut below = here_path;
            name::push(&mut below, &component);
            if below.len() > PATH_BYTES_MAX {
                return Err(Errno::NAMETOOLONG.into());
            }
            match found(here.as_fd(), &component)? {
                Found::Directory => {}
                Found::Symlink => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(Errno::LOOP.into());
                    }
                    let target = readlinkat(&here, &component[..], Vec::new())?.into_bytes();
                    if target.first() == Some(&b'/') {
                        at.clear();
                    }
                    rest.extend(target.split(|&b| b == b'/').rev().map(<[u8]>::to_vec));
                    continue;
                }
                Found::Nothing | Found::Whiteout if missing == Missing::Leave => return Ok(None),
                found @ (Found::Nothing | Found::Whiteout) => {
                    let hides_lower = found == Found::Whiteout;
                    if hides_lower {
                        rustix::fs::unlinkat(&here, &component[..], AtFlags::empty())?;
                    }
                    rustix::fs::mkdirat(&here, &component[..], Mode::RWXU)?;
                    if hides_lower {
                        set_opaque(here.as_fd(), &component)?;
                    }
                    made.push(Made { path: below.clone(), hides_lower });
                }
                Found::File(_) | Found::Other if missing == Missing::Leave => return Ok(None),
                Found::File(_) | Found::Other => return Err(Errno::NOTDIR.into()),
            }
            let fd = Rc::new(openat(&here, &component[..], OFlags::PATH | DIRECTORY, Mode::empty())?);
            self.remember(&below, &fd);
            at.push(Directory { path: below, fd });
        }
        Ok(Some(at.pop().unwrap_or_else(|| Directory { path: Vec::new(), fd: self.root.clone() })))
    }
}

/// What is at `name` in `directory`, itself and not what it points to.
pub(crate) fn found(directory: BorrowedFd<'_>, name: &[u8]) -> io::Result<Found> {
    match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Found::Directory,
            FileType::CharacterDevice if stat.st_rdev == 0 => Found::Whiteout,
            FileType::RegularFile => Found::File(stat.st_size as u64),
            FileType::Symlink => Found::Symlink,
            _ => Found::Other,
        }),
        Err(Errno::NOENT) => Ok(Found::Nothing),
        Err(e) => Err(e.into()),
    }
}

/// Opens one directory below `parent` for reading and for its metadata; never through a link.
pub(crate) fn open_for_metadata(parent: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    Ok(openat2(parent, path, OFlags::RDONLY | DIRECTORY, Mode::empty(), BENEATH)?)
}

/// Opens one file below `parent` for reading; never through a link.
pub(crate) fn open_file(parent: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(openat2(parent, path, flags, Mode::empty(), BENEATH)?)
}

/// Hides all that lower layers have in the directory `name`.
pub(crate) fn set_opaque(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let directory = open_for_metadata(parent, name)?;
    Ok(rustix::fs::fsetxattr(directory, OPAQUE_XATTR, b"y", rustix::fs::XattrFlags::empty())?)
}

/// What overlayfs reads as "nothing of the layers below shows in here".
pub(crate) const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree() -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("root")).unwrap();
        let root = std::fs::File::open(dir.path().join("root")).unwrap();
        (dir, Tree::new(root.into()))
    }

    fn resolved(tree: &mut Tree, path: &str) -> Option<String> {
        let directory = tree.directory(path.as_bytes(), Missing::Leave, &mut Vec::new()).unwrap()?;
        Some(String::from_utf8(directory.path).unwrap())
    }

    #[test]
    fn links_are_followed_inside_the_root_and_never_out_of_it() {
        let (dir, mut tree) = tree();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("usr/lib/x")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        for (link, target) in [
            ("lib", "usr/lib"),
            ("abs", "/usr/lib"),
            ("up", "../../outside"),
            ("far", "/../../../usr"),
            ("usr/back", "../usr/lib"),
            ("loop", "loop"),
            ("dangling", "nowhere"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        assert_eq!(resolved(&mut tree, "lib/x").as_deref(), Some("usr/lib/x"));
        assert_eq!(resolved(&mut tree, "abs").as_deref(), Some("usr/lib"));
        assert_eq!(resolved(&mut tree, "far/lib").as_deref(), Some("usr/lib"));
        assert_eq!(resolved(&mut tree, "usr/back/x").as_deref(), Some("usr/lib/x"));
        assert_eq!(resolved(&mut tree, "up"), None, "outside is not there when seen from the root");
        assert_eq!(resolved(&mut tree, "dangling"), None);
        assert!(tree.directory(b"loop/a", Missing::Leave, &mut Vec::new()).is_err());
    }

    #[test]
    fn missing_parents_are_made_where_links_lead() {
        let (dir, mut tree) = tree();
        symlink("/a/b", dir.path().join("root/link")).unwrap();
        let mut made = Vec::new();
        let directory = tree.directory(b"link/c", Missing::Make, &mut made).unwrap().unwrap();
        assert_eq!(directory.path, b"a/b/c");
        let paths: Vec<_> = made.iter().map(|made| &made.path[..]).collect();
        assert_eq!(paths, [&b"a"[..], b"a/b", b"a/b/c"]);
        assert!(dir.path().join("root/a/b/c").is_dir());
    }

    #[test]
    fn a_replaced_directory_is_not_remembered() {
        let (dir, mut tree) = tree();
        std::fs::create_dir_all(dir.path().join("root/a/b")).unwrap();
        assert!(resolved(&mut tree, "a/b").is_some());
        std::fs::rename(dir.path().join("root/a"), dir.path().join("away")).unwrap();
        tree.forget(b"a");
        assert_eq!(resolved(&mut tree, "a/b"), None);
    }
}
