//! A pipe's end or a terminal's master, read and written as the reactor says. It knows no client.

use crate::shim_client::watched;
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// Bytes of one read: what a pipe holds by default.
pub(super) const READ_BYTES: usize = 64 << 10;

/// Bytes that a terminal holds between its two ends, and more: the kernel's own limit is 8 KiB in flight and 4 KiB read.
const TERMINAL_BYTES_MAX: usize = 64 << 10;

/// One descriptor with O_NONBLOCK. Clones share it; it closes with the last of them.
#[derive(Debug, Clone)]
pub(super) struct Descriptor(Arc<AsyncFd<OwnedFd>>);

/// What a look at a descriptor gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// So many bytes were read.
    Bytes(usize),
    /// There is nothing now.
    Nothing,
    /// There will be nothing any more.
    End,
}

impl Descriptor {
    /// Takes a descriptor over. The flag O_NONBLOCK, which is set, is seen by whoever shares its description.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(Arc::new(watched(fd)?)))
    }

    /// Waits for bytes and reads some; 0 at the end.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> usize {
        loop {
            let Ok(mut ready) = self.0.readable().await else { return 0 };
            match self.look(buffer) {
                Look::Bytes(count) => return count,
                Look::End => return 0,
                Look::Nothing => ready.clear_ready(),
            }
        }
    }

    /// Reads without waiting, whatever the reactor knows.
    pub(super) fn look(&self, buffer: &mut [u8]) -> Look {
        loop {
            return match rustix::io::read(self.0.get_ref(), &mut *buffer) {
                Ok(0) => Look::End,
                Ok(count) => Look::Bytes(count),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Look::Nothing,
                // EIO: nobody has the terminal open any more.
                Err(_) => Look::End,
            };
        }
    }

    /// Writes everything, waiting for room.
    ///
    /// # Errors
    /// EPIPE or EIO: nobody reads at the other end.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match rustix::io::write(self.0.get_ref(), bytes) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// How many bytes can lie between the two ends.
    pub(super) fn capacity(&self) -> usize {
        rustix::pipe::fcntl_getpipe_size(self.0.get_ref()).unwrap_or(TERMINAL_BYTES_MAX)
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// Memory for one read.
pub(super) fn scratch() -> Box<[u8]> {
    vec![0; READ_BYTES].into_boxed_slice()
}

/// A pipe: its read end and its write end, both close-on-exec.
pub(super) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn what_is_written_is_read_and_the_end_is_seen() {
        let (read, write) = pipe().unwrap();
        let (read, write) = (Descriptor::new(read).unwrap(), Descriptor::new(write).unwrap());
        let mut buffer = [0; 100];
        assert_eq!(read.look(&mut buffer), Look::Nothing);
        write.write_all(b"twelve bytes").await.unwrap();
        assert_eq!(read.read(&mut buffer[..6]).await, 6);
        assert_eq!(&buffer[..6], b"twelve");
        drop(write);
        assert_eq!(read.read(&mut buffer).await, 6);
        assert_eq!(&buffer[..6], b" bytes");
        assert_eq!(read.read(&mut buffer).await, 0);
    }

    #[tokio::test]
    async fn a_write_waits_for_room_and_learns_that_the_reader_is_gone() {
        let (read, write) = pipe().unwrap();
        let (read, write) = (Descriptor::new(read).unwrap(), Descriptor::new(write).unwrap());
        let much = vec![b'x'; read.capacity() + 1];
        let writing = write.write_all(&much);
        tokio::pin!(writing);
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut writing).await.is_err());
        drop(read);
        let error = tokio::time::timeout(Duration::from_secs(10), writing).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
