//! The planner: from the map, who is there, and what the primaries ask for, to the next map. Pure; anyone may run it,
//! and safety never depends on who did (the compare-and-set decides).
//!
//! What a plan may do to a slot is narrow, and the tests hold it to that:
//! - a new primary is a member of the in-sync set of the map before (rule 4), unless all of these are known to be lost,
//!   and then the lineage grows;
//! - the in-sync set grows only by the slot's learner, and only when its primary asked for it under this very
//!   assignment (rule 3);
//! - whoever leaves does so by this change and not before (rule 2).
//!
//! Order of work: failures, requests, hand-over by draining nodes, missing copies, and only then balance. Every step
//! brings the map closer to where no step applies, so repeating `plan` ends.

mod balance;
mod draft;
mod repair;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use self::draft::Draft;
use super::map::{ClusterMap, MapRequest};
use crate::id::{Generation, Member, NodeId};

/// Where a node is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// Gets no slots yet.
    Starting,
    /// Gets slots.
    Serving,
    /// Is to lose all its slots.
    Draining,
}

/// What is known of a node. A node without facts is dead.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeFacts {
    /// Its newest start, as the store or the map has it: all earlier ones are known to be lost. Nothing else proves that.
    pub generation: Generation,
    /// Whether that start is alive. Only what has been looked at twice may be called dead.
    pub alive: bool,
    /// Not heard of lately, but not for long enough to be called dead: it keeps what it has and gets nothing. Means
    /// something only where `alive`.
    pub suspect: bool,
    /// Where it is in its life.
    pub state: Life,
    /// Its availability zone; empty where it names none, and then it is in nobody's way.
    pub zone: String,
}

/// What a plan is made from.
#[derive(Clone, Debug)]
pub struct PlanInput<'a> {
    /// The confirmed map.
    pub map: &'a ClusterMap,
    /// Every node that is not dead, and dead ones of which a newer start is known.
    pub nodes: &'a BTreeMap<NodeId, NodeFacts>,
    /// What primaries ask for; stale ones do no harm.
    pub requests: &'a [MapRequest],
    /// Dead members that an operator gave up: lost, as if a newer start of them were known.
    pub forgotten: &'a BTreeSet<Member>,
    /// How many nodes are to hold each slot.
    pub copies: u8,
    /// How many slots (at least one) may be under way at once for balance alone, and four times as many to restore copies.
    pub max_moves: usize,
}

/// The next map, with the version after the present one; nothing where all is as it should be (or nothing can be done).
pub fn plan(input: &PlanInput<'_>) -> Option<ClusterMap> {
    let mut draft = Draft::new(input);
    repair::failures(&mut draft);
    repair::requests(&mut draft);
    draft.count_loads();
    repair::arrange(&mut draft);
    balance::primaries(&mut draft);
    balance::zones(&mut draft);
    balance::copies(&mut draft);
    draft.finish()
}
