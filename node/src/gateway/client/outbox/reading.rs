//! Where a reader of server-sent events is in its groups, as far as its outbox has it told.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Queued;
use crate::{
    id::{GroupName, Position},
    wire::{codec::Codec, events, frame::Frame},
};

/// The groups of one reader, and where it is in each.
#[derive(Debug)]
pub struct Reading {
    groups: Box<[GroupName]>,
    places: Mutex<Box<[Option<Position>]>>,
}

impl Reading {
    /// A reader that comes with these positions, one for each group.
    pub fn new(groups: &[GroupName], places: &[Option<Position>]) -> Self {
        Self { groups: groups.into(), places: Mutex::new(places.into()) }
    }

    pub(super) fn codec(&self) -> Codec {
        if self.groups.len() == 1 { Codec::Events } else { Codec::EventsOfMany }
    }

    /// Where the reader is when a group was joined at this position: what it missed of the same log follows.
    pub(super) fn joined_at(&self, group: &GroupName, position: Position) -> Position {
        let place = self.at(group).and_then(|at| self.places()[at]);
        let is_before = |place: &Position| place.epoch == position.epoch && place.offset <= position.offset;
        place.filter(is_before).unwrap_or(position)
    }

    /// The reader is at this position of a group with a frame that is queued after the line it is given. What else moves it waits
    /// until then, so that no id tells of an event that comes after its own.
    pub(super) fn moves(&self, group: &GroupName, to: Position, queue: impl FnOnce(Frame) -> Queued) -> Queued {
        let mut places = self.places();
        let before = self.at(group).map(|at| (at, places[at].replace(to)));
        let queued = queue(events::id_line(&events::id(&self.groups, &places)));
        if let (Queued::Full | Queued::Ended, Some((at, place))) = (queued, before) {
            places[at] = place;
        }
        queued
    }

    fn at(&self, group: &GroupName) -> Option<usize> {
        self.groups.iter().position(|one| one == group)
    }

    fn places(&self) -> MutexGuard<'_, Box<[Option<Position>]>> {
        // No code panics while it holds this lock.
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
