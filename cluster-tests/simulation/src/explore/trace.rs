//! What happened, in words.

use roost_logic::{
    map::SlotAssignment,
    replication::{Reconcile, ReplicationMessage},
};

use super::{
    copies::{Input, NODES},
    world::{Action, World},
};

/// One step.
pub(super) fn line(world: &World, action: Action) -> String {
    let member = |process: usize| &world.copies.members[process];
    match action {
        Action::Input(process, Input::Map(map)) => {
            format!("{} learns of {}", member(process), map_in_words(world.copies.map(map)))
        }
        Action::Input(process, Input::Frame(frame)) => {
            let frame = world.copies.frame(frame);
            format!("{} gets from {} {}", member(process), member(frame.from), frame_in_words(&frame.message))
        }
        Action::Input(process, Input::Publish(message)) => format!("{} orders message {message}", member(process)),
        Action::Input(process, Input::Reset(peer)) => {
            format!("{} sends {} a snapshot anew", member(process), member(peer))
        }
        Action::Propose(map) => format!("the store takes {}", map_in_words(world.copies.map(map))),
        Action::Crash(process) => format!("{} crashes", member(process)),
        Action::Restart(process) => format!("{} starts in the place of {}", member(process), member(process - NODES)),
    }
}

fn map_in_words(map: &SlotAssignment) -> String {
    let SlotAssignment { term, lineage, changed_at, primary, in_sync, learner } = map;
    let learner = learner.as_ref().map(|learner| format!(", learner {learner}")).unwrap_or_default();
    format!("map {changed_at}: lineage {lineage}, term {term}, primary {primary}, in-sync {in_sync:?}{learner}")
}

fn frame_in_words(message: &ReplicationMessage) -> String {
    match message {
        ReplicationMessage::Append { term, sync, reconcile, first, commit, entries } => {
            let count = entries.len();
            let what = match reconcile {
                Some(Reconcile { base, until }) => format!(", to reconcile {base}..{until}"),
                None => String::new(),
            };
            format!("{count} entries from {first} on (term {term}, episode {sync}, commit {commit}{what})")
        }
        ReplicationMessage::Piece { term, sync, lineage, index, number, is_last, .. } => {
            let last = if *is_last { ", the last" } else { "" };
            format!("piece {number}{last}, of the state as of {index} (term {term}, episode {sync}, lineage {lineage})")
        }
        ReplicationMessage::PieceAck { term, sync, index, count } => {
            format!("an acknowledgement of {count} pieces of the state as of {index} (term {term}, episode {sync})")
        }
        ReplicationMessage::Ack { term, sync, index, gap } => {
            let gap = if *gap { ", something missing" } else { "" };
            format!("an acknowledgement up to {index} (term {term}, episode {sync}{gap})")
        }
    }
}
