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

/// The newest start of a node that gossip or the map tells of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub generation: Generation,
    /// How it is doing.
    pub standing: Standing,
    /// What it said of itself last; nothing where only the map tells of it.
    pub says: Option<Says>,
    /// When packets came from the node last, by this node's monotonic clock; nothing where none were ever counted.
    pub(super) packet_ms: Option<u64>,
}

/// The cluster as one node judges it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Picture {
    /// The node that judges.
    pub me: Member,
    /// By name. Each in its newest start: all earlier ones are known to be lost.
    pub nodes: BTreeMap<NodeId, Seen>,
    /// The node has stood still, and does not trust what it sees for a while.
    pub doubts: bool,
    /// Looks in a row that found fewer than half of those that the map names.
    pub(super) few: u32,
    /// From whom nothing has come for longer is not heard.
    pub(super) quiet_ms: u64,
    /// Later it is worth nothing: there should have been other looks.
    pub(super) good_until_ms: u64,
}

/// A picture as it is passed around.
pub type SharedPicture = Arc<Picture>;

impl Picture {
    /// Of a node that has not looked yet: it sees nobody, and is worth nothing.
    pub fn before_any(me: &Member) -> Self {
        Self { me: me.clone(), nodes: BTreeMap::new(), doubts: false, few: 0, quiet_ms: 0, good_until_ms: 0 }
    }

    /// Whether this very process is alive, as far as this node can tell. It is sure of itself.
    pub fn is_alive(&self, member: &Member) -> bool {
        *member == self.me || self.start(member).is_some_and(|seen| seen.standing == Standing::Alive)
    }

    /// Whether enough looks have missed this start of the node, or a newer one is known.
    pub fn is_dead(&self, member: &Member) -> bool {
        let newer = self.generation(&member.node).is_some_and(|newest| newest > member.generation);
        newer || self.start(member).is_some_and(|seen| seen.standing == Standing::Dead)
    }

    /// The newest start known of a node.
    pub fn generation(&self, node: &NodeId) -> Option<Generation> {
        self.nodes.get(node).map(|seen| seen.generation)
    }

    /// Whether it is recent enough to act upon.
    pub fn is_good(&self, now_ms: u64) -> bool {
        now_ms <= self.good_until_ms
    }

    /// The processes that are alive, this one among them.
    pub fn alive(&self) -> BTreeSet<Member> {
        self.living().map(|(node, seen)| member(node, seen)).chain([self.me.clone()]).collect()
    }

    /// The processes that are alive, but for this one.
    pub fn peers(&self) -> impl Iterator<Item = Member> {
        self.living().map(|(node, seen)| member(node, seen)).filter(|peer| *peer != self.me)
    }

    /// Whom to ask for the map: of those that know a newer one than `version` the one with the newest.
    pub fn knows_more(&self, version: u64) -> Option<Member> {
        let known = |seen: &Seen| seen.says.as_ref().map_or(0, |says| says.map_version);
        let others = self.living().filter(|(node, seen)| **node != self.me.node && known(seen) > version);
        others.max_by_key(|(_, seen)| known(seen)).map(|(node, seen)| member(node, seen))
    }

    /// Who is to propose changes of the map: among the nodes that are alive those whom the store answers first, those that
    /// are not draining first, then by name. Two that see it differently do no harm.
    pub fn steward(&self) -> Option<&NodeId> {
        let preference = |seen: &Seen| match &seen.says {
            Some(says) => (!says.store_up, says.life == Life::Draining),
            None => (true, false),
        };
        self.living().min_by_key(|(node, seen)| (preference(seen), *node)).map(|(node, _)| node)
    }

    /// Whether this node may change the map: it hears at least half of the nodes there, or others had the time to do it.
    pub fn may_change(&self, map: &ClusterMap, now_ms: u64) -> bool {
        self.few >= LOOKS_OF_FEW || !self.hears_few(&map.members, now_ms)
    }

    /// Fewer than half of those that the map names, this node included.
    pub(super) fn hears_few(&self, members: &BTreeMap<NodeId, Generation>, now_ms: u64) -> bool {
        let is_quiet = |seen: &Seen| seen.packet_ms.is_some_and(|last_ms| last_ms + self.quiet_ms < now_ms);
        let hears = |node: &&NodeId| {
            self.nodes.get(*node).is_some_and(|seen| seen.standing == Standing::Alive && !is_quiet(seen))
        };
        members.keys().filter(hears).count() * 2 < members.len()
    }

    /// What the planner is told. Nodes that are missing, but not for long enough, are suspect; so are those that only this
    /// very map tells of.
    pub fn facts(&self, map: &ClusterMap) -> BTreeMap<NodeId, NodeFacts> {
        let mut facts: BTreeMap<_, _> = self.nodes.iter().map(|(node, seen)| (node.clone(), seen.facts())).collect();
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
        Self { generation, standing: Standing::Missing, says: None, packet_ms: None }
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
        let known = newest.entry(member.node.clone()).or_default();
        *known = (*known).max(member.generation);
    }
    newest
}
