//! Tokens: each stands for one offer, once, for a while. There is no other secret between the runtime and its client.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{Offer, TooManyTokens};

/// Bytes of randomness in a token: not to be guessed in the age of the universe, let alone in a minute.
const TOKEN_BYTES: usize = 16;

/// The offers that wait for their clients.
pub(super) struct Tokens {
    lifetime: Duration,
    max: usize,
    waiting: Mutex<Waiting>,
    /// The first offer has come.
    filled: Notify,
}

#[derive(Default)]
struct Waiting {
    offers: HashMap<String, (u64, Offer)>,
    /// In the order of their ends, which is that of their beginnings.
    ends: BTreeMap<u64, (Instant, String)>,
    next: u64,
}

impl Waiting {
    fn take(&mut self, token: &str) -> Option<Offer> {
        let (number, offer) = self.offers.remove(token)?;
        self.ends.remove(&number);
        Some(offer)
    }

    /// Takes out what is over.
    fn expired(&mut self, now: Instant) -> Vec<Offer> {
        let mut expired = Vec::new();
        while let Some((_, (end, token))) = self.ends.first_key_value().filter(|(_, (end, _))| *end <= now) {
            debug_assert!(*end <= now);
            let token = token.clone();
            expired.extend(self.take(&token));
        }
        expired
    }
}

impl Tokens {
    pub(super) fn new(lifetime: Duration, max: usize) -> Self {
        Self { lifetime, max, waiting: Mutex::default(), filled: Notify::new() }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a token for `offer`.
    pub(super) fn insert(&self, offer: Offer) -> Result<String, TooManyTokens> {
        let token = random_token();
        let now = Instant::now();
        let mut waiting = self.waiting();
        let expired = waiting.expired(now);
        let full = waiting.offers.len() >= self.max;
        if !full {
            let number = waiting.next;
            waiting.next += 1;
            waiting.ends.insert(number, (now + self.lifetime, token.clone()));
            waiting.offers.insert(token.clone(), (number, offer));
        }
        drop(waiting);
        // What an offer holds is let go outside the lock.
        drop(expired);
        if full {
            return Err(TooManyTokens(self.max));
        }
        self.filled.notify_one();
        Ok(token)
    }

    /// The offer behind a token, which is worth nothing from now on.
    pub(super) fn take(&self, token: &str) -> Option<Offer> {
        let mut waiting = self.waiting();
        let expired = waiting.expired(Instant::now());
        let offer = waiting.take(token);
        drop(waiting);
        drop(expired);
        offer
    }

    /// Drops offers when they are over, for ever.
    pub(super) async fn expire(&self) {
        loop {
            let next = self.waiting().ends.first_key_value().map(|(_, (end, _))| *end);
            match next {
                Some(end) => sleep_until(end).await,
                None => self.filled.notified().await,
            }
            let expired = self.waiting().expired(Instant::now());
            drop(expired);
        }
    }

    #[cfg(test)]
    fn count(&self) -> (usize, usize) {
        let waiting = self.waiting();
        (waiting.offers.len(), waiting.ends.len())
    }
}

/// From the kernel, which does not fail once it has started.
fn random_token() -> String {
    let mut bytes = [0; TOKEN_BYTES];
    let mut filled = 0;
    while filled < TOKEN_BYTES {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            // Kernels before 3.17: knarr asks for 6.1.
            Err(error) => panic!("getrandom: {error}"),
        }
    }
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::PortForward;
    use std::io;
    use std::sync::Arc;

    fn offer(held: &Arc<()>) -> Offer {
        let held = held.clone();
        Offer::PortForward(PortForward {
            ports: Vec::new(),
            connect: Arc::new(move |_| {
                let _ = &held;
                Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
            }),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_once_and_for_its_lifetime() {
        let held = Arc::new(());
        let tokens = Tokens::new(Duration::from_secs(60), 2);
        let first = tokens.insert(offer(&held)).expect("room");
        assert_eq!(first.len(), 22);
        assert!(first.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{first}");
        assert!(tokens.take(&first).is_some());
        assert!(tokens.take(&first).is_none());
        assert!(tokens.take("").is_none());
        let second = tokens.insert(offer(&held)).expect("room");
        assert_ne!(first, second);
        tokio::time::advance(Duration::from_secs(30)).await;
        let third = tokens.insert(offer(&held)).expect("room");
        assert_eq!(tokens.insert(offer(&held)).err().map(|e| e.0), Some(2));
        tokio::time::advance(Duration::from_secs(30)).await;
        assert!(tokens.take(&second).is_none(), "its time is over");
        tokens.insert(offer(&held)).expect("there is room again");
        assert!(tokens.take(&third).is_some());
        assert_eq!(tokens.count(), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn an_offer_that_nobody_takes_is_dropped_in_time() {
        let held = Arc::new(());
        let tokens = Arc::new(Tokens::new(Duration::from_secs(60), 10));
        let expiring = tokio::spawn({
            let tokens = tokens.clone();
            async move { tokens.expire().await }
        });
        for _ in 0..3 {
            tokens.insert(offer(&held)).expect("room");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(Arc::strong_count(&held), 4);
        tokio::time::sleep(Duration::from_millis(58_500)).await;
        assert_eq!(Arc::strong_count(&held), 2);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!((Arc::strong_count(&held), tokens.count()), (1, (0, 0)));
        expiring.abort();
    }
}
