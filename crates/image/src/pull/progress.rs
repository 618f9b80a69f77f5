//! How far a pull, an import or an export is.
//!
//! Watchers see the latest state and never hold the work up: there is one value, replaced as often as it changes
//! enough, and who looks seldom misses the ones between.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::reference::Digest;

/// How often a watcher is told of bytes; fast enough for a bar, slow enough to cost nothing.
pub(crate) const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Where a watcher is told. The value is the latest; the channel is closed when the work is over.
pub type ProgressSender = watch::Sender<Progress>;

/// How far the work is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The step under way, for a person: "resolving", "pulling layers", "committing", ….
    pub step: &'static str,
    /// Layers, lowest first.
    pub blobs: Vec<BlobProgress>,
}

/// One layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobProgress {
    /// Of the bytes as they come; of the uncompressed archive where the work is an export.
    pub digest: Digest,
    /// Bytes so far.
    pub done_bytes: u64,
    /// 0 while it is not known.
    pub total_bytes: u64,
    /// What is being done with it.
    pub state: BlobState,
}

/// What is being done with a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobState {
    /// For its turn.
    Waiting,
    /// It is coming, and being unpacked as it comes.
    Downloading,
    /// It was there already.
    Present,
    /// It is there now.
    Done,
}

impl BlobState {
    /// One word for it, lower-case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Downloading => "downloading",
            Self::Present => "present",
            Self::Done => "done",
        }
    }
}

/// Counts one layer's bytes; shared by all who wait for that layer.
#[derive(Debug)]
pub(crate) struct BlobCounter {
    digest: Digest,
    done: AtomicU64,
    total: AtomicU64,
    state: AtomicU8,
}

impl BlobCounter {
    pub fn new(digest: Digest, total: u64, state: BlobState) -> Self {
        Self { digest, done: AtomicU64::new(0), total: AtomicU64::new(total), state: AtomicU8::new(state as u8) }
    }

    pub fn add(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Another attempt begins.
    pub fn restart(&self) {
        self.done.store(0, Ordering::Relaxed);
    }

    pub fn set(&self, state: BlobState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    fn snapshot(&self) -> BlobProgress {
        let state = [BlobState::Waiting, BlobState::Downloading, BlobState::Present, BlobState::Done]
            .into_iter()
            .find(|&state| state as u8 == self.state.load(Ordering::Relaxed))
            .unwrap_or(BlobState::Waiting);
        let total_bytes = self.total.load(Ordering::Relaxed);
        let done_bytes = match state {
            BlobState::Present | BlobState::Done => total_bytes,
            BlobState::Waiting | BlobState::Downloading => self.done.load(Ordering::Relaxed),
        };
        BlobProgress { digest: self.digest.clone(), done_bytes, total_bytes, state }
    }
}

/// One piece of work's progress, shared by all who wait for it.
#[derive(Debug, Default)]
pub(crate) struct Tracker {
    current: Mutex<(&'static str, Vec<Arc<BlobCounter>>)>,
}

impl Tracker {
    pub fn step(&self, step: &'static str) {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).0 = step;
    }

    pub fn blobs(&self, blobs: Vec<Arc<BlobCounter>>) {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).1 = blobs;
    }

    pub fn snapshot(&self) -> Progress {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        Progress { step: current.0, blobs: current.1.iter().map(|blob| blob.snapshot()).collect() }
    }

    /// Tells the watcher, if there is one and if there is news.
    pub fn tell(&self, watcher: Option<&ProgressSender>) {
        let Some(watcher) = watcher else { return };
        let now = self.snapshot();
        watcher.send_if_modified(|seen| {
            let news = *seen != now;
            if news {
                *seen = now;
            }
            news
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watcher_is_told_only_of_news() {
        let tracker = Tracker::default();
        let (sender, mut receiver) = watch::channel(Progress::default());
        let blob = Arc::new(BlobCounter::new(Digest::sha256_of(b""), 10, BlobState::Waiting));
        tracker.step("pulling layers");
        tracker.blobs(vec![blob.clone()]);
        tracker.tell(Some(&sender));
        assert!(receiver.has_changed().unwrap());
        assert_eq!(receiver.borrow_and_update().blobs[0].state.as_str(), "waiting");
        tracker.tell(Some(&sender));
        assert!(!receiver.has_changed().unwrap());
        blob.set(BlobState::Downloading);
        blob.add(4);
        tracker.tell(Some(&sender));
        assert_eq!(receiver.borrow_and_update().blobs[0].done_bytes, 4);
        blob.set(BlobState::Done);
        tracker.tell(Some(&sender));
        assert_eq!(receiver.borrow_and_update().blobs[0].done_bytes, 10);
    }
}
