//! Bytes of which every place is known: what is lost, doubled or moved on the way is seen at once. The tool of the
//! tests' images writes and reads the same.

use crate::Outcome;
use bytes::Bytes;

/// A prime, so that no buffer's length divides it: a block that is missing moves everything after it.
const BLOCK_BYTES: usize = 1_000_003;

/// The pattern, and how far it has come.
#[derive(Debug)]
pub struct Pattern {
    /// Twice, so that any piece up to a block long is a slice of it.
    blocks: Bytes,
    at: u64,
}

impl Default for Pattern {
    fn default() -> Self {
        let byte = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 24) as u8;
        Self { blocks: (0..2 * BLOCK_BYTES).map(|i| byte(i % BLOCK_BYTES)).collect(), at: 0 }
    }
}

impl Pattern {
    /// How many bytes there have been.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The next bytes; at most a block.
    pub fn next(&mut self, length: usize) -> Bytes {
        let from = (self.at % BLOCK_BYTES as u64) as usize;
        self.at += length as u64;
        self.blocks.slice(from..from + length)
    }

    /// Checks what has come.
    pub fn expect(&mut self, come: &[u8]) -> Outcome {
        for piece in come.chunks(BLOCK_BYTES) {
            let at = self.at;
            if self.next(piece.len()) != piece {
                return Err(format!("not the pattern after {at} bytes").into());
            }
        }
        Ok(())
    }
}
