//! Opening paths so that they cannot lead elsewhere: beneath a directory, or with that directory as the root.
//!
//! Nothing here allocates: it runs between clone and exec too.

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::{Errno, Result};
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};

/// How often a look-up is repeated when the kernel saw a rename or a mount during it (EAGAIN). Someone who renames in
/// a loop can make it fail, never make it lead outside.
const RACES_MAX: usize = 128;

/// Opens `path` with `root` as the root directory: absolute links and `..` stay inside, magic links are refused.
pub fn in_root(root: impl AsFd, path: &CStr, flags: OFlags) -> Result<OwnedFd> {
    resolve(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// As [`in_root`], and refuses every symbolic link (ELOOP).
pub fn in_root_without_links(root: impl AsFd, path: &CStr, flags: OFlags) -> Result<OwnedFd> {
    resolve(root, path, flags, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS)
}

/// Opens a relative `path` beneath `directory`, without crossing a mount and without any symbolic link.
pub fn beneath(directory: impl AsFd, path: &CStr, flags: OFlags) -> Result<OwnedFd> {
    resolve(directory, path, flags, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV)
}

/// Opens a relative `path` beneath `directory`, following symbolic links as long as they stay beneath it: EXDEV for one
/// that does not, be it absolute or by `..`.
pub fn beneath_with_links(directory: impl AsFd, path: &CStr, flags: OFlags) -> Result<OwnedFd> {
    resolve(directory, path, flags, ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS)
}

fn resolve(directory: impl AsFd, path: &CStr, flags: OFlags, how: ResolveFlags) -> Result<OwnedFd> {
    for _ in 1..RACES_MAX {
        match openat2(directory.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_leads_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("etc")).unwrap();
        std::fs::write(dir.path().join("etc/hostname"), "inside").unwrap();
        symlink("/etc", dir.path().join("absolute")).unwrap();
        symlink("../../../../etc", dir.path().join("relative")).unwrap();
        symlink("loop", dir.path().join("loop")).unwrap();
        symlink("/proc/self/root", dir.path().join("magic")).unwrap();
        let root = std::fs::File::open(dir.path()).unwrap();
        for path in
            [c"etc/hostname", c"absolute/hostname", c"relative/hostname", c"../../etc/hostname", c"/etc/hostname"]
        {
            let fd = in_root(&root, path, OFlags::RDONLY).unwrap();
            let mut text = [0; 16];
            let n = rustix::io::read(&fd, &mut text).unwrap();
            assert_eq!(&text[..n], b"inside", "{path:?}");
        }
        assert_eq!(in_root(&root, c"loop/x", OFlags::PATH).unwrap_err(), Errno::LOOP);
        assert_eq!(in_root(&root, c"magic", OFlags::PATH).unwrap_err(), Errno::NOENT);
        assert_eq!(in_root_without_links(&root, c"absolute", OFlags::PATH).unwrap_err(), Errno::LOOP);
        assert_eq!(beneath(&root, c"absolute/hostname", OFlags::PATH).unwrap_err(), Errno::LOOP);
        assert_eq!(beneath(&root, c"../x", OFlags::PATH).unwrap_err(), Errno::XDEV);
    }

    #[test]
    fn a_magic_link_is_refused() {
        let proc = std::fs::File::open("/proc").unwrap();
        assert_eq!(in_root(&proc, c"self/root", OFlags::PATH).unwrap_err(), Errno::LOOP);
        assert_eq!(in_root(&proc, c"self/fd/0", OFlags::PATH).unwrap_err(), Errno::LOOP);
    }
}
