//! The driver of one connection: reads and writes it, sorts what comes into the streams and takes from them what goes.
//! It is polled by the one task that the connection has; what the streams are for, that task knows.

use std::collections::HashMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use knarr_wire::spdy::Headers;
use tokio::io::AsyncWrite;
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::io::{poll_read_buf, poll_write_buf};

use crate::io::{Io, linger};
use crate::outgoing::Outgoing;
use crate::protocol::{self, Protocol, Role};
use crate::shared::{Open, Shared};
use crate::stream::{Ended, Incoming, Send, Stream};

/// Bytes of a connection that are read at once.
const READ_BYTES: usize = 64 << 10;
/// Bytes of one data frame or message that we send: enough that heads do not count, and not so much that a small piece
/// of another stream waits for long behind it.
pub(crate) const PIECE_BYTES: usize = 64 << 10;
/// Bytes that stand ready to be written to a connection; more stays in its streams.
const WRITE_BYTES: usize = 256 << 10;
/// Bytes of answers (pings, refused streams) that a peer has not read before nothing more is read from it.
const ANSWER_BYTES: usize = 64 << 10;
/// How often a connection that is not read, because a stream is full, is asked whether its peer has gone.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long a peer that has been told everything may take to close its end.
const LINGER: Duration = Duration::from_secs(5);

/// One connection.
pub(crate) struct Mux {
    io: Io,
    protocol: Protocol,
    input: BytesMut,
    out: Outgoing,
    /// Something has been written that may stand in a buffer of TLS.
    unflushed: bool,
    streams: HashMap<u32, Arc<Stream>>,
    shared: Arc<Shared>,
    /// Opened by us, and not yet agreed to.
    opens: HashMap<u32, tokio::sync::oneshot::Sender<Arc<Stream>>>,
    idle: Option<Idle>,
    /// For the server: a client that has closed its end has gone, whatever it sent before. A server that has closed
    /// its end has only finished, and all that it sent counts.
    look: Option<Pin<Box<Sleep>>>,
    /// Writing has failed, and what the peer sent before is still to be read.
    unwritable: Option<Gone>,
    gone: Option<Gone>,
}

/// What the connection's task must know of.
#[derive(Debug)]
pub(crate) enum Event {
    /// The peer has opened a stream; [`Mux::accept`] or [`Mux::refuse`] it.
    Opened { stream: u32, headers: Headers, fin: bool },
    /// The connection is over.
    Gone(Gone),
}

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Gone {
    /// The peer has closed it, or has said that it will.
    Closed,
    /// Reading or writing failed.
    Broken(String),
    /// The peer does not keep to the protocol.
    Violation(String),
    /// No byte has moved for the time allowed.
    Idle(Duration),
    /// We are stopping.
    Stopped,
}

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("the peer has closed the connection"),
            Self::Broken(error) => write!(f, "the connection broke: {error}"),
            Self::Violation(what) => f.write_str(what),
            Self::Stopped => f.write_str("the server is stopping"),
            Self::Idle(limit) => write!(f, "no byte came or went for {limit:?}"),
        }
    }
}

/// Watches that bytes move.
struct Idle {
    limit: Duration,
    last: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Idle {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // The timer is moved when it fires and not with each byte: that would be a lock for each.
        while self.sleep.as_mut().poll(cx).is_ready() {
            let end = self.last + self.limit;
            if end <= Instant::now() {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(end);
        }
        Poll::Pending
    }
}

impl Mux {
    /// Drives a connection, of which `input` has been read already.
    pub(crate) fn new(io: Io, input: Bytes, protocol: Protocol, role: Role, idle: Option<Duration>) -> Self {
        let idle = idle.map(|limit| Idle { limit, last: Instant::now(), sleep: Box::pin(sleep(limit)) });
        Self {
            io,
            protocol,
            input: BytesMut::from(&input[..]),
            out: Outgoing::default(),
            unflushed: false,
            streams: HashMap::new(),
            shared: Shared::new(),
            opens: HashMap::new(),
            idle,
            look: (role == Role::Server).then(|| Box::pin(sleep(LOOK_INTERVAL))),
            unwritable: None,
            gone: None,
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// A stream that is there without having been opened: a channel.
    pub(crate) fn channel(&mut self, number: u8, incoming: Incoming, send_bytes: usize) -> Arc<Stream> {
        self.add(number.into(), incoming, send_bytes)
    }

    fn add(&mut self, id: u32, incoming: Incoming, send_bytes: usize) -> Arc<Stream> {
        let stream = Stream::new(id, &self.shared, incoming, send_bytes);
        self.streams.insert(id, stream.clone());
        stream
    }

    /// Agrees to a stream that the peer has opened.
    pub(crate) fn accept(&mut self, id: u32, fin: bool, incoming: Incoming, send_bytes: usize) -> Arc<Stream> {
        let stream = self.add(id, incoming, send_bytes);
        self.protocol.reply(id, &mut self.out);
        if fin {
            stream.end_incoming(Ended::Finished);
        }
        stream
    }

    /// Does not agree to a stream that the peer has opened.
    pub(crate) fn refuse(&mut self, id: u32) {
        self.protocol.reset(id, true, &mut self.out);
    }

    /// See [`Protocol::greet`].
    pub(crate) fn greet(&mut self, channel: u8) {
        self.protocol.greet(channel, &mut self.out);
    }

    /// Drives until something happens. It may be dropped and called again; nothing is lost.
    pub(crate) async fn event(&mut self) -> Event {
        poll_fn(|cx| self.poll_event(cx)).await
    }

    /// Drives until `done`; streams that the peer opens are refused.
    ///
    /// # Errors
    /// The connection is over before that.
    pub(crate) async fn until(&mut self, mut done: impl FnMut(&Self) -> bool) -> Result<(), Gone> {
        poll_fn(|cx| {
            loop {
                let event = self.poll_event(cx);
                if done(self) {
                    return Poll::Ready(Ok(()));
                }
                match event {
                    Poll::Ready(Event::Opened { stream, .. }) => self.refuse(stream),
                    Poll::Ready(Event::Gone(gone)) => return Poll::Ready(Err(gone)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        self.shared.driven_by(cx.waker());
        if let Some(gone) = &self.gone {
            return Poll::Ready(Event::Gone(gone.clone()));
        }
        match self.drive(cx) {
            Poll::Ready(Ok((stream, headers, fin))) => Poll::Ready(Event::Opened { stream, headers, fin }),
            Poll::Ready(Err(gone)) => {
                if let Gone::Violation(_) = gone {
                    // What tells the peer of it goes out if it can go at once.
                    let _ = poll_write_buf(Pin::new(&mut self.io), cx, &mut self.out);
                    let _ = Pin::new(&mut self.io).poll_flush(cx);
                }
                self.end(gone.clone());
                Poll::Ready(Event::Gone(gone))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn drive(&mut self, cx: &mut Context<'_>) -> Poll<Result<(u32, Headers, bool), Gone>> {
        loop {
            self.open_streams();
            self.write(cx);
            while !self.is_paused() {
                match self.protocol.read(&mut self.input, &mut self.out).map_err(Gone::Violation)? {
                    None => break,
                    Some(protocol::Event::Away) => {
                        // A WebSocket's close is answered.
                        self.write(cx);
                        return Poll::Ready(Err(Gone::Closed));
                    }
                    Some(protocol::Event::Opened { stream, headers, fin }) => {
                        return Poll::Ready(Ok((stream, headers, fin)));
                    }
                    Some(event) => self.sort(event),
                }
            }
            // Answers go out before more is read.
            self.write(cx);
            if self.is_paused() {
                if self.poll_look(cx).is_ready() {
                    return Poll::Ready(Err(Gone::Closed));
                }
                break;
            }
            // What is left of the last buffer is used up first: it may be held by pieces that nobody has taken.
            if self.input.capacity() - self.input.len() < READ_BYTES / 4 {
                self.input.reserve(READ_BYTES);
            }
            match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(self.unwritable.take().unwrap_or(Gone::Closed))),
                Poll::Ready(Ok(_)) => self.moved(),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Gone::Broken(error.to_string()))),
                Poll::Pending => match self.unwritable.take() {
                    Some(gone) => return Poll::Ready(Err(gone)),
                    None => break,
                },
            }
        }
        if let Some(idle) = &mut self.idle
            && idle.poll(cx).is_ready()
        {
            return Poll::Ready(Err(Gone::Idle(idle.limit)));
        }
        Poll::Pending
    }

    /// Whether nothing may be taken from the peer now.
    fn is_paused(&self) -> bool {
        self.out.answers() > ANSWER_BYTES || self.shared.is_full()
    }

    fn moved(&mut self) {
        if let Some(idle) = &mut self.idle {
            idle.last = Instant::now();
        }
    }

    /// Resolves when the client of a connection that is not read has gone.
    fn poll_look(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(look) = &mut self.look else { return Poll::Pending };
        while look.as_mut().poll(cx).is_ready() {
            if self.io.is_closed_by_peer() {
                return Poll::Ready(());
            }
            look.as_mut().reset(Instant::now() + LOOK_INTERVAL);
        }
        Poll::Pending
    }

    /// Opens the streams that a client asks for.
    fn open_streams(&mut self) {
        while let Some(Open { headers, send_bytes, incoming, opened }) = self.shared.next_open() {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            // Dropping `opened` tells of the failure.
            if let Ok(id) = self.protocol.open(&headers, &mut self.out) {
                self.add(id, incoming, send_bytes);
                self.opens.insert(id, opened);
            }
        }
    }

    fn sort(&mut self, event: protocol::Event) {
        match event {
            protocol::Event::Data { stream: id, bytes, fin } => {
                let Some(stream) = self.streams.get(&id) else { return };
                stream.deliver(bytes);
                if fin {
                    stream.end_incoming(Ended::Finished);
                    self.forget_if_over(id);
                }
            }
            protocol::Event::Replied { stream: id, fin } => {
                let Some(stream) = self.streams.get(&id) else { return };
                if fin {
                    stream.end_incoming(Ended::Finished);
                }
                // Who does not wait any more has dropped its half of this too.
                if let Some(opened) = self.opens.remove(&id)
                    && let Err(stream) = opened.send(stream.clone())
                {
                    stream.reset();
                }
            }
            protocol::Event::Reset { stream: id } => {
                self.opens.remove(&id);
                if let Some(stream) = self.streams.remove(&id) {
                    stream.end_incoming(Ended::Reset);
                }
            }
            protocol::Event::Opened { .. } | protocol::Event::Away => {}
        }
    }

    fn forget_if_over(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(|stream| stream.is_over()) {
            self.streams.remove(&id);
        }
    }

    /// Writes what there is, as far as the connection takes it. Streams take turns, a piece each.
    ///
    /// A failure is not the end yet: a server that closes while we still send (its command reads no more) makes the
    /// kernel reset the connection, but how the command ended was sent before and can be read.
    fn write(&mut self, cx: &mut Context<'_>) {
        if self.unwritable.is_none()
            && let Err(gone) = self.write_some(cx)
        {
            self.out = Outgoing::default();
            self.unflushed = false;
            self.unwritable = Some(gone);
        }
    }

    fn write_some(&mut self, cx: &mut Context<'_>) -> Result<(), Gone> {
        loop {
            while bytes::Buf::remaining(&self.out) < WRITE_BYTES {
                let Some(stream) = self.shared.next_ready() else { break };
                match stream.next_send(PIECE_BYTES) {
                    Some(Send::Data(bytes, fin)) => {
                        let is_open = self.protocol.data(stream.id, bytes, fin, &mut self.out);
                        if !is_open {
                            stream.end_incoming(Ended::Reset);
                        }
                    }
                    Some(Send::Reset) => self.protocol.reset(stream.id, false, &mut self.out),
                    None => {}
                }
                self.forget_if_over(stream.id);
            }
            let written = if !self.out.is_empty() {
                poll_write_buf(Pin::new(&mut self.io), cx, &mut self.out)
            } else if self.unflushed {
                Pin::new(&mut self.io).poll_flush(cx).map_ok(|()| 0)
            } else {
                return Ok(());
            };
            match written {
                Poll::Ready(Ok(0)) if self.out.is_empty() => {
                    self.unflushed = false;
                    return Ok(());
                }
                Poll::Ready(Ok(0)) => return Err(Gone::Broken("nothing can be written".to_owned())),
                Poll::Ready(Ok(_)) => {
                    self.unflushed = true;
                    self.moved();
                }
                Poll::Ready(Err(error)) => return Err(Gone::Broken(error.to_string())),
                Poll::Pending => return Ok(()),
            }
        }
    }

    fn is_written(&self) -> bool {
        self.out.is_empty() && !self.unflushed
    }

    /// Takes the connection for gone: whoever waits for its streams is told.
    pub(crate) fn end(&mut self, gone: Gone) {
        let gone = self.gone.get_or_insert(gone);
        // First: who is told of a stream's end asks why.
        self.shared.close(gone);
        self.opens.clear();
        for (_, stream) in self.streams.drain() {
            stream.end_incoming(Ended::Gone);
        }
    }

    /// Lets go of a connection that is over. A peer that violated the protocol gets to read that it did.
    pub(crate) async fn dismiss(mut self) {
        if let Some(Gone::Violation(_)) = self.gone {
            linger(&mut self.io, LINGER, LINGER).await;
        }
    }

    /// Closes the connection once the peer has taken everything that was sent, however long that takes it while bytes
    /// move: all streams are over, and what the peer still sends is dropped.
    pub(crate) async fn close(mut self) {
        for stream in self.streams.values() {
            stream.stop_receiving(Ended::Gone);
        }
        if self.until(|mux| !mux.shared.has_ready()).await.is_err() {
            return;
        }
        self.protocol.farewell(&mut self.out);
        if self.until(Self::is_written).await.is_ok() {
            self.end(Gone::Closed);
            let idle = self.idle.as_ref().map_or(LINGER, |idle| idle.limit);
            linger(&mut self.io, LINGER, idle).await;
        }
    }
}

impl Drop for Mux {
    fn drop(&mut self) {
        self.end(Gone::Closed);
    }
}
