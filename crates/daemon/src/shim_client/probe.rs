//! Asks the shim's executable, before there is any pod, what this host allows. The daemon itself cannot try: what makes
//! a user namespace has one thread.

use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::PidfdFlags;

/// It takes some milliseconds, unless the disk that it looks at is gone.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// Bytes of what it says of a failure: a line.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Whether pods with a user namespace are possible, with images in `directory`; else why not, in words. Blocks.
pub fn user_namespaces(exe: BorrowedFd<'_>, directory: &Path) -> Result<(), String> {
    let mut child = Command::new(format!("/proc/self/fd/{}", exe.as_raw_fd()))
        .arg0("knarr-shim")
        .arg(knarr_wire::shim::PROBE_USER_NAMESPACES)
        .arg(directory)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot try: {error}"))?;
    // Nobody else waits for this child, so its pid is still its own.
    let pidfd = rustix::process::pidfd_open(rustix::process::Pid::from_child(&child), PidfdFlags::empty());
    let limit = Timespec { tv_sec: PROBE_DEADLINE.as_secs() as i64, tv_nsec: 0 };
    let ended = pidfd.and_then(|pidfd| poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)));
    if !matches!(ended, Ok(1)) {
        let _ = child.kill();
        return Err(format!("a trial did not end within {} s", PROBE_DEADLINE.as_secs()));
    }
    let status = child.wait().map_err(|error| format!("cannot try: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stderr) = child.stderr {
        let _ = stderr.take(ANSWER_BYTES_MAX).read_to_string(&mut said);
    }
    let said = said.trim().trim_start_matches("knarr-shim: ");
    Err(if said.is_empty() { format!("a trial failed: {status}") } else { said.to_owned() })
}
