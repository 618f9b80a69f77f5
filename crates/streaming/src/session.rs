//! What both ends hold of one session: byte streams in one direction each, and the terminal's sizes.

use std::future::poll_fn;
use std::sync::Arc;

use bytes::Bytes;
use knarr_wire::remotecommand::TerminalSize;

use crate::shared::Held;
use crate::stream::{Ended, Stream};

/// Which streams of a command are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[allow(missing_docs)]
pub struct Wanted {
    pub stdin: bool,
    pub stdout: bool,
    /// Never together with `tty`: a terminal has one output.
    pub stderr: bool,
    pub tty: bool,
}

/// Bytes that come from the peer. Once it is dropped, what still comes is dropped too and holds nobody back.
#[derive(Debug)]
pub struct Receiver {
    stream: Arc<Stream>,
    /// Dropped before its end, the whole stream is given up.
    gives_up: bool,
    _held: Option<Held>,
}

impl Receiver {
    pub(crate) fn new(stream: Arc<Stream>) -> Self {
        Self { stream, gives_up: false, _held: None }
    }

    /// One that keeps its client's connection.
    pub(crate) fn holding(stream: Arc<Stream>) -> Self {
        let held = stream.shared().hold();
        Self { stream, gives_up: false, _held: Some(held) }
    }

    /// One whose stream is of no use without it.
    pub(crate) fn giving_up(mut self) -> Self {
        self.gives_up = true;
        self
    }

    /// The next bytes; `None` once the peer has closed its half, or the connection is gone. What is not taken holds
    /// the peer back: nothing is dropped.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.receive().await.ok()
    }

    /// The next bytes, or why there are none.
    pub(crate) async fn receive(&mut self) -> Result<Bytes, Ended> {
        poll_fn(|cx| self.stream.poll_receive(cx)).await
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if self.gives_up && self.stream.ended().is_none() {
            self.stream.reset();
        }
        self.stream.drop_incoming();
    }
}

/// Bytes that go to the peer. Dropped without [`Sender::finish`], the stream is ended all the same.
#[derive(Debug)]
pub struct Sender {
    stream: Arc<Stream>,
    _held: Option<Held>,
}

impl Sender {
    pub(crate) fn new(stream: Arc<Stream>) -> Self {
        Self { stream, _held: None }
    }

    /// One that keeps its client's connection.
    pub(crate) fn holding(stream: Arc<Stream>) -> Self {
        let held = stream.shared().hold();
        Self { stream, _held: Some(held) }
    }

    /// Waits while the peer does not read.
    ///
    /// # Errors
    /// The connection is gone or the peer has reset the stream.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), Gone> {
        poll_fn(|cx| self.stream.poll_room(cx)).await.map_err(|()| Gone)?;
        if !bytes.is_empty() {
            self.stream.push(bytes);
        }
        Ok(())
    }

    /// Closes this half. A WebSocket before v5 has no word for it: there the peer sees nothing.
    ///
    /// # Errors
    /// The connection is gone or the peer has reset the stream.
    pub async fn finish(self) -> Result<(), Gone> {
        if self.stream.is_sent() {
            return Err(Gone);
        }
        self.stream.finish();
        Ok(())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stream.finish();
    }
}

/// Nobody is at the other end any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("nobody is at the other end any more")
    }
}

impl std::error::Error for Gone {}

/// Sizes of the client's terminal; only the latest counts.
#[derive(Debug)]
pub struct ResizeReceiver {
    stream: Arc<Stream>,
}

impl ResizeReceiver {
    pub(crate) fn new(stream: Arc<Stream>) -> Self {
        Self { stream }
    }

    /// The latest size that has not been returned yet, without waiting.
    pub fn latest(&mut self) -> Option<TerminalSize> {
        self.stream.take_size()
    }

    /// The next size; `None` when there will be none.
    pub async fn next(&mut self) -> Option<TerminalSize> {
        poll_fn(|cx| self.stream.poll_size(cx)).await
    }
}

/// Tells the server the terminal's size.
#[derive(Debug)]
pub struct ResizeSender {
    stream: Arc<Stream>,
    _held: Held,
}

impl ResizeSender {
    pub(crate) fn holding(stream: Arc<Stream>) -> Self {
        let held = stream.shared().hold();
        Self { stream, _held: held }
    }

    /// Sends a size; an older one that has not been sent yet is dropped.
    pub fn send(&self, size: TerminalSize) {
        self.stream.push_size(size);
    }
}

impl Drop for ResizeSender {
    fn drop(&mut self) {
        self.stream.finish();
    }
}
