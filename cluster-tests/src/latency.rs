//! How long publishes and deliveries took in some time, from what clients logged.

use std::{collections::BTreeMap, fmt, ops::Range, time::Duration};

use crate::history::{History, Outcome, Seen};

/// A distribution, in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Spread {
    /// How many there were.
    pub count: usize,
    /// Half were faster.
    pub p50_us: u64,
    /// 99 of 100 were faster.
    pub p99_us: u64,
    pub max_us: u64,
}

/// What was published in some time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Latencies {
    /// From the first sending of a publish to its acknowledgement.
    pub publish: Spread,
    /// From the first sending to each delivery to a client that was connected all along.
    pub delivery: Spread,
    /// Clients that came back and went on where they had stopped.
    pub resumes: usize,
    /// Groups that clients joined.
    pub joins: usize,
}

impl Spread {
    /// Of these durations in microseconds.
    pub fn of(mut all: Vec<u64>) -> Self {
        all.sort_unstable();
        let at = |part: usize| all.get((all.len() * part / 100).min(all.len().saturating_sub(1))).copied().unwrap_or(0);
        Self { count: all.len(), p50_us: at(50), p99_us: at(99), max_us: all.last().copied().unwrap_or(0) }
    }

    /// Whether this is worse than twice another, by more than what a busy machine explains.
    pub fn is_worse_than(&self, before: &Self, allowance: Duration) -> bool {
        let allowance_us = allowance.as_micros() as u64;
        let worse = |during: u64, before: u64| during > 2 * before && during > before + allowance_us;
        worse(self.p99_us, before.p99_us) || worse(self.p50_us, before.p50_us)
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| us as f64 / 1e3;
        let (p50, p99, max) = (ms(self.p50_us), ms(self.p99_us), ms(self.max_us));
        write!(f, "{} with p50 {p50:.1} ms, p99 {p99:.1} ms, at most {max:.1} ms", self.count)
    }
}

/// What was published in these times (in microseconds), and when it arrived at the clients whose names begin so.
pub fn latencies(history: &History, windows: &[&Range<u64>], subscribers: &str) -> Latencies {
    let within = |at_us: u64| windows.iter().any(|window| window.contains(&at_us));
    let mut sent: BTreeMap<&str, u64> = BTreeMap::new();
    let mut publish = Vec::new();
    for log in &history.publishes {
        let Some(first) = log.attempts.first().filter(|first| within(first.sent_us)) else { continue };
        sent.insert(&log.payload, first.sent_us);
        let acked = log.attempts.iter().find(|attempt| matches!(attempt.outcome, Outcome::Acked { .. }));
        publish.extend(acked.map(|acked| acked.answered_us - first.sent_us));
    }
    let (mut delivery, mut resumes, mut joins) = (Vec::new(), 0, 0);
    for connection in &history.connections {
        for event in &connection.events {
            match &event.seen {
                Seen::Message { payload, .. } if connection.client.starts_with(subscribers) => {
                    delivery.extend(sent.get(&**payload).map(|sent_us| event.at_us.saturating_sub(*sent_us)));
                }
                Seen::Joined { since: Some(_), .. } if within(event.at_us) => resumes += 1,
                Seen::Joined { since: None, .. } if within(event.at_us) => joins += 1,
                _ => {}
            }
        }
    }
    Latencies { publish: Spread::of(publish), delivery: Spread::of(delivery), resumes, joins }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_compared_with_an_allowance() {
        let before = Spread::of((1..=100).map(|number| number * 100).collect());
        assert_eq!((before.count, before.p50_us, before.p99_us, before.max_us), (100, 5_100, 10_000, 10_000));
        let worse = |factor: u64| Spread::of((1..=100).map(|number| number * 100 * factor).collect());
        let allowance = Duration::from_millis(20);
        assert!(!worse(2).is_worse_than(&before, allowance));
        assert!(!worse(3).is_worse_than(&before, allowance), "by 20 ms exactly");
        assert!(worse(4).is_worse_than(&before, allowance));
        assert_eq!(Spread::of(Vec::new()), Spread::default());
    }
}
