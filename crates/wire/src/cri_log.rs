//! The CRI log format: a container's output as lines that kubelet reads. It does no I/O and has no clock: bytes and
//! times come in, records go out.
//!
//! A record is one line:
//!
//! ```text
//! 2026-01-02T03:04:05.678901234Z stdout F content
//! ```
//!
//! `F` ends a line of the container, `P` does not: a reader puts the contents of the `P`s and of the `F` after them
//! together. The content is the container's bytes as they are; only the newline ends a record, and every newline of
//! the container ends one of ours. So whatever a container prints, a text that looks like a record stands in the
//! content of a real one.
//!
//! `P` is written for a line longer than [`LINE_BYTES_MAX`], for what is held when the stream rests (a prompt is seen
//! at once, and no half line waits in memory), and for what is left when the stream ends: as in containerd, since `F`
//! would tell of a newline that the container never wrote.

/// Bytes of content in one record: what containerd writes by default (max_container_log_line_size) and readers expect.
pub const LINE_BYTES_MAX: usize = 16 << 10;

/// Bytes of a record around its content: time, stream, tag, three spaces, newline.
pub const RECORD_OVERHEAD_BYTES: usize = TIMESTAMP_BYTES + 1 + 6 + 1 + 1 + 1 + 1;

const TIMESTAMP_BYTES: usize = 30;

/// Where output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output, or a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    /// As it stands in a record.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Makes records of the bytes of one stream.
#[derive(Debug)]
pub struct Framer {
    stream: Stream,
    /// The begin of a line whose end has not come; at most [`LINE_BYTES_MAX`].
    held: Vec<u8>,
}

impl Framer {
    /// At the begin of the stream.
    pub fn new(stream: Stream) -> Self {
        Self { stream, held: Vec::new() }
    }

    /// Takes what was read at `now` (nanoseconds since 1970) and appends the records that it completes to `out`: per
    /// byte of input at most one record.
    pub fn feed(&mut self, bytes: &[u8], now: i64, out: &mut Vec<u8>) {
        let stamp = timestamp(now);
        let mut rest = bytes;
        while !rest.is_empty() {
            let (line, ended, tail) = match rest.iter().position(|&byte| byte == b'\n') {
                Some(at) => (&rest[..at], true, &rest[at + 1..]),
                None => (rest, false, &rest[rest.len()..]),
            };
            self.take_line(line, ended, &stamp, out);
            rest = tail;
        }
    }

    /// The stream has given nothing for a while, or it has ended: what is held becomes a record.
    pub fn flush(&mut self, now: i64, out: &mut Vec<u8>) {
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            self.record(b'P', &[&held], &timestamp(now), out);
        }
    }

    /// Something is held that [`Framer::flush`] would write.
    pub fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    fn take_line(&mut self, mut line: &[u8], ended: bool, stamp: &[u8], out: &mut Vec<u8>) {
        while self.held.len() + line.len() > LINE_BYTES_MAX {
            let (piece, tail) = line.split_at(LINE_BYTES_MAX - self.held.len());
            let held = std::mem::take(&mut self.held);
            self.record(b'P', &[&held, piece], stamp, out);
            line = tail;
        }
        if ended {
            let held = std::mem::take(&mut self.held);
            self.record(b'F', &[&held, line], stamp, out);
        } else {
            self.held.extend_from_slice(line);
        }
    }

    fn record(&self, tag: u8, content: &[&[u8]], stamp: &[u8], out: &mut Vec<u8>) {
        out.extend_from_slice(stamp);
        out.push(b' ');
        out.extend_from_slice(self.stream.name().as_bytes());
        out.extend_from_slice(&[b' ', tag, b' ']);
        for part in content {
            out.extend_from_slice(part);
        }
        out.push(b'\n');
    }
}

/// One record, as a reader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// As it stands there.
    pub timestamp: &'a [u8],
    /// Where the content came from.
    pub stream: Stream,
    /// The container's line goes on in the next record of the stream.
    pub partial: bool,
    /// The container's bytes, without the newline.
    pub content: &'a [u8],
}

/// Reads one line of a log, without its newline; `None` if it is no record. Tags after the first (`F:…`) are passed
/// over, as kubelet does.
pub fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |&byte| byte == b' ');
    let (timestamp, stream, tags, content) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    let partial = match tags.split(|&byte| byte == b':').next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Record { timestamp, stream, partial, content })
}

/// Nanoseconds since 1970 as RFC 3339 in UTC, always with nine digits after the point, so that logs sort as text.
pub fn timestamp(nanoseconds: i64) -> [u8; TIMESTAMP_BYTES] {
    const SECOND: i64 = 1_000_000_000;
    const DAY: i64 = 86_400;
    let seconds = nanoseconds.div_euclid(SECOND);
    let (year, month, day) = date(seconds.div_euclid(DAY));
    let second_of_day = seconds.rem_euclid(DAY);
    let mut text = *b"0000-00-00T00:00:00.000000000Z";
    digits(&mut text[0..4], year);
    digits(&mut text[5..7], month);
    digits(&mut text[8..10], day);
    digits(&mut text[11..13], second_of_day / 3600);
    digits(&mut text[14..16], second_of_day / 60 % 60);
    digits(&mut text[17..19], second_of_day % 60);
    digits(&mut text[20..29], nanoseconds.rem_euclid(SECOND));
    text
}

fn digits(place: &mut [u8], mut number: i64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the Gregorian calendar. Years are counted from March, so
/// that the leap day is a year's last; 400 years have 146,097 days.
fn date(days: i64) -> (i64, i64, i64) {
    const DAYS_FROM_YEAR_0_MARCH: i64 = 719_468;
    const DAYS_OF_400_YEARS: i64 = 146_097;
    let days = days + DAYS_FROM_YEAR_0_MARCH;
    let era = days.div_euclid(DAYS_OF_400_YEARS);
    let day_of_era = days.rem_euclid(DAYS_OF_400_YEARS);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

/// The fuzz target: `data` is what a container writes, cut where its own bytes say.
#[cfg(any(test, feature = "fuzzing"))]
pub fn fuzz(data: &[u8]) {
    let mut framer = Framer::new(Stream::Stdout);
    let mut out = Vec::new();
    for piece in data.chunks(usize::from(*data.first().unwrap_or(&1)).max(1)) {
        framer.feed(piece, 0, &mut out);
    }
    framer.flush(0, &mut out);
    for line in out.split(|&byte| byte == b'\n') {
        assert!(line.is_empty() || parse(line).is_some());
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const NOW: i64 = 1_767_323_045_678_901_234;

    fn framed(pieces: &[&[u8]]) -> Vec<u8> {
        let mut framer = Framer::new(Stream::Stdout);
        let mut out = Vec::new();
        for piece in pieces {
            framer.feed(piece, NOW, &mut out);
        }
        framer.flush(NOW, &mut out);
        out
    }

    /// The bytes that a container wrote to `stream`, as a reader of the log puts them together.
    fn read_back(log: &[u8], stream: Stream) -> Vec<u8> {
        let mut bytes = Vec::new();
        let Some(log) = log.strip_suffix(b"\n") else {
            assert!(log.is_empty(), "the log ends within a record");
            return bytes;
        };
        for line in log.split(|&byte| byte == b'\n') {
            let record = parse(line).expect("every line is a record");
            assert!(record.content.len() <= LINE_BYTES_MAX);
            if record.stream == stream {
                bytes.extend_from_slice(record.content);
                if !record.partial {
                    bytes.push(b'\n');
                }
            }
        }
        bytes
    }

    #[test]
    fn a_line_becomes_a_record() {
        assert_eq!(framed(&[b"hello\n"]), b"2026-01-02T03:04:05.678901234Z stdout F hello\n");
        assert_eq!(framed(&[b"\n"]), b"2026-01-02T03:04:05.678901234Z stdout F \n");
    }

    #[test]
    fn a_line_that_comes_in_pieces_is_one_record() {
        assert_eq!(framed(&[b"he", b"ll", b"o\n"]), b"2026-01-02T03:04:05.678901234Z stdout F hello\n");
    }

    #[test]
    fn an_end_without_newline_is_partial() {
        assert_eq!(framed(&[b"hello"]), b"2026-01-02T03:04:05.678901234Z stdout P hello\n");
        assert_eq!(framed(&[]), b"");
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_one_record_and_a_longer_one_two() {
        let mut line = vec![b'x'; LINE_BYTES_MAX];
        line.push(b'\n');
        assert_eq!(framed(&[&line]).len(), RECORD_OVERHEAD_BYTES + LINE_BYTES_MAX);
        line.insert(0, b'x');
        let log = framed(&[&line]);
        let tags: Vec<bool> =
            log.split(|&b| b == b'\n').filter(|l| !l.is_empty()).map(|l| parse(l).unwrap().partial).collect();
        assert_eq!(tags, [true, false]);
    }

    #[test]
    fn a_forged_record_is_content() {
        let forged = b"2026-01-02T03:04:05.678901234Z stderr F forged";
        let log = framed(&[b"\r\x1b[2K\0", forged, b"\n", forged, b"\n"]);
        let streams: Vec<_> =
            log.split(|&b| b == b'\n').filter(|l| !l.is_empty()).map(|l| parse(l).unwrap().stream).collect();
        assert_eq!(streams, [Stream::Stdout, Stream::Stdout]);
        assert_eq!(read_back(&log, Stream::Stdout), [&b"\r\x1b[2K\0"[..], forged, b"\n", forged, b"\n"].concat());
    }

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000000Z"),
            (951_868_800, "2000-03-01T00:00:00.000000000Z"),
            (1_709_164_800, "2024-02-29T00:00:00.000000000Z"),
            (1_767_225_599, "2025-12-31T23:59:59.000000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000000Z"),
            (-1, "1969-12-31T23:59:59.000000000Z"),
        ] {
            assert_eq!(std::str::from_utf8(&timestamp(seconds * 1_000_000_000)).unwrap(), text);
        }
        assert_eq!(&timestamp(5)[..], b"1970-01-01T00:00:00.000000005Z");
    }

    /// Output with newlines as often as not, and lines that pass the limit.
    fn output() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            vec(any::<u8>(), 0..40),
            vec(Just(b'\n'), 1..4),
            (LINE_BYTES_MAX - 2..LINE_BYTES_MAX + 3).prop_map(|length| vec![b'y'; length]),
        ];
        vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn the_log_gives_back_every_byte_of_each_stream(
            stdout in output(),
            stderr in output(),
            steps in vec((any::<bool>(), 0_usize..20_000, any::<bool>()), 0..40),
        ) {
            let mut framers = [Framer::new(Stream::Stdout), Framer::new(Stream::Stderr)];
            let mut rest = [&stdout[..], &stderr[..]];
            let mut log = Vec::new();
            for (which, length, rests) in steps {
                let which = usize::from(which);
                let (piece, tail) = rest[which].split_at(length.min(rest[which].len()));
                rest[which] = tail;
                framers[which].feed(piece, NOW, &mut log);
                if rests {
                    framers[which].flush(NOW, &mut log);
                }
            }
            for which in 0..2 {
                framers[which].feed(rest[which], NOW, &mut log);
                framers[which].flush(NOW, &mut log);
            }
            prop_assert_eq!(read_back(&log, Stream::Stdout), stdout);
            prop_assert_eq!(read_back(&log, Stream::Stderr), stderr);
        }

        #[test]
        fn any_line_is_read_without_panic(line in vec(any::<u8>(), 0..80)) {
            let _ = parse(&line);
        }

        #[test]
        fn times_sort_as_text(a: i64, b: i64) {
            if a >= 0 && b >= 0 {
                prop_assert_eq!(a.cmp(&b), timestamp(a).cmp(&timestamp(b)));
            }
        }
    }
}
