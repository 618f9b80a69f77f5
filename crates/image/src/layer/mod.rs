//! From a compressed stream to a directory, and back to the same tar.
//!
//! ```text
//! bytes → SHA-256 (digest) → gunzip/unzstd ──chunks──▶ SHA-256 (diff-id) → tar → directory + skeleton
//!         └────────── the caller's thread ──────────┘  └──────── a thread of its own ───────────────┘
//! ```
//!
//! One pass, no copy of the archive on disk, memory bounded by a few chunks. The second thread is confined to the
//! layer: it has its own file system state and its root is the layer's directory, so that even a mistake in the code
//! that opens by descriptor ends there.
//!
//! This module writes into an empty directory that the store gives it and knows nothing of images. It does not decide
//! whether the hashes are the right ones, and it makes nothing durable: the store does both before a layer counts.

mod apply;
mod confine;
mod decompress;
mod entry;
mod lower;
mod name;
mod pax;
mod skeleton;
mod sparse;
mod tree;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rustix::fs::{Mode, OFlags};
use sha2::{Digest as _, Sha256};

use self::apply::Written;
use self::skeleton::SkeletonWriter;
use crate::reference::Digest;

pub(crate) use self::apply::LowerLink;
pub(crate) use self::decompress::{Hashed, decoder};
pub(crate) use self::entry::{Forget, Kind, TarError, TarReader};
pub(crate) use self::lower::complete;
pub(crate) use self::name::{clean, shown};

/// In a layer's directory: the files, as overlayfs takes them.
pub(crate) const TREE_DIR: &str = "fs";
/// In a layer's directory: what later entries of the archive replaced, while an export still needs it.
pub(crate) const DISPLACED_DIR: &str = "displaced";
/// In a layer's directory: the archive without its contents.
pub(crate) const SKELETON_FILE: &str = "skeleton.zst";

/// How much plain archive goes from one thread to the other at once: a write of this size costs the disk's side
/// little more than the copy.
const CHUNK_BYTES: usize = 256 << 10;
/// How many chunks wait between the threads; evens out where one of them is slow for a while.
const CHUNKS_WAITING_MAX: usize = 4;

/// What one layer may be at most.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Entries of the archive.
    pub entries_max: u64,
    /// Bytes of content of all files, holes included.
    pub content_bytes_max: u64,
    /// Bytes of the uncompressed archive.
    pub archive_bytes_max: u64,
}

impl Default for Limits {
    /// The largest layers in the field are model weights of some tens of GiB, and file trees of some hundred
    /// thousand entries.
    fn default() -> Self {
        Self { entries_max: 4_000_000, content_bytes_max: 256 << 30, archive_bytes_max: 260 << 30 }
    }
}

/// What an applied layer amounts to. Nothing has been compared with anything yet.
#[derive(Debug)]
pub struct Applied {
    /// SHA-256 of the bytes that came in.
    pub digest: Digest,
    /// How many came in.
    pub compressed_bytes: u64,
    /// SHA-256 of the uncompressed archive.
    pub diff_id: Digest,
    /// Its size.
    pub archive_bytes: u64,
    /// Space on disk with the skeleton, in units of 4 KiB.
    pub bytes: u64,
    /// Files, directories, links and devices.
    pub inodes: u64,
    /// What the layers below must still give it.
    pub(crate) pending: Pending,
}

/// What a layer leaves to the layers below it: such a layer is another one on top of others.
#[derive(Debug, Default, Clone)]
pub(crate) struct Pending {
    /// Directories that the archive implied without describing them: they get the metadata of the layer below.
    pub implied: Vec<Vec<u8>>,
    /// Hard links to files of lower layers: those are copied up.
    pub links: Vec<LowerLink>,
}

impl Pending {
    /// Whether the layer is the same on top of any others.
    pub fn is_empty(&self) -> bool {
        self.implied.is_empty() && self.links.is_empty()
    }
}

/// Why a layer cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The side that gives the bytes failed or gave up.
    #[error("read the layer: {0}")]
    Input(io::Error),
    /// The bytes are not what their first ones promise.
    #[error("decompress the layer: {0}")]
    Decompress(io::Error),
    /// The archive as such is broken.
    #[error("the layer's archive is broken after {after:?}: {why}")]
    Archive {
        /// The last entry that was read.
        after: String,
        /// What is wrong with what follows.
        why: String,
    },
    /// One entry is refused.
    #[error("entry {name:?} of the layer: {why}")]
    Entry {
        /// As the archive has it.
        name: String,
        /// The reason.
        why: String,
    },
    /// A limit is passed.
    #[error("the layer has more than {limit} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The disk said no.
    #[error("{step} {path:?} in the layer: {source}")]
    Disk {
        /// What was being done.
        step: &'static str,
        /// Within the layer.
        path: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The skeleton cannot be written.
    #[error("write the layer's skeleton: {0}")]
    Skeleton(io::Error),
    /// The thread that writes the layer could not be started or confined.
    #[error("start the thread that writes the layer: {0}")]
    Thread(io::Error),
}

impl LayerError {
    /// An error that came out of the stream: the writing thread's own, or the other side's.
    fn from_input(error: io::Error) -> Self {
        Self::Input(error)
    }
}

impl From<TarError> for LayerError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Read(e) => Self::from_input(e),
            why => Self::Archive { after: String::new(), why: why.to_string() },
        }
    }
}

/// Writes the layer that `input` gives, compressed or not, into the empty directory `into`. Blocks until it is done.
///
/// An error from `input` ends it; whatever is in `into` then is for the caller to remove.
pub fn apply(input: impl Read, into: &Path, limits: &Limits) -> Result<Applied, LayerError> {
    let disk = |step: &'static str| {
        move |e: rustix::io::Errno| LayerError::Disk { step, path: String::new(), source: e.into() }
    };
    let layer = open_layer(into).map_err(disk("open"))?;
    rustix::fs::mkdirat(&layer, TREE_DIR, Mode::RWXU).map_err(disk("make the root"))?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let skeleton =
        rustix::fs::openat(&layer, SKELETON_FILE, flags, Mode::RUSR | Mode::WUSR).map_err(disk("make the skeleton"))?;
    let skeleton = SkeletonWriter::new(File::from(skeleton)).map_err(LayerError::Skeleton)?;

    let (chunks, arriving) = sync_channel(CHUNKS_WAITING_MAX);
    let (used, empty) = sync_channel(CHUNKS_WAITING_MAX + 2);
    std::thread::scope(|scope| {
        let writer = std::thread::Builder::new().name("layer-write".to_owned()).spawn_scoped(scope, || {
            confine::enter(&layer).map_err(LayerError::Thread)?;
            let mut archive = Archive::new(arriving, used, limits.archive_bytes_max);
            let written = apply::apply_archive(&mut archive, layer.as_fd(), skeleton, limits)?;
            Ok::<_, LayerError>((written, archive))
        });
        let writer = writer.map_err(LayerError::Thread)?;
        let decompressed = decompress_all(input, &chunks, &empty);
        drop(chunks);
        let written = match writer.join() {
            Ok(written) => written,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // The reason why the stream broke off is on this side, when it is on this side at all.
        let (compressed, ((written, skeleton), archive)) = match (decompressed, written) {
            (Ok(Some(compressed)), written) => (compressed, written?),
            (Ok(None), Err(error)) => return Err(error),
            (Ok(None), Ok(_)) => return Err(LayerError::Input(io::ErrorKind::BrokenPipe.into())),
            (Err(error), _) => return Err(error),
        };
        let skeleton_bytes = skeleton.metadata().map_err(LayerError::Skeleton)?.len();
        Ok(applied(compressed, archive, written, skeleton_bytes))
    })
}

/// Writes the layer's uncompressed archive again, byte for byte, from its directory. Returns how many bytes.
///
/// The caller compares the hash: a layer that was changed on disk gives other bytes.
pub fn reassemble(layer: &Path, output: &mut dyn Write) -> io::Result<u64> {
    skeleton::reassemble(&open_layer(layer)?, output)
}

fn open_layer(path: &Path) -> Result<OwnedFd, rustix::io::Errno> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn applied(compressed: ([u8; 32], u64), archive: Archive, written: Written, skeleton_bytes: u64) -> Applied {
    Applied {
        digest: Digest::from_sha256(&compressed.0),
        compressed_bytes: compressed.1,
        diff_id: Digest::from_sha256(&archive.hasher.finalize().into()),
        archive_bytes: archive.bytes,
        bytes: written.bytes + skeleton_bytes.next_multiple_of(apply::SPACE_UNIT_BYTES),
        inodes: written.inodes,
        pending: Pending { implied: written.implied, links: written.lower_links },
    }
}

/// What goes from thread to thread. A channel that closes without `End` has been given up.
enum Chunk {
    Data(Vec<u8>),
    End,
}

/// Hash and size of what came in; `None` when the other thread has stopped taking chunks, and knows why.
fn decompress_all(
    input: impl Read,
    chunks: &SyncSender<Chunk>,
    empty: &Receiver<Vec<u8>>,
) -> Result<Option<([u8; 32], u64)>, LayerError> {
    let mut input = Hashed::new(Marked { inner: input, failed: false });
    {
        let mut plain = decoder(&mut input).map_err(input_or_decompress)?;
        loop {
            let mut chunk = empty.try_recv().unwrap_or_default();
            chunk.resize(CHUNK_BYTES, 0);
            let filled = fill(&mut plain, &mut chunk).map_err(input_or_decompress)?;
            chunk.truncate(filled);
            if filled == 0 {
                break;
            }
            if chunks.send(Chunk::Data(chunk)).is_err() {
                return Ok(None);
            }
        }
    }
    input.drain().map_err(LayerError::Input)?;
    if chunks.send(Chunk::End).is_err() {
        return Ok(None);
    }
    Ok(Some(input.finish()))
}

/// Marks errors of the input, so that they are told from those of the decoder that reads through it.
struct Marked<R> {
    inner: R,
    failed: bool,
}

#[derive(Debug)]
struct InputFailed(io::Error);

impl std::fmt::Display for InputFailed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for InputFailed {}

impl<R: Read> Read for Marked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.failed {
            // A decoder that goes on after an error must not take the end of the stream for its end.
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        loop {
            match self.inner.read(buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    self.failed = true;
                    return Err(io::Error::new(e.kind(), InputFailed(e)));
                }
                got => return got,
            }
        }
    }
}

fn input_or_decompress(error: io::Error) -> LayerError {
    match error.downcast::<InputFailed>() {
        Ok(InputFailed(error)) => LayerError::Input(error),
        Err(error) => LayerError::Decompress(error),
    }
}

fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}

/// The plain archive on the writing thread's side: hashed and counted as it is taken.
struct Archive {
    arriving: Receiver<Chunk>,
    used: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    ended: bool,
    hasher: Sha256,
    bytes: u64,
    bytes_max: u64,
}

impl Archive {
    fn new(arriving: Receiver<Chunk>, used: SyncSender<Vec<u8>>, bytes_max: u64) -> Self {
        Self { arriving, used, chunk: Vec::new(), at: 0, ended: false, hasher: Sha256::new(), bytes: 0, bytes_max }
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        match self.arriving.recv() {
            Ok(Chunk::Data(chunk)) => {
                self.hasher.update(&chunk);
                self.bytes += chunk.len() as u64;
                if self.bytes > self.bytes_max {
                    let why = format!("the uncompressed layer is larger than {} bytes", self.bytes_max);
                    return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
                }
                // Nobody may be left to take it back, and that is all right.
                let _ = self.used.try_send(std::mem::replace(&mut self.chunk, chunk));
                self.at = 0;
            }
            Ok(Chunk::End) => self.ended = true,
            Err(_) => return Err(io::Error::new(io::ErrorKind::BrokenPipe, "the stream was given up")),
        }
        Ok(())
    }
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let taken = available.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&available[..taken]);
        self.consume(taken);
        Ok(taken)
    }
}

impl BufRead for Archive {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.chunk.len() && !self.ended {
            self.next_chunk()?;
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, bytes: usize) {
        self.at = (self.at + bytes).min(self.chunk.len());
    }
}
