//! What is to be written to a connection: heads of frames and the bytes behind them, handed to one vectored write. A
//! payload is never copied to stand behind its head.

use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes};

/// Bytes of one head: a WebSocket frame's (14 with a mask), a SPDY data frame's (8), a channel's number.
const HEAD_BYTES_MAX: usize = 24;

/// Bytes that wait to be written, in order.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    segments: VecDeque<Segment>,
    bytes: usize,
    answers: usize,
}

#[derive(Debug)]
enum Segment {
    Head { bytes: [u8; HEAD_BYTES_MAX], start: u8, end: u8 },
    Body(Bytes),
    Answer(Bytes),
}

/// A head in the making.
#[derive(Debug, Default)]
pub(crate) struct Head {
    bytes: [u8; HEAD_BYTES_MAX],
    end: u8,
}

impl Head {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        let mut head = Self::default();
        head.push(bytes);
        head
    }

    /// Appends; what does not fit would be a mistake of this crate, and is cut.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let start = usize::from(self.end);
        let length = bytes.len().min(HEAD_BYTES_MAX - start);
        debug_assert_eq!(length, bytes.len(), "a head of more than {HEAD_BYTES_MAX} bytes");
        self.bytes[start..start + length].copy_from_slice(&bytes[..length]);
        self.end = (start + length) as u8;
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.end)
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len()]
    }
}

impl Outgoing {
    pub(crate) fn push_head(&mut self, head: Head) {
        if head.end > 0 {
            self.bytes += usize::from(head.end);
            self.segments.push_back(Segment::Head { bytes: head.bytes, start: 0, end: head.end });
        }
    }

    pub(crate) fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.bytes += bytes.len();
            self.segments.push_back(Segment::Body(bytes));
        }
    }

    /// What the protocol itself has to say to something that came. It is counted apart: a peer that asks and does not
    /// read must not fill the memory.
    pub(crate) fn push_answer(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.bytes += bytes.len();
            self.answers += bytes.len();
            self.segments.push_back(Segment::Answer(bytes));
        }
    }

    /// Bytes of answers that have not been written.
    pub(crate) fn answers(&self) -> usize {
        self.answers
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

impl Segment {
    fn chunk(&self) -> &[u8] {
        match self {
            Self::Head { bytes, start, end } => &bytes[usize::from(*start)..usize::from(*end)],
            Self::Body(bytes) | Self::Answer(bytes) => bytes,
        }
    }
}

impl Buf for Outgoing {
    fn remaining(&self) -> usize {
        self.bytes
    }

    fn chunk(&self) -> &[u8] {
        self.segments.front().map_or(&[], Segment::chunk)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut filled = 0;
        for (slice, segment) in slices.iter_mut().zip(&self.segments) {
            *slice = IoSlice::new(segment.chunk());
            filled += 1;
        }
        filled
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.bytes, "advanced behind the end");
        self.bytes -= count;
        while let Some(first) = self.segments.front_mut().filter(|_| count > 0) {
            let length = first.chunk().len();
            if let Segment::Answer(_) = first {
                self.answers -= length.min(count);
            }
            if length <= count {
                count -= length;
                self.segments.pop_front();
                continue;
            }
            match first {
                Segment::Head { start, .. } => *start += count as u8,
                Segment::Body(bytes) | Segment::Answer(bytes) => bytes.advance(count),
            }
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_bodies_come_out_in_order_however_they_are_cut() {
        for step in 1..40 {
            let mut out = Outgoing::default();
            let mut all = Vec::new();
            for at in 0..10_u8 {
                let mut head = Head::new(&[at; 8]);
                head.push(&[at, 0xff]);
                assert_eq!(head.len(), 10);
                out.push_head(head);
                let body = Bytes::from(vec![at; usize::from(at) * 3]);
                if at % 2 == 0 {
                    out.push(body)
                } else {
                    out.push_answer(body)
                }
                all.extend([at; 8]);
                all.extend([at, 0xff]);
                all.extend(vec![at; usize::from(at) * 3]);
            }
            assert_eq!((out.remaining(), out.answers()), (all.len(), 75));
            let mut got = Vec::new();
            while !out.is_empty() {
                let mut slices = [IoSlice::new(&[]); 4];
                let filled = out.chunks_vectored(&mut slices);
                assert!(filled > 0);
                let there: Vec<u8> = slices[..filled].iter().flat_map(|s| s.to_vec()).collect();
                let taken = step.min(there.len());
                got.extend_from_slice(&there[..taken]);
                out.advance(taken);
            }
            assert_eq!(got, all, "by {step}");
            assert_eq!((out.chunk(), out.answers()), (&[] as &[u8], 0));
        }
    }
}
