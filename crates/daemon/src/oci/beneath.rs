//! Reads small files of an image without ever leaving its root file system.
//!
//! The content is hostile: symbolic links may point anywhere, a "file" may be a FIFO that never answers, a device, or
//! as large as the disk. Whether what was read makes sense is the caller's business.

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// The file at `path` below `rootfs`, all of it; `None` when there is no such file.
///
/// Symbolic links are resolved as the container would see them, absolute ones included. What is no regular file, or
/// has more than `limit` bytes, is an error; it is not read, and a device or FIFO is not even opened.
pub fn read_beneath(rootfs: BorrowedFd<'_>, path: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = match openat2(rootfs, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
        Ok(found) => found,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let stat = fstat(&found)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{path} in the image is no regular file")));
    }
    // Opened anew through the descriptor: what was looked at is what is read, whoever renames meanwhile.
    let again = format!("/proc/self/fd/{}", found.as_raw_fd());
    let file = openat(CWD, again, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = Vec::new();
    // One byte more than allowed tells "just full" from "too large"; the size in `stat` may be a lie of a FUSE mount.
    File::from(file).take(limit.saturating_add(1)).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        let why = format!("{path} in the image has more than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(Some(content))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{mkfifoat, symlinkat};
    use std::os::fd::AsFd as _;

    fn root() -> (tempfile::TempDir, File) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/passwd"), b"root:x:0:0\n").unwrap();
        let fd = File::open(dir.path()).unwrap();
        (dir, fd)
    }

    #[test]
    fn a_file_is_read_whole_and_a_missing_one_is_none() {
        let (_dir, root) = root();
        assert_eq!(read_beneath(root.as_fd(), "/etc/passwd", 100).unwrap().unwrap(), b"root:x:0:0\n");
        assert_eq!(read_beneath(root.as_fd(), "etc/passwd", 11).unwrap().unwrap().len(), 11);
        assert_eq!(read_beneath(root.as_fd(), "/etc/group", 100).unwrap(), None);
        assert_eq!(read_beneath(root.as_fd(), "/etc/passwd/x", 100).unwrap(), None);
    }

    #[test]
    fn links_stay_within_the_root() {
        let (dir, root) = root();
        std::fs::write(dir.path().join("secret"), b"inside").unwrap();
        for target in ["/secret", "../secret", "../../../../../../secret", "/etc/../../secret"] {
            let _ = std::fs::remove_file(dir.path().join("etc/link"));
            symlinkat(target, &root, "etc/link").unwrap();
            assert_eq!(read_beneath(root.as_fd(), "/etc/link", 100).unwrap().unwrap(), b"inside", "{target}");
        }
        symlinkat("/etc/shadow", &root, "etc/outside").unwrap();
        assert_eq!(read_beneath(root.as_fd(), "/etc/outside", 100).unwrap(), None, "the host's /etc/shadow");
        symlinkat("loop", &root, "etc/loop").unwrap();
        assert!(read_beneath(root.as_fd(), "/etc/loop", 100).is_err());
    }

    #[test]
    fn what_is_no_regular_file_is_refused_at_once() {
        let (_dir, root) = root();
        mkfifoat(&root, "etc/group", Mode::RUSR | Mode::WUSR).unwrap();
        assert!(read_beneath(root.as_fd(), "/etc/group", 100).is_err(), "a FIFO without a writer would block");
        assert!(read_beneath(root.as_fd(), "/etc", 100).is_err(), "a directory");
    }

    #[test]
    fn a_sparse_giant_is_refused_without_being_read() {
        let (dir, root) = root();
        File::create(dir.path().join("etc/group")).unwrap().set_len(10 << 30).unwrap();
        let error = read_beneath(root.as_fd(), "/etc/group", 4096).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
