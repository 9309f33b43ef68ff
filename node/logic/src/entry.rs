//! What a slot's log consists of, and the values inside. An entry carries everything that is random or read from a
//! clock, so that applying it gives every copy the same state.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZero,
    sync::Arc,
};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    few::Few,
    id::{AttachmentNumber, ClientId, ClientKey, Epoch, GroupName, Index, Member, PublishKey, Seat, SessionId},
    session::Room,
};

/// What a message takes beside its data, a presence beside its texts, a session beside its record's, a group that a record
/// names beside its name, an entry beside what it carries. All in bytes, about, with what the allocator adds.
const MESSAGE_BYTES: usize = 200;
const PRESENCE_BYTES: usize = 250;
pub(crate) const SESSION_BYTES: usize = 1_000;
pub(crate) const NAMED_BYTES: usize = 100;
const ENTRY_BYTES: usize = 256;
const NEW_MESSAGE_BYTES: usize = 64;

/// How long a group keeps its messages, and the keys of its publishes; decided by the gateway from the namespace and written into each publish.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Retention {
    /// At most this many messages.
    pub messages: u32,
    /// At most this many bytes of data.
    pub bytes: u32,
    /// None older than this.
    pub age_ms: u64,
    /// A publish is recognised by its key for this time.
    pub window_ms: u64,
    /// And while fewer than this number of publishes have followed it.
    pub window_publishes: u32,
}

/// Who published.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Publisher {
    pub session: SessionId,
    /// Shared: it stands in every message.
    pub user: Arc<str>,
}

/// A message that has no place yet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NewMessage {
    /// Repeats with it get the same place.
    pub key: PublishKey,
    /// JSON text, checked by the gateway that took it in.
    pub data: Bytes,
}

/// A message of a group, as every copy and every gateway holds it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Message {
    /// 1, 2, 3, … in its epoch.
    #[serde(deserialize_with = "crate::id::number")]
    pub offset: u64,
    /// JSON text, checked by the gateway that took it in.
    pub data: Bytes,
    /// The client that published it; nothing for a publish by the server.
    pub from: Option<Publisher>,
    /// When the primary ordered it, in milliseconds since 1970.
    #[serde(deserialize_with = "crate::id::number")]
    pub at_ms: u64,
}

impl Message {
    /// What it takes in a log, in bytes, about.
    pub fn held_bytes(&self) -> u64 {
        let from = self.from.as_ref().map_or(0, |from| from.user.len());
        (MESSAGE_BYTES + self.data.len() + from) as u64
    }
}

/// A message that is passed on and kept nowhere: it has no place.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct EphemeralMessage {
    /// JSON text, checked by the gateway that took it in.
    pub data: Bytes,
    /// The client that published it; nothing for a publish by the server.
    pub from: Option<Publisher>,
    /// When the primary passed it on, in milliseconds since 1970.
    #[serde(deserialize_with = "crate::id::number")]
    pub at_ms: u64,
}

/// A client of a session that is present in a group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Presence {
    pub session: SessionId,
    pub client: ClientKey,
    /// One text for all of a user's sessions in the group.
    pub user: Arc<str>,
    /// The session's public attributes, as JSON text.
    pub info: Bytes,
    /// Of the session's record that `info` is of.
    #[serde(deserialize_with = "crate::id::number")]
    pub revision: u64,
    /// The attachment that joined; a leave by an earlier one is ignored.
    #[serde(deserialize_with = "crate::id::number")]
    pub attachment: AttachmentNumber,
}

impl Presence {
    /// Where it sits.
    pub fn seat(&self) -> Seat {
        Seat { session: self.session, client: self.client, attachment: self.attachment }
    }

    /// What it takes in a group, in bytes, about.
    pub fn held_bytes(&self) -> u64 {
        (PRESENCE_BYTES + self.user.len() + self.info.len()) as u64
    }
}

/// What has become of a session's presence in a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MemberEvent {
    /// Its first client has come.
    Join,
    /// Its last client has gone.
    Leave,
    /// Its attributes are others.
    Update,
}

/// How many are present in a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Present {
    pub sessions: u64,
    pub clients: u64,
    /// Different users that the sessions have.
    pub users: u64,
    /// Sessions that have none.
    pub anonymous: u64,
}

/// What a session may do with groups that match the pattern (`*` matches any run of characters).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Grant {
    /// For instance `chat:*`.
    pub pattern: String,
    /// May join, read history and members.
    pub join: bool,
    /// May publish.
    pub publish: bool,
}

impl Grant {
    /// Whether the pattern matches the whole name. Linear in the name for each `*`.
    pub fn matches(&self, group: &str) -> bool {
        let mut parts = self.pattern.split('*');
        let first = parts.next().unwrap_or("");
        let Some(mut rest) = group.strip_prefix(first) else {
            return false;
        };
        let Some(mut pending) = parts.next() else {
            return rest.is_empty();
        };
        for next in parts {
            let Some(at) = rest.find(pending) else {
                return false;
            };
            rest = &rest[at + pending.len()..];
            pending = next;
        }
        rest.ends_with(pending)
    }
}

/// Whether a session may do something: by a grant that `fits`, or where it has no grants at all and none is needed.
pub fn are_granted(grants: &[Grant], needs_grant: bool, fits: impl Fn(&Grant) -> bool) -> bool {
    grants.iter().any(fits) || (grants.is_empty() && !needs_grant)
}

/// Groups that a client has joined by itself, and that no backend has put its session into; each with whether its namespace
/// asks for a grant. They last as long as the grants allow them, and are in no store.
pub type Joined = BTreeMap<GroupName, bool>;

/// A session's record: in its slot's state, and written through to the store unless its id says that it is ephemeral.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionRecord {
    pub id: SessionId,
    /// The application's name for the user; empty for an anonymous one.
    pub user: String,
    /// When it was created, in milliseconds since 1970.
    #[serde(deserialize_with = "crate::id::number")]
    pub created_ms: u64,
    /// It ends then, whatever happens.
    pub expires_ms: u64,
    /// It ends when it has not been attached or used for this time.
    pub idle_ttl_ms: u64,
    /// The last time it was created, changed, attached or detached.
    #[serde(deserialize_with = "crate::id::number")]
    pub last_used_ms: u64,
    /// The application's own, a JSON object as text.
    pub attributes: Bytes,
    /// The groups that a backend has put it into; restored when it attaches.
    pub groups: BTreeSet<GroupName>,
    /// What it may do; nothing here means what the namespace allows to everyone.
    pub grants: Vec<Grant>,
    /// Grows with each change over HTTP, also where a slot has lost its memory: at least the time of the change.
    #[serde(deserialize_with = "crate::id::number")]
    pub revision: u64,
    /// The number of the session's token. Tokens of lower numbers are refused.
    pub token: u32,
    /// It may have no more clients at once than this, where that is fewer than are configured.
    pub clients_max: Option<NonZero<u16>>,
}

impl SessionRecord {
    /// What it takes in memory, in bytes, about.
    pub fn held_bytes(&self) -> u64 {
        let Self { user, attributes, groups, grants, .. } = self;
        let named = groups.iter().map(|group| NAMED_BYTES + group.as_str().len());
        let granted = grants.iter().map(|grant| NAMED_BYTES + grant.pattern.len());
        (user.len() + attributes.len() + named.chain(granted).sum::<usize>()) as u64
    }

    /// Whether its client may join a group that it is not in. `needs_grant`: the group's namespace asks for one.
    pub fn may_join(&self, group: &GroupName, needs_grant: bool) -> bool {
        are_granted(&self.grants, needs_grant, |grant| grant.join && grant.matches(group.as_str()))
    }
}

/// Why a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum EndReason {
    /// Asked for, over HTTP.
    Ended,
    /// Its absolute expiry.
    Expired,
    /// Idle for too long.
    Idle,
    /// It was created but the store did not take it.
    NotStored,
    /// It was ephemeral, and no client was there for the grace, or all that held its slot have lost it.
    Lapsed,
}

/// A change over HTTP. What is not named stays.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SessionChange {
    /// New absolute expiry, in milliseconds since 1970.
    pub expires_ms: Option<u64>,
    /// New attributes, whole.
    pub attributes: Option<Bytes>,
    /// New grants, whole. Groups that the client joined and that they do not allow are left.
    pub grants: Option<Vec<Grant>>,
    /// Its token gets the next number: those that were signed before are refused.
    pub new_token: bool,
    /// Groups to join, and to have its client join.
    pub join: Vec<GroupName>,
    /// Groups to leave.
    pub leave: Vec<GroupName>,
}

impl SessionChange {
    fn held_bytes(&self) -> usize {
        let Self { attributes, grants, join, leave, .. } = self;
        let named = join.iter().chain(leave).map(|group| NAMED_BYTES + group.as_str().len());
        let granted = grants.iter().flatten().map(|grant| NAMED_BYTES + grant.pattern.len());
        attributes.as_ref().map_or(0, Bytes::len) + named.chain(granted).sum::<usize>()
    }
}

/// One step of a slot's state: of one of its groups, of one of its sessions, or of all groups.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Entry {
    /// Of this group.
    Group(GroupName, GroupEntry),
    /// Of this session.
    Session(SessionId, SessionEntry),
    /// Drops the messages of all groups that are not later than this: those that hold the slot are short of memory.
    Shed {
        /// Milliseconds since 1970.
        #[serde(deserialize_with = "crate::id::number")]
        until_ms: u64,
    },
}

impl Entry {
    /// What it takes in a log, in bytes, about.
    pub fn held_bytes(&self) -> u64 {
        let carried = match self {
            Self::Group(_, GroupEntry::Publish { messages, from, .. }) => {
                let data = messages.iter().map(|message| NEW_MESSAGE_BYTES + message.data.len());
                data.sum::<usize>() + from.as_ref().map_or(0, |from| from.user.len())
            }
            Self::Group(_, GroupEntry::Recall { keys }) => size_of_val(keys.as_slice()),
            Self::Group(_, GroupEntry::MemberJoin { member, .. } | GroupEntry::MemberUpdate { member }) => {
                member.user.len() + member.info.len()
            }
            Self::Session(_, SessionEntry::Put { record, .. }) => record.held_bytes() as usize,
            Self::Session(_, SessionEntry::Change { change, .. }) => change.held_bytes(),
            Self::Session(_, SessionEntry::Restore { joined, .. }) => {
                joined.keys().map(|group| NAMED_BYTES + group.as_str().len()).sum()
            }
            Self::Group(..) | Self::Session(..) | Self::Shed { .. } => 0,
        };
        (ENTRY_BYTES + carried) as u64
    }
}

/// One step of a group. Those that carry an epoch make the group exist, with this epoch if it did not.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum GroupEntry {
    /// Makes the group exist.
    Open {
        /// Its epoch if it is new.
        epoch: Epoch,
    },
    /// Appends messages, one after the other, but those whose keys were seen in the window. What one request asks for is one
    /// entry: all of it is committed at once, and no take-over leaves a part of it.
    Publish {
        /// Its epoch if it is new.
        epoch: Epoch,
        /// In their order.
        messages: Few<NewMessage>,
        /// The client that published them.
        from: Option<Publisher>,
        /// When, in milliseconds since 1970.
        #[serde(deserialize_with = "crate::id::number")]
        at_ms: u64,
        /// What the group keeps from now on.
        retention: Retention,
    },
    /// Finds the places of earlier publishes with these keys, and changes nothing.
    Recall {
        /// The keys of the publishes.
        keys: Vec<PublishKey>,
    },
    /// A client is present.
    MemberJoin {
        /// Its epoch if it is new.
        epoch: Epoch,
        member: Presence,
    },
    /// No longer present, unless it has joined again by a later attachment.
    MemberLeave { seat: Seat },
    /// A client's attributes are others, where it is present by this attachment.
    MemberUpdate { member: Presence },
    /// Drops messages older than the group's retention; with `remove` the group as well, if nothing is left in it.
    Trim {
        /// When, in milliseconds since 1970.
        #[serde(deserialize_with = "crate::id::number")]
        at_ms: u64,
        /// The primary knows of nobody who needs the group's epoch.
        remove: bool,
    },
}

/// One step of a session's life.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SessionEntry {
    /// It was created, or loaded from the store (`stored`).
    Put {
        /// The record, of this session.
        record: SessionRecord,
        /// The store has it already. An existing record wins over one that was loaded.
        stored: bool,
    },
    /// A change over HTTP.
    Change {
        change: SessionChange,
        /// When, in milliseconds since 1970.
        #[serde(deserialize_with = "crate::id::number")]
        at_ms: u64,
    },
    /// It is over.
    End {
        reason: EndReason,
        /// When, in milliseconds since 1970.
        #[serde(deserialize_with = "crate::id::number")]
        at_ms: u64,
    },
    /// A client of this gateway takes the session; an earlier attachment of the client is displaced.
    Attach {
        client: ClientId,
        /// Where the client is connected.
        gateway: Member,
        /// The gateway's number for the connection; the same one again is the same attachment.
        connection: u64,
        /// Since when its client has been waiting for this, in milliseconds since 1970.
        #[serde(deserialize_with = "crate::id::number")]
        since_ms: u64,
        /// When, in milliseconds since 1970.
        #[serde(deserialize_with = "crate::id::number")]
        at_ms: u64,
        /// The number of the token that its client has shown.
        token: u32,
        room: Room,
    },
    /// A gateway still has this attachment, of which the slot has lost sight. One that was given to the client since stays.
    Restore {
        client: ClientId,
        gateway: Member,
        /// Its number for the connection.
        connection: u64,
        /// The number that the attachment has.
        #[serde(deserialize_with = "crate::id::number")]
        attachment: AttachmentNumber,
        /// Of the record that the gateway knows.
        revision: u64,
        /// What its client has joined, as far as the gateway knows.
        joined: Joined,
        room: Room,
    },
    /// The socket of this attachment is gone; its client stays present until `grace_until_ms`.
    Detach {
        client: ClientKey,
        /// The gateway of the attachment. In two lineages of a slot two gateways can be given the same number.
        gateway: Member,
        /// Only if this still is its attachment.
        #[serde(deserialize_with = "crate::id::number")]
        attachment: AttachmentNumber,
        /// When, in milliseconds since 1970.
        #[serde(deserialize_with = "crate::id::number")]
        at_ms: u64,
        /// When the client's presence ends.
        #[serde(deserialize_with = "crate::id::number")]
        grace_until_ms: u64,
        /// Its gateway says so; else the gateway is believed dead, and the connection may be open still.
        closed: bool,
    },
    /// The connection is gone, and its gateway does not know whether it was attached: where it is, that is undone.
    Withdraw {
        client: ClientKey,
        gateway: Member,
        /// Its number for the connection.
        connection: u64,
        /// When, in milliseconds since 1970.
        #[serde(deserialize_with = "crate::id::number")]
        at_ms: u64,
        /// When the client's presence ends.
        #[serde(deserialize_with = "crate::id::number")]
        grace_until_ms: u64,
    },
    /// A gateway has cut off a displaced attachment.
    Closed {
        client: ClientKey,
        gateway: Member,
        /// This attachment there, and earlier ones.
        #[serde(deserialize_with = "crate::id::number")]
        attachment: AttachmentNumber,
    },
    /// The grace is over: the client is present no longer and leaves its groups' presence.
    GraceOver {
        client: ClientKey,
        /// Only if this was its last attachment.
        #[serde(deserialize_with = "crate::id::number")]
        attachment: AttachmentNumber,
    },
    /// A client joined a group. Not done where the session has no such client, or where its grants do not allow it.
    Join {
        client: ClientKey,
        /// What it joined.
        group: GroupName,
        /// The group's namespace asks for a grant.
        needs_grant: bool,
    },
    /// A client left a group. Not done where the session has no such client, or where it has attached anew since: the leave is
    /// late, and the client may have joined again.
    Leave {
        client: ClientKey,
        /// By this attachment.
        #[serde(deserialize_with = "crate::id::number")]
        attachment: AttachmentNumber,
        /// What it left.
        group: GroupName,
        /// When, in milliseconds since 1970.
        #[serde(deserialize_with = "crate::id::number")]
        at_ms: u64,
    },
    /// These presences, left behind by a client that is gone, have been taken out of their groups.
    Departed {
        client: ClientKey,
        /// The groups done, each up to this attachment.
        #[serde(deserialize_with = "crate::id::numbers")]
        groups: BTreeMap<GroupName, AttachmentNumber>,
    },
    /// The store has the session's record as of this index of the slot's log.
    Saved {
        /// As of this entry.
        #[serde(deserialize_with = "crate::id::number")]
        index: Index,
    },
    /// A client that is gone is forgotten: no gateway delivers to a connection of it.
    ForgetClient {
        client: ClientKey,
        /// Only if this was its last attachment.
        #[serde(deserialize_with = "crate::id::number")]
        attachment: AttachmentNumber,
    },
    /// A session long detached leaves the memory; the store has it.
    Forget,
    /// A client is attached still.
    Used {
        /// When, in milliseconds since 1970.
        #[serde(deserialize_with = "crate::id::number")]
        at_ms: u64,
    },
}
