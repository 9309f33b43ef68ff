//! What all clients count together. Each has a lane of the histograms, so that few wait for each other.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
};

use hdrhistogram::Histogram;

use crate::order::Place;

const LANES: usize = 8;
/// Three digits of each figure are right.
const DIGITS: u8 = 3;
/// A longer wait counts as this one.
const LONGEST_US: u64 = 600_000_000;
/// Failures that are kept as text; of others there are only numbers.
const WORDS: usize = 5;

/// Counters and times.
#[derive(Debug)]
pub struct Tally {
    /// Whether times count: not while the server warms up.
    pub measuring: AtomicBool,
    /// Messages that arrived, each once.
    pub delivered: AtomicU64,
    /// The text of the frames that brought them, in bytes.
    pub bytes: AtomicU64,
    /// Messages that arrived again.
    pub repeats: AtomicU64,
    /// Messages that arrived after a later one.
    pub disorder: AtomicU64,
    /// Publishes that were taken.
    pub answered: AtomicU64,
    /// Publishes that were refused.
    pub refused: AtomicU64,
    /// Losses that the server itself announced, and clients that it closed.
    pub holes: AtomicU64,
    latency: [Mutex<Histogram<u64>>; LANES],
    answer: Mutex<Histogram<u64>>,
    words: Mutex<Vec<String>>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            measuring: AtomicBool::new(false),
            delivered: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            repeats: AtomicU64::new(0),
            disorder: AtomicU64::new(0),
            answered: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            holes: AtomicU64::new(0),
            latency: std::array::from_fn(|_| Mutex::new(histogram())),
            answer: Mutex::new(histogram()),
            words: Mutex::default(),
        }
    }
}

impl Tally {
    /// A message arrived, this time after it was due; without a time its latency is nobody's concern.
    pub fn delivery(&self, lane: usize, place: Place, latency_us: Option<u64>, bytes: usize) {
        match place {
            Place::Ahead => {}
            Place::Late => {
                self.disorder.fetch_add(1, Relaxed);
            }
            Place::Repeat => {
                self.repeats.fetch_add(1, Relaxed);
                return;
            }
        }
        self.delivered.fetch_add(1, Relaxed);
        self.bytes.fetch_add(bytes as u64, Relaxed);
        if let Some(latency_us) = latency_us {
            self.took(lane, latency_us);
        }
    }

    /// Something else took this time.
    pub fn took(&self, lane: usize, us: u64) {
        if self.measuring.load(Relaxed) {
            record(&self.latency[lane % LANES], us);
        }
    }

    /// A publish was taken, this time after it was due.
    pub fn answer(&self, us: u64) {
        self.answered.fetch_add(1, Relaxed);
        if self.measuring.load(Relaxed) {
            record(&self.answer, us);
        }
    }

    /// A publish was refused.
    pub fn refusal(&self, why: &str) {
        self.refused.fetch_add(1, Relaxed);
        self.say(why);
    }

    /// A client lost messages, or its connection.
    pub fn hole(&self, why: &str) {
        self.holes.fetch_add(1, Relaxed);
        self.say(why);
    }

    /// The first failures as text.
    pub fn words(&self) -> Vec<String> {
        lock(&self.words).clone()
    }

    /// How long deliveries (or what else was counted) took, and answers.
    pub fn histograms(&self) -> (Histogram<u64>, Histogram<u64>) {
        let mut all = histogram();
        for lane in &self.latency {
            all.add(&*lock(lane)).expect("all lanes have the same bounds");
        }
        (all, lock(&self.answer).clone())
    }

    fn say(&self, why: &str) {
        let mut words = lock(&self.words);
        if words.len() < WORDS && !words.iter().any(|word| word == why) {
            words.push(why.to_owned());
        }
    }
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, DIGITS).expect("the bounds are right")
}

fn record(histogram: &Mutex<Histogram<u64>>, us: u64) {
    lock(histogram).saturating_record(us.clamp(1, LONGEST_US));
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeats_count_apart_and_times_only_while_it_measures() {
        let tally = Tally::default();
        tally.delivery(0, Place::Ahead, Some(10), 5);
        tally.measuring.store(true, Relaxed);
        tally.delivery(1, Place::Ahead, Some(20), 5);
        tally.delivery(9, Place::Late, Some(30), 5);
        tally.delivery(9, Place::Ahead, None, 5);
        tally.delivery(0, Place::Repeat, Some(40), 5);
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        assert_eq!([&tally.delivered, &tally.bytes, &tally.disorder, &tally.repeats].map(count), [4, 20, 1, 1]);
        let (latency, answer) = tally.histograms();
        assert_eq!((latency.len(), latency.max(), answer.len()), (2, 30, 0));
    }

    #[test]
    fn the_first_words_are_kept_once() {
        let tally = Tally::default();
        for number in 0..20 {
            tally.refusal(&format!("no {}", number % 10));
        }
        assert_eq!((tally.refused.load(Relaxed), tally.words().len()), (20, WORDS));
    }
}
