//! The keys by which a person leaves a container without ending it, found in what is typed. Knows no terminal.

use std::str::FromStr;

/// What docker, podman and crictl use.
pub const USUAL_KEYS: &str = "ctrl-p,ctrl-q";

/// More keys than anybody types on purpose; it bounds what is held back.
const KEYS_MAX: usize = 16;

/// A sequence of keys; of none, nothing detaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetachKeys(Vec<u8>);

impl DetachKeys {
    /// No sequence.
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// Whether nothing detaches.
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for DetachKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::none());
        }
        let keys = text.split(',').map(key).collect::<Result<Vec<u8>, String>>()?;
        if keys.len() > KEYS_MAX {
            return Err(format!("{} keys; at most {KEYS_MAX} are taken", keys.len()));
        }
        Ok(Self(keys))
    }
}

/// "a" or "ctrl-a"; the latter also of `@`, `[`, `\`, `]`, `^` and `_`, which have control characters too.
fn key(text: &str) -> Result<u8, String> {
    let controlled = text.strip_prefix("ctrl-");
    match (controlled.unwrap_or(text).as_bytes(), controlled.is_some()) {
        ([letter], false) if letter.is_ascii_graphic() || *letter == b' ' => Ok(*letter),
        ([letter], true) if matches!(letter.to_ascii_uppercase(), b'@'..=b'_') => {
            Ok(letter.to_ascii_uppercase() & 0x1f)
        }
        _ => Err(format!("{text:?} is no key: write for example ctrl-p,ctrl-q, or a,b")),
    }
}

/// Looks for the keys in what is typed. The beginning of a sequence is held back until it is known what becomes of it.
#[derive(Debug)]
pub struct DetachFilter {
    keys: Vec<u8>,
    /// So many of the keys were typed last, and are held back.
    matched: usize,
}

impl DetachFilter {
    /// A filter that has seen nothing yet.
    pub fn new(keys: DetachKeys) -> Self {
        Self { keys: keys.0, matched: 0 }
    }

    /// Takes what was typed. Returns what is to be passed on, and whether the sequence is complete; what was typed
    /// after it is for nobody.
    pub fn take(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        if self.keys.is_empty() {
            return (typed.to_vec(), false);
        }
        let mut passed = Vec::with_capacity(typed.len() + self.matched);
        for byte in typed {
            self.advance(*byte, &mut passed);
            if self.matched == self.keys.len() {
                return (passed, true);
            }
        }
        (passed, false)
    }

    /// What is still held back, once nothing more can be typed.
    pub fn finish(&mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.matched);
        self.keys[..held].to_vec()
    }

    /// Held back is always the longest end of what was typed that the keys begin with.
    fn advance(&mut self, byte: u8, passed: &mut Vec<u8>) {
        let mut held = self.keys[..self.matched].to_vec();
        held.push(byte);
        let kept = (0..=held.len()).find(|from| self.keys.starts_with(&held[*from..])).unwrap_or(held.len());
        passed.extend_from_slice(&held[..kept]);
        self.matched = held.len() - kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filter(keys: &str) -> DetachFilter {
        DetachFilter::new(keys.parse().unwrap())
    }

    #[test]
    fn keys_are_letters_or_controlled_letters() {
        let keys = |text: &str| text.parse::<DetachKeys>().map(|keys| keys.0);
        assert_eq!(keys(USUAL_KEYS).unwrap(), [0x10, 0x11]);
        assert_eq!(keys("a,B,ctrl-C,ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_").unwrap().len(), 9);
        assert_eq!(keys("ctrl-[").unwrap(), [0x1b]);
        assert_eq!("".parse(), Ok(DetachKeys::none()));
        for bad in ["ctrl-", "ctrl-pp", "ctrl-1", "strg-p", "ab", "a,", ",", "ä", "ctrl-ä", "\u{10}"] {
            assert!(keys(bad).unwrap_err().contains("is no key"), "{bad}");
        }
        assert!(keys(&["a"; KEYS_MAX + 1].join(",")).is_err());
    }

    #[test]
    fn the_sequence_detaches_even_in_pieces() {
        let mut whole = filter(USUAL_KEYS);
        assert_eq!(whole.take(b"ls\n\x10\x11rest"), (b"ls\n".to_vec(), true));
        let mut pieces = filter(USUAL_KEYS);
        assert_eq!(pieces.take(b"ls\x10"), (b"ls".to_vec(), false));
        assert_eq!(pieces.take(b"\x11"), (Vec::new(), true));
    }

    #[test]
    fn what_turns_out_not_to_be_the_sequence_is_passed_on() {
        let mut keys = filter(USUAL_KEYS);
        assert_eq!(keys.take(b"\x10"), (Vec::new(), false));
        assert_eq!(keys.take(b"x"), (b"\x10x".to_vec(), false));
        assert_eq!(keys.take(b"\x11"), (b"\x11".to_vec(), false));
        assert_eq!(keys.take(b"\x10"), (Vec::new(), false));
        assert_eq!(keys.finish(), b"\x10");
        assert_eq!(keys.finish(), b"");
    }

    #[test]
    fn a_sequence_may_begin_within_its_own_beginning() {
        let mut keys = filter("a,a,b");
        assert_eq!(keys.take(b"aaab!"), (b"a".to_vec(), true));
        let mut twice = filter(USUAL_KEYS);
        assert_eq!(twice.take(b"\x10\x10\x11"), (b"\x10".to_vec(), true));
    }

    #[test]
    fn without_keys_everything_is_passed_on() {
        let mut none = DetachFilter::new(DetachKeys::none());
        assert_eq!(none.take(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
        assert_eq!(none.finish(), b"");
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_is_added(
            keys in proptest::collection::vec(b'a'..=b'c', 0..4),
            reads in proptest::collection::vec(proptest::collection::vec(b'a'..=b'c', 0..6), 0..6),
        ) {
            let mut filter = DetachFilter::new(DetachKeys(keys.clone()));
            let typed = reads.concat();
            let place = typed.windows(keys.len().max(1)).position(|window| window == keys);
            let mut passed = Vec::new();
            let mut detached = false;
            for read in &reads {
                let (some, end) = filter.take(read);
                passed.extend(some);
                if end {
                    detached = true;
                    break;
                }
            }
            if !detached {
                passed.extend(filter.finish());
            }
            let expected = place.filter(|_| !keys.is_empty());
            prop_assert_eq!(detached, expected.is_some());
            prop_assert_eq!(passed, typed[..expected.unwrap_or(typed.len())].to_vec());
        }
    }
}
