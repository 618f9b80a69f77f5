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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use knarr_wire::remotecommand::{SizeDecoder, TerminalSize};

use crate::shared::Shared;

/// Bytes of one stream that its receiver has not taken before the connection is no longer read: what fills a pipe of
/// the kernel a few times, so that a reader that stalls for a moment costs nothing.
pub(crate) const RECEIVE_BYTES: usize = 256 << 10;
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
        self.shared.make_ready(self.clone());
    }

    // ---- the receiver's side

    /// The next bytes, or why there will be none.
    pub(crate) fn poll_receive(&self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Ended>> {
        let mut state = self.state();
        if let Some(piece) = state.pieces.pop_front() {
            let bytes = piece.freeze();
            state.received -= bytes.len();
            // Half, so that the driver is not woken for each piece of a queue that stays full.
            let caught_up = state.full && state.received <= RECEIVE_BYTES / 2;
            state.full &= !caught_up;
            drop(state);
            self.shared.release(bytes.len(), caught_up);
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
        let caught_up = std::mem::take(&mut state.full);
        drop(state);
        drop(pieces);
        self.shared.release(received, caught_up);
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
                self.shared.hold_bytes(bytes.len());
                match state.pieces.back_mut() {
                    _ if bytes.len() >= SHARED_BYTES_MIN => state.pieces.push_back(Piece::Shared(bytes)),
                    Some(Piece::Copied(last)) if last.len() < SHARED_BYTES_MIN => last.extend_from_slice(&bytes),
                    _ => state.pieces.push_back(Piece::Copied(BytesMut::from(&bytes[..]))),
                }
                if !state.full && state.received >= RECEIVE_BYTES {
                    state.full = true;
                    self.shared.fill();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::CONNECTION_RECEIVE_BYTES;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    /// Says whether it has been woken.
    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    impl Woken {
        fn take(&self) -> bool {
            self.0.swap(false, Ordering::SeqCst)
        }
    }

    fn driven() -> (Arc<Shared>, Arc<Woken>) {
        let (shared, woken) = (Shared::new(), Arc::new(Woken::default()));
        shared.driven_by(&woken.clone().into());
        (shared, woken)
    }

    fn context() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    fn receive(stream: &Stream) -> Poll<Result<Bytes, Ended>> {
        stream.poll_receive(&mut context())
    }

    #[test]
    fn bytes_come_out_as_they_went_in_and_small_ones_hold_no_large_buffer() {
        let (shared, _) = driven();
        let stream = Stream::new(1, &shared, Incoming::Kept, SEND_BYTES);
        let whole = Bytes::from((0..64 << 10).map(|at| (at % 251) as u8).collect::<Vec<_>>());
        let buffer = whole.as_ptr_range();
        let (mut rest, mut all) = (whole.clone(), Vec::new());
        for length in [1, 1, 5000, 1, SHARED_BYTES_MIN - 1, SHARED_BYTES_MIN, 1, 20_000] {
            let piece = rest.split_to(length);
            all.extend_from_slice(&piece);
            stream.deliver(piece);
        }
        let (mut came, mut shared_pieces) = (Vec::new(), 0);
        while let Poll::Ready(Ok(piece)) = receive(&stream) {
            let is_shared = buffer.contains(&piece.as_ptr());
            assert!(!is_shared || piece.len() >= SHARED_BYTES_MIN, "{} bytes hold their buffer", piece.len());
            shared_pieces += usize::from(is_shared);
            came.extend_from_slice(&piece);
        }
        assert!(came == all);
        assert_eq!(shared_pieces, 2, "large ones are not copied");
    }

    #[test]
    fn a_full_stream_stops_its_connection_until_half_is_taken() {
        let (shared, driver) = driven();
        let stream = Stream::new(1, &shared, Incoming::Kept, SEND_BYTES);
        let other = Stream::new(3, &shared, Incoming::Kept, SEND_BYTES);
        let piece = Bytes::from(vec![0; 64 << 10]);
        for _ in 0..RECEIVE_BYTES / piece.len() {
            assert!(!shared.is_full());
            stream.deliver(piece.clone());
        }
        assert!(shared.is_full());
        let mut taken = 0;
        while shared.is_full() {
            assert!(!driver.take());
            assert!(receive(&stream).is_ready());
            taken += piece.len();
        }
        assert!(taken == RECEIVE_BYTES / 2 && driver.take());
        // A receiver that is dropped, or a stream that is, holds nobody back.
        for _ in 0..2 {
            stream.deliver(piece.clone());
        }
        assert!(shared.is_full());
        stream.drop_incoming();
        assert!(!shared.is_full() && driver.take());
        for _ in 0..10 {
            stream.deliver(piece.clone());
            other.deliver(piece.clone());
        }
        assert!(shared.is_full());
        drop(other);
        assert!(!shared.is_full() && driver.take());
    }

    #[test]
    fn many_streams_together_stop_their_connection_too() {
        let (shared, driver) = driven();
        let piece = Bytes::from(vec![0; 100 << 10]);
        let streams: Vec<_> = (0..60).map(|id| Stream::new(id, &shared, Incoming::Kept, SEND_BYTES)).collect();
        let full_at = streams.iter().position(|stream| {
            stream.deliver(piece.clone());
            shared.is_full()
        });
        assert_eq!(full_at, Some(CONNECTION_RECEIVE_BYTES / piece.len()));
        assert!(receive(&streams[0]).is_ready());
        assert!(!shared.is_full() && driver.take());
    }

    #[test]
    fn what_is_sent_goes_in_pieces_with_its_end_behind_it() {
        let (shared, driver) = driven();
        let stream = Stream::new(1, &shared, Incoming::Kept, 10);
        let room = |stream: &Stream| stream.poll_room(&mut context());
        assert_eq!(room(&stream), Poll::Ready(Ok(())));
        stream.push("0123456789abc".into());
        assert!(room(&stream).is_pending() && driver.take());
        stream.push("def".into());
        stream.finish();
        assert_eq!(room(&stream), Poll::Ready(Err(())), "it was ended");
        stream.push("too late".into());
        let mut sent = Vec::new();
        while let Some(ready) = shared.next_ready() {
            match ready.next_send(8) {
                Some(Send::Data(bytes, last)) => sent.push((bytes, last)),
                other => panic!("{other:?}"),
            }
            assert_eq!(stream.is_sent(), sent.len() == 3);
        }
        assert_eq!(sent, [("01234567".into(), false), ("89abc".into(), false), ("def".into(), true)]);
    }

    #[test]
    fn a_reset_comes_behind_what_was_said_and_even_behind_an_end() {
        let (shared, _) = driven();
        for finished in [false, true] {
            let stream = Stream::new(1, &shared, Incoming::Kept, SEND_BYTES);
            stream.push("why".into());
            if finished {
                stream.finish();
                let sent = shared.next_ready().and_then(|ready| ready.next_send(100));
                assert!(matches!(sent, Some(Send::Data(_, true))));
            }
            stream.reset();
            assert_eq!(receive(&stream), Poll::Ready(Err(Ended::Reset)));
            let mut sent = Vec::new();
            while let Some(ready) = shared.next_ready() {
                sent.extend(ready.next_send(100));
            }
            match (finished, &sent[..]) {
                (false, [Send::Data(bytes, false), Send::Reset]) => assert_eq!(bytes, "why"),
                (true, [Send::Reset]) => {}
                other => panic!("{other:?}"),
            }
            assert!(stream.is_over());
            // Once both halves have ended there is nothing to reset.
            stream.reset();
            assert!(!shared.has_ready());
        }
    }

    #[test]
    fn of_sizes_the_latest_is_kept_and_sent() {
        let (shared, _) = driven();
        let size = |columns| TerminalSize { columns, rows: 9 };
        let sender = Stream::new(1, &shared, Incoming::Dropped, SEND_BYTES);
        let receiver = Stream::new(1, &shared, Incoming::Sizes(SizeDecoder::new()), SEND_BYTES);
        assert!(receiver.poll_size(&mut context()).is_pending());
        for columns in 1..100 {
            sender.push_size(size(columns));
        }
        for columns in [100, 200] {
            sender.push_size(size(columns));
            while let Some(ready) = shared.next_ready() {
                match ready.next_send(100) {
                    Some(Send::Data(bytes, false)) => receiver.deliver(bytes),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(receiver.take_size(), Some(size(200)));
        assert_eq!(receiver.take_size(), None);
        receiver.end_incoming(Ended::Gone);
        assert_eq!(receiver.poll_size(&mut context()), Poll::Ready(None));
    }
}
