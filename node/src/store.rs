//! What Roost keeps outside its memory: sessions, the cluster map, node generations. Never in the live path.
//!
//! # Contract (one suite, `store::contract`, holds every store to it)
//! - A session write carries a [`WriteVersion`]; of two writes to one session the higher version wins, whatever the
//!   order of arrival, and an end wins over every put. A read after an acknowledged write sees it (or a later one).
//! - `change_map` is a compare-and-set on the row's version: of several that name the same expected version at most one
//!   is applied. When the outcome cannot be known it says so ([`MapChange::Unknown`]), and the caller reads.
//! - `next_generation` never gives a number twice for one node, and each is higher than those before.

pub mod breaker;
pub mod cassandra;
#[cfg(test)]
#[expect(unreachable_pub, reason = "the cluster tests include this file as a module of theirs")]
pub(crate) mod contract;
#[cfg(any(test, fuzzing))]
pub(crate) mod decoders;
pub mod embedded;
pub mod guarded;
pub mod rows;

use async_trait::async_trait;
use uuid::Uuid;

pub use crate::logic::map::MapChange;
use crate::{
    id::{Generation, Index, NodeId, SessionId, Term},
    logic::{entry::SessionRecord, map::ClusterMap},
};

/// Orders the writes to a session: by the term, then the index of the entry that it stems from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct WriteVersion {
    /// The slot's term.
    pub term: Term,
    /// The entry's index.
    pub index: Index,
}

/// Why the store did not do it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    /// Not reachable, or too slow.
    #[error("the store did not answer: {0}")]
    Unavailable(String),
    /// It answered something that cannot be right (a damaged file, a foreign schema).
    #[error("the store's content cannot be read: {0}")]
    Corrupt(String),
    /// It will not serve this node before somebody has mended something (a password, a role, a setting).
    #[error("the store cannot be used: {0}")]
    Refused(String),
}

/// See the module's contract.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The identity of the cluster's data: made once, when the store is first used.
    async fn store_id(&self) -> Result<Uuid, StoreError>;
    /// Allots the next generation to a node.
    async fn next_generation(&self, node: &NodeId) -> Result<Generation, StoreError>;
    /// The generation last allotted to a node.
    async fn generation(&self, node: &NodeId) -> Result<Option<Generation>, StoreError>;
    /// The map, as of the last confirmed change.
    async fn read_map(&self) -> Result<Option<ClusterMap>, StoreError>;
    /// Replaces the map of version `expected` (0: none yet) by `next`.
    async fn change_map(&self, expected: u64, next: &ClusterMap) -> Result<MapChange, StoreError>;
    /// Writes a session.
    async fn put_session(&self, record: &SessionRecord, version: WriteVersion) -> Result<(), StoreError>;
    /// Ends a session (this is its last record): it is not found any more.
    async fn end_session(&self, record: &SessionRecord, version: WriteVersion) -> Result<(), StoreError>;
    /// Reads a session that has neither ended nor passed its absolute expiry at `now_ms` (since 1970).
    async fn session(&self, session: SessionId, now_ms: u64) -> Result<Option<SessionRecord>, StoreError>;
    /// A page of the ids of a user's sessions, in the order of the ids, after `after`. Sessions without a user (`""`) are
    /// listed nowhere.
    async fn sessions_of_user(
        &self,
        user: &str,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionId>, StoreError>;
    /// Answers when the store does, with its clock, in milliseconds since 1970, where it has one of its own.
    async fn ping(&self) -> Result<Option<u64>, StoreError>;
    /// Why a request about a session would be refused now without being sent, if it would. So that nothing is begun whose
    /// end must be stored too.
    fn refuses(&self) -> Option<StoreError> {
        None
    }
}
