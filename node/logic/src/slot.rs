//! A slot's state: its groups and its sessions. It changes only by [`SlotState::apply`], which is deterministic, so that
//! every copy that applied the same entries is the same. Groups and sessions know nothing of each other: they share a log.

mod cut;
mod groups;
mod members;
mod sessions;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

pub use self::{
    cut::Place,
    groups::{Group, GroupEffect},
    members::Members,
    sessions::SessionEffect,
};
use self::{groups::Groups, sessions::Sessions};
use super::{
    entry::{Entry, Presence},
    log::{GroupLog, GroupLogSnapshot},
    memory::StateBytes,
    session::Session,
};
use crate::id::{GroupName, Index, SessionId};

/// See the module. A clone of it is a frozen state: it shares each group and session with the original until that changes it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SlotState {
    groups: Groups,
    sessions: Sessions,
    /// What all of it takes.
    bytes: StateBytes,
}

/// The running sum of bytes is compared with a recount once in this number of entries, where assertions are on.
const RECOUNT_EVERY: Index = 64;

/// A [`SlotState`] as it travels to a learner: whole, or a piece of it ([`SlotState::piece`]).
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SlotSnapshot {
    groups: Vec<(GroupName, GroupLogSnapshot, Vec<Presence>)>,
    sessions: Vec<Session>,
}

/// What applying an entry came to; the primary answers and delivers by it, the others drop it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// For this group.
    Group(GroupName, GroupEffect),
    /// For this session.
    Session(SessionId, SessionEffect),
    /// Messages were dropped for want of memory.
    Shed {
        messages: u64,
        /// What they took.
        bytes: u64,
    },
}

impl SlotSnapshot {
    /// Whether it is one that a slot can have made whose last entry is this one. It comes from a peer: one that is not must
    /// not be restored.
    pub fn is_sound(&self, index: Index) -> bool {
        let names: BTreeSet<_> = self.groups.iter().map(|(name, ..)| name).collect();
        let ids: BTreeSet<_> = self.sessions.iter().map(|session| session.record.id).collect();
        names.len() == self.groups.len()
            && ids.len() == self.sessions.len()
            && self.groups.iter().all(|(_, log, _)| log.is_sound())
            && self.sessions.iter().all(|session| session.changed <= index && session.is_sound())
    }
}

impl SlotState {
    /// A group, if it exists.
    pub fn group(&self, name: &GroupName) -> Option<&Group> {
        self.groups.0.get(name).map(|group| &**group)
    }

    /// All groups, by name.
    pub fn groups(&self) -> &BTreeMap<GroupName, Arc<Group>> {
        &self.groups.0
    }

    /// A session, if it is in memory.
    pub fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.0.get(&id).map(|session| &**session)
    }

    /// All sessions in memory.
    pub fn sessions(&self) -> &BTreeMap<SessionId, Arc<Session>> {
        &self.sessions.0
    }

    /// Takes the next entry.
    pub fn apply(&mut self, index: Index, entry: Entry) -> Effect {
        let effect = match entry {
            Entry::Group(name, entry) => {
                let before = self.groups.held_bytes(&name);
                let effect = self.groups.apply(&name, entry);
                self.bytes = self.bytes - before + self.groups.held_bytes(&name);
                Effect::Group(name, effect)
            }
            Entry::Session(id, entry) => {
                let before = self.sessions.held_bytes(id);
                let effect = self.sessions.apply(id, index, entry);
                self.bytes.sessions = self.bytes.sessions - before + self.sessions.held_bytes(id);
                Effect::Session(id, effect)
            }
            Entry::Shed { until_ms } => {
                let (messages, bytes) = self.groups.shed(until_ms);
                self.bytes.history -= bytes;
                Effect::Shed { messages, bytes }
            }
        };
        debug_assert!(!index.is_multiple_of(RECOUNT_EVERY) || self.bytes == self.recounted(), "bytes are all counted");
        effect
    }

    /// What it takes, in bytes, about.
    pub fn held_bytes(&self) -> StateBytes {
        self.bytes
    }

    /// The same, counted anew.
    pub fn recounted(&self) -> StateBytes {
        let groups = self.groups().iter().map(|(name, group)| group.held_bytes(name));
        let sessions = self.sessions().values().map(|session| session.held_bytes()).sum();
        groups.fold(StateBytes { sessions, ..StateBytes::default() }, |sum, group| sum + group)
    }

    /// From a primary's snapshot, which is sound.
    pub fn restore(snapshot: SlotSnapshot) -> Self {
        let groups = snapshot.groups.into_iter().map(|(name, log, members)| {
            (name, Arc::new(Group::new(GroupLog::restore(log), members.into_iter().collect())))
        });
        let sessions = snapshot.sessions.into_iter().map(|session| (session.record.id, Arc::new(session)));
        let (groups, sessions) = (Groups(groups.collect()), Sessions(sessions.collect()));
        let mut state = Self { groups, sessions, bytes: StateBytes::default() };
        state.bytes = state.recounted();
        state
    }
}
