//! What clients ask and are told, whatever the protocol: a codec turns frames into [`Command`]s and [`Event`]s into
//! frames, and nothing else differs between protocols.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::{
    id::{ClientId, Epoch, GroupName, Position, SessionId},
    logic::{
        entry::{EphemeralMessage, MemberEvent, Message, Presence, Present},
        request::PresentSession,
    },
    wire::reason::Reason,
};

/// The client's own mark on a request, echoed unchanged: a JSON number or string, as text.
pub type RequestId = Option<Box<str>>;

/// Where the reading of messages begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReadFrom {
    /// With the oldest that is kept.
    Oldest,
    /// After this position.
    After(Position),
    /// So that the last ones are read, as many as are asked for.
    Last,
}

/// What a client asks.
#[derive(Clone, PartialEq, Debug)]
pub enum Command {
    /// The first frame: with a token to take a session up, without one to get one (where that is allowed).
    Hello {
        id: RequestId,
        /// A token, unless it came by cookie or header.
        session: Option<String>,
        /// Which of the session's clients it is; one that says nothing is a new one.
        client: Option<ClientId>,
        /// Where the client stopped in its groups.
        resume: BTreeMap<GroupName, Position>,
    },
    /// Join a group.
    Join {
        id: RequestId,
        group: GroupName,
        /// Where the client stopped.
        since: Option<Position>,
    },
    /// Leave a group.
    Leave { id: RequestId, group: GroupName },
    /// Publish to a group.
    Publish {
        id: RequestId,
        group: GroupName,
        data: Bytes,
        /// Repeats with it are one publish. An ephemeral one has none.
        key: Option<String>,
        /// Told to who is there now, and kept nowhere.
        ephemeral: bool,
    },
    /// Read messages.
    History {
        id: RequestId,
        group: GroupName,
        /// Where it begins.
        from: ReadFrom,
        /// The most that is answered.
        limit: u32,
    },
    /// Read who is present.
    Members {
        id: RequestId,
        group: GroupName,
        /// After this session.
        after: Option<SessionId>,
        /// The most that is answered.
        limit: u32,
    },
    /// I am alive.
    Heartbeat { id: RequestId },
    /// Go on with a later token of the backend's, in place of the one that the session was made of.
    Refresh { id: RequestId, token: String },
}

impl Command {
    /// The client's mark on it.
    pub fn id(&self) -> &RequestId {
        match self {
            Self::Hello { id, .. }
            | Self::Join { id, .. }
            | Self::Leave { id, .. }
            | Self::Publish { id, .. }
            | Self::History { id, .. }
            | Self::Members { id, .. }
            | Self::Heartbeat { id }
            | Self::Refresh { id, .. } => id,
        }
    }
}

/// Place of an error in the client's frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Detail {
    /// The way to the field, from the frame's root: field names and array indexes.
    pub loc: Vec<String>,
    /// What is wrong, for people.
    pub msg: String,
    /// What is wrong, for programs (`missing`, `unknown_field`, `type_error`, `value_error`, …).
    pub kind: &'static str,
}

/// An error to a command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientError {
    /// Of the command.
    pub id: RequestId,
    /// For programs.
    pub reason: Reason,
    /// For people: what is wrong and how to mend it.
    pub message: String,
    pub detail: Vec<Detail>,
    /// When a retry makes sense.
    pub retry_after_ms: Option<u64>,
}

/// By whose word a group was left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeftBy {
    /// The client's own.
    Client,
    /// A backend's, over HTTP.
    Server,
    /// The session's grants do not allow the group any more.
    Grants,
}

impl LeftBy {
    /// As clients are told; nothing where they have asked.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Self::Client => None,
            Self::Server => Some("server"),
            Self::Grants => Some("grants"),
        }
    }
}

/// What a client is told.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// To `hello`.
    Welcome {
        /// Of the hello.
        id: RequestId,
        /// The session's id.
        session: SessionId,
        /// Which of its clients this is: to be said in the next hello.
        client: ClientId,
        user: String,
        /// A token, where the session is new.
        token: Option<String>,
        /// The node's name.
        node: String,
        /// Send something at least this often.
        heartbeat_s: u64,
        /// The groups that are being restored; a `joined` for each follows. The private ones among them.
        groups: Vec<GroupName>,
        /// In how many milliseconds the session ends unless it is refreshed; nothing where it is made of no backend's token.
        expires_in_ms: Option<u64>,
    },
    /// To `join`, and for each restored group. Missed messages follow.
    Joined {
        /// Of the join; nothing for a restored group.
        id: RequestId,
        group: GroupName,
        epoch: Epoch,
        /// The join point: what is later is delivered. Where messages are replayed, they are up to this offset.
        offset: u64,
        /// Everything since `since` follows.
        recovered: bool,
    },
    /// To `leave`, or unasked: nothing of the group follows.
    Left {
        /// Of the leave; nothing where nobody has asked.
        id: RequestId,
        group: GroupName,
        by: LeftBy,
    },
    /// To `publish`.
    Published {
        /// Of the publish.
        id: RequestId,
        group: GroupName,
        /// Where it stands.
        position: Position,
        /// How many nodes hold it.
        copies: u8,
    },
    /// To an ephemeral `publish`: it was passed on.
    PassedOn {
        /// Of the publish.
        id: RequestId,
        group: GroupName,
    },
    /// To `history`.
    History {
        /// Of the request.
        id: RequestId,
        group: GroupName,
        /// The group's head; nothing where there is no such group.
        position: Option<Position>,
        /// Nothing is missing between `since` and the first.
        complete: bool,
        messages: Vec<Message>,
    },
    /// To `members`.
    Members {
        /// Of the request.
        id: RequestId,
        group: GroupName,
        /// By session id.
        members: Vec<PresentSession>,
        /// More after the last.
        more: bool,
    },
    /// To `heartbeat`.
    Heartbeat {
        /// Of the heartbeat.
        id: RequestId,
    },
    /// To `refresh`.
    Refreshed {
        /// Of the request.
        id: RequestId,
        /// In how many milliseconds the session ends now.
        expires_in_ms: u64,
    },
    /// The session ends soon unless it is refreshed.
    Expiring {
        /// In how many milliseconds.
        expires_in_ms: u64,
    },
    /// A message of a joined group.
    Message { group: GroupName, epoch: Epoch, message: Message },
    /// A backend has sent this to the client alone.
    Direct {
        /// JSON text.
        data: Bytes,
    },
    /// Someone came or went, or has other attributes.
    Member { group: GroupName, event: MemberEvent, member: Presence },
    /// How many are there, where that is told instead.
    Presence { group: GroupName, present: Present },
    /// These messages are not to be had any more.
    Gap {
        group: GroupName,
        epoch: Epoch,
        /// The first that is missing.
        from: u64,
        /// The last that is missing.
        to: u64,
        /// `trimmed`, `slow_consumer`.
        reason: &'static str,
    },
    /// A message that has no place: it says nothing of where the log is.
    Ephemeral { group: GroupName, message: EphemeralMessage },
    /// The group's log is another one now; delivery goes on after `offset` in it.
    Reset {
        group: GroupName,
        /// The new log.
        epoch: Epoch,
        /// Where delivery goes on.
        offset: u64,
        reason: &'static str,
    },
    /// The node cannot hear the group's primary: messages may be late.
    Stale { group: GroupName },
    /// The group is heard again, up to here nothing is missing or it was declared so.
    Live { group: GroupName, epoch: Epoch, offset: u64 },
    /// The client attached elsewhere, or had to make room for another. A `bye` follows.
    Displaced,
    /// Something was refused.
    Error(ClientError),
    /// The connection ends.
    Bye {
        /// Why; also whether to come back.
        reason: Reason,
        /// For people.
        words: String,
        /// When to come back.
        after_ms: u64,
    },
}

impl Event {
    /// Where it brings who follows its group; nothing where that stays where it was. `joined` says where the group's log is:
    /// what the client missed follows it.
    pub fn moves_to(&self) -> Option<Position> {
        match self {
            Self::Message { epoch, message, .. } => Some(Position { epoch: *epoch, offset: message.offset }),
            Self::Gap { epoch, to, .. } => Some(Position { epoch: *epoch, offset: *to }),
            Self::Reset { epoch, offset, .. } => Some(Position { epoch: *epoch, offset: *offset }),
            _ => None,
        }
    }
}
