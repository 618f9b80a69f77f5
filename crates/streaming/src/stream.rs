//! One stream of a connection: two queues, between the handles that a session holds ([`crate::Sender`],
//! [`crate::Receiver`]) and the connection's driver ([`crate::mux`]). Nothing here knows how bytes travel.
//!
//! ```text
//!  Sender ──> outgoing ──> ready list ──> driver ──> connection
//!  Receiver <── incoming <────────────── driver <── connection
//! ```
//!
//! A queue that is full stops whoever fills it: the sender waits, and the driver stops reading the connection. The
//! peers have no windows (Go's SPDY ignores them), so that a stream nobody reads stops its whole connection; that is
//! TCP's order, and no other connection notices.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use knarr_wire::remotecommand::{SizeDecoder, TerminalSize};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::mux::Gone;

/// Bytes of one stream that its receiver has not taken before the connection is no longer read: what fills a pipe of
/// the kernel a few times, so that a reader that stalls for a moment costs nothing.
pub(crate) const RECEIVE_BYTES: usize = 256 << 10;
/// The same over all streams of a connection: many forwarded connections that stand still hold this much, not each.
pub(crate) const CONNECTION_RECEIVE_BYTES: usize = 4 << 20;
/// Bytes that a sender may queue before it waits, of a command's output.
pub(crate) const SEND_BYTES: usize = 256 << 10;
/// The same of a forwarded connection, of which there may be many.
pub(crate) const FORWARD_SEND_BYTES: usize = 64 << 10;
/// A piece shorter than this is copied, not shared: a shared one holds the whole buffer (64 KiB) in which it arrived,
/// and a peer that sends single bytes would make each of them cost that much. With this it is four times at most.
const SHARED_BYTES_MIN: usize = 16 << 10;

/// Why nothing more comes from the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It has closed its half.
    Finished,
    /// It has reset the stream.
    Reset,
    /// The connection is gone.
    Gone,
}

/// What is done with bytes from the peer.
pub(crate) enum Incoming {
    /// They wait for a receiver.
    Kept,
    /// They are terminal sizes, of which only the latest counts: never full, so that a size comes through while stdin
    /// stands still.
    Sizes(SizeDecoder),
    /// Nobody wants them.
    Dropped,
}

/// What all streams of one connection share.
pub(crate) struct Shared {
    driver: Mutex<DriverSide>,
    /// Streams whose receiver is behind.
    full: AtomicUsize,
    /// Bytes from the peer that nobody has taken, of all streams.
    received: AtomicUsize,
    /// Handles of a client; with the last one the connection is closed.
    handles: AtomicUsize,
    /// Cancelled when the connection is gone.
    pub(crate) gone: CancellationToken,
    why: OnceLock<Gone>,
}

#[derive(Default)]
struct DriverSide {
    waker: Option<Waker>,
    /// Streams with something to send, each at most once.
    ready: VecDeque<Arc<Stream>>,
    opens: VecDeque<Open>,
}

/// A wish of a client for one more stream.
pub(crate) struct Open {
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) send_bytes: usize,
    pub(crate) incoming: Incoming,
    pub(crate) opened: oneshot::Sender<Arc<Stream>>,
}

/// One stream.
pub(crate) struct Stream {
    pub(crate) id: u32,
    shared: Arc<Shared>,
    send_bytes: usize,
    state: Mutex<State>,
}

struct State {
    incoming: Incoming,
    pieces: VecDeque<Piece>,
    received: usize,
    /// Counted in [`Shared::full`].
    full: bool,
    ended: Option<Ended>,
    size: Option<TerminalSize>,
    receiver: Option<Waker>,

    outgoing: VecDeque<Bytes>,
    queued: usize,
    size_out: Option<TerminalSize>,
    /// In the ready list.
    ready: bool,
    out: Out,
    sender: Option<Waker>,
}

/// Our half.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Out {
    Open,
    /// To be ended, or reset, behind what is queued.
    Ending {
        reset: bool,
    },
    /// Ended, reset by either side, or its connection gone: nothing more is sent.
    Over,
}

enum Piece {
    Shared(Bytes),
    Copied(BytesMut),
}

/// What the driver is to send of a stream.
#[derive(Debug)]
pub(crate) enum Send {
    /// Bytes, at most so many as asked for, and whether they are the last.
    Data(Bytes, bool),
    /// The stream is given up.
    Reset,
}

impl Shared {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            driver: Mutex::default(),
            full: AtomicUsize::new(0),
            received: AtomicUsize::new(0),
            handles: AtomicUsize::new(0),
            gone: CancellationToken::new(),
            why: OnceLock::new(),
        })
    }

    fn driver(&self) -> MutexGuard<'_, DriverSide> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether no more may be taken from the peer now.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire) > 0 || self.received.load(Ordering::Acquire) > CONNECTION_RECEIVE_BYTES
    }

    /// Remembers whom to wake when there is something to do.
    pub(crate) fn driven_by(&self, waker: &Waker) {
        let mut driver = self.driver();
        if !driver.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            driver.waker = Some(waker.clone());
        }
    }

    pub(crate) fn wake(&self) {
        let waker = self.driver().waker.clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn next_ready(&self) -> Option<Arc<Stream>> {
        self.driver().ready.pop_front()
    }

    pub(crate) fn next_open(&self) -> Option<Open> {
        self.driver().opens.pop_front()
    }

    /// Asks the driver for one more stream. Callers wait for the answer, so that there are as many as callers.
    pub(crate) fn open(&self, open: Open) {
        self.driver().opens.push_back(open);
        self.wake();
    }

    /// Lets go of wishes and streams once there is no driver any more.
    pub(crate) fn close(&self, why: &Gone) {
        self.why.get_or_init(|| why.clone());
        self.gone.cancel();
        let (ready, opens) = {
            let mut driver = self.driver();
            driver.waker = None;
            (std::mem::take(&mut driver.ready), std::mem::take(&mut driver.opens))
        };
        drop((ready, opens));
    }

    /// Why the connection is gone, for a person.
    pub(crate) fn why_gone(&self) -> String {
        self.why.get().map_or_else(|| "the connection goes on".to_owned(), ToString::to_string)
    }

    /// Whether the peer has closed the connection, rather than that it broke.
    pub(crate) fn is_gone_in_order(&self) -> bool {
        self.why.get() == Some(&Gone::Closed)
    }

    /// Whether streams have something to send.
    pub(crate) fn has_ready(&self) -> bool {
        !self.driver().ready.is_empty()
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.handles.load(Ordering::Acquire) == 0
    }

    /// Counts one handle of a client.
    pub(crate) fn hold(self: &Arc<Self>) -> Held {
        self.handles.fetch_add(1, Ordering::AcqRel);
        Held(self.clone())
    }
}

/// Keeps a client's connection.
#[derive(Debug)]
pub(crate) struct Held(Arc<Shared>);

impl Drop for Held {
    fn drop(&mut self) {
        if self.0.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.wake();
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Stream {
    pub(crate) fn new(id: u32, shared: &Arc<Shared>, incoming: Incoming, send_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            id,
            shared: shared.clone(),
            send_bytes,
            state: Mutex::new(State {
                incoming,
                pieces: VecDeque::new(),
                received: 0,
                full: false,
                ended: None,
                size: None,
                receiver: None,
                outgoing: VecDeque::new(),
                queued: 0,
                size_out: None,
                ready: false,
                out: Out::Open,
                sender: None,
            }),
        })
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the stream into the ready list, unless it is there.
    fn make_ready(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if std::mem::replace(&mut state.ready, true) {
            return;
        }
        drop(state);
        let waker = {
            let mut driver = self.shared.driver();
            driver.ready.push_back(self.clone());
            driver.waker.clone()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    // ---- the receiver's side

    /// The next bytes, or why there will be none.
    pub(crate) fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Ended>> {
        let mut state = self.state();
        if let Some(piece) = state.pieces.pop_front() {
            let bytes = piece.freeze();
            state.received -= bytes.len();
            let before = self.shared.received.fetch_sub(bytes.len(), Ordering::AcqRel);
            let mut free = before > CONNECTION_RECEIVE_BYTES && before - bytes.len() <= CONNECTION_RECEIVE_BYTES;
            // Half, so that the driver is not woken for each piece of a queue that stays full.
            if state.full && state.received <= RECEIVE_BYTES / 2 {
                state.full = false;
                free |= self.shared.full.fetch_sub(1, Ordering::AcqRel) == 1;
            }
            drop(state);
            if free {
                self.shared.wake();
            }
            return Poll::Ready(Ok(bytes));
        }
        if let Some(ended) = state.ended {
            return Poll::Ready(Err(ended));
        }
        state.receiver = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The latest terminal size, or `None` if there will be none.
    pub(crate) fn poll_size(&self, cx: &mut Context<'_>) -> Poll<Option<TerminalSize>> {
        let mut state = self.state();
        if let Some(size) = state.size.take() {
            return Poll::Ready(Some(size));
        }
        if state.ended.is_some() {
            return Poll::Ready(None);
        }
        state.receiver = Some(cx.waker().clone());
        Poll::Pending
    }

    pub(crate) fn take_size(&self) -> Option<TerminalSize> {
        self.state().size.take()
    }

    /// Nobody receives any more: what is there and what comes is dropped, and holds nobody back.
    pub(crate) fn drop_incoming(&self) {
        let mut state = self.state();
        state.incoming = Incoming::Dropped;
        state.receiver = None;
        let pieces = std::mem::take(&mut state.pieces);
        let received = std::mem::take(&mut state.received);
        self.shared.received.fetch_sub(received, Ordering::AcqRel);
        if std::mem::take(&mut state.full) {
            self.shared.full.fetch_sub(1, Ordering::AcqRel);
        }
        drop(state);
        drop(pieces);
        if received > 0 {
            self.shared.wake();
        }
    }

    /// As [`Stream::drop_incoming`], for a receiver that is still there: it is told that nothing more comes.
    pub(crate) fn stop_receiving(&self, why: Ended) {
        let receiver = {
            let mut state = self.state();
            state.ended.get_or_insert(why);
            state.receiver.take()
        };
        self.drop_incoming();
        if let Some(receiver) = receiver {
            receiver.wake();
        }
    }

    // ---- the sender's side

    /// Whether there is room for more; the error is that nobody is there any more.
    pub(crate) fn poll_room(&self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        let mut state = self.state();
        if state.out != Out::Open {
            return Poll::Ready(Err(()));
        }
        if state.queued < self.send_bytes {
            return Poll::Ready(Ok(()));
        }
        state.sender = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Queues bytes. They are counted, not refused: [`Stream::poll_room`] is asked before.
    pub(crate) fn push(self: &Arc<Self>, bytes: Bytes) {
        let mut state = self.state();
        if state.out == Out::Open {
            state.queued += bytes.len();
            state.outgoing.push_back(bytes);
            self.make_ready(state);
        }
    }

    pub(crate) fn push_size(self: &Arc<Self>, size: TerminalSize) {
        let mut state = self.state();
        if state.out == Out::Open {
            state.size_out = Some(size);
            self.make_ready(state);
        }
    }

    /// Ends our half behind what is queued.
    pub(crate) fn finish(self: &Arc<Self>) {
        self.end(false);
    }

    /// Gives the stream up, behind what is queued; what comes on it is dropped from now on.
    pub(crate) fn reset(self: &Arc<Self>) {
        self.end(true);
        self.stop_receiving(Ended::Reset);
    }

    fn end(self: &Arc<Self>, reset: bool) {
        let mut state = self.state();
        match state.out {
            Out::Open => state.out = Out::Ending { reset },
            Out::Ending { reset: false } if reset => state.out = Out::Ending { reset },
            // Our half has ended, the peer's has not: it learns that it is not heard any more.
            Out::Over if reset && state.ended.is_none() => state.out = Out::Ending { reset },
            _ => return,
        }
        if let Some(sender) = state.sender.take() {
            sender.wake();
        }
        self.make_ready(state);
    }

    /// Whether all that we had to say has been handed to the connection.
    pub(crate) fn is_sent(&self) -> bool {
        self.state().out == Out::Over
    }

    /// Why nothing more comes, if so; bytes that wait are not looked at.
    pub(crate) fn ended(&self) -> Option<Ended> {
        self.state().ended
    }

    // ---- the driver's side

    /// Bytes from the peer.
    pub(crate) fn deliver(&self, bytes: Bytes) {
        let mut state = self.state();
        if state.ended.is_some() || bytes.is_empty() {
            return;
        }
        match &mut state.incoming {
            Incoming::Dropped => return,
            // What is no size is not worth the session: the terminal keeps the one that it has.
            Incoming::Sizes(decoder) => match decoder.feed(&bytes) {
                Ok(Some(size)) => state.size = Some(size),
                Ok(None) | Err(_) => return,
            },
            Incoming::Kept => {
                state.received += bytes.len();
                self.shared.received.fetch_add(bytes.len(), Ordering::AcqRel);
                match state.pieces.back_mut() {
                    _ if bytes.len() >= SHARED_BYTES_MIN => state.pieces.push_back(Piece::Shared(bytes)),
                    Some(Piece::Copied(last)) if last.len() < SHARED_BYTES_MIN => last.extend_from_slice(&bytes),
                    _ => state.pieces.push_back(Piece::Copied(BytesMut::from(&bytes[..]))),
                }
                if !state.full && state.received >= RECEIVE_BYTES {
                    state.full = true;
                    self.shared.full.fetch_add(1, Ordering::AcqRel);
                }
            }
        }
        let receiver = state.receiver.take();
        drop(state);
        if let Some(receiver) = receiver {
            receiver.wake();
        }
    }

    /// Nothing more comes, and after a reset or with the connection nothing more goes either.
    pub(crate) fn end_incoming(&self, why: Ended) {
        let mut state = self.state();
        state.ended.get_or_insert(why);
        let mut wakers = vec![state.receiver.take()];
        if why != Ended::Finished {
            state.out = Out::Over;
            state.outgoing.clear();
            state.queued = 0;
            state.size_out = None;
            wakers.push(state.sender.take());
        }
        drop(state);
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Takes the next thing to send, at most `bytes_max` of it. Called for a stream out of the ready list, into which
    /// it goes back, at the end, while there is more.
    pub(crate) fn next_send(self: &Arc<Self>, bytes_max: usize) -> Option<Send> {
        let mut state = self.state();
        state.ready = false;
        let bytes = match state.size_out.take() {
            Some(size) => Some(size.encode().into()),
            None => state.pop_outgoing(bytes_max),
        };
        let sender = (state.queued < self.send_bytes).then(|| state.sender.take()).flatten();
        let more = !state.outgoing.is_empty();
        let (send, more) = match (bytes, state.out) {
            (_, Out::Over) => (None, false),
            (Some(bytes), Out::Ending { reset: false }) if !more => (Some((bytes, true)), false),
            (Some(bytes), out) => (Some((bytes, false)), more || out != Out::Open),
            (None, Out::Ending { reset: false }) => (Some((Bytes::new(), true)), false),
            (None, Out::Ending { reset: true }) => {
                state.out = Out::Over;
                state.ended.get_or_insert(Ended::Reset);
                let receiver = state.receiver.take();
                drop(state);
                sender.into_iter().chain(receiver).for_each(Waker::wake);
                return Some(Send::Reset);
            }
            (None, Out::Open) => (None, false),
        };
        if matches!(send, Some((_, true))) {
            state.out = Out::Over;
        }
        if more {
            self.make_ready(state);
        } else {
            drop(state);
        }
        if let Some(sender) = sender {
            sender.wake();
        }
        send.map(|(bytes, last)| Send::Data(bytes, last))
    }

    /// Whether both halves have ended.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.state();
        state.ended.is_some() && state.out == Out::Over
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // What nobody can take any more must not stop the connection.
        self.drop_incoming();
    }
}

impl State {
    fn pop_outgoing(&mut self, bytes_max: usize) -> Option<Bytes> {
        let bytes = match self.outgoing.front_mut()? {
            first if first.len() > bytes_max => first.split_to(bytes_max),
            _ => self.outgoing.pop_front()?,
        };
        self.queued -= bytes.len();
        Some(bytes)
    }
}

impl Piece {
    fn freeze(self) -> Bytes {
        match self {
            Self::Shared(bytes) => bytes,
            Self::Copied(bytes) => bytes.freeze(),
        }
    }
}
