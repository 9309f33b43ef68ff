//! Explores replication exhaustively: every state that three nodes, each with the product's own
//! [`Replica`](roost_logic::replication::Replica) of one slot, can reach in a bounded [`Scope`].
//!
//! Bounded are the messages that are published, the changes of the map and the crashes. Everything else may happen at
//! any moment and in any order:
//! - A frame between two members arrives at any time, after any other, any number of times, or never. That is more than a
//!   connection does: so no resend, reset or pause needs a step of its own, and a repeat of a frame changes nothing.
//! - A member learns of a confirmed map at any time, and of any later one than it knows. A member that stands still is
//!   one that the others leave behind.
//! - Whatever the planner makes of any belief about the nodes, and of any of the requests that were made, may become the
//!   next map, if the version is still the one from which it was made. The proposer is not told: the outcome of a change
//!   is known to whoever reads the map.
//! - Every time-out is over at once. A member says after each step all that it could ever say in its state. Since a frame
//!   may be late for ever, to say more takes nothing away.
//! - A snapshot comes in pieces, of which some may be of an earlier one than the others.
//!
//! `copies` steps the real code and remembers each step, `proposals` asks the planner, `world` knows what can happen,
//! `checks` what must hold, `search` goes through all of it breadth first, `trace` tells the shortest way to a violation.

mod checks;
mod copies;
mod proposals;
mod search;
mod starts;
mod table;
mod trace;
mod world;

use std::fmt;

pub use search::{Found, Progress, Report, explore};

/// How far the exploration goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scope {
    /// Where it begins.
    pub start: Start,
    /// At most this many messages are published.
    pub messages: u8,
    /// The map changes at most this many times.
    pub changes: u8,
    /// At most this many processes crash.
    pub crashes: u8,
    /// A node that crashed may start again, as a member that holds nothing.
    pub restarts: bool,
    /// After this many states it stops, and says that it is not complete.
    pub states: usize,
}

/// The map at the beginning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// One node holds the slot alone.
    Alone,
    /// Two nodes are in-sync. The third holds nothing.
    Settled,
    /// As [`Start::Settled`], and the store has just taken a map that makes the third node a learner. Nobody knows it yet.
    Learning,
    /// All three are in-sync.
    Three,
}

impl Start {
    /// All of them, with their names.
    pub const ALL: [(&'static str, Self); 4] =
        [("alone", Self::Alone), ("settled", Self::Settled), ("learning", Self::Learning), ("three", Self::Three)];
}

impl Scope {
    /// A scope without a bound on its states.
    pub const fn new(start: Start, messages: u8, changes: u8, crashes: u8) -> Self {
        Self { start, messages, changes, crashes, restarts: false, states: usize::MAX }
    }

    /// The same, where nodes that crashed start again.
    #[must_use]
    pub const fn with_restarts(self) -> Self {
        Self { restarts: true, ..self }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, messages, changes, crashes, restarts, .. } = self;
        let start = Start::ALL.iter().find(|(_, other)| other == start).map_or("", |(name, _)| name);
        write!(f, "--start {start} --messages {messages} --changes {changes} --crashes {crashes}")?;
        if *restarts { f.write_str(" --restarts") } else { Ok(()) }
    }
}

/// What every change is checked with: some six million states.
pub const SCOPES: [Scope; 4] = [
    Scope::new(Start::Alone, 2, 2, 1).with_restarts(),
    Scope::new(Start::Settled, 1, 2, 1).with_restarts(),
    Scope::new(Start::Learning, 1, 2, 1),
    Scope::new(Start::Three, 2, 1, 0),
];
