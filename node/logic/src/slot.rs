//! A slot's state: its groups and its sessions. It changes only by [`SlotState::apply`], which is deterministic, so that
//! every copy that applied the same entries is the same.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    entry::{EndReason, Entry, Message, Presence, SessionRecord},
    log::{GroupLog, GroupLogSnapshot},
    session::{Attachment, Session},
};
use crate::id::{AttachmentNumber, Epoch, GroupName, Index, Member, Position, SessionId};

/// One group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// Its messages.
    pub log: GroupLog,
    /// Who is there.
    pub members: BTreeMap<SessionId, Presence>,
}

impl Group {
    /// Whether nothing is kept of it and nobody is there.
    pub fn is_empty(&self) -> bool {
        self.log.is_empty() && self.members.is_empty()
    }
}

/// See the module.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SlotState {
    groups: BTreeMap<GroupName, Group>,
    sessions: BTreeMap<SessionId, Session>,
}

/// A [`SlotState`] as it travels to a learner.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SlotSnapshot {
    groups: Vec<(GroupName, GroupLogSnapshot, Vec<Presence>)>,
    sessions: Vec<Session>,
}

/// What applying an entry came to; the primary answers and delivers by it, the others drop it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Nothing to tell.
    Nothing,
    /// The group is there.
    Opened,
    /// A publish has its place; a repeat has the first one's and no message.
    Published {
        /// The group.
        group: GroupName,
        /// Where it stands.
        position: Position,
        /// To be delivered.
        message: Option<Message>,
    },
    /// Someone newly came into a group (`joined`) or went.
    Member {
        /// The group.
        group: GroupName,
        /// Came, or went.
        joined: bool,
        /// Who.
        member: Presence,
    },
    /// The session is there, as created, loaded or changed.
    Session,
    /// There is no such session, or it is over.
    NoSession(Option<EndReason>),
    /// The session was changed over HTTP.
    Changed(SessionId),
    /// A connection has the session now, instead of an earlier one.
    Attached {
        /// Which.
        session: SessionId,
        /// As it is now.
        attachment: Attachment,
        /// Earlier ones, by gateway, to be cut off.
        displaced: BTreeMap<Member, AttachmentNumber>,
    },
    /// The session is over.
    Ended {
        /// Which.
        session: SessionId,
        /// To be told.
        attachment: Option<Attachment>,
    },
}

impl SlotState {
    /// A group, if it exists.
    pub fn group(&self, name: &GroupName) -> Option<&Group> {
        self.groups.get(name)
    }

    /// All groups, by name.
    pub fn groups(&self) -> &BTreeMap<GroupName, Group> {
        &self.groups
    }

    /// A session, if it is in memory.
    pub fn session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id)
    }

    /// All sessions in memory.
    pub fn sessions(&self) -> &BTreeMap<SessionId, Session> {
        &self.sessions
    }

    /// Takes the next entry.
    pub fn apply(&mut self, index: Index, entry: Entry) -> Effect {
        match entry {
            Entry::OpenGroup { group, epoch } => {
                self.open(group, epoch);
                Effect::Opened
            }
            Entry::Publish { group, epoch, key, data, from, at_ms, retention } => {
                let log = &mut self.open(group.clone(), epoch).log;
                let (offset, message) = log.append(key, data, from, at_ms, retention);
                Effect::Published { group, position: Position { epoch: log.epoch(), offset }, message }
            }
            Entry::MemberJoin { group, epoch, member } => self.member_join(group, epoch, member),
            Entry::MemberLeave { group, session, attachment } => {
                let Some(there) = self.groups.get_mut(&group) else {
                    return Effect::Nothing;
                };
                if there.members.get(&session).is_none_or(|member| member.attachment > attachment) {
                    return Effect::Nothing;
                }
                match there.members.remove(&session) {
                    Some(member) => Effect::Member { group, joined: false, member },
                    None => Effect::Nothing,
                }
            }
            Entry::Trim { group, at_ms, remove } => {
                if let Some(there) = self.groups.get_mut(&group) {
                    there.log.trim(at_ms);
                    if remove && there.is_empty() {
                        self.groups.remove(&group);
                    }
                }
                Effect::Nothing
            }
            entry => self.apply_to_session(index, entry),
        }
    }

    fn apply_to_session(&mut self, index: Index, entry: Entry) -> Effect {
        let (id, outlives_end) = match &entry {
            Entry::SessionPut { record, stored } => {
                return self.session_put(index, record.clone(), *stored);
            }
            Entry::SessionChange { session, .. }
            | Entry::SessionEnd { session, .. }
            | Entry::Attach { session, .. }
            | Entry::Detach { session, .. }
            | Entry::GraceOver { session, .. }
            | Entry::SessionJoin { session, .. }
            | Entry::SessionLeave { session, .. }
            | Entry::Used { session, .. } => (*session, false),
            Entry::Departed { session, .. }
            | Entry::Closed { session, .. }
            | Entry::Saved { session, .. }
            | Entry::Forget { session } => (*session, true),
            // Those of groups are handled by `apply`.
            _ => return Effect::Nothing,
        };
        let Some(session) = self.sessions.get_mut(&id) else {
            return Effect::NoSession(None);
        };
        if let (Some(reason), false) = (session.ended(), outlives_end) {
            return Effect::NoSession(Some(reason));
        }
        let forget = matches!(entry, Entry::Forget { .. });
        let effect = Self::change_session(id, session, index, entry);
        // One that could not be stored is remembered for a while: a repeat of its creation would make it again, and the store,
        // where an end is for ever, would not have it.
        let is_over = session.ended().is_some_and(|reason| reason != EndReason::NotStored);
        if session.is_at_rest() && (forget || is_over) {
            self.sessions.remove(&id);
        }
        effect
    }

    fn change_session(id: SessionId, session: &mut Session, index: Index, entry: Entry) -> Effect {
        let changed = match entry {
            Entry::SessionChange { change, at_ms, .. } => {
                session.change(change, at_ms);
                session.mark_changed(index);
                return Effect::Changed(id);
            }
            // One of several repeats of a creation failed; another has put the session into the store.
            Entry::SessionEnd { reason: EndReason::NotStored, .. } if session.saved > 0 => false,
            Entry::SessionEnd { reason, .. } => {
                session.mark_changed(index);
                return Effect::Ended { session: id, attachment: session.end(reason) };
            }
            Entry::Attach { gateway, connection, since_ms, at_ms, .. } => {
                if !session.attach(gateway, connection, since_ms, at_ms) {
                    return Effect::Nothing;
                }
                if session.should_note(session.record.last_used_ms) {
                    session.mark_changed(index);
                }
                return match session.attachment() {
                    Some(attachment) => Effect::Attached {
                        session: id,
                        attachment: attachment.clone(),
                        displaced: session.open.clone(),
                    },
                    None => Effect::NoSession(None),
                };
            }
            Entry::Detach { attachment, at_ms, grace_until_ms, closed, .. } => {
                session.detach(attachment, at_ms, grace_until_ms, closed)
                    && session.should_note(session.record.last_used_ms)
            }
            Entry::Closed { gateway, attachment, .. } => {
                session.close(&gateway, attachment);
                false
            }
            Entry::SessionJoin { group, .. } => session.join(group),
            Entry::SessionLeave { group, .. } => session.leave(&group),
            Entry::Used { at_ms, .. } => session.used(at_ms),
            Entry::GraceOver { attachment, .. } => session.grace_over(attachment),
            Entry::Departed { groups, .. } => {
                session.departing.retain(|group, _| !groups.contains(group));
                false
            }
            Entry::Saved { index, .. } => {
                session.saved = session.saved.max(index);
                false
            }
            _ => false,
        };
        if changed {
            session.mark_changed(index);
        }
        Effect::Session
    }

    fn session_put(&mut self, index: Index, record: SessionRecord, stored: bool) -> Effect {
        if let Some(there) = self.sessions.get(&record.id) {
            return there.ended().map_or(Effect::Session, |reason| Effect::NoSession(Some(reason)));
        }
        self.sessions.insert(record.id, Session::new(record, index, stored));
        Effect::Session
    }

    fn member_join(&mut self, group: GroupName, epoch: Epoch, member: Presence) -> Effect {
        let there = self.open(group.clone(), epoch);
        match there.members.get_mut(&member.session) {
            Some(earlier) => {
                if earlier.attachment <= member.attachment {
                    *earlier = member;
                }
                Effect::Opened
            }
            None => {
                there.members.insert(member.session, member.clone());
                Effect::Member { group, joined: true, member }
            }
        }
    }

    fn open(&mut self, group: GroupName, epoch: Epoch) -> &mut Group {
        self.groups.entry(group).or_insert_with(|| Group { log: GroupLog::new(epoch), members: BTreeMap::new() })
    }

    /// For a learner.
    pub fn snapshot(&self) -> SlotSnapshot {
        SlotSnapshot {
            groups: self
                .groups
                .iter()
                .map(|(name, group)| (name.clone(), group.log.snapshot(), group.members.values().cloned().collect()))
                .collect(),
            sessions: self.sessions.values().cloned().collect(),
        }
    }

    /// From a primary's snapshot.
    pub fn restore(snapshot: SlotSnapshot) -> Self {
        let groups = snapshot.groups.into_iter().map(|(name, log, members)| {
            let members = members.into_iter().map(|member| (member.session, member)).collect();
            (name, Group { log: GroupLog::restore(log), members })
        });
        let sessions = snapshot.sessions.into_iter().map(|session| (session.record.id, session));
        Self { groups: groups.collect(), sessions: sessions.collect() }
    }
}
