//! A stream of tar, entry by entry.
//!
//! Reads GNU, ustar, V7 and PAX archives in one pass and holds no more of them than one header. It opens, makes and
//! resolves nothing: what an entry means for a directory is the applier's to know. Every byte that is not handed out
//! as payload goes to a [`Record`], so that the stream can be written again exactly as it was.
//!
//! The `tar` crate gives the layout of a header block. Its own iterator is not used: it splits PAX records at newlines,
//! takes them of any size into memory, and cannot say which bytes were payload.

use std::fmt;
use std::io::{self, BufRead};

use tar::Header;

use super::name::BadName;
use super::pax::{PaxRecords, header_number};
use super::sparse::{self, Sparse};

/// The unit of a tar stream, in bytes.
pub(crate) const BLOCK_BYTES: usize = 512;
/// The largest PAX header, long name or sparse map that is read. Go's reader, which made most images, has the same limit.
pub(super) const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// Why an archive cannot be read.
#[derive(Debug)]
pub(crate) enum TarError {
    /// The stream below failed.
    Read(io::Error),
    /// What is not payload could not be kept.
    Record(io::Error),
    Header(&'static str),
    Pax(&'static str),
    Name(BadName),
    /// The stream ended inside this.
    Ends(&'static str),
}

impl fmt::Display for TarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read(e) => write!(f, "read the archive: {e}"),
            Self::Record(e) => write!(f, "keep the archive's headers: {e}"),
            Self::Header(why) => write!(f, "bad tar header: {why}"),
            Self::Pax(why) => write!(f, "bad PAX header: {why}"),
            Self::Name(why) => write!(f, "bad name: {why}"),
            Self::Ends(inside) => write!(f, "the archive ends in the middle of {inside}"),
        }
    }
}

impl std::error::Error for TarError {}

impl From<BadName> for TarError {
    fn from(bad: BadName) -> Self {
        Self::Name(bad)
    }
}

/// Takes every byte of the stream that is not handed out as payload, in order.
pub(crate) trait Record {
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()>;
}

/// Keeps nothing.
pub(crate) struct Forget;

impl Record for Forget {
    fn raw(&mut self, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Character,
    Block,
    Fifo,
}

/// One entry. Names are as the archive has them: [`super::name::clean`] makes a path of them.
#[derive(Debug)]
pub(crate) struct Entry {
    pub kind: Kind,
    pub name: Vec<u8>,
    /// What a symbolic or hard link points to; empty otherwise.
    pub link: Vec<u8>,
    /// Permission bits with set-user-id, set-group-id and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970, and nanoseconds within the second.
    pub mtime: (i64, u32),
    /// Bytes of payload in the stream; 0 for everything but files.
    pub size: u64,
    /// Major and minor of a device.
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: Option<Sparse>,
}

/// Headers that belong to the entry after them.
#[derive(Default)]
struct Extensions {
    pax: Option<PaxRecords>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

/// The stream and where in it we are.
pub(crate) struct TarReader<R> {
    input: R,
    /// Payload of the entry under way that was not taken yet.
    payload_left: u64,
    /// Zeros that fill the entry's last block.
    padding_left: u64,
}

impl<R: BufRead> TarReader<R> {
    pub fn new(input: R) -> Self {
        Self { input, payload_left: 0, padding_left: 0 }
    }

    /// The next entry. What is left of the one before goes to `record`. `None` at the end of the archive: whatever
    /// comes after it in the stream went to `record` too, and the stream is at its end.
    pub fn next<K: Record>(&mut self, record: &mut K) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.pass_rest(record)?;
            let Some(block) = self.block(record)? else { return end(&extensions) };
            if block == [0; BLOCK_BYTES] {
                self.pass_trailer(record)?;
                return end(&extensions);
            }
            let header = Header::from_byte_slice(&block);
            check_sum(&block, header)?;
            let size =
                u64::try_from(header_number(&header.as_old().size)?).map_err(|_| TarError::Header("negative size"))?;
            match block[156] {
                b'x' => {
                    let data = self.extension(size, record)?;
                    once(
                        &mut extensions.pax,
                        PaxRecords::parse(&data)?,
                        TarError::Pax("two PAX headers for one entry"),
                    )?;
                }
                b'L' => {
                    let name = until_nul(self.extension(size, record)?);
                    once(&mut extensions.long_name, name, TarError::Header("two long names for one entry"))?;
                }
                b'K' => {
                    let link = until_nul(self.extension(size, record)?);
                    once(&mut extensions.long_link, link, TarError::Header("two long links for one entry"))?;
                }
                b'g' => {
                    let data = self.extension(size, record)?;
                    if !PaxRecords::global_is_harmless(&data)? {
                        return Err(TarError::Pax("a global header sets a name, a link or a size"));
                    }
                }
                // The label of a volume: nothing of the image.
                b'V' => self.expect_payload(size),
                kind => return self.entry(kind, &block, size, extensions, record).map(Some),
            }
        }
    }

    /// Hands out the next `length` bytes of the entry's payload, which must have that many left.
    pub fn payload<E: From<TarError>>(
        &mut self,
        length: u64,
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut left = length.min(self.payload_left);
        if left < length {
            return Err(TarError::Header("a file's pieces are longer than its payload").into());
        }
        while left > 0 {
            let buffer = fill(&mut self.input, "a file")?;
            let piece = &buffer[..buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
            take(piece)?;
            let taken = piece.len();
            self.input.consume(taken);
            self.payload_left -= taken as u64;
            left -= taken as u64;
        }
        Ok(())
    }

    fn entry<K: Record>(
        &mut self,
        type_flag: u8,
        block: &[u8; BLOCK_BYTES],
        header_size: u64,
        extensions: Extensions,
        record: &mut K,
    ) -> Result<Entry, TarError> {
        let header = Header::from_byte_slice(block);
        let old = header.as_old();
        let pax = extensions.pax.unwrap_or_default();
        let name = entry_name(header, &pax, extensions.long_name)?;
        let kind = entry_kind(type_flag, &name)?;
        let link = match (pax.link, extensions.long_link) {
            (Some(pax), Some(gnu)) if pax != gnu => {
                return Err(TarError::Header("two different link names for one entry"));
            }
            (Some(link), _) | (None, Some(link)) => link,
            (None, None) => header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default(),
        };
        let mut entry = Entry {
            kind,
            name,
            link,
            mode: (header_number(&old.mode)? & 0o7777) as u32,
            uid: id(pax.uid, &old.uid)?,
            gid: id(pax.gid, &old.gid)?,
            mtime: match pax.mtime {
                Some(time) => time,
                None => (header_number(&old.mtime)?, 0),
            },
            size: 0,
            device: device(kind, header)?,
            xattrs: pax.xattrs,
            sparse: None,
        };
        if kind == Kind::File {
            self.expect_payload(pax.size.unwrap_or(header_size));
            entry.sparse = if type_flag == b'S' {
                Some(sparse::gnu(self, block, record)?)
            } else if pax.sparse.is_sparse() {
                Some(sparse::pax(self, pax.sparse, record)?)
            } else {
                None
            };
            entry.size = self.payload_left;
            if let Some(sparse) = &entry.sparse {
                sparse.check(entry.size)?;
            }
        }
        Ok(entry)
    }

    fn expect_payload(&mut self, size: u64) {
        self.payload_left = size;
        self.padding_left = size.wrapping_neg() % BLOCK_BYTES as u64;
    }

    /// A header's own payload, whole. Bounded before anything is allocated.
    fn extension<K: Record>(&mut self, size: u64, record: &mut K) -> Result<Vec<u8>, TarError> {
        if size > EXTENSION_BYTES_MAX {
            return Err(TarError::Header("an extended header of more than 1 MiB"));
        }
        self.expect_payload(size);
        let mut data = Vec::new();
        self.payload(size, |piece| {
            data.extend_from_slice(piece);
            record.raw(piece).map_err(TarError::Record)
        })?;
        Ok(data)
    }

    /// Gives what is left of an entry, and its padding, to `record`.
    fn pass_rest<K: Record>(&mut self, record: &mut K) -> Result<(), TarError> {
        self.payload(self.payload_left, |piece| record.raw(piece).map_err(TarError::Record))?;
        self.payload_left = std::mem::take(&mut self.padding_left);
        self.payload(self.payload_left, |piece| record.raw(piece).map_err(TarError::Record))
    }

    /// One block, or `None` when the stream ends before it begins.
    pub(super) fn block<K: Record>(&mut self, record: &mut K) -> Result<Option<[u8; BLOCK_BYTES]>, TarError> {
        let mut block = [0; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            let buffer = available(&mut self.input)?;
            if buffer.is_empty() {
                return if filled == 0 { Ok(None) } else { Err(TarError::Ends("a header")) };
            }
            let taken = buffer.len().min(BLOCK_BYTES - filled);
            block[filled..filled + taken].copy_from_slice(&buffer[..taken]);
            self.input.consume(taken);
            filled += taken;
        }
        record.raw(&block).map_err(TarError::Record)?;
        Ok(Some(block))
    }

    /// After the first zero block: a second one ends the archive, and so does the end of the stream.
    fn pass_trailer<K: Record>(&mut self, record: &mut K) -> Result<(), TarError> {
        if self.block(record)?.is_some_and(|block| block != [0; BLOCK_BYTES]) {
            return Err(TarError::Header("a zero block in the middle of the archive"));
        }
        loop {
            let buffer = available(&mut self.input)?;
            if buffer.is_empty() {
                return Ok(());
            }
            record.raw(buffer).map_err(TarError::Record)?;
            let taken = buffer.len();
            self.input.consume(taken);
        }
    }
}

fn end(extensions: &Extensions) -> Result<Option<Entry>, TarError> {
    if extensions.is_empty() { Ok(None) } else { Err(TarError::Header("an extended header without its entry")) }
}

fn once<T>(slot: &mut Option<T>, value: T, twice: TarError) -> Result<(), TarError> {
    if slot.is_some() {
        return Err(twice);
    }
    *slot = Some(value);
    Ok(())
}

fn fill<'a, R: BufRead>(input: &'a mut R, inside: &'static str) -> Result<&'a [u8], TarError> {
    let buffer = available(input)?;
    if buffer.is_empty() { Err(TarError::Ends(inside)) } else { Ok(buffer) }
}

/// What can be had without waiting twice; empty at the end of the stream.
fn available<R: BufRead>(input: &mut R) -> Result<&[u8], TarError> {
    loop {
        match input.fill_buf() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(TarError::Read(e)),
            Ok(_) => break,
        }
    }
    // Asked again because a borrow cannot leave the loop; a full buffer is not read into.
    input.fill_buf().map_err(TarError::Read)
}

fn until_nul(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(nul) = data.iter().position(|&b| b == 0) {
        data.truncate(nul);
    }
    data
}

/// Old writers added the bytes up as signed numbers; both sums are taken.
fn check_sum(block: &[u8; BLOCK_BYTES], header: &Header) -> Result<(), TarError> {
    let said = header_number(&header.as_old().cksum)?;
    let bytes = || block.iter().enumerate().map(|(at, &b)| if (148..156).contains(&at) { b' ' } else { b });
    let unsigned: i64 = bytes().map(i64::from).sum();
    let signed: i64 = bytes().map(|b| i64::from(b as i8)).sum();
    if said == unsigned || said == signed { Ok(()) } else { Err(TarError::Header("wrong checksum")) }
}

fn entry_name(header: &Header, pax: &PaxRecords, long_name: Option<Vec<u8>>) -> Result<Vec<u8>, TarError> {
    if let Some(name) = &pax.sparse.name {
        return Ok(name.clone());
    }
    match (&pax.path, long_name) {
        // Readers disagree about which of the two wins, and that is how a file gets past the one that looks.
        (Some(pax), Some(gnu)) if *pax != gnu => Err(TarError::Header("two different names for one entry")),
        (Some(path), _) => Ok(path.clone()),
        (None, Some(name)) => Ok(name),
        (None, None) => Ok(header.path_bytes().into_owned()),
    }
}

fn entry_kind(type_flag: u8, name: &[u8]) -> Result<Kind, TarError> {
    Ok(match type_flag {
        // Before ustar a directory was a file with a slash at its end.
        0 if name.ends_with(b"/") => Kind::Directory,
        b'0' | b'7' | b'S' if name.ends_with(b"/") => {
            return Err(TarError::Header("a file whose name ends in a slash"));
        }
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Character,
        b'4' => Kind::Block,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        _ => return Err(TarError::Header("an entry of a type that no image has")),
    })
}

/// A user or group id. The largest 32-bit number means "leave as it is" to the kernel, so it is none.
fn id(pax: Option<u64>, field: &[u8]) -> Result<u32, TarError> {
    let id = match pax {
        Some(id) => id,
        None => unsigned(field)?,
    };
    u32::try_from(id).ok().filter(|&id| id != u32::MAX).ok_or(TarError::Header("a user or group id is out of range"))
}

fn device(kind: Kind, header: &Header) -> Result<(u32, u32), TarError> {
    const MAJOR_MAX: u64 = (1 << 12) - 1;
    const MINOR_MAX: u64 = (1 << 20) - 1;
    if !matches!(kind, Kind::Character | Kind::Block) {
        return Ok((0, 0));
    }
    let block = header.as_bytes();
    let (major, minor) = (unsigned(&block[329..337])?, unsigned(&block[337..345])?);
    if major > MAJOR_MAX || minor > MINOR_MAX {
        return Err(TarError::Header("a device number is out of range"));
    }
    Ok((major as u32, minor as u32))
}

pub(super) fn unsigned(field: &[u8]) -> Result<u64, TarError> {
    u64::try_from(header_number(field)?).map_err(|_| TarError::Header("a negative number"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct Keep(Vec<u8>);

    impl Record for Keep {
        fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }

    fn header(name: &str, kind: u8, size: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(size);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        header
    }

    fn member(header: &Header, data: &[u8]) -> Vec<u8> {
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
        bytes
    }

    fn pax(records: &[(&str, &str)]) -> Vec<u8> {
        let mut data = Vec::new();
        for (key, value) in records {
            let body = key.len() + value.len() + 3;
            let length = (body + 1..).find(|length| length.to_string().len() + body == *length).unwrap();
            data.extend_from_slice(format!("{length} {key}={value}\n").as_bytes());
        }
        member(&header("pax", b'x', data.len() as u64), &data)
    }

    /// Names with their payloads, and all bytes that were neither.
    fn read(archive: &[u8]) -> Result<Vec<(String, Vec<u8>)>, TarError> {
        let mut reader = TarReader::new(archive);
        let mut keep = Keep(Vec::new());
        let mut entries = Vec::new();
        let mut payload_bytes = 0;
        while let Some(entry) = reader.next(&mut keep)? {
            let mut data = Vec::new();
            reader.payload(entry.size, |piece| {
                data.extend_from_slice(piece);
                Ok::<_, TarError>(())
            })?;
            payload_bytes += data.len();
            entries.push((String::from_utf8_lossy(&entry.name).into_owned(), data));
        }
        assert_eq!(keep.0.len() + payload_bytes, archive.len(), "every byte is payload or recorded");
        Ok(entries)
    }

    fn names(archive: &[u8]) -> Vec<String> {
        read(archive).unwrap().into_iter().map(|(name, _)| name).collect()
    }

    const END: [u8; 2 * BLOCK_BYTES] = [0; 2 * BLOCK_BYTES];

    #[test]
    fn an_archive_may_end_with_or_without_its_zero_blocks() {
        let one = member(&header("a", b'0', 3), b"abc");
        assert_eq!(names(&one), ["a"]);
        assert_eq!(names(&[&one[..], &END[..512]].concat()), ["a"]);
        assert_eq!(names(&[&one[..], &END, b"rest of the tape"].concat()), ["a"]);
        assert_eq!(names(b""), [""; 0]);
        assert!(matches!(read(&one[..700]), Err(TarError::Ends("a file"))));
        assert!(matches!(read(&one[..100]), Err(TarError::Ends("a header"))));
        assert!(read(&[&END[..512], &one].concat()).is_err());
    }

    #[test]
    fn the_size_of_a_pax_header_counts_over_the_header_and_smuggles_nothing() {
        // The header says 0: a reader that believes it takes the payload for a header.
        let hidden = member(&header("hidden", b'0', 0), b"");
        let mut archive = pax(&[("size", "512")]);
        archive.extend(member(&header("outer", b'0', 0), b""));
        archive.extend(&hidden);
        archive.extend(END);
        assert_eq!(read(&archive).unwrap(), [("outer".to_owned(), hidden)]);
    }

    #[test]
    fn pax_records_apply_to_the_entry_and_not_to_the_long_name_before_it() {
        let mut archive = pax(&[("size", "3")]);
        archive.extend(member(&header("././@LongLink", b'L', 9), b"longname\0"));
        archive.extend(member(&header("short", b'0', 0), b"abc"));
        archive.extend(END);
        assert_eq!(read(&archive).unwrap(), [("longname".to_owned(), b"abc".to_vec())]);
    }

    #[test]
    fn ambiguous_archives_are_refused() {
        let long = member(&header("././@LongLink", b'L', 4), b"two\0");
        let file = member(&header("f", b'0', 0), b"");
        let two_names = [pax(&[("path", "one")]), long.clone(), file.clone()].concat();
        assert!(read(&two_names).unwrap_err().to_string().contains("two different names"));
        assert!(read(&[long.clone(), long.clone(), file.clone()].concat()).is_err());
        assert!(read(&[pax(&[("path", "a")]), pax(&[("path", "b")]), file.clone()].concat()).is_err());
        assert!(read(&[long, END.to_vec()].concat()).is_err());
        let mut global = pax(&[("path", "everything")]);
        global[156] = b'g';
        Header::from_byte_slice(&global[..512]).as_bytes();
        let mut fixed = Header::new_old();
        fixed.as_mut_bytes().copy_from_slice(&global[..512]);
        fixed.set_cksum();
        global[..512].copy_from_slice(fixed.as_bytes());
        assert!(read(&[global, file].concat()).unwrap_err().to_string().contains("global"));
        assert!(read(&member(&header("dir/", b'0', 0), b"")).is_err());
    }

    #[test]
    fn headers_that_claim_too_much_are_refused_before_memory_is_taken() {
        let huge = member(&header("pax", b'x', 1 << 40), b"");
        assert!(read(&huge).unwrap_err().to_string().contains("1 MiB"));
        let mut negative = header("f", b'0', 0);
        negative.as_old_mut().size = [0xff; 12];
        negative.set_cksum();
        assert!(read(&member(&negative, b"")).unwrap_err().to_string().contains("negative"));
        let mut wrong = header("f", b'0', 0);
        wrong.as_mut_bytes()[0] = b'g';
        assert!(read(&member(&wrong, b"")).unwrap_err().to_string().contains("checksum"));
    }

    proptest! {
        #[test]
        fn garbage_never_panics(mut data in proptest::collection::vec(any::<u8>(), 0..2048), kind in prop::sample::select(&b"0123456789xgLKSV\0"[..])) {
            // A right checksum lets the rest of the block be looked at.
            if data.len() >= BLOCK_BYTES {
                let mut header = Header::new_old();
                header.as_mut_bytes().copy_from_slice(&data[..BLOCK_BYTES]);
                header.as_mut_bytes()[156] = kind;
                header.as_mut_bytes()[124..136].copy_from_slice(b"00000000100\0");
                header.set_cksum();
                data[..BLOCK_BYTES].copy_from_slice(header.as_bytes());
            }
            let mut reader = TarReader::new(&data[..]);
            while let Ok(Some(_)) = reader.next(&mut Forget) {}
        }
    }
}
