//! Follows one growing log file through rotation and truncation.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// How much is read at once.
const CHUNK_BYTES: usize = 64 << 10;

/// The longest line that is waited for. Runtimes cut lines at 16 KiB; what is longer is no CRI log, and is passed on in
/// pieces of this size.
const MAX_LINE_BYTES: usize = 1 << 20;

/// A log file that may not exist yet, may be renamed away and may be cut short.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    open: Option<Open>,
    /// Only the first file that is opened is entered near its end.
    tail_lines: Option<u64>,
}

#[derive(Debug)]
struct Open {
    file: File,
    inode: (u64, u64),
    offset: u64,
    /// The beginning of a line whose end has not been written yet.
    unfinished: Vec<u8>,
}

impl LogFile {
    /// A file to be read from its beginning, or from `tail_lines` lines before its end.
    pub fn new(path: impl Into<PathBuf>, tail_lines: Option<u64>) -> Self {
        Self { path: path.into(), open: None, tail_lines }
    }

    /// The path that is followed.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Passes on every line that has been completed since the last call, without its line break.
    ///
    /// Rotation renames the file and lets the runtime make a new one. A line written between our last read and the
    /// rename is not lost: the old descriptor is read to its end once more *after* the new file has been seen, and
    /// the runtime writes to the old file no more once the new one exists.
    pub fn read_new(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        if self.open.is_none() {
            self.open = open(&self.path, self.tail_lines.take())?;
        }
        let Some(current) = &mut self.open else { return Ok(()) };
        current.drain(sink)?;
        let replaced = match std::fs::metadata(&self.path) {
            Ok(metadata) => identity(&metadata) != current.inode,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(error),
        };
        if !replaced {
            return current.restart_if_cut();
        }
        current.drain(sink)?;
        current.flush(sink);
        self.open = open(&self.path, None)?;
        match &mut self.open {
            Some(next) => next.drain(sink),
            None => Ok(()),
        }
    }

    /// Passes on what is left of a line that will never be completed: its writer has gone.
    pub fn finish(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        self.read_new(sink)?;
        if let Some(current) = &mut self.open {
            current.flush(sink);
        }
        Ok(())
    }
}

fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn open(path: &Path, tail_lines: Option<u64>) -> io::Result<Option<Open>> {
    let mut file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let metadata = file.metadata()?;
    let offset = match tail_lines {
        Some(lines) => tail_offset(&mut file, metadata.len(), lines)?,
        None => 0,
    };
    file.seek(SeekFrom::Start(offset))?;
    Ok(Some(Open { file, inode: identity(&metadata), offset, unfinished: Vec::new() }))
}

/// Where the last `lines` lines begin, found from the end backwards so that a large file costs nothing.
fn tail_offset(file: &mut File, length: u64, lines: u64) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut end = length;
    let mut breaks = 0;
    while end > 0 {
        let start = end.saturating_sub(CHUNK_BYTES as u64);
        let chunk = &mut buffer[..usize::try_from(end - start).unwrap_or(CHUNK_BYTES)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(chunk)?;
        for (index, byte) in chunk.iter().enumerate().rev() {
            let position = start + index as u64;
            // The line break at the very end closes the last line and separates nothing.
            if *byte == b'\n' && position + 1 != length {
                breaks += 1;
                if breaks == lines {
                    return Ok(position + 1);
                }
            }
        }
        end = start;
    }
    Ok(if lines == 0 { length } else { 0 })
}

impl Open {
    fn drain(&mut self, sink: &mut dyn FnMut(&[u8])) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let count = match self.file.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                count => count?,
            };
            if count == 0 {
                return Ok(());
            }
            self.offset += count as u64;
            self.take(&buffer[..count], sink);
        }
    }

    fn take(&mut self, mut bytes: &[u8], sink: &mut dyn FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            if self.unfinished.is_empty() {
                sink(&bytes[..end]);
            } else {
                self.unfinished.extend_from_slice(&bytes[..end]);
                sink(&self.unfinished);
                self.unfinished.clear();
            }
            bytes = &bytes[end + 1..];
        }
        self.unfinished.extend_from_slice(bytes);
        if self.unfinished.len() >= MAX_LINE_BYTES {
            self.flush(sink);
        }
    }

    fn flush(&mut self, sink: &mut dyn FnMut(&[u8])) {
        if !self.unfinished.is_empty() {
            sink(&self.unfinished);
            self.unfinished.clear();
        }
    }

    /// A file shorter than what was read of it was emptied in place: it starts anew.
    fn restart_if_cut(&mut self) -> io::Result<()> {
        if self.file.metadata()?.len() < self.offset {
            self.offset = self.file.seek(SeekFrom::Start(0))?;
            self.unfinished.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Write;

    fn lines(log: &mut LogFile) -> Vec<String> {
        let mut found = Vec::new();
        log.read_new(&mut |line| found.push(String::from_utf8_lossy(line).into_owned())).unwrap();
        found
    }

    #[test]
    fn a_file_is_read_as_it_appears_and_grows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::new(&path, None);
        assert!(lines(&mut log).is_empty());
        let mut file = File::create(&path).unwrap();
        write!(file, "one\ntw").unwrap();
        assert_eq!(lines(&mut log), ["one"]);
        write!(file, "o\n\nthree\n").unwrap();
        assert_eq!(lines(&mut log), ["two", "", "three"]);
        write!(file, "cut off").unwrap();
        assert!(lines(&mut log).is_empty());
        let mut rest = Vec::new();
        log.finish(&mut |line| rest.push(line.to_vec())).unwrap();
        assert_eq!(rest, [b"cut off"]);
    }

    #[test]
    fn nothing_is_lost_or_told_twice_when_the_file_is_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut log = LogFile::new(&path, None);
        let mut old = File::create(&path).unwrap();
        writeln!(old, "one").unwrap();
        assert_eq!(lines(&mut log), ["one"]);
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        writeln!(old, "two, after the rename").unwrap();
        assert_eq!(lines(&mut log), ["two, after the rename"]);
        writeln!(old, "three, just before the new file").unwrap();
        std::fs::write(&path, "four\n").unwrap();
        assert_eq!(lines(&mut log), ["three, just before the new file", "four"]);
        assert!(lines(&mut log).is_empty());
    }

    #[test]
    fn a_file_emptied_in_place_is_read_from_its_beginning() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, "one\ntwo\n").unwrap();
        let mut log = LogFile::new(&path, None);
        assert_eq!(lines(&mut log).len(), 2);
        File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
        assert!(lines(&mut log).is_empty());
        let mut file = File::options().append(true).open(&path).unwrap();
        writeln!(file, "3").unwrap();
        assert_eq!(lines(&mut log), ["3"]);
    }

    #[test]
    fn the_tail_is_found_from_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let long = "x".repeat(CHUNK_BYTES);
        std::fs::write(&path, format!("{long}\none\ntwo\n")).unwrap();
        let tail = |count| lines(&mut LogFile::new(&path, Some(count)));
        assert!(tail(0).is_empty());
        assert_eq!(tail(1), ["two"]);
        assert_eq!(tail(2), ["one", "two"]);
        assert_eq!(tail(3).len(), 3);
        assert_eq!(tail(99).len(), 3);
        std::fs::write(&path, "one\nno end").unwrap();
        assert!(tail(1).is_empty(), "an unfinished line counts, and is shown when it is finished");
        std::fs::write(&path, "").unwrap();
        assert!(tail(5).is_empty());
    }

    #[test]
    fn a_line_without_end_is_passed_on_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, vec![b'x'; MAX_LINE_BYTES + CHUNK_BYTES]).unwrap();
        assert_eq!(lines(&mut LogFile::new(&path, None)).len(), 1);
    }

    proptest! {
        #[test]
        fn the_tail_is_what_counting_lines_would_give(
            lengths in proptest::collection::vec(0..3_000_usize, 0..60),
            count in 0_u64..70,
        ) {
            let mut file = tempfile::tempfile().unwrap();
            let text: String = lengths.iter().map(|length| format!("{}\n", "x".repeat(*length))).collect();
            file.write_all(text.as_bytes()).unwrap();
            let offset = tail_offset(&mut file, text.len() as u64, count).unwrap();
            let skipped = lengths.len().saturating_sub(usize::try_from(count).unwrap());
            let expected: usize = lengths[..skipped].iter().map(|length| length + 1).sum();
            prop_assert_eq!(offset, expected as u64);
        }
    }
}
