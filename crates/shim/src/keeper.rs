//! `knarr-shim --keep UNIT`: a process that does nothing, in a scope of systemd that would end without one.
//!
//! systemd makes a scope around a process and takes it away, with its cgroup, when the last process has ended. A
//! container's is wanted before its first process and until it is removed. The keeper is what the scope is made
//! around, and stays. It shares this executable because that is small and lies in memory anyway; it knows no pod and no
//! socket, and its end, by SIGTERM for instance, is the end of nothing but an empty scope.

use knarr_sys::process;
use rustix::fs::{Mode, OFlags};
use std::io;

/// The argument that asks for a keeper. The next one, the unit's name, is for people who read `ps`.
pub const ARGUMENT: &str = "--keep";

/// The kernel's out-of-memory killer passes a process with this by, also where it kills a whole cgroup.
const OOM_SCORE: &[u8] = b"-1000";

/// Waits for the daemon's word on standard input that the scope is made, then for a signal. Returns if the daemon ends
/// before: nobody would know of this process then.
pub fn run() -> io::Result<()> {
    process::forbid_dumps()?;
    rustix::thread::set_name(c"knarr-keeper")?;
    // What is typed at a daemon's terminal is not for its containers.
    let _ = rustix::process::setsid();
    be_spared();
    let mut word = [0];
    loop {
        match rustix::io::read(rustix::stdio::stdin(), &mut word) {
            Ok(0) => return Ok(()),
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    loop {
        rustix::event::pause();
    }
}

/// Where the right to ask for it is missing it goes without.
fn be_spared() {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::open("/proc/self/oom_score_adj", flags, Mode::empty()) {
        let _ = rustix::io::write(file, OOM_SCORE);
    }
}
