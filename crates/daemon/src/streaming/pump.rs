//! Bytes on their way between a client and a process: in until the client has no more or the process takes no more,
//! out until nothing can come any more.

use super::descriptor::{Descriptor, Look, scratch};
use bytes::Bytes;
use knarr_streaming::{Receiver, ResizeReceiver, Sender, TerminalSize};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// Where output goes: a client, in tests something slower.
pub(super) trait Sink: Send {
    /// Waits while the client does not read; false when it never will again.
    fn send(&mut self, bytes: Bytes) -> impl Future<Output = bool> + Send;
}

impl Sink for Sender {
    async fn send(&mut self, bytes: Bytes) -> bool {
        Sender::send(self, bytes).await.is_ok()
    }
}

/// Where input comes from.
pub(super) trait Source: Send {
    /// The next bytes; `None` when there will be none.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

impl Source for Receiver {
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send {
        Receiver::next(self)
    }
}

/// Carries a client's input to a process. `to` is closed as soon as the client has no more, unless others hold it too,
/// as they do a terminal.
pub(super) async fn carry_in(mut from: impl Source, to: Descriptor) {
    while let Some(bytes) = from.next().await {
        if to.write_all(&bytes).await.is_err() {
            // The process does not want it, which is its right: the client's other streams must not stand still for it.
            drop(to);
            return discard(from).await;
        }
    }
}

/// Takes input that goes nowhere.
pub(super) async fn discard(mut from: impl Source) {
    while from.next().await.is_some() {}
}

/// What to do with output whose client has closed its stream of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unwanted {
    /// Stop reading: the process hears of it by SIGPIPE.
    Close,
    /// Go on reading: a terminal that nobody reads makes its process stand still.
    Discard,
}

/// Carries the output of a process to its client.
///
/// Everything that the process has written before `ended` became true reaches the client, however slowly that reads.
/// What others write who hold the other end is waited for `drain` longer.
pub(super) async fn carry_out<S: Sink>(
    from: Descriptor,
    mut to: Option<S>,
    unwanted: Unwanted,
    mut ended: watch::Receiver<bool>,
    drain: Duration,
) {
    let mut buffer = scratch();
    loop {
        tokio::select! {
            count = from.read(&mut buffer) => {
                if count == 0 || !delivered(&buffer[..count], &mut to, unwanted).await {
                    return;
                }
            }
            // An error is a session that is over.
            () = async { drop(ended.wait_for(|ended| *ended).await) } => break,
        }
    }
    // What the process wrote is among the first bytes that come now. Whoever else writes may do so for ever.
    let mut left = from.capacity();
    while left > 0 {
        match from.look(&mut buffer) {
            Look::Bytes(count) if delivered(&buffer[..count], &mut to, unwanted).await => {
                left = left.saturating_sub(count);
            }
            Look::Nothing => break,
            Look::Bytes(_) | Look::End => return,
        }
    }
    let deadline = Instant::now() + drain;
    while Instant::now() < deadline {
        match timeout_at(deadline, from.read(&mut buffer)).await {
            Ok(count) if count > 0 && delivered(&buffer[..count], &mut to, unwanted).await => {}
            _ => return,
        }
    }
}

/// Whether to go on.
async fn delivered<S: Sink>(bytes: &[u8], to: &mut Option<S>, unwanted: Unwanted) -> bool {
    if let Some(sink) = to
        && !sink.send(Bytes::copy_from_slice(bytes)).await
    {
        *to = None;
    }
    to.is_some() || unwanted == Unwanted::Discard
}

/// Gives a terminal the sizes of its client's, until there are no more.
pub(super) async fn carry_sizes(mut sizes: ResizeReceiver, terminal: Descriptor) {
    while let Some(size) = sizes.next().await {
        resize(&terminal, size);
    }
}

/// Gives a terminal a size.
pub(super) fn resize(terminal: &Descriptor, size: TerminalSize) {
    // A size of nothing is what clients send that do not know theirs. A terminal that cannot be resized any more is over.
    if size.columns > 0 && size.rows > 0 {
        let _ = knarr_sys::terminal::set_size(terminal, size.columns, size.rows);
    }
}

#[cfg(test)]
#[path = "pump_tests.rs"]
mod tests;
