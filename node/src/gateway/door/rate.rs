//! A token bucket, as the time at which it will be full again (the generic cell rate algorithm): three numbers, no timer.

/// A burst, and a rate per second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bucket {
    cost_ns: u64,
    burst_ns: u64,
    full_at_ns: u64,
}

impl Bucket {
    /// A full bucket. Neither number is taken for less than one.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let cost_ns = 1_000_000_000 / u64::from(per_second.max(1));
        Self { cost_ns, burst_ns: cost_ns * u64::from(burst.max(1)), full_at_ns: 0 }
    }

    /// Takes one, or says in how many milliseconds there will be one.
    pub fn take(&mut self, now_us: u64) -> Result<(), u64> {
        self.take_many(now_us, 1)
    }

    /// Takes a number at once, or says in how many milliseconds there will be that many. More than the burst there never are.
    pub fn take_many(&mut self, now_us: u64, count: u32) -> Result<(), u64> {
        let now_ns = now_us.saturating_mul(1_000);
        let full_at_ns = self.full_at_ns.max(now_ns) + self.cost_ns * u64::from(count);
        match (full_at_ns - now_ns).checked_sub(self.burst_ns) {
            None | Some(0) => {
                self.full_at_ns = full_at_ns;
                Ok(())
            }
            Some(missing_ns) => Err(missing_ns.div_ceil(1_000_000)),
        }
    }

    /// Whether there is one; else in how many milliseconds.
    pub fn has_one(&self, now_us: u64) -> Result<(), u64> {
        Self::clone(self).take(now_us)
    }

    /// Takes one whether there is one or not.
    pub fn owe(&mut self, now_us: u64) {
        self.full_at_ns = self.full_at_ns.max(now_us.saturating_mul(1_000)) + self.cost_ns;
    }

    /// Whether nothing is missing: such a bucket is as good as a new one.
    pub fn is_full(&self, now_us: u64) -> bool {
        self.full_at_ns <= now_us.saturating_mul(1_000)
    }
}

/// What becomes of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is carried out.
    Allowed,
    /// It is refused; there is room again after this number of milliseconds.
    Refused(u64),
    /// It is refused, and as many before it: the connection ends.
    Excess,
}

/// One connection's operations: those above the rate are refused, and whoever is refused as often as it is allowed goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OperationRate {
    allowed: Bucket,
    refused: Bucket,
}

impl OperationRate {
    /// Nothing used yet.
    pub fn new(per_second: u32, burst: u32) -> Self {
        let bucket = Bucket::new(per_second, burst);
        Self { allowed: bucket, refused: bucket }
    }

    /// Counts one operation.
    pub fn take(&mut self, now_us: u64) -> Verdict {
        match self.allowed.take(now_us) {
            Ok(()) => Verdict::Allowed,
            Err(wait_ms) if self.refused.take(now_us).is_ok() => Verdict::Refused(wait_ms),
            Err(_) => Verdict::Excess,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let mut bucket = Bucket::new(10, 3);
        let start_us = 5_000_000;
        for _ in 0..3 {
            assert_eq!(bucket.take(start_us), Ok(()));
        }
        assert_eq!(bucket.take(start_us), Err(100));
        assert_eq!(bucket.take(start_us + 99_000), Err(1));
        assert_eq!(bucket.take(start_us + 100_000), Ok(()));
        assert_eq!(bucket.take(start_us + 100_000), Err(100));
        let later_us = start_us + 60_000_000;
        assert_eq!((0..10).filter(|_| bucket.take(later_us).is_ok()).count(), 3);
    }

    #[test]
    fn extreme_settings_neither_panic_nor_block_for_ever() {
        assert_eq!(Bucket::new(0, 0).take(0), Ok(()));
        assert_eq!(Bucket::new(u32::MAX, u32::MAX).take(u64::MAX / 2_000), Ok(()));
        assert_eq!(Bucket::new(1, u32::MAX).take(0), Ok(()));
    }

    #[test]
    fn a_flood_is_refused_and_then_ended() {
        let mut rate = OperationRate::new(10, 5);
        let verdicts: Vec<_> = (0..11).map(|_| rate.take(0)).collect();
        assert!(verdicts[..5].iter().all(|verdict| *verdict == Verdict::Allowed));
        assert!(verdicts[5..10].iter().all(|verdict| matches!(verdict, Verdict::Refused(_))));
        assert_eq!(verdicts[10], Verdict::Excess);
        assert_eq!(rate.take(1_000_000), Verdict::Allowed);
    }
}
