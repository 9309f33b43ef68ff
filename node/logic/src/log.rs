//! A group's log: one epoch, offsets 1, 2, 3, …, a ring of the recent messages and the window in which a repeated
//! publish is recognised.

mod window;

use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use self::window::Window;
use super::entry::{Message, Publisher, Retention};
use crate::id::{Epoch, NUMBER_MAX, Position, PublishKey};

/// A ring with room for more than this number of messages gives back what it does not need.
const SMALL: usize = 64;

/// One group's messages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupLog {
    epoch: Epoch,
    head: u64,
    ring: VecDeque<Message>,
    /// Of the messages' data.
    bytes: u64,
    /// What the messages take.
    held_bytes: u64,
    retention: Retention,
    window: Window,
}

/// A [`GroupLog`] as it travels to a learner.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupLogSnapshot {
    epoch: Epoch,
    head: u64,
    ring: Vec<Message>,
    retention: Retention,
    /// Key and time of each publish in the window, oldest first. The last one stands at the head.
    window: Vec<(PublishKey, u64)>,
}

impl GroupLogSnapshot {
    /// Whether it is one that a log can have made. It comes from a peer.
    pub fn is_sound(&self) -> bool {
        let Self { head, ring, window, .. } = self;
        if *head > NUMBER_MAX {
            return false;
        }
        let Some(before) = head.checked_sub(ring.len() as u64) else { return false };
        let contiguous = ring.iter().zip(before + 1..).all(|(message, offset)| message.offset == offset);
        let keys: BTreeSet<_> = window.iter().map(|(key, _)| key).collect();
        contiguous && keys.len() == window.len() && window.len() as u64 <= *head
    }

    /// Adds what follows of the same log. Whether it is of the same log.
    pub(crate) fn extend(&mut self, more: Self) -> bool {
        let is_same = (self.epoch, self.head, self.retention) == (more.epoch, more.head, more.retention);
        if is_same {
            self.ring.extend(more.ring);
            self.window.extend(more.window);
        }
        is_same
    }

    /// Adds [`GroupLog::message`].
    pub(crate) fn push_message(&mut self, message: Message) {
        self.ring.push(message);
    }

    /// Adds [`GroupLog::key`].
    pub(crate) fn push_key(&mut self, key: (PublishKey, u64)) {
        self.window.push(key);
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
            held_bytes: 0,
            retention: Retention { messages: 0, bytes: 0, age_ms: 0, window_ms: 0, window_publishes: 0 },
            window: Window::default(),
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
        self.window.last_at_ms().unwrap_or(0)
    }

    /// The messages that are kept, oldest first.
    pub fn messages(&self) -> impl Iterator<Item = &Message> {
        self.ring.iter()
    }

    /// What the messages take, in bytes, about.
    pub fn history_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// What the window takes, in bytes, about.
    pub fn window_bytes(&self) -> u64 {
        self.window.bytes()
    }

    /// Whether it keeps a message that is not later than this.
    pub fn has_until(&self, until_ms: u64) -> bool {
        self.ring.front().is_some_and(|oldest| oldest.at_ms <= until_ms)
    }

    /// Drops the oldest messages, up to the first that is later than this. How many, and their bytes. The window stays: a
    /// repeat is recognised for as long as was promised.
    pub fn shed(&mut self, until_ms: u64) -> (u64, u64) {
        let (kept, held_bytes) = (self.kept(), self.held_bytes);
        while self.ring.front().is_some_and(|oldest| oldest.at_ms <= until_ms) {
            self.drop_oldest();
        }
        self.give_back();
        (kept - self.kept(), held_bytes - self.held_bytes)
    }

    /// The offset of an earlier publish with this key, if it is in the window.
    pub fn seen(&self, key: PublishKey) -> Option<u64> {
        self.window.offset(key)
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
        self.retention = retention;
        self.window.trim(at_ms, &retention);
        if let Some(offset) = self.seen(key) {
            return (offset, None);
        }
        self.head += 1;
        assert!(self.ring.back().is_none_or(|last| last.offset + 1 == self.head), "offsets follow each other");
        let message = Message { offset: self.head, data, from, at_ms };
        self.bytes += message.data.len() as u64;
        self.held_bytes += message.held_bytes();
        self.ring.push_back(message.clone());
        self.window.push(key, self.head, at_ms);
        self.trim(at_ms);
        assert!(self.kept() <= self.head, "no more messages are kept than there were");
        (self.head, Some(message))
    }

    /// Drops what is older than the retention and the window allow.
    pub fn trim(&mut self, at_ms: u64) {
        self.window.trim(at_ms, &self.retention);
        self.trim_ring(at_ms);
    }

    /// Whether [`GroupLog::trim`] would drop something.
    pub fn is_overdue(&self, at_ms: u64) -> bool {
        self.ring.front().is_some_and(|oldest| oldest.at_ms.saturating_add(self.retention.age_ms) < at_ms)
            || self.window.is_overdue(at_ms, &self.retention)
    }

    /// What follows an offset of this epoch, at most `limit` messages.
    pub fn since(&self, offset: u64, limit: usize) -> Since {
        let first_kept = self.head + 1 - self.kept();
        assert!(self.ring.front().is_none_or(|oldest| oldest.offset == first_kept), "the ring ends at the head");
        let complete = offset <= self.head && offset + 1 >= first_kept;
        let skip = offset.saturating_add(1).saturating_sub(first_kept) as usize;
        Since { complete, messages: self.ring.iter().skip(skip).take(limit).cloned().collect() }
    }

    /// For a learner: the log without its messages and keys, which follow.
    pub(crate) fn bare(&self) -> GroupLogSnapshot {
        let (epoch, head, retention) = (self.epoch, self.head, self.retention);
        GroupLogSnapshot { epoch, head, ring: Vec::new(), retention, window: Vec::new() }
    }

    /// The `nth` of the messages that are kept.
    pub(crate) fn message(&self, nth: usize) -> Option<&Message> {
        self.ring.get(nth)
    }

    /// Key and time of the `nth` publish in the window.
    pub(crate) fn key(&self, nth: usize) -> Option<(PublishKey, u64)> {
        self.window.nth(nth)
    }

    /// From a primary's snapshot.
    pub fn restore(snapshot: GroupLogSnapshot) -> Self {
        Self {
            epoch: snapshot.epoch,
            head: snapshot.head,
            bytes: snapshot.ring.iter().map(|message| message.data.len() as u64).sum(),
            held_bytes: snapshot.ring.iter().map(Message::held_bytes).sum(),
            ring: snapshot.ring.into(),
            retention: snapshot.retention,
            window: Window::restore(snapshot.head, snapshot.window),
        }
    }

    fn trim_ring(&mut self, at_ms: u64) {
        let Retention { messages, bytes, age_ms, .. } = self.retention;
        while let Some(oldest) = self.ring.front() {
            let keep = self.ring.len() <= messages as usize
                && self.bytes <= u64::from(bytes)
                && oldest.at_ms.saturating_add(age_ms) >= at_ms;
            if keep {
                break;
            }
            self.drop_oldest();
        }
        self.give_back();
        assert!(!self.ring.is_empty() || (self.bytes, self.held_bytes) == (0, 0), "an empty ring has no bytes");
    }

    fn drop_oldest(&mut self) {
        let Some(oldest) = self.ring.pop_front() else { return };
        assert!(oldest.data.len() as u64 <= self.bytes, "what is dropped was counted");
        self.bytes -= oldest.data.len() as u64;
        self.held_bytes -= oldest.held_bytes();
    }

    /// A ring with far more room than it needs gives it back.
    fn give_back(&mut self) {
        if self.ring.is_empty() {
            self.ring = VecDeque::new();
        } else if self.ring.capacity() > SMALL && self.ring.len() < self.ring.capacity() / 4 {
            self.ring.shrink_to(2 * self.ring.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEEP: Retention =
        Retention { messages: 3, bytes: 100, age_ms: 1_000, window_ms: 5_000, window_publishes: 10 };

    fn snapshot(log: &GroupLog) -> GroupLogSnapshot {
        let mut whole = log.bare();
        (0..).map_while(|nth| log.message(nth)).for_each(|message| whole.push_message(message.clone()));
        (0..).map_while(|nth| log.key(nth)).for_each(|key| whole.push_key(key));
        whole
    }

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
        assert_eq!(publish(&mut log, 7, KEEP.window_ms + 1), 3, "the window ends by time");
        for key in 20..20 + u128::from(KEEP.window_publishes) {
            assert_eq!(publish(&mut log, 7, KEEP.window_ms + 1), 3);
            publish(&mut log, key, KEEP.window_ms + 1);
        }
        assert_eq!(publish(&mut log, 7, KEEP.window_ms + 1), 14, "and by the number of publishes");
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
        let sound = snapshot(&log);
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
        check("more publishes than there were", |log| log.window.extend([(PublishKey(8), 0), (PublishKey(9), 0)]));
        check("an offset that none can follow", |log| {
            log.head = u64::MAX;
            (1_u64..).zip(&mut log.ring).for_each(|(nth, message)| message.offset = u64::MAX - 3 + nth);
        });
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
            let mut copy = GroupLog::restore(snapshot(&log));
            prop_assert_eq!(&copy, &log);
            prop_assert_eq!(publish(&mut copy, 3, at_ms), publish(&mut log, 3, at_ms));
        }
    }
}
