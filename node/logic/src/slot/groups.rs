//! A slot's groups, and what an entry makes of one.

use std::{collections::BTreeMap, sync::Arc};

use super::members::Members;
use crate::{
    entry::{GroupEntry, MemberEvent, Message, NewMessage, Presence},
    few::Few,
    id::{Epoch, GroupName},
    log::GroupLog,
    memory::StateBytes,
};

/// What a group takes beside its name, what is kept of it, and who is there.
const GROUP_BYTES: u64 = 800;

/// One group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    pub log: GroupLog,
    pub members: Members,
}

impl Group {
    /// With this log and these members.
    pub(super) fn new(log: GroupLog, members: Members) -> Self {
        Self { log, members }
    }

    /// What it takes, in bytes, about.
    pub(super) fn held_bytes(&self, name: &GroupName) -> StateBytes {
        StateBytes {
            history: self.log.history_bytes(),
            repeats: self.log.window_bytes(),
            groups: GROUP_BYTES + name.as_str().len() as u64 + self.members.held_bytes,
            sessions: 0,
        }
    }

    /// Whether nothing is kept of it and nobody is there.
    pub fn is_empty(&self) -> bool {
        self.log.is_empty() && self.members.is_empty()
    }
}

/// What an entry of a group came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GroupEffect {
    /// Nothing that anyone is told.
    Quiet,
    /// Where earlier publishes stand: nothing for those that are not there.
    Recalled {
        /// The log.
        epoch: Epoch,
        offsets: Vec<Option<u64>>,
    },
    /// Publishes have their places; a repeat has the first one's and no message.
    Published {
        /// The log.
        epoch: Epoch,
        /// Where each stands.
        offsets: Few<u64>,
        /// To be delivered; they follow each other.
        messages: Few<Message>,
    },
    /// A session came, went, or is told of otherwise than before.
    Member { event: MemberEvent, member: Presence },
}

/// By name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Groups(pub(super) BTreeMap<GroupName, Arc<Group>>);

impl Groups {
    /// What this group takes.
    pub(super) fn held_bytes(&self, name: &GroupName) -> StateBytes {
        self.0.get(name).map_or_else(StateBytes::default, |group| group.held_bytes(name))
    }

    /// Drops messages of all groups up to this time: how many, and their bytes.
    pub(super) fn shed(&mut self, until_ms: u64) -> (u64, u64) {
        let with_some = self.0.values_mut().filter(|group| group.log.has_until(until_ms));
        let each = with_some.map(|group| Arc::make_mut(group).log.shed(until_ms));
        each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    pub(super) fn apply(&mut self, name: &GroupName, entry: GroupEntry) -> GroupEffect {
        match entry {
            GroupEntry::Open { epoch } => {
                self.open(name, epoch);
                GroupEffect::Quiet
            }
            GroupEntry::Publish { epoch, messages: new, from, at_ms, retention } => {
                let log = &mut self.open(name, epoch).log;
                let (mut offsets, mut messages) = (Few::default(), Few::default());
                for NewMessage { key, data } in new {
                    let (offset, message) = log.append(key, data, from.clone(), at_ms, retention);
                    offsets.push(offset);
                    messages.extend(message);
                }
                GroupEffect::Published { epoch: log.epoch(), offsets, messages }
            }
            GroupEntry::Recall { keys } => match self.0.get(name).map(|there| &there.log) {
                Some(log) => GroupEffect::Recalled {
                    epoch: log.epoch(),
                    offsets: keys.iter().map(|key| log.seen(*key)).collect(),
                },
                None => GroupEffect::Quiet,
            },
            GroupEntry::MemberJoin { epoch, member } => self.member_join(name, epoch, member),
            GroupEntry::MemberLeave { seat } => match self.0.get_mut(name) {
                Some(there) if there.members.would_leave(&seat) => {
                    let member = Arc::make_mut(there).members.leave(&seat);
                    told(member.map(|member| (MemberEvent::Leave, member)))
                }
                Some(_) | None => GroupEffect::Quiet,
            },
            GroupEntry::MemberUpdate { member } => match self.0.get_mut(name) {
                Some(there) if there.members.would_update(&member) => told(Arc::make_mut(there).members.join(member)),
                Some(_) | None => GroupEffect::Quiet,
            },
            GroupEntry::Trim { at_ms, remove } => {
                if let Some(there) = self.0.get_mut(name).map(Arc::make_mut) {
                    there.log.trim(at_ms);
                    if remove && there.is_empty() {
                        self.0.remove(name);
                    }
                }
                GroupEffect::Quiet
            }
        }
    }

    fn member_join(&mut self, name: &GroupName, epoch: Epoch, member: Presence) -> GroupEffect {
        told(self.open(name, epoch).members.join(member))
    }

    fn open(&mut self, name: &GroupName, epoch: Epoch) -> &mut Group {
        let new = || Arc::new(Group::new(GroupLog::new(epoch), Members::default()));
        Arc::make_mut(self.0.entry(name.clone()).or_insert_with(new))
    }
}

/// What is told of a session's presence, if anything.
fn told(changed: Option<(MemberEvent, Presence)>) -> GroupEffect {
    changed.map_or(GroupEffect::Quiet, |(event, member)| GroupEffect::Member { event, member })
}
