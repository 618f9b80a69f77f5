//! Deleting what is nobody's any more, on a thread of its own.
//!
//! Whoever gives something up renames it into the trash, which takes microseconds, and wakes the thread. What is in
//! the trash is known from the directory alone, so a crash loses nothing: the next start goes on. A tree is deleted
//! flat: directories inside it are first moved up into the trash, so that neither stack nor descriptors depend on how
//! deep an image made it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

/// After an error (a disk that is full or gone) the thread waits this long before it tries again.
const RETRY: Duration = Duration::from_secs(60);

/// Wakes the thread and ends it.
#[derive(Debug, Default)]
pub(crate) struct Broom {
    wanted: Mutex<bool>,
    changed: Condvar,
    stop: AtomicBool,
    /// Makes names in the trash unique within this process; the process' own random prefix does the rest.
    moved: AtomicU64,
}

impl Broom {
    /// There is something to do.
    pub fn wake(&self) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    /// The thread is to end after what it is doing.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Whether the thread is to end.
    pub fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits until there is something to do, or until an earlier failure is worth another attempt.
    pub fn wait(&self, failed: bool) {
        let mut wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner);
        while !*wanted {
            if failed {
                let (guard, timeout) = self.changed.wait_timeout(wanted, RETRY).unwrap_or_else(PoisonError::into_inner);
                wanted = guard;
                if timeout.timed_out() {
                    break;
                }
            } else {
                wanted = self.changed.wait(wanted).unwrap_or_else(PoisonError::into_inner);
            }
        }
        *wanted = false;
    }

    /// A name that nothing in the trash has.
    pub fn name(&self, prefix: &str) -> String {
        format!("{prefix}-{}", self.moved.fetch_add(1, Ordering::Relaxed))
    }

    /// Deletes everything in `trash`, or as much as there is time for.
    pub fn empty(&self, trash: BorrowedFd<'_>, prefix: &str) -> io::Result<()> {
        loop {
            let names = entries(trash)?;
            if names.is_empty() {
                return Ok(());
            }
            for (name, is_directory) in names {
                if self.is_stopped() {
                    return Ok(());
                }
                if is_directory {
                    self.delete_directory(trash, &name, prefix)?;
                } else {
                    unlinkat(trash, &name[..], AtFlags::empty())?;
                }
            }
        }
    }

    fn delete_directory(&self, trash: BorrowedFd<'_>, name: &[u8], prefix: &str) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(trash, name, flags, Mode::empty())?;
        loop {
            let children = entries(directory.as_fd())?;
            if children.is_empty() {
                return Ok(unlinkat(trash, name, AtFlags::REMOVEDIR)?);
            }
            for (child, is_directory) in children {
                if self.is_stopped() {
                    return Ok(());
                }
                if !is_directory {
                    unlinkat(&directory, &child[..], AtFlags::empty())?;
                    continue;
                }
                match unlinkat(&directory, &child[..], AtFlags::REMOVEDIR) {
                    Ok(()) => {}
                    Err(Errno::NOTEMPTY | Errno::EXIST) => renameat(&directory, &child[..], trash, self.name(prefix))?,
                    Err(e) => return Err(e.into()),
                }
            }
        }
    }
}

/// How many names are taken at once: a directory with millions of entries is deleted piece by piece.
const NAMES_MAX: usize = 4096;

/// Some of a directory's names, and whether each is a directory itself.
fn entries(directory: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, bool)>> {
    // Read through a description of its own: the position in the one that is passed must not matter.
    let fresh = openat(directory, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::new(fresh)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let is_directory = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            kind => kind == FileType::Directory,
        };
        names.push((name.to_vec(), is_directory));
        if names.len() == NAMES_MAX {
            break;
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    #[test]
    fn trees_are_deleted_however_deep_and_never_through_links() {
        let dir = tempfile::tempdir().unwrap();
        let trash = dir.path().join("trash");
        fs::create_dir(&trash).unwrap();
        fs::write(dir.path().join("kept"), "").unwrap();
        // Deeper than a process may have descriptors.
        let mut fd: std::os::fd::OwnedFd = File::open(&trash).unwrap().into();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&fd, "d", Mode::RWXU).unwrap();
            rustix::fs::symlinkat("/nowhere", &fd, "l").unwrap();
            fd = openat(&fd, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        std::os::unix::fs::symlink(dir.path(), trash.join("link")).unwrap();
        fs::write(trash.join("file"), "").unwrap();
        let broom = Broom::default();
        broom.empty(File::open(&trash).unwrap().as_fd(), "test").unwrap();
        assert_eq!(fs::read_dir(&trash).unwrap().count(), 0);
        assert!(dir.path().join("kept").exists());
    }

    #[test]
    fn a_stopped_broom_leaves_the_rest_for_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let broom = Broom::default();
        broom.stop();
        broom.empty(File::open(dir.path()).unwrap().as_fd(), "test").unwrap();
        assert!(dir.path().join("a/b").exists());
        Broom::default().empty(File::open(dir.path()).unwrap().as_fd(), "test").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
