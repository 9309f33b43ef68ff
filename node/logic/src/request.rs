//! What a gateway asks of a slot's primary, and what it is told. Every request but an ephemeral publish may be repeated: a
//! retry after a lost answer or a take-over has the effect of one.

mod ask;
mod group;
mod session;

use serde::{Deserialize, Serialize};

pub use self::{ask::*, group::*, session::*};
use crate::{
    entry::EndReason,
    few::Few,
    id::{ClientKey, GroupName, Position, SessionId},
};

/// The messages in the answer to one [`Join`] have about this many bytes, the last of them apart.
pub const PAGE_BYTES: usize = 16 << 10;

/// What a message takes beside its data, about; counted with it where answers are bounded.
pub const MESSAGE_OVERHEAD_BYTES: usize = 256;

/// A gateway's claim to a group's messages from a position on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Interest {
    pub group: GroupName,
    /// The last message that the gateway has delivered; nothing for a new interest, from the head on.
    pub since: Option<Position>,
}

/// Asked of the primary of one slot: about one group, about one session, or about several of either.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SlotRequest {
    /// See [`Register`]. → `Registered`
    Register {
        /// All of one slot.
        interests: Vec<Interest>,
    },
    /// See [`Unregister`]. → `Done`
    Unregister {
        /// All of one slot.
        groups: Vec<GroupName>,
    },
    /// See [`Renew`]; sent every few seconds. → `Renewed`; displaced ones are told so by a push as well.
    Renew {
        /// All of one slot.
        attachments: Vec<Renewal>,
    },
    /// About this group.
    Group(GroupName, GroupRequest),
    /// About this session.
    Session(SessionId, SessionRequest),
}

impl SlotRequest {
    /// Whether it may be asked again once it may have been carried out: a repeat has the effect of one.
    pub fn may_repeat(&self) -> bool {
        !matches!(self, Self::Group(_, GroupRequest::PublishEphemeral(_)))
    }

    /// The same, that long later, in milliseconds: an attach says for how long its client has been waiting.
    #[must_use]
    pub fn waited(mut self, more_ms: u64) -> Self {
        if let Self::Session(_, SessionRequest::Attach(Attach { waited_ms, .. })) = &mut self {
            *waited_ms = waited_ms.saturating_add(u32::try_from(more_ms).unwrap_or(u32::MAX));
        }
        self
    }
}

/// The answer to a [`SlotRequest`], as it travels. Who asks by an [`Ask`] gets the one that belongs to it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SlotAnswer {
    /// One for each interest, in their order.
    Registered(Vec<JoinPoint>),
    /// One for each message, in their order. A request none of which is taken or known is refused as a whole.
    Published(Few<Result<Published, SlotError>>),
    /// The gateway follows the group.
    Joined(JoinPoint),
    /// Messages.
    History(History),
    /// Who is present.
    Members(MemberPage),
    /// Nothing where there is no such group.
    Group(Option<GroupInfo>),
    Session(SessionView),
    /// A client has the session.
    Attached(Attached),
    /// These of the attachments are there.
    Renewed(Renewed),
    /// Done; nothing to tell.
    Done(Done),
}

impl SlotAnswer {
    /// Why a part of what was asked is certainly not done by this attempt, where there is one.
    pub fn refused_part(&self) -> Option<&SlotError> {
        match self {
            Self::Published(published) => published.iter().find_map(|one| one.as_ref().err()),
            _ => None,
        }
    }
}

/// What a slot says of the attachments of a [`Renew`]. Of those that it does not name it tells by pushes, or is asking the store.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Renewed {
    /// It has these attachments as the gateway says.
    pub confirmed: Vec<(SessionId, ClientKey)>,
    /// It has lost sight of these, and brings them back once the gateway has said what their clients have joined.
    pub wanted: Vec<(SessionId, ClientKey)>,
}

/// Done; nothing to tell.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Done;

/// Why a request was not carried out. All but `NotPrimary` and `Unknown` say: certainly not done.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SlotError {
    /// Asked of the wrong node or under a wrong term: fetch the map of this version or later and ask again.
    NotPrimary {
        /// The version that the refusing node knows.
        map_version: u64,
        /// It was ordered, and the term ended before it was answered: it may be done.
        ordered: bool,
    },
    /// Too much is waiting for this slot: ask again later.
    Busy,
    /// Those that hold the slot have no memory left for more (`limits.memory_bytes`).
    Full,
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
    /// The client is in as many groups as one may be.
    TooManyGroups,
    /// The session has as many clients as one may have.
    TooManyClients,
    /// The session's grants do not allow it (any more).
    NotGranted,
    /// The session has a newer token than the one that was shown.
    OldToken,
    /// The store did not take or give the session, with what it or the way to it said.
    StoreUnavailable(String),
    /// What was asked, or the answer to it, is longer than a frame between nodes takes.
    TooLong {
        /// It was carried out, and only the answer is too long; else it was not.
        done: bool,
    },
    /// The deadline passed; it may or may not have been done. Repeat it.
    Unknown,
}

impl SlotError {
    /// Why there is no such session any more, where this says that there is none.
    pub fn session_over(&self) -> Option<EndReason> {
        match self {
            Self::SessionEnded(reason) => Some(*reason),
            Self::NoSession => Some(EndReason::Ended),
            Self::NotPrimary { .. }
            | Self::Busy
            | Self::Full
            | Self::Unavailable
            | Self::NotEnoughCopies { .. }
            | Self::TooManyGroups
            | Self::TooManyClients
            | Self::NotGranted
            | Self::OldToken
            | Self::TooLong { .. }
            | Self::StoreUnavailable(_)
            | Self::Unknown => None,
        }
    }
}

/// Sent by a slot's primary to a gateway, unasked. In the order of the slot's log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Push {
    /// Of this group.
    Group(GroupName, GroupPush),
    /// Of this session.
    Session(SessionId, SessionPush),
}
