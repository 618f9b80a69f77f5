//! What a command ends with when it could not do what it was asked: a sentence, a hint and an exit code.
//! All exit codes and the words for gRPC codes are decided here and nowhere else.

use std::fmt;
use std::io;

use tonic::{Code, Status};

/// The command did what was asked.
pub const EXIT_OK: u8 = 0;
/// Something failed; the message says what.
pub const EXIT_FAILURE: u8 = 1;
/// The command line or a file given on it makes no sense; nothing was done.
pub const EXIT_USAGE: u8 = 2;
/// A pod, container or image that was named does not exist.
pub const EXIT_NOT_FOUND: u8 = 3;
/// `run` and `exec` pass on the codes of others; their own failures end with this one, as of docker and podman.
pub const EXIT_OWN_FAILURE: u8 = 125;

/// Why a command ended without doing what was asked.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    exit_code: u8,
    code: Option<Code>,
}

impl Failure {
    /// A failure in general.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, exit_code: EXIT_FAILURE, code: None }
    }

    /// The request itself is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { exit_code: EXIT_USAGE, ..Self::new(message) }
    }

    /// A named thing does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { exit_code: EXIT_NOT_FOUND, code: Some(Code::NotFound), ..Self::new(message) }
    }

    /// The runtime refused a call: `action` says in the infinitive what was tried ("stop container web").
    pub fn rpc(action: impl fmt::Display, status: &Status) -> Self {
        // The client's own clock ends a call with Cancelled and this text; to a person it is the deadline all the same.
        let timed_out = status.code() == Code::Cancelled && status.message() == "Timeout expired";
        if timed_out {
            return Self::rpc(action, &Status::deadline_exceeded("the runtime has not answered in time"));
        }
        let exit_code = if status.code() == Code::NotFound { EXIT_NOT_FOUND } else { EXIT_FAILURE };
        let hint = match status.code() {
            Code::Unimplemented => Some("the runtime behind this endpoint does not offer this call"),
            Code::DeadlineExceeded => Some("a longer deadline can be given with --timeout"),
            Code::Unavailable => Some("the runtime may be starting or have stopped; see its log"),
            Code::ResourceExhausted => Some("the runtime or this machine is short of something; see the message"),
            _ => None,
        };
        let text = printable(status.message());
        let words = code_in_words(status.code());
        let reason = match (text.trim(), words) {
            ("", words) => words.to_owned(),
            (text, "") => text.to_owned(),
            (text, words) if text.to_lowercase().contains(words) => text.to_owned(),
            (text, words) => format!("{text} ({words})"),
        };
        Self {
            message: format!("cannot {action}: {reason}"),
            hint: hint.map(str::to_owned),
            exit_code,
            code: Some(status.code()),
        }
    }

    /// A step on this machine failed.
    pub fn io(action: impl fmt::Display, error: &io::Error) -> Self {
        let hint = (error.kind() == io::ErrorKind::PermissionDenied).then(|| "try again as root".to_owned());
        Self { hint, ..Self::new(format!("cannot {action}: {error}")) }
    }

    /// Writing to standard output failed. A reader that has gone, as `| head`, is not worth a word.
    pub fn output(error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self { exit_code: EXIT_OK, ..Self::new("") };
        }
        Self::io("write to standard output", error)
    }

    /// Several things went wrong; each keeps its own line.
    pub fn all(failures: Vec<Failure>) -> Result<(), Failure> {
        let exit_code = failures.iter().map(|failure| failure.exit_code).max();
        let Some(exit_code) = exit_code else { return Ok(()) };
        let hint = failures.iter().find_map(|failure| failure.hint.clone());
        let messages: Vec<String> = failures.into_iter().map(|failure| failure.message).collect();
        Err(Self { message: messages.join("\nerror: "), hint, exit_code, code: None })
    }

    /// The same failure with a word on what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure of a command that passes on other programs' exit codes.
    #[must_use]
    pub fn own(mut self) -> Self {
        if self.exit_code != EXIT_USAGE && self.exit_code != EXIT_OK {
            self.exit_code = EXIT_OWN_FAILURE;
        }
        self
    }

    /// Whether the runtime said, or we found, that the thing does not exist.
    pub fn is_not_found(&self) -> bool {
        self.code == Some(Code::NotFound)
    }

    /// Whether the runtime does not know the call.
    pub fn is_unimplemented(&self) -> bool {
        self.code == Some(Code::Unimplemented)
    }

    /// Whether the runtime found something wrong with the request itself.
    pub fn is_invalid_argument(&self) -> bool {
        self.code == Some(Code::InvalidArgument)
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        self.exit_code
    }

    /// Where a person may go on, if there is such advice.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What a gRPC code means to a person. `Unknown` says nothing, so nothing is said.
fn code_in_words(code: Code) -> &'static str {
    match code {
        Code::Ok | Code::Unknown => "",
        Code::Cancelled => "cancelled",
        Code::InvalidArgument => "invalid argument",
        Code::DeadlineExceeded => "deadline exceeded",
        Code::NotFound => "not found",
        Code::AlreadyExists => "already exists",
        Code::PermissionDenied => "permission denied",
        Code::ResourceExhausted => "resource exhausted",
        Code::FailedPrecondition => "not possible in the present state",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out of range",
        Code::Unimplemented => "not implemented",
        Code::Internal => "internal error",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data loss",
        Code::Unauthenticated => "not authenticated",
    }
}

/// Text of others as it may go to a terminal: no control character of theirs moves the cursor or retitles the window.
pub fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_is_told_in_words_once() {
        let failure = Failure::rpc("stop container web", &Status::new(Code::FailedPrecondition, "pod is going away"));
        assert_eq!(
            failure.to_string(),
            "cannot stop container web: pod is going away (not possible in the present state)"
        );
        let failure = Failure::rpc("inspect web", &Status::not_found("container \"web\" not found"));
        assert_eq!(failure.to_string(), "cannot inspect web: container \"web\" not found");
        assert_eq!(failure.exit_code(), EXIT_NOT_FOUND);
        let failure = Failure::rpc("pull x", &Status::unknown("RegistryUnavailable: connection refused"));
        assert_eq!(failure.to_string(), "cannot pull x: RegistryUnavailable: connection refused");
        assert_eq!(Failure::rpc("do it", &Status::internal("")).to_string(), "cannot do it: internal error");
    }

    #[test]
    fn a_deadline_of_ours_is_told_as_a_deadline() {
        let failure = Failure::rpc("stop pod web", &Status::cancelled("Timeout expired"));
        assert_eq!(
            failure.to_string(),
            "cannot stop pod web: the runtime has not answered in time (deadline exceeded)"
        );
        assert!(failure.hint().is_some_and(|hint| hint.contains("--timeout")));
    }

    #[test]
    fn own_failures_of_run_and_exec_are_told_from_the_command() {
        assert_eq!(Failure::not_found("no such container").own().exit_code(), EXIT_OWN_FAILURE);
        assert_eq!(Failure::usage("no command").own().exit_code(), EXIT_USAGE);
    }

    #[test]
    fn several_failures_are_all_told() {
        assert!(Failure::all(Vec::new()).is_ok());
        let failure = Failure::all(vec![Failure::new("one"), Failure::not_found("two")]).unwrap_err();
        assert_eq!(failure.to_string(), "one\nerror: two");
        assert_eq!(failure.exit_code(), EXIT_NOT_FOUND);
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure() {
        let failure = Failure::output(&io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(failure.exit_code(), EXIT_OK);
    }

    #[test]
    fn foreign_text_cannot_drive_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\u{7}"), "a\u{fffd}[2Jb\u{fffd}");
    }
}
