//! Whether this process stood still: who looks at intervals, and whose look comes late, has seen nothing in between.

/// Watches the times of looks that are to come at intervals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    late_ms: u64,
    looked_ms: u64,
}

impl Pace {
    /// From now on. A look more than `late_ms` after the one before is late.
    pub fn new(late_ms: u64, now_ms: u64) -> Self {
        Self { late_ms, looked_ms: now_ms }
    }

    /// A look. Gives how many milliseconds lie between it and the one before, where that is too many.
    pub fn look(&mut self, now_ms: u64) -> Option<u64> {
        let between_ms = now_ms.saturating_sub(self.looked_ms);
        self.looked_ms = now_ms;
        (between_ms > self.late_ms).then_some(between_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_look_that_comes_late_tells() {
        let mut pace = Pace::new(600, 1_000);
        for (now_ms, expected) in
            [(1_600, None), (2_201, Some(601)), (2_400, None), (2_400, None), (9_000, Some(6_600))]
        {
            assert_eq!(pace.look(now_ms), expected, "{now_ms}");
        }
    }
}
