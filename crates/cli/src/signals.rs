//! The signals that end a command which stays in the foreground.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::Failure;

/// SIGINT, SIGTERM and SIGHUP, which do nothing by themselves once this exists.
pub struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

/// The signal of a write that nobody reads.
pub const SIGPIPE: u8 = 13;

impl Signals {
    /// Takes the signals over.
    pub fn take_over() -> Result<Self, Failure> {
        let take = |kind| signal(kind).map_err(|error| Failure::io("handle signals", &error));
        Ok(Self {
            interrupt: take(SignalKind::interrupt())?,
            terminate: take(SignalKind::terminate())?,
            hangup: take(SignalKind::hangup())?,
        })
    }

    /// Waits for the next one and returns its number.
    pub async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
            _ = self.hangup.recv() => 1,
        }
    }
}

/// The exit code by which shells know a program that a signal ended.
pub fn exit_code_of(signal: u8) -> u8 {
    128 + signal
}
