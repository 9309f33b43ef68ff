//! What the judge of liveness makes of all that it was shown: a value to pass around, and the questions that it answers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::LOOKS_OF_FEW;
use crate::{
    id::{Generation, Member, NodeId},
    map::{ClusterMap, SlotAssignment},
    plan::{Life, NodeFacts},
};

/// What a node says of itself, as far as others act upon it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Says {
    /// Where it is in its life.
    pub life: Life,
    /// Its availability zone; empty where it names none.
    pub zone: String,
    /// The store answers it.
    pub store_up: bool,
    /// The cluster map that it knows.
    pub map_version: u64,
}

/// How the newest start of a node is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Standing {
    /// There are signs of life.
    Alive,
    /// Signs of life are missing, but not for long enough.
    Missing,
    /// Enough looks have missed it.
    Dead,
}

/// The start of a node that counts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub generation: Generation,
    /// The map or the store tells of it; without that only gossip does.
    pub is_proven: bool,
    /// There is a link to it or from it: its certificate has said who it is.
    pub is_linked: bool,
    /// How it is doing.
    pub standing: Standing,
    /// What it said of itself last; nothing where only the map tells of it.
    pub says: Option<Says>,
    /// When an answer came from the node last, by this node's monotonic clock; nothing where none were ever counted.
    pub(super) answer_ms: Option<u64>,
}

/// A node that is there, and that the map does not name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outside {
    /// Its newest start that lives.
    pub generation: Generation,
    /// Since when this has been so, by this node's monotonic clock.
    pub since_ms: u64,
}

/// The cluster as one node judges it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Picture {
    /// The node that judges.
    pub me: Member,
    /// By name. Each in its newest start that the map or the store tells of: all earlier ones are known to be lost. A node of
    /// which neither tells in the newest that gossip does.
    pub nodes: BTreeMap<NodeId, Seen>,
    /// The newest starts that gossip tells of, where neither the map nor the store does. They prove nothing: the store is to
    /// be asked.
    pub unproven: BTreeMap<NodeId, Generation>,
    /// Nodes that are there and that the map does not name in that start, this one perhaps: none that leave, and none that are
    /// there by hearsay alone.
    pub outside: BTreeMap<NodeId, Outside>,
    /// The node has stood still, and does not trust what it sees for a while.
    pub doubts: bool,
    /// Looks in a row that found fewer than half of those that the map names.
    pub(super) few: u32,
    /// From whom no answer has come for longer is not heard.
    pub(super) quiet_ms: u64,
    /// Later it is worth nothing: there should have been other looks.
    pub(super) good_until_ms: u64,
}

/// A picture as it is passed around.
pub type SharedPicture = Arc<Picture>;

impl Picture {
    /// Of a node that has not looked yet: it sees nobody, and is worth nothing.
    pub fn before_any(me: &Member) -> Self {
        Self {
            me: me.clone(),
            nodes: BTreeMap::new(),
            unproven: BTreeMap::new(),
            outside: BTreeMap::new(),
            doubts: false,
            few: 0,
            quiet_ms: 0,
            good_until_ms: 0,
        }
    }

    /// Whether this very process is alive, as far as this node can tell. It is sure of itself.
    pub fn is_alive(&self, member: &Member) -> bool {
        *member == self.me || self.start(member).is_some_and(|seen| seen.standing == Standing::Alive)
    }

    /// Whether enough looks have missed this start of the node, or a newer one was allotted.
    pub fn is_dead(&self, member: &Member) -> bool {
        self.is_lost(member) || self.start(member).is_some_and(|seen| seen.standing == Standing::Dead)
    }

    /// Whether a newer start of the node was allotted, as the map or the store says: its memory is gone.
    pub fn is_lost(&self, member: &Member) -> bool {
        self.generation(&member.node).is_some_and(|newest| newest > member.generation)
    }

    /// The newest start of a node that the map or the store tells of.
    pub fn generation(&self, node: &NodeId) -> Option<Generation> {
        self.nodes.get(node).filter(|seen| seen.is_proven).map(|seen| seen.generation)
    }

    /// Of which nodes the store is to be asked which start it has allotted last, the most pressing ones first: those of which
    /// gossip tells a start that is not proven, with a link to them before those without; and those that are not there.
    pub fn to_ask(&self) -> impl Iterator<Item = &NodeId> {
        let is_missing = |seen: &Seen| seen.is_proven && seen.standing != Standing::Alive;
        let is_linked = |node: &&NodeId| self.nodes.get(*node).is_some_and(|seen| seen.is_linked);
        let (linked, hearsay): (Vec<_>, Vec<_>) = self.unproven.keys().partition(is_linked);
        let missing =
            self.nodes.iter().filter(move |(node, seen)| is_missing(seen) && !self.unproven.contains_key(*node));
        linked.into_iter().chain(missing.map(|(node, _)| node)).chain(hearsay)
    }

    /// Whether it is recent enough to act upon.
    pub fn is_good(&self, now_ms: u64) -> bool {
        now_ms <= self.good_until_ms
    }

    /// The processes that are alive, this one among them; of starts that are proven, since a later start says that the memory of
    /// the earlier one is gone.
    pub fn alive(&self) -> BTreeSet<Member> {
        self.living()
            .filter(|(_, seen)| seen.is_proven)
            .map(|(node, seen)| member(node, seen))
            .chain([self.me.clone()])
            .collect()
    }

    /// The processes that are alive, but for this one.
    pub fn peers(&self) -> impl Iterator<Item = Member> {
        self.living().map(|(node, seen)| member(node, seen)).filter(|peer| *peer != self.me)
    }

    /// The nodes that are alive and that this one has a link with, but for itself; of starts that are proven.
    pub fn linked_peers(&self) -> impl Iterator<Item = &NodeId> {
        let counts = |(node, seen): &(&NodeId, &Seen)| **node != self.me.node && seen.is_proven && seen.is_linked;
        self.living().filter(counts).map(|(node, _)| node)
    }

    /// Who says that it knows a newer map than `version`, and which.
    pub fn know_more(&self, version: u64) -> impl Iterator<Item = (Member, u64)> {
        let known = |seen: &Seen| seen.says.as_ref().map_or(0, |says| says.map_version);
        let others = self.living().filter(move |(node, seen)| **node != self.me.node && known(seen) > version);
        others.map(move |(node, seen)| (member(node, seen), known(seen)))
    }

    /// Who is to propose changes of the map: among the nodes that are alive and that this one has a link with those whom the
    /// store answers first, those that are not draining first, then by name. Two that see it differently do no harm; one that
    /// is there by hearsay alone would propose nothing.
    pub fn steward(&self) -> Option<&NodeId> {
        let preference = |seen: &Seen| match &seen.says {
            Some(says) => (!says.store_up, says.life == Life::Draining),
            None => (true, false),
        };
        let may_be = |(node, seen): &(&NodeId, &Seen)| **node == self.me.node || (seen.is_proven && seen.is_linked);
        self.living().filter(may_be).min_by_key(|(node, seen)| (preference(seen), *node)).map(|(node, _)| node)
    }

    /// Whether this node may change the map: it hears at least half of the nodes there, or others had the time to do it.
    pub fn may_change(&self, map: &ClusterMap, now_ms: u64) -> bool {
        self.few >= LOOKS_OF_FEW || !self.hears_few(&map.members, now_ms)
    }

    /// Fewer than half of those that the map names, this node included. A start that only gossip tells of is nobody.
    pub(super) fn hears_few(&self, members: &BTreeMap<NodeId, Generation>, now_ms: u64) -> bool {
        let is_quiet = |seen: &Seen| seen.answer_ms.is_some_and(|last_ms| last_ms + self.quiet_ms < now_ms);
        let is_there = |seen: &Seen| seen.is_proven && seen.standing == Standing::Alive && !is_quiet(seen);
        let hears = |node: &&NodeId| self.nodes.get(*node).is_some_and(is_there);
        members.keys().filter(hears).count() * 2 < members.len()
    }

    /// What the planner is told: nothing of starts that are not proven. Nodes that are missing, but not for long enough, are
    /// suspect; so are those that only this very map tells of, and those that are to join and are there by hearsay alone.
    pub fn facts(&self, map: &ClusterMap) -> BTreeMap<NodeId, NodeFacts> {
        let proven = self.nodes.iter().filter(|(_, seen)| seen.is_proven);
        let facts = |(node, seen): (&NodeId, &Seen)| {
            let is_reached = seen.is_linked || *node == self.me.node || map.members.contains_key(node);
            let facts = seen.facts();
            (node.clone(), NodeFacts { suspect: facts.suspect || !is_reached, ..facts })
        };
        let mut facts: BTreeMap<_, _> = proven.map(facts).collect();
        for (node, generation) in named(map) {
            if facts.get(&node).is_none_or(|known| known.generation < generation) {
                facts.insert(node, Seen::unheard(generation).facts());
            }
        }
        facts
    }

    fn start(&self, member: &Member) -> Option<&Seen> {
        self.nodes.get(&member.node).filter(|seen| seen.generation == member.generation)
    }

    fn living(&self) -> impl Iterator<Item = (&NodeId, &Seen)> {
        self.nodes.iter().filter(|(_, seen)| seen.standing == Standing::Alive)
    }
}

impl Seen {
    /// One that only a map tells of.
    fn unheard(generation: Generation) -> Self {
        Self { generation, is_proven: true, is_linked: false, standing: Standing::Missing, says: None, answer_ms: None }
    }

    fn facts(&self) -> NodeFacts {
        NodeFacts {
            generation: self.generation,
            alive: self.standing != Standing::Dead,
            suspect: self.standing != Standing::Alive,
            state: self.says.as_ref().map_or(Life::Serving, |says| says.life),
            zone: self.says.as_ref().map_or(String::new(), |says| says.zone.clone()),
        }
    }
}

fn member(node: &NodeId, seen: &Seen) -> Member {
    Member { node: node.clone(), generation: seen.generation }
}

/// The newest start of each node that the map tells of.
pub(super) fn named(map: &ClusterMap) -> BTreeMap<NodeId, Generation> {
    let mut newest = map.members.clone();
    for member in map.slots.iter().flat_map(SlotAssignment::copies) {
        match newest.get_mut(&member.node) {
            Some(known) => *known = (*known).max(member.generation),
            None => drop(newest.insert(member.node.clone(), member.generation)),
        }
    }
    newest
}
