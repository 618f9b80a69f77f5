//! One session: which streams there are, whose halves have ended, and what comes next. Who calls it reads, writes, waits
//! and gives up; the session does none of these.

use std::collections::HashMap;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::frame::{self, FIN, Head, UNIDIRECTIONAL, kind};
use super::headers::{Fault, Inflater, Storer};
use super::{
    CONTROL_FRAME_BYTES_MAX, DATA_FRAME_BYTES_MAX, FRAME_HEADER_BYTES, GoAwayStatus, Headers, NotOpen, Refused,
    ResetStatus, Role, STREAMS_OPEN_MAX, StreamId, Violation,
};

/// The greatest number of a stream.
const STREAM_NUMBER_MAX: u32 = (1 << 31) - 1;

/// What has come from the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The peer has opened a stream; it waits for [`Session::reply`] or [`Session::reset`].
    Opened {
        /// Its number.
        stream: StreamId,
        /// What it is for.
        headers: Headers,
        /// The peer will send nothing on it.
        fin: bool,
    },
    /// The peer has accepted a stream of ours.
    Replied {
        /// Its number.
        stream: StreamId,
        /// The peer will send nothing on it.
        fin: bool,
    },
    /// Bytes of a stream.
    Data {
        /// Its number.
        stream: StreamId,
        /// As they came; empty only with `fin`. They keep the whole buffer alive from which they were split: who holds
        /// many small pieces copies them.
        bytes: Bytes,
        /// These are the last: the peer's half has ended.
        fin: bool,
    },
    /// A stream has ended in both directions: the peer has reset it, or has used it in a way for which the session has
    /// done so. Kubernetes' server ends every stream like this, with [`ResetStatus::Cancel`] and all of the data before
    /// it: to its client that is an end like any other.
    Reset {
        /// Its number.
        stream: StreamId,
        /// Why.
        status: ResetStatus,
    },
    /// The answer to the latest [`Session::ping`].
    Pong(u32),
    /// The peer accepts no more streams.
    GoAway {
        /// The last of our streams that it has seen; 0 for none.
        last_good: StreamId,
        /// Why.
        status: GoAwayStatus,
    },
}

/// One end of a session.
#[derive(Debug)]
pub struct Session {
    role: Role,
    /// Every stream of which at least one half is open: ended ones are forgotten.
    streams: HashMap<StreamId, Stream>,
    /// What our next stream is called.
    next_own: u32,
    /// The last stream that the peer opened, accepted or not.
    last_of_peer: u32,
    inflater: Inflater,
    storer: Storer,
    /// What is still to come of a frame whose header has been taken.
    rest: Rest,
    next_ping: u32,
    waiting_for_pong: Option<u32>,
    sent_go_away: bool,
    got_go_away: bool,
    broken: Option<Violation>,
}

#[derive(Debug)]
struct Stream {
    /// Who was asked by SYN_STREAM has answered with SYN_REPLY.
    replied: bool,
    our_half: bool,
    peers_half: bool,
}

#[derive(Debug, Clone, Copy)]
enum Rest {
    /// A frame's header comes next.
    Nothing,
    /// Payload of a stream that is open for it.
    Data { stream: StreamId, left: usize, fin: bool },
    /// Bytes that nobody wants.
    Unwanted { left: usize },
}

impl Session {
    /// A session in which nothing has been said yet.
    pub fn new(role: Role) -> Self {
        Self {
            role,
            streams: HashMap::new(),
            next_own: role.first_number(),
            last_of_peer: 0,
            inflater: Inflater::default(),
            storer: Storer::default(),
            rest: Rest::Nothing,
            next_ping: role.first_number(),
            waiting_for_pong: None,
            sent_go_away: false,
            got_go_away: false,
            broken: None,
        }
    }

    /// Takes from the front of `input` what makes the next event; `None`: more bytes are needed, and what is left in
    /// `input` is at most a control frame that is not complete. What the protocol itself must answer (pings, streams
    /// that cannot be, the end of a session that was violated) is appended to `output`, at most twice as many bytes as
    /// were taken, and a GOAWAY: who writes them out before reading on needs no further limit.
    ///
    /// # Errors
    /// The peer violates the protocol. A GOAWAY that says so has been appended to `output`; the same error is given
    /// for ever after.
    pub fn next_event(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<Option<Event>, Violation> {
        if let Some(violation) = self.broken {
            return Err(violation);
        }
        let result = self.advance(input, output);
        if let Err(violation) = result {
            self.go_away(GoAwayStatus::ProtocolError, output);
            self.broken = Some(violation);
        }
        result
    }

    /// Opens a stream with these headers (SYN_STREAM). Bytes may be sent on it before the peer has replied, but Go's
    /// server drops them.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn open(&mut self, headers: &[(&str, &str)], output: &mut BytesMut) -> Result<StreamId, Refused> {
        if self.sent_go_away || self.got_go_away || self.broken.is_some() {
            return Err(Refused::GoneAway);
        }
        if self.streams.len() >= STREAMS_OPEN_MAX {
            return Err(Refused::TooManyStreams);
        }
        if self.next_own > STREAM_NUMBER_MAX {
            return Err(Refused::NumbersUsedUp);
        }
        let headers = Headers::new(headers).ok_or(Refused::Headers)?;
        let stream = StreamId(self.next_own);
        self.next_own += 2;
        self.streams.insert(stream, Stream { replied: false, our_half: true, peers_half: true });
        frame::put_control_header(kind::SYN_STREAM, 0, 10 + self.storer.bytes(&headers), output);
        output.put_u32(stream.0);
        output.put_u32(0); // associated with no stream
        output.put_u16(0); // the highest priority, no credential slot
        self.storer.put(&headers, output);
        Ok(stream)
    }

    /// Accepts a stream that the peer has opened (SYN_REPLY).
    ///
    /// # Errors
    /// The stream is gone, is our own, or has been accepted already.
    pub fn reply(&mut self, stream: StreamId, output: &mut BytesMut) -> Result<(), NotOpen> {
        let of_peer = !self.role.begins(stream.0);
        let entry = self.streams.get_mut(&stream).ok_or(NotOpen::Closed)?;
        if entry.replied || !of_peer {
            return Err(NotOpen::Reply);
        }
        entry.replied = true;
        let none = Headers::default();
        frame::put_control_header(kind::SYN_REPLY, 0, 4 + self.storer.bytes(&none), output);
        output.put_u32(stream.0);
        self.storer.put(&none, output);
        Ok(())
    }

    /// The header of a data frame whose `length` bytes of payload the caller writes right behind it. With `fin` they are
    /// the last of our half.
    ///
    /// # Errors
    /// See [`NotOpen`].
    pub fn data_header(
        &mut self,
        stream: StreamId,
        length: usize,
        fin: bool,
    ) -> Result<[u8; FRAME_HEADER_BYTES], NotOpen> {
        let entry = self.streams.get_mut(&stream).filter(|s| s.our_half).ok_or(NotOpen::Closed)?;
        if !entry.replied && !self.role.begins(stream.0) {
            return Err(NotOpen::Reply);
        }
        if length > DATA_FRAME_BYTES_MAX {
            return Err(NotOpen::TooLong);
        }
        if fin {
            entry.our_half = false;
            self.forget_if_ended(stream);
        }
        Ok(frame::data_header(stream, length, fin))
    }

    /// Ends a stream in both directions. What is on its way from the peer is dropped; a stream that has ended already
    /// is left alone.
    pub fn reset(&mut self, stream: StreamId, status: ResetStatus, output: &mut BytesMut) {
        if self.streams.remove(&stream).is_none() {
            return;
        }
        frame::put_reset(stream, status, output);
        if let Rest::Data { stream: current, left, .. } = self.rest
            && current == stream
        {
            self.rest = Rest::Unwanted { left };
        }
    }

    /// Asks the peer for a sign of life; gives what [`Event::Pong`] will hold. Only the latest ping is waited for.
    pub fn ping(&mut self, output: &mut BytesMut) -> u32 {
        let id = self.next_ping;
        self.next_ping = id.checked_add(2).unwrap_or(self.role.first_number());
        self.waiting_for_pong = Some(id);
        frame::put_ping(id, output);
        id
    }

    /// Says that no further streams of the peer are accepted; those that are open go on. Go's peer reads nothing after
    /// it: it is the last thing to send.
    pub fn go_away(&mut self, status: GoAwayStatus, output: &mut BytesMut) {
        if !self.sent_go_away {
            self.sent_go_away = true;
            frame::put_go_away(self.last_of_peer, status, output);
        }
    }

    /// The streams of which a half is open, in no order.
    pub fn streams(&self) -> impl Iterator<Item = StreamId> {
        self.streams.keys().copied()
    }

    /// Whether anything can be sent on this stream, now or after [`Session::reply`].
    pub fn can_send(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|s| s.our_half)
    }

    /// Whether anything can still come on this stream.
    pub fn can_receive(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_some_and(|s| s.peers_half)
    }

    fn advance(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<Option<Event>, Violation> {
        loop {
            match self.rest {
                Rest::Nothing => {}
                Rest::Unwanted { left } => {
                    let taken = left.min(input.len());
                    input.advance(taken);
                    if taken < left {
                        self.rest = Rest::Unwanted { left: left - taken };
                        return Ok(None);
                    }
                    self.rest = Rest::Nothing;
                }
                Rest::Data { stream, left, fin } => return Ok(self.piece(stream, left, fin, input)),
            }
            let Some(head) = input.first_chunk::<FRAME_HEADER_BYTES>() else { return Ok(None) };
            let event = match Head::parse(*head) {
                Head::Data { stream, flags, length } => {
                    input.advance(FRAME_HEADER_BYTES);
                    self.data(stream, flags & FIN != 0, length, output)?
                }
                Head::Control { version, .. } if version != frame::VERSION => return Err(Violation::Version(version)),
                Head::Control { kind, length, .. } if length > CONTROL_FRAME_BYTES_MAX => {
                    return Err(Violation::FrameTooLong(kind, length));
                }
                Head::Control { kind, flags, length, .. } if is_understood(kind) => {
                    if input.len() < FRAME_HEADER_BYTES + length {
                        return Ok(None);
                    }
                    input.advance(FRAME_HEADER_BYTES);
                    let body = input.split_to(length);
                    self.control(kind, flags, &body, output)?
                }
                Head::Control { length, .. } => {
                    input.advance(FRAME_HEADER_BYTES);
                    self.rest = Rest::Unwanted { left: length };
                    None
                }
            };
            if event.is_some() {
                return Ok(event);
            }
        }
    }

    /// As much of a data frame's payload as there is.
    fn piece(&mut self, stream: StreamId, left: usize, fin: bool, input: &mut BytesMut) -> Option<Event> {
        if input.is_empty() {
            return None;
        }
        let bytes = input.split_to(left.min(input.len())).freeze();
        let left = left - bytes.len();
        self.rest = if left == 0 { Rest::Nothing } else { Rest::Data { stream, left, fin } };
        let fin = fin && left == 0;
        if fin {
            self.peer_has_finished(stream);
        }
        Some(Event::Data { stream, bytes, fin })
    }

    /// The header of a data frame.
    fn data(
        &mut self,
        stream: StreamId,
        fin: bool,
        length: usize,
        output: &mut BytesMut,
    ) -> Result<Option<Event>, Violation> {
        let sound = self.may_send(stream, output);
        if !matches!(sound, Ok(true)) {
            self.rest = Rest::Unwanted { left: length };
            return sound.map_or_else(|end| end, |_| Ok(None));
        }
        if length > 0 {
            self.rest = Rest::Data { stream, left: length, fin };
            return Ok(None);
        }
        Ok(fin.then(|| {
            self.peer_has_finished(stream);
            Event::Data { stream, bytes: Bytes::new(), fin }
        }))
    }

    /// Whether the peer may send on this stream now: `Ok(false)` if what it sends is to be dropped, `Err` if the stream
    /// or the session has been ended for it.
    fn may_send(&mut self, stream: StreamId, output: &mut BytesMut) -> Result<bool, Result<Option<Event>, Violation>> {
        if stream.0 == 0 {
            return Err(Err(Violation::StreamZero));
        }
        let own = self.role.begins(stream.0);
        let status = match self.streams.get(&stream) {
            Some(entry) if !entry.peers_half => ResetStatus::StreamAlreadyClosed,
            Some(entry) if own && !entry.replied => ResetStatus::ProtocolError,
            Some(_) => return Ok(true),
            None => {
                self.answer_unknown(stream, output);
                return Ok(false);
            }
        };
        self.reset(stream, status, output);
        Err(Ok(Some(Event::Reset { stream, status })))
    }

    /// A frame for a stream that is not there. If it has been, the frame was on its way when the stream ended.
    fn answer_unknown(&self, stream: StreamId, output: &mut BytesMut) {
        let has_been =
            if self.role.begins(stream.0) { stream.0 < self.next_own } else { stream.0 <= self.last_of_peer };
        // After our GOAWAY the peer's new streams are ignored, with all that belongs to them.
        if !has_been && !self.sent_go_away {
            frame::put_reset(stream, ResetStatus::InvalidStream, output);
        }
    }

    /// A control frame of a type that is understood, whole.
    fn control(
        &mut self,
        kind: u16,
        flags: u8,
        body: &[u8],
        output: &mut BytesMut,
    ) -> Result<Option<Event>, Violation> {
        let fits = match kind {
            kind::SYN_STREAM => body.len() >= 10,
            kind::SYN_REPLY | kind::HEADERS => body.len() >= 4,
            kind::PING => body.len() == 4,
            _ => body.len() == 8,
        };
        if !fits {
            return Err(Violation::FrameLength(kind, body.len()));
        }
        let (stream, fin) = (frame::stream_of(body), flags & FIN != 0);
        match kind {
            kind::SYN_STREAM => self.syn_stream(stream, flags, &body[10..], output),
            kind::SYN_REPLY => self.syn_reply(stream, fin, &body[4..], output),
            kind::HEADERS => self.headers(stream, fin, &body[4..], output),
            kind::PING => Ok(self.pinged(frame::word(body, 0), output)),
            kind::GOAWAY => {
                self.got_go_away = true;
                let status = GoAwayStatus::from_code(frame::word(body, 4));
                Ok(Some(Event::GoAway { last_good: stream, status }))
            }
            _ => {
                let status = ResetStatus::from_code(frame::word(body, 4));
                Ok(self.streams.remove(&stream).map(|_| Event::Reset { stream, status }))
            }
        }
    }

    fn syn_stream(
        &mut self,
        stream: StreamId,
        flags: u8,
        block: &[u8],
        output: &mut BytesMut,
    ) -> Result<Option<Event>, Violation> {
        // Whatever becomes of the stream: the blocks of later ones refer to this one.
        let block = self.inflater.block(block)?;
        if self.role.begins(stream.0) || stream.0 <= self.last_of_peer {
            return Err(Violation::StreamNumber(stream.0));
        }
        let headers = Headers::parse(&block);
        if let Err(Fault::Form(violation)) = headers {
            return Err(violation);
        }
        if self.sent_go_away {
            return Ok(None);
        }
        self.last_of_peer = stream.0;
        // Nothing could be answered on a stream of one direction, and nobody opens one.
        let full = self.streams.len() >= STREAMS_OPEN_MAX || flags & UNIDIRECTIONAL != 0;
        let status = match headers {
            Ok(_) if full => ResetStatus::RefusedStream,
            Ok(headers) => {
                let fin = flags & FIN != 0;
                self.streams.insert(stream, Stream { replied: false, our_half: true, peers_half: !fin });
                return Ok(Some(Event::Opened { stream, headers, fin }));
            }
            Err(_) => ResetStatus::ProtocolError,
        };
        frame::put_reset(stream, status, output);
        Ok(None)
    }

    fn syn_reply(
        &mut self,
        stream: StreamId,
        fin: bool,
        block: &[u8],
        output: &mut BytesMut,
    ) -> Result<Option<Event>, Violation> {
        self.inflater.block(block)?;
        if stream.0 == 0 {
            return Err(Violation::StreamZero);
        }
        let own = self.role.begins(stream.0);
        let status = match self.streams.get_mut(&stream) {
            Some(entry) if own && !entry.replied => {
                entry.replied = true;
                if fin {
                    self.peer_has_finished(stream);
                }
                return Ok(Some(Event::Replied { stream, fin }));
            }
            Some(_) if own => ResetStatus::StreamInUse,
            Some(_) => ResetStatus::ProtocolError,
            None => {
                self.answer_unknown(stream, output);
                return Ok(None);
            }
        };
        self.reset(stream, status, output);
        Ok(Some(Event::Reset { stream, status }))
    }

    /// Later headers mean nothing here, but they may end a half.
    fn headers(
        &mut self,
        stream: StreamId,
        fin: bool,
        block: &[u8],
        output: &mut BytesMut,
    ) -> Result<Option<Event>, Violation> {
        self.inflater.block(block)?;
        match self.may_send(stream, output) {
            Ok(true) if fin => {
                self.peer_has_finished(stream);
                Ok(Some(Event::Data { stream, bytes: Bytes::new(), fin }))
            }
            Ok(_) => Ok(None),
            Err(end) => end,
        }
    }

    fn pinged(&mut self, id: u32, output: &mut BytesMut) -> Option<Event> {
        if !self.role.begins(id) {
            frame::put_ping(id, output);
            return None;
        }
        self.waiting_for_pong.take_if(|waiting| *waiting == id).map(Event::Pong)
    }

    fn peer_has_finished(&mut self, stream: StreamId) {
        if let Some(entry) = self.streams.get_mut(&stream) {
            entry.peers_half = false;
        }
        self.forget_if_ended(stream);
    }

    fn forget_if_ended(&mut self, stream: StreamId) {
        if self.streams.get(&stream).is_some_and(|s| !s.our_half && !s.peers_half) {
            self.streams.remove(&stream);
        }
    }
}

/// Whether a control frame of this type is read; others are passed over without being kept.
fn is_understood(kind: u16) -> bool {
    use kind::{GOAWAY, HEADERS, PING, RST_STREAM, SYN_REPLY, SYN_STREAM};
    [SYN_STREAM, SYN_REPLY, RST_STREAM, PING, GOAWAY, HEADERS].contains(&kind)
}
