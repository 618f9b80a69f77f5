//! Asks many small questions at the same time, a bounded number of them at once.

use std::collections::VecDeque;
use std::future::Future;

use tokio::task::JoinSet;

/// Calls in flight at once: enough to hide the round trips of a full node, too few to be a burden to it.
const AT_ONCE: usize = 16;

/// Runs `work` on each item and returns the outcomes in the items' order. An outcome is missing (`None`) only where its
/// task panicked.
pub async fn each<I, T, F, Fut>(items: impl IntoIterator<Item = I>, work: F) -> Vec<Option<T>>
where
    F: Fn(I) -> Fut,
    Fut: Future<Output = T> + Send + 'static,
    T: Send + 'static,
{
    let mut waiting: VecDeque<(usize, Fut)> = items.into_iter().map(work).enumerate().collect();
    let mut outcomes: Vec<Option<T>> = waiting.iter().map(|_| None).collect();
    let mut running = JoinSet::new();
    loop {
        while running.len() < AT_ONCE {
            let Some((index, future)) = waiting.pop_front() else { break };
            running.spawn(async move { (index, future.await) });
        }
        match running.join_next().await {
            Some(Ok((index, outcome))) => outcomes[index] = Some(outcome),
            Some(Err(_)) => {}
            None => return outcomes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn outcomes_keep_the_order_of_the_items() {
        let outcomes = each(0..100u32, |n| async move {
            tokio::time::sleep(std::time::Duration::from_micros(u64::from(100 - n))).await;
            n * 2
        })
        .await;
        assert_eq!(outcomes, (0..100).map(|n| Some(n * 2)).collect::<Vec<_>>());
    }
}
