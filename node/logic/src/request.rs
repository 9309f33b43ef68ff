//! What a gateway asks of a slot's primary, and what it is told. Every request may be repeated: a retry after a lost
//! answer or a take-over has the effect of one.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::entry::{EndReason, Message, Presence, Publisher, Retention, SessionChange, SessionRecord};
use crate::id::{AttachmentNumber, Epoch, GroupName, Position, PublishKey, SessionId};

/// The messages in the answer to one [`SlotRequest::Join`] have about so many bytes, the last of them apart.
pub const PAGE_BYTES: usize = 16 << 10;

/// What a message takes beside its data, about; counted with it where answers are bounded.
pub const MESSAGE_OVERHEAD_BYTES: usize = 256;

/// A gateway's claim to a group's messages from a position on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Interest {
    /// The group.
    pub group: GroupName,
    /// The last message that the gateway has delivered; nothing for a new interest, from the head on.
    pub since: Option<Position>,
}

/// Asked of the primary of one slot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SlotRequest {
    /// The gateway wants these groups' messages, from now on and since its positions. → `Registered`
    Register {
        /// All of one slot.
        interests: Vec<Interest>,
    },
    /// The gateway has no subscriber of these groups any more. → `Done`
    Unregister {
        /// All of one slot.
        groups: Vec<GroupName>,
    },
    /// Orders a message. → `Published`
    Publish {
        /// The group.
        group: GroupName,
        /// Repeats with it get the same answer.
        key: PublishKey,
        /// JSON text.
        data: Bytes,
        /// The client that publishes.
        from: Option<Publisher>,
        /// What the group keeps.
        retention: Retention,
        /// Refused where fewer copies would hold it.
        min_copies: u8,
    },
    /// A session joins a group: registers the gateway's interest, enters the presence, gives the join point and what was
    /// missed since `since`, [`PAGE_BYTES`] of it. → `Joined`
    Join {
        /// The group.
        group: GroupName,
        /// Who, where the namespace has presence.
        member: Option<Presence>,
        /// Where this client stopped.
        since: Option<Position>,
    },
    /// A session leaves a group's presence. → `Done`
    Leave {
        /// The group.
        group: GroupName,
        /// Who.
        session: SessionId,
        /// Up to this attachment.
        attachment: AttachmentNumber,
    },
    /// Reads messages, oldest first. → `History`
    History {
        /// The group.
        group: GroupName,
        /// After this position; nothing for the oldest kept.
        since: Option<Position>,
        /// At most so many.
        limit: u32,
    },
    /// Reads who is present, by session id. → `Members`
    Members {
        /// The group.
        group: GroupName,
        /// After this session.
        after: Option<SessionId>,
        /// At most so many.
        limit: u32,
    },
    /// Reads about a group. → `Group`
    Group {
        /// The group.
        group: GroupName,
    },
    /// Creates a session; stored before the answer. → `Session`
    CreateSession {
        /// Its record.
        record: SessionRecord,
    },
    /// Reads a session. → `Session`
    ReadSession {
        /// Which.
        session: SessionId,
    },
    /// Changes a session over HTTP; stored before the answer. → `Session`
    ChangeSession {
        /// Which.
        session: SessionId,
        /// What.
        change: SessionChange,
    },
    /// Ends a session; stored before the answer. → `Done`
    EndSession {
        /// Which.
        session: SessionId,
    },
    /// A client takes the session; answered when the earlier attachment is gone or cannot be reached. → `Attached`
    Attach {
        /// Which.
        session: SessionId,
        /// The gateway's number for the connection.
        connection: u64,
        /// For how many milliseconds its client has been waiting: more than a moment where this is not the first attempt.
        waited_ms: u32,
    },
    /// The client's socket is gone. → `Done`
    Detach {
        /// Which.
        session: SessionId,
        /// Which attachment.
        attachment: AttachmentNumber,
    },
    /// The gateway still has these attachments (sent every few seconds). → `Done`; displaced ones are told so by a push.
    Renew {
        /// Session, attachment and connection, all of one slot.
        attachments: Vec<(SessionId, AttachmentNumber, u64)>,
    },
    /// The gateway has cut this attachment off. → `Done`
    ConfirmDisplaced {
        /// Which.
        session: SessionId,
        /// This attachment and earlier ones.
        attachment: AttachmentNumber,
    },
    /// The client joined a group: the record is to have it. → `Done`
    SessionJoin {
        /// Which.
        session: SessionId,
        /// What.
        group: GroupName,
    },
    /// The client left a group. → `Done`
    SessionLeave {
        /// Which.
        session: SessionId,
        /// What.
        group: GroupName,
    },
}

/// A group's join point for a gateway or a client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct JoinPoint {
    /// The group.
    pub group: GroupName,
    /// The log it is in now.
    pub epoch: Epoch,
    /// Its last offset: what follows is delivered. Where more was missed than one answer carries, the last offset that
    /// this one accounts for: to be asked for again, since there.
    pub head: u64,
    /// Every message after `since` up to `head` is in `messages` (always so without a `since`).
    pub recovered: bool,
    /// What was missed and is still there, oldest first, contiguous, ending at `head` (or empty).
    pub messages: Vec<Message>,
}

impl JoinPoint {
    /// Whether the messages fill a page of so many bytes: there may be more than this answer carries.
    pub fn fills(&self, page_bytes: usize) -> bool {
        let bytes = self.messages.iter().map(|message| message.data.len() + MESSAGE_OVERHEAD_BYTES);
        bytes.sum::<usize>() >= page_bytes
    }
}

/// What is said about a group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct GroupInfo {
    /// The group.
    pub group: GroupName,
    /// Its log.
    pub epoch: Epoch,
    /// Its last offset.
    pub head: u64,
    /// How many messages are kept.
    pub kept: u64,
    /// How many sessions are present.
    pub members: u64,
}

/// A session as it is told to gateways and over HTTP.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionView {
    /// The record.
    pub record: SessionRecord,
    /// A client is attached.
    pub attached: bool,
    /// A client is attached, or was within `resume_grace`.
    pub present: bool,
}

/// The answer to a [`SlotRequest`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SlotAnswer {
    /// To `Register`: one for each interest, in their order.
    Registered(Vec<JoinPoint>),
    /// To `Publish`.
    Published {
        /// Where it stands.
        position: Position,
        /// How many nodes hold it.
        copies: u8,
    },
    /// To `Join`.
    Joined(JoinPoint),
    /// To `History`: where the group does not exist, nothing.
    History {
        /// The log, its head; nothing where there is no such group.
        position: Option<Position>,
        /// No message between `since` and the first one here is missing.
        complete: bool,
        /// Oldest first.
        messages: Vec<Message>,
    },
    /// To `Members`.
    Members {
        /// By session id.
        members: Vec<Presence>,
        /// There are more after the last.
        more: bool,
    },
    /// To `Group`; nothing where there is no such group.
    Group(Option<GroupInfo>),
    /// To `CreateSession`, `ReadSession`, `ChangeSession`.
    Session(SessionView),
    /// To `Attach`.
    Attached {
        /// The record, groups to restore included.
        record: SessionRecord,
        /// The attachment's number.
        attachment: AttachmentNumber,
    },
    /// Done; nothing to tell.
    Done,
}

/// Why a request was not carried out. All but `NotPrimary` and `Unknown` say: certainly not done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SlotError {
    /// Asked of the wrong node or under a wrong term: fetch the map of this version or later and ask again.
    NotPrimary {
        /// The version that the refusing node knows.
        map_version: u64,
    },
    /// Too much is waiting for this slot: ask again later.
    Busy,
    /// The slot has no primary that can serve now.
    Unavailable,
    /// Fewer copies than the namespace requires.
    NotEnoughCopies {
        /// How many there are.
        copies: u8,
        /// How many it wants.
        min_copies: u8,
    },
    /// No such session.
    NoSession,
    /// The session is over.
    SessionEnded(EndReason),
    /// The session has as many groups as one may have.
    TooManyGroups,
    /// The store did not take or give the session, with what it or the way to it said.
    StoreUnavailable(String),
    /// The deadline passed; it may or may not have been done. Repeat it.
    Unknown,
}

/// Sent by a slot's primary to a gateway, unasked. In the order of the slot's log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Push {
    /// A committed message.
    Deliver {
        /// The group.
        group: GroupName,
        /// Its log.
        epoch: Epoch,
        /// The message.
        message: Message,
    },
    /// Someone entered a group's presence, or left it.
    Member {
        /// The group.
        group: GroupName,
        /// Entered, or left.
        joined: bool,
        /// Who.
        member: Presence,
    },
    /// The session attached elsewhere: this attachment gets nothing more. The gateway confirms it by
    /// [`SlotRequest::ConfirmDisplaced`], which lets the new attachment proceed.
    Displace {
        /// Which.
        session: SessionId,
        /// This attachment and earlier ones.
        attachment: AttachmentNumber,
    },
    /// The session is over.
    SessionEnded {
        /// Which.
        session: SessionId,
        /// Why.
        reason: EndReason,
    },
    /// The record changed over HTTP: grants, attributes, groups to join or leave.
    SessionChanged {
        /// As it is now.
        record: SessionRecord,
    },
}
