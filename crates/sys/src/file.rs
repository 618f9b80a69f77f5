//! Files: what rustix lacks.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Tells the kernel to begin writing the file's dirty pages to disk, and does not wait (`sync_file_range` with WRITE
/// alone). Nothing is durable by this; a later `syncfs` or `fsync` finds less to do.
///
/// Not every file system can; those that cannot simply write later.
pub fn start_writeback(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is passed; the descriptor is open for as long as the borrow lasts.
    let result = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    if result == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EOPNOTSUPP | libc::EINVAL)) => Ok(()),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    #[test]
    fn write_back_is_started_on_a_file_and_refused_on_a_pipe() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"dirty").unwrap();
        start_writeback(file.as_fd()).unwrap();
        let (_reader, writer) = io::pipe().unwrap();
        assert!(start_writeback(writer.as_fd()).is_err());
    }
}
