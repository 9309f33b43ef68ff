//! The map that is being made, with the counts that decide who is least loaded.

use std::collections::{BTreeMap, BTreeSet};

use super::{Life, NodeFacts, PlanInput};
use crate::{
    id::{Generation, Member, NodeId},
    map::{ClusterMap, SlotAssignment},
};

/// How a member named in the map is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Standing {
    /// Gone, as far as the facts go.
    Dead,
    /// Keeps what it has, gets nothing.
    Doubtful,
    /// Alive; the number of its node.
    Up(usize),
}

/// A node of the facts. Their order is that of the names.
pub(super) struct Node<'a> {
    pub(super) id: &'a NodeId,
    pub(super) facts: &'a NodeFacts,
    /// Slots that it is primary of.
    pub(super) primaries: usize,
    /// Slots that it holds or is to hold, once those that are to leave have left.
    pub(super) load: usize,
}

impl Node<'_> {
    fn is_up(&self) -> bool {
        self.facts.alive && !self.facts.suspect
    }

    pub(super) fn is_serving(&self) -> bool {
        self.is_up() && self.facts.state == Life::Serving
    }

    /// Alive and not on its way out: what it has may be weighed against what others have.
    pub(super) fn is_staying(&self) -> bool {
        self.is_up() && self.facts.state != Life::Draining
    }

    pub(super) fn member(&self) -> Member {
        Member { node: self.id.clone(), generation: self.facts.generation }
    }
}

pub(super) struct Draft<'a> {
    pub(super) input: &'a PlanInput<'a>,
    pub(super) nodes: Vec<Node<'a>>,
    pub(super) slots: Vec<SlotAssignment>,
    pub(super) changed: Vec<bool>,
    /// For each slot the member that is one too many and is to leave next.
    pub(super) leavers: Vec<Option<Member>>,
    /// For each slot the member that was dropped just now: others are preferred to it.
    pub(super) dropped: BTreeMap<usize, Member>,
    /// How many slots have a learner.
    pub(super) learners: usize,
}

impl<'a> Draft<'a> {
    pub(super) fn new(input: &'a PlanInput<'a>) -> Self {
        let nodes = input.nodes.iter().map(|(id, facts)| Node { id, facts, primaries: 0, load: 0 }).collect();
        let count = input.map.slots.len();
        let mut draft = Self {
            input,
            nodes,
            slots: input.map.slots.clone(),
            changed: vec![false; count],
            leavers: vec![None; count],
            dropped: BTreeMap::new(),
            learners: 0,
        };
        for assignment in &input.map.slots {
            draft.learners += usize::from(assignment.learner.is_some());
            if let Standing::Up(node) = draft.standing(&assignment.primary) {
                draft.nodes[node].primaries += 1;
            }
        }
        draft
    }

    pub(super) fn copies(&self) -> usize {
        usize::from(self.input.copies.max(1))
    }

    pub(super) fn moves(&self) -> usize {
        self.input.max_moves.max(1)
    }

    pub(super) fn standing(&self, member: &Member) -> Standing {
        let Ok(number) = self.nodes.binary_search_by(|node| node.id.cmp(&member.node)) else { return Standing::Dead };
        let facts = self.nodes[number].facts;
        if facts.generation > member.generation {
            Standing::Dead
        } else if facts.generation < member.generation {
            // The map knows of a later start than the facts do: they are old.
            Standing::Doubtful
        } else if !facts.alive {
            Standing::Dead
        } else if facts.suspect {
            Standing::Doubtful
        } else {
            Standing::Up(number)
        }
    }

    pub(super) fn is_dead(&self, member: &Member) -> bool {
        self.standing(member) == Standing::Dead
    }

    /// Dead for good: its memory is gone, since the store has allotted a newer start, or an operator said to count on that.
    pub(super) fn is_lost(&self, member: &Member) -> bool {
        self.is_dead(member)
            && (self.input.forgotten.contains(member)
                || self.input.nodes.get(&member.node).is_some_and(|facts| facts.generation > member.generation)
                || self.input.map.members.get(&member.node).is_some_and(|newest| *newest > member.generation))
    }

    pub(super) fn is_draining(&self, member: &Member) -> bool {
        matches!(self.standing(member), Standing::Up(node) if self.nodes[node].facts.state == Life::Draining)
    }

    /// Whether the member is alive and not on its way out.
    pub(super) fn is_staying(&self, member: &Member) -> bool {
        matches!(self.standing(member), Standing::Up(node) if self.nodes[node].is_staying())
    }

    pub(super) fn zone(&self, member: &Member) -> &'a str {
        self.input.nodes.get(&member.node).map_or("", |facts| facts.zone.as_str())
    }

    /// Changes a slot's assignment otherwise than by its primary.
    pub(super) fn change(&mut self, slot: usize, change: impl FnOnce(&mut SlotAssignment)) {
        let assignment = &mut self.slots[slot];
        self.learners -= usize::from(assignment.learner.is_some());
        change(assignment);
        self.learners += usize::from(assignment.learner.is_some());
        self.changed[slot] = true;
    }

    /// Gives a slot another primary, in a new term.
    pub(super) fn transfer(&mut self, slot: usize, to: &Member) {
        for (member, gains) in [(&self.slots[slot].primary.clone(), false), (to, true)] {
            if let Standing::Up(node) = self.standing(member) {
                let primaries = &mut self.nodes[node].primaries;
                *primaries = if gains { *primaries + 1 } else { *primaries - 1 };
            }
        }
        self.change(slot, |assignment| {
            assignment.term += 1;
            assignment.primary = to.clone();
        });
    }

    /// Makes a node the slot's learner.
    pub(super) fn learn(&mut self, slot: usize, node: usize) {
        self.nodes[node].load += 1;
        let learner = self.nodes[node].member();
        self.change(slot, |assignment| assignment.learner = Some(learner));
    }

    /// Counts what each node holds, less what is to leave it; says for each slot who is to leave next. The same members
    /// are found again as long as the same slots are under way, so a move ends as it was meant when it began.
    pub(super) fn count_loads(&mut self) {
        for slot in 0..self.slots.len() {
            let assignment = &self.slots[slot];
            let holders: Vec<usize> = assignment
                .in_sync
                .iter()
                .chain(&assignment.learner)
                .filter_map(|member| match self.standing(member) {
                    Standing::Up(node) => Some(node),
                    Standing::Dead | Standing::Doubtful => None,
                })
                .collect();
            for node in holders {
                self.nodes[node].load += 1;
            }
        }
        for slot in 0..self.slots.len() {
            let assignment = &self.slots[slot];
            let holders = assignment.in_sync.len() + usize::from(assignment.learner.is_some());
            // One at a time; where there are more, later plans see to them.
            if holders > self.copies()
                && let Some(leaver) = self.leaver(assignment).cloned()
            {
                if let Standing::Up(node) = self.standing(&leaver) {
                    self.nodes[node].load -= 1;
                }
                self.leavers[slot] = Some(leaver);
            }
        }
    }

    /// Who of the in-sync set can be spared best: a draining member, one whose zone is there twice, the most loaded; not
    /// the primary if that is all the same.
    fn leaver<'s>(&self, assignment: &'s SlotAssignment) -> Option<&'s Member> {
        assignment.in_sync.iter().max_by_key(|member| {
            let zone = self.zone(member);
            let crowded = !zone.is_empty() && assignment.copies().filter(|other| self.zone(other) == zone).count() > 1;
            let load = match self.standing(member) {
                Standing::Up(node) => self.nodes[node].load,
                Standing::Dead | Standing::Doubtful => 0,
            };
            (self.is_draining(member), crowded, load, **member != assignment.primary, *member)
        })
    }

    /// The next map, if it differs.
    pub(super) fn finish(mut self) -> Option<ClusterMap> {
        let members = self.members();
        if !self.changed.contains(&true) && members == self.input.map.members {
            return None;
        }
        let version = self.input.map.version + 1;
        for (assignment, changed) in self.slots.iter_mut().zip(&self.changed) {
            if *changed {
                assignment.changed_at = version;
                assert!(assignment.in_sync.contains(&assignment.primary), "a primary holds a copy");
                assert!(assignment.in_sync.is_sorted(), "members are sorted");
            }
        }
        Some(ClusterMap { version, members, slots: self.slots })
    }

    /// Nodes that serve or hold slots. One that is neither alive nor named by a slot is taken out; a generation never
    /// goes back, as it tells which members are lost.
    fn members(&self) -> BTreeMap<NodeId, Generation> {
        let named = self.slots.iter().flat_map(SlotAssignment::copies);
        let (mut holders, mut named_nodes) = (BTreeSet::new(), BTreeSet::new());
        for member in named {
            named_nodes.insert(&member.node);
            if let Standing::Up(node) = self.standing(member) {
                holders.insert(node);
            }
        }
        let mut members = self.input.map.members.clone();
        members.retain(|node, generation| {
            let member = Member { node: node.clone(), generation: *generation };
            named_nodes.contains(node)
                || match self.standing(&member) {
                    Standing::Dead => false,
                    Standing::Doubtful => true,
                    Standing::Up(number) => self.nodes[number].is_staying(),
                }
        });
        for (number, node) in self.nodes.iter().enumerate() {
            if node.is_serving() || holders.contains(&number) {
                let generation = members.entry(node.id.clone()).or_insert(0);
                *generation = (*generation).max(node.facts.generation);
            }
        }
        members
    }
}
