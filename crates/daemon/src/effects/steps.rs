//! How long each step of an effect took, for the log: a slow start says by itself where its time went.

use std::fmt;
use std::time::Instant;

/// Names of steps with their durations, in order.
#[derive(Debug)]
pub(super) struct Steps {
    last: Instant,
    taken: Vec<(&'static str, u128)>,
}

impl Steps {
    /// The first step begins.
    pub(super) fn start() -> Self {
        Self { last: Instant::now(), taken: Vec::new() }
    }

    /// A step ends and the next begins.
    pub(super) fn done(&mut self, name: &'static str) {
        let now = Instant::now();
        self.taken.push((name, now.duration_since(self.last).as_micros()));
        self.last = now;
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, micros)) in self.taken.iter().enumerate() {
            let separator = if at == 0 { "" } else { ", " };
            write!(f, "{separator}{name} {micros} µs")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_told_in_order() {
        let mut steps = Steps::start();
        steps.done("first");
        steps.done("second");
        let text = steps.to_string();
        assert!(text.starts_with("first ") && text.contains(" µs, second "), "{text}");
    }
}
