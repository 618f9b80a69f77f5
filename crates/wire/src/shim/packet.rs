//! Messages as packets and back. It does not look into a message, and it holds descriptors without knowing what they
//! are (`F` is a descriptor in earnest and a number in tests).
//!
//! A packet is a header of [`HEADER_BYTES`] and a piece of the message:
//!
//! ```text
//! 0      2         3      4       6      8           16         20      24
//! | "kn" | version | kind | flags | fds  | request id | fragment | total | piece …
//! ```
//!
//! `total` is the length of the whole message, `fds` how many descriptors came with it (0 but in the first fragment).
//! `flags` has bit 0 set in the last fragment; the other bits are ignored.

use super::codec::Malformed;
use super::{FDS_MAX, MESSAGE_BYTES_MAX, PACKET_BYTES_MAX};
#[cfg(any(test, feature = "fuzzing"))]
use super::{
    codec,
    message::{Event, Reply, Request},
};

/// Bytes of a packet's header.
pub const HEADER_BYTES: usize = 24;

const PIECE_BYTES_MAX: usize = PACKET_BYTES_MAX - HEADER_BYTES;
const MAGIC: [u8; 2] = *b"kn";
/// Of the header; it changes only when a header cannot be read by what is there.
const HEADER_VERSION: u8 = 1;
const LAST: u16 = 1;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Daemon to shim.
    Request,
    /// Shim to daemon, to the request with the same id.
    Reply,
    /// Shim to daemon, unasked.
    Event,
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Reply => 2,
            Self::Event => 3,
        }
    }

    fn of(number: u8) -> Result<Self, Malformed> {
        match number {
            1 => Ok(Self::Request),
            2 => Ok(Self::Reply),
            3 => Ok(Self::Event),
            _ => Err(Malformed::Header),
        }
    }
}

/// A whole message, not yet decoded.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<F> {
    /// What it is.
    pub kind: Kind,
    /// Which request it is or answers; 0 for an event.
    pub id: u64,
    /// For [`codec::decode`].
    pub body: Vec<u8>,
    /// In the order in which they were sent.
    pub fds: Vec<F>,
}

/// Cuts a message that goes with `fds` descriptors into packets; these go with the first.
pub fn split(kind: Kind, id: u64, body: &[u8], fds: usize) -> Result<Vec<Vec<u8>>, Malformed> {
    if body.len() > MESSAGE_BYTES_MAX {
        return Err(Malformed::TooLong);
    }
    if fds > FDS_MAX {
        return Err(Malformed::Descriptors);
    }
    // A message without a body is one packet with nothing in it.
    let count = body.len().div_ceil(PIECE_BYTES_MAX).max(1);
    let packets = (0..count).map(|fragment| {
        let start = fragment * PIECE_BYTES_MAX;
        let piece = &body[start..body.len().min(start + PIECE_BYTES_MAX)];
        let header = Header {
            kind,
            last: fragment + 1 == count,
            fds: if fragment == 0 { fds as u16 } else { 0 },
            id,
            fragment: fragment as u32,
            total: body.len() as u32,
        };
        let mut packet = Vec::with_capacity(HEADER_BYTES + piece.len());
        packet.extend_from_slice(&header.bytes());
        packet.extend_from_slice(piece);
        packet
    });
    Ok(packets.collect())
}

struct Header {
    kind: Kind,
    last: bool,
    fds: u16,
    id: u64,
    fragment: u32,
    total: u32,
}

impl Header {
    fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[2] = HEADER_VERSION;
        bytes[3] = self.kind.number();
        bytes[4..6].copy_from_slice(&(if self.last { LAST } else { 0 }).to_le_bytes());
        bytes[6..8].copy_from_slice(&self.fds.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.id.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.fragment.to_le_bytes());
        bytes[20..].copy_from_slice(&self.total.to_le_bytes());
        bytes
    }

    fn parse(packet: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let (bytes, piece) = packet.split_first_chunk::<HEADER_BYTES>().ok_or(Malformed::Header)?;
        let [m0, m1, version, kind, g0, g1, f0, f1, id @ .., n0, n1, n2, n3, t0, t1, t2, t3] = *bytes;
        if [m0, m1] != MAGIC || version != HEADER_VERSION {
            return Err(Malformed::Header);
        }
        let header = Self {
            kind: Kind::of(kind)?,
            last: u16::from_le_bytes([g0, g1]) & LAST != 0,
            fds: u16::from_le_bytes([f0, f1]),
            id: u64::from_le_bytes(id),
            fragment: u32::from_le_bytes([n0, n1, n2, n3]),
            total: u32::from_le_bytes([t0, t1, t2, t3]),
        };
        Ok((header, piece))
    }
}

/// Puts packets together again. After an error the connection is worth nothing: who owns it closes it.
#[derive(Debug)]
pub struct Assembler<F> {
    begun: Option<Begun<F>>,
}

#[derive(Debug)]
struct Begun<F> {
    frame: Frame<F>,
    next_fragment: u32,
    total: usize,
}

impl<F> Default for Assembler<F> {
    fn default() -> Self {
        Self { begun: None }
    }
}

impl<F> Assembler<F> {
    /// Takes one packet and the descriptors that came with it; gives the message that it completes.
    pub fn feed(&mut self, packet: &[u8], fds: Vec<F>) -> Result<Option<Frame<F>>, Malformed> {
        let (header, piece) = Header::parse(packet)?;
        if usize::from(header.fds) != fds.len() || fds.len() > FDS_MAX {
            return Err(Malformed::Descriptors);
        }
        let total = header.total as usize;
        if total > MESSAGE_BYTES_MAX {
            return Err(Malformed::TooLong);
        }
        let mut begun = match self.begun.take() {
            None if header.fragment == 0 => {
                // Memory is taken as pieces come: a header that announces 8 MiB alone costs nothing.
                let frame = Frame { kind: header.kind, id: header.id, body: Vec::new(), fds };
                Begun { frame, next_fragment: 0, total }
            }
            Some(begun)
                if fds.is_empty()
                    && begun.next_fragment == header.fragment
                    && begun.total == total
                    && (begun.frame.kind, begun.frame.id) == (header.kind, header.id) =>
            {
                begun
            }
            None | Some(_) => return Err(Malformed::Order),
        };
        if begun.frame.body.len() + piece.len() > total {
            return Err(Malformed::TooLong);
        }
        begun.frame.body.extend_from_slice(piece);
        begun.next_fragment += 1;
        match (header.last, begun.frame.body.len() == total) {
            (true, true) => Ok(Some(begun.frame)),
            (false, false) if !piece.is_empty() => {
                self.begun = Some(begun);
                Ok(None)
            }
            _ => Err(Malformed::Truncated),
        }
    }
}

/// The fuzz target of this protocol: `data` as packets of a length byte pair and that many bytes, then decoded.
#[cfg(any(test, feature = "fuzzing"))]
pub fn fuzz(data: &[u8]) {
    let mut assembler = Assembler::<u8>::default();
    let mut rest = data;
    while let Some((length, tail)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(tail.len());
        let (packet, tail) = tail.split_at(length);
        rest = tail;
        let Ok(Some(frame)) = assembler.feed(packet, Vec::new()) else { continue };
        match frame.kind {
            Kind::Request => drop(codec::decode::<Request>(&frame.body)),
            Kind::Reply => drop(codec::decode::<Reply>(&frame.body)),
            Kind::Event => drop(codec::decode::<Event>(&frame.body)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn assemble(packets: Vec<Vec<u8>>, fds: Vec<u32>) -> Result<Vec<Frame<u32>>, Malformed> {
        let mut assembler = Assembler::default();
        let mut frames = Vec::new();
        let mut fds = Some(fds);
        for packet in packets {
            frames.extend(assembler.feed(&packet, fds.take().unwrap_or_default())?);
        }
        Ok(frames)
    }

    proptest! {
        #[test]
        fn a_message_of_any_length_comes_back(
            length in prop_oneof![0_usize..100, PIECE_BYTES_MAX - 2..PIECE_BYTES_MAX + 2, 0..4 * PIECE_BYTES_MAX],
            id: u64,
            fds in proptest::collection::vec(any::<u32>(), 0..5),
        ) {
            let body: Vec<u8> = (0..length).map(|i| (i * 31 % 251) as u8).collect();
            let packets = split(Kind::Reply, id, &body, fds.len()).unwrap();
            prop_assert!(packets.iter().all(|packet| packet.len() <= PACKET_BYTES_MAX));
            let frames = assemble(packets, fds.clone()).unwrap();
            prop_assert_eq!(frames, vec![Frame { kind: Kind::Reply, id, body, fds }]);
        }

        #[test]
        fn garbage_never_panics(data in proptest::collection::vec(any::<u8>(), 0..600)) {
            fuzz(&data);
            let mut framed = (data.len() as u16).to_le_bytes().to_vec();
            framed.extend_from_slice(&data);
            fuzz(&framed);
        }

        #[test]
        fn a_damaged_packet_never_panics(at in 0_usize..200, value: u8, length in 0_usize..200) {
            let body = codec::encode(&Request::Shutdown { force: true }).unwrap();
            let mut packet = split(Kind::Request, 9, &body, 0).unwrap().remove(0);
            if let Some(byte) = packet.get_mut(at) {
                *byte = value;
            }
            packet.truncate(length);
            let mut assembler = Assembler::<u8>::default();
            if let Ok(Some(frame)) = assembler.feed(&packet, vec![]) {
                let _ = codec::decode::<Request>(&frame.body);
            }
        }
    }

    #[test]
    fn the_largest_message_passes_and_one_byte_more_does_not() {
        let packets = split(Kind::Request, 1, &vec![7; MESSAGE_BYTES_MAX], 0).unwrap();
        assert_eq!(assemble(packets, vec![]).unwrap()[0].body.len(), MESSAGE_BYTES_MAX);
        assert_eq!(split(Kind::Request, 1, &vec![7; MESSAGE_BYTES_MAX + 1], 0), Err(Malformed::TooLong));
    }

    #[test]
    fn lost_descriptors_are_noticed() {
        let packets = split(Kind::Request, 1, b"x", 2).unwrap();
        assert_eq!(assemble(packets, vec![5]), Err(Malformed::Descriptors));
        assert_eq!(split(Kind::Request, 1, b"x", FDS_MAX + 1), Err(Malformed::Descriptors));
    }

    #[test]
    fn a_missing_or_foreign_fragment_is_noticed() {
        let body = vec![1; 3 * PIECE_BYTES_MAX];
        let mut packets = split(Kind::Request, 1, &body, 0).unwrap();
        packets.remove(1);
        assert_eq!(assemble(packets, vec![]), Err(Malformed::Order));

        let mut packets = split(Kind::Request, 1, &body, 0).unwrap();
        packets[1] = split(Kind::Request, 2, &body, 0).unwrap().remove(1);
        assert_eq!(assemble(packets, vec![]), Err(Malformed::Order));

        let mut packets = split(Kind::Request, 1, &body, 0).unwrap();
        packets.remove(0);
        assert_eq!(assemble(packets, vec![]), Err(Malformed::Order));
    }

    #[test]
    fn fragments_that_carry_nothing_do_not_keep_a_message_open() {
        let packet = Header { kind: Kind::Request, last: false, fds: 0, id: 1, fragment: 0, total: 10 }.bytes();
        assert_eq!(Assembler::<u8>::default().feed(&packet, vec![]), Err(Malformed::Truncated));
    }
}
