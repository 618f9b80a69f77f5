//! SPDY/3.1 as the streaming of Kubernetes speaks it: frames, header blocks, and the state of one session's streams.
//! It does no I/O: bytes come in, events and bytes go out. What streams are for is decided elsewhere
//! ([`crate::remotecommand`], [`crate::port_forward`]).
//!
//! SPDY carries many streams of bytes over one connection. Each stream has a number, odd if the client opened it, and
//! two halves that end on their own. All numbers are big-endian:
//!
//! ```text
//! control frame  1|version:15=3|type:16 | flags:8|length:24 | body
//! data frame     0|stream:31            | flags:8|length:24 | payload      flag 1: the last of this half
//! ```
//!
//! | type | frame | body | means |
//! |---|---|---|---|
//! | 1 | SYN_STREAM | stream, associated stream, priority and slot: 16, header block | opens a stream |
//! | 2 | SYN_REPLY | stream, header block | accepts it |
//! | 3 | RST_STREAM | stream, status | ends both halves at once |
//! | 6 | PING | id | is sent back as it is |
//! | 7 | GOAWAY | last stream that was accepted, status | no more streams |
//! | 4, 8, 9, … | SETTINGS, HEADERS, WINDOW_UPDATE, … | | nothing here: passed over |
//!
//! A header block is a zlib stream that goes on over all frames of one direction, flushed after each:
//! count, then for each header length, name, length, value; lengths and count have 32 bits. The windows of SPDY/3.1 are
//! ignored both ways: Go's peer neither sends WINDOW_UPDATE nor waits for it, so TCP alone holds a sender back.

mod dictionary;
mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod headers;
mod session;
#[cfg(test)]
mod session_tests;

use std::fmt;

pub use headers::Headers;
pub use session::{Event, Session};

/// Bytes of a control frame without its first eight: twice what SPDY says must be understood. The largest real one, a
/// port-forward's SYN_STREAM, has about 100.
pub const CONTROL_FRAME_BYTES_MAX: usize = 16 << 10;

/// Bytes of a header block once inflated: zlib makes a thousand bytes of one.
pub const HEADER_BLOCK_BYTES_MAX: usize = 32 << 10;

/// Headers of one stream: real ones have three.
pub const HEADERS_MAX: usize = 64;

/// Bytes of a header's name: the longest real one has 10.
pub const HEADER_NAME_BYTES_MAX: usize = 256;

/// Bytes of a header's value: the longest real ones are numbers and single words.
pub const HEADER_VALUE_BYTES_MAX: usize = 8 << 10;

/// Streams open at once in one session: a forwarded connection has two, so a browser's worth of connections through
/// one port-forward fits many times over.
pub const STREAMS_OPEN_MAX: usize = 2000;

/// Bytes of one data frame's payload: its length has 24 bits.
pub const DATA_FRAME_BYTES_MAX: usize = (1 << 24) - 1;

/// Bytes before the body of every frame.
pub const FRAME_HEADER_BYTES: usize = 8;

/// Which end of the connection this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Opens streams with odd numbers.
    Client,
    /// Opens streams with even numbers; Kubernetes' servers open none.
    Server,
}

/// The number of a stream within its session: 31 bits, never 0, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a stream was reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ResetStatus {
    ProtocolError,
    InvalidStream,
    RefusedStream,
    UnsupportedVersion,
    Cancel,
    InternalError,
    FlowControlError,
    StreamInUse,
    StreamAlreadyClosed,
    InvalidCredentials,
    FrameTooLarge,
    /// A number that SPDY does not know.
    Other(u32),
}

impl ResetStatus {
    /// In the order of their numbers, from 1.
    const KNOWN: [Self; 11] = [
        Self::ProtocolError,
        Self::InvalidStream,
        Self::RefusedStream,
        Self::UnsupportedVersion,
        Self::Cancel,
        Self::InternalError,
        Self::FlowControlError,
        Self::StreamInUse,
        Self::StreamAlreadyClosed,
        Self::InvalidCredentials,
        Self::FrameTooLarge,
    ];

    fn from_code(code: u32) -> Self {
        let known = (code as usize).checked_sub(1).and_then(|at| Self::KNOWN.get(at));
        known.copied().unwrap_or(Self::Other(code))
    }

    fn code(self) -> u32 {
        match self {
            Self::Other(code) => code,
            known => Self::KNOWN.iter().zip(1..).find(|(status, _)| **status == known).map_or(0, |(_, code)| code),
        }
    }
}

/// Why the peer wants no more streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoAwayStatus {
    /// It is done.
    Ok,
    /// We have violated the protocol, as it sees it.
    ProtocolError,
    /// It has failed.
    InternalError,
    /// A number that SPDY does not know.
    Other(u32),
}

impl GoAwayStatus {
    fn from_code(code: u32) -> Self {
        match code {
            0 => Self::Ok,
            1 => Self::ProtocolError,
            2 => Self::InternalError,
            other => Self::Other(other),
        }
    }

    fn code(self) -> u32 {
        match self {
            Self::Ok => 0,
            Self::ProtocolError => 1,
            Self::InternalError => 2,
            Self::Other(code) => code,
        }
    }
}

/// The peer does not speak SPDY as it must: the session is over, and its connection is to be closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// A control frame of another version of SPDY, or no SPDY at all.
    Version(u16),
    /// A control frame of this type is longer than [`CONTROL_FRAME_BYTES_MAX`].
    FrameTooLong(u16, usize),
    /// A control frame of this type cannot have this length.
    FrameLength(u16, usize),
    /// The header block cannot be inflated, or its zlib stream has ended.
    Inflate,
    /// The header block is longer than [`HEADER_BLOCK_BYTES_MAX`].
    HeaderBlockTooLong,
    /// The header block has more than [`HEADERS_MAX`] headers.
    TooManyHeaders(u32),
    /// A name or value in the header block is longer than its limit.
    HeaderTooLong(u32),
    /// The header block ends within a header, or goes on after the last.
    HeaderBlockLength,
    /// The peer opens a stream with a number that is not its to use: 0, one of ours, or not greater than the last.
    StreamNumber(u32),
    /// A frame other than SYN_STREAM is for stream 0, which cannot be.
    StreamZero,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SPDY: ")?;
        match self {
            Self::Version(version) => write!(f, "control frame of version {version}, not 3"),
            Self::FrameTooLong(kind, length) => {
                write!(f, "control frame of type {kind} has {length} bytes, more than {CONTROL_FRAME_BYTES_MAX}")
            }
            Self::FrameLength(kind, length) => write!(f, "control frame of type {kind} cannot have {length} bytes"),
            Self::Inflate => f.write_str("header block does not inflate"),
            Self::HeaderBlockTooLong => write!(f, "header block inflates to more than {HEADER_BLOCK_BYTES_MAX} bytes"),
            Self::TooManyHeaders(count) => write!(f, "header block has {count} headers, more than {HEADERS_MAX}"),
            Self::HeaderTooLong(length) => write!(f, "a header's name or value has {length} bytes"),
            Self::HeaderBlockLength => f.write_str("header block and its headers differ in length"),
            Self::StreamNumber(number) => write!(f, "stream {number} cannot be opened by the peer now"),
            Self::StreamZero => f.write_str("frame for stream 0"),
        }
    }
}

impl std::error::Error for Violation {}

/// Why no stream can be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// One end has sent GOAWAY, or the session has been broken by a [`Violation`].
    GoneAway,
    /// [`STREAMS_OPEN_MAX`] streams are open.
    TooManyStreams,
    /// Every number has been used.
    NumbersUsedUp,
    /// The headers exceed a limit, or a name is empty or there twice.
    Headers,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GoneAway => "SPDY: no stream can be opened any more",
            Self::TooManyStreams => "SPDY: too many streams are open",
            Self::NumbersUsedUp => "SPDY: all stream numbers have been used",
            Self::Headers => "SPDY: headers exceed a limit, or a name is empty or there twice",
        })
    }
}

impl std::error::Error for Refused {}

/// Why nothing can be sent on a stream now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotOpen {
    /// There is no such stream (any more), or our half has ended.
    Closed,
    /// The peer opened it, and [`Session::reply`] comes first; or it has come already, for a second one.
    Reply,
    /// More than [`DATA_FRAME_BYTES_MAX`].
    TooLong,
}

impl fmt::Display for NotOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "SPDY: the stream is closed",
            Self::Reply => "SPDY: the stream is not at this point of its life",
            Self::TooLong => "SPDY: a data frame cannot be that long",
        })
    }
}

impl std::error::Error for NotOpen {}
