//! Waiting for something to become so, with a limit: the tests' only way to let time pass.

use std::time::Duration;

use anyhow::{Result, bail};
use roost::clock;

/// Between two looks.
const POLL: Duration = Duration::from_millis(20);

/// Looks until the condition holds and says how long that took; an error names `what` once `limit` has passed.
pub async fn wait_until(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> Result<Duration> {
    wait_for(what, limit, async || condition().await.then_some(())).await.map(|((), elapsed)| elapsed)
}

/// Like [`wait_until`], for a condition that yields what was waited for.
pub async fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Option<T>,
) -> Result<(T, Duration)> {
    let start = clock::mono_us();
    loop {
        let found = look().await;
        let elapsed = Duration::from_micros(clock::mono_us() - start);
        if let Some(found) = found {
            return Ok((found, elapsed));
        }
        if elapsed >= limit {
            bail!("waited {limit:?} in vain for: {what}");
        }
        tokio::time::sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ends_when_so_and_says_what_was_missing() {
        let mut left = 3;
        wait_until("three looks", Duration::from_secs(5), async || {
            left -= 1;
            left == 0
        })
        .await
        .expect("it becomes so");
        let error = wait_until("the impossible", Duration::ZERO, async || false).await.expect_err("it never is");
        assert!(error.to_string().contains("the impossible"), "{error}");
    }
}
