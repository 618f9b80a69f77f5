//! Our kinds of failure as gRPC codes: the only place where one becomes the other.
//!
//! Kubelet and its CRI client act on a few codes; the reason stands beside each arm. Where no code of theirs is
//! meant, the code only informs people.

use knarr_model::{Error, ErrorKind};
use tonic::{Code, Status};

/// Bytes of a message: gRPC sends it as a header, percent-encoded, and clients stop reading headers at 16 KiB.
const MESSAGE_BYTES_MAX: usize = 4 << 10;

/// The status that a client gets for `error`.
pub fn status(error: Error) -> Status {
    Status::new(code(error.kind), clipped(error.message))
}

/// The gRPC code of a kind.
pub fn code(kind: ErrorKind) -> Code {
    match kind {
        // No client acts on it; critest's bad requests only want to be refused.
        ErrorKind::InvalidArgument => Code::InvalidArgument,
        // Kubelet takes it for "already gone" in StopPodSandbox, StopContainer and while it collects ContainerStatus
        // and PodSandboxStatus; any other code there makes the status of the whole pod fail. The handlers of Stop
        // and Remove never let it out (gone is success), ImageStatus answers with no image instead.
        ErrorKind::NotFound => Code::NotFound,
        // No client acts on it.
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        // No client acts on it.
        ErrorKind::FailedPrecondition => Code::FailedPrecondition,
        // The streaming server's "too many open requests" reaches kubectl as HTTP 429.
        ErrorKind::ResourceExhausted => Code::ResourceExhausted,
        // From ExecSync: kubelet counts the probe as failed. Any other code makes it "unknown", and a container with
        // a hanging probe is never restarted. PullImage with a deadline expects it too.
        ErrorKind::DeadlineExceeded => Code::DeadlineExceeded,
        // The client is gone or does not wait any more; nobody reads it.
        ErrorKind::Cancelled => Code::Cancelled,
        // Kubelet that follows a log takes it for "still running" in ContainerStatus; the CRI client tries again.
        ErrorKind::Unavailable => Code::Unavailable,
        // A signal of the protocol: after one of the Stream* RPCs the client falls back to List for good, after
        // *PodSandboxStats to cAdvisor, after UpdatePodSandboxResources it goes on as if it had worked.
        ErrorKind::Unimplemented => Code::Unimplemented,
        // Kubelet compares the start of the message ("RegistryUnavailable: …", "SignatureValidationFailed: …"), and
        // its client strips gRPC's own decoration for this code only.
        ErrorKind::KubeletPrefix => Code::Unknown,
        // Everything else; kubelet shows the message in the pod's events.
        ErrorKind::Internal => Code::Internal,
    }
}

/// The message, cut at a character and marked if it is too long for a header.
fn clipped(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        let end = (0..=MESSAGE_BYTES_MAX).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
        message.truncate(end);
        message.push('…');
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_for_kubelet_arrives_with_code_unknown_and_in_front() {
        let status = status(Error::new(ErrorKind::KubeletPrefix, "RegistryUnavailable: connection refused"));
        assert_eq!(status.code(), Code::Unknown);
        assert!(status.message().starts_with("RegistryUnavailable"));
    }

    #[test]
    fn the_codes_that_kubelet_acts_on_are_kept_apart() {
        for (kind, expected) in [
            (ErrorKind::NotFound, Code::NotFound),
            (ErrorKind::DeadlineExceeded, Code::DeadlineExceeded),
            (ErrorKind::Unavailable, Code::Unavailable),
            (ErrorKind::Unimplemented, Code::Unimplemented),
            (ErrorKind::Internal, Code::Internal),
        ] {
            assert_eq!(code(kind), expected);
        }
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let status = status(Error::internal("ü".repeat(MESSAGE_BYTES_MAX)));
        assert!(status.message().len() <= MESSAGE_BYTES_MAX + '…'.len_utf8());
        assert!(status.message().ends_with("ü…"));
    }
}
