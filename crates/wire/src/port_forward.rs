//! Which two streams of a port-forward belong together: one for data, one for an error's text. It keeps no stream and
//! no time: numbers, headers and the present moment come in.
//!
//! A client opens both with the headers `streamtype` (`error` or `data`), `port` and `requestid`; streams with the same
//! request id are a pair. Clients from before 2015 send no id: there a data stream's number is two more than its error
//! stream's.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use crate::spdy::{Headers, STREAMS_OPEN_MAX, StreamId};

/// The protocol's name in X-Stream-Protocol-Version.
pub const PROTOCOL: &str = "portforward.k8s.io";

/// The header that says what a stream is for.
pub const STREAM_TYPE_HEADER: &str = "streamtype";
/// The value of it for a stream that carries the connection's bytes.
pub const DATA: &str = "data";
/// The value of it for a stream that carries an error's text, from the server.
pub const ERROR: &str = "error";
/// The header with the port in decimal digits.
pub const PORT_HEADER: &str = "port";
/// The header that both streams of a pair share.
pub const REQUEST_ID_HEADER: &str = "requestid";

/// How long a stream waits for its other one: what Kubernetes' servers give it.
pub const HALF_PAIR_WAIT: Duration = Duration::from_secs(30);

/// Streams that wait for their other one: as many pairs as streams can be open.
pub const HALF_PAIRS_MAX: usize = STREAMS_OPEN_MAX / 2;

/// Bytes of a request id: kubectl's are numbers.
pub const REQUEST_ID_BYTES_MAX: usize = 128;

/// What to do with a stream that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// Accept it; with it this pair is complete.
    Pair(Pair),
    /// Accept it; its other one has not come yet.
    Waiting,
    /// Reset it.
    Refused(Refused),
}

/// One connection to a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    /// Carries the connection's bytes, both ways.
    pub data: StreamId,
    /// Carries an error's text to the client.
    pub error: StreamId,
    /// The port within the pod.
    pub port: u16,
}

/// Why a stream was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The header `streamtype` is not there, or neither `data` nor `error`.
    StreamType,
    /// The header `port` is not there or no number from 1 to 65535.
    Port,
    /// The two streams of a pair have different ports: the first, and this one.
    PortsDiffer(u16, u16),
    /// A stream of this type and request waits already.
    Twice,
    /// The request id is longer than [`REQUEST_ID_BYTES_MAX`].
    RequestId,
    /// [`HALF_PAIRS_MAX`] streams wait already.
    TooMany,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("port-forward: ")?;
        match self {
            Self::StreamType => f.write_str("header streamType must be data or error"),
            Self::Port => f.write_str("header port must be a number from 1 to 65535"),
            Self::PortsDiffer(first, second) => write!(f, "port {first} and {second} in one request"),
            Self::Twice => f.write_str("second stream of this type in one request"),
            Self::RequestId => f.write_str("header requestID is too long"),
            Self::TooMany => f.write_str("too many streams wait for their other one"),
        }
    }
}

impl std::error::Error for Refused {}

/// A stream whose other one did not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lone {
    /// Its number.
    pub stream: StreamId,
    /// Whether it is an error stream, on which the client can be told.
    pub is_error: bool,
    /// Its port.
    pub port: u16,
}

/// What makes two streams a pair.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Request {
    Id(String),
    /// The number of the error stream, of clients without ids.
    ErrorStream(u32),
}

#[derive(Debug)]
struct Half {
    lone: Lone,
    since: Instant,
}

/// The streams of one session that wait for their other one.
#[derive(Debug, Default)]
pub struct Pairing {
    halves: BTreeMap<Request, Half>,
}

impl Pairing {
    /// Nothing waits.
    pub fn new() -> Self {
        Self::default()
    }

    /// The client has opened a stream.
    pub fn opened(&mut self, stream: StreamId, headers: &Headers, now: Instant) -> Opened {
        self.sort_in(stream, headers, now).unwrap_or_else(Opened::Refused)
    }

    fn sort_in(&mut self, stream: StreamId, headers: &Headers, now: Instant) -> Result<Opened, Refused> {
        let is_error = match headers.get(STREAM_TYPE_HEADER) {
            Some(ERROR) => true,
            Some(DATA) => false,
            _ => return Err(Refused::StreamType),
        };
        let port = headers.get(PORT_HEADER).and_then(parse_port).ok_or(Refused::Port)?;
        let request = match headers.get(REQUEST_ID_HEADER) {
            Some(id) if id.len() > REQUEST_ID_BYTES_MAX => return Err(Refused::RequestId),
            Some(id) if !id.is_empty() => Request::Id(id.to_owned()),
            _ if is_error => Request::ErrorStream(stream.0),
            _ => Request::ErrorStream(stream.0.wrapping_sub(2)),
        };
        let lone = Lone { stream, is_error, port };
        if let Some(Half { lone: other, .. }) = self.halves.get(&request) {
            if other.is_error == is_error {
                return Err(Refused::Twice);
            }
            if other.port != port {
                return Err(Refused::PortsDiffer(other.port, port));
            }
            let (data, error) = if is_error { (other.stream, stream) } else { (stream, other.stream) };
            self.halves.remove(&request);
            return Ok(Opened::Pair(Pair { data, error, port }));
        }
        if self.halves.len() >= HALF_PAIRS_MAX {
            return Err(Refused::TooMany);
        }
        self.halves.insert(request, Half { lone, since: now });
        Ok(Opened::Waiting)
    }

    /// A stream has ended: if it waited, it does not any more.
    pub fn ended(&mut self, stream: StreamId) {
        self.halves.retain(|_, half| half.lone.stream != stream);
    }

    /// Takes out the streams that have waited for [`HALF_PAIR_WAIT`].
    pub fn expired(&mut self, now: Instant) -> Vec<Lone> {
        let is_over = |half: &Half| now.saturating_duration_since(half.since) >= HALF_PAIR_WAIT;
        let over = self.halves.values().filter(|half| is_over(half)).map(|half| half.lone).collect();
        self.halves.retain(|_, half| !is_over(half));
        over
    }

    /// When [`Pairing::expired`] is worth asking next.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.halves.values().map(|half| half.since + HALF_PAIR_WAIT).min()
    }
}

/// A port in decimal digits, as Go's ParseUint takes it: no sign.
pub fn parse_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port > 0)
}
