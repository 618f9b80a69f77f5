//! The words of exec and attach: protocol versions, streams, the status in which a command ends, terminal sizes. It
//! knows bytes and values, not the connection that carries them.
//!
//! The versions over SPDY differ in little: v1 and v2 have no sizes, v4 alone tells the status in JSON; v5 is for
//! WebSockets only ([`crate::channel::Protocol`]).

use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};

/// Bytes of the status or error text that a client reads: a status has about 200 bytes, and an error says no more after
/// a page.
pub const STATUS_BYTES_MAX: usize = 64 << 10;

/// Bytes of one terminal size: a real one has at most 30.
pub const SIZE_BYTES_MAX: usize = 1 << 10;

/// The header of SYN_STREAM that says what the stream is for; in the case in which Go's clients send it.
pub const STREAM_TYPE_HEADER: &str = "streamtype";

/// The word by which a status says that its details hold an exit code.
const NON_ZERO_EXIT_CODE: &str = "NonZeroExitCode";

/// The cause of a status whose message is the exit code.
const EXIT_CODE: &str = "ExitCode";

/// How a command ended, as its client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandEnd {
    /// It exited with 0.
    Success,
    /// It exited with this, 1 to 255; a signal is 128 more than its number.
    Exited(u8),
    /// It could not be run, or its end is not known; the text is for a person.
    Failed(String),
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// A version of the protocol over SPDY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Version {
    V1,
    V2,
    V3,
    V4,
}

impl Version {
    /// All of them, the best first: what a server says that it accepts, and the order in which a client offers them.
    pub const ALL: [Self; 4] = [Self::V4, Self::V3, Self::V2, Self::V1];

    /// As it stands in X-Stream-Protocol-Version.
    pub fn name(self) -> &'static str {
        match self {
            Self::V1 => "channel.k8s.io",
            Self::V2 => "v2.channel.k8s.io",
            Self::V3 => "v3.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
        }
    }

    /// By its name; no name is v1.
    pub fn from_name(name: &str) -> Option<Self> {
        if name.is_empty() {
            return Some(Self::V1);
        }
        Self::ALL.into_iter().find(|version| version.name() == name)
    }

    /// The first of the client's that is known.
    pub fn choose(offered: &[&str]) -> Option<Self> {
        offered.iter().find_map(|name| Self::from_name(name))
    }

    /// Whether a terminal has a stream for its sizes.
    pub fn has_resizes(self) -> bool {
        self >= Self::V3
    }

    /// Whether a command's end is told in JSON rather than by a text in case of failure.
    pub fn has_status(self) -> bool {
        self == Self::V4
    }
}

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum StreamType {
    Error,
    Stdin,
    Stdout,
    Stderr,
    Resize,
}

impl StreamType {
    const ALL: [Self; 5] = [Self::Error, Self::Stdin, Self::Stdout, Self::Stderr, Self::Resize];

    /// As it stands in [`STREAM_TYPE_HEADER`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Resize => "resize",
        }
    }

    /// By its name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stream| stream.name() == name)
    }
}

/// The parts of Kubernetes' Status that matter here.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Status {
    #[serde(deserialize_with = "or_null")]
    status: String,
    #[serde(deserialize_with = "or_null", skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(deserialize_with = "or_null", skip_serializing_if = "String::is_empty")]
    reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<i32>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Details {
    #[serde(deserialize_with = "or_null")]
    causes: Vec<Cause>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Cause {
    #[serde(deserialize_with = "or_null")]
    reason: String,
    #[serde(deserialize_with = "or_null")]
    message: String,
}

/// To Go `null` is the same as nothing.
fn or_null<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl CommandEnd {
    /// What the server sends on the error stream before it ends it; nothing for a success where there is no JSON.
    pub fn encode(&self, has_status: bool) -> Vec<u8> {
        let message = match self {
            Self::Success => String::new(),
            Self::Exited(code) => format!("command terminated with non-zero exit code: exit status {code}"),
            Self::Failed(text) => format!("Internal error occurred: {text}"),
        };
        if !has_status {
            return message.into_bytes();
        }
        let failure = Status { status: "Failure".into(), message, ..Status::default() };
        let status = match self {
            Self::Success => Status { status: "Success".into(), ..Status::default() },
            Self::Exited(code) => {
                let cause = Cause { reason: EXIT_CODE.into(), message: code.to_string() };
                let details = Some(Details { causes: vec![cause] });
                Status { reason: NON_ZERO_EXIT_CODE.into(), details, ..failure }
            }
            Self::Failed(_) => Status { reason: "InternalError".into(), code: Some(500), ..failure },
        };
        // Strings and numbers alone: it cannot fail.
        serde_json::to_vec(&status).unwrap_or_default()
    }

    /// Reads what came on the error stream until its end. As in Kubernetes' own client nothing is a success, and what
    /// cannot be understood is a failure that repeats it.
    pub fn decode(text: &[u8], has_status: bool) -> Self {
        if text.is_empty() {
            return Self::Success;
        }
        if !has_status {
            return Self::Failed(String::from_utf8_lossy(text).into_owned());
        }
        let odd = |what: &str| Self::Failed(format!("{what} in status {:?}", String::from_utf8_lossy(text)));
        // One value, whatever follows it.
        let Some(Ok(status)) = serde_json::Deserializer::from_slice(text).into_iter::<Status>().next() else {
            return odd("no JSON");
        };
        match status.status.as_str() {
            "Success" => Self::Success,
            "Failure" if status.reason == NON_ZERO_EXIT_CODE => {
                let causes = status.details.unwrap_or_default().causes;
                match causes.iter().find(|cause| cause.reason == EXIT_CODE).map(|cause| cause.message.parse()) {
                    Some(Ok(0)) => Self::Success,
                    Some(Ok(code)) => Self::Exited(code),
                    Some(Err(_)) => odd("bad exit code"),
                    None => odd("no exit code"),
                }
            }
            "Failure" => Self::Failed(status.message),
            _ => odd("neither Success nor Failure"),
        }
    }
}

impl TerminalSize {
    /// As it stands on the resize stream, with a newline as Go's clients send it.
    pub fn encode(self) -> Vec<u8> {
        format!("{{\"Width\":{},\"Height\":{}}}\n", self.columns, self.rows).into_bytes()
    }
}

/// What came on the resize stream is no size, or too long for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoSize;

impl fmt::Display for NoSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("resize stream: no JSON object with Width and Height")
    }
}

impl std::error::Error for NoSize {}

/// Reads terminal sizes from the resize stream: JSON objects one after the other, cut anywhere.
#[derive(Debug, Default)]
pub struct SizeDecoder {
    /// The begin of an object whose end has not come; at most [`SIZE_BYTES_MAX`].
    held: Vec<u8>,
    /// Objects and lists that are open at its end.
    depth: usize,
    /// Whether a string is open there.
    in_string: bool,
    /// Whether the next character of that string is taken as it is.
    escaped: bool,
    failed: bool,
}

impl SizeDecoder {
    /// At the begin of the stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes and gives the last size among them: older ones do not matter any more. Sizes of 0 are
    /// passed over.
    ///
    /// # Errors
    /// The stream holds something else; whatever comes later on it is an error too. A size before that is still given,
    /// and the error with the next call.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Option<TerminalSize>, NoSize> {
        let mut latest = None;
        for &byte in bytes {
            let between = self.held.is_empty();
            if self.failed || between && matches!(byte, b' ' | b'\t' | b'\r' | b'\n') {
                continue;
            }
            if between && byte != b'{' || self.held.len() == SIZE_BYTES_MAX {
                self.failed = true;
                continue;
            }
            self.held.push(byte);
            if self.ends_with(byte) {
                match serde_json::from_slice(&self.held) {
                    Ok(Size { width: columns, height: rows }) if columns > 0 && rows > 0 => {
                        latest = Some(TerminalSize { columns, rows });
                    }
                    Ok(_) => {}
                    Err(_) => self.failed = true,
                }
                self.held.clear();
            }
        }
        if self.failed && latest.is_none() { Err(NoSize) } else { Ok(latest) }
    }

    /// Whether an object ends with this byte, so that it can be parsed. Parsing what may be a part would not do: whether
    /// a number is one can depend on where it was cut.
    fn ends_with(&mut self, byte: u8) -> bool {
        if self.in_string {
            self.in_string = byte != b'"' || self.escaped;
            self.escaped = byte == b'\\' && !self.escaped;
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

/// A size as Go reads it: names in any case, unknown ones ignored, what is missing is 0.
#[derive(Default)]
struct Size {
    width: u16,
    height: u16,
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SizeVisitor)
    }
}

struct SizeVisitor;

impl<'de> Visitor<'de> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with Width and Height")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Size, A::Error> {
        let mut size = Size::default();
        while let Some(name) = map.next_key::<String>()? {
            let place = match name {
                name if name.eq_ignore_ascii_case("width") => &mut size.width,
                name if name.eq_ignore_ascii_case("height") => &mut size.height,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if let Some(value) = map.next_value::<Option<u16>>()? {
                *place = value;
            }
        }
        Ok(size)
    }
}

/// The fuzz target: the first byte says how the rest is cut, which is read as sizes and as a status.
#[cfg(any(test, feature = "fuzzing"))]
pub fn fuzz(data: &[u8]) {
    let Some((&first, data)) = data.split_first() else { return };
    let read = |piece: usize| {
        let (mut decoder, mut latest) = (SizeDecoder::new(), None);
        for piece in data.chunks(piece) {
            latest = decoder.feed(piece).ok().flatten().or(latest);
            assert!(decoder.held.len() <= SIZE_BYTES_MAX);
        }
        (latest, decoder.feed(b"").is_err())
    };
    let whole = read(data.len().max(1));
    assert_eq!(whole, read(usize::from(first) + 1));
    assert_eq!(whole, read(1));

    for has_status in [false, true] {
        let end = CommandEnd::decode(data, has_status);
        match &end {
            CommandEnd::Success | CommandEnd::Exited(_) => {
                assert!(has_status || data.is_empty());
                assert_eq!(CommandEnd::decode(&end.encode(true), true), end);
            }
            CommandEnd::Failed(_) => {
                let CommandEnd::Failed(_) = CommandEnd::decode(&end.encode(has_status), has_status) else {
                    panic!("a failure comes back as one");
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn size(columns: u16, rows: u16) -> Option<TerminalSize> {
        Some(TerminalSize { columns, rows })
    }

    #[test]
    fn the_clients_first_known_version_is_chosen() {
        // What kubectl offers, in its order.
        let offered =
            ["v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
        assert_eq!(Version::choose(&offered), Some(Version::V4));
        assert_eq!(Version::choose(&offered[3..]), Some(Version::V2));
        assert_eq!(Version::choose(&[""]), Some(Version::V1));
        assert_eq!(Version::choose(&["v6.channel.k8s.io"]), None);
        assert_eq!(Version::choose(&[]), None);
        for version in Version::ALL {
            assert_eq!(Version::from_name(version.name()), Some(version));
        }
        let [v4, v3, v2, v1] = Version::ALL;
        assert!(v4.has_resizes() && v3.has_resizes() && !v2.has_resizes() && !v1.has_resizes());
        assert!(v4.has_status() && !v3.has_status());
    }

    #[test]
    fn streams_have_their_names() {
        for stream in StreamType::ALL {
            assert_eq!(StreamType::from_name(stream.name()), Some(stream));
        }
        assert_eq!(StreamType::from_name("Stdin"), None);
        assert_eq!(StreamType::from_name(""), None);
    }

    #[test]
    fn a_status_is_written_as_kubernetes_server_writes_it() {
        let json = |end: CommandEnd| String::from_utf8(end.encode(true)).unwrap();
        assert_eq!(json(CommandEnd::Success), r#"{"status":"Success"}"#);
        assert_eq!(
            json(CommandEnd::Exited(42)),
            r#"{"status":"Failure","message":"command terminated with non-zero exit code: exit status 42","#.to_owned()
                + r#""reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"42"}]}}"#
        );
        assert_eq!(
            json(CommandEnd::Failed("no such \"file\"".into())),
            r#"{"status":"Failure","message":"Internal error occurred: no such \"file\"","#.to_owned()
                + r#""reason":"InternalError","code":500}"#
        );
    }

    #[test]
    fn before_v4_a_text_says_what_failed() {
        assert_eq!(CommandEnd::Success.encode(false), b"");
        let text = CommandEnd::Exited(3).encode(false);
        assert_eq!(text, b"command terminated with non-zero exit code: exit status 3");
        let CommandEnd::Failed(told) = CommandEnd::decode(&text, false) else { panic!("a failure") };
        assert_eq!(told.as_bytes(), text);
        assert_eq!(CommandEnd::decode(b"", false), CommandEnd::Success);
    }

    #[test]
    fn a_status_is_read_as_kubernetes_client_reads_it() {
        let decode = |text: &str| CommandEnd::decode(text.as_bytes(), true);
        assert_eq!(decode(""), CommandEnd::Success);
        assert_eq!(decode(r#"{"metadata":{},"status":"Success","code":null}"#), CommandEnd::Success);
        let exit = |cause: &str| {
            decode(&format!(
                r#"{{"metadata":{{}},"status":"Failure","message":"m","reason":"NonZeroExitCode","details":{cause}}}"#
            ))
        };
        assert_eq!(
            exit(r#"{"causes":[{"reason":"Other","message":"1"},{"reason":"ExitCode","message":"7"}]}"#),
            CommandEnd::Exited(7)
        );
        assert_eq!(exit(r#"{"causes":[{"reason":"ExitCode","message":"0"}]}"#), CommandEnd::Success);
        for odd in [
            r#"{"causes":[{"reason":"ExitCode","message":"256"}]}"#,
            r#"{"causes":[{"reason":"ExitCode","message":"-1"}]}"#,
            r#"{"causes":[]}"#,
            r#"{"causes":null}"#,
            "null",
        ] {
            assert!(matches!(exit(odd), CommandEnd::Failed(_)), "{odd}");
        }
        assert_eq!(decode(r#"{"status":"Failure","message":"gone"}"#), CommandEnd::Failed("gone".into()));
        for odd in ["{}", "[]", "true", "no JSON", r#"{"status":"success"}"#, "\u{feff}{}"] {
            assert!(matches!(decode(odd), CommandEnd::Failed(text) if text.contains("in status")), "{odd}");
        }
    }

    #[test]
    fn sizes_are_read_whatever_their_case_and_spacing() {
        let read = |text: &str| SizeDecoder::new().feed(text.as_bytes());
        assert_eq!(read(r#"{"Width":80,"Height":24}"#), Ok(size(80, 24)));
        assert_eq!(read(" \n{\"height\" : 1,\n\"WIDTH\":65535, \"More\":[{}]}\n"), Ok(size(65535, 1)));
        assert_eq!(read(r#"{"Width":1,"Height":1}{"Width":2,"Height":2}{"Wid"#), Ok(size(2, 2)));
        assert_eq!(read(r#"{"}\"}\\":"\\","Width":1,"Height":3}"#), Ok(size(1, 3)));
        for nothing in
            ["", "  ", "{", "{}", r#"{"Width":0,"Height":5}"#, r#"{"Width":5}"#, r#"{"Width":5,"Height":null}"#]
        {
            assert_eq!(read(nothing), Ok(None), "{nothing}");
        }
        for bad in
            ["1", "[]", "null", "}", r#"{"Width":65536}"#, r#"{"Width":-1}"#, r#"{"Width":1.5}"#, r#"{"Width":"1"}"#]
        {
            assert_eq!(read(bad), Err(NoSize), "{bad}");
        }
    }

    #[test]
    fn a_fault_comes_after_the_size_before_it_and_stays() {
        let mut decoder = SizeDecoder::new();
        assert_eq!(decoder.feed(br#"{"Width":1,"Height":2} x"#), Ok(size(1, 2)));
        assert_eq!(decoder.feed(br#"{"Width":1,"Height":2}"#), Err(NoSize));
        assert_eq!(decoder.feed(b""), Err(NoSize));
    }

    #[test]
    fn an_object_has_a_limit_and_space_between_them_has_none() {
        let object = |length: usize| {
            let start = r#"{"Width":1,"Height":2"#;
            format!("{start}{}}}", " ".repeat(length - start.len() - 1))
        };
        assert_eq!(SizeDecoder::new().feed(object(SIZE_BYTES_MAX).as_bytes()), Ok(size(1, 2)));
        assert_eq!(SizeDecoder::new().feed(object(SIZE_BYTES_MAX + 1).as_bytes()), Err(NoSize));
        let spaced = format!("{0}{1}{0}", " \n".repeat(SIZE_BYTES_MAX), object(SIZE_BYTES_MAX));
        assert_eq!(SizeDecoder::new().feed(spaced.as_bytes()), Ok(size(1, 2)));
    }

    proptest! {
        #[test]
        fn sizes_come_back_however_they_are_cut(
            sizes in vec((any::<u16>(), any::<u16>()), 0..20),
            pieces in vec(1_usize..60, 1..20),
        ) {
            let sent: Vec<TerminalSize> =
                sizes.iter().map(|&(columns, rows)| TerminalSize { columns, rows }).collect();
            let bytes: Vec<u8> = sent.iter().flat_map(|size| size.encode()).collect();
            let (mut decoder, mut rest, mut latest) = (SizeDecoder::new(), &bytes[..], None);
            for piece in pieces.iter().cycle() {
                let (piece, tail) = rest.split_at((*piece).min(rest.len()));
                rest = tail;
                latest = decoder.feed(piece).unwrap().or(latest);
                if rest.is_empty() {
                    break;
                }
            }
            let last = sent.iter().rfind(|size| size.columns > 0 && size.rows > 0).copied();
            prop_assert_eq!(latest, last);
        }

        #[test]
        fn an_end_comes_back(code: u8, text in ".{0,60}") {
            for end in [CommandEnd::Success, CommandEnd::Exited(code.max(1))] {
                prop_assert_eq!(CommandEnd::decode(&end.encode(true), true), end);
            }
            let told = CommandEnd::decode(&CommandEnd::Failed(text.clone()).encode(true), true);
            prop_assert_eq!(told, CommandEnd::Failed(format!("Internal error occurred: {text}")));
        }

        #[test]
        fn any_bytes_are_read_the_same_however_they_are_cut(
            data in vec(any::<u8>(), 0..80),
            json in r#"(\{("Width":[0-9]{0,6}|"height":1|"status":"(Success|Failure)"|,|[{}\[\]"]){0,6}\}?[ x]?){0,4}"#,
        ) {
            fuzz(&data);
            fuzz(&[&data[..data.len().min(1)], json.as_bytes()].concat());
        }
    }
}
