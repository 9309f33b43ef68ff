//! The window in which a repeated publish is recognised by its key.

use std::collections::{BTreeMap, VecDeque};

use crate::{entry::Retention, id::PublishKey};

/// What a publish in the window takes, about: its place in the order, and key and offset in a tree that is two thirds full.
const REPEAT_BYTES: u64 = 100;
/// An order with room for more than this number of publishes gives back what it does not need.
const SMALL: usize = 64;

/// The recent publishes of a log. They follow each other without a hole up to the log's head, so that the order of keys says
/// at which offset each stands.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Window {
    offsets: BTreeMap<PublishKey, u64>,
    /// Key and time, oldest first.
    order: VecDeque<(PublishKey, u64)>,
}

impl Window {
    /// The window of a log with this head, from key and time of each of its publishes, oldest first. No key is there twice.
    pub(super) fn restore(head: u64, entries: Vec<(PublishKey, u64)>) -> Self {
        let first = head + 1 - entries.len() as u64;
        Self { offsets: entries.iter().map(|(key, _)| *key).zip(first..).collect(), order: entries.into() }
    }

    /// The `nth` of these.
    pub(super) fn nth(&self, nth: usize) -> Option<(PublishKey, u64)> {
        self.order.get(nth).copied()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Where a publish with this key stands.
    pub(super) fn offset(&self, key: PublishKey) -> Option<u64> {
        self.offsets.get(&key).copied()
    }

    /// The time of the newest publish.
    pub(super) fn last_at_ms(&self) -> Option<u64> {
        self.order.back().map(|(_, at_ms)| *at_ms)
    }

    /// The next publish of the log. Its key is not in the window.
    pub(super) fn push(&mut self, key: PublishKey, offset: u64, at_ms: u64) {
        let repeated = self.offsets.insert(key, offset);
        assert!(repeated.is_none(), "a key in the window is a repeat");
        self.order.push_back((key, at_ms));
        assert_eq!(self.offsets.len(), self.order.len(), "the window's keys and their order are the same");
    }

    /// Forgets what the retention does not have it remember.
    pub(super) fn trim(&mut self, at_ms: u64, retention: &Retention) {
        while let Some((key, _)) = self.order.front().filter(|oldest| self.is_over(oldest, at_ms, retention)) {
            let known = self.offsets.remove(key);
            assert!(known.is_some(), "what is in the window's order is in the window");
            self.order.pop_front();
        }
        if self.order.capacity() > SMALL && self.order.len() < self.order.capacity() / 4 {
            self.order.shrink_to(2 * self.order.len());
        }
    }

    /// Whether [`Window::trim`] would forget something.
    pub(super) fn is_overdue(&self, at_ms: u64, retention: &Retention) -> bool {
        self.order.front().is_some_and(|oldest| self.is_over(oldest, at_ms, retention))
    }

    /// What it takes, in bytes, about.
    pub(super) fn bytes(&self) -> u64 {
        self.order.len() as u64 * REPEAT_BYTES
    }

    fn is_over(&self, oldest: &(PublishKey, u64), at_ms: u64, retention: &Retention) -> bool {
        self.order.len() > retention.window_publishes as usize || oldest.1.saturating_add(retention.window_ms) < at_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Retention = Retention { messages: 0, bytes: 0, age_ms: 0, window_ms: 100, window_publishes: 1_000 };

    fn filled(publishes: u64) -> Window {
        let mut window = Window::default();
        for offset in 1..=publishes {
            window.push(PublishKey(offset.into()), offset, offset);
            window.trim(offset, &KEEP);
        }
        window
    }

    #[test]
    fn what_ends_first_bounds_it_time_or_number() {
        let by_time = filled(500);
        assert_eq!((by_time.offset(PublishKey(399)), by_time.offset(PublishKey(400))), (None, Some(400)));
        let few = Retention { window_publishes: 3, ..KEEP };
        let mut by_number = filled(50);
        by_number.trim(50, &few);
        assert_eq!((by_number.offset(PublishKey(47)), by_number.offset(PublishKey(48))), (None, Some(48)));
        assert!(!by_number.is_overdue(148, &few) && by_number.is_overdue(149, &few));
    }

    #[test]
    fn what_is_forgotten_takes_no_memory() {
        let long = Retention { window_ms: 10_000, window_publishes: 10_000, ..KEEP };
        let mut window = Window::default();
        for offset in 1..=8_000 {
            window.push(PublishKey(offset.into()), offset, 0);
        }
        let (full, room) = (window.bytes(), window.order.capacity());
        let order = room * size_of::<(PublishKey, u64)>();
        assert!(order + 8_000 * size_of::<(PublishKey, u64)>() * 3 / 2 <= full as usize, "{order} of {full}");
        window.trim(10_001, &long);
        assert!(window.is_empty() && window.bytes() == 0 && window.order.capacity() < room / 100);
    }
}
