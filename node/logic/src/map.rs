//! The cluster map: who the members are, and for each slot its term, primary, in-sync set and learner.
//!
//! One row of the store holds it and one conditional write changes it (`IF version = v`). Only confirmed maps travel.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::id::{Generation, Member, NodeId, SlotId, Term};

/// One version of the map.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Grows by one at every change; 1 for the first map.
    #[serde(deserialize_with = "crate::id::number")]
    pub version: u64,
    /// The nodes that take part, each in the start that the map counts on.
    #[serde(deserialize_with = "crate::id::numbers")]
    pub members: BTreeMap<NodeId, Generation>,
    /// One for each slot, by its number. Never empty in a valid map.
    pub slots: Vec<SlotAssignment>,
}

/// Who holds a slot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SlotAssignment {
    /// Grows whenever the primary changes.
    #[serde(deserialize_with = "crate::id::number")]
    pub term: Term,
    /// Grows whenever the slot starts again with nothing because all of its in-sync members were lost.
    #[serde(deserialize_with = "crate::id::number")]
    pub lineage: u64,
    /// The map version that last changed this assignment. What a primary asks of the steward names it, so that a request
    /// made under one assignment is never carried out under another, alike though they may look.
    #[serde(deserialize_with = "crate::id::number")]
    pub changed_at: u64,
    /// Who orders the entries. A member of `in_sync`.
    pub primary: Member,
    /// Who must hold an entry before it is committed; the primary among them. Sorted, never empty.
    pub in_sync: Vec<Member>,
    /// Who is catching up, to become in-sync next.
    pub learner: Option<Member>,
}

impl SlotAssignment {
    /// Whether this member of the in-sync set.
    pub fn is_in_sync(&self, member: &Member) -> bool {
        self.in_sync.contains(member)
    }
    /// Who holds or is to hold a copy.
    pub fn copies(&self) -> impl Iterator<Item = &Member> {
        self.in_sync.iter().chain(&self.learner)
    }
    /// Whether it makes sense by itself, as part of a map of this version.
    fn is_sound(&self, version: u64) -> bool {
        self.is_in_sync(&self.primary)
            && self.in_sync.is_sorted_by(|one, other| one < other)
            && self.learner.as_ref().is_none_or(|learner| !self.is_in_sync(learner))
            && self.changed_at <= version
    }
    /// Whether the member holds or is to hold a copy.
    pub fn concerns(&self, member: &Member) -> bool {
        self.is_in_sync(member) || self.learner.as_ref() == Some(member)
    }
}

impl ClusterMap {
    /// The first map: one member has every slot.
    pub fn first(me: &Member, slots: u16) -> Self {
        let assignment = SlotAssignment {
            term: 1,
            lineage: 1,
            changed_at: 1,
            primary: me.clone(),
            in_sync: vec![me.clone()],
            learner: None,
        };
        Self {
            version: 1,
            members: BTreeMap::from([(me.node.clone(), me.generation)]),
            slots: vec![assignment; usize::from(slots)],
        }
    }

    /// How many slots there are.
    pub fn slot_count(&self) -> u16 {
        self.slots.len() as u16
    }

    /// Whether it makes sense, and could have come after an earlier map: nothing that only grows is less.
    pub fn may_follow(&self, earlier: &Self) -> bool {
        let grows = |(new, old): (&SlotAssignment, &SlotAssignment)| {
            let grown = |of: &SlotAssignment| (of.term, of.lineage, of.changed_at);
            let (new, old) = (grown(new), grown(old));
            new.0 >= old.0 && new.1 >= old.1 && new.2 >= old.2
        };
        self.version > earlier.version
            && self.slots.len() == earlier.slots.len()
            && self.slots.iter().all(|slot| slot.is_sound(self.version))
            && self.slots.iter().zip(&earlier.slots).all(grows)
    }

    /// Whether this member may speak as a slot's primary in this term.
    pub fn leads(&self, slot: SlotId, term: Term, member: &Member) -> Leads {
        match self.slot(slot) {
            Some(assignment) if assignment.term < term => Leads::NotKnownYet,
            Some(assignment) if assignment.term == term && assignment.primary == *member => Leads::Yes,
            Some(_) | None => Leads::No,
        }
    }

    /// A slot's assignment, where the map has that slot.
    pub fn slot(&self, slot: SlotId) -> Option<&SlotAssignment> {
        self.slots.get(usize::from(slot))
    }
}

/// What a map says of a member that speaks as a slot's primary.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leads {
    /// It is.
    Yes,
    /// The term is over, or is another member's, or there is no such slot.
    No,
    /// Perhaps a later map says so.
    NotKnownYet,
}

/// A map as it is passed around.
pub type SharedMap = Arc<ClusterMap>;

/// What came of a conditional write of the map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MapChange {
    /// It is the map now.
    Applied,
    /// The row had another version: this is what it holds.
    Conflict(Option<ClusterMap>),
    /// It may or may not have been applied: read.
    Unknown,
}

/// What a slot's primary asks of the steward. Carried out only while the slot's `changed_at` still is the one named.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum MapRequest {
    /// The learner holds everything and is required for commits already: make it in-sync (rule 3).
    Promote {
        slot: SlotId,
        /// The assignment under which this was found.
        #[serde(deserialize_with = "crate::id::number")]
        changed_at: u64,
        /// The slot's learner.
        learner: Member,
    },
    /// A replica did not acknowledge within `replica_timeout`: take it out of the in-sync set, or as learner (rule 2).
    Drop {
        slot: SlotId,
        /// The assignment under which this was found.
        #[serde(deserialize_with = "crate::id::number")]
        changed_at: u64,
        /// The slow one.
        member: Member,
    },
}

impl MapRequest {
    /// The slot it is about.
    pub fn slot(&self) -> SlotId {
        match self {
            Self::Promote { slot, .. } | Self::Drop { slot, .. } => *slot,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_primary_of_the_term_leads() {
        let member = |name: &str, generation| Member { node: NodeId::parse(name).unwrap(), generation };
        let mut map = ClusterMap::first(&member("n1", 1), 2);
        map.slots[1].term = 7;
        for (slot, term, by, expected) in [
            (1, 7, member("n1", 1), Leads::Yes),
            (1, 7, member("n2", 1), Leads::No),
            (1, 7, member("n1", 2), Leads::No),
            (1, 6, member("n1", 1), Leads::No),
            (1, 8, member("n2", 1), Leads::NotKnownYet),
            (1, u64::MAX, member("n2", 1), Leads::NotKnownYet),
            (2, 7, member("n1", 1), Leads::No),
            (u16::MAX, u64::MAX, member("n1", 1), Leads::No),
        ] {
            assert_eq!(map.leads(slot, term, &by), expected, "slot {slot}, term {term}, {by}");
        }
    }
}
