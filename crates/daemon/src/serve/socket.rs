//! The daemon's socket and the lock that keeps a second daemon off the same state.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;

/// A Unix socket's path may have so many bytes.
const PATH_BYTES_MAX: usize = 107;

/// A daemon that was killed in the middle of starting a shim is survived by that process, with its lock, until the new
/// program begins; a moment, on a busy machine a longer one.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// Takes the lock of a run-time directory; it is held as long as the file is open.
pub fn lock(run_dir: &Path) -> Result<File, String> {
    let path = run_dir.join("lock");
    let opened = std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
    let mut file = opened.map_err(|e| format!("open {}: {e}", path.display()))?;
    let deadline = Instant::now() + LOCK_WAIT;
    while rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        if Instant::now() >= deadline {
            return Err(format!("another knarr serves {}; give this one a --root of its own", run_dir.display()));
        }
        std::thread::sleep(LOCK_RETRY);
    }
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// Listens at `path`. A socket file that is there belongs to nobody: the lock is ours.
pub fn bind(path: &Path, mode: u32, group: &str) -> Result<UnixListener, String> {
    let length = path.as_os_str().len();
    if length > PATH_BYTES_MAX {
        return Err(format!(
            "socket.path {}: {length} bytes, and the kernel takes {PATH_BYTES_MAX}; choose a shorter root or path",
            path.display()
        ));
    }
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(|e| format!("make {}: {e}", parent.display()))?;
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(format!("remove the old socket {}: {error}", path.display()));
        }
        _ => {}
    }
    let gid = group_id(group)?;
    let listener = UnixListener::bind(path).map_err(|e| format!("listen at {}: {e}", path.display()))?;
    std::os::unix::fs::chown(path, None, Some(gid))
        .and_then(|()| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)))
        .map_err(|e| format!("set owner and mode of {}: {e}", path.display()))?;
    Ok(listener)
}

fn group_id(group: &str) -> Result<u32, String> {
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let file = std::fs::read_to_string("/etc/group").map_err(|e| format!("socket.group: read /etc/group: {e}"))?;
    let line = file.lines().find_map(|line| line.strip_prefix(group)?.strip_prefix(':'));
    let gid = line.and_then(|rest| rest.split(':').nth(1)).and_then(|gid| gid.parse().ok());
    gid.ok_or_else(|| format!("socket.group: there is no group {group:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_lock_is_refused_until_the_first_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        assert!(lock(dir.path()).unwrap_err().contains("--root"));
        drop(first);
        assert!(lock(dir.path()).is_ok());
    }

    #[test]
    fn a_path_that_is_too_long_is_refused_by_name() {
        let path = Path::new("/tmp").join("x".repeat(120));
        assert!(bind(&path, 0o660, "root").unwrap_err().contains("107"));
    }
}
