//! What clients make a node hold, in bytes, and how pressed for memory those are that hold a slot.
//!
//! Each part of a slot's state knows its bytes, and the state their sum, which a recount must give again. A node compares the
//! sum of all that it holds with its budget, and says how pressed it is. From [`Level::Tight`] on a slot's primary orders the
//! oldest messages out of every copy; at [`Level::Full`] it refuses what would be held besides. The most pressed of those
//! that hold the slot counts: what one of them cannot hold none of them may.

use std::{
    collections::BTreeMap,
    ops::{Add, Sub},
};

use serde::{Deserialize, Serialize};

use crate::id::Member;

/// From this share of its budget on a node is [`Level::Tight`], in percent.
pub const TIGHT_PERCENT: u64 = 80;
/// A pressed node says so again after this time: a word may be lost.
const SAY_AGAIN_MS: u64 = 1_000;
/// What another member has said counts for this time.
const SAID_MS: u64 = 5_000;

/// How pressed for memory a node is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub enum Level {
    /// It holds less than [`TIGHT_PERCENT`] of its budget.
    #[default]
    Calm,
    /// The oldest messages go.
    Tight,
    /// Its budget is used up: nothing new is taken.
    Full,
}

impl Level {
    /// Of a node that holds this number of bytes.
    pub fn of(held_bytes: u64, budget_bytes: u64) -> Self {
        if held_bytes >= budget_bytes {
            Self::Full
        } else if held_bytes >= budget_bytes / 100 * TIGHT_PERCENT {
            Self::Tight
        } else {
            Self::Calm
        }
    }
}

/// When a node tells the others how pressed it is: at every change, and again while it is pressed.
#[derive(Clone, Debug, Default)]
pub struct Teller {
    said: Level,
    said_ms: u64,
}

impl Teller {
    /// What is to be told to all others now, if anything.
    pub fn look(&mut self, mono_ms: u64, level: Level) -> Option<Level> {
        let again = level != Level::Calm && self.said_ms + SAY_AGAIN_MS <= mono_ms;
        if level == self.said && !again {
            return None;
        }
        (self.said, self.said_ms) = (level, mono_ms);
        Some(level)
    }
}

/// What a slot has heard of the memory of its node and of others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pressure {
    own: Level,
    /// Those that are pressed, and until when that counts.
    others: BTreeMap<Member, (Level, u64)>,
}

impl Pressure {
    /// Of this slot's own node.
    pub(crate) fn is_now(&mut self, level: Level) {
        self.own = level;
    }

    /// As another member says.
    pub(crate) fn hear(&mut self, mono_ms: u64, of: Member, level: Level) {
        self.others.retain(|_, (_, until_ms)| mono_ms < *until_ms);
        if level == Level::Calm {
            self.others.remove(&of);
        } else {
            self.others.insert(of, (level, mono_ms + SAID_MS));
        }
    }

    /// Whether nobody is known to be pressed.
    pub(crate) fn is_calm(&self) -> bool {
        self.own == Level::Calm && self.others.is_empty()
    }

    /// The greatest among this node and these.
    pub(crate) fn greatest<'a>(&self, mono_ms: u64, holders: impl Iterator<Item = &'a Member>) -> Level {
        if self.others.is_empty() {
            return self.own;
        }
        let said =
            |holder| self.others.get(holder).filter(|(_, until_ms)| mono_ms < *until_ms).map(|(level, _)| *level);
        holders.filter_map(said).fold(self.own, Level::max)
    }
}

/// What a slot's state takes, in bytes, about. The same for equal states.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StateBytes {
    /// Messages that are kept.
    pub history: u64,
    /// The keys by which repeated publishes are recognised.
    pub repeats: u64,
    /// The groups themselves, and who is present in them.
    pub groups: u64,
    /// Sessions in memory.
    pub sessions: u64,
}

impl StateBytes {
    /// All of it.
    pub fn total(&self) -> u64 {
        let Self { history, repeats, groups, sessions } = self;
        history + repeats + groups + sessions
    }
}

impl Add for StateBytes {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            history: self.history + other.history,
            repeats: self.repeats + other.repeats,
            groups: self.groups + other.groups,
            sessions: self.sessions + other.sessions,
        }
    }
}

impl Sub for StateBytes {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            history: self.history - other.history,
            repeats: self.repeats - other.repeats,
            groups: self.groups - other.groups,
            sessions: self.sessions - other.sessions,
        }
    }
}

/// What a node's copy of a slot takes, in bytes, about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CopyBytes {
    pub state: StateBytes,
    /// Entries that are not known to be committed.
    pub uncommitted: u64,
    /// Committed entries that are kept for a member that lacks them.
    pub retained: u64,
    /// Pieces of a snapshot that is not here as a whole.
    pub incoming: u64,
}

impl CopyBytes {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.state.total() + self.uncommitted + self.retained + self.incoming
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;

    fn member(name: &str) -> Member {
        Member { node: NodeId::parse(name).unwrap(), generation: 1 }
    }

    #[test]
    fn a_node_is_as_pressed_as_its_budget_says() {
        let level = |held| Level::of(held, 1_000);
        assert_eq!((level(0), level(799)), (Level::Calm, Level::Calm));
        assert_eq!((level(800), level(999)), (Level::Tight, Level::Tight));
        assert_eq!((level(1_000), level(u64::MAX)), (Level::Full, Level::Full));
    }

    #[test]
    fn others_are_told_of_a_change_at_once_and_of_pressure_again() {
        let mut teller = Teller::default();
        assert_eq!(teller.look(5_000, Level::Calm), None);
        assert_eq!(teller.look(5_050, Level::Tight), Some(Level::Tight));
        assert_eq!(teller.look(5_100, Level::Tight), None);
        assert_eq!(teller.look(6_050, Level::Tight), Some(Level::Tight));
        assert_eq!(teller.look(6_100, Level::Full), Some(Level::Full));
        assert_eq!(teller.look(6_150, Level::Calm), Some(Level::Calm));
        assert_eq!(teller.look(9_000, Level::Calm), None);
    }

    #[test]
    fn the_most_pressed_of_those_that_hold_the_slot_counts() {
        let (one, other, stranger) = (member("a"), member("b"), member("c"));
        let holders = [one.clone(), other.clone()];
        let mut pressure = Pressure::default();
        pressure.hear(0, stranger, Level::Full);
        assert_eq!(pressure.greatest(1, holders.iter()), Level::Calm, "it holds nothing of this");
        pressure.hear(0, other.clone(), Level::Tight);
        assert_eq!(pressure.greatest(1, holders.iter()), Level::Tight);
        pressure.is_now(Level::Full);
        assert_eq!(pressure.greatest(1, holders.iter()), Level::Full);
        pressure.is_now(Level::Calm);
        assert_eq!(pressure.greatest(SAID_MS, holders.iter()), Level::Calm, "it has not said so again");
        pressure.hear(SAID_MS, other.clone(), Level::Full);
        pressure.hear(SAID_MS, other, Level::Calm);
        assert_eq!(pressure.greatest(SAID_MS, holders.iter()), Level::Calm);
    }
}
