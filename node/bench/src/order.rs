//! Whether one subscriber got each message of its group once and in order. Publishers number the messages of each group
//! from 0, so this needs no promise of the server's.

use std::collections::BTreeSet;

/// What was left out and may still come; more is not remembered.
const SKIPPED_MAX: usize = 100_000;

/// What one message means for the order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// The next one, or a later one: what lies between is missing until it comes.
    Ahead,
    /// One that should have come before.
    Late,
    /// One that came before.
    Repeat,
}

/// What a subscriber has of its group.
#[derive(Debug, Default)]
pub struct Order {
    next: u64,
    skipped: BTreeSet<u64>,
}

impl Order {
    /// Takes a message's number.
    pub fn take(&mut self, number: u64) -> Place {
        if number < self.next {
            return if self.skipped.remove(&number) { Place::Late } else { Place::Repeat };
        }
        let room = SKIPPED_MAX.saturating_sub(self.skipped.len());
        self.skipped.extend((self.next..number).take(room));
        self.next = number.saturating_add(1);
        Place::Ahead
    }

    /// The number after the latest.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// How many of the messages before the latest one are not there.
    pub fn missing(&self) -> usize {
        self.skipped.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_and_repeated_messages_are_told_apart() {
        let mut order = Order::default();
        let places: Vec<Place> = [0, 1, 1, 4, 2, 2, 3, 5, 0].map(|number| order.take(number)).to_vec();
        use Place::{Ahead, Late, Repeat};
        assert_eq!(places, [Ahead, Ahead, Repeat, Ahead, Late, Repeat, Late, Ahead, Repeat]);
        assert_eq!(order.missing(), 0);
        order.take(u64::MAX);
        assert_eq!(order.missing(), SKIPPED_MAX);
    }
}
