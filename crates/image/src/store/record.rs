//! One file per image and layer, and how it is written so that it is there whole or not at all.
//!
//! ```text
//! {"version":1,"id":"sha256:…",…}      the record, JSON on one line
//! sha256:…                             the SHA-256 of that line, without its newline
//! ```
//!
//! A record is written under another name, synced, renamed, and the directory synced: after a power cut the old one or
//! the new one is there. The checksum is for what a disk does later. The structs here are the format on disk and
//! nothing else; a field is added with a default, and `version` changes only when older programs would misread it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, Mode, OFlags, openat, renameat, unlinkat};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::reference::Digest;

/// What this program writes and the newest that it reads.
const VERSION: u32 = 1;
/// A configuration and a few manifests in base64 are the bulk of a record; each of them is bounded far below this.
const RECORD_BYTES_MAX: u64 = 64 << 20;

/// An image as it is on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageRecord {
    pub version: u32,
    /// `sha256:` and the digest of the configuration.
    pub id: Digest,
    /// Tags in full form.
    pub names: Vec<String>,
    /// Repositories with a manifest's digest, in full form.
    pub digests: Vec<String>,
    /// Lowest first.
    pub layers: Vec<ImageLayer>,
    /// Bytes of the layers as they came, and of the configuration.
    pub size: u64,
    /// Nanoseconds since 1970: when the image was first stored.
    pub created_at: u64,
    /// Nanoseconds since 1970: when this record was written. Of two records that claim one tag, the later has it.
    pub updated_at: u64,
    /// Removed by name, kept for the containers that stand on it.
    #[serde(default)]
    pub removed: bool,
    /// `config` is the manifest of an artifact.
    #[serde(default)]
    pub artifact: bool,
    /// The configuration's bytes, base64.
    pub config: String,
    /// Manifests under which the image came, newest first.
    #[serde(default)]
    pub manifests: Vec<ManifestRecord>,
}

/// One layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageLayer {
    /// The directory that it is in.
    pub key: LayerKey,
    /// Of the uncompressed archive.
    pub diff_id: Digest,
    /// Of the bytes as they came.
    pub digest: Digest,
    /// Of the bytes as they came.
    pub size: u64,
}

/// A manifest as it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ManifestRecord {
    pub digest: Digest,
    /// Base64.
    pub bytes: String,
}

/// A layer as it is on disk; beside its `fs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub version: u32,
    pub key: LayerKey,
    pub diff_id: Digest,
    /// It took something from the layers below it, and `key` is its chain.
    pub depends_on_lower: bool,
    /// Size of the uncompressed archive.
    pub archive_bytes: u64,
    /// Space on disk.
    pub bytes: u64,
    pub inodes: u64,
}

/// The name of a layer's directory: 64 hexadecimal digits, of its diff-id or, if it depends on the layers below, of
/// its chain-id.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerKey(Box<str>);

impl LayerKey {
    /// Takes 64 lower-case hexadecimal digits and nothing else: a key becomes part of paths.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        digits.then(|| Self(text.into()))
    }

    /// The key that a SHA-256 digest gives.
    pub fn of(digest: &Digest) -> Option<Self> {
        if digest.algorithm() == "sha256" { Self::parse(digest.hex()) } else { None }
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for LayerKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for LayerKey {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("a layer's key is 64 lower-case hexadecimal digits")
    }
}

impl From<LayerKey> for String {
    fn from(key: LayerKey) -> Self {
        key.0.into()
    }
}

/// A record with a version number.
pub(crate) trait Versioned {
    const CURRENT: u32 = VERSION;
    fn version(&self) -> u32;
}

impl Versioned for ImageRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

impl Versioned for LayerRecord {
    fn version(&self) -> u32 {
        self.version
    }
}

impl ImageRecord {
    /// The version to put into a new record.
    pub const VERSION: u32 = VERSION;
}

/// Writes a record so that `name` is the old one or the new one at any moment, and returns when it is on disk.
pub(crate) fn write<T: Serialize>(directory: BorrowedFd<'_>, name: &str, record: &T) -> io::Result<()> {
    let temporary = format!("{name}.new");
    // What a crash left is nobody's.
    match unlinkat(directory, &temporary, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => {}
        Err(e) => return Err(e.into()),
    }
    create(directory, &temporary, record)?.sync_all()?;
    renameat(directory, &temporary, directory, name)?;
    sync_directory(directory)
}

/// Writes a new file with a record; the caller syncs it.
pub(crate) fn create<T: Serialize>(directory: BorrowedFd<'_>, name: &str, record: &T) -> io::Result<File> {
    let mut text = serde_json::to_vec(record)?;
    let checksum = Digest::sha256_of(&text);
    text.extend_from_slice(format!("\n{checksum}\n").as_bytes());
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?);
    file.write_all(&text)?;
    Ok(file)
}

/// Reads a record; `InvalidData` when it is not whole or not one.
pub(crate) fn read<T: DeserializeOwned + Versioned>(directory: BorrowedFd<'_>, name: &str) -> io::Result<T> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat(directory, name, flags, Mode::empty())?);
    let mut text = Vec::new();
    file.take(RECORD_BYTES_MAX).read_to_end(&mut text)?;
    parse(&text)
}

fn parse<T: DeserializeOwned + Versioned>(text: &[u8]) -> io::Result<T> {
    let broken = |why: &str| io::Error::new(io::ErrorKind::InvalidData, why.to_owned());
    let text = text.strip_suffix(b"\n").ok_or_else(|| broken("the record is cut short"))?;
    let newline = text.iter().rposition(|&b| b == b'\n').ok_or_else(|| broken("the record is cut short"))?;
    let (record, checksum) = (&text[..newline], &text[newline + 1..]);
    if Digest::sha256_of(record).as_str().as_bytes() != checksum {
        return Err(broken("the record's checksum is wrong"));
    }
    let record: T = serde_json::from_slice(record).map_err(|e| broken(&format!("the record is not readable: {e}")))?;
    if record.version() > T::CURRENT {
        return Err(broken(&format!("the record is of version {}, written by a newer program", record.version())));
    }
    Ok(record)
}

/// Makes names in a directory durable.
pub(crate) fn sync_directory(directory: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::fs::fsync(directory.as_fd())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record() -> LayerRecord {
        let diff_id = Digest::sha256_of(b"layer");
        let key = LayerKey::of(&diff_id).unwrap();
        LayerRecord { version: VERSION, key, diff_id, depends_on_lower: false, archive_bytes: 1, bytes: 2, inodes: 3 }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_over_an_older_one() {
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("r.new"), "left by a crash").unwrap();
        let mut this = record();
        for bytes in [7, 8] {
            this.bytes = bytes;
            write(fd.as_fd(), "r", &this).unwrap();
            assert_eq!(read::<LayerRecord>(fd.as_fd(), "r").unwrap(), this);
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_newer_version_is_not_guessed_at() {
        let dir = tempfile::tempdir().unwrap();
        let fd = File::open(dir.path()).unwrap();
        write(fd.as_fd(), "r", &LayerRecord { version: VERSION + 1, ..record() }).unwrap();
        assert!(read::<LayerRecord>(fd.as_fd(), "r").unwrap_err().to_string().contains("newer"));
    }

    #[test]
    fn a_key_is_64_digits() {
        for bad in ["", "..", &"A".repeat(64), &"a".repeat(63), &format!("../{}", "a".repeat(61))] {
            assert_eq!(LayerKey::parse(bad), None);
        }
    }

    proptest! {
        #[test]
        fn any_change_to_a_record_is_seen(at in any::<prop::sample::Index>(), bit in 0..8u8, cut in any::<prop::sample::Index>()) {
            let dir = tempfile::tempdir().unwrap();
            let fd = File::open(dir.path()).unwrap();
            write(fd.as_fd(), "r", &record()).unwrap();
            let whole = std::fs::read(dir.path().join("r")).unwrap();
            let mut flipped = whole.clone();
            let at = at.index(flipped.len());
            flipped[at] ^= 1 << bit;
            prop_assert!(parse::<LayerRecord>(&flipped).is_err());
            let cut = cut.index(whole.len());
            prop_assert!(parse::<LayerRecord>(&whole[..cut]).is_err());
        }
    }
}
