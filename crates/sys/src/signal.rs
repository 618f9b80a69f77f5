//! Signals by descriptor, and a clean slate of them for a new process.

use crate::call::syscall;
use rustix::io::{Errno, Result};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// Highest signal number.
pub const SIGNAL_MAX: u8 = 64;

/// SIGCHLD
pub const CHILD: i32 = libc::SIGCHLD;

/// A set of signals, as the kernel takes it: bit n - 1 is signal n.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Set(u64);

impl Set {
    /// None.
    pub const EMPTY: Self = Self(0);
    /// Every signal that can be blocked.
    pub const ALL: Self = Self(!0);

    /// Those numbers (1..=64); others are left out.
    pub fn of(signals: &[i32]) -> Self {
        let known = signals.iter().filter(|&&signal| (1..=i32::from(SIGNAL_MAX)).contains(&signal));
        Self(known.fold(0, |mask, signal| mask | 1 << (signal - 1)))
    }
}

/// What one read of a signal descriptor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Which signal.
    pub signal: i32,
    /// Who sent it; for SIGCHLD the child. Several of one kind are told as one: never count on this number alone.
    pub pid: u32,
}

/// Replaces the calling thread's mask of blocked signals.
pub fn set_mask(blocked: Set) -> Result<()> {
    mask(libc::SIG_SETMASK, blocked)
}

/// Adds to the calling thread's mask.
pub fn block(signals: Set) -> Result<()> {
    mask(libc::SIG_BLOCK, signals)
}

/// A descriptor (non-blocking, close-on-exec) that becomes readable when one of `signals`, which must be blocked, comes.
pub fn descriptor(signals: Set) -> Result<OwnedFd> {
    let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
    // SAFETY: the set is 8 bytes, as the size says, and outlives the call.
    let fd = unsafe { syscall!(libc::SYS_signalfd4, -1, &raw const signals.0, 8usize, flags) }?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Takes one signal off a descriptor; `None` when there is no more.
pub fn receive(descriptor: impl AsFd) -> Result<Option<Received>> {
    let mut info = MaybeUninit::<libc::signalfd_siginfo>::zeroed();
    let size = size_of::<libc::signalfd_siginfo>();
    let fd = descriptor.as_fd().as_raw_fd();
    loop {
        // SAFETY: `info` has room for `size` bytes and outlives the call.
        match unsafe { syscall!(libc::SYS_read, fd, info.as_mut_ptr(), size) } {
            Ok(n) if n == size => {
                // SAFETY: the kernel has written a whole record, and the type is plain integers anyway.
                let info = unsafe { info.assume_init() };
                return Ok(Some(Received { signal: info.ssi_signo as i32, pid: info.ssi_pid }));
            }
            Ok(_) => return Err(Errno::IO),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

/// Ignores a signal in this process (inherited through exec).
pub fn ignore(signal: i32) -> Result<()> {
    set_action(signal, libc::SIG_IGN)
}

/// Puts every signal back to its default and blocks none: what a new program expects. No allocation.
pub fn reset_all() -> Result<()> {
    for signal in 1..=i32::from(SIGNAL_MAX) {
        if signal != libc::SIGKILL && signal != libc::SIGSTOP {
            set_action(signal, libc::SIG_DFL)?;
        }
    }
    set_mask(Set::EMPTY)
}

fn mask(how: libc::c_int, signals: Set) -> Result<()> {
    // SAFETY: the set is 8 bytes, as the size says, and outlives the call; no old set is asked for.
    unsafe { syscall!(libc::SYS_rt_sigprocmask, how, &raw const signals.0, std::ptr::null::<u64>(), 8usize) }?;
    Ok(())
}

/// The kernel's `struct sigaction`, which is not libc's: the raw call also reaches the two signals that libc keeps to
/// itself, which a program may have been started with as ignored.
#[repr(C)]
struct KernelAction {
    handler: usize,
    flags: u64,
    restorer: usize,
    mask: u64,
}

fn set_action(signal: i32, handler: usize) -> Result<()> {
    let action = KernelAction { handler, flags: 0, restorer: 0, mask: 0 };
    // SAFETY: `action` has the kernel's layout and outlives the call; its handler is SIG_DFL or SIG_IGN, so no code of
    // ours is ever called and no restorer is needed.
    unsafe { syscall!(libc::SYS_rt_sigaction, signal, &raw const action, std::ptr::null::<u8>(), 8usize) }?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_signal_is_read_from_its_descriptor() {
        std::thread::spawn(|| {
            let set = Set::of(&[libc::SIGUSR2]);
            block(set).unwrap();
            let fd = descriptor(set).unwrap();
            assert_eq!(receive(&fd).unwrap(), None);
            // SAFETY: pthread_kill of the calling thread itself, which exists.
            unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGUSR2) };
            let received = receive(&fd).unwrap().unwrap();
            assert_eq!((received.signal, received.pid), (libc::SIGUSR2, std::process::id()));
            assert_eq!(receive(&fd).unwrap(), None);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn numbers_that_are_no_signals_are_left_out() {
        assert_eq!(Set::of(&[0, -1, 65]), Set::EMPTY);
        assert_eq!(Set::of(&[1, 64]), Set(1 | 1 << 63));
    }
}
