//! What an attached client has not taken yet. It is read from its pipe at once, so that the container waits only for a
//! client that is really behind, and not for each turn of the daemon.
//!
//! A client on a poor line takes nothing for seconds, then much at once: buffers of TCP open only when a good part of
//! them is free. The shim cuts off who takes nothing for 2 s. So a reserve is filled slowly meanwhile, at the pace that the
//! shim counts as reading.

use super::descriptor::{Descriptor, scratch};
use super::pump::Sink;
use bytes::{Bytes, BytesMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// Bytes of one stream of one client that are read as fast as they come. A terminal's screen has some KiB; this is a burst
/// of a build's output.
const AHEAD_BYTES: usize = 512 << 10;

/// Bytes that are kept of one stream of one client beside what its pipe holds; twice it is what one client may cost. The
/// reserve lasts for 4.8 s of a client that takes nothing.
const BACKLOG_BYTES_MAX: usize = 2 << 20;

/// How the reserve is filled: 320 KiB/s, a little more than the 256 KiB/s of a client that the shim never cuts off.
const RESERVE_PIECE_BYTES: usize = 32 << 10;
const RESERVE_PAUSE: Duration = Duration::from_millis(100);

/// Bytes that go to the client at once: what fits into one frame of either transport.
const SEND_BYTES: usize = 32 << 10;

/// How the carrying of a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Carried {
    /// The client has everything.
    All,
    /// The client has closed its stream.
    Unwanted,
}

/// Carries output to a client, reading ahead of it.
pub(super) async fn carry_ahead<S: Sink>(from: Descriptor, mut to: S) -> Carried {
    let backlog = Arc::new(Backlog::default());
    // A task of its own: the pipe is emptied also while a send computes, and what fills it does not wait.
    let _reading = Reading(tokio::spawn(gather(from, backlog.clone())));
    while let Some(bytes) = backlog.take().await {
        if !to.send(bytes).await {
            return Carried::Unwanted;
        }
    }
    Carried::All
}

async fn gather(from: Descriptor, backlog: Arc<Backlog>) {
    // Said also when the task is ended.
    let _over = Over(&backlog);
    let mut buffer = scratch();
    let mut reserve_at = Instant::now();
    loop {
        let room = backlog.room(&mut reserve_at).await.min(buffer.len());
        match from.read(&mut buffer[..room]).await {
            0 => return,
            count => backlog.add(&buffer[..count]),
        }
        // On a machine that is short of CPU time there is always more to read: the carrying must get its turn.
        tokio::task::yield_now().await;
    }
}

/// Ends the reading with the carrying.
struct Reading(tokio::task::JoinHandle<()>);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Over<'a>(&'a Backlog);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

/// Bytes between one reader and one sender.
#[derive(Debug, Default)]
struct Backlog {
    held: Mutex<Held>,
    added: Notify,
    taken: Notify,
}

#[derive(Debug, Default)]
struct Held {
    bytes: BytesMut,
    over: bool,
}

impl Backlog {
    /// Held for a moment, never across a wait.
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something may be read; gives how much. `reserve_at` is when the reserve may get its next piece.
    async fn room(&self, reserve_at: &mut Instant) -> usize {
        loop {
            let held = self.held().bytes.len();
            let taken = self.taken.notified();
            match held {
                ..AHEAD_BYTES => return AHEAD_BYTES - held,
                AHEAD_BYTES..BACKLOG_BYTES_MAX => {
                    if timeout_at(*reserve_at, taken).await.is_err() {
                        *reserve_at = Instant::now() + RESERVE_PAUSE;
                        return RESERVE_PIECE_BYTES.min(BACKLOG_BYTES_MAX - held);
                    }
                }
                _ => taken.await,
            }
        }
    }

    fn add(&self, bytes: &[u8]) {
        self.held().bytes.extend_from_slice(bytes);
        self.added.notify_one();
    }

    fn finish(&self) {
        self.held().over = true;
        self.added.notify_one();
    }

    /// The next bytes, `None` after the last.
    async fn take(&self) -> Option<Bytes> {
        loop {
            {
                let mut held = self.held();
                if !held.bytes.is_empty() {
                    let length = held.bytes.len().min(SEND_BYTES);
                    // Copied, so that what is sent does not keep the whole backlog's memory.
                    let bytes = Bytes::copy_from_slice(&held.bytes[..length]);
                    bytes::Buf::advance(&mut held.bytes, length);
                    if held.bytes.is_empty() {
                        held.bytes = BytesMut::new();
                    }
                    self.taken.notify_one();
                    return Some(bytes);
                }
                if held.over {
                    return None;
                }
            }
            self.added.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streaming::descriptor::pipe;

    /// A client that takes nothing until it is let.
    struct Slow {
        let_go: Arc<Notify>,
        got: Arc<Mutex<Vec<u8>>>,
        waits: bool,
    }

    impl Sink for Slow {
        async fn send(&mut self, bytes: Bytes) -> bool {
            if self.waits {
                self.let_go.notified().await;
                self.waits = false;
            }
            self.got.lock().unwrap().extend_from_slice(&bytes);
            true
        }
    }

    #[tokio::test]
    async fn a_client_that_sleeps_is_read_ahead_of_at_once_then_slowly_and_loses_nothing() {
        let (read, write) = pipe().unwrap();
        let (read, write) = (Descriptor::new(read).unwrap(), Descriptor::new(write).unwrap());
        let pipe_bytes = read.capacity();
        let (let_go, got) = (Arc::new(Notify::new()), Arc::default());
        let client = Slow { let_go: let_go.clone(), got: Arc::clone(&got), waits: true };
        let carrying = tokio::spawn(carry_ahead(read, client));
        let mut written: Vec<u8> = Vec::new();
        let chunk: Vec<u8> = (0..4096).map(|n| (n % 251) as u8).collect();
        // A chunk that waits goes in as far as there is room, which is all or nothing: pipes take pages.
        while tokio::time::timeout(RESERVE_PAUSE / 2, write.write_all(&chunk)).await.is_ok() {
            written.extend_from_slice(&chunk);
        }
        let at_once = written.len();
        assert!(at_once >= AHEAD_BYTES + pipe_bytes / 2, "{at_once}");
        assert!(at_once <= AHEAD_BYTES + pipe_bytes + SEND_BYTES + 2 * RESERVE_PIECE_BYTES, "{at_once}");
        let started = Instant::now();
        while written.len() < at_once + 4 * RESERVE_PIECE_BYTES {
            tokio::time::timeout(Duration::from_secs(20), write.write_all(&chunk)).await.unwrap().unwrap();
            written.extend_from_slice(&chunk);
        }
        assert!(started.elapsed() >= 2 * RESERVE_PAUSE, "{:?}", started.elapsed());
        let_go.notify_one();
        drop(write);
        let carried = tokio::time::timeout(Duration::from_secs(20), carrying).await.unwrap().unwrap();
        assert_eq!(carried, Carried::All);
        assert!(*got.lock().unwrap() == written);
    }

    struct Leaving;

    impl Sink for Leaving {
        async fn send(&mut self, _: Bytes) -> bool {
            false
        }
    }

    #[tokio::test]
    async fn a_client_that_closes_its_stream_ends_the_carrying() {
        let (read, write) = pipe().unwrap();
        rustix::io::write(&write, b"x").unwrap();
        let carrying = carry_ahead(Descriptor::new(read).unwrap(), Leaving);
        let carried = tokio::time::timeout(Duration::from_secs(20), carrying).await.unwrap();
        assert_eq!(carried, Carried::Unwanted);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while rustix::io::write(&write, b"x") != Err(rustix::io::Errno::PIPE) {
            assert!(tokio::time::Instant::now() < deadline, "its pipe is still read");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
