//! Which host to ask next, and when to give up.
//!
//! Hosts are asked in the order of the configuration. Any failure of one, a 404 as much as a refused connection, leads
//! to the next; those known to be out of order come last. Once every host had its turn, those whose failure may pass
//! (429, 5xx, a connection that broke) get another, after a pause; the others do not.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use super::error::{HostFailure, RegistryError, RegistryErrorKind};
use super::health::Health;
use super::hosts::Endpoint;
use crate::reference::Digest;

/// Turns of one host for one thing.
const TURNS_MAX: u32 = 4;
/// The first pause before another turn; each further one is twice as long.
const PAUSE_FIRST: Duration = Duration::from_millis(250);
/// The longest pause, and the longest `Retry-After` that is waited for: kubelet's own back-off does better beyond.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The hosts that may still be asked for one thing.
#[derive(Debug)]
pub(super) struct Turns {
    /// For messages: `manifest of docker.io/library/busybox:latest`.
    what: String,
    waiting: VecDeque<Turn>,
    current: Option<Turn>,
    /// The last failure of each host.
    failures: Vec<(usize, String, HostFailure)>,
}

#[derive(Debug, Clone)]
struct Turn {
    endpoint: Arc<Endpoint>,
    /// Place in the configuration.
    rank: usize,
    /// How many turns this host had.
    had: u32,
    pause: Duration,
}

impl Turns {
    /// For one thing that `endpoints` may have; `digest` when it has one.
    pub fn new(what: String, endpoints: Vec<Arc<Endpoint>>, health: &Health, digest: Option<&Digest>) -> Self {
        let turns = endpoints.into_iter().enumerate();
        let mut turns: Vec<Turn> =
            turns.map(|(rank, endpoint)| Turn { endpoint, rank, had: 0, pause: Duration::ZERO }).collect();
        turns.sort_by_key(|turn| {
            let name = turn.endpoint.host.name();
            (digest.is_some_and(|digest| health.is_corrupt(name, digest)), health.is_dead(name))
        });
        Self { what, waiting: turns.into(), current: None, failures: Vec::new() }
    }

    /// The next host to ask, after whatever pause it needs; `None`: nobody is left.
    pub async fn next(&mut self) -> Option<Arc<Endpoint>> {
        let pause = self.waiting.front()?.pause;
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let mut turn = self.waiting.pop_front()?;
        turn.had += 1;
        let endpoint = turn.endpoint.clone();
        self.current = Some(turn);
        Some(endpoint)
    }

    /// The host that was asked last gave something of use: its earlier failures no longer count.
    pub fn progressed(&mut self) {
        if let Some(turn) = &mut self.current {
            turn.had = 0;
        }
    }

    /// The host that was asked last failed.
    pub fn failed(&mut self, failure: HostFailure, health: &Health) {
        let Some(mut turn) = self.current.take() else { return };
        let name = turn.endpoint.host.name().to_owned();
        if failure.dead {
            health.note_dead(&name);
        }
        tracing::debug!(host = %name, what = %self.what, failure = %failure.message, "registry host failed");
        let asked_pause = failure.retry_after.unwrap_or(Duration::ZERO);
        if failure.transient && turn.had < TURNS_MAX && asked_pause <= PAUSE_MAX {
            // A connection that broke after it gave something is made anew at once.
            let own_pause = match turn.had {
                0 => Duration::ZERO,
                had => PAUSE_FIRST * 2u32.saturating_pow(had - 1),
            };
            turn.pause = own_pause.max(asked_pause).min(PAUSE_MAX);
            self.waiting.push_back(turn.clone());
        }
        self.failures.retain(|(rank, ..)| *rank != turn.rank);
        self.failures.push((turn.rank, name, failure));
    }

    /// Every host's failure; the kind is that of the host nearest to the registry itself, which comes last in the
    /// configuration: a mirror's 404 says little.
    pub fn into_error(mut self) -> RegistryError {
        self.failures.sort_by_key(|(rank, ..)| *rank);
        let Some((.., decisive)) = self.failures.last() else {
            let message = format!("{}: no host of hosts.toml may be asked for this", self.what);
            return RegistryError::new(RegistryErrorKind::Other, message);
        };
        let kind = decisive.kind;
        let each: Vec<String> =
            self.failures.iter().map(|(_, name, failure)| format!("{name}: {}", failure.message)).collect();
        RegistryError::new(kind, format!("{}: {}", self.what, each.join("; ")))
    }
}
