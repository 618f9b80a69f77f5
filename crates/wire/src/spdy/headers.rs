//! Header blocks: headers to bytes and back, through zlib. What the headers mean is the business of who asks for them.
//!
//! What comes in is inflated step by step into a bounded buffer. What goes out is a zlib stream of stored blocks: its
//! sender has no state but whether it has begun, where a compressor holds 300 KiB for each session; the two or three
//! headers of a stream are hardly longer for it; and a secret among them cannot be guessed from their length. A
//! receiver's inflate takes it like any other, and needs no dictionary for it.

use bytes::{BufMut, BytesMut};
use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::{DICTIONARY, DICTIONARY_ID};
use super::{
    CONTROL_FRAME_BYTES_MAX, HEADER_BLOCK_BYTES_MAX, HEADER_NAME_BYTES_MAX, HEADER_VALUE_BYTES_MAX, HEADERS_MAX,
    Violation,
};

/// How much is inflated at a time, on the stack.
const INFLATE_STEP_BYTES: usize = 2048;

/// The beginning of a zlib stream with a window of 32 KiB, no dictionary, and the check bits for it.
const ZLIB_HEADER: [u8; 2] = [0x78, 0x01];

/// An empty stored block, which ends what zlib calls a sync flush: a reader hands out what came before it.
const FLUSH: [u8; 5] = [0, 0, 0, 0xff, 0xff];

/// The most that goes out with the headers themselves: the zlib header, a stored block's own header, and the flush.
const STORED_OVERHEAD_BYTES: usize = ZLIB_HEADER.len() + 5 + FLUSH.len();

/// Between the values of a header that has several.
const VALUE_SEPARATOR: char = '\0';

/// The headers of one stream, as sent; names are in lower case and each is there once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    entries: Vec<(String, String)>,
}

/// What is wrong with a header block.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// With its form: the session is over.
    Form(Violation),
    /// With a name or value in it: only its stream is.
    Content,
}

impl From<Violation> for Fault {
    fn from(violation: Violation) -> Self {
        Self::Form(violation)
    }
}

impl Headers {
    /// Headers to send; names are put into lower case. `None` if they exceed a limit, or a name is empty or twice there.
    pub fn new(headers: &[(&str, &str)]) -> Option<Self> {
        let mut made = Self::default();
        for (name, value) in headers {
            let fits = name.len() <= HEADER_NAME_BYTES_MAX && value.len() <= HEADER_VALUE_BYTES_MAX;
            if !fits || made.entries.len() == HEADERS_MAX || !made.insert(name.to_ascii_lowercase(), *value) {
                return None;
            }
        }
        // The frame around it has at most ten bytes more than the block.
        (made.block_bytes() + STORED_OVERHEAD_BYTES + 10 <= CONTROL_FRAME_BYTES_MAX).then_some(made)
    }

    /// The value of the header `name`, in whatever case; the first one of several.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.entries.iter().find(|(has, _)| has.eq_ignore_ascii_case(name))?;
        value.split(VALUE_SEPARATOR).next()
    }

    /// Names and values in the order in which they were sent; several values of one name are separated by NUL.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// False if the name cannot be, or is there already.
    fn insert(&mut self, name: String, value: impl Into<String>) -> bool {
        let fine = !name.is_empty() && !self.entries.iter().any(|(has, _)| *has == name);
        if fine {
            self.entries.push((name, value.into()));
        }
        fine
    }

    fn block_bytes(&self) -> usize {
        4 + self.entries.iter().map(|(name, value)| 8 + name.len() + value.len()).sum::<usize>()
    }

    /// Reads an inflated block.
    pub(super) fn parse(block: &[u8]) -> Result<Self, Fault> {
        let mut rest = block;
        let count = length(&mut rest)?;
        if count as usize > HEADERS_MAX {
            return Err(Violation::TooManyHeaders(count).into());
        }
        let (mut headers, mut sound) = (Self::default(), true);
        for _ in 0..count {
            let name = field(&mut rest, HEADER_NAME_BYTES_MAX)?;
            let value = field(&mut rest, HEADER_VALUE_BYTES_MAX)?;
            sound = sound
                && match (str::from_utf8(name), str::from_utf8(value)) {
                    (Ok(name), Ok(value)) if !name.bytes().any(|b| b.is_ascii_uppercase()) => {
                        headers.insert(name.to_owned(), value)
                    }
                    _ => false,
                };
        }
        if !rest.is_empty() {
            return Err(Violation::HeaderBlockLength.into());
        }
        if sound { Ok(headers) } else { Err(Fault::Content) }
    }
}

fn length(rest: &mut &[u8]) -> Result<u32, Violation> {
    let (bytes, tail) = rest.split_first_chunk().ok_or(Violation::HeaderBlockLength)?;
    *rest = tail;
    Ok(u32::from_be_bytes(*bytes))
}

fn field<'a>(rest: &mut &'a [u8], max: usize) -> Result<&'a [u8], Violation> {
    let length = length(rest)?;
    if length as usize > max {
        return Err(Violation::HeaderTooLong(length));
    }
    let (bytes, tail) = rest.split_at_checked(length as usize).ok_or(Violation::HeaderBlockLength)?;
    *rest = tail;
    Ok(bytes)
}

/// The receiving end of one direction. After an error it is worth nothing.
#[derive(Debug, Default)]
pub(super) struct Inflater {
    /// Made for the first block: a session without streams costs nothing.
    inflate: Option<Decompress>,
}

impl Inflater {
    /// Inflates one block.
    pub(super) fn block(&mut self, deflated: &[u8]) -> Result<Vec<u8>, Violation> {
        let inflate = self.inflate.get_or_insert_with(|| Decompress::new(true));
        let (mut rest, mut block, mut step) = (deflated, Vec::new(), [0; INFLATE_STEP_BYTES]);
        loop {
            let (taken_before, made_before) = (inflate.total_in(), inflate.total_out());
            let mut wants_dictionary = false;
            match inflate.decompress(rest, &mut step, FlushDecompress::Sync) {
                Ok(Status::Ok | Status::BufError) => {}
                // The stream goes on as long as the session does.
                Ok(Status::StreamEnd) => return Err(Violation::Inflate),
                Err(error) if error.needs_dictionary() == Some(DICTIONARY_ID) => {
                    inflate.set_dictionary(DICTIONARY).map_err(|_| Violation::Inflate)?;
                    wants_dictionary = true;
                }
                Err(_) => return Err(Violation::Inflate),
            }
            let taken = (inflate.total_in() - taken_before) as usize;
            let made = (inflate.total_out() - made_before) as usize;
            if block.len() + made > HEADER_BLOCK_BYTES_MAX {
                return Err(Violation::HeaderBlockTooLong);
            }
            block.extend_from_slice(&step[..made]);
            rest = &rest[taken..];
            // A step that is not full has nothing more to give.
            if rest.is_empty() && made < step.len() {
                return Ok(block);
            }
            if taken == 0 && made == 0 && !wants_dictionary {
                return Err(Violation::Inflate);
            }
        }
    }
}

/// The sending end of one direction.
#[derive(Debug, Default)]
pub(super) struct Storer {
    begun: bool,
}

impl Storer {
    /// How many bytes [`Storer::put`] will append for these headers.
    pub(super) fn bytes(&self, headers: &Headers) -> usize {
        headers.block_bytes() + STORED_OVERHEAD_BYTES - if self.begun { ZLIB_HEADER.len() } else { 0 }
    }

    /// Appends the block of `headers`, which are within the limits of [`Headers::new`].
    pub(super) fn put(&mut self, headers: &Headers, output: &mut BytesMut) {
        if !self.begun {
            output.put_slice(&ZLIB_HEADER);
            self.begun = true;
        }
        let length = headers.block_bytes() as u16;
        output.put_u8(0);
        output.put_u16_le(length);
        output.put_u16_le(!length);
        output.put_u32(headers.entries.len() as u32);
        for (name, value) in headers.iter() {
            for text in [name, value] {
                output.put_u32(text.len() as u32);
                output.put_slice(text.as_bytes());
            }
        }
        output.put_slice(&FLUSH);
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    /// A compressor as other implementations have it.
    struct Deflater(Compress);

    impl Deflater {
        fn new(level: u32, dictionary: bool) -> Self {
            let mut compress = Compress::new(Compression::new(level), true);
            if dictionary {
                compress.set_dictionary(DICTIONARY).unwrap();
            }
            Self(compress)
        }

        fn block(&mut self, plain: &[u8]) -> Vec<u8> {
            let mut out = Vec::with_capacity(plain.len() + 1024);
            self.0.compress_vec(plain, &mut out, FlushCompress::Sync).unwrap();
            assert!(out.len() < out.capacity());
            out
        }
    }

    fn plain(headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = (headers.len() as u32).to_be_bytes().to_vec();
        for text in headers.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&(text.len() as u32).to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
        block
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        let mut deflater = Deflater::new(9, true);
        let bomb = deflater.block(&vec![0; 10 << 20]);
        assert!(bomb.len() < CONTROL_FRAME_BYTES_MAX);
        let mut inflater = Inflater::default();
        assert_eq!(inflater.block(&bomb), Err(Violation::HeaderBlockTooLong));
        let made = inflater.inflate.unwrap().total_out() as usize;
        assert!(made <= HEADER_BLOCK_BYTES_MAX + INFLATE_STEP_BYTES);
    }

    #[test]
    fn a_block_of_exactly_the_limit_is_inflated() {
        for extra in [0, 1] {
            let block = Deflater::new(1, true).block(&vec![b'x'; HEADER_BLOCK_BYTES_MAX + extra]);
            let inflated = Inflater::default().block(&block).map(|block| block.len());
            assert_eq!(inflated.ok(), (extra == 0).then_some(HEADER_BLOCK_BYTES_MAX));
        }
    }

    #[test]
    fn counts_and_lengths_are_believed_only_within_limits() {
        let count = |count: u32| Headers::parse(&count.to_be_bytes());
        assert_eq!(count(u32::MAX), Err(Fault::Form(Violation::TooManyHeaders(u32::MAX))));
        assert_eq!(count(1), Err(Fault::Form(Violation::HeaderBlockLength)));
        assert_eq!(count(0), Ok(Headers::default()));
        let name = |length: u32| Headers::parse(&[1_u32.to_be_bytes(), length.to_be_bytes()].concat());
        assert_eq!(name(1 << 31), Err(Fault::Form(Violation::HeaderTooLong(1 << 31))));
        assert_eq!(name(5), Err(Fault::Form(Violation::HeaderBlockLength)));
        let mut block = plain(&[("a", "b")]);
        block.push(0);
        assert_eq!(Headers::parse(&block), Err(Fault::Form(Violation::HeaderBlockLength)));
        assert_eq!(Headers::parse(&[]), Err(Fault::Form(Violation::HeaderBlockLength)));
    }

    #[test]
    fn a_stream_that_ends_or_is_none_is_refused() {
        let mut ended = Vec::with_capacity(100);
        let mut compress = Compress::new(Compression::fast(), true);
        compress.compress_vec(&plain(&[]), &mut ended, FlushCompress::Finish).unwrap();
        // A dictionary that nobody knows, no zlib, and a window that is too large.
        let foreign = [0x78, 0xf9, 1, 2, 3, 4, 0, 0, 0, 0xff, 0xff];
        for bad in [&ended[..], &foreign, b"\x1f\x8b\x08\0\0", b"\x88\x1c\0\0\0"] {
            assert_eq!(Inflater::default().block(bad), Err(Violation::Inflate), "{bad:?}");
        }
    }

    fn header() -> impl Strategy<Value = (String, String)> {
        ("[a-z0-9-]{1,20}", prop_oneof!["[ -~]{0,40}", ".{0,40}", "(stdin|stdout|application/json){1,50}"])
    }

    proptest! {
        #[test]
        fn blocks_come_back_over_one_context(
            blocks in vec(vec(header(), 0..8), 1..6),
            level in 0_u32..10,
            dictionary: bool,
        ) {
            let mut deflater = Deflater::new(level, dictionary);
            let mut storer = Storer::default();
            let (mut inflater, mut of_stored) = (Inflater::default(), Inflater::default());
            for block in &blocks {
                let block: Vec<(&str, &str)> = block.iter().map(|(name, value)| (&**name, &**value)).collect();
                let Some(headers) = Headers::new(&block) else { continue };
                let deflated = deflater.block(&plain(&block));
                prop_assert_eq!(&Headers::parse(&inflater.block(&deflated).unwrap()), &Ok(headers.clone()));

                let mut stored = BytesMut::new();
                let length = storer.bytes(&headers);
                storer.put(&headers, &mut stored);
                prop_assert_eq!(stored.len(), length);
                prop_assert_eq!(&Headers::parse(&of_stored.block(&stored).unwrap()), &Ok(headers));
            }
        }

        #[test]
        fn any_inflated_block_is_read_without_panic(block in vec(any::<u8>(), 0..200), count in 0_u32..4) {
            let _ = Headers::parse(&block);
            let _ = Headers::parse(&[&count.to_be_bytes()[..], &block].concat());
        }
    }
}
