//! Lets a line of the log through once in a while, where a stranger or a fault could repeat it without end.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::clock;

/// What most lines are content with.
const INTERVAL: Duration = Duration::from_secs(10);

/// The first line, then at most one in each interval.
#[derive(Debug)]
pub(crate) struct Seldom {
    every_ms: u64,
    next_ms: AtomicU64,
    left_out: AtomicU64,
}

impl Seldom {
    /// At most one line in ten seconds.
    pub(crate) const fn new() -> Self {
        Self::every(INTERVAL)
    }

    pub(crate) const fn every(interval: Duration) -> Self {
        let (next_ms, left_out) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { every_ms: interval.as_millis() as u64, next_ms, left_out }
    }

    /// Whether it is time for a line: how many were left out since the last one.
    pub(crate) fn now(&self) -> Option<u64> {
        self.at(clock::mono_ms())
    }

    fn at(&self, now_ms: u64) -> Option<u64> {
        let next_ms = self.next_ms.load(Ordering::Relaxed);
        let until_ms = now_ms + self.every_ms;
        let is_time = now_ms >= next_ms
            && self.next_ms.compare_exchange(next_ms, until_ms, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_time {
            return Some(self.left_out.swap(0, Ordering::Relaxed));
        }
        self.left_out.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_comes_at_once_and_the_next_says_how_many_did_not() {
        let seldom = Seldom::every(Duration::from_secs(10));
        let lines: Vec<_> = (0..=100).filter_map(|step| Some((step * 200, seldom.at(step * 200)?))).collect();
        assert_eq!(lines, [(0, 0), (10_000, 49), (20_000, 49)]);
    }
}
