//! The parts of a tar header that people got wrong: numbers, and PAX records.
//!
//! A PAX record is `<length> <key>=<value>\n`, where the length counts itself and the newline. The value is bytes and
//! may hold newlines (`security.capability` does), so records are taken by length and never split at newlines. Sizes,
//! names and links that one header states twice and differently are how files are smuggled past a reader, so a record
//! that is not exactly of this shape makes the whole archive an error.

use super::entry::TarError;

/// The records of one extended header that mean something to a layer; the rest is skipped.
#[derive(Debug, Default, Clone)]
pub(crate) struct PaxRecords {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    /// Seconds since 1970, and nanoseconds within the second.
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub sparse: PaxSparse,
}

/// What GNU tar says of a sparse file in PAX records, in its formats 0.0, 0.1 and 1.0.
#[derive(Debug, Default, Clone)]
pub(crate) struct PaxSparse {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    /// The size of the file with its holes.
    pub real_size: Option<u64>,
    /// Offset and length of each piece, formats 0.0 and 0.1.
    pub pieces: Vec<(u64, u64)>,
    /// Format 0.0 gives the offset first, then the length.
    pending_offset: Option<u64>,
}

impl PaxSparse {
    /// Whether any record spoke of a sparse file.
    pub fn is_sparse(&self) -> bool {
        self.major.is_some() || self.real_size.is_some() || !self.pieces.is_empty()
    }
}

/// How many pieces of a sparse file are taken: GNU tar itself writes one per hole, and 1 MiB of map is far more.
pub(crate) const SPARSE_PIECES_MAX: usize = 65_536;
/// How many extended attributes one entry may have: the kernel's own list of them ends at 64 KiB.
const XATTRS_MAX: usize = 1024;

impl PaxRecords {
    /// Reads the payload of an `x` header. Of a key that comes twice, the last counts; an empty value takes it back.
    pub fn parse(mut data: &[u8]) -> Result<Self, TarError> {
        let mut records = Self::default();
        while !data.is_empty() {
            let (key, value, rest) = record(data)?;
            records.take(key, value)?;
            data = rest;
        }
        if records.sparse.pending_offset.is_some() {
            return Err(TarError::Pax("GNU.sparse.offset without GNU.sparse.numbytes"));
        }
        Ok(records)
    }

    /// Whether a `g` header would change what follows it. Image builders write comments there and nothing else; readers
    /// disagree about all other keys, so they are refused.
    pub fn global_is_harmless(mut data: &[u8]) -> Result<bool, TarError> {
        while !data.is_empty() {
            let (key, _, rest) = record(data)?;
            if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.") {
                return Ok(false);
            }
            data = rest;
        }
        Ok(true)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarError> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            return self.take_xattr(name, value);
        }
        match key {
            b"path" => self.path = non_empty(value),
            b"linkpath" => self.link = non_empty(value),
            b"size" => self.size = number(value)?,
            b"uid" => self.uid = number(value)?,
            b"gid" => self.gid = number(value)?,
            b"mtime" => self.mtime = if value.is_empty() { None } else { Some(time(value)?) },
            b"GNU.sparse.major" => self.sparse.major = number(value)?,
            b"GNU.sparse.minor" => self.sparse.minor = number(value)?,
            b"GNU.sparse.name" => self.sparse.name = non_empty(value),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = number(value)?,
            b"GNU.sparse.offset" => self.sparse.pending_offset = Some(required(value)?),
            b"GNU.sparse.numbytes" => {
                let offset =
                    self.sparse.pending_offset.take().ok_or(TarError::Pax("GNU.sparse.numbytes comes first"))?;
                self.take_piece(offset, required(value)?)?;
            }
            b"GNU.sparse.map" => {
                self.sparse.pieces.clear();
                let mut numbers = value.split(|&b| b == b',');
                while let Some(offset) = numbers.next() {
                    let length = numbers.next().ok_or(TarError::Pax("GNU.sparse.map has an odd count of numbers"))?;
                    self.take_piece(required(offset)?, required(length)?)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn take_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), TarError> {
        if name.is_empty() || name.contains(&0) {
            return Err(TarError::Pax("an extended attribute has no valid name"));
        }
        self.xattrs.retain(|(known, _)| known != name);
        if self.xattrs.len() == XATTRS_MAX {
            return Err(TarError::Pax("more than 1024 extended attributes"));
        }
        self.xattrs.push((name.to_vec(), value.to_vec()));
        Ok(())
    }

    fn take_piece(&mut self, offset: u64, length: u64) -> Result<(), TarError> {
        if self.sparse.pieces.len() == SPARSE_PIECES_MAX {
            return Err(TarError::Pax("more than 65536 pieces in a sparse file"));
        }
        self.sparse.pieces.push((offset, length));
        Ok(())
    }
}

/// A record's key, its value, and what follows it.
type Record<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// The first record of `data`.
fn record(data: &[u8]) -> Result<Record<'_>, TarError> {
    const LENGTH_DIGITS_MAX: usize = 10;
    let space = data.iter().take(LENGTH_DIGITS_MAX + 1).position(|&b| b == b' ');
    let space = space.ok_or(TarError::Pax("a record has no length"))?;
    let length = required(&data[..space])?;
    let length = usize::try_from(length).ok().filter(|&length| length > space + 2 && length <= data.len());
    let length = length.ok_or(TarError::Pax("a record's length does not fit"))?;
    let (this, rest) = data.split_at(length);
    let body = this[space + 1..].strip_suffix(b"\n").ok_or(TarError::Pax("a record does not end where it says"))?;
    let equals = body.iter().position(|&b| b == b'=').ok_or(TarError::Pax("a record has no '='"))?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    if key.is_empty() || key.contains(&0) {
        return Err(TarError::Pax("a record has no valid key"));
    }
    Ok((key, value, rest))
}

fn non_empty(value: &[u8]) -> Option<Vec<u8>> {
    (!value.is_empty()).then(|| value.to_vec())
}

fn required(value: &[u8]) -> Result<u64, TarError> {
    number(value)?.ok_or(TarError::Pax("a number is missing"))
}

/// Decimal digits only: no sign, no space. `None` for an empty value, which takes the record back.
fn number(value: &[u8]) -> Result<Option<u64>, TarError> {
    if value.is_empty() {
        return Ok(None);
    }
    let mut number = 0u64;
    for &digit in value {
        if !digit.is_ascii_digit() {
            return Err(TarError::Pax("a number is not decimal"));
        }
        let next = number.checked_mul(10).and_then(|n| n.checked_add(u64::from(digit - b'0')));
        number = next.ok_or(TarError::Pax("a number is too large"))?;
    }
    Ok(Some(number))
}

/// `[-]seconds[.fraction]`; digits past the ninth are below what any file system keeps.
fn time(value: &[u8]) -> Result<(i64, u32), TarError> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let (whole, fraction) = match digits.iter().position(|&b| b == b'.') {
        Some(dot) => (&digits[..dot], &digits[dot + 1..]),
        None => (digits, &b""[..]),
    };
    let seconds = i64::try_from(required(whole)?).map_err(|_| TarError::Pax("a time is too large"))?;
    let mut nanoseconds = 0u32;
    for place in 0..9 {
        let digit = fraction.get(place).copied().unwrap_or(b'0');
        if !digit.is_ascii_digit() {
            return Err(TarError::Pax("a time is not decimal"));
        }
        nanoseconds = nanoseconds * 10 + u32::from(digit - b'0');
    }
    Ok(match (negative, nanoseconds) {
        (false, _) => (seconds, nanoseconds),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanoseconds),
    })
}

/// A numeric field of a header: octal text, or a big-endian two's complement number when its first bit is set.
pub(crate) fn header_number(field: &[u8]) -> Result<i64, TarError> {
    const BAD: TarError = TarError::Header("a number is neither octal nor base-256");
    const TOO_LARGE: TarError = TarError::Header("a number is too large");
    let Some(&first) = field.first() else { return Err(BAD) };
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        // The first byte gives six bits: one says "base-256", one is the sign.
        let mut number = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
        for &byte in &field[1..] {
            number = number * 256 + i128::from(byte);
            if number.abs() > i128::from(i64::MAX) {
                return Err(TOO_LARGE);
            }
        }
        return i64::try_from(number).map_err(|_| TOO_LARGE);
    }
    let start = field.iter().position(|&b| b != b' ').unwrap_or(field.len());
    let text = &field[start..];
    let end = text.iter().position(|&b| b == b' ' || b == 0).unwrap_or(text.len());
    let mut number = 0i64;
    for &digit in &text[..end] {
        if !(b'0'..=b'7').contains(&digit) {
            return Err(BAD);
        }
        number = number.checked_mul(8).and_then(|n| n.checked_add(i64::from(digit - b'0'))).ok_or(TOO_LARGE)?;
    }
    if text[end..].iter().all(|&b| b == b' ' || b == 0) { Ok(number) } else { Err(BAD) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// One record as a writer makes it.
    pub(crate) fn written(key: &[u8], value: &[u8]) -> Vec<u8> {
        let body = key.len() + value.len() + 3;
        let mut length = body + 1;
        while length.to_string().len() + body != length {
            length += 1;
        }
        let mut record = format!("{length} ").into_bytes();
        record.extend_from_slice(key);
        record.push(b'=');
        record.extend_from_slice(value);
        record.push(b'\n');
        record
    }

    #[test]
    fn a_value_may_hold_newlines() {
        let mut data = written(b"SCHILY.xattr.security.capability", b"\x01\n12 path=evil\n\0");
        data.extend(written(b"path", b"good"));
        let records = PaxRecords::parse(&data).unwrap();
        assert_eq!(records.path.unwrap(), b"good");
        assert_eq!(records.xattrs, [(b"security.capability".to_vec(), b"\x01\n12 path=evil\n\0".to_vec())]);
    }

    #[test]
    fn the_last_of_two_equal_keys_counts_and_an_empty_one_takes_it_back() {
        let twice = [written(b"path", b"one"), written(b"path", b"two")].concat();
        assert_eq!(PaxRecords::parse(&twice).unwrap().path.unwrap(), b"two");
        let back = [written(b"size", b"7"), written(b"size", b"")].concat();
        assert_eq!(PaxRecords::parse(&back).unwrap().size, None);
    }

    #[test]
    fn records_of_a_wrong_shape_are_errors() {
        for bad in [
            &b"10 path=ab\n"[..],
            b"12 path=ab\n",
            b"11 path=abX",
            b"path=ab\n",
            b"99999999999 path=ab\n",
            b"+11 path=ab\n",
            b"11 pathXab\n",
            b"6 =ab\n",
            b"11 size=-1\n",
            b"32 size=99999999999999999999999\n",
            b"0 a=b\n",
        ] {
            assert!(PaxRecords::parse(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn times_before_1970_keep_their_fraction() {
        assert_eq!(time(b"12.5").unwrap(), (12, 500_000_000));
        assert_eq!(time(b"-1.25").unwrap(), (-2, 750_000_000));
        assert_eq!(time(b"1.1234567891").unwrap(), (1, 123_456_789));
        assert!(time(b"1.x").is_err());
        assert!(time(b"").is_err());
    }

    #[test]
    fn numbers_are_octal_or_base_256() {
        assert_eq!(header_number(b"0000755\0").unwrap(), 0o755);
        assert_eq!(header_number(b"   755 \0").unwrap(), 0o755);
        assert_eq!(header_number(b"\0\0\0\0").unwrap(), 0);
        assert_eq!(header_number(b"\x80\0\0\0\0\0\x01\0").unwrap(), 256);
        assert_eq!(header_number(&[0xff; 12]).unwrap(), -1);
        assert!(header_number(b"0000789\0").is_err());
        assert!(header_number(b"-000001\0").is_err());
        assert!(header_number(b"7\x007\0").is_err());
        assert!(header_number(&[0xbf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(path in "[a-z\n=/ ]{1,200}", size in any::<u64>(), value in proptest::collection::vec(any::<u8>(), 1..100)) {
            let data = [written(b"path", path.as_bytes()), written(b"SCHILY.xattr.user.x", &value), written(b"size", size.to_string().as_bytes())].concat();
            let records = PaxRecords::parse(&data).unwrap();
            prop_assert_eq!(records.path.unwrap(), path.as_bytes());
            prop_assert_eq!(records.size, Some(size));
            prop_assert_eq!(&records.xattrs[0].1, &value);
        }

        #[test]
        fn garbage_never_panics(data in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = PaxRecords::parse(&data);
            let _ = PaxRecords::global_is_harmless(&data);
            let _ = header_number(&data);
        }
    }
}
