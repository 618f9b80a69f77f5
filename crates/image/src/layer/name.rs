//! Names of archive entries: bytes from a stranger become a relative path, or an error.
//!
//! Nothing here touches a disk, and nothing here is a promise that the path is safe to open: the [`tree`](super::tree)
//! opens what is named here beneath its root and follows no link that it did not read itself.

use std::fmt;

/// The longest path that a system call takes, without its final NUL.
pub(crate) const PATH_BYTES_MAX: usize = 4095;
/// The longest name of one directory entry on every Linux file system that an image lives on.
pub(crate) const COMPONENT_BYTES_MAX: usize = 255;

/// The prefix that says "this name of a lower layer is gone".
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// The prefix of names that belong to the archive format and never to an image.
const RESERVED_PREFIX: &[u8] = b".wh..wh.";
/// Everything that lower layers have in this directory is gone.
const OPAQUE_NAME: &[u8] = b".wh..wh..opq";

/// Why a name cannot be one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadName {
    Nul,
    TooLong,
    ComponentTooLong,
    Whiteout,
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nul => "the name holds a NUL byte",
            Self::TooLong => "the name is longer than 4095 bytes",
            Self::ComponentTooLong => "a component of the name is longer than 255 bytes",
            Self::Whiteout => "a whiteout must name one entry of its directory",
        })
    }
}

/// What the last component of an entry's name asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Meaning<'a> {
    /// An entry of that name.
    Plain,
    /// This name of lower layers is gone.
    Whiteout(&'a [u8]),
    /// All names of lower layers in this directory are gone.
    Opaque,
    /// Bookkeeping of a storage driver that leaked into the archive; nothing of the image.
    Reserved,
}

/// The name as a relative path: no empty, `.` or `..` component, no slash at either end; empty for the root itself.
///
/// `..` is taken away together with the component before it and stops at the root, as containerd reads it.
pub(crate) fn clean(name: &[u8]) -> Result<Vec<u8>, BadName> {
    if name.contains(&0) {
        return Err(BadName::Nul);
    }
    let mut path = Vec::with_capacity(name.len());
    for component in name.split(|&b| b == b'/') {
        match component {
            b"" | b"." => {}
            b".." => path.truncate(split(&path).0.len()),
            _ if component.len() > COMPONENT_BYTES_MAX => return Err(BadName::ComponentTooLong),
            _ => push(&mut path, component),
        }
    }
    if path.len() > PATH_BYTES_MAX { Err(BadName::TooLong) } else { Ok(path) }
}

/// Puts `component` below `path`.
pub(crate) fn push(path: &mut Vec<u8>, component: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(component);
}

/// A clean path's parent and last component; both empty for the root.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&b| b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// Whether `path` is `ancestor` or lies below it; both clean.
pub(crate) fn is_at_or_below(path: &[u8], ancestor: &[u8]) -> bool {
    ancestor.is_empty() || path.strip_prefix(ancestor).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

/// Whether a clean path leads through a directory of a storage driver's own bookkeeping.
pub(crate) fn is_reserved(parent: &[u8]) -> bool {
    parent.split(|&b| b == b'/').any(|component| component.starts_with(RESERVED_PREFIX))
}

/// What the last component of a clean path asks for.
pub(crate) fn meaning(last: &[u8]) -> Result<Meaning<'_>, BadName> {
    if last == OPAQUE_NAME {
        return Ok(Meaning::Opaque);
    }
    if last.starts_with(RESERVED_PREFIX) {
        return Ok(Meaning::Reserved);
    }
    match last.strip_prefix(WHITEOUT_PREFIX) {
        None => Ok(Meaning::Plain),
        // `.wh...` would otherwise take away the directory above.
        Some(b"" | b"." | b"..") => Err(BadName::Whiteout),
        Some(hidden) => Ok(Meaning::Whiteout(hidden)),
    }
}

/// The name for a person: control characters and broken UTF-8 escaped, cut at a readable length.
pub(crate) fn shown(name: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 256;
    let cut = &name[..name.len().min(SHOWN_BYTES_MAX)];
    let mut text: String = String::from_utf8_lossy(cut).chars().flat_map(char::escape_debug).collect();
    if cut.len() < name.len() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_cleaned_and_stop_at_the_root() {
        for (name, path) in [
            ("a/b", "a/b"),
            ("./a//b/", "a/b"),
            ("/etc/passwd", "etc/passwd"),
            ("../../etc", "etc"),
            ("a/../../b", "b"),
            ("a/b/../c", "a/c"),
            (".", ""),
            ("/", ""),
            ("..", ""),
        ] {
            assert_eq!(clean(name.as_bytes()).unwrap(), path.as_bytes(), "{name}");
        }
    }

    #[test]
    fn names_that_no_disk_can_hold_are_errors() {
        assert_eq!(clean(b"a\0b"), Err(BadName::Nul));
        assert_eq!(clean(&[b'a'; 256]), Err(BadName::ComponentTooLong));
        assert_eq!(clean(&b"ab/".repeat(2000)), Err(BadName::TooLong));
    }

    #[test]
    fn a_whiteout_names_one_entry_of_its_directory() {
        assert_eq!(meaning(b".wh.a"), Ok(Meaning::Whiteout(b"a")));
        assert_eq!(meaning(b".wh..a"), Ok(Meaning::Whiteout(b".a")));
        assert_eq!(meaning(b".wh..wh..opq"), Ok(Meaning::Opaque));
        assert_eq!(meaning(b".wh..wh.plnk"), Ok(Meaning::Reserved));
        assert_eq!(meaning(b"a.wh.b"), Ok(Meaning::Plain));
        for bad in [&b".wh."[..], b".wh..", b".wh..."] {
            assert_eq!(meaning(bad), Err(BadName::Whiteout));
        }
        assert!(is_reserved(b".wh..wh.plnk") && is_reserved(b"a/.wh..wh.orph/b") && !is_reserved(b"a/.wh.b"));
    }

    proptest! {
        #[test]
        fn a_clean_path_has_no_component_that_moves(name in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), any::<u8>()], 0..300)) {
            if let Ok(path) = clean(&name) {
                if !path.is_empty() {
                    for component in path.split(|&b| b == b'/') {
                        prop_assert!(!component.is_empty() && component != b"." && component != b".." && !component.contains(&0));
                    }
                }
                prop_assert_eq!(clean(&path).unwrap(), path);
            }
        }
    }
}
