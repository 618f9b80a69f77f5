//! What a layer takes from the layers below it.
//!
//! Two things in an archive have no meaning without them: a directory that the archive only implies (`a/b` without
//! `a`), which keeps the owner, mode and times that it has below; and a hard link to a file that only a lower layer
//! has, which is copied up with both of its names, as overlayfs itself would. Both are settled here, once the layers
//! below are there, and such a layer is stored under its chain: on other layers it is another one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown,
    fgetxattr, flistxattr, fsetxattr, fstat, futimens, linkat, mkdirat, openat, readlinkat, statat, symlinkat,
};
use rustix::io::Errno;

use super::apply::{LowerLink, xattr_is_the_images};
use super::tree::{self, Found, OPAQUE_XATTR};
use super::{LayerError, Pending, TREE_DIR, name, shown};

/// How much of a file is copied up at once.
const COPY_BYTES: usize = 1 << 20;
/// The largest extended attribute that the kernel takes.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// What the layer became larger by.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Grown {
    pub bytes: u64,
    pub inodes: u64,
}

/// Settles `pending` in the layer at `layer`, on top of `lowers` (directories of layers, highest first).
pub(crate) fn complete(layer: &Path, lowers: &[PathBuf], pending: &Pending) -> Result<Grown, LayerError> {
    let root = open_root(layer).map_err(|e| disk("open", b"", e))?;
    let opened: io::Result<Vec<OwnedFd>> = lowers.iter().map(|lower| open_root(lower)).collect();
    let lowers = opened.map_err(|e| disk("open a layer below", b"", e))?;
    let mut stack = Stack { root, lowers, grown: Grown::default() };
    for path in &pending.implied {
        stack.take_metadata(path).map_err(|e| disk("take the metadata of", path, e))?;
    }
    for link in &pending.links {
        stack.link(link)?;
    }
    Ok(stack.grown)
}

struct Stack {
    root: OwnedFd,
    lowers: Vec<OwnedFd>,
    grown: Grown,
}

impl Stack {
    /// The layer below, and the name in it, that shows at `path` when only the layers below are looked through, as
    /// overlayfs does; what this layer itself hides does not show.
    fn below(&self, path: &[u8]) -> io::Result<Option<BorrowedFd<'_>>> {
        let mut layers: Vec<BorrowedFd<'_>> =
            std::iter::once(&self.root).chain(&self.lowers).map(|fd| fd.as_fd()).collect();
        let mut prefix = Vec::new();
        let components: Vec<&[u8]> = path.split(|&b| b == b'/').collect();
        for (at, component) in components.iter().enumerate() {
            let is_last = at + 1 == components.len();
            name::push(&mut prefix, component);
            let mut showing = Vec::new();
            for layer in layers {
                let is_own = same(layer, self.root.as_fd());
                match stat_beneath(layer, &prefix)? {
                    None => {}
                    Some(stat) => match FileType::from_raw_mode(stat.st_mode) {
                        FileType::Directory => {
                            showing.push(layer);
                            if is_opaque(layer, &prefix)? {
                                break;
                            }
                        }
                        FileType::CharacterDevice if stat.st_rdev == 0 => break,
                        _ if is_own => break,
                        _ => {
                            // A file hides directories below it, and is hidden by directories above it.
                            if showing.iter().all(|&known| same(known, self.root.as_fd())) && is_last {
                                showing.push(layer);
                            }
                            break;
                        }
                    },
                }
            }
            layers = showing;
        }
        Ok(layers.into_iter().find(|&layer| !same(layer, self.root.as_fd())))
    }

    fn take_metadata(&self, path: &[u8]) -> io::Result<()> {
        let Some(lower) = self.below(path)? else { return Ok(()) };
        // Where a lower layer has something else than a directory, this layer's directory takes its place.
        let Ok(source) = tree::open_for_metadata(lower, path) else { return Ok(()) };
        let target = tree::open_for_metadata(self.root.as_fd(), path)?;
        copy_metadata(source.as_fd(), target.as_fd())
    }

    fn link(&mut self, link: &LowerLink) -> Result<(), LayerError> {
        let step = |step| move |e: io::Error| disk(step, &link.path, e);
        let missing = || LayerError::Entry {
            name: shown(&link.path),
            why: format!("it links to {}, which no layer has", shown(&link.target)),
        };
        let (parent, last) = name::split(&link.path);
        // A later entry of the archive may have taken the name, or its parent.
        let Ok(parent) = open_parent(self.root.as_fd(), parent) else { return Ok(()) };
        if tree::found(parent.as_fd(), last).map_err(step("look at"))? != Found::Nothing {
            return Ok(());
        }
        if !matches!(stat_beneath(self.root.as_fd(), &link.target), Ok(Some(_))) {
            self.copy_up(&link.target).map_err(step("copy up the target of"))?.ok_or_else(missing)?;
        }
        let (target_parent, target_name) = name::split(&link.target);
        let target_parent = open_parent(self.root.as_fd(), target_parent).map_err(step("open the target of"))?;
        match tree::found(target_parent.as_fd(), target_name).map_err(step("look at the target of"))? {
            Found::File(_) | Found::Symlink | Found::Other => {}
            Found::Nothing | Found::Whiteout | Found::Directory => return Err(missing()),
        }
        linkat(&target_parent, target_name, &parent, last, AtFlags::empty()).map_err(|e| step("link")(e.into()))?;
        self.grown.inodes += 1;
        Ok(())
    }

    /// Copies a file or symbolic link of a lower layer into this one, with the directories on the way.
    fn copy_up(&mut self, path: &[u8]) -> io::Result<Option<()>> {
        let Some(lower) = self.below(path)? else { return Ok(None) };
        let lower = lower.try_clone_to_owned()?;
        let (parent_path, last) = name::split(path);
        let mut prefix = Vec::new();
        for component in parent_path.split(|&b| b == b'/').filter(|component| !component.is_empty()) {
            let here = open_parent(self.root.as_fd(), &prefix)?;
            name::push(&mut prefix, component);
            match mkdirat(&here, component, Mode::RWXU) {
                Ok(()) => {
                    self.take_metadata(&prefix)?;
                    self.grown.bytes += 4096;
                    self.grown.inodes += 1;
                }
                Err(Errno::EXIST) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let parent = open_parent(self.root.as_fd(), parent_path)?;
        let source_parent = open_parent(lower.as_fd(), parent_path)?;
        match tree::found(source_parent.as_fd(), last)? {
            Found::File(size) => {
                copy_file(source_parent.as_fd(), parent.as_fd(), last)?;
                self.grown.bytes += size.next_multiple_of(4096);
            }
            Found::Symlink => copy_symlink(source_parent.as_fd(), parent.as_fd(), last)?,
            Found::Nothing | Found::Whiteout | Found::Directory | Found::Other => return Ok(None),
        }
        self.grown.inodes += 1;
        Ok(Some(()))
    }
}

fn open_root(layer: &Path) -> io::Result<OwnedFd> {
    let layer = super::open_layer(layer)?;
    tree::open_for_metadata(layer.as_fd(), TREE_DIR.as_bytes())
}

fn open_parent(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    tree::open_for_metadata(root, path)
}

fn same(a: BorrowedFd<'_>, b: BorrowedFd<'_>) -> bool {
    use std::os::fd::AsRawFd;
    a.as_raw_fd() == b.as_raw_fd()
}

/// What is at `path` itself, reached without following any link; `None` where nothing is or the way is no directory.
fn stat_beneath(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<Option<Stat>> {
    let (parent, last) = name::split(path);
    let parent = match open_parent(root, parent) {
        Ok(parent) => parent,
        Err(e) => {
            return match Errno::from_io_error(&e) {
                Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
                _ => Err(e),
            };
        }
    };
    match statat(&parent, last, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn is_opaque(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<bool> {
    let directory = tree::open_for_metadata(root, path)?;
    let mut value = [0u8; 1];
    Ok(fgetxattr(&directory, OPAQUE_XATTR, &mut value[..]).is_ok_and(|length| length == 1 && value[0] == b'y'))
}

fn copy_file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let source = tree::open_file(from, name)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = openat(to, name, flags, Mode::RUSR | Mode::WUSR)?;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let got = rustix::io::read(&source, &mut buffer[..])?;
        if got == 0 {
            break;
        }
        let mut piece = &buffer[..got];
        while !piece.is_empty() {
            let wrote = rustix::io::write(&target, piece)?;
            piece = &piece[wrote..];
        }
    }
    copy_metadata(source.as_fd(), target.as_fd())?;
    knarr_sys::file::start_writeback(target.as_fd())
}

fn copy_symlink(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    Ok(chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn copy_metadata(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let stat = fstat(from)?;
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let mut names = vec![0; XATTR_BYTES_MAX];
    let length = match flistxattr(from, &mut names[..]) {
        Err(Errno::NOTSUP) => 0,
        length => length?,
    };
    for name in names[..length].split(|&b| b == 0).filter(|name| xattr_is_the_images(name)) {
        let mut value = vec![0; XATTR_BYTES_MAX];
        let length = fgetxattr(from, name, &mut value[..])?;
        fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    let time = Timespec { tv_sec: stat.st_mtime as _, tv_nsec: stat.st_mtime_nsec as _ };
    Ok(futimens(to, &Timestamps { last_access: time, last_modification: time })?)
}

fn disk(step: &'static str, path: &[u8], source: io::Error) -> LayerError {
    LayerError::Disk { step, path: shown(path), source }
}
