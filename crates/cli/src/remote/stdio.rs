//! Standard input and outputs of this process as streams of bytes, each behind a thread of its own that blocks.
//!
//! Why threads, and not descriptors that do not block: O_NONBLOCK belongs to the open file, which this process shares
//! with the shell and with whatever else was given the terminal or the pipe. Set here, it would make their reads fail,
//! and it would stay set if this process were killed. And why not tokio's own: its blocking threads are waited for.
//! These are abandoned when the process ends, wherever they are blocked.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::{mpsc, oneshot};

use crate::terminal::{BACKGROUND_POLL, is_in_front};

/// One read: what a pipe holds.
const READ_BYTES: usize = 64 << 10;

/// Reads that may wait for the peer. What is read ahead is lost to the next program on the same input.
const READS_AHEAD: usize = 1;

/// Pieces that may wait for a reader of ours; beyond it the peer is held back.
const WRITES_AHEAD: usize = 4;

/// Bytes that somebody gives this process.
pub struct Input {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
}

impl Input {
    /// Reads from a descriptor from now on.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn open(from: impl AsFd) -> io::Result<Self> {
        let from = from.as_fd().try_clone_to_owned()?;
        let (sender, pieces) = mpsc::channel(READS_AHEAD);
        thread::Builder::new().name("input".to_owned()).spawn(move || read_all(&from, &sender))?;
        Ok(Self { pieces })
    }

    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Option<io::Result<Bytes>> {
        self.pieces.recv().await
    }
}

fn read_all(from: &OwnedFd, pieces: &mpsc::Sender<io::Result<Bytes>>) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let piece = match read(from, &mut buffer) {
            Ok(0) => return,
            Ok(length) => Ok(Bytes::copy_from_slice(&buffer[..length])),
            Err(Errno::INTR | Errno::AGAIN) => continue,
            // Its other side has gone; SIGHUP says so to those whose terminal it was.
            Err(Errno::IO) if from.is_terminal() => return,
            Err(error) => Err(error.into()),
        };
        let failed = piece.is_err();
        if pieces.blocking_send(piece).is_err() || failed {
            return;
        }
    }
}

/// Reads what is there once something is. A read that has begun, or that is begun in the background, would stop the whole
/// process (SIGTTIN) each time that it is continued, before it can do anything else, such as end by a signal. Waiting
/// does not; it also helps where somebody else has left O_NONBLOCK set on the open file.
fn read(from: &OwnedFd, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    wait_for(from, PollFlags::IN)?;
    if from.is_terminal() && !is_in_front(from) {
        // What is typed now is somebody else's.
        thread::sleep(BACKGROUND_POLL);
        return Err(Errno::AGAIN);
    }
    rustix::io::read(from, buffer)
}

/// Bytes that go to somebody who reads from this process.
pub struct Output {
    pieces: mpsc::Sender<Bytes>,
    /// Taken once it has told of an error.
    written: Option<oneshot::Receiver<io::Result<()>>>,
}

impl Output {
    /// Writes to a descriptor.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn open(to: impl AsFd) -> io::Result<Self> {
        let to = to.as_fd().try_clone_to_owned()?;
        let (pieces, mut receiver) = mpsc::channel::<Bytes>(WRITES_AHEAD);
        let (report, written) = oneshot::channel();
        thread::Builder::new().name("output".to_owned()).spawn(move || {
            let mut outcome = Ok(());
            while outcome.is_ok()
                && let Some(piece) = receiver.blocking_recv()
            {
                outcome = write_all(&to, &piece);
            }
            // First: what is given after the error must not seem to be taken.
            drop(receiver);
            let _ = report.send(outcome);
        })?;
        Ok(Self { pieces, written: Some(written) })
    }

    /// Writes as soon as what came before is written.
    ///
    /// # Errors
    /// Of this or of an earlier write; a reader that has gone is `BrokenPipe`.
    pub async fn write(&mut self, piece: Bytes) -> io::Result<()> {
        match self.pieces.send(piece).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.failed().await),
        }
    }

    /// Waits for the error of a write, for ever if there is none: whoever writes seldom learns of it in time.
    pub async fn failed(&mut self) -> io::Error {
        let Some(written) = &mut self.written else { return io::ErrorKind::BrokenPipe.into() };
        let outcome = written.await;
        self.written = None;
        // While there may be more to write, the thread ends by an error only.
        outcome.ok().and_then(Result::err).unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
    }

    /// Waits until everything is written.
    ///
    /// # Errors
    /// As for writing.
    pub async fn finish(self) -> io::Result<()> {
        drop(self.pieces);
        match self.written {
            Some(written) => written.await.unwrap_or_else(|_| Err(io::Error::other("the thread that writes has gone"))),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

fn write_all(to: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(Errno::INTR) => {}
            // Somebody else has left O_NONBLOCK set on the open file.
            Err(Errno::AGAIN) => match wait_for(to, PollFlags::OUT) {
                Ok(()) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            },
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// As long as a blocking read or write would.
fn wait_for(descriptor: &OwnedFd, what: PollFlags) -> rustix::io::Result<()> {
    poll(&mut [PollFd::new(descriptor, what)], None).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::time::Duration;

    async fn all(mut input: Input) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(piece) = input.next().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
        bytes
    }

    #[tokio::test]
    async fn everything_is_read_and_written_in_order() {
        let (reader, mut writer) = io::pipe().unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        let input = Input::open(&reader).unwrap();
        let feeder = thread::spawn(move || writer.write_all(&sent).unwrap());
        let (mut copied, target) = io::pipe().unwrap();
        let mut output = Output::open(&target).unwrap();
        drop(target);
        let collector = thread::spawn(move || {
            let mut bytes = Vec::new();
            copied.read_to_end(&mut bytes).unwrap();
            bytes
        });
        let bytes = all(input).await;
        feeder.join().unwrap();
        for piece in bytes.chunks(7_777) {
            output.write(Bytes::copy_from_slice(piece)).await.unwrap();
        }
        output.finish().await.unwrap();
        assert!(collector.join().unwrap() == expected);
    }

    #[tokio::test]
    async fn descriptors_that_do_not_block_are_waited_for() {
        let (reader, mut writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let input = Input::open(&reader).unwrap();
        let feeder = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            writer.write_all(b"late").unwrap();
        });
        assert_eq!(all(input).await, b"late");
        feeder.join().unwrap();

        let (mut reader, writer) = io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let mut output = Output::open(&writer).unwrap();
        drop(writer);
        let collector = thread::spawn(move || {
            thread::sleep(Duration::from_millis(20));
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).unwrap();
            bytes.len()
        });
        output.write(Bytes::from(vec![0; 300_000])).await.unwrap();
        output.finish().await.unwrap();
        assert_eq!(collector.join().unwrap(), 300_000);
    }

    #[tokio::test]
    async fn a_reader_that_has_gone_is_told_as_such() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let mut output = Output::open(&writer).unwrap();
        output.write(Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(output.failed().await.kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(output.write(Bytes::from_static(b"x")).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        let mut output = Output::open(&writer).unwrap();
        output.write(Bytes::from_static(b"x")).await.unwrap();
        assert_eq!(output.finish().await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_an_error() {
        let directory = std::fs::File::open("/").unwrap();
        let mut input = Input::open(&directory).unwrap();
        assert!(input.next().await.unwrap().is_err());
        assert!(input.next().await.is_none());
    }
}
