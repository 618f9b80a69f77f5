//! The whole of knarr against a real kernel: what its tests need to be short.
//!
//! A test is a process of its own in network, mount, PID, IPC and UTS namespaces of its own ([`runner`]). In there a
//! [`node::Node`] is a daemon with its clients; [`leaks`] looks, before and after, at everything that a pod may leave
//! behind. [`requests`] builds what kubelet would send, [`images`] what it would pull; [`streams`] is a client of
//! exec, attach and port-forward; [`tree`] says where in the tree of cgroups a test is, [`bus`] stands between a daemon
//! and systemd.
#![allow(clippy::print_stdout)]

pub mod bus;
pub mod images;
pub mod leaks;
pub mod node;
pub mod pattern;
pub mod requests;
pub mod runner;
pub mod streams;
pub mod tree;

use std::time::{Duration, Instant};

/// What a test gives back: an error ends it, a panic does as well.
pub type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

/// Where the tests' images put their one program.
pub const TOOL: &str = "/bin/tool";

/// The variable that says how many times slower than usual this machine is, as a whole number: an emulated processor
/// takes five to ten times the time.
pub const PATIENCE: &str = "KNARR_TEST_PATIENCE";

/// A limit of a test, on this machine.
pub fn patience(limit: Duration) -> Duration {
    let factor = std::env::var(PATIENCE).ok().and_then(|text| text.parse().ok());
    limit * factor.unwrap_or(1)
}

/// Asks again and again until the answer is something; the failure says what was awaited.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut ask: impl AsyncFnMut() -> Outcome<Option<T>>,
) -> Outcome<T> {
    let limit = patience(limit);
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
