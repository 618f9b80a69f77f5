//! The raw system call, with its error as a value. Everything else in this room that rustix lacks goes through here.

use libc::{c_int, c_long};
use rustix::io::Errno;

/// What a raw call returned: -1 stands for the thread's errno.
pub(crate) fn check(returned: c_long) -> rustix::io::Result<usize> {
    if returned >= 0 {
        return Ok(returned as usize);
    }
    // SAFETY: the pointer that __errno_location gives is valid for the life of the calling thread, which is this one.
    let errno: c_int = unsafe { *libc::__errno_location() };
    Err(Errno::from_raw_os_error(errno))
}

/// Makes a system call by number. Each argument is widened to a whole register: a variadic call leaves the upper half
/// of a narrower one undefined, and the kernel looks at all of it where it takes a long.
macro_rules! syscall {
    ($number:expr $(, $argument:expr)* $(,)?) => {
        $crate::call::check(libc::syscall($number $(, $argument as libc::c_long)*))
    };
}
pub(crate) use syscall;
