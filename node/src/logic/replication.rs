//! placeholder
use serde::{Deserialize, Serialize};
use crate::id::{Index, Term};
use super::entry::Entry;
/// Between the members of a slot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ReplicationMessage {
    /// Primary → member.
    Append { term: Term, sync: u64, reconcile: bool, first: Index, commit: Index, entries: Vec<Entry> },
    /// Primary → learner.
    Snapshot { term: Term, sync: u64, index: Index, state: super::slot::SlotSnapshot },
    /// Member → primary.
    Ack { term: Term, sync: u64, index: Index },
}
