//! Steps on the directories and files of one hierarchy.
//!
//! Paths are relative to the descriptor, without a leading slash; "" is the directory itself. Callers have checked
//! that they hold no "..": nothing here looks into a path.

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::{self, Errno};
use rustix::process::Pid;
use std::time::{Duration, Instant};

/// Largest file that is read, in bytes: the pids of a cgroup that holds every process a kernel can have (4 million
/// by seven digits and a newline).
const FILE_BYTES_MAX: usize = 32 << 20;

/// Most directories below one cgroup that are looked at; a tree larger than this is somebody's attack or mistake, and
/// listing it whole would cost the memory of the one who cleans up.
const SUBTREE_DIRS_MAX: usize = 100_000;

/// How often a path is made again when somebody removes a part of it meanwhile.
const MAKE_DIRS_ATTEMPTS: u32 = 16;

/// Reads a file of the hierarchy. Bytes that are no UTF-8 (there are none) would be replaced.
pub fn read(root: impl AsFd, path: &str) -> io::Result<String> {
    let file = openat(root, here(path), OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    let bytes = read_to_end(&file)?;
    Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
}

/// Writes a file of the hierarchy in one call; the kernel takes each write as one command. An empty value is sent as
/// a newline, because a write of no bytes never reaches the file.
pub fn write(root: impl AsFd, path: &str, value: &str) -> io::Result<()> {
    let file = open_for_write(root, path)?;
    let bytes = if value.is_empty() { b"\n" } else { value.as_bytes() };
    match io::write(&file, bytes)? {
        n if n == bytes.len() => Ok(()),
        _ => Err(Errno::IO),
    }
}

/// Opens a file of the hierarchy for somebody else to write into, a v1 `tasks` file for instance.
pub fn open_for_write(root: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    openat(root, here(path), OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
}

/// Opens a cgroup's directory, good for CLONE_INTO_CGROUP.
pub fn open_dir(root: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(root, here(path), flags, Mode::empty())
}

/// Makes a cgroup and those above it; says whether the last one is new. A parent that somebody removes at the same
/// moment is made again.
pub fn make_dirs(root: impl AsFd, path: &str) -> io::Result<bool> {
    let root = root.as_fd();
    let mut attempts = MAKE_DIRS_ATTEMPTS;
    loop {
        match make_dirs_once(root, path) {
            Err(Errno::NOENT) if attempts > 1 => attempts -= 1,
            outcome => return outcome,
        }
    }
}

fn make_dirs_once(root: impl AsFd, path: &str) -> io::Result<bool> {
    let root = root.as_fd();
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    let mut new = false;
    for end in ends {
        new = match mkdirat(root, &path[..end], Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error),
        };
    }
    Ok(new)
}

/// The names of the cgroups directly below `path`.
pub fn children(root: impl AsFd, path: &str) -> io::Result<Vec<String>> {
    let dir = open_dir(root, path)?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if entry.file_type() == FileType::Directory && name != "." && name != ".." {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// `path` and everything below it, parents before children. What vanishes meanwhile is left out.
fn subtree(root: impl AsFd, path: &str) -> io::Result<Vec<String>> {
    let root = root.as_fd();
    let mut paths = vec![path.to_owned()];
    let mut next = 0;
    while next < paths.len() {
        let names = match children(root, &paths[next]) {
            Ok(names) => names,
            Err(Errno::NOENT | Errno::NODEV) if next > 0 => Vec::new(),
            Err(error) => return Err(error),
        };
        if paths.len() + names.len() > SUBTREE_DIRS_MAX {
            return Err(Errno::NOMEM);
        }
        for name in names {
            paths.push(if paths[next].is_empty() { name } else { format!("{}/{name}", paths[next]) });
        }
        next += 1;
    }
    Ok(paths)
}

/// The processes of a cgroup and of everything below it, as seen from the caller's PID namespace. A cgroup that is
/// not there has none.
pub fn processes(root: impl AsFd, path: &str) -> io::Result<Vec<Pid>> {
    let root = root.as_fd();
    let paths = match subtree(root, path) {
        Ok(paths) => paths,
        Err(Errno::NOENT | Errno::NODEV) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut pids = Vec::new();
    for path in paths {
        match read(root, &join(&path, "cgroup.procs")) {
            Ok(text) => pids.extend(text.lines().filter_map(|l| l.parse().ok()).filter_map(Pid::from_raw)),
            // Threaded cgroups list their processes in the domain above them, which is in the list as well.
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(pids)
}

/// SIGKILL to every process of a cgroup2 cgroup and of everything below it, in one step that no fork outruns (5.14).
/// A cgroup that is not there has none.
pub fn kill(root: impl AsFd, path: &str) -> io::Result<()> {
    match write(root, &join(path, "cgroup.kill"), "1") {
        Err(Errno::NOENT | Errno::NODEV) => Ok(()),
        outcome => outcome,
    }
}

/// Waits until no process is left in a cgroup2 cgroup and below it; says whether that happened in time.
pub fn wait_until_empty(root: impl AsFd, path: &str, limit: Duration) -> io::Result<bool> {
    let root = root.as_fd();
    let events =
        match openat(root, join(path, "cgroup.events").as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(events) => events,
            Err(Errno::NOENT | Errno::NODEV) => return Ok(true),
            Err(error) => return Err(error),
        };
    let deadline = Instant::now() + limit;
    loop {
        let mut buffer = [0; 128];
        let length = match io::pread(&events, &mut buffer, 0) {
            Ok(length) => length,
            Err(Errno::NODEV) => return Ok(true),
            Err(error) => return Err(error),
        };
        // Reading comes first: the change that poll waits for is one after the last read.
        if buffer[..length].split(|&b| b == b'\n').any(|line| line == b"populated 0") {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = Timespec { tv_sec: left.as_secs().min(3600) as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Removes a cgroup with everything below it, children first, and goes on after an error; the first one is returned.
/// EBUSY means that processes are (still) there. A cgroup that is not there is no error.
pub fn remove_tree(root: impl AsFd, path: &str) -> io::Result<()> {
    let root = root.as_fd();
    match unlinkat(root, path, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(_) => {}
    }
    let paths = match subtree(root, path) {
        Ok(paths) => paths,
        Err(Errno::NOENT | Errno::NODEV) => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut outcome = Ok(());
    for path in paths.iter().rev() {
        match unlinkat(root, path.as_str(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => outcome = outcome.and(Err(error)),
        }
    }
    outcome
}

/// Reads what is left of a file, up to [`FILE_BYTES_MAX`].
pub(super) fn read_to_end(file: impl AsFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(4096);
    loop {
        if bytes.len() >= FILE_BYTES_MAX {
            return Err(Errno::FBIG);
        }
        if bytes.capacity() - bytes.len() < 1024 {
            bytes.reserve(bytes.capacity());
        }
        match io::read(&file, spare_capacity(&mut bytes)) {
            Ok(0) => return Ok(bytes),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

fn here(path: &str) -> &str {
    if path.is_empty() { "." } else { path }
}

fn join(path: &str, file: &str) -> String {
    if path.is_empty() { file.to_owned() } else { format!("{path}/{file}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;

    fn scratch() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        let fd = openat(CWD, dir.path(), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        (dir, fd)
    }

    #[test]
    fn a_path_is_made_whole_and_removed_whole() {
        let (dir, root) = scratch();
        assert_eq!(make_dirs(&root, "a/b/c"), Ok(true));
        assert_eq!(make_dirs(&root, "a/b/c"), Ok(false));
        assert_eq!(make_dirs(&root, "a/d"), Ok(true));
        assert_eq!(remove_tree(&root, "a"), Ok(()));
        assert_eq!(remove_tree(&root, "a"), Ok(()));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn removal_goes_on_after_what_it_cannot_remove() {
        let (dir, root) = scratch();
        make_dirs(&root, "a/busy").unwrap();
        make_dirs(&root, "a/free").unwrap();
        std::fs::write(dir.path().join("a/busy/file"), "").unwrap();
        assert_eq!(remove_tree(&root, "a"), Err(Errno::NOTEMPTY));
        assert!(!dir.path().join("a/free").exists());
    }

    #[test]
    fn an_empty_value_is_written_as_a_newline() {
        let (dir, root) = scratch();
        std::fs::write(dir.path().join("f"), "").unwrap();
        write(&root, "f", "").unwrap();
        assert_eq!(read(&root, "f").unwrap(), "\n");
        assert_eq!(write(&root, "absent", "1"), Err(Errno::NOENT));
    }

    #[test]
    fn large_files_are_read_whole() {
        let (dir, root) = scratch();
        let text = "0123456789\n".repeat(100_000);
        std::fs::write(dir.path().join("f"), &text).unwrap();
        assert_eq!(read(&root, "f").unwrap(), text);
    }

    #[test]
    fn what_is_not_there_has_no_processes_and_needs_no_killing() {
        let (_dir, root) = scratch();
        assert_eq!(processes(&root, "gone"), Ok(vec![]));
        assert_eq!(kill(&root, "gone"), Ok(()));
        assert_eq!(wait_until_empty(&root, "gone", Duration::ZERO), Ok(true));
    }

    #[test]
    fn processes_below_are_listed_too() {
        let (dir, root) = scratch();
        make_dirs(&root, "a/b").unwrap();
        std::fs::write(dir.path().join("a/cgroup.procs"), "7\n").unwrap();
        std::fs::write(dir.path().join("a/b/cgroup.procs"), "8\n9\n").unwrap();
        let pids: Vec<_> = processes(&root, "a").unwrap().iter().map(|p| p.as_raw_nonzero().get()).collect();
        assert_eq!(pids, [7, 8, 9]);
    }
}
