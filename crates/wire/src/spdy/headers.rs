//! Header blocks: headers to bytes and back, through zlib. What the headers mean is the business of who asks for them.
//!
//! What comes in is inflated step by step into a bounded buffer. What goes out is a zlib stream of stored blocks: its
//! sender has no state but whether it has begun, where a compressor holds 270 KiB for each session; the two or three
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
