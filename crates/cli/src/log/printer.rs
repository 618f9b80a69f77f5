//! Prints log lines of one or several containers: what came from standard error goes to standard error.

use std::collections::HashMap;
use std::io::Write;

use super::line::{self, Line};
use crate::failure::Failure;
use crate::output::style::{Style, Tone};

/// Which lines are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection {
    /// Not those before; nanoseconds since 1970.
    pub since_ns: Option<i64>,
    /// Not those after.
    pub until_ns: Option<i64>,
    /// Each with its time before it.
    pub timestamps: bool,
}

/// The most that is kept of a line of which further parts are awaited, when lines of several sources are mixed.
const MAX_JOINED_BYTES: usize = 1 << 20;

/// Writes lines of several sources so that a line of one is never cut by a line of another.
#[derive(Debug)]
pub struct Printer {
    selection: Selection,
    styles: [Style; 2],
    prefixes: Vec<String>,
    /// Parts by source and stream.
    parts: HashMap<(usize, bool), Vec<u8>>,
    ready: [Vec<u8>; 2],
}

impl Printer {
    /// A printer for sources that are told apart by no prefix until [`Printer::add_source`] gives them one.
    pub fn new(selection: Selection, stdout: Style, stderr: Style) -> Self {
        Self {
            selection,
            styles: [stdout, stderr],
            prefixes: Vec::new(),
            parts: HashMap::new(),
            ready: [Vec::new(), Vec::new()],
        }
    }

    /// Adds a source; an empty prefix shows none. Returns its number.
    pub fn add_source(&mut self, prefix: impl Into<String>) -> usize {
        self.prefixes.push(prefix.into());
        self.prefixes.len() - 1
    }

    /// Takes one raw line of a source's log file.
    pub fn take(&mut self, source: usize, raw: &[u8]) {
        match line::parse(raw) {
            Some(line) => self.take_line(source, line),
            // Whatever it is, it is in the log, and hiding it would hide a fault.
            None if !raw.is_empty() => self.complete(source, false, raw),
            None => {}
        }
    }

    fn take_line(&mut self, source: usize, line: Line<'_>) {
        let early = self.selection.since_ns.is_some_and(|since| line.time_ns < since);
        let late = self.selection.until_ns.is_some_and(|until| line.time_ns > until);
        if early || late {
            return;
        }
        let key = (source, line.is_stderr);
        let mut whole = self.parts.remove(&key).unwrap_or_default();
        if whole.is_empty() && self.selection.timestamps {
            whole.extend_from_slice(line.time.as_bytes());
            whole.push(b' ');
        }
        whole.extend_from_slice(line.content);
        if line.partial && whole.len() < MAX_JOINED_BYTES {
            self.parts.insert(key, whole);
        } else {
            self.complete(source, line.is_stderr, &whole);
        }
    }

    fn complete(&mut self, source: usize, is_stderr: bool, content: &[u8]) {
        let stream = usize::from(is_stderr);
        let prefix = self.prefixes.get(source).map_or("", String::as_str);
        if !prefix.is_empty() {
            let painted = self.styles[stream].paint(Tone::Source(source), prefix);
            self.ready[stream].extend_from_slice(painted.as_bytes());
            self.ready[stream].push(b' ');
        }
        self.ready[stream].extend_from_slice(content);
        self.ready[stream].push(b'\n');
    }

    /// A source has ended: what it left without a line break is shown as it is.
    pub fn end_source(&mut self, source: usize) {
        for is_stderr in [false, true] {
            if let Some(rest) = self.parts.remove(&(source, is_stderr)) {
                self.complete(source, is_stderr, &rest);
            }
        }
    }

    /// Writes out what is complete.
    pub fn flush(&mut self) -> Result<(), Failure> {
        let [stdout, stderr] = &mut self.ready;
        write_all(&mut std::io::stdout().lock(), stdout)?;
        write_all(&mut std::io::stderr().lock(), stderr)
    }
}

fn write_all(stream: &mut dyn Write, bytes: &mut Vec<u8>) -> Result<(), Failure> {
    if bytes.is_empty() {
        return Ok(());
    }
    let written = stream.write_all(bytes).and_then(|()| stream.flush());
    bytes.clear();
    written.map_err(|error| Failure::output(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::style::When;

    fn printer(selection: Selection) -> Printer {
        Printer::new(selection, Style::of_stdout(When::Never), Style::of_stderr(When::Never))
    }

    fn text(printer: &Printer, stream: usize) -> String {
        String::from_utf8(printer.ready[stream].clone()).unwrap()
    }

    #[test]
    fn parts_of_a_line_are_joined_and_never_mixed() {
        let mut printer = printer(Selection::default());
        let (a, b) = (printer.add_source("a"), printer.add_source("b"));
        printer.take(a, b"2024-01-01T00:00:00Z stdout P one ");
        printer.take(b, b"2024-01-01T00:00:01Z stdout F other");
        printer.take(a, b"2024-01-01T00:00:02Z stderr F error");
        printer.take(a, b"2024-01-01T00:00:03Z stdout F line");
        assert_eq!(text(&printer, 0), "b other\na one line\n");
        assert_eq!(text(&printer, 1), "a error\n");
    }

    #[test]
    fn what_a_source_leaves_unfinished_is_shown_at_its_end() {
        let mut printer = printer(Selection::default());
        let source = printer.add_source("");
        printer.take(source, b"2024-01-01T00:00:00Z stdout P no end");
        assert_eq!(text(&printer, 0), "");
        printer.end_source(source);
        assert_eq!(text(&printer, 0), "no end\n");
    }

    #[test]
    fn only_the_time_that_was_asked_for_is_shown() {
        let mut printer = printer(Selection {
            since_ns: Some(1_704_067_200_000_000_000),
            until_ns: Some(1_704_067_201_000_000_000),
            timestamps: true,
        });
        let source = printer.add_source("");
        for second in ["2023-12-31T23:59:59Z", "2024-01-01T00:00:00Z", "2024-01-01T00:00:01Z", "2024-01-01T00:00:02Z"] {
            printer.take(source, format!("{second} stdout F x").as_bytes());
        }
        assert_eq!(text(&printer, 0), "2024-01-01T00:00:00Z x\n2024-01-01T00:00:01Z x\n");
    }

    #[test]
    fn a_line_of_another_format_is_shown_and_not_hidden() {
        let mut printer = printer(Selection::default());
        let source = printer.add_source("");
        printer.take(source, b"panic: not from the container");
        assert_eq!(text(&printer, 0), "panic: not from the container\n");
    }
}
