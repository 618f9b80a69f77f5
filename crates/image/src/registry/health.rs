//! What was learnt of hosts and is worth remembering for a while.
//!
//! A dead mirror must cost one timeout, not one for every blob of every pull; a mirror that serves a blob wrongly must
//! not be asked for it again by the next attempt. Nothing here decides that a host is never asked: it is asked last.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::reference::Digest;

/// How long a host that could not be reached is asked last: long enough for one pull, short enough that nobody waits
/// for a mirror that came back.
const DEAD_FOR: Duration = Duration::from_secs(30);
/// How long a host is asked last for a blob that it served wrongly: over several retries of kubelet, which come up to
/// five minutes apart.
const CORRUPT_FOR: Duration = Duration::from_secs(600);
/// How long it is remembered that a host does not speak TLS.
const PLAIN_FOR: Duration = Duration::from_secs(600);
/// Entries of each kind; beyond, all are forgotten.
const ENTRIES_MAX: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Health {
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    dead: HashMap<String, Instant>,
    corrupt: HashMap<(String, Digest), Instant>,
    plain: HashMap<String, Instant>,
}

impl Health {
    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `host` could not be reached.
    pub fn note_dead(&self, host: &str) {
        note(&mut self.notes().dead, host.to_owned());
    }

    /// `host` answered.
    pub fn note_alive(&self, host: &str) {
        self.notes().dead.remove(host);
    }

    pub fn is_dead(&self, host: &str) -> bool {
        self.notes().dead.get(host).is_some_and(|since| since.elapsed() < DEAD_FOR)
    }

    /// What `host` gave for `digest` was something else.
    pub fn note_corrupt(&self, host: &str, digest: &Digest) {
        note(&mut self.notes().corrupt, (host.to_owned(), digest.clone()));
    }

    pub fn is_corrupt(&self, host: &str, digest: &Digest) -> bool {
        let key = (host.to_owned(), digest.clone());
        self.notes().corrupt.get(&key).is_some_and(|since| since.elapsed() < CORRUPT_FOR)
    }

    /// `host` answers in HTTP where HTTPS was tried.
    pub fn note_plain(&self, host: &str) {
        note(&mut self.notes().plain, host.to_owned());
    }

    pub fn is_plain(&self, host: &str) -> bool {
        self.notes().plain.get(host).is_some_and(|since| since.elapsed() < PLAIN_FOR)
    }
}

fn note<K: std::hash::Hash + Eq>(notes: &mut HashMap<K, Instant>, key: K) {
    if notes.len() >= ENTRIES_MAX {
        notes.clear();
    }
    notes.insert(key, Instant::now());
}
