//! The whole of knarr against a real kernel: what its tests need to be short.
//!
//! A test is a process of its own in network, mount, PID, IPC and UTS namespaces of its own ([`runner`]). In there a
//! [`node::Node`] is a daemon with its clients; [`leaks`] looks, before and after, at everything that a pod may leave
//! behind. [`requests`] builds what kubelet would send, [`images`] what it would pull; [`streams`] is a client of
//! exec, attach and port-forward.
#![allow(clippy::print_stdout)]

pub mod images;
pub mod leaks;
pub mod node;
pub mod pattern;
pub mod requests;
pub mod runner;
pub mod streams;

use std::time::{Duration, Instant};

/// What a test gives back: an error ends it, a panic does as well.
pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Where the tests' images put their one program.
pub const TOOL: &str = "/bin/tool";

/// Asks again and again until the answer is something; the failure says what was awaited.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Outcome<Option<T>>,
) -> Outcome<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = ask().await? {
            return Ok(answer);
        }
        if Instant::now() > deadline {
            return Err(format!("{what}: not within {limit:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The gRPC code that a call must fail with.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(outcome: Result<T, tonic::Status>, code: tonic::Code) -> String {
    match outcome {
        Err(status) if status.code() == code => status.message().to_owned(),
        other => panic!("expected {code:?}, got {other:?}"),
    }
}
