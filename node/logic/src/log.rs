//! A group's log: one epoch, offsets 1, 2, 3, …, a ring of the recent messages and the window in which a repeated
//! publish is recognised.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::entry::{Message, Publisher, Retention};
use crate::id::{Epoch, Position, PublishKey};

/// How many publishes of a group the window remembers at most.
pub const WINDOW_PUBLISHES: usize = 10_000;
/// How long the window remembers a publish, in milliseconds.
pub const WINDOW_MS: u64 = 300_000;

/// One group's messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupLog {
    epoch: Epoch,
    head: u64,
    ring: VecDeque<Message>,
    bytes: u64,
    retention: Retention,
    window: BTreeMap<PublishKey, u64>,
    window_order: VecDeque<(PublishKey, u64)>,
}

/// A [`GroupLog`] as it travels to a learner.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupLogSnapshot {
    epoch: Epoch,
    head: u64,
    ring: Vec<Message>,
    retention: Retention,
    /// Key, offset and time of each publish in the window, oldest first.
    window: Vec<(PublishKey, u64, u64)>,
}

impl GroupLogSnapshot {
    /// Whether it is one that a log can have made. It comes from a peer.
    pub fn is_sound(&self) -> bool {
        let Self { head, ring, window, .. } = self;
        let Some(before) = head.checked_sub(ring.len() as u64) else { return false };
        let contiguous = ring.iter().zip(before + 1..).all(|(message, offset)| message.offset == offset);
        let keys: BTreeSet<_> = window.iter().map(|(key, ..)| key).collect();
        // Far below where the next offset would not fit.
        *head < u64::MAX / 2
            && contiguous
            && keys.len() == window.len()
            && window.iter().all(|(_, offset, _)| offset <= head)
    }
}

/// What a log has after a position.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Since {
    /// Nothing is missing between the position and the first message here.
    pub complete: bool,
    /// Oldest first, contiguous.
    pub messages: Vec<Message>,
}

impl GroupLog {
    /// An empty log.
    pub fn new(epoch: Epoch) -> Self {
        Self {
            epoch,
            head: 0,
            ring: VecDeque::new(),
            bytes: 0,
            retention: Retention { messages: 0, bytes: 0, age_ms: 0 },
            window: BTreeMap::new(),
            window_order: VecDeque::new(),
        }
    }

    /// The id of this log.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The last offset; 0 where nothing was published yet.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// Epoch and head.
    pub fn position(&self) -> Position {
        Position { epoch: self.epoch, offset: self.head }
    }

    /// How many messages are kept.
    pub fn kept(&self) -> u64 {
        self.ring.len() as u64
    }

    /// Whether nothing is kept, neither messages nor publishes to be recognised.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty() && self.window.is_empty()
    }

    /// The newest message's or remembered publish's time.
    pub fn last_at_ms(&self) -> u64 {
        self.window_order.back().map_or(0, |(_, at_ms)| *at_ms)
    }

    /// The offset of an earlier publish with this key, if it is in the window.
    pub fn seen(&self, key: PublishKey) -> Option<u64> {
        self.window.get(&key).copied()
    }

    /// Appends a message, or finds that it is a repeat: then the first one's offset and no message.
    pub fn append(
        &mut self,
        key: PublishKey,
        data: Bytes,
        from: Option<Publisher>,
        at_ms: u64,
        retention: Retention,
    ) -> (u64, Option<Message>) {
        self.trim_window(at_ms);
        if let Some(offset) = self.seen(key) {
            return (offset, None);
        }
        self.head += 1;
        assert!(self.ring.back().is_none_or(|last| last.offset + 1 == self.head), "offsets follow each other");
        let message = Message { offset: self.head, data, from, at_ms };
        self.bytes += message.data.len() as u64;
        self.ring.push_back(message.clone());
        let repeated = self.window.insert(key, self.head);
        assert!(repeated.is_none(), "a key in the window is a repeat");
        self.window_order.push_back((key, at_ms));
        assert_eq!(self.window.len(), self.window_order.len(), "the window's keys and their order are the same");
        self.retention = retention;
        self.trim_ring(at_ms);
        assert!(self.kept() <= self.head, "no more messages are kept than there were");
        (self.head, Some(message))
    }

    /// Drops what is older than the retention and the window allow.
    pub fn trim(&mut self, at_ms: u64) {
        self.trim_window(at_ms);
        self.trim_ring(at_ms);
    }

    /// Whether [`GroupLog::trim`] would drop something.
    pub fn is_overdue(&self, at_ms: u64) -> bool {
        self.ring.front().is_some_and(|oldest| oldest.at_ms.saturating_add(self.retention.age_ms) < at_ms)
            || self.window_order.front().is_some_and(|(_, at)| at.saturating_add(WINDOW_MS) < at_ms)
    }

    /// What follows an offset of this epoch, at most `limit` messages.
    pub fn since(&self, offset: u64, limit: usize) -> Since {
        let first_kept = self.head + 1 - self.kept();
        assert!(self.ring.front().is_none_or(|oldest| oldest.offset == first_kept), "the ring ends at the head");
        let complete = offset <= self.head && offset + 1 >= first_kept;
        let skip = offset.saturating_add(1).saturating_sub(first_kept) as usize;
        Since { complete, messages: self.ring.iter().skip(skip).take(limit).cloned().collect() }
    }

    /// For a learner.
    pub fn snapshot(&self) -> GroupLogSnapshot {
        let window = self.window_order.iter().map(|(key, at_ms)| (*key, self.window[key], *at_ms)).collect();
        GroupLogSnapshot {
            epoch: self.epoch,
            head: self.head,
            ring: self.ring.iter().cloned().collect(),
            retention: self.retention,
            window,
        }
    }

    /// From a primary's snapshot.
    pub fn restore(snapshot: GroupLogSnapshot) -> Self {
        Self {
            epoch: snapshot.epoch,
            head: snapshot.head,
            bytes: snapshot.ring.iter().map(|message| message.data.len() as u64).sum(),
            ring: snapshot.ring.into(),
            retention: snapshot.retention,
            window: snapshot.window.iter().map(|(key, offset, _)| (*key, *offset)).collect(),
            window_order: snapshot.window.into_iter().map(|(key, _, at_ms)| (key, at_ms)).collect(),
        }
    }

    fn trim_ring(&mut self, at_ms: u64) {
        let Retention { messages, bytes, age_ms } = self.retention;
        while let Some(oldest) = self.ring.front() {
            let keep = self.ring.len() <= messages as usize
                && self.bytes <= u64::from(bytes)
                && oldest.at_ms.saturating_add(age_ms) >= at_ms;
            if keep {
                break;
            }
            assert!(oldest.data.len() as u64 <= self.bytes, "what is dropped was counted");
            self.bytes -= oldest.data.len() as u64;
            self.ring.pop_front();
        }
        assert!(!self.ring.is_empty() || self.bytes == 0, "an empty ring has no bytes");
    }

    fn trim_window(&mut self, at_ms: u64) {
        while let Some((key, at)) = self.window_order.front() {
            if self.window_order.len() <= WINDOW_PUBLISHES && at.saturating_add(WINDOW_MS) >= at_ms {
                break;
            }
            let known = self.window.remove(key);
            assert!(known.is_some(), "what is in the window's order is in the window");
            self.window_order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEEP: Retention = Retention { messages: 3, bytes: 100, age_ms: 1_000 };

    fn publish(log: &mut GroupLog, key: u128, at_ms: u64) -> u64 {
        log.append(PublishKey(key), Bytes::from_static(b"{}"), None, at_ms, KEEP).0
    }

    #[test]
    fn a_repeat_gets_the_first_offset() {
        let mut log = GroupLog::new(Epoch(1));
        assert_eq!(publish(&mut log, 7, 0), 1);
        assert_eq!(publish(&mut log, 8, 0), 2);
        assert_eq!(publish(&mut log, 7, 10), 1);
        assert_eq!(log.head(), 2);
        assert_eq!(publish(&mut log, 7, WINDOW_MS + 1), 3, "the window has an end");
    }

    #[test]
    fn since_says_what_is_missing() {
        let mut log = GroupLog::new(Epoch(1));
        assert_eq!(log.since(0, 9), Since { complete: true, messages: vec![] });
        for key in 0..5 {
            publish(&mut log, key, 0);
        }
        let offsets = |since: Since| (since.complete, since.messages.iter().map(|m| m.offset).collect::<Vec<_>>());
        assert_eq!(offsets(log.since(5, 9)), (true, vec![]));
        assert_eq!(offsets(log.since(3, 9)), (true, vec![4, 5]));
        assert_eq!(offsets(log.since(2, 9)), (true, vec![3, 4, 5]));
        assert_eq!(offsets(log.since(2, 1)), (true, vec![3]));
        assert_eq!(offsets(log.since(1, 9)), (false, vec![3, 4, 5]));
        assert_eq!(offsets(log.since(6, 9)), (false, vec![]), "a position that this log never had");
        assert_eq!(offsets(log.since(u64::MAX, 9)), (false, vec![]), "nor this one");
        log.trim(1_001);
        assert_eq!(offsets(log.since(4, 9)), (false, vec![]));
        assert_eq!(offsets(log.since(5, 9)), (true, vec![]));
    }

    #[test]
    fn a_snapshot_that_no_log_made_is_not_sound() {
        let mut log = GroupLog::new(Epoch(1));
        for key in 0..5 {
            publish(&mut log, key, 0);
        }
        let sound = log.snapshot();
        assert!(sound.is_sound());
        let check = |what: &str, spoil: fn(&mut GroupLogSnapshot)| {
            let mut spoiled = sound.clone();
            spoil(&mut spoiled);
            assert!(!spoiled.is_sound(), "{what}");
        };
        check("a hole", |log| log.ring[1].offset += 1);
        check("not up to the head", |log| log.head += 1);
        check("more than there were", |log| log.head = 2);
        check("a key twice", |log| log.window.push(log.window[0]));
        check("a publish to come", |log| log.window[0].1 = 6);
    }

    proptest! {
        #[test]
        fn a_snapshot_is_the_same_log(keys in prop::collection::vec((0u128..20, 0u64..400), 0..60)) {
            let mut log = GroupLog::new(Epoch(9));
            let mut at_ms = 0;
            for (key, after) in keys {
                at_ms += after;
                publish(&mut log, key, at_ms);
                prop_assert!(log.kept() <= 3 && log.bytes <= 100);
            }
            let mut copy = GroupLog::restore(log.snapshot());
            prop_assert_eq!(&copy, &log);
            prop_assert_eq!(publish(&mut copy, 3, at_ms), publish(&mut log, 3, at_ms));
        }
    }
}
