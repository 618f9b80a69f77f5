//! Making what was written survive a power cut, before anything says that it is there.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, fsync, openat, statat, syncfs};

/// With more than this dirty on the whole machine, `syncfs` would wait for other people's data (117 ms beside a writer
/// of 200 MB/s, and without bound on a slow disk), and syncing our own files one by one is the shorter wait. What the
/// applier wrote itself is mostly on its way already and no longer counted as dirty.
const FOREIGN_DIRTY_BYTES_MAX: u64 = 1 << 30;

/// Returns when everything below `directories` is on disk. `store` must have been opened before the first byte was
/// written: the kernel reports to it only the write errors since then.
pub(crate) fn make_durable(store: BorrowedFd<'_>, directories: &[OwnedFd]) -> io::Result<()> {
    if dirty_bytes().is_some_and(|dirty| dirty > FOREIGN_DIRTY_BYTES_MAX) {
        directories.iter().try_for_each(sync_tree)
    } else {
        Ok(syncfs(store)?)
    }
}

/// The machine's dirty pages, in bytes.
fn dirty_bytes() -> Option<u64> {
    let mut text = String::new();
    File::open("/proc/meminfo").ok()?.take(16 << 10).read_to_string(&mut text).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Dirty:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// Syncs every file and directory of a tree, without recursion: an image decides how deep it is.
fn sync_tree(root: &OwnedFd) -> io::Result<()> {
    let mut waiting: Vec<Vec<u8>> = vec![Vec::new()];
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    while let Some(path) = waiting.pop() {
        let name: &[u8] = if path.is_empty() { b"." } else { &path };
        let directory = openat(root, name, flags | OFlags::DIRECTORY, Mode::empty())?;
        for entry in rustix::fs::Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    let mut below = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend_from_slice(name.to_bytes());
                    waiting.push(below);
                }
                FileType::RegularFile => fsync(openat(&directory, name, flags, Mode::empty())?)?,
                _ => {}
            }
        }
        fsync(directory.as_fd())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_synced_whatever_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("a/b")).unwrap();
        std::fs::write(dir.path().join("a/b/c"), "x").unwrap();
        std::os::unix::fs::symlink("/nowhere", dir.path().join("a/l")).unwrap();
        std::os::unix::fs::symlink("b", dir.path().join("a/d")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, dir.path().join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let fd: OwnedFd = File::open(dir.path()).unwrap().into();
        sync_tree(&fd).unwrap();
        make_durable(fd.as_fd(), &[]).unwrap();
        assert!(dirty_bytes().is_some());
    }
}
