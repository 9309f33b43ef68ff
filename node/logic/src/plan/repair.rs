//! What must be done for a slot: take-overs, what its primary asks for, hand-over by draining nodes, missing copies.

use super::{
    Life,
    draft::{Draft, Standing},
};
use crate::{
    id::{Member, NodeId},
    map::{MapRequest, SlotAssignment},
};

/// Dead members leave; a dead primary is followed by another in-sync member, or, where all are lost, by anyone.
pub(super) fn failures(draft: &mut Draft<'_>) {
    for slot in 0..draft.slots.len() {
        let assignment = &draft.slots[slot];
        if draft.is_dead(&assignment.primary) {
            if let Some(heir) = heir(draft, assignment) {
                draft.transfer(slot, &heir);
                remove_dead(draft, slot);
            } else if let Some(learner) = asked_to_promote(draft, slot) {
                // The primary required it for every commit before it asked (rule 3), so it holds all that is committed.
                promote(draft, slot, &learner);
            } else if assignment.in_sync.iter().all(|member| draft.is_lost(member)) {
                restart(draft, slot);
            }
        } else {
            remove_dead(draft, slot);
        }
    }
}

/// Carries out what primaries ask for, where the slot is still as they saw it.
pub(super) fn requests(draft: &mut Draft<'_>) {
    for request in draft.input.requests {
        let slot = usize::from(request.slot());
        let Some(before) = draft.input.map.slots.get(slot) else { continue };
        let assignment = &draft.slots[slot];
        // Under a new term the requests of the old primary are void; with it dead its slot must not lose anyone more.
        if assignment.term != before.term || draft.is_dead(&assignment.primary) {
            continue;
        }
        match request {
            MapRequest::Promote { changed_at, learner, .. } => {
                if *changed_at == before.changed_at && assignment.learner.as_ref() == Some(learner) {
                    promote(draft, slot, learner);
                }
            }
            MapRequest::Drop { changed_at, member, .. } => {
                if *changed_at == before.changed_at && *member != assignment.primary && assignment.concerns(member) {
                    draft.change(slot, |assignment| {
                        assignment.in_sync.retain(|other| other != member);
                        assignment.learner.take_if(|learner| learner == member);
                    });
                    draft.dropped.insert(slot, member.clone());
                }
            }
        }
    }
}

/// Hands over what draining nodes hold, lets go of what is too many, and finds learners for what is missing.
pub(super) fn arrange(draft: &mut Draft<'_>) {
    for slot in 0..draft.slots.len() {
        let assignment = &draft.slots[slot];
        let before = &draft.input.map.slots[slot].in_sync;
        // Whoever becomes in-sync by this map can do more only by the next, and without a primary nothing can be done.
        if assignment.in_sync.iter().any(|member| !before.contains(member))
            || assignment.in_sync.iter().any(|member| draft.is_dead(member))
        {
            continue;
        }
        if assignment.learner.as_ref().is_some_and(|learner| draft.is_draining(learner)) {
            draft.change(slot, |assignment| assignment.learner = None);
        }
        let surplus = draft.slots[slot].in_sync.len() > draft.copies();
        let handed_over = hand_over(draft, slot, surplus);
        if surplus {
            if !handed_over {
                let primary = draft.slots[slot].primary.clone();
                if let Some(leaver) = draft.leavers[slot].take().filter(|leaver| *leaver != primary) {
                    draft.change(slot, |assignment| assignment.in_sync.retain(|member| *member != leaver));
                }
            }
        } else {
            fill(draft, slot, handed_over);
        }
    }
}

/// A primary that drains, or that is to leave, is followed by one that stays. Not while a learner is catching up: it
/// would have to start again.
fn hand_over(draft: &mut Draft<'_>, slot: usize, surplus: bool) -> bool {
    let assignment = &draft.slots[slot];
    let leaves = draft.is_draining(&assignment.primary)
        || (surplus && draft.leavers[slot].as_ref() == Some(&assignment.primary));
    if !leaves || assignment.learner.is_some() {
        return false;
    }
    let heir = heir(draft, assignment).filter(|heir| draft.is_staying(heir));
    if let Some(heir) = &heir {
        draft.transfer(slot, heir);
    }
    heir.is_some()
}

/// Finds a learner for a slot that lacks a copy, or of which a copy is on a draining node. Where there is nobody, a
/// draining node leaves all the same if another holds the slot.
fn fill(draft: &mut Draft<'_>, slot: usize, handed_over: bool) {
    let assignment = &draft.slots[slot];
    let draining = assignment.in_sync.iter().find(|member| draft.is_draining(member)).cloned();
    if assignment.learner.is_some() || (assignment.in_sync.len() >= draft.copies() && draining.is_none()) {
        return;
    }
    if draft.learners >= draft.moves().saturating_mul(4) {
        return;
    }
    if let Some(node) = candidate(draft, slot) {
        draft.learn(slot, node);
    } else if let Some(leaver) = draining
        && !handed_over
        && draft.is_staying(&assignment.primary)
    {
        draft.change(slot, |assignment| assignment.in_sync.retain(|member| *member != leaver));
    }
}

/// Who can hold another copy of the slot: best in a zone of its own, then the least loaded.
fn candidate(draft: &Draft<'_>, slot: usize) -> Option<usize> {
    let assignment = &draft.slots[slot];
    let zones: Vec<&str> = assignment
        .in_sync
        .iter()
        .filter(|member| !draft.is_draining(member))
        .map(|member| draft.zone(member))
        .collect();
    let dropped = draft.dropped.get(&slot).map(|member| &member.node);
    let free = |id: &NodeId| assignment.in_sync.iter().all(|member| member.node != *id);
    draft
        .nodes
        .iter()
        .enumerate()
        .filter(|(_, node)| node.is_serving() && free(node.id))
        .min_by_key(|(_, node)| {
            let zone = node.facts.zone.as_str();
            (dropped == Some(node.id), !zone.is_empty() && zones.contains(&zone), node.load, node.id)
        })
        .map(|(number, _)| number)
}

/// Who of the in-sync set follows the primary: serving rather than starting rather than draining, then the one with the
/// fewest slots to lead.
fn heir(draft: &Draft<'_>, assignment: &SlotAssignment) -> Option<Member> {
    assignment
        .in_sync
        .iter()
        .filter(|member| **member != assignment.primary)
        .filter_map(|member| match draft.standing(member) {
            Standing::Up(node) => Some((preference(draft, node), member)),
            Standing::Dead | Standing::Doubtful => None,
        })
        .min()
        .map(|(_, member)| member.clone())
}

/// Smaller is better.
fn preference(draft: &Draft<'_>, node: usize) -> (u8, usize) {
    let node = &draft.nodes[node];
    let state = match node.facts.state {
        Life::Serving => 0,
        Life::Starting => 1,
        Life::Draining => 2,
    };
    (state, node.primaries)
}

/// The slot begins again with nothing. On a starting node only where nobody serves: then the whole cluster is starting.
fn restart(draft: &mut Draft<'_>, slot: usize) {
    let up = (0..draft.nodes.len()).filter(|node| draft.nodes[*node].is_staying());
    let Some(node) = up.min_by_key(|node| (preference(draft, *node), *node)) else { return };
    let member = draft.nodes[node].member();
    draft.transfer(slot, &member);
    draft.change(slot, |assignment| {
        assignment.lineage += 1;
        assignment.in_sync = vec![member];
        assignment.learner = None;
    });
}

fn remove_dead(draft: &mut Draft<'_>, slot: usize) {
    let assignment = &draft.slots[slot];
    let dead: Vec<Member> = assignment.copies().filter(|member| draft.is_dead(member)).cloned().collect();
    if !dead.is_empty() {
        draft.change(slot, |assignment| {
            assignment.in_sync.retain(|member| !dead.contains(member));
            assignment.learner.take_if(|learner| dead.contains(learner));
        });
    }
}

/// The slot's learner, if its primary asked to have it in the in-sync set and it is alive.
fn asked_to_promote(draft: &Draft<'_>, slot: usize) -> Option<Member> {
    let assignment = &draft.slots[slot];
    let current = assignment.learner.as_ref().filter(|learner| !draft.is_dead(learner))?;
    let asked = draft.input.requests.iter().any(|request| match request {
        MapRequest::Promote { slot: of, changed_at, learner } => {
            usize::from(*of) == slot && *changed_at == assignment.changed_at && learner == current
        }
        MapRequest::Drop { .. } => false,
    });
    asked.then(|| current.clone())
}

fn promote(draft: &mut Draft<'_>, slot: usize, learner: &Member) {
    draft.change(slot, |assignment| {
        assignment.in_sync.push(learner.clone());
        assignment.in_sync.sort_unstable();
        assignment.learner = None;
    });
}
