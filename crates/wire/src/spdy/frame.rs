//! The first eight bytes of frames, and whole frames of fixed length. It keeps no state.

use bytes::{BufMut, BytesMut};

use super::{DATA_FRAME_BYTES_MAX, FRAME_HEADER_BYTES, GoAwayStatus, ResetStatus, Role, StreamId};

/// Types of control frames.
pub(super) mod kind {
    pub(in super::super) const SYN_STREAM: u16 = 1;
    pub(in super::super) const SYN_REPLY: u16 = 2;
    pub(in super::super) const RST_STREAM: u16 = 3;
    pub(in super::super) const PING: u16 = 6;
    pub(in super::super) const GOAWAY: u16 = 7;
    pub(in super::super) const HEADERS: u16 = 8;
}

/// The sender's half ends with this frame.
pub(super) const FIN: u8 = 1;

/// Of SYN_STREAM: nothing may be sent to whoever opened it.
pub(super) const UNIDIRECTIONAL: u8 = 2;

pub(super) const VERSION: u16 = 3;

/// The bit that tells control frames from data frames; of a stream's number it is reserved and ignored.
const TOP_BIT: u32 = 1 << 31;

/// What the first eight bytes of a frame say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Head {
    Data { stream: StreamId, flags: u8, length: usize },
    Control { version: u16, kind: u16, flags: u8, length: usize },
}

impl Head {
    pub(super) fn parse(bytes: [u8; FRAME_HEADER_BYTES]) -> Self {
        let [a, b, c, d, flags, e, f, g] = bytes;
        let word = u32::from_be_bytes([a, b, c, d]);
        let length = u32::from_be_bytes([0, e, f, g]) as usize;
        if word & TOP_BIT == 0 {
            return Self::Data { stream: StreamId(word), flags, length };
        }
        Self::Control { version: (word >> 16) as u16 & 0x7fff, kind: word as u16, flags, length }
    }
}

/// The header of a data frame; `length` is at most [`DATA_FRAME_BYTES_MAX`].
pub(super) fn data_header(stream: StreamId, length: usize, fin: bool) -> [u8; FRAME_HEADER_BYTES] {
    debug_assert!(length <= DATA_FRAME_BYTES_MAX);
    let [a, b, c, d] = stream.0.to_be_bytes();
    let [_, e, f, g] = (length as u32).to_be_bytes();
    [a, b, c, d, if fin { FIN } else { 0 }, e, f, g]
}

/// The header of a control frame; `length` is below 2^24.
pub(super) fn put_control_header(kind: u16, flags: u8, length: usize, output: &mut BytesMut) {
    output.put_u16(0x8000 | VERSION);
    output.put_u16(kind);
    output.put_u32(u32::from(flags) << 24 | length as u32);
}

pub(super) fn put_reset(stream: StreamId, status: ResetStatus, output: &mut BytesMut) {
    put_control_header(kind::RST_STREAM, 0, 8, output);
    output.put_u32(stream.0);
    output.put_u32(status.code());
}

pub(super) fn put_ping(id: u32, output: &mut BytesMut) {
    put_control_header(kind::PING, 0, 4, output);
    output.put_u32(id);
}

/// `last_good`: the last stream of the peer that was accepted, 0 for none.
pub(super) fn put_go_away(last_good: u32, status: GoAwayStatus, output: &mut BytesMut) {
    put_control_header(kind::GOAWAY, 0, 8, output);
    output.put_u32(last_good);
    output.put_u32(status.code());
}

/// A stream's number in the body of a control frame: the first four bytes, which the caller has seen to be there.
pub(super) fn stream_of(body: &[u8]) -> StreamId {
    StreamId(word(body, 0) & !TOP_BIT)
}

/// Four bytes at `at`; what is not there counts as 0.
pub(super) fn word(body: &[u8], at: usize) -> u32 {
    body.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

impl Role {
    /// Whether a stream or ping with this number was begun by this end.
    pub(super) fn begins(self, number: u32) -> bool {
        (number % 2 == 1) == (self == Self::Client)
    }

    pub(super) fn first_number(self) -> u32 {
        match self {
            Self::Client => 1,
            Self::Server => 2,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_data_header_comes_back(number in 1_u32..1 << 31, length in 0..=DATA_FRAME_BYTES_MAX, fin: bool) {
            let stream = StreamId(number);
            let head = Head::parse(data_header(stream, length, fin));
            prop_assert_eq!(head, Head::Data { stream, flags: u8::from(fin), length });
        }

        #[test]
        fn a_control_header_comes_back(kind: u16, flags: u8, length in 0_usize..1 << 24) {
            let mut bytes = BytesMut::new();
            put_control_header(kind, flags, length, &mut bytes);
            let head = Head::parse(bytes[..].try_into().unwrap());
            prop_assert_eq!(head, Head::Control { version: VERSION, kind, flags, length });
        }

        #[test]
        fn a_status_keeps_its_number(code: u32) {
            prop_assert_eq!(ResetStatus::from_code(code).code(), code);
            prop_assert_eq!(GoAwayStatus::from_code(code).code(), code);
            let small = code % 16;
            prop_assert_eq!(ResetStatus::from_code(small).code(), small);
        }
    }
}
