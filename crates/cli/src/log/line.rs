//! One line of a CRI log: `<RFC 3339 time> <stdout|stderr> <tags> <content>`, where the first tag is `F` for a full line
//! or `P` for a part that the next line of the same stream goes on with.

use crate::output::time;

/// A parsed line; it borrows the line it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line<'a> {
    /// As written.
    pub time: &'a str,
    /// Nanoseconds since 1970.
    pub time_ns: i64,
    /// Whether it came from standard error.
    pub is_stderr: bool,
    /// Whether the next line of this stream goes on with it.
    pub partial: bool,
    /// What the container wrote, without the line's end.
    pub content: &'a [u8],
}

/// Parses one line without its final line break; `None` for anything that no runtime writes.
pub fn parse(line: &[u8]) -> Option<Line<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let time_ns = time::parse_rfc3339(time)?;
    let is_stderr = match parts.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    let partial = match parts.next()?.split(|byte| *byte == b':').next()? {
        b"F" => false,
        b"P" => true,
        _ => return None,
    };
    // An empty line may come without the space before its content.
    let content = parts.next().unwrap_or_default();
    Some(Line { time, time_ns, is_stderr, partial, content })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_runtimes_are_parsed() {
        let line = parse(b"2016-10-06T00:17:09.669794202Z stdout F The content of the log").unwrap();
        assert_eq!(line.content, b"The content of the log");
        assert_eq!(line.time_ns, 1_475_713_029_669_794_202);
        assert!(!line.is_stderr && !line.partial);
        let line = parse(b"2016-10-06T00:17:09+02:00 stderr P:more  x").unwrap();
        assert_eq!(line.content, b" x");
        assert!(line.is_stderr && line.partial);
        assert_eq!(parse(b"2016-10-06T00:17:09Z stdout F ").unwrap().content, b"");
        assert_eq!(parse(b"2016-10-06T00:17:09Z stdout F").unwrap().content, b"");
    }

    #[test]
    fn other_lines_are_no_log_lines() {
        for bad in [
            "",
            "hello",
            "2016-10-06T00:17:09Z",
            "2016-10-06T00:17:09Z stdin F x",
            "2016-10-06T00:17:09Z stdout X x",
            "x stdout F x",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_line_or_none(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn what_a_container_wrote_comes_back_byte_for_byte(content in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..80)) {
            let mut raw = b"2024-01-01T00:00:00.5Z stderr F ".to_vec();
            raw.extend(&content);
            proptest::prop_assert_eq!(parse(&raw).map(|line| line.content.to_vec()), Some(content));
        }
    }
}
