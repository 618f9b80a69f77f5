//! The file in which a container's output ends: appended to, opened anew at its path, kept waiting while the disk is
//! full. It frames nothing and reads no pipe.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

/// How long a log that could not be written is left alone: a full disk is cleared by people or by kubelet's image
/// clean-up, which takes seconds.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// One container's log. Nothing that was given to [`Log::append`] is lost: what the file does not take is kept and
/// tried again, and meanwhile the caller gives nothing more ([`Log::is_stuck`]). So at most the records of one read
/// are kept.
pub struct Log {
    path: Vec<u8>,
    file: File,
    backlog: Backlog,
    retry_at: Option<Instant>,
}

impl Log {
    /// Opens the log at `path`, and makes it if it is not there. Its directory must be there.
    pub fn open(path: &[u8]) -> io::Result<Self> {
        let file = open(path)?;
        Ok(Self { path: path.to_vec(), file, backlog: Backlog::default(), retry_at: None })
    }

    /// Appends whole records.
    pub fn append(&mut self, records: &[u8], now: Instant) {
        let was_stuck = self.is_stuck();
        if let Err(errno) = self.backlog.append(records, |bytes| rustix::io::write(&self.file, bytes)) {
            self.retry_at = Some(now + RETRY_AFTER);
            if !was_stuck {
                eprintln!("knarr-shim: write log {:?}: {errno}", String::from_utf8_lossy(&self.path));
            }
        }
    }

    /// Something is kept that the file has not taken.
    pub fn is_stuck(&self) -> bool {
        !self.backlog.pending.is_empty()
    }

    /// When to call [`Log::retry`].
    pub fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Tries again to write what is kept.
    pub fn retry(&mut self, now: Instant) {
        self.retry_at = None;
        self.append(&[], now);
    }

    /// Goes on in a new file at the log's path: kubelet has renamed the old one. The new one is opened before the old
    /// one is let go, and when that fails everything is as before.
    pub fn reopen(&mut self, now: Instant) -> io::Result<()> {
        self.file = open(&self.path)?;
        self.backlog.torn = 0;
        self.retry(now);
        Ok(())
    }
}

/// What a file has not taken yet.
#[derive(Default)]
struct Backlog {
    /// Whole records, the first maybe written in part.
    pending: Vec<u8>,
    /// How many bytes of the first are in the file. In another file it begins anew: each can be read alone.
    torn: usize,
}

impl Backlog {
    /// Writes what is kept and then `records`; keeps what `write` does not take before its first error.
    fn append(&mut self, records: &[u8], mut write: impl FnMut(&[u8]) -> Result<usize, Errno>) -> Result<(), Errno> {
        if self.pending.is_empty() {
            let (written, result) = write_all(records, &mut write);
            if result.is_err() {
                let whole = end_of_last_record(&records[..written]);
                self.pending = records[whole..].to_vec();
                self.torn = written - whole;
            }
            return result;
        }
        self.pending.extend_from_slice(records);
        let (written, result) = write_all(&self.pending[self.torn..], &mut write);
        let in_file = self.torn + written;
        if result.is_ok() {
            *self = Self::default();
        } else {
            let whole = end_of_last_record(&self.pending[..in_file]);
            self.pending.drain(..whole);
            self.torn = in_file - whole;
        }
        result
    }
}

fn write_all(bytes: &[u8], write: &mut impl FnMut(&[u8]) -> Result<usize, Errno>) -> (usize, Result<(), Errno>) {
    let mut written = 0;
    while written < bytes.len() {
        match write(&bytes[written..]) {
            Ok(0) => return (written, Err(Errno::NOSPC)),
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(errno) => return (written, Err(errno)),
        }
    }
    (written, Ok(()))
}

fn end_of_last_record(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1)
}

/// Opens without following a link at the end of the path and without waiting for the other end of a FIFO: the
/// directory belongs to the pod's log tree, which more than kubelet may write to.
fn open(path: &[u8]) -> io::Result<File> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path));
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP;
    let fd = rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, mode)?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL.into());
    }
    Ok(File::from(fd))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Append {
            records: usize,
            length: usize,
        },
        /// The disk takes this much more.
        Free(usize),
        Reopen,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (1_usize..4, 0_usize..30).prop_map(|(records, length)| Step::Append { records, length }),
            (0_usize..60).prop_map(Step::Free),
            Just(Step::Reopen),
        ]
    }

    proptest! {
        #[test]
        fn a_full_disk_loses_doubles_and_mixes_nothing(steps in vec(step(), 0..60)) {
            let mut backlog = Backlog::default();
            let mut files = vec![Vec::new()];
            let mut free = 0_usize;
            let mut given = Vec::new();
            for step in steps.into_iter().chain([Step::Free(usize::MAX / 2)]) {
                let mut records = Vec::new();
                match step {
                    // While something is kept nothing more is read from the container.
                    Step::Append { .. } if !backlog.pending.is_empty() => {}
                    Step::Append { records: count, length } => {
                        for _ in 0..count {
                            let number = given.len();
                            given.push(format!("{number} {}\n", "x".repeat(length)).into_bytes());
                            records.extend_from_slice(&given[number]);
                        }
                    }
                    Step::Free(more) => free += more,
                    Step::Reopen => {
                        files.push(Vec::new());
                        backlog.torn = 0;
                    }
                }
                let file = files.last_mut().unwrap();
                let _ = backlog.append(&records, |bytes| {
                    let count = bytes.len().min(free).min(7);
                    if count == 0 {
                        return Err(Errno::NOSPC);
                    }
                    free -= count;
                    file.extend_from_slice(&bytes[..count]);
                    Ok(count)
                });
            }
            prop_assert!(backlog.pending.is_empty());
            let whole = files.iter().map(|file| &file[..end_of_last_record(file)]);
            prop_assert_eq!(whole.collect::<Vec<_>>().concat(), given.concat());
        }
    }

    #[test]
    fn a_log_that_cannot_be_opened_again_goes_on_in_the_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = Log::open(path.as_os_str().as_bytes()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"", "the log is there at once");
        log.append(b"one\n", Instant::now());

        let rotated = directory.path().join("0.log.1");
        std::fs::rename(&path, &rotated).unwrap();
        std::os::unix::fs::symlink("/nowhere", &path).unwrap();
        assert!(log.reopen(Instant::now()).is_err());
        log.append(b"two\n", Instant::now());
        assert_eq!(std::fs::read(&rotated).unwrap(), b"one\ntwo\n");

        std::fs::remove_file(&path).unwrap();
        log.reopen(Instant::now()).unwrap();
        log.append(b"three\n", Instant::now());
        assert_eq!(std::fs::read(&rotated).unwrap(), b"one\ntwo\n");
        assert_eq!(std::fs::read(&path).unwrap(), b"three\n");
    }

    #[test]
    fn only_a_regular_file_is_a_log() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(Log::open(fifo.as_os_str().as_bytes()).is_err());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(directory.path().join("target"), &link).unwrap();
        assert!(Log::open(link.as_os_str().as_bytes()).is_err());
        assert!(!directory.path().join("target").exists());
    }
}
