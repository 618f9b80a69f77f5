//! Files with holes: where the pieces of their payload go.
//!
//! GNU tar has written them in four ways, and each has its own place for the map. A map is data of a stranger: it is
//! bounded while it is read, and checked before anything is written by it.

use std::io::BufRead;

use super::entry::{BLOCK_BYTES, EXTENSION_BYTES_MAX, Record, TarError, TarReader, unsigned};
use super::pax::{PaxSparse, SPARSE_PIECES_MAX};

/// Where the payload of a file with holes goes.
#[derive(Debug)]
pub(crate) struct Sparse {
    /// Offset and length of each piece, ascending; the lengths add up to the entry's `size`.
    pub pieces: Vec<(u64, u64)>,
    /// Size of the file with its holes.
    pub real_size: u64,
}

impl Sparse {
    /// Whether the pieces are ascending, apart, inside the file, and add up to the payload.
    pub fn check(&self, payload: u64) -> Result<(), TarError> {
        let mut at = 0u64;
        let mut sum = 0u64;
        for &(offset, length) in &self.pieces {
            let end = offset.checked_add(length).filter(|&end| end <= self.real_size);
            if offset < at || end.is_none() {
                return Err(TarError::Header("the pieces of a sparse file overlap or lie outside it"));
            }
            at = offset + length;
            sum += length;
        }
        if sum == payload && i64::try_from(self.real_size).is_ok() {
            Ok(())
        } else {
            Err(TarError::Header("the pieces of a sparse file do not add up"))
        }
    }
}

/// The old GNU format: four pieces in the header, the others in blocks of 21 between header and payload.
pub(super) fn gnu<R: BufRead, K: Record>(
    tar: &mut TarReader<R>,
    block: &[u8; BLOCK_BYTES],
    record: &mut K,
) -> Result<Sparse, TarError> {
    const PIECE_BYTES: usize = 24;
    let mut pieces = Vec::new();
    let mut take = |table: &[u8]| -> Result<(), TarError> {
        for piece in table.chunks_exact(PIECE_BYTES).filter(|piece| piece[0] != 0) {
            if pieces.len() == SPARSE_PIECES_MAX {
                return Err(TarError::Header("more than 65536 pieces in a sparse file"));
            }
            pieces.push((unsigned(&piece[..12])?, unsigned(&piece[12..])?));
        }
        Ok(())
    };
    take(&block[386..386 + 4 * PIECE_BYTES])?;
    let real_size = unsigned(&block[483..495])?;
    let mut goes_on = block[482] != 0;
    // These blocks are not counted in the entry's size: they are read past `payload_left`.
    while goes_on {
        let more = tar.block(record)?.ok_or(TarError::Ends("a sparse map"))?;
        take(&more[..21 * PIECE_BYTES])?;
        goes_on = more[504] != 0;
    }
    Ok(Sparse { pieces, real_size })
}

/// PAX formats 0.0 and 0.1 have the map in records, 1.0 at the front of the payload in decimal lines.
pub(super) fn pax<R: BufRead, K: Record>(
    tar: &mut TarReader<R>,
    records: PaxSparse,
    record: &mut K,
) -> Result<Sparse, TarError> {
    let real_size = records.real_size.ok_or(TarError::Pax("a sparse file without its size"))?;
    match (records.major.unwrap_or(0), records.minor.unwrap_or(0)) {
        (0, _) => return Ok(Sparse { pieces: records.pieces, real_size }),
        (1, 0) => {}
        _ => return Err(TarError::Pax("a sparse format that is not 0.0, 0.1 or 1.0")),
    }
    let mut lines = MapLines { block: [0; BLOCK_BYTES], at: BLOCK_BYTES, bytes_left: EXTENSION_BYTES_MAX };
    let count = lines.number(tar, record)?;
    if count > SPARSE_PIECES_MAX as u64 {
        return Err(TarError::Pax("more than 65536 pieces in a sparse file"));
    }
    let mut pieces = Vec::new();
    for _ in 0..count {
        pieces.push((lines.number(tar, record)?, lines.number(tar, record)?));
    }
    Ok(Sparse { pieces, real_size })
}

/// Reads the map of a sparse file in format 1.0, which fills whole blocks of the payload.
struct MapLines {
    block: [u8; BLOCK_BYTES],
    at: usize,
    bytes_left: u64,
}

impl MapLines {
    fn number<R: BufRead, K: Record>(&mut self, tar: &mut TarReader<R>, record: &mut K) -> Result<u64, TarError> {
        const BAD: TarError = TarError::Pax("a sparse map is not lines of decimal numbers");
        let mut number: Option<u64> = None;
        loop {
            if self.at == BLOCK_BYTES {
                self.refill(tar, record)?;
            }
            let byte = self.block[self.at];
            self.at += 1;
            match byte {
                b'\n' => return number.ok_or(BAD),
                b'0'..=b'9' => {
                    let next = number.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(u64::from(byte - b'0')));
                    number = Some(next.ok_or(BAD)?);
                }
                _ => return Err(BAD),
            }
        }
    }

    fn refill<R: BufRead, K: Record>(&mut self, tar: &mut TarReader<R>, record: &mut K) -> Result<(), TarError> {
        let left = self.bytes_left.checked_sub(BLOCK_BYTES as u64);
        self.bytes_left = left.ok_or(TarError::Pax("a sparse map of more than 1 MiB"))?;
        let mut filled = 0;
        tar.payload(BLOCK_BYTES as u64, |piece| {
            self.block[filled..filled + piece.len()].copy_from_slice(piece);
            filled += piece.len();
            record.raw(piece).map_err(TarError::Record)
        })?;
        self.at = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::Forget;
    use super::*;

    #[test]
    fn sparse_pieces_must_lie_apart_inside_the_file() {
        let good = Sparse { pieces: vec![(0, 4), (10, 6)], real_size: 20 };
        assert!(good.check(10).is_ok());
        for (pieces, real_size, payload) in [
            (vec![(0, 4), (3, 2)], 20, 6),
            (vec![(18, 4)], 20, 4),
            (vec![(u64::MAX, 4)], 20, 4),
            (vec![(0, 4)], 20, 5),
            (vec![], u64::MAX, 0),
        ] {
            assert!(Sparse { pieces, real_size }.check(payload).is_err());
        }
    }

    #[test]
    fn every_sparse_format_of_gnu_tar_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("holes")).unwrap();
        use std::os::unix::fs::FileExt;
        for piece in 0..40u64 {
            file.write_all_at(&[b'a' + piece as u8 % 26; 5000], piece * 1_000_000).unwrap();
        }
        file.set_len(50_000_000).unwrap();
        for format in [
            &["--format=gnu"][..],
            &["--format=pax", "--sparse-version=0.0"],
            &["--format=pax", "--sparse-version=0.1"],
            &["--format=pax", "--sparse-version=1.0"],
        ] {
            let tar = std::process::Command::new("tar")
                .args(format)
                .args(["-S", "-cf", "-", "-C"])
                .arg(dir.path())
                .arg("holes")
                .output()
                .unwrap();
            assert!(tar.status.success());
            let mut reader = TarReader::new(&tar.stdout[..]);
            let entry = reader.next(&mut Forget).unwrap().unwrap();
            assert_eq!(entry.name, b"holes", "{format:?}");
            let sparse = entry.sparse.unwrap();
            assert_eq!(sparse.real_size, 50_000_000);
            assert!(sparse.pieces.len() >= 40 && entry.size < 1_000_000, "{format:?}: {} pieces", sparse.pieces.len());
            assert!(reader.next(&mut Forget).unwrap().is_none());
        }
    }
}
