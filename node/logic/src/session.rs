//! A session's life in its slot: attach, displace, grace, end, and what it leaves behind.
//!
//! Only entries change it, so every copy of the slot has the same. Attachment numbers are at least the time of the
//! attach: they grow even when a slot has lost its memory and the record came back from the store.
//!
//! What a backend has put the session into is in its record, and so in the store. What its client has joined is kept beside
//! the attachment, for as long as the client is there or may come back: a slot that has lost it is told by the client's gateway.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{
    entry::{EndReason, Joined, NAMED_BYTES, SESSION_BYTES, SessionChange, SessionRecord},
    request::ClientView,
};
use crate::id::{AttachmentNumber, GroupName, Index, Member};

/// The one live connection of a session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// A later one displaces it.
    #[serde(deserialize_with = "crate::id::number")]
    pub number: AttachmentNumber,
    /// Where the client is connected.
    pub gateway: Member,
    /// The gateway's number for the connection.
    pub connection: u64,
    /// When its client asked for it first, in milliseconds since 1970.
    #[serde(deserialize_with = "crate::id::number")]
    pub since_ms: u64,
}

impl Attachment {
    /// Whether it is this connection's.
    pub fn is_of(&self, gateway: &Member, connection: u64) -> bool {
        self.gateway == *gateway && self.connection == connection
    }
}

/// Where a session is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Stage {
    /// A client is attached, by the last attachment.
    Attached,
    /// The socket of the last attachment dropped; present until then.
    Grace {
        /// Milliseconds since 1970.
        #[serde(deserialize_with = "crate::id::number")]
        until_ms: u64,
    },
    /// Not present.
    Detached,
    /// Over; kept until its presences are gone and the store knows.
    Ended(EndReason),
}

/// A session in its slot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Session {
    /// What the store has too.
    pub record: SessionRecord,
    /// Where it is.
    pub stage: Stage,
    /// The last attachment, live or not.
    pub last: Option<Attachment>,
    /// What its client has joined: none where it has no client, none that is in the record.
    pub joined: Joined,
    /// The revision that last took a group or a right from it, or may have: whoever knows an earlier one may name groups that
    /// it is not to be in.
    #[serde(deserialize_with = "crate::id::number")]
    pub taken: u64,
    /// The entry that last changed the record, and the last one that the store has.
    #[serde(deserialize_with = "crate::id::number")]
    pub changed: Index,
    /// See `changed`.
    #[serde(deserialize_with = "crate::id::number")]
    pub saved: Index,
    /// When the record was last used, as the entry `changed` had it: what the store has, or is to have.
    #[serde(deserialize_with = "crate::id::number")]
    pub noted_ms: u64,
    /// Presences to be taken out of these groups, up to this attachment.
    #[serde(deserialize_with = "crate::id::numbers")]
    pub departing: BTreeMap<GroupName, AttachmentNumber>,
    /// Groups that the client left lately: should its gateway have died before it took the presence out, the end of the
    /// attachment does.
    pub left: BTreeSet<GroupName>,
    /// Earlier attachments, by gateway, which nobody has said to be closed: whoever attaches waits for them, also where the
    /// primary that displaced them has gone, or the gateway was wrongly believed dead.
    #[serde(deserialize_with = "crate::id::numbers")]
    pub open: BTreeMap<Member, AttachmentNumber>,
    /// The gateway of the last attachment has said that it is closed.
    pub closed: bool,
}

/// Why a client has not joined a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotJoined {
    /// The session has no client: its grace is over, or the slot has lost sight of it.
    Absent,
    /// The session's grants do not allow it.
    NotGranted,
}

/// A first attempt is never refused for a later connection, whatever the clocks of primaries say.
const OVERTAKEN_AFTER_MS: u64 = 1_000;
/// More than these are not remembered in `left`.
const LEFT_MAX: usize = 64;
/// More than these are not remembered in `open`; those of the past are nearly all of gateways that are dead.
const OPEN_MAX: usize = 16;

impl Session {
    /// A session as created or loaded.
    pub fn new(record: SessionRecord, index: Index, stored: bool) -> Self {
        Self {
            noted_ms: record.last_used_ms,
            taken: record.revision,
            record,
            stage: Stage::Detached,
            last: None,
            joined: Joined::new(),
            changed: index,
            saved: if stored { index } else { 0 },
            departing: BTreeMap::new(),
            left: BTreeSet::new(),
            open: BTreeMap::new(),
            closed: false,
        }
    }

    /// What it takes in memory, in bytes, about.
    pub fn held_bytes(&self) -> u64 {
        let named = self.departing.keys().chain(&self.left).chain(self.joined.keys());
        let named = named.map(|group| NAMED_BYTES + group.as_str().len());
        let open = self.open.len() * NAMED_BYTES;
        self.record.held_bytes() + (SESSION_BYTES + open + named.sum::<usize>()) as u64
    }

    /// The live connection, where there is one.
    pub fn attachment(&self) -> Option<&Attachment> {
        self.last.as_ref().filter(|_| self.stage == Stage::Attached)
    }

    /// Whether the last attachment is of another gateway than this.
    pub fn is_of_other_gateway(&self, gateway: &Member) -> bool {
        self.last.as_ref().is_some_and(|last| last.gateway != *gateway)
    }

    /// Whether a connection may not have it with this token, since there is a newer one. What has been attached with it
    /// stays, and so do repeats of that.
    pub fn refuses(&self, token: u32, gateway: &Member, connection: u64) -> bool {
        token < self.record.token && !self.last.as_ref().is_some_and(|last| last.is_of(gateway, connection))
    }

    /// The number of the last attachment; 0 before the first.
    pub fn last_number(&self) -> AttachmentNumber {
        self.last.as_ref().map_or(0, |last| last.number)
    }

    /// Whether its groups show it.
    pub fn is_present(&self) -> bool {
        matches!(self.stage, Stage::Attached | Stage::Grace { .. })
    }

    /// Why it is over, if it is.
    pub fn ended(&self) -> Option<EndReason> {
        match self.stage {
            Stage::Ended(reason) => Some(reason),
            Stage::Attached | Stage::Grace { .. } | Stage::Detached => None,
        }
    }

    /// As its client is told of it.
    pub fn view(&self) -> ClientView {
        ClientView { record: self.record.clone(), joined: self.joined.clone() }
    }

    /// Whether it is in this group, by a backend's word or its client's.
    pub fn is_in(&self, group: &GroupName) -> bool {
        self.record.groups.contains(group) || self.joined.contains_key(group)
    }

    /// Whether it is one that entries can have made: what comes from a peer is looked at.
    pub fn is_sound(&self) -> bool {
        self.is_present() || self.joined.is_empty()
    }

    /// Whether the store lacks something. It has nothing of one that is ephemeral.
    pub fn is_unsaved(&self) -> bool {
        !self.record.id.is_ephemeral() && self.saved < self.changed
    }

    /// The record is other than the store has it.
    ///
    /// # Panics
    /// Where the entry is from before the last change: entries are applied in the order of the log.
    pub fn mark_changed(&mut self, index: Index) {
        assert!(self.changed <= index, "changed by an entry from before: {index} after {}", self.changed);
        self.changed = index;
        self.noted_ms = self.record.last_used_ms;
    }

    /// Why it is to end at this time, if it is.
    pub fn expired(&self, wall_ms: u64) -> Option<EndReason> {
        if self.ended().is_some() {
            return None;
        }
        if wall_ms >= self.record.expires_ms {
            return Some(EndReason::Expired);
        }
        let idle_until = self.record.last_used_ms.saturating_add(self.record.idle_ttl_ms);
        (self.attachment().is_none() && wall_ms >= idle_until).then_some(EndReason::Idle)
    }

    /// Gives the session to a connection; the attachment that it takes the place of is `open` until its gateway says
    /// otherwise. The connection of the last attachment takes it up again under its number: its gateway was believed dead
    /// and is not.
    ///
    /// Not done, and nothing, where its gateway has said that the connection is gone; and where this was asked for in vain
    /// for a while, and meanwhile a later connection was given the session: its client has most likely gone there. It is not
    /// said to be displaced, so that it may come again if not.
    pub fn attach(&mut self, gateway: Member, connection: u64, since_ms: u64, at_ms: u64) -> Option<Attachment> {
        let retried = since_ms.saturating_add(OVERTAKEN_AFTER_MS) <= at_ms;
        let is_other = |live: &&Attachment| !live.is_of(&gateway, connection);
        if retried && self.attachment().filter(is_other).is_some_and(|live| since_ms < live.since_ms) {
            return None;
        }
        let again = self.last.as_ref().filter(|last| last.is_of(&gateway, connection)).cloned();
        if again.is_some() && self.closed {
            // What its gateway asked before it said that the connection is gone comes after that.
            return None;
        }
        let was_closed = std::mem::take(&mut self.closed);
        self.stage = Stage::Attached;
        self.record.last_used_ms = self.record.last_used_ms.max(at_ms);
        if let Some(again) = again {
            // Its presences have this number too.
            let Self { record, departing, .. } = self;
            departing.retain(|group, of| *of < again.number || !record.groups.contains(group));
            return Some(again);
        }
        let number = at_ms.max(self.last_number().saturating_add(1));
        assert!(self.last_number() < number || number == u64::MAX, "attachment numbers grow");
        // A node that has started anew has no earlier connections.
        self.open.retain(|other, _| other.node != gateway.node || other.generation >= gateway.generation);
        let now = Attachment { number, gateway, connection, since_ms };
        let earlier = self.last.replace(now.clone()).filter(|_| !was_closed);
        if let Some(earlier) = earlier {
            self.open.insert(earlier.gateway, earlier.number);
        }
        if self.open.len() > OPEN_MAX {
            let oldest = self.open.iter().min_by_key(|(_, number)| **number).map(|(gateway, _)| gateway.clone());
            oldest.map(|gateway| self.open.remove(&gateway));
        }
        Some(now)
    }

    /// Gives the session back to the attachment of this number, of which its gateway says that it is there still. Nothing
    /// where a later one was given meanwhile, perhaps by an entry that was on its way when the gateway said so.
    ///
    /// What its client had joined comes back too where it is not known here, but for a gateway that may not have heard of a
    /// group, or a right to one, being taken since the `revision` that it knows: all or nothing, since which is not known.
    pub fn restore(
        &mut self,
        gateway: Member,
        connection: u64,
        number: AttachmentNumber,
        (revision, joined): (u64, Joined),
    ) -> Option<Attachment> {
        if number < self.last_number() {
            return None;
        }
        let knows_client = self.knows_client(number);
        // A number is the time of the attach or later: taken for the time, it gives the attachment the number that it has.
        let attachment = self.attach(gateway, connection, number, number)?;
        if !knows_client && self.taken <= revision {
            for (group, needs_grant) in joined {
                // The grants may be others than those that it was joined by.
                let _ = self.join_as_client(group, needs_grant);
            }
        }
        Some(attachment)
    }

    /// Whether what the client of this attachment has joined is known here.
    pub fn knows_client(&self, number: AttachmentNumber) -> bool {
        self.is_present() && self.last_number() == number
    }

    /// It is attached still, so it counts as used. Whether that says something new.
    pub fn used(&mut self, at_ms: u64) -> bool {
        let says = self.attachment().is_some() && self.record.last_used_ms < at_ms;
        if says {
            self.record.last_used_ms = at_ms;
        }
        says
    }

    /// Whether the store should hear that it was used at this time. What it knows is then never older than half the time
    /// after which an unused session ends: when all copies are lost, that much is left to come back. More often would be a
    /// write for each of thousands of clients that reconnect at once.
    pub fn should_note(&self, used_ms: u64) -> bool {
        let is_old = used_ms.saturating_sub(self.noted_ms) >= (self.record.idle_ttl_ms / 2).max(1_000);
        is_old && !self.record.id.is_ephemeral()
    }

    /// A gateway has cut off this attachment and earlier ones.
    pub fn close(&mut self, gateway: &Member, number: AttachmentNumber) {
        if self.open.get(gateway).is_some_and(|open| *open <= number) {
            self.open.remove(gateway);
        }
    }

    /// The socket is gone, as its gateway says (`closed`) or as it is believed. Whether that was the live attachment.
    pub fn detach(
        &mut self,
        gateway: &Member,
        number: AttachmentNumber,
        at_ms: u64,
        until_ms: u64,
        closed: bool,
    ) -> bool {
        let is_it = |attachment: &Attachment| attachment.number == number && attachment.gateway == *gateway;
        if closed {
            self.open.retain(|of, open| of != gateway || *open != number);
            self.closed |= self.last.as_ref().is_some_and(is_it);
        }
        let live = self.attachment().is_some_and(is_it);
        if live {
            self.stage = Stage::Grace { until_ms };
            self.record.last_used_ms = self.record.last_used_ms.max(at_ms);
        }
        live
    }

    /// The connection is gone, as its gateway says, which does not know under which number it was attached, if it was.
    /// Whether that was the live attachment.
    pub fn withdraw(&mut self, gateway: &Member, connection: u64, at_ms: u64, until_ms: u64) -> bool {
        let last = self.last.as_ref().filter(|last| last.is_of(gateway, connection));
        let number = last.map(|last| last.number);
        number.is_some_and(|number| self.detach(gateway, number, at_ms, until_ms, true))
    }

    /// The grace has passed: its groups no longer show it. Whether the store should hear when it was last used: from here it
    /// may be forgotten by all who knew. One that is ephemeral is over: nothing else remembers it.
    pub fn grace_over(&mut self, number: AttachmentNumber) -> bool {
        let over = matches!(self.stage, Stage::Grace { .. }) && self.last_number() == number;
        if over {
            let is_ephemeral = self.record.id.is_ephemeral();
            self.stage = if is_ephemeral { Stage::Ended(EndReason::Lapsed) } else { Stage::Detached };
            self.depart();
        }
        over && self.noted_ms < self.record.last_used_ms
    }

    /// It is over. The attachment to be told so.
    pub fn end(&mut self, reason: EndReason) -> Option<Attachment> {
        if self.ended().is_some() {
            return None;
        }
        let attachment = self.attachment().cloned();
        self.stage = Stage::Ended(reason);
        self.depart();
        attachment
    }

    /// A change over HTTP. What its client has joined and new grants do not allow is left; what a backend has put it into
    /// stays, whatever the grants.
    pub fn change(&mut self, change: SessionChange, at_ms: u64) {
        let SessionChange { expires_ms, attributes, grants, new_token, join, leave } = change;
        let takes = grants.is_some() || !leave.is_empty();
        let record = &mut self.record;
        record.expires_ms = expires_ms.unwrap_or(record.expires_ms);
        record.attributes = attributes.unwrap_or_else(|| record.attributes.clone());
        record.grants = grants.unwrap_or_else(|| std::mem::take(&mut record.grants));
        record.token = record.token.saturating_add(u32::from(new_token));
        record.revision = record.revision.saturating_add(1).max(at_ms);
        record.last_used_ms = record.last_used_ms.max(at_ms);
        if takes {
            self.taken = record.revision;
        }
        for group in join {
            self.join(group);
        }
        for group in leave.iter().chain(&self.forbidden()) {
            self.leave(group);
        }
    }

    /// Groups that its client has joined and that its grants do not allow.
    fn forbidden(&self) -> Vec<GroupName> {
        let joined = self.joined.iter();
        let forbidden = joined.filter(|(group, needs_grant)| !self.record.may_join(group, **needs_grant));
        forbidden.map(|(group, _)| group.clone()).collect()
    }

    /// By the server's word it is in this group from now on.
    fn join(&mut self, group: GroupName) {
        self.joined.remove(&group);
        self.hold(&group);
        self.record.groups.insert(group);
    }

    /// Its client has joined this group.
    ///
    /// # Errors
    /// Where it has no client, or its grants do not allow it by now.
    pub fn join_as_client(&mut self, group: GroupName, needs_grant: bool) -> Result<(), NotJoined> {
        if !self.is_present() {
            return Err(NotJoined::Absent);
        }
        if !self.record.groups.contains(&group) {
            if !self.record.may_join(&group, needs_grant) {
                return Err(NotJoined::NotGranted);
            }
            self.joined.insert(group.clone(), needs_grant);
        }
        self.hold(&group);
        Ok(())
    }

    /// Its client has left this group, or new grants or a backend took it. Whether that changes the record.
    pub fn leave(&mut self, group: &GroupName) -> bool {
        let was_given = self.record.groups.remove(group);
        if self.joined.remove(group).is_some() || was_given {
            if self.left.len() >= LEFT_MAX {
                self.left.pop_first();
            }
            self.left.insert(group.clone());
        }
        was_given
    }

    /// It is in this group again. The presence of its attachment, where it is to be taken out, is to stay: that attachment's
    /// end takes it out. Not so an earlier one's, or that of a session without a client, which nothing else would take out.
    fn hold(&mut self, group: &GroupName) {
        self.left.remove(group);
        if self.is_present() && self.departing.get(group) == Some(&self.last_number()) {
            self.departing.remove(group);
        }
    }

    /// Presences are out of these groups, each up to this attachment. A later one's is still to be taken out.
    pub fn departed(&mut self, groups: &BTreeMap<GroupName, AttachmentNumber>) {
        self.departing.retain(|group, number| groups.get(group).is_none_or(|done| *done < *number));
    }

    /// Whether nothing is left to do for it, so that it may leave the memory.
    pub fn is_at_rest(&self) -> bool {
        matches!(self.stage, Stage::Detached | Stage::Ended(_)) && self.departing.is_empty() && !self.is_unsaved()
    }

    fn depart(&mut self) {
        let number = self.last_number();
        let joined = std::mem::take(&mut self.joined).into_keys();
        let groups = self.record.groups.iter().cloned().chain(joined).chain(std::mem::take(&mut self.left));
        self.departing.extend(groups.map(|group| (group, number)));
    }
}
