//! Values as bytes and back. It knows no message; it refuses what is too long before it allocates for it.
//!
//! Integers are little-endian and of fixed size. A byte string or list is a `u32` count and its elements. A struct is
//! a `u32` length and its fields in order; a variant of an enum is a `u32` length, a tag byte and its fields. Reading a
//! struct stops at its length: fields that are not there are [`Wire::absent`], bytes that are left over are skipped.

use std::fmt;

use knarr_model::{ContainerId, ExecId, PodId};

use super::{BLOB_BYTES_MAX, LIST_ITEMS_MAX, MESSAGE_BYTES_MAX, STRING_BYTES_MAX};

/// Why bytes are no value, or a value cannot become bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// The bytes end before the value does.
    Truncated,
    /// A field that has no default is not there.
    Missing,
    /// A string, list or message is longer than its limit.
    TooLong,
    /// A byte string that goes to the kernel holds a NUL.
    Nul,
    /// A text is not UTF-8.
    Utf8,
    /// An id is not one.
    Id,
    /// A truth value is neither 0 nor 1, an option neither absent nor present.
    Flag,
    /// A variant of an enum that this build does not know.
    Variant(u8),
    /// A packet's header is not one of this protocol.
    Header,
    /// A packet does not follow the one before it.
    Order,
    /// Descriptors got lost, or there are too many.
    Descriptors,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated => f.write_str("the message ends too early"),
            Self::Missing => f.write_str("the message lacks a field"),
            Self::TooLong => f.write_str("a part of the message is too long"),
            Self::Nul => f.write_str("a path, argument or variable holds a NUL byte"),
            Self::Utf8 => f.write_str("a text is not UTF-8"),
            Self::Id => f.write_str("an id is malformed"),
            Self::Flag => f.write_str("a flag is neither set nor unset"),
            Self::Variant(tag) => write!(f, "variant {tag} is unknown to this version"),
            Self::Header => f.write_str("a packet's header is not of this protocol"),
            Self::Order => f.write_str("a packet does not continue the message before it"),
            Self::Descriptors => f.write_str("the descriptors of the message are not all there"),
        }
    }
}

impl std::error::Error for Malformed {}

/// Writes one whole message.
pub fn encode<T: Wire>(value: &T) -> Result<Vec<u8>, Malformed> {
    let mut writer = Writer { out: Vec::new(), refused: None };
    value.put(&mut writer);
    if writer.out.len() > MESSAGE_BYTES_MAX {
        return Err(Malformed::TooLong);
    }
    match writer.refused {
        Some(why) => Err(why),
        None => Ok(writer.out),
    }
}

/// Reads one whole message.
pub fn decode<T: Wire>(bytes: &[u8]) -> Result<T, Malformed> {
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(Malformed::TooLong);
    }
    T::take(&mut Reader { rest: bytes })
}

/// Takes what is to be written. The first thing that is refused is kept for the end: a message is good or not as a
/// whole.
pub struct Writer {
    out: Vec<u8>,
    refused: Option<Malformed>,
}

impl Writer {
    fn raw(&mut self, bytes: &[u8]) {
        // Past the limit nothing is kept, so that a refused message costs no more memory than an allowed one.
        if self.out.len() <= MESSAGE_BYTES_MAX {
            self.out.extend_from_slice(bytes);
        }
    }

    fn refuse(&mut self, why: Malformed) {
        self.refused.get_or_insert(why);
    }

    fn count(&mut self, count: usize, max: usize) {
        if count > max {
            self.refuse(Malformed::TooLong);
        }
        self.raw(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8], max: usize) {
        self.count(bytes.len(), max);
        if bytes.len() <= max {
            self.raw(bytes);
        }
    }

    /// Writes a struct: its length and what `fields` writes.
    pub fn group(&mut self, fields: impl FnOnce(&mut Self)) {
        let at = self.out.len();
        self.raw(&[0; 4]);
        fields(self);
        let length = self.out.len().saturating_sub(at + 4) as u32;
        if let Some(place) = self.out.get_mut(at..at + 4) {
            place.copy_from_slice(&length.to_le_bytes());
        }
    }

    /// Writes a variant: its length, its tag and what `fields` writes.
    pub fn variant(&mut self, tag: u8, fields: impl FnOnce(&mut Self)) {
        self.group(|out| {
            out.raw(&[tag]);
            fields(out);
        });
    }
}

/// What is still to be read of a message or of one struct in it.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A struct of which no field was written.
    pub fn empty() -> Self {
        Self { rest: &[] }
    }

    fn raw(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(Malformed::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    fn count(&mut self, max: usize) -> Result<usize, Malformed> {
        let count = u32::from_le_bytes(self.array()?) as usize;
        if count > max { Err(Malformed::TooLong) } else { Ok(count) }
    }

    fn bytes(&mut self, max: usize) -> Result<&'a [u8], Malformed> {
        let count = self.count(max)?;
        self.raw(count)
    }

    /// Opens a struct; the fields are read from what it gives.
    pub fn group(&mut self) -> Result<Self, Malformed> {
        Ok(Self { rest: self.bytes(MESSAGE_BYTES_MAX)? })
    }

    /// Opens a variant; gives its tag, and its fields are read from what it gives.
    pub fn variant(&mut self) -> Result<(u8, Self), Malformed> {
        let mut fields = self.group()?;
        let [tag] = fields.array()?;
        Ok((tag, fields))
    }

    /// The next field of an opened struct or variant, or its default where an older side ended before it.
    pub fn field<T: Wire>(&mut self) -> Result<T, Malformed> {
        self.field_via::<Plain, T>()
    }

    /// The same for a field that is not written in the usual way of its type.
    pub fn field_via<V: Via<T>, T>(&mut self) -> Result<T, Malformed> {
        if self.rest.is_empty() { V::absent() } else { V::take(self) }
    }
}

/// A type with one way to be written. Every value takes at least one byte.
pub trait Wire: Sized {
    /// Appends the value.
    fn put(&self, out: &mut Writer);

    /// Reads the value.
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed>;

    /// What the value is when an older side did not write it.
    fn absent() -> Result<Self, Malformed> {
        Err(Malformed::Missing)
    }

    /// Appends a list of values.
    fn put_list(list: &[Self], out: &mut Writer) {
        out.count(list.len(), LIST_ITEMS_MAX);
        for item in list {
            item.put(out);
        }
    }

    /// Reads a list of values. Nothing is reserved ahead by a count that only claims to be one.
    fn take_list(input: &mut Reader<'_>) -> Result<Vec<Self>, Malformed> {
        let count = input.count(LIST_ITEMS_MAX)?;
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(Self::take(input)?);
        }
        Ok(list)
    }
}

/// One way of several to write a type; chosen field by field.
pub trait Via<T> {
    /// Appends the value.
    fn put(value: &T, out: &mut Writer);
    /// Reads the value.
    fn take(input: &mut Reader<'_>) -> Result<T, Malformed>;
    /// What the value is when an older side did not write it.
    fn absent() -> Result<T, Malformed>;
}

/// The usual way of a type.
pub struct Plain;

impl<T: Wire> Via<T> for Plain {
    fn put(value: &T, out: &mut Writer) {
        value.put(out);
    }
    fn take(input: &mut Reader<'_>) -> Result<T, Malformed> {
        T::take(input)
    }
    fn absent() -> Result<T, Malformed> {
        T::absent()
    }
}

/// Bytes that the kernel does not read as a string: any value, up to [`BLOB_BYTES_MAX`].
pub struct Blob;

impl Via<Vec<u8>> for Blob {
    fn put(value: &Vec<u8>, out: &mut Writer) {
        out.bytes(value, BLOB_BYTES_MAX);
    }
    fn take(input: &mut Reader<'_>) -> Result<Vec<u8>, Malformed> {
        Ok(input.bytes(BLOB_BYTES_MAX)?.to_vec())
    }
    fn absent() -> Result<Vec<u8>, Malformed> {
        Ok(Vec::new())
    }
}

/// Names, which are strings, with contents, which are blobs.
pub struct NamedBlobs;

impl Via<Vec<(Vec<u8>, Vec<u8>)>> for NamedBlobs {
    fn put(value: &Vec<(Vec<u8>, Vec<u8>)>, out: &mut Writer) {
        out.count(value.len(), LIST_ITEMS_MAX);
        for (name, contents) in value {
            name.put(out);
            Blob::put(contents, out);
        }
    }
    fn take(input: &mut Reader<'_>) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Malformed> {
        let count = input.count(LIST_ITEMS_MAX)?;
        let mut list = Vec::new();
        for _ in 0..count {
            list.push((Vec::take(input)?, Blob::take(input)?));
        }
        Ok(list)
    }
    fn absent() -> Result<Vec<(Vec<u8>, Vec<u8>)>, Malformed> {
        Ok(Vec::new())
    }
}

macro_rules! wire_integer {
    ($($name:ident)*) => {$(
        impl Wire for $name {
            fn put(&self, out: &mut Writer) {
                out.raw(&self.to_le_bytes());
            }
            fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
                Ok(Self::from_le_bytes(input.array()?))
            }
            fn absent() -> Result<Self, Malformed> {
                Ok(0)
            }
        }
    )*};
}

wire_integer! { u16 u32 u64 i32 i64 }

/// A list of bytes is a string for the kernel: a NUL in it would end it early there.
impl Wire for u8 {
    fn put(&self, out: &mut Writer) {
        out.raw(&[*self]);
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let [byte] = input.array()?;
        Ok(byte)
    }
    fn absent() -> Result<Self, Malformed> {
        Ok(0)
    }
    fn put_list(list: &[Self], out: &mut Writer) {
        if list.contains(&0) {
            out.refuse(Malformed::Nul);
        }
        out.bytes(list, STRING_BYTES_MAX);
    }
    fn take_list(input: &mut Reader<'_>) -> Result<Vec<Self>, Malformed> {
        let bytes = input.bytes(STRING_BYTES_MAX)?;
        if bytes.contains(&0) { Err(Malformed::Nul) } else { Ok(bytes.to_vec()) }
    }
}

impl Wire for bool {
    fn put(&self, out: &mut Writer) {
        out.raw(&[u8::from(*self)]);
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        match input.array()? {
            [0] => Ok(false),
            [1] => Ok(true),
            [_] => Err(Malformed::Flag),
        }
    }
    fn absent() -> Result<Self, Malformed> {
        Ok(false)
    }
}

impl Wire for String {
    fn put(&self, out: &mut Writer) {
        out.bytes(self.as_bytes(), STRING_BYTES_MAX);
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        let text = std::str::from_utf8(input.bytes(STRING_BYTES_MAX)?).map_err(|_| Malformed::Utf8)?;
        Ok(text.to_owned())
    }
    fn absent() -> Result<Self, Malformed> {
        Ok(String::new())
    }
}

impl<T: Wire> Wire for Vec<T> {
    fn put(&self, out: &mut Writer) {
        T::put_list(self, out);
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        T::take_list(input)
    }
    fn absent() -> Result<Self, Malformed> {
        Ok(Vec::new())
    }
}

impl<T: Wire> Wire for Option<T> {
    fn put(&self, out: &mut Writer) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        if bool::take(input)? { Ok(Some(T::take(input)?)) } else { Ok(None) }
    }
    fn absent() -> Result<Self, Malformed> {
        Ok(None)
    }
}

/// Two values side by side, without a length: a pair never grows.
impl<A: Wire, B: Wire> Wire for (A, B) {
    fn put(&self, out: &mut Writer) {
        self.0.put(out);
        self.1.put(out);
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok((A::take(input)?, B::take(input)?))
    }
    fn absent() -> Result<Self, Malformed> {
        Ok((A::absent()?, B::absent()?))
    }
}

macro_rules! wire_id {
    ($($name:ident)*) => {$(
        impl Wire for $name {
            fn put(&self, out: &mut Writer) {
                out.bytes(self.as_str().as_bytes(), knarr_model::id::ID_DIGITS);
            }
            fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
                let text = input.bytes(knarr_model::id::ID_DIGITS)?;
                let text = std::str::from_utf8(text).map_err(|_| Malformed::Id)?;
                $name::parse(text).map_err(|_| Malformed::Id)
            }
        }
    )*};
}

wire_id! { PodId ContainerId }

impl Wire for ExecId {
    fn put(&self, out: &mut Writer) {
        self.0.put(out);
    }
    fn take(input: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self(u64::take(input)?))
    }
}

/// Implements [`Wire`] for a struct by naming its fields in the order in which they are written; `via` names another
/// way than the usual one. New fields go to the end.
macro_rules! wire_struct {
    ($name:ident { $($field:ident $(via $via:ty)?),* $(,)? }) => {
        impl $crate::shim::codec::Wire for $name {
            fn put(&self, out: &mut $crate::shim::codec::Writer) {
                out.group(|out| {
                    $(<$crate::shim::codec::wire_struct!(@via $($via)?) as $crate::shim::codec::Via<_>>::put(&self.$field, out);)*
                    let _ = out;
                });
            }
            fn take(
                input: &mut $crate::shim::codec::Reader<'_>,
            ) -> Result<Self, $crate::shim::codec::Malformed> {
                let mut fields = input.group()?;
                let _ = &mut fields;
                Ok(Self { $($field: fields.field_via::<$crate::shim::codec::wire_struct!(@via $($via)?), _>()?,)* })
            }
            fn absent() -> Result<Self, $crate::shim::codec::Malformed> {
                let mut fields = $crate::shim::codec::Reader::empty();
                let _ = &mut fields;
                Ok(Self { $($field: fields.field_via::<$crate::shim::codec::wire_struct!(@via $($via)?), _>()?,)* })
            }
        }
    };
    (@via) => { $crate::shim::codec::Plain };
    (@via $via:ty) => { $via };
}
pub(crate) use wire_struct;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Old {
        name: Vec<u8>,
        count: u32,
    }
    wire_struct!(Old { name, count });

    #[derive(Debug, Clone, PartialEq)]
    struct New {
        name: Vec<u8>,
        count: u32,
        extra: Vec<String>,
        nested: Nested,
    }
    wire_struct!(New { name, count, extra, nested });

    #[derive(Debug, Clone, PartialEq, Default)]
    struct Nested {
        flag: bool,
        limit: Option<u64>,
    }
    wire_struct!(Nested { flag, limit });

    #[test]
    fn what_an_older_side_left_out_is_its_default() {
        let old = vec![Old { name: b"a".to_vec(), count: 1 }, Old { name: b"b".to_vec(), count: 2 }];
        let new: Vec<New> = decode(&encode(&old).unwrap()).unwrap();
        let expected = |o: &Old| New { name: o.name.clone(), count: o.count, extra: vec![], nested: Nested::default() };
        assert_eq!(new, old.iter().map(expected).collect::<Vec<_>>());
    }

    #[test]
    fn what_a_newer_side_appended_is_skipped() {
        let nested = Nested { flag: true, limit: Some(7) };
        let new = vec![New { name: b"a".to_vec(), count: 1, extra: vec!["x".into()], nested }; 2];
        let old: Vec<Old> = decode(&encode(&new).unwrap()).unwrap();
        assert_eq!(old, vec![Old { name: b"a".to_vec(), count: 1 }; 2]);
    }

    #[test]
    fn a_field_cut_in_the_middle_is_an_error_and_no_default() {
        let mut bytes = encode(&Old { name: b"a".to_vec(), count: 1 }).unwrap();
        bytes.pop();
        bytes[0] -= 1;
        assert_eq!(decode::<Old>(&bytes), Err(Malformed::Truncated));
    }

    #[test]
    fn a_nul_is_refused_by_both_sides() {
        assert_eq!(encode(&b"a\0b".to_vec()), Err(Malformed::Nul));
        assert_eq!(decode::<Vec<u8>>(&[3, 0, 0, 0, b'a', 0, b'b']), Err(Malformed::Nul));
    }

    #[test]
    fn lengths_above_a_limit_are_refused_by_both_sides() {
        assert_eq!(encode(&vec![b'a'; STRING_BYTES_MAX + 1]), Err(Malformed::TooLong));
        assert_eq!(encode(&vec![0_u32; LIST_ITEMS_MAX + 1]), Err(Malformed::TooLong));
        let big = vec![vec![b'a'; STRING_BYTES_MAX]; MESSAGE_BYTES_MAX / STRING_BYTES_MAX + 1];
        assert_eq!(encode(&big), Err(Malformed::TooLong));
        assert_eq!(decode::<Vec<u8>>(&[0xff; 4]), Err(Malformed::TooLong));
        assert_eq!(decode::<Vec<u32>>(&[0xff; 4]), Err(Malformed::TooLong));
        assert_eq!(decode::<Vec<u32>>(&[0xff, 0xff, 0, 0]), Err(Malformed::Truncated));
    }
}
