//! The node's clock: wall time in nanoseconds that never goes back and never repeats.
//!
//! Kubelet takes the newest `created_at` for the living pod or container, so two things of one node must never have
//! the same, and a clock that was set back must not make the newer one look older.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Gives strictly growing times.
#[derive(Debug, Default)]
pub struct Clock {
    last: AtomicI64,
}

impl Clock {
    /// Starts no earlier than `after`: the newest time in the records, so that a restart does not go back either.
    pub fn starting_after(after: i64) -> Self {
        Self { last: AtomicI64::new(after) }
    }

    /// Nanoseconds since 1970.
    pub fn now(&self) -> i64 {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64);
        let mut last = self.last.load(Ordering::Relaxed);
        loop {
            let now = wall.max(last + 1);
            match self.last.compare_exchange_weak(last, now, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return now,
                Err(newer) => last = newer,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_grow_even_when_the_wall_clock_is_behind() {
        let clock = Clock::starting_after(i64::MAX - 10);
        let (first, second) = (clock.now(), clock.now());
        assert_eq!((first, second), (i64::MAX - 9, i64::MAX - 8));
    }
}
