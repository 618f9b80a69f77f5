//! What the streams of one connection share, between its driver and whoever holds a stream: which of them have something
//! to send, how far their receivers are behind, and whether the connection is still there.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Waker;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::mux::Gone;
use crate::stream::{Incoming, Stream};

/// Bytes that receivers have not taken, over all streams of a connection, before it is no longer read: many forwarded connections that stand still hold this much, not each.
pub(crate) const CONNECTION_RECEIVE_BYTES: usize = 4 << 20;

/// What all streams of one connection share.
pub(crate) struct Shared {
    driver: Mutex<DriverSide>,
    /// Streams whose receiver is behind.
    full: AtomicUsize,
    /// Bytes from the peer that nobody has taken, of all streams.
    received: AtomicUsize,
    /// Handles of a client; with the last one the connection is closed.
    handles: AtomicUsize,
    /// Cancelled when the connection is gone.
    pub(crate) gone: CancellationToken,
    why: OnceLock<Gone>,
}

#[derive(Default)]
struct DriverSide {
    waker: Option<Waker>,
    /// Streams with something to send, each at most once.
    ready: VecDeque<Arc<Stream>>,
    opens: VecDeque<Open>,
}

/// A wish of a client for one more stream.
pub(crate) struct Open {
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) send_bytes: usize,
    pub(crate) incoming: Incoming,
    pub(crate) opened: oneshot::Sender<Arc<Stream>>,
}

impl Shared {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            driver: Mutex::default(),
            full: AtomicUsize::new(0),
            received: AtomicUsize::new(0),
            handles: AtomicUsize::new(0),
            gone: CancellationToken::new(),
            why: OnceLock::new(),
        })
    }

    fn driver(&self) -> MutexGuard<'_, DriverSide> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a stream behind those that have something to send.
    pub(crate) fn make_ready(&self, stream: Arc<Stream>) {
        let waker = {
            let mut driver = self.driver();
            driver.ready.push_back(stream);
            driver.waker.clone()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A receiver has fallen behind.
    pub(crate) fn fill(&self) {
        self.full.fetch_add(1, Ordering::AcqRel);
    }

    /// Bytes wait for a receiver.
    pub(crate) fn hold_bytes(&self, count: usize) {
        self.received.fetch_add(count, Ordering::AcqRel);
    }

    /// A receiver has taken bytes, and has caught up. Goes on reading the connection if it stood still for that.
    pub(crate) fn release(&self, count: usize, caught_up: bool) {
        let before = self.received.fetch_sub(count, Ordering::AcqRel);
        let together = before > CONNECTION_RECEIVE_BYTES && before - count <= CONNECTION_RECEIVE_BYTES;
        let alone = caught_up && self.full.fetch_sub(1, Ordering::AcqRel) == 1;
        if together || alone {
            self.wake();
        }
    }

    /// Whether no more may be taken from the peer now.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire) > 0 || self.received.load(Ordering::Acquire) > CONNECTION_RECEIVE_BYTES
    }

    /// Remembers whom to wake when there is something to do.
    pub(crate) fn driven_by(&self, waker: &Waker) {
        let mut driver = self.driver();
        if !driver.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            driver.waker = Some(waker.clone());
        }
    }

    pub(crate) fn wake(&self) {
        let waker = self.driver().waker.clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn next_ready(&self) -> Option<Arc<Stream>> {
        self.driver().ready.pop_front()
    }

    pub(crate) fn next_open(&self) -> Option<Open> {
        self.driver().opens.pop_front()
    }

    /// Asks the driver for one more stream. Callers wait for the answer, so that there are as many as callers.
    pub(crate) fn open(&self, open: Open) {
        self.driver().opens.push_back(open);
        self.wake();
    }

    /// Lets go of wishes and streams once there is no driver any more.
    pub(crate) fn close(&self, why: &Gone) {
        self.why.get_or_init(|| why.clone());
        self.gone.cancel();
        let (ready, opens) = {
            let mut driver = self.driver();
            driver.waker = None;
            (std::mem::take(&mut driver.ready), std::mem::take(&mut driver.opens))
        };
        drop((ready, opens));
    }

    /// Why the connection is gone, for a person.
    pub(crate) fn why_gone(&self) -> String {
        self.why.get().map_or_else(|| "the connection goes on".to_owned(), ToString::to_string)
    }

    /// Whether the peer has closed the connection, rather than that it broke.
    pub(crate) fn is_gone_in_order(&self) -> bool {
        self.why.get() == Some(&Gone::Closed)
    }

    /// Whether streams have something to send.
    pub(crate) fn has_ready(&self) -> bool {
        !self.driver().ready.is_empty()
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.handles.load(Ordering::Acquire) == 0
    }

    /// Counts one handle of a client.
    pub(crate) fn hold(self: &Arc<Self>) -> Held {
        self.handles.fetch_add(1, Ordering::AcqRel);
        Held(self.clone())
    }
}

/// Keeps a client's connection.
#[derive(Debug)]
pub(crate) struct Held(Arc<Shared>);

impl Drop for Held {
    fn drop(&mut self) {
        if self.0.handles.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.wake();
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}
