//! What a layer's archive was, apart from the contents of its files.
//!
//! The applier keeps no copy of the archive, but an export must give back its exact bytes: the diff-id is their hash,
//! and the image's id stands on it. So everything that is not a file's content (headers, padding, trailer, payloads
//! that became no file) is kept beside the layer, compressed, with a mark wherever a file's content goes.
//!
//! ```text
//! skeleton.zst = zstd( magic, records… )
//! magic   = "knarr-skeleton 1\n"
//! record  = 0x01 length bytes…             these bytes of the archive
//!         | 0x02 path-length path… offset length   so many bytes of the file fs/<path> from offset
//!         | 0x03 path-length path… number  from here on, what was at fs/<path> is at displaced/<number>
//!         | 0x00                           the end
//! ```
//! Numbers are LEB128. Paths have no symbolic link in them. What a later entry of the archive replaced is moved, not
//! deleted, while a mark points at it; a `0x03` record stands after all marks that it changes, so a reader first
//! collects those and then goes through the rest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::entry::Record;
use super::name::{self, PATH_BYTES_MAX, is_at_or_below};

const MAGIC: &[u8] = b"knarr-skeleton 1\n";
const END: u8 = 0;
const RAW: u8 = 1;
const PAYLOAD: u8 = 2;
const DISPLACED: u8 = 3;

/// Raw bytes are written out when this many are waiting, and no reader takes more at once.
const RAW_BYTES_MAX: usize = 1 << 20;
/// The fastest level: headers shrink to a tenth at any level, and the applier waits for it.
const LEVEL: i32 = 1;
/// How much of a file is read at once when an archive is put together again.
const COPY_BYTES: usize = 128 << 10;

/// Writes a skeleton while the archive streams by.
pub(crate) struct SkeletonWriter {
    output: zstd::stream::write::Encoder<'static, BufWriter<File>>,
    raw: Vec<u8>,
    /// Bytes of the archive that went into it as they are.
    pub raw_bytes: u64,
}

impl SkeletonWriter {
    pub fn new(file: File) -> io::Result<Self> {
        let mut output = zstd::stream::write::Encoder::new(BufWriter::new(file), LEVEL)?;
        output.include_checksum(true)?;
        output.write_all(MAGIC)?;
        Ok(Self { output, raw: Vec::new(), raw_bytes: 0 })
    }

    /// Here come `length` bytes of the file at `path`, from `offset`.
    pub fn payload(&mut self, path: &[u8], offset: u64, length: u64) -> io::Result<()> {
        self.flush_raw()?;
        self.output.write_all(&[PAYLOAD])?;
        self.bytes(path)?;
        self.number(offset)?;
        self.number(length)
    }

    /// What was at `path` is from here on in `displaced/<number>`.
    pub fn displaced(&mut self, path: &[u8], number: u64) -> io::Result<()> {
        self.flush_raw()?;
        self.output.write_all(&[DISPLACED])?;
        self.bytes(path)?;
        self.number(number)
    }

    /// Ends it. The file is written but not yet synced.
    pub fn finish(mut self) -> io::Result<File> {
        self.flush_raw()?;
        self.output.write_all(&[END])?;
        self.output.finish()?.into_inner().map_err(|e| e.into_error())
    }

    fn flush_raw(&mut self) -> io::Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        let raw = std::mem::take(&mut self.raw);
        self.output.write_all(&[RAW])?;
        self.bytes(&raw)?;
        self.raw = raw;
        self.raw.clear();
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.number(bytes.len() as u64)?;
        self.output.write_all(bytes)
    }

    fn number(&mut self, mut number: u64) -> io::Result<()> {
        let mut encoded = [0u8; 10];
        let mut length = 0;
        loop {
            encoded[length] = (number & 0x7f) as u8;
            number >>= 7;
            length += 1;
            if number == 0 {
                return self.output.write_all(&encoded[..length]);
            }
            encoded[length - 1] |= 0x80;
        }
    }
}

impl Record for SkeletonWriter {
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.raw_bytes += bytes.len() as u64;
        for piece in bytes.chunks(RAW_BYTES_MAX) {
            if self.raw.len() + piece.len() > RAW_BYTES_MAX {
                self.flush_raw()?;
            }
            self.raw.extend_from_slice(piece);
        }
        Ok(())
    }
}

/// One record, as a reader meets it.
enum Item {
    Raw(Vec<u8>),
    Payload { path: Vec<u8>, offset: u64, length: u64 },
    Displaced { path: Vec<u8>, number: u64 },
}

struct SkeletonReader<R: Read> {
    input: BufReader<R>,
}

type Decoder = zstd::stream::read::Decoder<'static, BufReader<File>>;

impl SkeletonReader<Decoder> {
    fn open(layer: &OwnedFd) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(layer, super::SKELETON_FILE, flags, Mode::empty())?;
        Self::new(zstd::stream::read::Decoder::new(File::from(file))?)
    }
}

impl<R: Read> SkeletonReader<R> {
    fn new(input: R) -> io::Result<Self> {
        let mut reader = Self { input: BufReader::new(input) };
        let mut magic = [0; MAGIC.len()];
        reader.input.read_exact(&mut magic)?;
        if magic == MAGIC { Ok(reader) } else { Err(broken("it does not begin as one")) }
    }

    fn next(&mut self) -> io::Result<Option<Item>> {
        let mut tag = [0];
        self.input.read_exact(&mut tag)?;
        match tag[0] {
            END => Ok(None),
            RAW => Ok(Some(Item::Raw(self.bytes(RAW_BYTES_MAX)?))),
            PAYLOAD => {
                let path = self.bytes(PATH_BYTES_MAX)?;
                let (offset, length) = (self.number()?, self.number()?);
                Ok(Some(Item::Payload { path, offset, length }))
            }
            DISPLACED => {
                let path = self.bytes(PATH_BYTES_MAX)?;
                let number = self.number()?;
                Ok(Some(Item::Displaced { path, number }))
            }
            _ => Err(broken("a record of an unknown kind")),
        }
    }

    fn bytes(&mut self, max: usize) -> io::Result<Vec<u8>> {
        let length = usize::try_from(self.number()?).ok().filter(|&length| length <= max);
        let mut bytes = vec![0; length.ok_or_else(|| broken("a record is too long"))?];
        self.input.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.input.read_exact(&mut byte)?;
            number |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(broken("a number is too long"))
    }
}

/// Writes the layer's archive again, byte for byte, from its directory and its skeleton. Returns how many bytes.
///
/// `layer` is the layer's own directory, the one that holds `fs` and the skeleton. Whether the bytes are right is for
/// the caller to see: they have the diff-id.
pub(crate) fn reassemble(layer: &OwnedFd, output: &mut dyn Write) -> io::Result<u64> {
    let moves = displacements(layer)?;
    let mut reader = SkeletonReader::open(layer)?;
    let mut position = 0u64;
    let mut written = 0u64;
    let mut open: Option<(Vec<u8>, File)> = None;
    let mut buffer = vec![0; COPY_BYTES];
    while let Some(item) = reader.next()? {
        match item {
            Item::Raw(bytes) => {
                output.write_all(&bytes)?;
                written += bytes.len() as u64;
            }
            Item::Payload { path, offset, length } => {
                let place = place_of(&path, position, &moves)?;
                let file = match open.take() {
                    Some((known, file)) if known == place => file,
                    _ => open_beneath(layer, &place)?,
                };
                copy_range(&file, offset, length, &mut buffer, output)
                    .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", name::shown(&place))))?;
                written += length;
                open = Some((place, file));
            }
            Item::Displaced { .. } => {}
        }
        position += 1;
    }
    Ok(written)
}

/// For each path that was moved away: after which record, and to which number.
type Displacements = BTreeMap<Vec<u8>, Vec<(u64, u64)>>;

fn displacements(layer: &OwnedFd) -> io::Result<Displacements> {
    let mut reader = SkeletonReader::open(layer)?;
    let mut moves = Displacements::new();
    let mut position = 0;
    while let Some(item) = reader.next()? {
        if let Item::Displaced { path, number } = item {
            moves.entry(path).or_default().push((position, number));
        }
        position += 1;
    }
    Ok(moves)
}

/// Where the content is now that was at `path` when the record at `position` was written.
fn place_of(path: &[u8], position: u64, moves: &Displacements) -> io::Result<Vec<u8>> {
    let mut first: Option<(u64, u64, &[u8])> = None;
    if !moves.is_empty() {
        let mut ancestor = path;
        while !ancestor.is_empty() {
            let next = moves.get(ancestor).and_then(|moves| moves.iter().find(|(at, _)| *at > position));
            if let Some(&(at, number)) = next
                && first.is_none_or(|(earlier, ..)| at < earlier)
            {
                first = Some((at, number, ancestor));
            }
            ancestor = name::split(ancestor).0;
        }
    }
    let mut place;
    match first {
        None => {
            place = super::TREE_DIR.as_bytes().to_vec();
            name::push(&mut place, path);
        }
        Some((_, number, moved)) => {
            debug_assert!(is_at_or_below(path, moved));
            place = format!("{}/{number}", super::DISPLACED_DIR).into_bytes();
            place.extend_from_slice(&path[moved.len()..]);
        }
    }
    Ok(place)
}

fn open_beneath(layer: &OwnedFd, place: &[u8]) -> io::Result<File> {
    // Not blocking, so that a fifo where a file was cannot hold the export up.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let opened = openat2(layer.as_fd(), place, flags, Mode::empty(), beneath);
    let file =
        opened.map_err(|e| io::Error::new(io::Error::from(e).kind(), format!("open {}: {e}", name::shown(place))))?;
    let file = File::from(file);
    if file.metadata()?.is_file() { Ok(file) } else { Err(broken("a file of the layer is none any more")) }
}

fn copy_range(file: &File, offset: u64, length: u64, buffer: &mut [u8], output: &mut dyn Write) -> io::Result<()> {
    let mut at = offset;
    let mut left = length;
    while left > 0 {
        let want = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        let got = file.read_at(&mut buffer[..want], at)?;
        if got == 0 {
            return Err(broken("a file of the layer is shorter than it was"));
        }
        output.write_all(&buffer[..got])?;
        at += got as u64;
        left -= got as u64;
    }
    Ok(())
}

fn broken(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the layer's skeleton is broken: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_displaced_file_is_found_where_it_went_at_that_time() {
        let mut moves = Displacements::new();
        moves.insert(b"a".to_vec(), vec![(5, 0), (9, 1)]);
        moves.insert(b"a/b".to_vec(), vec![(7, 2)]);
        for (path, position, place) in [
            ("a/b", 2, "displaced/0/b"),
            ("a/b", 6, "displaced/2"),
            ("a/b", 8, "displaced/1/b"),
            ("a/b", 10, "fs/a/b"),
            ("a", 10, "fs/a"),
            ("ab", 2, "fs/ab"),
        ] {
            assert_eq!(place_of(path.as_bytes(), position, &moves).unwrap(), place.as_bytes(), "{path} at {position}");
        }
    }

    proptest! {
        #[test]
        fn a_broken_skeleton_is_an_error_and_never_a_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = [MAGIC, &data].concat();
            let mut reader = SkeletonReader::new(&bytes[..]).unwrap();
            while let Ok(Some(_)) = reader.next() {}
        }
    }
}
