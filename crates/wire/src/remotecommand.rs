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

/// Bytes of one terminal size with what surrounds it: a real one has at most 30.
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
    /// The begin of an object whose end has not come; less than [`SIZE_BYTES_MAX`].
    held: Vec<u8>,
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
        let (mut rest, mut latest) = (bytes, None);
        while !self.failed && !rest.is_empty() {
            let (piece, tail) = rest.split_at(rest.len().min(SIZE_BYTES_MAX - self.held.len()));
            rest = tail;
            self.held.extend_from_slice(piece);
            latest = self.take_whole().or(latest);
        }
        if self.failed && latest.is_none() { Err(NoSize) } else { Ok(latest) }
    }

    /// Takes the objects that are whole out of what is held, and gives the last.
    fn take_whole(&mut self) -> Option<TerminalSize> {
        let mut values = serde_json::Deserializer::from_slice(&self.held).into_iter::<Size>();
        let mut latest = None;
        loop {
            match values.next() {
                Some(Ok(Size { width, height })) if width > 0 && height > 0 => {
                    latest = Some(TerminalSize { columns: width, rows: height });
                }
                Some(Ok(_)) => {}
                Some(Err(error)) if error.is_eof() => break,
                Some(Err(_)) => {
                    self.failed = true;
                    break;
                }
                None => break,
            }
        }
        let used = values.byte_offset();
        let blank = self.held[used..].iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.held.drain(..used + blank);
        self.failed |= self.held.len() >= SIZE_BYTES_MAX;
        latest
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
