//! Writing limits: all of them or none, in an order that the kernel accepts at every moment.
//!
//! Two ways: [`set`] for a new cgroup, where a file that is missing or forbidden is said once and passed over, and
//! [`change`] for a living one, where the caller was promised that an error means nothing changed.

use super::Shared;
use super::group::join;
use knarr_model::Error;
use knarr_model::resources::{Setting, v1_swap_limit_goes_first};
use knarr_sys::cgroup as sys;
use rustix::fd::BorrowedFd;
use rustix::io::Errno;

/// How much less than asked a number may read back, in bytes: limits are cut to whole pages, of up to 64 KiB.
const ROUNDING_BYTES_MAX: u64 = 64 << 10;

/// One value for one file of one hierarchy.
#[derive(Debug, Clone)]
pub(super) struct Write<'a> {
    root: BorrowedFd<'a>,
    /// relative to the root
    path: String,
    setting: Setting,
}

impl<'a> Write<'a> {
    /// `dir` is the cgroup's path relative to `root`.
    pub(super) fn new(root: BorrowedFd<'a>, dir: &str, setting: Setting) -> Self {
        Self { root, path: join(dir, &setting.file), setting }
    }

    fn read(&self) -> Result<String, Errno> {
        sys::read(self.root, &self.path).map(|text| text.trim_end().to_owned())
    }

    fn write(&self, value: &str) -> Result<(), Errno> {
        sys::write(self.root, &self.path, value)
    }

    fn error(&self, errno: Errno) -> Error {
        let hint = match errno {
            Errno::BUSY if self.setting.file.contains("limit_in_bytes") => " (more than that is in use)",
            Errno::NOENT => " (the controller is not passed on to this cgroup, or the kernel lacks the file)",
            _ => "",
        };
        Error::internal(format!("write {:?} to cgroup file /{}: {errno}{hint}", self.setting.value, self.path))
    }
}

/// Writes the limits of a new cgroup. What this machine or our privileges do not allow is said once.
pub(super) fn set(shared: &Shared, writes: &[Write<'_>]) -> Result<(), Error> {
    for write in in_order(writes) {
        match write_one(write, writes) {
            Ok(()) => {}
            Err(Errno::NOENT) if write.setting.optional => {}
            Err(errno @ (Errno::NOENT | Errno::PERM | Errno::ACCESS | Errno::ROFS)) => {
                shared.say_once(format!("{} is not set: {errno}", write.setting.file));
            }
            Err(errno) => return Err(write.error(errno)),
        }
    }
    Ok(())
}

/// What a file held before it was changed.
#[derive(Debug)]
pub(super) struct Old {
    path: String,
    value: String,
}

/// Puts back, in the cgroup2 hierarchy, what [`change`] changed; tells what could not be.
pub(super) fn put_back(shared: &Shared, olds: &[Old]) -> Vec<String> {
    let put = |old: &Old| sys::write(shared.tree(), &old.path, &old.value).err().map(|errno| not_put_back(old, errno));
    olds.iter().rev().filter_map(put).collect()
}

fn not_put_back(old: &Old, errno: Errno) -> String {
    format!("put {:?} back into /{}: {errno}", old.value, old.path)
}

/// Writes changed limits of a living cgroup and gives what they were. On an error everything is put back.
pub(super) fn change(writes: &[Write<'_>]) -> Result<Vec<Old>, Error> {
    let mut undo: Vec<(&Write<'_>, String)> = Vec::new();
    let outcome = in_order(writes).into_iter().try_for_each(|write| {
        let old = match write.read() {
            Ok(old) => old,
            Err(Errno::NOENT) if write.setting.optional => return Ok(()),
            // A few files can only be written; those have nothing to be put back.
            Err(Errno::INVAL | Errno::ACCESS | Errno::PERM) => String::new(),
            Err(errno) => return Err(write.error(errno)),
        };
        if old == write.setting.value {
            return Ok(());
        }
        write_one(write, writes).map_err(|errno| write.error(errno))?;
        undo.push((write, old));
        verify(write)
    });
    if let Err(mut error) = outcome {
        for (write, value) in undo.into_iter().rev() {
            if let Err(errno) = write.write(&value) {
                error.message += "; ";
                error.message += &not_put_back(&Old { path: write.path.clone(), value }, errno);
            }
        }
        return Err(error);
    }
    Ok(undo.into_iter().map(|(write, value)| Old { path: write.path.clone(), value }).collect())
}

/// v1 checks quota and period as a pair against the cgroup above at each write. A period that does not fit the old
/// quota may fit the new one: then the quota goes first.
fn write_one(write: &Write<'_>, all: &[Write<'_>]) -> Result<(), Errno> {
    match write.write(&write.setting.value) {
        Err(Errno::INVAL) if write.setting.file == "cpu.cfs_period_us" => {
            let Some(quota) = all.iter().find(|w| w.setting.file == "cpu.cfs_quota_us") else {
                return Err(Errno::INVAL);
            };
            quota.write(&quota.setting.value)?;
            write.write(&write.setting.value)
        }
        outcome => outcome,
    }
}

/// The writes as given, except that the two memory limits of v1 change places where memory is raised above the sum
/// that holds now.
fn in_order<'w, 'a>(writes: &'w [Write<'a>]) -> Vec<&'w Write<'a>> {
    let mut ordered: Vec<_> = writes.iter().collect();
    let find = |file: &str| writes.iter().position(|w| w.setting.file == file);
    if let (Some(memory), Some(both)) = (find("memory.limit_in_bytes"), find("memory.memsw.limit_in_bytes")) {
        let current = writes[both].read().ok().and_then(|text| text.parse().ok());
        let limit = writes[memory].setting.value.parse().unwrap_or(-1);
        if current.is_some_and(|current| v1_swap_limit_goes_first(current, limit)) {
            ordered.swap(memory, both);
        }
    }
    ordered
}

/// The kernel takes some values without an error and uses others. Numbers must read back as written, or cut to pages.
fn verify(write: &Write<'_>) -> Result<(), Error> {
    let Ok(wanted) = write.setting.value.parse::<u64>() else { return Ok(()) };
    let Ok(holds) = write.read() else { return Ok(()) };
    // "max" and v1's largest number are what a limit beyond all memory becomes.
    let Ok(number) = holds.parse::<u64>() else { return Ok(()) };
    if number <= wanted && wanted - number < ROUNDING_BYTES_MAX {
        return Ok(());
    }
    Err(Error::internal(format!("cgroup file /{} holds {holds} after {wanted} was written", write.path)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::{AsFd, OwnedFd};
    use rustix::fs::{CWD, Mode, OFlags, openat};
    use std::path::Path;

    fn open(dir: &Path) -> OwnedFd {
        openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    fn setting(file: &str, value: &str) -> Setting {
        Setting { controller: "memory".into(), file: file.into(), value: value.into(), optional: false }
    }

    /// Plain files stand for the kernel's: they take everything, and a write does not cut the longer old value, so
    /// values of equal length are used.
    #[test]
    fn a_failed_change_puts_everything_back() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("memory.high"), "100\n").unwrap();
        std::fs::write(dir.path().join("cpu.max"), "max 100000\n").unwrap();
        let root = open(dir.path());
        let writes = [
            Write::new(root.as_fd(), "", setting("cpu.max", "500 100000")),
            Write::new(root.as_fd(), "", setting("memory.high", "200")),
            Write::new(root.as_fd(), "", setting("absent", "1")),
        ];
        let error = change(&writes).unwrap_err();
        assert!(error.message.contains("/absent"), "{error}");
        assert_eq!(std::fs::read_to_string(dir.path().join("cpu.max")).unwrap(), "max 100000\n");
        assert_eq!(std::fs::read_to_string(dir.path().join("memory.high")).unwrap(), "100\n");
    }

    #[test]
    fn an_optional_file_that_is_absent_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("memory.max"), "1").unwrap();
        let root = open(dir.path());
        let swap = Setting { optional: true, ..setting("memory.swap.max", "0") };
        let writes = [Write::new(root.as_fd(), "", swap), Write::new(root.as_fd(), "", setting("memory.max", "2"))];
        change(&writes).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("memory.max")).unwrap(), "2");
    }

    #[test]
    fn the_two_v1_memory_limits_change_places_when_memory_rises_above_the_sum() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("memory.memsw.limit_in_bytes"), "100\n").unwrap();
        let root = open(dir.path());
        let order = |limit: &str, both: &str| {
            let writes = [
                Write::new(root.as_fd(), "", setting("memory.limit_in_bytes", limit)),
                Write::new(root.as_fd(), "", setting("memory.memsw.limit_in_bytes", both)),
            ];
            in_order(&writes).iter().map(|w| w.setting.value.clone()).collect::<Vec<_>>()
        };
        assert_eq!(order("200", "201"), ["201", "200"]);
        assert_eq!(order("50", "51"), ["50", "51"]);
        assert_eq!(order("-1", "-1"), ["-1", "-1"]);
    }

    #[test]
    fn a_value_that_did_not_take_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let root = open(dir.path());
        let write = Write::new(root.as_fd(), "", setting("memory.max", "1000000"));
        for (holds, fits) in [("1000000", true), ("999424", true), ("max", true), ("1000001", false), ("4096", false)] {
            std::fs::write(dir.path().join("memory.max"), holds).unwrap();
            assert_eq!(verify(&write).is_ok(), fits, "{holds}");
        }
    }
}
