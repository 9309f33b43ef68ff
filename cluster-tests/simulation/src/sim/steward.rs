//! Whoever thinks that it is its turn plans the next map and proposes it by a conditional write. Several at once do no
//! harm; that is what is tested.

use std::collections::{BTreeMap, BTreeSet};

use roost_logic::{
    id::Generation,
    map::{ClusterMap, MapRequest},
    plan::{Life, NodeFacts, PlanInput, plan},
};

use super::{
    network::Frame,
    store::{MapChange, Operation},
    world::{SharedMap, World},
};

/// Requests of primaries are kept for so long.
const REQUEST_MS: u64 = 1_000;
/// A write that never came back is given up.
const PATIENCE_MS: u64 = 1_000;

/// What a process needs to be steward.
#[derive(Debug, Default)]
pub(super) struct Steward {
    busy_until_ms: Option<u64>,
    /// What it waits for is the outcome of a change.
    changing: bool,
    pub(super) requests: Vec<(u64, MapRequest)>,
}

impl Steward {
    /// Whether a change that it has proposed is under way.
    pub(super) fn is_changing(&self) -> bool {
        self.changing
    }

    fn is_answered(&mut self) {
        (self.busy_until_ms, self.changing) = (None, false);
    }
}

impl World {
    /// The steward, as this node sees it.
    fn steward_of(&self, node: usize) -> usize {
        (0..self.nodes.len()).find(|other| self.believes_alive(node, *other)).unwrap_or(node)
    }

    pub(super) fn ask_steward(&mut self, node: usize, request: MapRequest) {
        self.say(|| format!("n{} asks: {request:?}", node + 1));
        let steward = self.steward_of(node);
        let now = self.now;
        // Whoever usurps the office may have got the request too.
        if steward == node || self.random.permille(self.profile.usurp) {
            self.process(node).steward.requests.push((now, request.clone()));
        }
        if steward != node {
            let generation = self.process(node).beliefs[steward].generation;
            let to = roost_logic::id::Member { node: self.nodes[steward].id.clone(), generation };
            self.send(node, &to, Frame::MapRequest(request));
        }
    }

    /// One look at the cluster.
    pub(super) fn govern(&mut self, node: usize) {
        let now = self.now;
        let steward = &mut self.process(node).steward;
        steward.requests.retain(|(at, _)| at + REQUEST_MS >= now);
        if steward.busy_until_ms.is_some_and(|until| until > now) {
            return;
        }
        steward.is_answered();
        let turn = self.steward_of(node) == node;
        if !turn && !self.random.permille(self.profile.usurp) {
            return;
        }
        self.ledger.count_if(!turn, "stewards out of turn");
        let Some(map) = self.process(node).map.clone() else {
            return self.ask_and_wait(node, Operation::ReadMap);
        };
        if let Some(next) = self.plan(node, &map) {
            self.propose(node, map.version, next);
        }
    }

    fn ask_and_wait(&mut self, node: usize, operation: Operation) {
        let until = self.now + PATIENCE_MS;
        self.process(node).steward.busy_until_ms = Some(until);
        self.ask_store(node, operation);
    }

    fn propose(&mut self, node: usize, expected: u64, next: ClusterMap) {
        self.ask_and_wait(node, Operation::ChangeMap { expected, next: SharedMap::new(next) });
        self.process(node).steward.changing = true;
        self.doom(node);
    }

    fn plan(&mut self, node: usize, map: &ClusterMap) -> Option<ClusterMap> {
        // Sometimes it has looked at the generations in the store, sometimes it knows by gossip only.
        let looks = self.random.permille(500);
        let now = self.now;
        let process = self.nodes[node].process.as_ref()?;
        let mut nodes = BTreeMap::new();
        for (number, other) in self.nodes.iter().enumerate() {
            let belief = &process.beliefs[number];
            let own = number == node;
            let heard = if own { process.member.generation } else { belief.generation };
            let allotted = self.store.generations.get(&other.id).copied().filter(|_| looks && !self.store.down);
            let generation: Generation = heard.max(allotted.unwrap_or(0));
            if generation == 0 {
                continue;
            }
            let draining = if own { other.draining } else { belief.draining };
            let facts = NodeFacts {
                generation,
                alive: own || (belief.alive && generation == heard),
                suspect: !own && belief.heard_ms + 600 < now,
                state: if draining { Life::Draining } else { Life::Serving },
                zone: String::new(),
            };
            nodes.insert(other.id.clone(), facts);
        }
        let requests: Vec<_> = process.steward.requests.iter().map(|(_, request)| request.clone()).collect();
        let input = PlanInput {
            map,
            nodes: &nodes,
            requests: &requests,
            forgotten: &BTreeSet::new(),
            copies: self.profile.copies,
            max_moves: 2,
        };
        plan(&input)
    }

    pub(super) fn map_read(&mut self, node: usize, result: Result<Option<SharedMap>, ()>) {
        self.process(node).steward.is_answered();
        match result {
            Ok(Some(map)) => self.learn_map(node, map),
            // The first one makes the first map.
            Ok(None) => {
                let first = ClusterMap::first(&self.process(node).member.clone(), self.profile.slots);
                self.propose(node, 0, first);
            }
            Err(()) => {}
        }
    }

    pub(super) fn map_changed(&mut self, node: usize, change: MapChange) {
        self.process(node).steward.is_answered();
        match change {
            MapChange::Applied(map) => {
                self.learn_map(node, map.clone());
                for other in 0..self.nodes.len() {
                    let generation = self.process(node).beliefs[other].generation;
                    if other != node && generation > 0 && !self.random.permille(self.profile.map_lost) {
                        let to = roost_logic::id::Member { node: self.nodes[other].id.clone(), generation };
                        self.send(node, &to, Frame::Map(map.clone()));
                    }
                }
            }
            MapChange::Conflict | MapChange::Unknown => self.ask_and_wait(node, Operation::ReadMap),
        }
    }
}
