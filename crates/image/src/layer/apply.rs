//! One archive into one directory, in one pass.
//!
//! Entry by entry: the parent directory is found by descriptor, the entry is made in it with EXCL or its like, and its
//! owner, mode, attributes and times are set on the descriptor that was just made, in this order (chown takes the
//! set-user-id bit and capabilities away). Directories get theirs at the end, because everything that is made inside
//! changes their time and inherits from their mode and ACLs. Nothing is ever opened, changed or removed through a
//! name that was not just found to be what it must be.
//!
//! What differs from a plain extraction: whiteouts become overlayfs' own marks, and what a later entry replaces is
//! kept aside while the skeleton points at its content.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown,
    fsetxattr, ftruncate, futimens, linkat, mkdirat, mknodat, openat, renameat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use super::entry::{Entry, Kind, TarError, TarReader};
use super::name::{self, Meaning, PATH_BYTES_MAX, shown};
use super::skeleton::SkeletonWriter;
use super::tree::{self, Directory, Found, Made, Missing, Tree};
use super::{DISPLACED_DIR, LayerError, Limits, TREE_DIR};

/// Write-back of a file is started each time that this much of it was written, so that the sync at the commit finds
/// little left to do.
const WRITEBACK_BYTES: u64 = 8 << 20;
/// Write-back is not started for a file smaller than this: one request to the disk for each of 48,000 files of 6 kB took
/// a third of the whole pull's CPU time (1.3 s), and the sync at the commit, which puts neighbours into one request,
/// needs 0.5 s for all of them.
const WRITEBACK_FILE_BYTES_MIN: u64 = 64 << 10;
/// The unit in which a file system hands out space, for the sum that a layer is accounted with.
pub(crate) const SPACE_UNIT_BYTES: u64 = 4096;
/// How many replaced entries are kept aside. An honest archive has none or a few.
const DISPLACED_MAX: u64 = 100_000;
/// How many bytes of names are remembered until the end (directories, links to lower layers): a million directories
/// with names of a hundred bytes.
const NAMES_BYTES_MAX: usize = 100 << 20;
/// What a directory gets that the archive only implies.
const IMPLIED_MODE: u32 = 0o755;

/// A hard link to a name that this layer does not have: a lower layer must.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct LowerLink {
    pub path: Vec<u8>,
    pub target: Vec<u8>,
}

/// What an applied archive amounts to.
#[derive(Debug, Default)]
pub(crate) struct Written {
    /// Space on disk, counted in units of 4 KiB.
    pub bytes: u64,
    /// Files, directories, links and devices.
    pub inodes: u64,
    /// Directories that the archive implied and did not describe; parents first.
    pub implied: Vec<Vec<u8>>,
    /// Hard links that wait for the layers below; in the archive's order.
    pub lower_links: Vec<LowerLink>,
}

/// Applies the whole archive below `layer/fs` and writes its skeleton.
pub(crate) fn apply_archive<R: BufRead>(
    input: R,
    layer: BorrowedFd<'_>,
    skeleton: SkeletonWriter,
    limits: &Limits,
) -> Result<(Written, File), LayerError> {
    let root = tree::open_for_metadata(layer, TREE_DIR.as_bytes()).map_err(|e| disk("open", b"fs", e))?;
    let mut applier = Applier {
        tree: Tree::new(root),
        layer,
        skeleton,
        limits,
        directories: BTreeMap::from([(Vec::new(), None)]),
        displaced_dir: None,
        displaced: 0,
        entries: 0,
        content_bytes: 0,
        names_bytes: 0,
        written: Written { bytes: SPACE_UNIT_BYTES, inodes: 1, ..Written::default() },
    };
    let mut reader = TarReader::new(input);
    let mut last = Vec::new();
    loop {
        let at = |why: TarError, last: &[u8]| match why {
            TarError::Read(e) => LayerError::from_input(e),
            why => LayerError::Archive { after: shown(last), why: why.to_string() },
        };
        let Some(entry) = reader.next(&mut applier.skeleton).map_err(|e| at(e, &last))? else { break };
        applier.entry(&entry, &mut reader)?;
        last = entry.name;
    }
    drop(reader);
    applier.finish()
}

/// Owner, mode, times and attributes, as an entry states them.
struct Metadata {
    uid: u32,
    gid: u32,
    mode: u32,
    mtime: (i64, u32),
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Metadata {
    fn of(entry: &Entry) -> Self {
        let xattrs = entry.xattrs.iter().filter(|(name, _)| xattr_is_the_images(name)).cloned().collect();
        Self { uid: entry.uid, gid: entry.gid, mode: entry.mode, mtime: entry.mtime, xattrs }
    }
}

struct Applier<'a> {
    tree: Tree,
    layer: BorrowedFd<'a>,
    skeleton: SkeletonWriter,
    limits: &'a Limits,
    /// Every directory of the layer by canonical path; `None` for those that were only implied so far.
    directories: BTreeMap<Vec<u8>, Option<Metadata>>,
    displaced_dir: Option<OwnedFd>,
    displaced: u64,
    entries: u64,
    content_bytes: u64,
    names_bytes: usize,
    written: Written,
}

impl Applier<'_> {
    fn entry<R: BufRead>(&mut self, entry: &Entry, reader: &mut TarReader<R>) -> Result<(), LayerError> {
        let bad = |why: &dyn std::fmt::Display| LayerError::Entry { name: shown(&entry.name), why: why.to_string() };
        self.entries += 1;
        if self.entries > self.limits.entries_max {
            return Err(LayerError::TooMany { what: "entries", limit: self.limits.entries_max });
        }
        let path = name::clean(&entry.name).map_err(|why| bad(&why))?;
        let (parent, last) = name::split(&path);
        if last.is_empty() {
            return match entry.kind {
                Kind::Directory => self.set_directory(Vec::new(), entry),
                _ => Err(bad(&"the root of the layer can only be a directory")),
            };
        }
        if name::is_reserved(parent) {
            return Ok(());
        }
        match name::meaning(last).map_err(|why| bad(&why))? {
            // The payload of these, if any, goes to the skeleton as it is.
            Meaning::Reserved => Ok(()),
            Meaning::Opaque => {
                let directory = self.parent(parent, entry)?;
                self.opaque(&directory.path).map_err(|e| disk("make opaque", &directory.path, e))
            }
            Meaning::Whiteout(hidden) => {
                let directory = self.parent(parent, entry)?;
                self.whiteout(&directory, hidden)
            }
            Meaning::Plain => {
                let directory = self.parent(parent, entry)?;
                let place = Place { path: below(&directory.path, last), directory, name: last };
                if place.path.len() > PATH_BYTES_MAX {
                    return Err(bad(&"its path is longer than 4095 bytes where links lead"));
                }
                match entry.kind {
                    Kind::File => self.file(&place, entry, reader),
                    Kind::Directory => self.directory(&place, entry),
                    Kind::Symlink => self.symlink(&place, entry),
                    Kind::HardLink => self.hard_link(&place, entry),
                    Kind::Character if entry.device == (0, 0) => self.whiteout(&place.directory, last),
                    Kind::Character | Kind::Block | Kind::Fifo => self.node(&place, entry),
                }
            }
        }
    }

    /// The directory that an entry is made in, and with it all directories that the archive only implies.
    fn parent(&mut self, path: &[u8], entry: &Entry) -> Result<Directory, LayerError> {
        let mut made = Vec::new();
        let found = self
            .tree
            .directory(path, Missing::Make, &mut made)
            .map_err(|e| disk("find the parent of", &entry.name, e))?;
        for Made { path, .. } in made {
            self.remember_directory(path, None)?;
        }
        found.ok_or_else(|| disk("find the parent of", &entry.name, Errno::NOENT.into()))
    }

    fn file<R: BufRead>(
        &mut self,
        place: &Place<'_>,
        entry: &Entry,
        reader: &mut TarReader<R>,
    ) -> Result<(), LayerError> {
        let size = entry.sparse.as_ref().map_or(entry.size, |sparse| sparse.real_size);
        self.content_bytes = self.content_bytes.saturating_add(size);
        if self.content_bytes > self.limits.content_bytes_max {
            return Err(LayerError::TooMany { what: "bytes of content", limit: self.limits.content_bytes_max });
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.make(place, |directory, name| openat(directory, name, flags, Mode::RUSR | Mode::WUSR))?;
        let mut copy = Copy { file: &file, path: &place.path, at: 0, synced: 0 };
        match &entry.sparse {
            None => {
                reader.payload(entry.size, |piece| copy.write(piece))?;
                if entry.size > 0 {
                    self.skeleton.payload(&place.path, 0, entry.size).map_err(LayerError::Skeleton)?;
                }
            }
            Some(sparse) => {
                ftruncate(&file, sparse.real_size).map_err(|e| disk("size", &place.path, e.into()))?;
                for &(offset, length) in sparse.pieces.iter().filter(|(_, length)| *length > 0) {
                    copy.at = offset;
                    reader.payload(length, |piece| copy.write(piece))?;
                    self.skeleton.payload(&place.path, offset, length).map_err(LayerError::Skeleton)?;
                }
            }
        }
        let wrote = copy.at;
        set_metadata(file.as_fd(), &Metadata::of(entry)).map_err(|(step, e)| disk(step, &place.path, e))?;
        if wrote >= WRITEBACK_FILE_BYTES_MIN {
            start_writeback(&file).map_err(|e| disk("start writing back", &place.path, e))?;
        }
        self.account(entry.size);
        Ok(())
    }

    fn directory(&mut self, place: &Place<'_>, entry: &Entry) -> Result<(), LayerError> {
        let known = self.directories.contains_key(&place.path);
        if !known {
            let hides_lower = place.found()? == Found::Whiteout;
            self.make(place, |directory, name| mkdirat(directory, name, Mode::RWXU))?;
            if hides_lower {
                self.opaque(&place.path).map_err(|e| disk("make opaque", &place.path, e))?;
            }
        }
        self.set_directory(place.path.clone(), entry)
    }

    fn symlink(&mut self, place: &Place<'_>, entry: &Entry) -> Result<(), LayerError> {
        if entry.link.is_empty() || entry.link.len() > PATH_BYTES_MAX || entry.link.contains(&0) {
            return Err(LayerError::Entry { name: shown(&entry.name), why: "its target is no path".to_owned() });
        }
        self.make(place, |directory, name| symlinkat(&entry.link[..], directory, name))?;
        place.set_metadata_by_name(entry, false)?;
        self.account(0);
        Ok(())
    }

    fn node(&mut self, place: &Place<'_>, entry: &Entry) -> Result<(), LayerError> {
        let kind = match entry.kind {
            Kind::Character => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        self.make(place, |directory, name| mknodat(directory, name, kind, Mode::empty(), device))?;
        place.set_metadata_by_name(entry, true)?;
        self.account(0);
        Ok(())
    }

    fn hard_link(&mut self, place: &Place<'_>, entry: &Entry) -> Result<(), LayerError> {
        let bad = |why: String| LayerError::Entry { name: shown(&entry.name), why };
        let target = name::clean(&entry.link).map_err(|why| bad(format!("its target: {why}")))?;
        let (target_parent, target_name) = name::split(&target);
        if target_name.is_empty() {
            return Err(bad("it links to the root of the layer".to_owned()));
        }
        let mut made = Vec::new();
        let directory = self.tree.directory(target_parent, Missing::Leave, &mut made);
        let directory = directory.map_err(|e| disk("find the target of the link", &entry.name, e))?;
        let found = match &directory {
            Some(directory) => {
                tree::found(directory.fd.as_fd(), target_name).map_err(|e| disk("look at", &target, e))?
            }
            None => Found::Nothing,
        };
        match (found, directory) {
            (Found::Directory, _) => Err(bad(format!("it links to the directory {}", shown(&target)))),
            (Found::Whiteout, _) => Err(bad(format!("it links to {}, which this layer deletes", shown(&target)))),
            (Found::Nothing, _) | (_, None) => {
                self.displace(place)?;
                self.count_name(place.path.len() + target.len())?;
                self.written.lower_links.push(LowerLink { path: place.path.clone(), target });
                Ok(())
            }
            (Found::File(_) | Found::Symlink | Found::Other, Some(directory)) => {
                if below(&directory.path, target_name) == place.path {
                    return Ok(());
                }
                let source = directory.fd.clone();
                self.make(place, |parent, name| linkat(&source, target_name, parent, name, AtFlags::empty()))
            }
        }
    }

    /// `hidden` of lower layers is gone. What this layer itself has there stays, whichever of the two came first.
    fn whiteout(&mut self, directory: &Directory, hidden: &[u8]) -> Result<(), LayerError> {
        let path = below(&directory.path, hidden);
        match tree::found(directory.fd.as_fd(), hidden).map_err(|e| disk("look at", &path, e))? {
            Found::Directory => self.opaque(&path).map_err(|e| disk("make opaque", &path, e)),
            Found::Nothing => {
                mknodat(&*directory.fd, hidden, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(|e| disk("write the whiteout of", &path, e.into()))?;
                self.account(0);
                Ok(())
            }
            Found::Whiteout | Found::File(_) | Found::Symlink | Found::Other => Ok(()),
        }
    }

    fn opaque(&mut self, path: &[u8]) -> std::io::Result<()> {
        // The root of a layer has nothing above it to be opaque against but lower roots, and there it works the same.
        tree::set_opaque(self.tree.root(), if path.is_empty() { b"." } else { path })
    }

    /// Makes an entry, after moving away what is there already.
    fn make<T>(
        &mut self,
        place: &Place<'_>,
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<T, Errno>,
    ) -> Result<T, LayerError> {
        let step = |e: Errno| disk("make", &place.path, e.into());
        match make(place.directory.fd.as_fd(), place.name) {
            Err(Errno::EXIST) => {
                self.displace(place)?;
                make(place.directory.fd.as_fd(), place.name).map_err(step)
            }
            made => made.map_err(step),
        }
    }

    /// A later entry takes this name. What has content that the skeleton may point at is moved aside.
    fn displace(&mut self, place: &Place<'_>) -> Result<(), LayerError> {
        match place.found()? {
            Found::Nothing => return Ok(()),
            Found::Directory => {}
            Found::File(size) if size > 0 => {}
            Found::File(_) | Found::Symlink | Found::Whiteout | Found::Other => {
                return unlinkat(&place.directory.fd, place.name, AtFlags::empty())
                    .map_err(|e| disk("replace", &place.path, e.into()));
            }
        }
        if self.displaced == DISPLACED_MAX {
            return Err(LayerError::TooMany { what: "replaced entries", limit: DISPLACED_MAX });
        }
        let number = self.displaced;
        self.displaced += 1;
        let aside = self.displaced_dir().map_err(|e| disk("make", DISPLACED_DIR.as_bytes(), e))?;
        renameat(&place.directory.fd, place.name, aside, number.to_string())
            .map_err(|e| disk("move aside", &place.path, e.into()))?;
        self.skeleton.displaced(&place.path, number).map_err(LayerError::Skeleton)?;
        self.tree.forget(&place.path);
        self.directories.remove(&place.path);
        let first = below(&place.path, b"");
        let mut after = first.clone();
        // '0' is the byte after '/': the range holds everything below the path and nothing else.
        *after.last_mut().unwrap_or(&mut 0) = b'0';
        let gone: Vec<_> = self.directories.range(first..after).map(|(path, _)| path.clone()).collect();
        for path in gone {
            self.directories.remove(&path);
        }
        Ok(())
    }

    fn displaced_dir(&mut self) -> std::io::Result<&OwnedFd> {
        if self.displaced_dir.is_none() {
            mkdirat(self.layer, DISPLACED_DIR, Mode::RWXU)?;
            self.displaced_dir = Some(tree::open_for_metadata(self.layer, DISPLACED_DIR.as_bytes())?);
        }
        self.displaced_dir.as_ref().ok_or_else(|| Errno::NOENT.into())
    }

    fn set_directory(&mut self, path: Vec<u8>, entry: &Entry) -> Result<(), LayerError> {
        self.remember_directory(path, Some(Metadata::of(entry)))
    }

    fn remember_directory(&mut self, path: Vec<u8>, metadata: Option<Metadata>) -> Result<(), LayerError> {
        let xattrs: usize = metadata.iter().flat_map(|m| &m.xattrs).map(|(name, value)| name.len() + value.len()).sum();
        self.count_name(path.len() + xattrs)?;
        if self.directories.insert(path, metadata).is_none() {
            self.written.bytes += SPACE_UNIT_BYTES;
            self.written.inodes += 1;
        }
        Ok(())
    }

    fn count_name(&mut self, bytes: usize) -> Result<(), LayerError> {
        self.names_bytes += bytes;
        if self.names_bytes > NAMES_BYTES_MAX {
            return Err(LayerError::TooMany { what: "bytes of directory names", limit: NAMES_BYTES_MAX as u64 });
        }
        Ok(())
    }

    fn account(&mut self, content_bytes: u64) {
        self.written.inodes += 1;
        self.written.bytes += content_bytes.next_multiple_of(SPACE_UNIT_BYTES);
    }

    fn finish(mut self) -> Result<(Written, File), LayerError> {
        for (path, metadata) in &self.directories {
            let implied = Metadata { uid: 0, gid: 0, mode: IMPLIED_MODE, mtime: (0, 0), xattrs: Vec::new() };
            let directory = tree::open_for_metadata(self.tree.root(), path).map_err(|e| disk("open", path, e))?;
            set_metadata(directory.as_fd(), metadata.as_ref().unwrap_or(&implied))
                .map_err(|(step, e)| disk(step, path, e))?;
            if metadata.is_none() && !path.is_empty() {
                self.written.implied.push(path.clone());
            }
        }
        let skeleton = self.skeleton.finish().map_err(LayerError::Skeleton)?;
        Ok((self.written, skeleton))
    }
}

/// Where an entry goes: a directory and a name in it.
struct Place<'a> {
    directory: Directory,
    name: &'a [u8],
    /// Canonical.
    path: Vec<u8>,
}

impl Place<'_> {
    fn found(&self) -> Result<Found, LayerError> {
        tree::found(self.directory.fd.as_fd(), self.name).map_err(|e| disk("look at", &self.path, e))
    }

    /// For what cannot be opened without harm: links, devices, fifos. The name was made a moment ago, in a directory
    /// where nobody else writes, so it is still what it was; links are not followed.
    fn set_metadata_by_name(&self, entry: &Entry, has_mode: bool) -> Result<(), LayerError> {
        let (directory, name) = (&self.directory.fd, self.name);
        let step = |step, e: Errno| disk(step, &self.path, e.into());
        let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
        chownat(directory, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(|e| step("chown", e))?;
        if has_mode {
            chmodat(directory, name, Mode::from_raw_mode(entry.mode), AtFlags::empty())
                .map_err(|e| step("chmod", e))?;
        }
        utimensat(directory, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW).map_err(|e| step("set times of", e))
    }
}

/// Writes the pieces of one file.
struct Copy<'a> {
    file: &'a OwnedFd,
    path: &'a [u8],
    at: u64,
    synced: u64,
}

impl Copy<'_> {
    fn write(&mut self, mut piece: &[u8]) -> Result<(), LayerError> {
        while !piece.is_empty() {
            let wrote =
                rustix::io::pwrite(self.file, piece, self.at).map_err(|e| disk("write", self.path, e.into()))?;
            if wrote == 0 {
                return Err(disk("write", self.path, std::io::ErrorKind::WriteZero.into()));
            }
            self.at += wrote as u64;
            self.synced += wrote as u64;
            piece = &piece[wrote..];
        }
        if self.synced >= WRITEBACK_BYTES {
            self.synced = 0;
            start_writeback(self.file).map_err(|e| disk("start writing back", self.path, e))?;
        }
        Ok(())
    }
}

/// The attributes that an image may set. `trusted.overlay.*` would steer overlayfs itself, labels of a security module
/// are the host's to give, and all others mean nothing to a container.
pub(crate) fn xattr_is_the_images(name: &[u8]) -> bool {
    name.starts_with(b"user.")
        || matches!(name, b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default")
}

/// Owner, mode, attributes, times, on an open file or directory; the step that failed with its error.
fn set_metadata(fd: BorrowedFd<'_>, metadata: &Metadata) -> Result<(), (&'static str, std::io::Error)> {
    let step = |step| move |e: Errno| (step, std::io::Error::from(e));
    // What was just made belongs to root: its directory has no set-group-id bit before the end.
    if (metadata.uid, metadata.gid) != (0, 0) {
        fchown(fd, Some(Uid::from_raw(metadata.uid)), Some(Gid::from_raw(metadata.gid))).map_err(step("chown"))?;
    }
    fchmod(fd, Mode::from_raw_mode(metadata.mode)).map_err(step("chmod"))?;
    for (name, value) in &metadata.xattrs {
        match fsetxattr(fd, &name[..], value, XattrFlags::empty()) {
            // A file system without them (or without ACLs) cannot hold the image any better.
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(e) => return Err(("set an extended attribute of", e.into())),
        }
    }
    futimens(fd, &times(metadata.mtime)).map_err(step("set times of"))
}

fn times(mtime: (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn start_writeback(file: &OwnedFd) -> std::io::Result<()> {
    knarr_sys::file::start_writeback(file.as_fd())
}

fn below(path: &[u8], name: &[u8]) -> Vec<u8> {
    let mut joined = Vec::with_capacity(path.len() + 1 + name.len());
    joined.extend_from_slice(path);
    name::push(&mut joined, name);
    joined
}

fn disk(step: &'static str, path: &[u8], source: std::io::Error) -> LayerError {
    LayerError::Disk { step, path: shown(path), source }
}
