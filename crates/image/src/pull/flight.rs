//! The same work, asked for several times at once, is done once.
//!
//! The work runs in a task of its own and belongs to nobody: it goes on while at least one asker waits, and is aborted
//! when the last one has gone. What is aborted cleans up by dropping what it holds.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::task::AbortHandle;

/// All work of one kind that is under way. `S` is what askers share while it is, such as a count of bytes.
#[derive(Debug)]
pub(crate) struct Flights<K, T, S> {
    under_way: Mutex<HashMap<K, Flight<T, S>>>,
}

#[derive(Debug)]
struct Flight<T, S> {
    askers: usize,
    task: AbortHandle,
    outcome: watch::Receiver<Option<T>>,
    shared: S,
}

impl<K, T, S> Default for Flights<K, T, S> {
    fn default() -> Self {
        Self { under_way: Mutex::default() }
    }
}

/// One asker's claim on work under way.
pub(crate) struct Joined<K: Eq + Hash, T, S> {
    flights: Arc<Flights<K, T, S>>,
    key: K,
    outcome: watch::Receiver<Option<T>>,
    /// What all askers of this work share.
    pub shared: S,
    /// Whether this asker was the first.
    pub is_first: bool,
}

impl<K, T, S> Flights<K, T, S>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
    S: Clone + Send + 'static,
{
    /// Joins the work of that name, or starts it.
    pub fn join<F>(self: &Arc<Self>, key: K, shared: S, work: impl FnOnce(S) -> F) -> Joined<K, T, S>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        // Work that has ended or died but whose last asker has not looked yet is not joined: its outcome is old news.
        let joinable = under_way
            .get_mut(&key)
            .filter(|flight| flight.outcome.borrow().is_none() && flight.outcome.has_changed().is_ok());
        let is_first = joinable.is_none();
        let (outcome, shared) = match joinable {
            Some(flight) => {
                flight.askers += 1;
                (flight.outcome.clone(), flight.shared.clone())
            }
            None => {
                let (sender, outcome) = watch::channel(None);
                let running = work(shared.clone());
                let task = tokio::spawn(async move {
                    let result = running.await;
                    sender.send_replace(Some(result));
                });
                let flight =
                    Flight { askers: 1, task: task.abort_handle(), outcome: outcome.clone(), shared: shared.clone() };
                under_way.insert(key.clone(), flight);
                (outcome, shared)
            }
        };
        Joined { flights: self.clone(), key, outcome, shared, is_first }
    }
}

impl<K: Eq + Hash, T: Clone, S> Joined<K, T, S> {
    /// What was asked for.
    pub fn key(&self) -> &K {
        &self.key
    }

    /// Waits for the outcome; `None` when the work died without one. Dropping the future and then `self` gives the
    /// claim up.
    pub async fn outcome(&mut self) -> Option<T> {
        self.outcome.wait_for(Option::is_some).await.ok().and_then(|outcome| outcome.clone())
    }
}

impl<K: Eq + Hash, T, S> Drop for Joined<K, T, S> {
    fn drop(&mut self) {
        let mut under_way = self.flights.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        // Another flight may have this key by now, when this one had ended before all askers had looked.
        let Some(flight) = under_way.get_mut(&self.key).filter(|flight| flight.outcome.same_channel(&self.outcome))
        else {
            return;
        };
        flight.askers -= 1;
        if flight.askers == 0 {
            flight.task.abort();
            under_way.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    type Numbers = Flights<&'static str, usize, ()>;

    /// Counts itself as long as it lives.
    struct Alive(Arc<AtomicUsize>);

    impl Drop for Alive {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_work_is_done_once_and_again_when_it_is_over() {
        let flights = Arc::new(Numbers::default());
        let runs = Arc::new(AtomicUsize::new(0));
        let ask = |key| {
            let runs = runs.clone();
            flights.join(key, (), |()| async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                runs.fetch_add(1, Ordering::SeqCst) + 1
            })
        };
        let (mut a, mut b, mut other) = (ask("x"), ask("x"), ask("y"));
        assert!(a.is_first && !b.is_first && other.is_first);
        let (x, y, z) = tokio::join!(a.outcome(), b.outcome(), other.outcome());
        assert_eq!(x, y);
        assert_ne!(x, z);
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        // The first two still hold their claims.
        let mut later = ask("x");
        assert!(later.is_first);
        assert_eq!(later.outcome().await, Some(3));
        drop((a, b));
        assert!(!flights.under_way.lock().unwrap().is_empty());
        drop((later, other));
        assert!(flights.under_way.lock().unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn work_goes_on_while_one_asker_waits_and_ends_with_the_last() {
        let flights = Arc::new(Numbers::default());
        let alive = Arc::new(AtomicUsize::new(0));
        let ask = || {
            let alive = alive.clone();
            flights.join("x", (), |()| async move {
                alive.fetch_add(1, Ordering::SeqCst);
                let _alive = Alive(alive);
                tokio::time::sleep(Duration::from_secs(3600)).await;
                7
            })
        };
        let (a, b) = (ask(), ask());
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(a);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(alive.load(Ordering::SeqCst), 1);
        drop(b);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(alive.load(Ordering::SeqCst), 0);
        assert!(flights.under_way.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn work_that_dies_is_no_outcome_and_can_be_asked_for_again() {
        let flights = Arc::new(Numbers::default());
        let mut dead = flights.join("x", (), |()| async { panic!("on purpose") });
        assert_eq!(dead.outcome().await, None);
        let mut next = flights.join("x", (), |()| async { 1 });
        assert!(next.is_first);
        assert_eq!(next.outcome().await, Some(1));
    }
}
