//! What publishers and subscribers saw, and the checker that proves the README's promises from it.
//!
//! A test (or the simulator) writes down each publish with its attempts and each connection with what it was told, in
//! order. [`History::check`] then proves S1 to S8, or returns the first violation with its surroundings. Sorting is all
//! that it costs: n log n.
//!
//! What the logs must keep to: payloads are unique (one for each publish, the same for its repeats), times come from one
//! clock, and a connection's events stand in the order in which they arrived.

mod check;
mod displaced;
mod ephemeral;
mod print;
mod stream;
#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc};

use roost_logic::id::{Epoch, Position};

/// All that was logged.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// What was published.
    pub publishes: Vec<PublishLog>,
    /// What was published to be kept nowhere.
    pub ephemerals: Vec<EphemeralLog>,
    /// What connections were told.
    pub connections: Vec<ConnectionLog>,
    /// What was read from histories.
    pub replays: Vec<Replay>,
    /// Every publish is in `publishes`, or in `ephemerals`: a message that none of them explains is a violation.
    pub publishes_complete: bool,
}

/// One publish, with its repeats.
#[derive(Clone, Debug)]
pub struct PublishLog {
    /// Who: a session, or a server.
    pub publisher: Arc<str>,
    /// To which group.
    pub group: Arc<str>,
    /// The idempotency key.
    pub key: Option<Box<str>>,
    /// What: the data as JSON text, unique.
    pub payload: Arc<str>,
    /// At least one, in the order in which they were sent.
    pub attempts: Vec<Attempt>,
}

/// One sending of a publish.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    /// The publisher's connection, by its number.
    pub connection: u32,
    /// Counts what was sent on this connection.
    pub sequence: u64,
    /// When it was handed to the connection, in microseconds.
    pub sent_us: u64,
    /// When the answer was there, or the hope for it given up.
    pub answered_us: u64,
    pub outcome: Outcome,
}

/// How a publish was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It stands there.
    Acked {
        at: Position,
        /// How many nodes hold it.
        copies: u8,
    },
    /// It is certainly not accepted.
    Refused,
    /// It may have been accepted.
    Unknown,
}

/// One ephemeral publish, which is never repeated.
#[derive(Clone, Debug)]
pub struct EphemeralLog {
    /// Who: a session, or a server.
    pub publisher: Arc<str>,
    /// To which group.
    pub group: Arc<str>,
    /// What: the data as JSON text, unique.
    pub payload: Arc<str>,
    /// When it was handed to the connection, in microseconds.
    pub sent_us: u64,
    /// It was certainly not passed on.
    pub is_refused: bool,
}

/// One connection of a client, from its welcome to its end.
#[derive(Clone, Debug)]
pub struct ConnectionLog {
    pub client: Arc<str>,
    /// The client's count of its connections.
    pub number: u32,
    /// The node it was made to.
    pub node: Arc<str>,
    /// Whose session it was given; nothing where it has none.
    pub welcome: Option<Welcome>,
    /// What it was told, in order.
    pub events: Vec<Stamped>,
    /// It was open to the end, and the end came only after everything had time to arrive: what was acknowledged by
    /// then must have been delivered.
    pub settled: bool,
}

/// A connection was given a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Welcome {
    pub session: Arc<str>,
    /// Which client of the session it is.
    pub client: Arc<str>,
    /// When its client asked for it, in microseconds.
    pub asked_us: u64,
    /// When the client knew, in microseconds.
    pub at_us: u64,
}

/// Something that a connection was told.
#[derive(Clone, Debug)]
pub struct Stamped {
    /// When, in microseconds.
    pub at_us: u64,
    pub seen: Seen,
}

/// What a connection can be told that matters here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Seen {
    /// A subscription begins.
    Joined {
        group: Arc<str>,
        /// Where the client said it stopped.
        since: Option<Position>,
        /// The join point.
        at: Position,
        /// Everything after `since` follows.
        recovered: bool,
    },
    Message {
        group: Arc<str>,
        /// Where it stands.
        at: Position,
        /// Its data as JSON text.
        payload: Arc<str>,
    },
    /// A message that has no place.
    Ephemeral {
        group: Arc<str>,
        /// Its data as JSON text.
        payload: Arc<str>,
    },
    /// Messages that will not come, both ends included.
    Gap { group: Arc<str>, epoch: Epoch, from: u64, to: u64 },
    /// The group's log is another one now.
    Reset {
        group: Arc<str>,
        /// Delivery goes on after this.
        to: Position,
    },
    /// The group's primary is not heard at the moment.
    Stale { group: Arc<str> },
    /// The group is heard again; up to here everything was delivered or declared missing.
    Live {
        group: Arc<str>,
        /// Up to here.
        at: Position,
    },
    /// The subscription is over.
    Left { group: Arc<str> },
    /// The client attached elsewhere, or had to go: nothing more may come.
    Displaced,
    /// The connection ended.
    Closed,
}

impl Seen {
    /// The group that it is about; none for what concerns the whole connection.
    pub fn group(&self) -> Option<&Arc<str>> {
        match self {
            Self::Joined { group, .. }
            | Self::Message { group, .. }
            | Self::Ephemeral { group, .. }
            | Self::Gap { group, .. }
            | Self::Reset { group, .. }
            | Self::Stale { group }
            | Self::Live { group, .. }
            | Self::Left { group } => Some(group),
            Self::Displaced | Self::Closed => None,
        }
    }
}

/// An answer to a history request.
#[derive(Clone, Debug)]
pub struct Replay {
    /// Who asked whom, for people.
    pub what: String,
    pub group: Arc<str>,
    pub epoch: Epoch,
    /// When it arrived, in microseconds.
    pub at_us: u64,
    /// Offset and data, oldest first.
    pub messages: Vec<(u64, Arc<str>)>,
}

/// The promises, by their names in the README.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rule {
    /// At one position nobody ever sees two different messages.
    S1Agreement,
    /// Consecutive offsets, any break announced first.
    S2Contiguity,
    /// What was acknowledged is there, what was refused is not, and nothing is invented.
    S3Acknowledged,
    /// A publish and its repeats have one offset.
    S4Duplicate,
    /// One order, which keeps each session's own and that of acknowledged publishes.
    S5Order,
    /// A resume yields everything later or says that it doesn't.
    S6Resume,
    /// A displaced connection receives nothing more: nothing after `displaced`, and nothing that was sent after another
    /// connection was welcomed with its session as the same client.
    S7Displaced,
    /// After the join point everything is delivered or declared missing.
    S8JoinPoint,
    /// What is ephemeral comes at most once on a connection, to who is in the group, and is kept nowhere.
    Ephemeral,
}

/// The first thing that was not as promised.
#[derive(Clone, Debug)]
pub struct Violation {
    pub rule: Rule,
    /// When it showed, in microseconds.
    pub at_us: u64,
    /// What was wrong.
    pub what: String,
    /// What was logged around it.
    pub around: Vec<String>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} violated at {:.6} s: {}", self.rule, self.at_us as f64 / 1e6, self.what)?;
        self.around.iter().try_for_each(|line| write!(f, "\n    {line}"))
    }
}

impl std::error::Error for Violation {}

/// What a history without violation contains, for tests to see that something happened, and that what must not happen
/// did not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Publishes with a position.
    pub acked: usize,
    /// Publishes of which every attempt was refused.
    pub refused: usize,
    /// Publishes whose outcome their publisher never learned.
    pub unknown: usize,
    /// Attempts beyond the first.
    pub repeats: usize,
    /// The fewest copies in any acknowledgement.
    pub fewest_copies: Option<u8>,
    /// Messages delivered to connections.
    pub delivered: usize,
    /// Ephemeral messages delivered to connections.
    pub ephemerals: usize,
    /// Connections.
    pub connections: usize,
    /// Joins with a position to go on from.
    pub resumes: usize,
    /// Those answered `recovered: false`.
    pub not_recovered: usize,
    /// Gaps declared.
    pub gaps: usize,
    /// Resets declared.
    pub resets: usize,
}

impl History {
    /// Proves the promises, or returns the earliest violation.
    pub fn check(&self) -> Result<Summary, Violation> {
        check::check(self)
    }

    /// Takes in what another part of a test has logged.
    pub fn absorb(&mut self, other: Self) {
        self.publishes.extend(other.publishes);
        self.ephemerals.extend(other.ephemerals);
        self.connections.extend(other.connections);
        self.replays.extend(other.replays);
    }
}
