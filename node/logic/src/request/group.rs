//! What is asked about one group, and what is told of it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    entry::{EphemeralMessage, MemberEvent, Message, NewMessage, Presence, Present, Publisher, Retention},
    few::Few,
    id::{Epoch, GroupName, NUMBER_MAX, Position, Seat, SessionId},
};

/// Asked about one group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum GroupRequest {
    /// → [`Published`] or a refusal, one for each message
    Publish(Publish),
    /// → [`JoinPoint`]
    Join(Join),
    /// → [`super::Done`]
    Leave(Leave),
    /// → [`super::Done`]
    UpdateMember(UpdateMember),
    /// → [`History`]
    ReadHistory(ReadHistory),
    /// → [`MemberPage`]
    ReadMembers(ReadMembers),
    /// → [`GroupInfo`], or nothing
    ReadGroup(ReadGroup),
    /// → [`super::Done`]
    PublishEphemeral(PublishEphemeral),
}

/// Orders messages of one publisher, one after the other. Those that are repeats get their first places, whatever is said of the
/// others, which are all ordered or all refused. What is said of all is so at one point of the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Publish {
    /// In their order. What goes in one request is bounded by [`crate::batch`].
    pub messages: Few<NewMessage>,
    /// The client that publishes.
    pub from: Option<Publisher>,
    /// What the group keeps.
    pub retention: Retention,
    /// Refused where fewer copies would hold it, and answered when that number do.
    pub min_copies: u8,
}

/// Passes messages of one publisher on to who follows the group now: nothing is ordered, kept or replicated. At most once: it
/// has no keys, so that a repeat would be another publish, and nobody repeats what may have been carried out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PublishEphemeral {
    /// JSON texts in their order, checked by the gateway that took them in. Bounded as those of a [`Publish`] are.
    pub data: Few<Bytes>,
    /// The client that publishes.
    pub from: Option<Publisher>,
}

/// A client joins: registers the gateway's interest, enters the presence, gives the join point and what was missed since
/// `since`, [`super::PAGE_BYTES`] of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Join {
    /// Who, where the namespace has presence.
    pub member: Option<Presence>,
    /// Where this client stopped.
    pub since: Option<Position>,
}

/// A client leaves the presence.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Leave {
    pub seat: Seat,
}

/// A client's attributes are others, or it is to be shown again: nothing where more is known of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UpdateMember {
    pub member: Presence,
    /// It enters the presence where it is not there by this attachment; else that is left so.
    pub enters: bool,
}

/// Reads messages, oldest first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReadHistory {
    /// After this position; nothing for the oldest kept.
    pub since: Option<Position>,
    /// At most this many messages.
    pub limit: u32,
}

/// Reads who is present, by session id.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReadMembers {
    /// After this session.
    pub after: Option<SessionId>,
    /// At most this many.
    pub limit: u32,
}

/// Reads about the group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReadGroup;

/// A message has its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Published {
    /// Where it stands.
    pub position: Position,
    /// How many nodes hold it.
    pub copies: u8,
}

/// A group's join point for a gateway or a client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JoinPoint {
    pub group: GroupName,
    /// The log it is in now.
    pub epoch: Epoch,
    /// The log's last offset: what follows is delivered.
    #[serde(deserialize_with = "crate::id::number")]
    pub head: u64,
    /// The last offset that this answer accounts for. Before `head` where more was missed than one answer carries: the rest
    /// is to be asked for, since there.
    #[serde(deserialize_with = "crate::id::number")]
    pub up_to: u64,
    /// Every message after `since` up to `up_to` is in `messages` (always so without a `since`).
    pub recovered: bool,
    /// What was missed and is still there, oldest first, contiguous, ending at `up_to` (or empty).
    pub messages: Vec<Message>,
    /// Who is there, with the client that joins.
    pub present: Present,
}

impl JoinPoint {
    /// Whether a log can be so: what a primary says is looked at before a feed counts on it.
    pub fn is_sound(&self) -> bool {
        let contiguous = |pair: &[Message]| pair[0].offset.checked_add(1) == Some(pair[1].offset);
        self.head <= NUMBER_MAX
            && self.up_to <= self.head
            && self.messages.windows(2).all(contiguous)
            && self.messages.first().is_none_or(|first| first.offset > 0)
            && self.messages.last().is_none_or(|last| last.offset <= self.up_to)
    }

    /// Whether there is more than this answer carries.
    pub fn is_partial(&self) -> bool {
        self.up_to < self.head
    }
}

/// Messages of a group; none where there is no such group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct History {
    /// The log, its head; nothing where there is no such group.
    pub position: Option<Position>,
    /// No message between `since` and the first one here is missing.
    pub complete: bool,
    /// Oldest first.
    pub messages: Vec<Message>,
}

/// Who is present.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MemberPage {
    /// By session id.
    pub members: Vec<PresentSession>,
    /// There are more after the last.
    pub more: bool,
}

/// A session that is present in a group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PresentSession {
    /// That of its client that attached last.
    pub member: Presence,
    /// How many of its clients are.
    pub clients: u32,
}

/// What is said about a group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupInfo {
    pub group: GroupName,
    pub epoch: Epoch,
    /// Its last offset.
    #[serde(deserialize_with = "crate::id::number")]
    pub head: u64,
    /// How many messages are kept.
    pub kept: u64,
    pub present: Present,
}

/// Told of one group by its slot's primary, unasked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum GroupPush {
    /// Committed messages, which follow each other in the log.
    Deliver { epoch: Epoch, messages: Few<Message> },
    /// Someone entered the presence, or left it, or has other attributes.
    Member {
        event: MemberEvent,
        member: Presence,
        /// With it, or without it.
        present: Present,
    },
    /// Messages that have no place in the log, in the order of their publisher.
    Ephemeral { messages: Few<EphemeralMessage> },
}

/// An ephemeral message does without where more than one part in this number of what may wait on its way does: what is kept
/// has the rest.
pub const EPHEMERAL_PART: usize = 4;

impl GroupPush {
    /// How many messages of it may be left out where much waits: nobody asks for them again.
    pub fn ephemeral(&self) -> usize {
        match self {
            Self::Ephemeral { messages } => messages.len(),
            Self::Deliver { .. } | Self::Member { .. } => 0,
        }
    }
}
