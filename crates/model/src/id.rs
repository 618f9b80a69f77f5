//! The names of things: one type each, so that a container's id is never taken for a pod's.

use std::fmt;

/// How many hexadecimal digits an id has: 256 bits, as every client of CRI expects.
pub const ID_DIGITS: usize = 64;

/// Why a text is no id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadId;

impl fmt::Display for BadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an id is {ID_DIGITS} lower-case hexadecimal digits")
    }
}

impl std::error::Error for BadId {}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// Takes 64 lower-case hexadecimal digits and nothing else: an id becomes part of paths.
            pub fn parse(text: &str) -> Result<Self, BadId> {
                let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
                if digits && text.len() == ID_DIGITS { Ok(Self(text.into())) } else { Err(BadId) }
            }

            /// Makes an id of 32 bytes that the caller drew at random.
            pub fn from_bytes(bytes: &[u8; 32]) -> Self {
                use fmt::Write;
                let mut text = String::with_capacity(ID_DIGITS);
                for byte in bytes {
                    let _ = write!(text, "{byte:02x}");
                }
                Self(text.into())
            }

            /// All 64 digits.
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The first 12 digits, as people read and type them.
            pub fn short(&self) -> &str {
                &self.0[..12]
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.short())
            }
        }
    };
}

id! {
    /// A pod (CRI calls it a pod sandbox).
    PodId
}
id! {
    /// A container of a pod.
    ContainerId
}

/// One exec in a container; unique within the life of the daemon that started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExecId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_lower_case_hex_digits_are_an_id() {
        assert!(PodId::parse(&"a1".repeat(32)).is_ok());
        for bad in ["", "abc", &"A1".repeat(32), &"a/".repeat(32), &"a1".repeat(33)] {
            assert_eq!(PodId::parse(bad), Err(BadId), "{bad:?}");
        }
    }

    #[test]
    fn bytes_become_their_digits() {
        let id = ContainerId::from_bytes(&[0xab; 32]);
        assert_eq!(id.as_str(), "ab".repeat(32));
        assert_eq!(id.short(), "abababababab");
    }
}
