//! Why a registry did not give what was asked for: a kind to act on, and every host's own failure.

use std::fmt;
use std::io::ErrorKind as ErrorKindIo;
use std::time::Duration;

use http::StatusCode;
use knarr_model::error::{Error, ErrorKind};

/// What kubelet looks for at the beginning of a message to show the reason `RegistryUnavailable`.
const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";
/// Characters of a registry's own words that an error repeats.
const QUOTED_CHARS_MAX: usize = 256;

/// What sort of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegistryErrorKind {
    /// No such repository, tag, digest, or no image for the platform.
    NotFound,
    /// Credentials are needed or wrong (401).
    Unauthorized,
    /// Known, and not allowed (403).
    Denied,
    /// The registry asks for patience (429).
    RateLimited,
    /// No connection: refused, unreachable, no such host, TLS; or the server is out of order (5xx).
    Unavailable,
    /// Connecting took too long, or no byte came for too long.
    Timeout,
    /// What came is not what was asked for: digest, size, shape.
    Invalid,
    /// Everything else: the node's own configuration among it.
    Other,
}

/// A failure after every host was tried. The message names each of them and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryError {
    /// To act on.
    pub kind: RegistryErrorKind,
    message: String,
}

impl RegistryError {
    /// A failure of `kind`; `message` says the step, the thing and the cause.
    pub fn new(kind: RegistryErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for RegistryError {}

impl From<RegistryError> for Error {
    fn from(error: RegistryError) -> Self {
        match error.kind {
            RegistryErrorKind::NotFound => Self::new(ErrorKind::NotFound, error.message),
            RegistryErrorKind::Unavailable | RegistryErrorKind::Timeout => {
                Self::new(ErrorKind::KubeletPrefix, format!("{REGISTRY_UNAVAILABLE}: {}", error.message))
            }
            RegistryErrorKind::RateLimited => Self::new(ErrorKind::ResourceExhausted, error.message),
            RegistryErrorKind::Unauthorized
            | RegistryErrorKind::Denied
            | RegistryErrorKind::Invalid
            | RegistryErrorKind::Other => Self::internal(error.message),
        }
    }
}

/// Why one host did not give it.
#[derive(Debug, Clone)]
pub(super) struct HostFailure {
    pub kind: RegistryErrorKind,
    pub message: String,
    /// Whether the host as a whole is out of order, so that it is better left alone for a while.
    pub dead: bool,
    /// Whether the host closed or garbled the TLS handshake, as one does that speaks HTTP on this port.
    pub speaks_no_tls: bool,
    /// Whether nobody listens.
    pub refused: bool,
    /// Whether the same request may do better in a moment.
    pub transient: bool,
    /// How long the host asks to wait.
    pub retry_after: Option<Duration>,
}

impl HostFailure {
    /// A failure that repeating will not mend.
    pub fn lasting(kind: RegistryErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { kind, message, dead: false, speaks_no_tls: false, refused: false, transient: false, retry_after: None }
    }

    /// What came is not what was asked for.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::lasting(RegistryErrorKind::Invalid, message)
    }

    /// The body ended or went silent before its end.
    pub fn broken_off(kind: RegistryErrorKind, message: impl Into<String>) -> Self {
        Self { transient: true, ..Self::lasting(kind, message) }
    }

    /// Nothing came for `waited`.
    pub fn silent(waited: Duration) -> Self {
        let message = format!("no answer within {}", seconds(waited));
        Self { dead: true, ..Self::lasting(RegistryErrorKind::Timeout, message) }
    }

    /// A request that brought no response, or a response whose body broke.
    pub fn of_request(error: reqwest::Error) -> Self {
        let is_connect = error.is_connect();
        let kind = if error.is_timeout() { RegistryErrorKind::Timeout } else { RegistryErrorKind::Unavailable };
        // The address of a redirect may hold a signature that opens the blob to whoever reads the log.
        let error = error.without_url();
        let io_kinds = || causes(&error).filter_map(|cause| Some(cause.downcast_ref::<std::io::Error>()?.kind()));
        let garbled = causes(&error).any(is_garbled);
        let closed = io_kinds().any(|kind| matches!(kind, ErrorKindIo::UnexpectedEof | ErrorKindIo::ConnectionReset));
        // A host that refuses connections will do so again; a connection that broke may have been an idle one.
        Self {
            dead: is_connect,
            speaks_no_tls: is_connect && (garbled || closed),
            refused: is_connect && io_kinds().any(|kind| kind == ErrorKindIo::ConnectionRefused),
            transient: !is_connect,
            ..Self::lasting(kind, chain(&error))
        }
    }

    /// A status that is no success; `words` is the registry's own explanation, or empty.
    pub fn of_status(status: StatusCode, words: &str, retry_after: Option<Duration>) -> Self {
        let (kind, transient) = match status.as_u16() {
            401 => (RegistryErrorKind::Unauthorized, false),
            403 => (RegistryErrorKind::Denied, false),
            404 | 410 => (RegistryErrorKind::NotFound, false),
            408 => (RegistryErrorKind::Timeout, true),
            429 => (RegistryErrorKind::RateLimited, true),
            500..=599 => (RegistryErrorKind::Unavailable, true),
            _ => (RegistryErrorKind::Other, false),
        };
        let message = if words.is_empty() { status.to_string() } else { format!("{status}: {words}") };
        Self { transient, retry_after, ..Self::lasting(kind, message) }
    }

    /// The same, with what was being done put in front.
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }
}

/// What a registry's error document says, fit for one line of a log.
pub(super) fn registry_words(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Document {
        #[serde(default)]
        errors: Vec<Problem>,
        #[serde(default)]
        details: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct Problem {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(document) = serde_json::from_slice::<Document>(body) else { return String::new() };
    let words = match document.errors.first() {
        Some(problem) if problem.message.is_empty() => problem.code.clone(),
        Some(problem) => problem.message.clone(),
        None => document.details.unwrap_or_default(),
    };
    words.chars().filter(|c| !c.is_control()).take(QUOTED_CHARS_MAX).collect()
}

pub(super) fn seconds(duration: Duration) -> String {
    match duration.as_millis() {
        millis if millis < 10_000 => format!("{}.{:03} s", millis / 1000, millis % 1000),
        millis => format!("{} s", millis / 1000),
    }
}

/// The error itself, then its cause, then that one's.
fn causes<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    // An `io::Error` that wraps another gives that one's source as its own, so the wrapped one is looked at here.
    std::iter::successors(Some(error), |error| {
        match error.downcast_ref::<std::io::Error>().and_then(|io| io.get_ref()) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        }
    })
}

/// Whether TLS got bytes that are no TLS.
fn is_garbled(error: &(dyn std::error::Error + 'static)) -> bool {
    matches!(error.downcast_ref::<rustls::Error>(), Some(rustls::Error::InvalidMessage(_)))
}

/// The error and its causes; a cause that repeats what was said is left out, and so is what the HTTP library says of
/// every failure alike.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let says_nothing = |text: &str| text == "error sending request" || text.starts_with("client error (");
    let mut message = String::new();
    for text in causes(error).map(ToString::to_string) {
        if message.is_empty() || says_nothing(&message) {
            message = text;
        } else if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
    }
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_error_document_is_survived(body in prop::collection::vec(any::<u8>(), 0..200), words in "\\PC{0,400}") {
            let _ = registry_words(&body);
            let document = serde_json::json!({ "errors": [{ "message": words }] }).to_string();
            let shown = registry_words(document.as_bytes());
            prop_assert!(shown.chars().count() <= QUOTED_CHARS_MAX && !shown.contains(char::is_control));
        }
    }

    #[test]
    fn an_unreachable_registry_gets_the_prefix_that_kubelet_looks_for() {
        let error: Error = RegistryError::new(RegistryErrorKind::Unavailable, "blob x: quay.io: refused").into();
        assert_eq!(error.kind, ErrorKind::KubeletPrefix);
        assert_eq!(error.message, "RegistryUnavailable: blob x: quay.io: refused");
        let error: Error = RegistryError::new(RegistryErrorKind::NotFound, "gone").into();
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::NotFound, "gone"));
    }

    #[test]
    fn a_registry_cannot_forge_lines_with_its_words() {
        let body = br#"{"errors":[{"code":"X","message":"no\nsuch\u001b[31m thing"}]}"#;
        assert_eq!(registry_words(body), "nosuch[31m thing");
        assert_eq!(registry_words(br#"{"errors":[{"code":"DENIED"}]}"#), "DENIED");
        assert_eq!(
            registry_words(br#"{"details":"incorrect username or password"}"#),
            "incorrect username or password"
        );
        assert_eq!(registry_words(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "é".repeat(10_000));
        assert_eq!(registry_words(long.as_bytes()).chars().count(), QUOTED_CHARS_MAX);
    }
}
