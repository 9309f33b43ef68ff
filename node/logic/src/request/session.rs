//! What is asked about one session, and what is told of it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    entry::{EndReason, Joined, SessionChange, SessionRecord},
    id::{AttachmentNumber, ClientId, ClientKey, GroupName, Member, SessionId},
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

/// A client takes the session; answered when its earlier attachment is gone or cannot be reached. Refused as busy where a
/// later connection of the client has the session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attach {
    pub client: ClientId,
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
    pub client: ClientKey,
    #[serde(deserialize_with = "crate::id::number")]
    pub attachment: AttachmentNumber,
}

/// The client of an attach whose outcome its gateway does not know is gone: what came of it is undone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Withdraw {
    pub client: ClientKey,
    /// The gateway's number for the connection.
    pub connection: u64,
}

/// The gateway has cut this attachment off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ConfirmDisplaced {
    pub client: ClientKey,
    /// This attachment and earlier ones.
    #[serde(deserialize_with = "crate::id::number")]
    pub attachment: AttachmentNumber,
}

/// A client joined a group: its slot is to know, if the session's grants allow it by then. Busy where the slot has lost
/// sight of the client, here and at [`RecordLeave`]: what its gateway says with its next renewal comes first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecordJoin {
    pub client: ClientKey,
    pub group: GroupName,
    /// The group's namespace asks for a grant.
    pub needs_grant: bool,
}

/// A client left a group; one that a backend had put its session into all of its clients leave.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RecordLeave {
    pub client: ClientKey,
    /// By this attachment: busy where the client has a later one.
    #[serde(deserialize_with = "crate::id::number")]
    pub attachment: AttachmentNumber,
    pub group: GroupName,
}

/// An attachment that a gateway still has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Renewal {
    pub session: SessionId,
    pub client: ClientId,
    #[serde(deserialize_with = "crate::id::number")]
    pub attachment: AttachmentNumber,
    /// The gateway's number for the connection.
    pub connection: u64,
    /// Of the record that the gateway knows: it is told of a newer one again.
    pub revision: u64,
    /// What the client has joined, where the slot has wanted to know.
    pub joined: Option<Joined>,
}

/// A session as it is told over HTTP.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionView {
    pub record: SessionRecord,
    /// Those that are attached, or were within `resume_grace`.
    pub clients: Vec<ListedClient>,
}

impl SessionView {
    /// As a client would be told of it that had joined what any of its clients has.
    pub fn of_any(self) -> ClientView {
        ClientView { record: self.record, joined: self.clients.into_iter().flat_map(|listed| listed.joined).collect() }
    }

    /// Whether a client is attached.
    pub fn is_attached(&self) -> bool {
        self.clients.iter().any(|client| client.attached)
    }

    /// Whether a client is attached, or was within `resume_grace`.
    pub fn is_present(&self) -> bool {
        !self.clients.is_empty()
    }

    /// As this client of it is told of it; one that is not there has joined nothing.
    pub fn of_client(self, client: ClientKey) -> ClientView {
        let listed = self.clients.into_iter().find(|listed| listed.id.key() == client);
        ClientView { record: self.record, joined: listed.map(|listed| listed.joined).unwrap_or_default() }
    }

    /// What its clients have joined by themselves.
    pub fn joined(&self) -> BTreeSet<&GroupName> {
        self.clients.iter().flat_map(|client| client.joined.keys()).collect()
    }
}

/// A client of a session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ListedClient {
    pub id: ClientId,
    /// Where it is connected, or was last.
    pub gateway: Member,
    /// When it asked for its last attachment, in milliseconds since 1970.
    pub since_ms: u64,
    /// Else it was, within `resume_grace`.
    pub attached: bool,
    /// What it has joined by itself.
    pub joined: Joined,
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
    /// A client of it attached elsewhere, or had to make room for another: this attachment gets nothing more. The gateway confirms
    /// it by [`ConfirmDisplaced`], which lets the new attachment proceed.
    Displace {
        client: ClientKey,
        why: Displaced,
        /// This attachment and earlier ones.
        #[serde(deserialize_with = "crate::id::number")]
        attachment: AttachmentNumber,
    },
    /// It is over.
    Ended { reason: EndReason },
    /// The record changed: grants, attributes, groups to join or leave.
    Changed {
        /// One of its clients.
        client: ClientKey,
        /// As it is now.
        view: ClientView,
    },
}

/// Why an attachment is not a client's any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Displaced {
    /// The client has attached from another connection.
    Elsewhere,
    /// Another client of the session took its place: there are as many as there may be.
    CrowdedOut,
}
