//! An archive's members on disk, so that they can be read in another order than they came.
//!
//! An index comes last or first as its writer liked, so nothing can be done with a layer before all has been seen.
//! Members are written to a stage under numbers; their names stay in memory, bounded. The stage goes to the trash
//! with the import.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::ArchiveError;
use crate::layer::{self, Forget, Kind, TarError, TarReader};
use crate::reference::Digest;
use crate::store::{Inner, Stage};

/// Members of one archive: an image with 500 layers has some 1500, and an archive holds a few images.
const MEMBERS_MAX: u64 = 20_000;
/// How many links in a row are followed from a name.
const LINKS_MAX: usize = 8;
/// How much of the archive is read at once.
const READ_BYTES: usize = 256 << 10;

/// All regular files of an archive.
pub(crate) struct Spool {
    stage: Stage,
    members: HashMap<Vec<u8>, Member>,
}

enum Member {
    File {
        number: u64,
        size: u64,
        digest: Digest,
    },
    /// To another member, as a clean path from the archive's root.
    Link(Vec<u8>),
}

/// One regular file of an archive.
#[derive(Debug)]
pub(crate) struct Spooled {
    file: File,
    pub size: u64,
    /// Of its bytes.
    pub digest: Digest,
}

impl Spool {
    /// Reads the whole archive, compressed or not. At most `bytes_max` of content are written to disk.
    pub fn read(store: &Arc<Inner>, input: &mut dyn Read, bytes_max: u64) -> Result<Self, ArchiveError> {
        let disk = |source| ArchiveError::Stream { step: "spool the archive", source };
        let stage = Stage::new(store).map_err(disk)?;
        let plain =
            layer::decoder(input).map_err(|source| ArchiveError::Stream { step: "read the archive", source })?;
        let mut reader = TarReader::new(BufReader::with_capacity(READ_BYTES, plain));
        let mut spool = Self { stage, members: HashMap::new() };
        let mut bytes_left = bytes_max;
        let mut number = 0;
        while let Some(entry) = reader.next(&mut Forget).map_err(unreadable)? {
            number += 1;
            if number > MEMBERS_MAX {
                return Err(ArchiveError::TooMany { what: "members", limit: MEMBERS_MAX });
            }
            let broken = |why: String| ArchiveError::Invalid(format!("member {:?}: {why}", layer::shown(&entry.name)));
            let name = layer::clean(&entry.name).map_err(|e| broken(e.to_string()))?;
            let member = match entry.kind {
                Kind::File if entry.sparse.is_some() => return Err(broken("it is a sparse file".to_owned())),
                Kind::File => {
                    bytes_left = bytes_left
                        .checked_sub(entry.size)
                        .ok_or(ArchiveError::TooMany { what: "bytes", limit: bytes_max })?;
                    let mut writer = Writer::new(spool.stage.path().join(number.to_string())).map_err(disk)?;
                    reader.payload(entry.size, |piece| writer.write(piece).map_err(Failure::Disk)).map_err(
                        |e| match e {
                            Failure::Disk(e) => disk(e),
                            Failure::Tar(e) => unreadable(e),
                        },
                    )?;
                    Member::File { number, size: entry.size, digest: writer.finish().map_err(disk)? }
                }
                // Relative to the directory that the link is in.
                Kind::Symlink => {
                    let mut target = name[..name.iter().rposition(|&b| b == b'/').unwrap_or(0)].to_vec();
                    target.push(b'/');
                    target.extend_from_slice(&entry.link);
                    Member::Link(layer::clean(&target).map_err(|e| broken(e.to_string()))?)
                }
                Kind::HardLink => Member::Link(layer::clean(&entry.link).map_err(|e| broken(e.to_string()))?),
                Kind::Directory | Kind::Character | Kind::Block | Kind::Fifo => continue,
            };
            spool.members.insert(name, member);
        }
        Ok(spool)
    }

    /// The member of that name, through links inside the archive; `None` if there is none.
    pub fn open(&self, name: &str) -> Result<Option<Spooled>, ArchiveError> {
        let Ok(mut path) = layer::clean(name.as_bytes()) else { return Ok(None) };
        for _ in 0..LINKS_MAX {
            match self.members.get(&path) {
                None => return Ok(None),
                Some(Member::Link(target)) => path.clone_from(target),
                Some(Member::File { number, size, digest }) => {
                    let file = File::open(self.stage.path().join(number.to_string()))
                        .map_err(|source| ArchiveError::Stream { step: "open a spooled member", source })?;
                    return Ok(Some(Spooled { file, size: *size, digest: digest.clone() }));
                }
            }
        }
        Err(ArchiveError::Invalid(format!("member {name:?}: too many links")))
    }

    /// The member as a document in memory, of at most `bytes_max`.
    pub fn document(&self, name: &str, bytes_max: usize) -> Result<Option<Vec<u8>>, ArchiveError> {
        let Some(member) = self.open(name)? else { return Ok(None) };
        if member.size > bytes_max as u64 {
            return Err(ArchiveError::Invalid(format!("member {name:?} is larger than {bytes_max} bytes")));
        }
        let mut bytes = Vec::new();
        let read = member.file.take(bytes_max as u64).read_to_end(&mut bytes);
        read.map_err(|source| ArchiveError::Stream { step: "read a spooled member", source })?;
        Ok(Some(bytes))
    }
}

impl Read for Spooled {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer)
    }
}

/// Writes one member and hashes it.
struct Writer {
    file: BufWriter<File>,
    hasher: Sha256,
}

impl Writer {
    fn new(path: std::path::PathBuf) -> io::Result<Self> {
        Ok(Self { file: BufWriter::with_capacity(READ_BYTES, File::create_new(path)?), hasher: Sha256::new() })
    }

    fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.hasher.update(piece);
        self.file.write_all(piece)
    }

    fn finish(mut self) -> io::Result<Digest> {
        self.file.flush()?;
        Ok(Digest::from_sha256(&self.hasher.finalize().into()))
    }
}

enum Failure {
    Disk(io::Error),
    Tar(TarError),
}

impl From<TarError> for Failure {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

fn unreadable(error: TarError) -> ArchiveError {
    match error {
        TarError::Read(source) => ArchiveError::Stream { step: "read the archive", source },
        broken => ArchiveError::Invalid(broken.to_string()),
    }
}
