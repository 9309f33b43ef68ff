//! Even load, by few moves at a time. Only slots with nothing else going on are touched.

use std::collections::VecDeque;

use super::draft::{Draft, Standing};

/// Primaries go to in-sync members with fewer of them, also by way of others: from a node with five over one with four to
/// one with three. Such a transfer copies nothing.
pub(super) fn primaries(draft: &mut Draft<'_>) {
    let nodes = draft.nodes.len();
    // Slots by (their primary, another in-sync member).
    let mut edges: Vec<Vec<Vec<usize>>> = vec![vec![Vec::new(); nodes]; nodes];
    for slot in settled(draft) {
        let holders = holders(draft, slot);
        let Standing::Up(primary) = draft.standing(&draft.slots[slot].primary) else { continue };
        for other in holders.into_iter().filter(|node| *node != primary) {
            edges[primary][other].push(slot);
        }
    }
    let mut budget = draft.moves();
    while budget > 0 {
        let Some(path) = overloaded(draft).into_iter().find_map(|from| downhill(draft, &edges, from)) else { return };
        for pair in path.windows(2) {
            let Some(slot) = edges[pair[0]][pair[1]].pop() else { return };
            let heir = draft.nodes[pair[1]].member();
            draft.transfer(slot, &heir);
            // Each slot moves at most once a plan.
            for others in &mut edges[pair[0]] {
                others.retain(|other| *other != slot);
            }
            budget = budget.saturating_sub(1);
        }
    }
}

/// Nodes that may give primaries, those with most first.
fn overloaded(draft: &Draft<'_>) -> Vec<usize> {
    let mut nodes: Vec<usize> = (0..draft.nodes.len()).filter(|node| draft.nodes[*node].is_staying()).collect();
    nodes.sort_by_key(|node| (std::cmp::Reverse(draft.nodes[*node].primaries), *node));
    nodes
}

/// The shortest way along which one primary each can be handed on, so that it ends at a node with at least two fewer.
fn downhill(draft: &Draft<'_>, edges: &[Vec<Vec<usize>>], from: usize) -> Option<Vec<usize>> {
    let mut came_from: Vec<Option<usize>> = vec![None; edges.len()];
    let mut queue = VecDeque::from([from]);
    while let Some(node) = queue.pop_front() {
        for (next, slots) in edges[node].iter().enumerate() {
            if slots.is_empty() || next == from || came_from[next].is_some() || !draft.nodes[next].is_serving() {
                continue;
            }
            came_from[next] = Some(node);
            if draft.nodes[next].primaries + 2 <= draft.nodes[from].primaries {
                let mut path = vec![next];
                while let Some(before) = came_from[path[path.len() - 1]] {
                    path.push(before);
                }
                path.reverse();
                return Some(path);
            }
            queue.push_back(next);
        }
    }
    None
}

/// Slots with two copies in one zone get one in another, where there is one.
pub(super) fn zones(draft: &mut Draft<'_>) {
    let zones: Vec<&str> = draft.nodes.iter().filter(|node| node.is_serving()).map(|node| &*node.facts.zone).collect();
    if zones.iter().all(|zone| zone.is_empty() || *zone == zones[0]) {
        return;
    }
    for slot in settled(draft) {
        if draft.learners >= draft.moves() {
            return;
        }
        let holders = holders(draft, slot);
        let used: Vec<&str> = holders.iter().map(|node| zone(draft, *node)).collect();
        let Some(crowded) = holders
            .iter()
            .copied()
            .filter(|node| shares_zone(draft, *node, &used))
            .max_by_key(|node| (draft.nodes[*node].load, *node))
        else {
            continue;
        };
        let other_zone = |node: usize| !zone(draft, node).is_empty() && !used.contains(&zone(draft, node));
        let best = (0..draft.nodes.len())
            .filter(|node| draft.nodes[*node].is_serving() && other_zone(*node))
            .min_by_key(|node| (draft.nodes[*node].load, *node));
        if let Some(best) = best {
            draft.learn(slot, best);
            draft.nodes[crowded].load -= 1;
        }
    }
}

/// Copies go from the most loaded node to the least, while they differ by two or more.
pub(super) fn copies(draft: &mut Draft<'_>) {
    let mut held: Vec<Vec<usize>> = vec![Vec::new(); draft.nodes.len()];
    for slot in settled(draft) {
        for node in holders(draft, slot) {
            held[node].push(slot);
        }
    }
    while draft.learners < draft.moves() {
        let Some((slot, from, to)) = next_move(draft, &held) else { return };
        draft.learn(slot, to);
        draft.nodes[from].load -= 1;
    }
}

/// (slot, from, to). Replicas are moved before primaries: that takes one step less.
fn next_move(draft: &Draft<'_>, held: &[Vec<usize>]) -> Option<(usize, usize, usize)> {
    let mut by_load: Vec<usize> = (0..draft.nodes.len()).filter(|node| draft.nodes[*node].is_staying()).collect();
    by_load.sort_by_key(|node| (draft.nodes[*node].load, *node));
    for from in by_load.iter().rev().copied() {
        for to in by_load.iter().copied().filter(|node| draft.nodes[*node].is_serving()) {
            if draft.nodes[to].load + 2 > draft.nodes[from].load {
                break;
            }
            let fits = |slot: &usize| !draft.changed[*slot] && may_replace(draft, *slot, from, to);
            let leads = |slot: &usize| draft.slots[*slot].primary.node == *draft.nodes[from].id;
            let replica = held[from].iter().copied().find(|slot| !leads(slot) && fits(slot));
            if let Some(slot) = replica.or_else(|| held[from].iter().copied().find(fits)) {
                return Some((slot, from, to));
            }
        }
    }
    None
}

/// Whether the copy may go to that node without more copies sharing a zone.
fn may_replace(draft: &Draft<'_>, slot: usize, from: usize, to: usize) -> bool {
    let before = holders(draft, slot);
    if before.contains(&to) {
        return false;
    }
    let after: Vec<usize> = before.iter().map(|node| if *node == from { to } else { *node }).collect();
    crowding(draft, &after) <= crowding(draft, &before)
}

/// How many of these nodes are in the zone of another that comes before.
fn crowding(draft: &Draft<'_>, nodes: &[usize]) -> usize {
    let repeats = |(at, node): (usize, &usize)| {
        let own = zone(draft, *node);
        !own.is_empty() && nodes[..at].iter().any(|other| zone(draft, *other) == own)
    };
    nodes.iter().enumerate().filter(|pair| repeats(*pair)).count()
}

fn zone<'a>(draft: &Draft<'a>, node: usize) -> &'a str {
    draft.nodes[node].facts.zone.as_str()
}

fn shares_zone(draft: &Draft<'_>, node: usize, used: &[&str]) -> bool {
    let own = zone(draft, node);
    !own.is_empty() && used.iter().filter(|zone| **zone == own).count() > 1
}

/// Slots with all the copies that there can be, all of them alive and staying, and nothing under way.
fn settled(draft: &Draft<'_>) -> Vec<usize> {
    let serving = draft.nodes.iter().filter(|node| node.is_serving()).count();
    let full = draft.copies().min(serving).max(1);
    let is_settled = |slot: &usize| {
        let assignment = &draft.slots[*slot];
        !draft.changed[*slot]
            && assignment.learner.is_none()
            && assignment.in_sync.len() == full
            && assignment.in_sync.iter().all(|member| draft.is_staying(member))
    };
    (0..draft.slots.len()).filter(is_settled).collect()
}

/// The nodes of a slot's in-sync set.
fn holders(draft: &Draft<'_>, slot: usize) -> Vec<usize> {
    let node = |member| match draft.standing(member) {
        Standing::Up(node) => Some(node),
        Standing::Dead | Standing::Doubtful => None,
    };
    draft.slots[slot].in_sync.iter().filter_map(node).collect()
}
