//! Processes: copying this one, replacing it, following and reaping children, limits and scores.
//!
//! What runs in a copy of the process must not allocate; everything here that such code calls does not.

use crate::call::syscall;
use rustix::io::{Errno, Result};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitOptions, pidfd_open, wait, waitid};
use std::ffi::{CStr, CString, c_char};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU32;

pub use rustix::process::Signal;

/// A child of this process.
#[derive(Debug)]
pub struct Child {
    /// in this process's PID namespace
    pub pid: u32,
    /// of the same process
    pub pidfd: OwnedFd,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It exited with this status.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
}

/// A CLONE_NEW* flag for [`copy_process`] and [`copy_process_as_sibling`].
pub const NEW_PID: u64 = libc::CLONE_NEWPID as u64;

/// Copies this process (its memory is not shared) and runs `child` in the copy, which exits with the status it gives.
///
/// `new` are CLONE_NEW* flags; `cgroup` is a directory of the cgroup2 hierarchy in which the copy is born. The copy is
/// this process's child: it has to be reaped. EINVAL when this process has more than one thread: another thread could
/// hold a lock whose copy is never released.
pub fn copy_process(new: u64, cgroup: Option<BorrowedFd<'_>>, child: impl FnOnce() -> u8) -> Result<Child> {
    only_thread()?;
    let mut pidfd: i32 = -1;
    let mut arguments = CloneArguments {
        flags: new | libc::CLONE_PIDFD as u64,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArguments::default()
    };
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    let size = size_of::<CloneArguments>();
    // SAFETY: without CLONE_VM this is a fork: the copy runs on its own copy of this stack, so no `stack` is given, and
    // `arguments` and `pidfd` outlive the call. There is one thread (checked above), so that no lock of the allocator
    // or of libc is held by someone who does not exist in the copy.
    match unsafe { syscall!(libc::SYS_clone3, &raw mut arguments, size) }? {
        0 => run_in_copy(child),
        // SAFETY: the kernel has just made this descriptor for us alone (CLONE_PIDFD).
        pid => Ok(Child { pid: pid as u32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Like [`copy_process`], but the copy becomes a child of this process's parent, in the PID namespace that this process
/// has joined for its children, or in a new one ([`NEW_PID`] in `new`). Gives its pid as this process sees it.
///
/// Only for a copy made by [`copy_process`], EINVAL elsewhere. A system call filter may be loaded already: so this is
/// the old clone call, which default profiles let through where they hide clone3, and nothing is asked of the kernel
/// beside it.
pub fn copy_process_as_sibling(new: u64, child: impl FnOnce() -> u8) -> Result<u32> {
    // A copy starts with one thread, and nothing that runs in one starts another.
    InCopy::prove()?;
    let flags = new | (libc::CLONE_PARENT | libc::SIGCHLD) as u64;
    // SAFETY: as in copy_process; the four pointers are null, which the kernel takes as "none" for these flags, and the
    // order of the last two, which differs between machines, does not matter.
    match unsafe { syscall!(libc::SYS_clone, flags, 0, 0, 0, 0) }? {
        0 => run_in_copy(child),
        pid => Ok(pid as u32),
    }
}

/// A descriptor of a child that has not been reaped; ECHILD if `pid` is no child of this process.
pub fn open_child(pid: u32) -> Result<OwnedFd> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::CHILD)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    // Refused with ECHILD for anything but a child of ours, whose number cannot pass to another before it is reaped.
    waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT)?;
    Ok(pidfd)
}

/// Sends a signal (1..=64); ESRCH when the process is gone. A pidfd never means another process with the same number.
pub fn send_signal(pidfd: impl AsFd, signal: i32) -> Result<()> {
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: no siginfo is given (null), and the other arguments are integers.
    unsafe { syscall!(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<u8>(), 0) }?;
    Ok(())
}

/// Reaps the child of `pidfd` if it has ended; waits for it only if `block`.
pub fn reap(pidfd: impl AsFd, block: bool) -> Result<Option<Ended>> {
    let how = if block { WaitIdOptions::EXITED } else { WaitIdOptions::EXITED | WaitIdOptions::NOHANG };
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), how) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
            Ok(None) => return Ok(None),
            Ok(Some(status)) => {
                let killed = status.terminating_signal().map(Ended::Killed);
                return Ok(Some(killed.unwrap_or(Ended::Exited(status.exit_status().unwrap_or(0)))));
            }
        }
    }
}

/// Reaps any child that has ended; `None` when there is none (now, or none at all). For a loop after SIGCHLD.
pub fn reap_any() -> Result<Option<(u32, Ended)>> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Err(Errno::INTR) => {}
            Err(Errno::CHILD) | Ok(None) => return Ok(None),
            Err(errno) => return Err(errno),
            Ok(Some((pid, status))) => {
                let killed = status.terminating_signal().map(Ended::Killed);
                let ended = killed.unwrap_or(Ended::Exited(status.exit_status().unwrap_or(0)));
                return Ok(Some((pid.as_raw_nonzero().get() as u32, ended)));
            }
        }
    }
}

/// Replaces the program. Returns only if that failed, with the reason.
pub fn execute(program: &CStr, arguments: &StringArray, environment: &StringArray) -> Errno {
    let (arguments, environment) = (arguments.pointers.as_ptr(), environment.pointers.as_ptr());
    // SAFETY: the arrays end with a null and their strings with a NUL, and all of them outlive the call, see
    // StringArray; the kernel only reads them.
    match unsafe { syscall!(libc::SYS_execve, program.as_ptr(), arguments, environment) } {
        Err(errno) => errno,
        Ok(_) => Errno::NOSYS,
    }
}

/// As [`execute`], for the program that `file` is open on, which may have no name at all.
pub fn execute_file(file: impl AsFd, arguments: &StringArray, environment: &StringArray) -> Errno {
    let (arguments, environment) = (arguments.pointers.as_ptr(), environment.pointers.as_ptr());
    let (fd, path) = (file.as_fd().as_raw_fd(), c"".as_ptr());
    // SAFETY: as in execute.
    match unsafe { syscall!(libc::SYS_execveat, fd, path, arguments, environment, libc::AT_EMPTY_PATH) } {
        Err(errno) => errno,
        Ok(_) => Errno::NOSYS,
    }
}

/// argv or envp, as execve takes it.
#[derive(Debug, Default)]
pub struct StringArray {
    strings: Vec<CString>,
    /// Into `strings`, which is never changed after this was made, then a null.
    pointers: Vec<*const c_char>,
}

impl StringArray {
    /// Takes the strings over.
    pub fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect();
        Self { strings, pointers }
    }

    /// The strings.
    pub fn strings(&self) -> &[CString] {
        &self.strings
    }
}

/// Marks every descriptor from `first` on close-on-exec, so that no program gets one that it was not given.
pub fn close_on_exec_from(first: u32) -> Result<()> {
    // SAFETY: nothing is closed; only a flag of descriptors changes.
    unsafe { syscall!(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) }?;
    Ok(())
}

/// Closes every descriptor from 3 on except `kept` (ascending), in a copy of the process that goes on to exec or exit
/// without dropping anything.
pub fn close_all_but(kept: &[BorrowedFd<'_>], _in_copy: &InCopy) -> Result<()> {
    let mut first: u32 = 3;
    for fd in kept {
        let fd = fd.as_raw_fd() as u32;
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = first.max(fd + 1);
    }
    close_range(first, u32::MAX)
}

/// Closes every descriptor, the first three too.
pub fn close_everything(_in_copy: &InCopy) -> Result<()> {
    close_range(0, u32::MAX)
}

fn close_range(first: u32, last: u32) -> Result<()> {
    // SAFETY: reached only with an `InCopy`: the owners of these descriptors in this copy are never dropped, because
    // the copy ends by execve or _exit; so no owner can close a number that has been given to something else.
    unsafe { syscall!(libc::SYS_close_range, first, last, 0) }?;
    Ok(())
}

/// Proof that the code runs in a copy of the process, which never unwinds and never returns to its caller.
#[derive(Debug)]
pub struct InCopy(());

impl InCopy {
    /// Runs `work` in this copy. A panic ends the copy at once with status 127, so that nothing of the caller's stack,
    /// which this is a copy of, is ever unwound or dropped here.
    fn run(work: impl FnOnce() -> u8) -> ! {
        struct ExitWhenUnwound;
        impl Drop for ExitWhenUnwound {
            fn drop(&mut self) {
                exit_now(127);
            }
        }
        let _guard = ExitWhenUnwound;
        let status = work();
        exit_now(status)
    }

    /// For code that [`copy_process`] or [`copy_process_as_sibling`] has started. EINVAL outside of it.
    pub fn prove() -> Result<Self> {
        if IN_COPY.load(std::sync::atomic::Ordering::Relaxed) == 0 { Err(Errno::INVAL) } else { Ok(Self(())) }
    }
}

/// 1 in a copy of the process, 0 in one that was executed.
static IN_COPY: AtomicU32 = AtomicU32::new(0);

fn run_in_copy(child: impl FnOnce() -> u8) -> ! {
    IN_COPY.store(1, std::sync::atomic::Ordering::Relaxed);
    InCopy::run(child)
}

/// Ends this process at once: no destructor, no exit handler, no buffer is flushed.
fn exit_now(status: u8) -> ! {
    loop {
        // SAFETY: exit_group takes an integer and does not return; the loop is for the compiler, and for a filter that
        // refuses it: a copy that cannot end must not run on into its caller's code.
        let _ = unsafe { syscall!(libc::SYS_exit_group, i32::from(status)) };
    }
}

/// EINVAL when there is a second thread: the kernel unshares nothing for CLONE_THREAD, it only checks.
fn only_thread() -> Result<()> {
    // SAFETY: for a process with one thread CLONE_THREAD changes nothing, for others the call fails.
    unsafe { syscall!(libc::SYS_unshare, libc::CLONE_THREAD) }?;
    Ok(())
}

/// `struct clone_args`, version 2 (Linux 5.7).
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// One page of words that this process and its copies share: how a copy tells what it does without a system call, which
/// a filter could refuse.
#[derive(Debug)]
pub struct SharedWords {
    words: NonNull<AtomicU32>,
}

impl SharedWords {
    const BYTES: usize = 4096;
    /// How many words there are.
    pub const COUNT: usize = Self::BYTES / size_of::<AtomicU32>();

    /// All zero.
    pub fn new() -> Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let address = unsafe { syscall!(libc::SYS_mmap, 0, Self::BYTES, protection, flags, -1, 0) }?;
        NonNull::new(address as *mut AtomicU32).map(|words| Self { words }).ok_or(Errno::NOMEM)
    }

    /// The words.
    pub fn words(&self) -> &[AtomicU32] {
        // SAFETY: the mapping is readable, writable, aligned to a page and lives as long as `self`; it holds zeroes or
        // what atomic stores put there, and other processes change it only as atomic words too.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), Self::COUNT) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new`, and no reference to it outlives `self`.
        let _ = unsafe { syscall!(libc::SYS_munmap, self.words.as_ptr(), Self::BYTES) };
    }
}

/// Sets a resource limit of this process. Where raising the hard limit is refused, as much as the present one allows.
pub fn set_limit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    match limit(resource, Some(libc::rlimit64 { rlim_cur: soft, rlim_max: hard })) {
        Err(Errno::PERM) => {
            let ceiling = limit(resource, None)?.rlim_max;
            let hard = hard.min(ceiling);
            limit(resource, Some(libc::rlimit64 { rlim_cur: soft.min(hard), rlim_max: hard }))?;
            Ok(())
        }
        result => result.map(|_| ()),
    }
}

/// Raises the hard limit of a resource to `hard`, if it is lower, and leaves the soft one: for a process that is about
/// to give up the right to.
pub fn raise_hard_limit(resource: u32, hard: u64) -> Result<()> {
    let now = limit(resource, None)?;
    if hard > now.rlim_max {
        set_limit(resource, now.rlim_cur, hard)?;
    }
    Ok(())
}

fn limit(resource: u32, new: Option<libc::rlimit64>) -> Result<libc::rlimit64> {
    let mut old = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    let new = new.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: pid 0 is this process; `new` is null or points to a live struct, `old` to one that can be written.
    unsafe { syscall!(libc::SYS_prlimit64, 0, resource, new, &raw mut old) }?;
    Ok(old)
}

/// Writes a score to an open `oom_score_adj`. Where going that low is refused, the lowest that is allowed.
pub fn set_oom_score(file: impl AsFd, score: i32) -> Result<()> {
    let file = file.as_fd();
    match write_score(file, score) {
        // EACCES: below the lowest score that a privileged process has set (oom_score_adj_min), which cannot be read.
        Err(Errno::ACCESS) => {
            let (mut refused, mut allowed) = (score, read_score(file)?);
            while refused + 1 < allowed {
                let middle = refused + (allowed - refused) / 2;
                match write_score(file, middle) {
                    Ok(()) => allowed = middle,
                    Err(Errno::ACCESS) => refused = middle,
                    Err(errno) => return Err(errno),
                }
            }
            Ok(())
        }
        result => result,
    }
}

/// [`set_oom_score`] for this process.
pub fn set_own_oom_score(score: i32) -> Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    set_oom_score(open(c"/proc/self/oom_score_adj", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?, score)
}

fn write_score(file: BorrowedFd<'_>, score: i32) -> Result<()> {
    // "-1000" is the longest.
    let mut text = [0u8; 8];
    let mut start = text.len();
    let mut rest = score.unsigned_abs().min(1000);
    loop {
        start -= 1;
        text[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if score < 0 {
        start -= 1;
        text[start] = b'-';
    }
    rustix::io::pwrite(file, &text[start..], 0).map(|_| ())
}

fn read_score(file: BorrowedFd<'_>) -> Result<i32> {
    let mut text = [0u8; 16];
    let length = rustix::io::pread(file, &mut text, 0)?;
    let text = std::str::from_utf8(&text[..length]).map_err(|_| Errno::INVAL)?;
    text.trim().parse().map_err(|_| Errno::INVAL)
}

/// Makes this process undumpable: what it starts cannot be traced or have its /proc files opened by the unprivileged,
/// until it executes something.
pub fn forbid_dumps() -> Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
}

/// Makes this process the one that orphans among its descendants pass to.
pub fn become_subreaper() -> Result<()> {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes integers only.
    unsafe { syscall!(libc::SYS_prctl, libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }?;
    Ok(())
}

/// Has the kernel kill this process when the thread that started it ends.
pub fn die_with_parent() -> Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
}

/// Joins or makes the session keyring `name`, leaving the caller's.
pub fn join_session_keyring(name: &CStr) -> Result<()> {
    // SAFETY: the string outlives the call.
    unsafe { syscall!(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) }?;
    Ok(())
}

/// Whether the working directory lies beneath the root: it does not when it was entered by a descriptor from outside.
pub fn working_directory_is_reachable() -> bool {
    // PATH_MAX and a NUL: longer ones are ERANGE, and refused.
    let mut path = [0u8; 4097];
    // SAFETY: the kernel writes at most that many bytes into `path`.
    let length = unsafe { syscall!(libc::SYS_getcwd, path.as_mut_ptr(), path.len()) };
    // One outside is given as "(unreachable)/…"; a removed one is ENOENT.
    length.is_ok() && path[0] == b'/'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_is_not_copied() {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv());
        assert_eq!(copy_process(0, None, || 0).unwrap_err(), Errno::INVAL);
        drop(stop);
        let _ = thread.join();
    }

    #[test]
    fn closing_everything_is_only_for_copies() {
        assert_eq!(InCopy::prove().unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn words_start_at_zero_and_keep_what_is_stored() {
        use std::sync::atomic::Ordering::Relaxed;
        let shared = SharedWords::new().unwrap();
        assert!(shared.words().iter().all(|word| word.load(Relaxed) == 0));
        shared.words()[SharedWords::COUNT - 1].store(7, Relaxed);
        assert_eq!(shared.words()[SharedWords::COUNT - 1].load(Relaxed), 7);
    }

    #[test]
    fn a_hard_limit_is_only_raised_and_the_soft_one_stays() {
        let resource = libc::RLIMIT_CORE;
        let before = limit(resource, None).unwrap();
        raise_hard_limit(resource, 0).unwrap();
        let after = limit(resource, None).unwrap();
        assert_eq!((after.rlim_cur, after.rlim_max), (before.rlim_cur, before.rlim_max));
        // Without the right to, it stays where it is.
        raise_hard_limit(resource, u64::MAX).unwrap();
        let raised = limit(resource, None).unwrap();
        assert_eq!(raised.rlim_cur, before.rlim_cur);
        assert!(raised.rlim_max >= before.rlim_max);
    }

    #[test]
    fn a_score_is_written_as_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("score");
        for score in [-1000, -998, -1, 0, 7, 1000] {
            let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
            write_score(file.as_fd(), score).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), score.to_string());
            assert_eq!(read_score(file.as_fd()).unwrap(), score);
        }
    }

    #[test]
    fn only_own_children_are_opened() {
        assert_eq!(open_child(1).unwrap_err(), Errno::CHILD);
        assert_eq!(open_child(0).unwrap_err(), Errno::CHILD);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pidfd = open_child(child.id()).unwrap();
        assert_eq!(reap(&pidfd, true).unwrap(), Some(Ended::Exited(0)));
        let _ = child.wait();
    }
}
