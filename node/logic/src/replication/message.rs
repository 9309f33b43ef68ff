//! What the members of a slot say to each other.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{
    entry::Entry,
    id::{Index, Term},
    slot::SlotSnapshot,
};

/// Between the members of a slot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ReplicationMessage {
    /// Primary → member: the entries from `first` on, and how far the log is committed.
    Append {
        #[serde(deserialize_with = "crate::id::number")]
        term: Term,
        #[serde(deserialize_with = "crate::id::number")]
        sync: u64,
        /// The first appends of a term: the member's log is to become the primary's (rule 5).
        reconcile: Option<Reconcile>,
        /// The index of the first entry here.
        #[serde(deserialize_with = "crate::id::number")]
        first: Index,
        /// All up to this one are committed.
        #[serde(deserialize_with = "crate::id::number")]
        commit: Index,
        /// Contiguous; empty to tell the commit alone.
        entries: Vec<Arc<Entry>>,
    },
    /// Primary → learner: a piece of the state as of `index`. All pieces of it take the place of all that the learner had.
    Piece {
        #[serde(deserialize_with = "crate::id::number")]
        term: Term,
        #[serde(deserialize_with = "crate::id::number")]
        sync: u64,
        #[serde(deserialize_with = "crate::id::number")]
        lineage: u64,
        /// The last entry in the state.
        #[serde(deserialize_with = "crate::id::number")]
        index: Index,
        /// 0, 1, 2, …
        #[serde(deserialize_with = "crate::id::number")]
        number: u64,
        /// None follows.
        is_last: bool,
        part: SlotSnapshot,
    },
    /// Learner → primary: it holds all pieces before `count`. That it holds all there are an [`Self::Ack`] says.
    PieceAck {
        #[serde(deserialize_with = "crate::id::number")]
        term: Term,
        #[serde(deserialize_with = "crate::id::number")]
        sync: u64,
        /// Of the snapshot.
        #[serde(deserialize_with = "crate::id::number")]
        index: Index,
        #[serde(deserialize_with = "crate::id::number")]
        count: u64,
    },
    /// Member → primary: it holds everything up to `index`.
    Ack {
        #[serde(deserialize_with = "crate::id::number")]
        term: Term,
        #[serde(deserialize_with = "crate::id::number")]
        sync: u64,
        /// Cumulative.
        #[serde(deserialize_with = "crate::id::number")]
        index: Index,
        /// Something before what just came is missing.
        gap: bool,
    },
}

/// What a new primary and another in-sync member may not have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Reconcile {
    /// What the primary knew to be committed when it took over: the same for both.
    #[serde(deserialize_with = "crate::id::number")]
    pub base: Index,
    /// The end of the primary's log then. The member changes nothing before it has all up to here: of what it holds after
    /// `base`, everything may be committed, and it may be the only one besides the primary that still has it.
    #[serde(deserialize_with = "crate::id::number")]
    pub until: Index,
}

impl ReplicationMessage {
    /// The term it was sent under.
    pub fn term(&self) -> Term {
        match self {
            Self::Append { term, .. }
            | Self::Piece { term, .. }
            | Self::PieceAck { term, .. }
            | Self::Ack { term, .. } => *term,
        }
    }

    /// Whether it is for a primary, from a member; all others are from a primary.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Ack { .. } | Self::PieceAck { .. })
    }
}
