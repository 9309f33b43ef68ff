//! The planner, asked under every belief about the nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
};

use roost_logic::{
    id::{Member, NodeId},
    map::{ClusterMap, MapRequest, SlotAssignment},
    plan::{Life, NodeFacts, PlanInput, plan},
};

use super::{
    copies::{Copies, NODES},
    table::Numbers,
};

/// Requests as bits: to promote, or to drop, the process with this number.
pub(super) fn request_bit(copies: &Copies, request: &MapRequest) -> u32 {
    match request {
        MapRequest::Promote { learner, .. } => 1 << copies.process(learner),
        MapRequest::Drop { member, .. } => 1 << (copies.process(member) + 16),
    }
}

/// The assignment under which a request was made.
pub(super) fn asked_under(request: &MapRequest) -> u64 {
    match request {
        MapRequest::Promote { changed_at, .. } | MapRequest::Drop { changed_at, .. } => *changed_at,
    }
}

/// The number of a map that may follow, and whether the planner chose a member for it that it could know to be lost.
type Proposal = (u32, bool);

/// What the planner could make of a map.
#[derive(Debug, Default)]
pub(super) struct Proposals {
    /// By the map, the requests, and which nodes have started again.
    known: Numbers<(u32, u32, u32), Rc<Vec<Proposal>>>,
}

/// What can be believed of a node: dead, doubtful, draining, or serving.
const BELIEFS: [Option<(bool, Life)>; 4] =
    [None, Some((true, Life::Serving)), Some((false, Life::Draining)), Some((false, Life::Serving))];

impl Proposals {
    /// All maps that may follow.
    pub(super) fn of(&mut self, copies: &mut Copies, map: u32, asked: u32, restarted: u32) -> Rc<Vec<Proposal>> {
        if let Some(known) = self.known.get(&(map, asked, restarted)) {
            return known.clone();
        }
        let now = copies.map(map).clone();
        let mut next: Vec<(SlotAssignment, bool)> = Vec::new();
        for beliefs in 0..BELIEFS.len().pow(NODES as u32) {
            // A node that has started again may not be known to have.
            for noticed in subsets(restarted) {
                let nodes = facts(copies, beliefs, noticed);
                for requests in subsets(asked) {
                    for copy_count in [2, 3] {
                        let planned = planned(copies, &now, &nodes, requests, copy_count);
                        let Some(planned) = planned.filter(|planned| *planned != *now) else { continue };
                        let is_wrong = chooses_the_lost(copies, &now, &planned, noticed);
                        if !next.contains(&(planned.clone(), is_wrong)) {
                            next.push((planned, is_wrong));
                        }
                    }
                }
            }
        }
        let numbers = next.iter().map(|(next, is_wrong)| (copies.map_number(next), *is_wrong));
        let numbers: Rc<Vec<_>> = Rc::new(numbers.collect());
        self.known.insert((map, asked, restarted), numbers.clone());
        numbers
    }
}

/// Whether a map makes a member primary or learner of whose node a later start is known.
fn chooses_the_lost(copies: &Copies, now: &SlotAssignment, next: &SlotAssignment, noticed: u32) -> bool {
    let is_lost = |node: usize, member: &Member| noticed >> node & 1 == 1 && copies.members[node] == *member;
    (0..NODES).any(|node| {
        now.primary != next.primary && is_lost(node, &next.primary)
            || now.learner != next.learner && next.learner.as_ref().is_some_and(|learner| is_lost(node, learner))
    })
}

fn subsets(of: u32) -> impl Iterator<Item = u32> {
    let mut next = Some(of);
    std::iter::from_fn(move || {
        let this = next?;
        next = (this != 0).then(|| (this - 1) & of);
        Some(this)
    })
}

fn facts(copies: &Copies, beliefs: usize, noticed: u32) -> BTreeMap<NodeId, NodeFacts> {
    let mut nodes = BTreeMap::new();
    for node in 0..NODES {
        let belief = BELIEFS[beliefs / BELIEFS.len().pow(node as u32) % BELIEFS.len()];
        let is_noticed = noticed >> node & 1 == 1;
        let member = &copies.members[if is_noticed { NODES + node } else { node }];
        let generation = member.generation;
        if let Some((suspect, state)) = belief {
            let facts = NodeFacts { generation, alive: true, suspect, state, zone: String::new() };
            nodes.insert(member.node.clone(), facts);
        } else if is_noticed {
            let facts =
                NodeFacts { generation, alive: false, suspect: false, state: Life::Starting, zone: String::new() };
            nodes.insert(member.node.clone(), facts);
        }
    }
    nodes
}

/// One plan. Requests from under another assignment are always among those that it is given.
fn planned(
    copies: &Copies,
    now: &SlotAssignment,
    nodes: &BTreeMap<NodeId, NodeFacts>,
    asked: u32,
    copy_count: u8,
) -> Option<SlotAssignment> {
    let members = (0..NODES).map(|node| (copies.members[node].node.clone(), copies.members[node].generation)).collect();
    let map = ClusterMap { version: now.changed_at, members, slots: vec![now.clone()] };
    let mut requests = Vec::new();
    for (number, member) in copies.members.iter().enumerate() {
        let changed_at = now.changed_at - 1;
        requests.push(MapRequest::Promote { slot: 0, changed_at, learner: member.clone() });
        requests.push(MapRequest::Drop { slot: 0, changed_at, member: member.clone() });
        let changed_at = now.changed_at;
        if asked >> number & 1 == 1 {
            requests.push(MapRequest::Promote { slot: 0, changed_at, learner: member.clone() });
        }
        if asked >> (number + 16) & 1 == 1 {
            requests.push(MapRequest::Drop { slot: 0, changed_at, member: member.clone() });
        }
    }
    let forgotten = BTreeSet::new();
    let input =
        PlanInput { map: &map, nodes, requests: &requests, forgotten: &forgotten, copies: copy_count, max_moves: 4 };
    plan(&input).and_then(|next| next.slots.into_iter().next())
}
