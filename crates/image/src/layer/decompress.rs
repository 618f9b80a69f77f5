//! Compressed bytes in, plain bytes out, hashed on the way in.
//!
//! The format is told by its first bytes, never by a media type: registries, proxies and old builders get those wrong,
//! and the digests decide what is right anyway.

use std::io::{self, BufReader, Cursor, Read};

use sha2::{Digest as _, Sha256};

/// What a stream begins with when it is one of the formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Plain,
    Gzip,
    Zstd,
}

/// As much of a stream as a decision needs: one tar block.
const PROBE_BYTES: usize = 512;
/// How much is read from the network's side at once.
const READ_BYTES: usize = 64 << 10;
/// The largest zstd window that is honoured, as a power of two: 128 MiB, the limit of the zstd command itself. A frame
/// that asks for more is refused before memory is taken.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Hashes and counts what is read through it.
pub(crate) struct Hashed<R> {
    inner: R,
    hasher: Sha256,
    bytes: u64,
}

impl<R: Read> Hashed<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, hasher: Sha256::new(), bytes: 0 }
    }

    /// Reads what is left, so that the hash is of everything.
    pub fn drain(&mut self) -> io::Result<()> {
        let mut rest = vec![0; READ_BYTES];
        while self.read(&mut rest)? > 0 {}
        Ok(())
    }

    /// SHA-256 of all bytes that were read, and how many they were.
    pub fn finish(self) -> ([u8; 32], u64) {
        (self.hasher.finalize().into(), self.bytes)
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..got]);
        self.bytes += got as u64;
        Ok(got)
    }
}

/// The plain bytes of `input`, whatever of the formats it is in. Several gzip members or zstd frames in a row are one
/// stream; what follows them and is neither is an error.
pub(crate) fn decoder<'a, R: Read + 'a>(mut input: R) -> io::Result<Box<dyn Read + 'a>> {
    let mut probe = Vec::with_capacity(PROBE_BYTES);
    input.by_ref().take(PROBE_BYTES as u64).read_to_end(&mut probe)?;
    let format = detect(&probe)?;
    let whole = BufReader::with_capacity(READ_BYTES, Cursor::new(probe).chain(input));
    Ok(match format {
        Format::Plain => Box::new(whole),
        Format::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Format::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(decoder)
        }
    })
}

/// Tells the format by its magic number.
pub(crate) fn detect(beginning: &[u8]) -> io::Result<Format> {
    let is_tar = beginning.get(257..262) == Some(b"ustar");
    match beginning {
        [0x1f, 0x8b, 0x08, ..] => Ok(Format::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Format::Zstd),
        // A skippable frame: zstd:chunked and padding tools put them first.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Format::Zstd),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] if !is_tar => Err(unsupported("bzip2")),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Err(unsupported("xz")),
        _ => Ok(Format::Plain),
    }
}

fn unsupported(format: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, format!("{format} compression is not supported, only gzip and zstd"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn gzip(data: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn decoded(data: &[u8]) -> io::Result<Vec<u8>> {
        let mut hashed = Hashed::new(data);
        let mut plain = Vec::new();
        decoder(&mut hashed)?.read_to_end(&mut plain)?;
        hashed.drain()?;
        let (digest, bytes) = hashed.finish();
        assert_eq!(bytes, data.len() as u64);
        assert_eq!(digest, <[u8; 32]>::from(Sha256::digest(data)));
        Ok(plain)
    }

    #[test]
    fn several_gzip_members_are_one_stream() {
        let data = [gzip(b"one "), gzip(b"two "), gzip(b"three")].concat();
        assert_eq!(decoded(&data).unwrap(), b"one two three");
    }

    #[test]
    fn zstd_frames_may_stand_between_skippable_ones() {
        let skippable = [&[0x53, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"skip"].concat();
        let frame = |data: &[u8]| zstd::encode_all(data, 3).unwrap();
        let data = [skippable.clone(), frame(b"one "), skippable.clone(), frame(b"two"), skippable].concat();
        assert_eq!(decoded(&data).unwrap(), b"one two");
    }

    #[test]
    fn a_window_beyond_the_limit_is_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(ZSTD_WINDOW_LOG_MAX + 1).unwrap();
        encoder.long_distance_matching(true).unwrap();
        encoder.write_all(&[7; 300_000]).unwrap();
        let data = encoder.finish().unwrap();
        assert!(decoded(&data).is_err());
    }

    #[test]
    fn what_follows_a_stream_and_is_none_is_an_error() {
        assert!(decoded(&[gzip(b"one"), b"garbage".to_vec()].concat()).is_err());
        assert!(decoded(&gzip(b"one")[..20]).is_err());
        assert!(decoded(b"BZh91AY&SY").unwrap_err().to_string().contains("bzip2"));
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_or_itself(magic in prop::sample::select(vec![&b""[..], &[0x1f, 0x8b, 8], &[0x28, 0xb5, 0x2f, 0xfd], &[0x50, 0x2a, 0x4d, 0x18]]), rest in proptest::collection::vec(any::<u8>(), 0..200)) {
            let data = [magic, &rest].concat();
            let _ = decoder(&data[..]).and_then(|mut decoder| decoder.read_to_end(&mut Vec::new()));
        }
    }
}
