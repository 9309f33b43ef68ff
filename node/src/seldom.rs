//! Lets a line of the log through once in a while, where a stranger or a fault could repeat it without end.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::clock;

/// At most one line in each interval.
#[derive(Debug)]
pub(crate) struct Seldom {
    every_ms: u64,
    next_ms: AtomicU64,
}

impl Seldom {
    pub(crate) const fn every(interval: Duration) -> Self {
        Self { every_ms: interval.as_millis() as u64, next_ms: AtomicU64::new(0) }
    }

    /// Whether it is time again.
    pub(crate) fn now(&self) -> bool {
        let now_ms = clock::mono_ms();
        let next_ms = self.next_ms.load(Ordering::Relaxed);
        now_ms >= next_ms
            && self
                .next_ms
                .compare_exchange(next_ms, now_ms + self.every_ms, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}
