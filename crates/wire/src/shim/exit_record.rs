//! The file that a shim leaves for each container that has ended, so that its exit code outlives the shim. It does no
//! I/O: the shim writes the text by rename, the daemon reads it where the shim is gone.
//!
//! ```text
//! <pod's run-time directory>/exits/<container id>
//!
//! knarr-exit 1
//! code 137
//! signal 9
//! started_at 1767225600000000000
//! finished_at 1767225601000000000
//! end
//! ```
//!
//! `signal` is missing when none ended the process. Times are nanoseconds since 1970. Lines that are not known are
//! skipped; without `end` the file was not written whole and is no record.

use knarr_model::plan::Exit;

/// Bytes of a record: a longer file is none.
pub const RECORD_BYTES_MAX: usize = 4096;

/// The directory of the records, in the pod's run-time directory.
pub const DIRECTORY: &str = "exits";

const FIRST_LINE: &str = "knarr-exit 1";

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitRecord {
    /// nanoseconds since 1970
    pub started_at: i64,
    /// how and when it ended
    pub exit: Exit,
}

impl ExitRecord {
    /// The text of the file.
    pub fn text(&self) -> String {
        let signal = self.exit.signal.map(|signal| format!("signal {signal}\n")).unwrap_or_default();
        format!(
            "{FIRST_LINE}\ncode {}\n{signal}started_at {}\nfinished_at {}\nend\n",
            self.exit.code, self.started_at, self.exit.finished_at
        )
    }

    /// Reads the text of a file; `None` if it is no whole record of this version.
    pub fn parse(text: &[u8]) -> Option<Self> {
        if text.len() > RECORD_BYTES_MAX {
            return None;
        }
        let body = std::str::from_utf8(text).ok()?.strip_prefix(FIRST_LINE)?.strip_prefix('\n')?;
        let body = body.strip_suffix("end\n")?;
        let (mut code, mut signal, mut started_at, mut finished_at) = (None, None, None, None);
        for line in body.lines() {
            let (name, value) = line.split_once(' ')?;
            match name {
                "code" => code = Some(value.parse().ok()?),
                "signal" => signal = Some(value.parse().ok()?),
                "started_at" => started_at = Some(value.parse().ok()?),
                "finished_at" => finished_at = Some(value.parse().ok()?),
                _ => {}
            }
        }
        Some(Self { started_at: started_at?, exit: Exit { code: code?, signal, finished_at: finished_at? } })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_record_comes_back(code: i32, signal: Option<u8>, started_at: i64, finished_at: i64) {
            let record = ExitRecord { started_at, exit: Exit { code, signal, finished_at } };
            prop_assert_eq!(ExitRecord::parse(record.text().as_bytes()), Some(record));
        }

        #[test]
        fn a_record_that_was_cut_is_none(cut in 0_usize..200) {
            let exit = Exit { code: 1, signal: Some(9), finished_at: 2 };
            let text = ExitRecord { started_at: 1, exit }.text();
            if cut < text.len() {
                prop_assert_eq!(ExitRecord::parse(&text.as_bytes()[..cut]), None);
            }
        }

        #[test]
        fn any_file_is_read_without_panic(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = ExitRecord::parse(&text);
        }
    }

    #[test]
    fn unknown_lines_are_skipped() {
        let text = b"knarr-exit 1\ncode 3\nnew thing here\nstarted_at 1\nfinished_at 2\nend\n";
        let expected = ExitRecord { started_at: 1, exit: Exit { code: 3, signal: None, finished_at: 2 } };
        assert_eq!(ExitRecord::parse(text), Some(expected));
    }
}
