//! A circuit breaker: after N failures in a row requests are refused at once, instead of each waiting for its
//! time-out; one at a time is let through, now and then, to find out whether that is over.
//!
//! Pure, with the time given. (The libraries for this decide by a rate over a window and let all callers through at once
//! when they try again; here the first request after a store's restart should not be a stampede.)

/// See the module.
#[derive(Debug)]
pub struct Breaker {
    failures_to_open: u32,
    open_ms: u64,
    failures: u32,
    /// While open: when the next attempt is due.
    try_at_ms: Option<u64>,
}

impl Breaker {
    /// Opens after this number of failures in a row; tries again every `open_ms`.
    pub fn new(failures_to_open: u32, open_ms: u64) -> Self {
        Self { failures_to_open: failures_to_open.max(1), open_ms, failures: 0, try_at_ms: None }
    }

    /// Whether a request may go now. While open, the one that is let through moves the next attempt on: should it never
    /// report, another follows.
    pub fn admits(&mut self, now_ms: u64) -> bool {
        let admits = self.would_admit(now_ms);
        if admits && self.is_open() {
            self.try_at_ms = Some(now_ms + self.open_ms);
        }
        admits
    }

    /// Whether a request would be let through now.
    pub fn would_admit(&self, now_ms: u64) -> bool {
        self.try_at_ms.is_none_or(|at_ms| now_ms >= at_ms)
    }

    /// The store has answered. Says whether that closed it.
    pub fn succeeded(&mut self) -> bool {
        self.failures = 0;
        self.try_at_ms.take().is_some()
    }

    /// The store has not answered. Says whether that opened it.
    pub fn failed(&mut self, now_ms: u64) -> bool {
        self.failures = self.failures.saturating_add(1);
        if self.failures < self.failures_to_open || self.try_at_ms.is_some() {
            return false;
        }
        self.try_at_ms = Some(now_ms + self.open_ms);
        true
    }

    /// Whether it refuses.
    pub fn is_open(&self) -> bool {
        self.try_at_ms.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_open_it_and_a_success_closes_it() {
        let mut breaker = Breaker::new(3, 100);
        assert!(!breaker.failed(0) && !breaker.failed(1));
        assert!(!breaker.succeeded());
        assert!(!breaker.failed(2) && !breaker.failed(3) && breaker.admits(3));
        assert!(breaker.failed(4) && breaker.is_open());
        assert!(!breaker.admits(5) && !breaker.admits(103) && !breaker.would_admit(103));
        assert!(breaker.would_admit(104) && breaker.would_admit(104));
        // One at a time.
        assert!(breaker.admits(104) && !breaker.admits(104) && !breaker.admits(203));
        assert!(!breaker.failed(150));
        assert!(breaker.admits(204));
        assert!(breaker.succeeded() && !breaker.is_open());
        assert!(breaker.admits(205) && breaker.admits(205));
    }
}
