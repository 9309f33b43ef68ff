//! What is asked about one session, and what is told of it.

use serde::{Deserialize, Serialize};

use crate::{
    entry::{EndReason, Joined, SessionChange, SessionRecord},
    id::{AttachmentNumber, GroupName, SessionId},
};

/// Asked about one session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SessionRequest {
    /// → [`SessionView`]
    CreateSession(CreateSession),
    /// → [`SessionView`]
    ReadSession(ReadSession),
    /// → [`SessionView`]
    ChangeSession(ChangeSession),
    /// → [`super::Done`]
    EndSession(EndSession),
    /// → [`Attached`]
    Attach(Attach),
    /// → [`super::Done`]
    Detach(Detach),
    /// → [`super::Done`]
    Withdraw(Withdraw),
    /// → [`super::Done`]
    ConfirmDisplaced(ConfirmDisplaced),
    /// → [`super::Done`]
    RecordJoin(RecordJoin),
    /// → [`super::Done`]
    RecordLeave(RecordLeave),
}

/// Creates the session; stored before the answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CreateSession {
    /// Its record, of the session that is asked about.
    pub record: SessionRecord,
}

/// Reads the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReadSession;

/// Changes the session over HTTP; stored before the answer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChangeSession {
    pub change: SessionChange,
}

/// Ends the session; stored before the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EndSession;

/// A client takes the session; answered when the earlier attachment is gone or cannot be reached. Refused as busy where a
/// later connection has the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attach {
    /// The gateway's number for the connection.
    pub connection: u64,
    /// For how many milliseconds its client has been waiting: more than a moment where this is not the first attempt.
    pub waited_ms: u32,
    /// The number of the token that it has shown.
    pub token: u32,
}

/// The client's socket is gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Detach {
    #[serde(deserialize_with = "crate::id::number")]
    pub attachment: AttachmentNumber,
}

/// The client of an attach whose outcome its gateway does not know is gone: what came of it is undone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Withdraw {
    /// The gateway's number for the connection.
    pub connection: u64,
}

/// The gateway has cut this attachment off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConfirmDisplaced {
    /// This attachment and earlier ones.
    #[serde(deserialize_with = "crate::id::number")]
    pub attachment: AttachmentNumber,
}

/// The client joined a group: its slot is to know, if the session's grants allow it by then. Busy where the slot has lost
/// sight of the client, here and at [`RecordLeave`]: what its gateway says with its next renewal comes first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecordJoin {
    pub group: GroupName,
    /// The group's namespace asks for a grant.
    pub needs_grant: bool,
}

/// The client left a group, whoever had put it there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecordLeave {
    pub group: GroupName,
}

/// An attachment that a gateway still has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Renewal {
    pub session: SessionId,
    #[serde(deserialize_with = "crate::id::number")]
    pub attachment: AttachmentNumber,
    /// The gateway's number for the connection.
    pub connection: u64,
    /// Of the record that the gateway knows: it is told of a newer one again.
    pub revision: u64,
    /// What the client has joined, where the slot has wanted to know.
    pub joined: Option<Joined>,
}

/// A session as it is told to gateways and over HTTP.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionView {
    /// As its client is told of it.
    pub client: ClientView,
    /// A client is attached.
    pub attached: bool,
    /// A client is attached, or was within `resume_grace`.
    pub present: bool,
}

/// A session as its client is told of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClientView {
    pub record: SessionRecord,
    /// What the client has joined; none that is in the record.
    pub joined: Joined,
}

impl ClientView {
    /// All groups that the client is in.
    pub fn groups(&self) -> impl Iterator<Item = &GroupName> {
        self.record.groups.iter().chain(self.joined.keys())
    }

    /// Whether the client is in this group.
    pub fn is_in(&self, group: &GroupName) -> bool {
        self.record.groups.contains(group) || self.joined.contains_key(group)
    }
}

/// A client has the session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attached {
    /// With the groups to restore.
    pub view: ClientView,
    /// The attachment's number.
    #[serde(deserialize_with = "crate::id::number")]
    pub attachment: AttachmentNumber,
}

/// Told of one session by its slot's primary, unasked.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SessionPush {
    /// It attached elsewhere: this attachment gets nothing more. The gateway confirms it by [`ConfirmDisplaced`], which
    /// lets the new attachment proceed.
    Displace {
        /// This attachment and earlier ones.
        #[serde(deserialize_with = "crate::id::number")]
        attachment: AttachmentNumber,
    },
    /// It is over.
    Ended { reason: EndReason },
    /// The record changed over HTTP: grants, attributes, groups to join or leave.
    Changed {
        /// As it is now.
        view: ClientView,
    },
}
