//! A session's life in its slot: what it may do, which clients it has, and its end.
//!
//! Only entries change it, so every copy of the slot has the same. Attachment numbers are at least the time of the
//! attach: they grow even when a slot has lost its memory and the record came back from the store.
//!
//! What a backend has put the session into is in its record, and so in the store, and every client of it is in that. What a
//! client has joined is its own, and in no store: `session/client.rs`.

mod client;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, num::NonZero};

use serde::{Deserialize, Serialize};

pub use self::client::{Attachment, Client, Stage};
use super::{
    entry::{EndReason, Joined, NAMED_BYTES, SESSION_BYTES, SessionChange, SessionRecord},
    request::{ClientView, ListedClient, SessionView},
};
use crate::id::{AttachmentNumber, ClientId, ClientKey, GroupName, Index, Member};

/// A session in its slot.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Session {
    /// What the store has too.
    pub record: SessionRecord,
    /// Why it is over; kept until its presences are gone and the store knows.
    pub ended: Option<EndReason>,
    /// Those that are there, may come back, or have left something behind.
    pub clients: BTreeMap<ClientKey, Box<Client>>,
    /// Of the last attachment of a client that is here or was: later ones have higher numbers.
    #[serde(deserialize_with = "crate::id::number")]
    pub last_number: AttachmentNumber,
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
}

/// Why a client has not joined or left a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotJoined {
    /// The session has no such client: its grace is over, or the slot has lost sight of it.
    Absent,
    /// The session's grants do not allow it.
    NotGranted,
}

/// Why a client does not have the session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotAttached {
    /// A later connection of the client has it, or it is known to be gone.
    Overtaken,
    /// There are as many clients as there may be.
    Full,
}

/// How many clients a session may have at once, and what becomes of one more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Room {
    pub clients_max: u16,
    pub when_full: WhenFull,
}

/// What becomes of a client for which its session has no room.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// It takes the place of the one that has been gone the longest; where all are there, of the one that attached first.
    Displace,
    /// It is refused.
    Refuse,
}

/// A connection that asks for a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asking {
    pub client: ClientId,
    pub gateway: Member,
    /// The gateway's number for it.
    pub connection: u64,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

/// A connection has the session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Given {
    pub attachment: Attachment,
    /// The live attachments of clients that had to go for it.
    pub crowded_out: Vec<(ClientKey, Attachment)>,
}

/// Clients that are gone and not forgotten: past it a session takes no new one.
const GONE_MAX: usize = 64;
/// A session travels whole: past this number of bytes, with what its clients would leave behind, it takes no new client and no
/// new group.
const WHOLE_MAX_BYTES: u64 = 12 << 20;
/// Of those for which nothing is left to do no more than these are kept.
const AT_REST_MAX: usize = 4;

impl Session {
    /// A session as created or loaded.
    pub fn new(record: SessionRecord, index: Index, stored: bool) -> Self {
        Self {
            noted_ms: record.last_used_ms,
            taken: record.revision,
            record,
            ended: None,
            clients: BTreeMap::new(),
            last_number: 0,
            changed: index,
            saved: if stored { index } else { 0 },
        }
    }

    /// What it takes in memory, in bytes, about.
    pub fn held_bytes(&self) -> u64 {
        let clients = self.clients.values().map(|client| client.held_bytes());
        self.record.held_bytes() + (SESSION_BYTES + clients.sum::<usize>()) as u64
    }

    /// Whether it has as much to tell as one that travels may have: each client that goes leaves behind what it is to be taken out of.
    pub fn has_outgrown(&self) -> bool {
        let given = self.record.groups.iter().map(|group| (NAMED_BYTES + group.as_str().len()) as u64).sum::<u64>();
        self.held_bytes() + given * self.clients.len() as u64 >= WHOLE_MAX_BYTES
    }

    /// A client that it has, or has had.
    pub fn client(&self, key: ClientKey) -> Option<&Client> {
        self.clients.get(&key).map(|client| &**client)
    }

    /// The live connections.
    pub fn attachments(&self) -> impl Iterator<Item = (ClientKey, &Attachment)> {
        self.clients.iter().filter_map(|(key, client)| Some((*key, client.attachment()?)))
    }

    /// Whether a client is attached.
    pub fn is_attached(&self) -> bool {
        self.attachments().next().is_some()
    }

    /// Whether its groups show it.
    pub fn is_present(&self) -> bool {
        self.clients.values().any(|client| client.is_present())
    }

    /// Whether a connection may not have it with this token, since there is a newer one. What has been attached with it
    /// stays, and so do repeats of that.
    pub fn refuses(&self, token: u32, gateway: &Member, connection: u64) -> bool {
        token < self.record.token && !self.clients.values().any(|client| client.last.is_of(gateway, connection))
    }

    /// As a client of it is told of it; a client that is not known here has joined nothing.
    pub fn view(&self, key: ClientKey) -> ClientView {
        let joined = self.client(key).map(|client| client.joined.clone());
        ClientView { record: self.record.clone(), joined: joined.unwrap_or_default() }
    }

    /// As backends are told of it.
    pub fn whole_view(&self) -> SessionView {
        let present = self.clients.values().filter(|client| client.is_present());
        let listed = |client: &Client| ListedClient {
            id: client.id.clone(),
            gateway: client.last.gateway.clone(),
            since_ms: client.last.since_ms,
            attached: client.stage == Stage::Attached,
            joined: client.joined.clone(),
        };
        SessionView { record: self.record.clone(), clients: present.map(|client| listed(client)).collect() }
    }

    /// In how many groups this client is or would be, and whether it is in this one.
    pub fn groups_of(&self, key: ClientKey, group: &GroupName) -> (usize, bool) {
        let joined = self.client(key).map(|client| &client.joined);
        let is_in = self.record.groups.contains(group) || joined.is_some_and(|joined| joined.contains_key(group));
        (self.record.groups.len() + joined.map_or(0, Joined::len), is_in)
    }

    /// In how many groups the client is that is in the most.
    pub fn most_groups(&self) -> usize {
        let joined = self.clients.values().map(|client| client.joined.len()).max();
        self.record.groups.len() + joined.unwrap_or(0)
    }

    /// Whether it is one that entries can have made: what comes from a peer is looked at.
    pub fn is_sound(&self) -> bool {
        self.clients.iter().all(|(key, client)| {
            let numbers = client.open.values().chain(client.departing.values()).chain([&client.last.number]);
            client.id.key() == *key
                && (client.is_present() || client.joined.is_empty())
                && (self.ended.is_none() || !client.is_present())
                && numbers.max() <= Some(&self.last_number)
        })
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
        if self.ended.is_some() {
            return None;
        }
        if wall_ms >= self.record.expires_ms {
            return Some(EndReason::Expired);
        }
        let idle_until = self.record.last_used_ms.saturating_add(self.record.idle_ttl_ms);
        (!self.is_attached() && wall_ms >= idle_until).then_some(EndReason::Idle)
    }

    /// How many clients it may have, where this is configured.
    pub fn room(&self, configured: Room) -> Room {
        let own = self.record.clients_max.map_or(u16::MAX, NonZero::get);
        Room { clients_max: own.min(configured.clients_max), ..configured }
    }

    /// Whether a client that is not present finds no room here.
    pub fn is_full(&self, key: ClientKey, room: Room) -> bool {
        let present = self.clients.values().filter(|client| client.is_present());
        !self.client(key).is_some_and(Client::is_present) && present.count() >= usize::from(room.clients_max.max(1))
    }

    /// Gives the session to a connection of a client. Its earlier attachment is `open` until its gateway says otherwise. The
    /// connection of the last attachment takes it up again under its number.
    ///
    /// # Errors
    /// Where it comes too late ([`NotAttached::Overtaken`]), which is not said to be displaced, so that the client may come again
    /// if it has not gone elsewhere. And where there is no room, and none is made.
    pub fn attach(&mut self, asking: Asking, at_ms: u64, room: Room) -> Result<Given, NotAttached> {
        let number = at_ms.max(self.last_number.saturating_add(1));
        self.give(asking, (number, at_ms), room)
    }

    fn give(
        &mut self,
        Asking { client, gateway, connection, since_ms }: Asking,
        (number, at_ms): (AttachmentNumber, u64),
        room: Room,
    ) -> Result<Given, NotAttached> {
        let key = client.key();
        if self.client(key).is_some_and(|known| known.overtakes(&gateway, connection, since_ms, at_ms)) {
            return Err(NotAttached::Overtaken);
        }
        let gone = self.clients.values().filter(|client| !client.is_present()).count();
        if (self.is_full(key, room) && room.when_full == WhenFull::Refuse)
            || (!self.clients.contains_key(&key) && (gone >= GONE_MAX || self.has_outgrown()))
        {
            return Err(NotAttached::Full);
        }
        let mut crowded_out = Vec::new();
        while self.is_full(key, room) {
            crowded_out.extend(self.crowd_out(at_ms));
        }
        self.record.last_used_ms = self.record.last_used_ms.max(at_ms);
        if let Some(known) = self.clients.get_mut(&key).filter(|known| known.last.is_of(&gateway, connection)) {
            known.attach_again(&self.record.groups);
            return Ok(Given { attachment: known.last.clone(), crowded_out });
        }
        self.last_number = self.last_number.max(number);
        let attachment = Attachment { number, gateway, connection, since_ms };
        match self.clients.get_mut(&key) {
            Some(known) => known.attach(attachment.clone()),
            None => {
                self.clients.insert(key, Box::new(Client::new(client, attachment.clone())));
            }
        }
        Ok(Given { attachment, crowded_out })
    }

    /// Makes room for a client: the one whose grace ends first goes, or that attached first. Its attachment, where it is live.
    ///
    /// # Panics
    /// Where no client is present.
    fn crowd_out(&mut self, at_ms: u64) -> Option<(ClientKey, Attachment)> {
        let present = self.clients.iter_mut().filter(|(_, client)| client.is_present());
        let (key, first) = present
            .min_by_key(|(_, client)| match client.stage {
                Stage::Grace { until_ms } => (0, until_ms, client.last.number),
                Stage::Attached | Stage::Gone { .. } => (1, client.last.since_ms, client.last.number),
            })
            .expect("who is to make room is there");
        let live = first.attachment().cloned();
        first.go(&self.record.groups, at_ms);
        live.map(|live| (*key, live))
    }

    /// Gives the session back to the attachment of this number, of which its gateway says that it is there still. Not where a
    /// later one of the client was given meanwhile, perhaps by an entry that was on its way when the gateway said so, and not where
    /// there is no room.
    ///
    /// What its client had joined comes back too where it is not known here, but for a gateway that may not have heard of a
    /// group, or a right to one, being taken since the `revision` that it knows: all or nothing, since which is not known.
    ///
    /// # Errors
    /// See above.
    pub fn restore(
        &mut self,
        asking: Asking,
        number: AttachmentNumber,
        (revision, joined): (u64, Joined),
        room: Room,
    ) -> Result<Given, NotAttached> {
        let key = asking.client.key();
        // Two lineages of the slot may have given the same number: who attached in this one has it.
        let is_later = |last: &Attachment| {
            last.number > number || (last.number == number && !last.is_of(&asking.gateway, asking.connection))
        };
        if self.client(key).is_some_and(|known| is_later(&known.last)) {
            return Err(NotAttached::Overtaken);
        }
        let knows_client = self.knows_client(key, number);
        // Nobody has to go for a client that came earlier.
        let room = Room { when_full: WhenFull::Refuse, ..room };
        // A number is the time of the attach or later.
        let given = self.give(asking, (number, number), room)?;
        if !knows_client && self.taken <= revision {
            for (group, needs_grant) in joined {
                // The grants may be others than those that it was joined by.
                let _ = self.join_as_client(key, group, needs_grant);
            }
        }
        Ok(given)
    }

    /// Whether what the client of this attachment has joined is known here.
    pub fn knows_client(&self, key: ClientKey, number: AttachmentNumber) -> bool {
        self.client(key).is_some_and(|client| client.is_present() && client.last.number == number)
    }

    /// It is attached still, so it counts as used. Whether that says something new.
    pub fn used(&mut self, at_ms: u64) -> bool {
        let says = self.is_attached() && self.record.last_used_ms < at_ms;
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

    /// A gateway has cut off this attachment of a client and earlier ones.
    pub fn close(&mut self, key: ClientKey, gateway: &Member, number: AttachmentNumber) {
        if let Some(client) = self.clients.get_mut(&key) {
            client.close(gateway, number);
        }
    }

    /// The socket of a client is gone, as its gateway says (`closed`) or as it is believed. Whether that was the live attachment.
    pub fn detach(
        &mut self,
        key: ClientKey,
        (gateway, number): (&Member, AttachmentNumber),
        at_ms: u64,
        until_ms: u64,
        closed: bool,
    ) -> bool {
        let Some(client) = self.clients.get_mut(&key) else { return false };
        let live = client.detach(gateway, number, until_ms, closed);
        if live {
            self.record.last_used_ms = self.record.last_used_ms.max(at_ms);
        }
        live
    }

    /// The connection is gone, as its gateway says, which does not know under which number it was attached, if it was.
    /// Whether that was the live attachment.
    pub fn withdraw(
        &mut self,
        key: ClientKey,
        (gateway, connection): (&Member, u64),
        at_ms: u64,
        until_ms: u64,
    ) -> bool {
        let last = self.client(key).map(|client| &client.last).filter(|last| last.is_of(gateway, connection));
        let number = last.map(|last| last.number);
        number.is_some_and(|number| self.detach(key, (gateway, number), at_ms, until_ms, true))
    }

    /// The grace of a client has passed: its groups no longer show it. Whether the store should hear when the session was last
    /// used: from here it may be forgotten by all who knew. One that is ephemeral is over with its last client: nothing else
    /// remembers it.
    pub fn grace_over(&mut self, key: ClientKey, number: AttachmentNumber) -> bool {
        let Some(client) = self.clients.get_mut(&key) else { return false };
        let Stage::Grace { until_ms } = client.stage else { return false };
        let over = client.last.number == number;
        if over {
            client.go(&self.record.groups, until_ms);
        }
        if over && !self.is_present() && self.record.id.is_ephemeral() {
            self.ended = Some(EndReason::Lapsed);
        }
        over && !self.is_present() && self.noted_ms < self.record.last_used_ms
    }

    /// It is over. The attachments to be told so.
    pub fn end(&mut self, reason: EndReason, at_ms: u64) -> Vec<Attachment> {
        if self.ended.is_some() {
            return Vec::new();
        }
        let attachments = self.attachments().map(|(_, attachment)| attachment.clone()).collect();
        self.ended = Some(reason);
        self.clients.values_mut().for_each(|client| client.go(&self.record.groups, at_ms));
        attachments
    }

    /// A change over HTTP. What its clients have joined and new grants do not allow is left; what a backend has put it into
    /// stays, whatever the grants.
    pub fn change(&mut self, change: SessionChange, at_ms: u64) {
        let SessionChange { expires_ms, attributes, grants, new_token, join, leave } = change;
        let takes = grants.is_some() || !leave.is_empty();
        let record = &mut self.record;
        record.expires_ms = expires_ms.unwrap_or(record.expires_ms);
        record.attributes = attributes.unwrap_or_else(|| record.attributes.clone());
        record.grants = grants.unwrap_or_else(|| std::mem::take(&mut record.grants));
        record.token = record.token.saturating_add(u32::from(new_token));
        self.revise(takes, at_ms);
        for group in join {
            self.join(group);
        }
        for group in &leave {
            self.clients.values_mut().for_each(|client| {
                client.leave(group);
            });
            self.take_from(group);
        }
        let record = &self.record;
        for client in self.clients.values_mut() {
            let joined = client.joined.iter();
            let forbidden = joined.filter(|(group, needs_grant)| !record.may_join(group, **needs_grant));
            for group in forbidden.map(|(group, _)| group.clone()).collect::<Vec<_>>() {
                client.leave(&group);
            }
        }
    }

    /// The record is another one from now on.
    fn revise(&mut self, takes: bool, at_ms: u64) {
        self.record.revision = self.record.revision.saturating_add(1).max(at_ms);
        self.record.last_used_ms = self.record.last_used_ms.max(at_ms);
        if takes {
            self.taken = self.record.revision;
        }
    }

    /// By the server's word it is in this group from now on, with all of its clients.
    fn join(&mut self, group: GroupName) {
        for client in self.clients.values_mut() {
            client.joined.remove(&group);
            client.hold(&group);
        }
        self.record.groups.insert(group);
    }

    /// It is out of this group that a backend had put it into, with all of its clients. Whether it was in it.
    fn take_from(&mut self, group: &GroupName) -> bool {
        let was_given = self.record.groups.remove(group);
        if was_given {
            self.clients.values_mut().for_each(|client| client.has_left(group));
        }
        was_given
    }

    /// A client of it has joined this group.
    ///
    /// # Errors
    /// Where it has no such client, or its grants do not allow it by now.
    pub fn join_as_client(&mut self, key: ClientKey, group: GroupName, needs_grant: bool) -> Result<(), NotJoined> {
        let client = self.clients.get_mut(&key).filter(|client| client.is_present()).ok_or(NotJoined::Absent)?;
        if self.record.groups.contains(&group) {
            client.hold(&group);
        } else if self.record.may_join(&group, needs_grant) {
            client.join(group, needs_grant);
        } else {
            return Err(NotJoined::NotGranted);
        }
        Ok(())
    }

    /// A client of it has left this group; one that a backend had put the session into all of its clients leave. Whether that
    /// changes the record.
    ///
    /// # Errors
    /// Where it has no such client, or one that has attached since.
    pub fn leave_as_client(
        &mut self,
        (key, number): (ClientKey, AttachmentNumber),
        group: &GroupName,
        at_ms: u64,
    ) -> Result<bool, NotJoined> {
        let is_it = |client: &&mut Box<Client>| client.is_present() && client.last.number <= number;
        let client = self.clients.get_mut(&key).filter(is_it).ok_or(NotJoined::Absent)?;
        client.leave(group);
        let was_given = self.take_from(group);
        if was_given {
            self.revise(true, at_ms);
        }
        Ok(was_given)
    }

    /// Presences of a client are out of these groups, each up to this attachment.
    pub fn departed(&mut self, key: ClientKey, groups: &BTreeMap<GroupName, AttachmentNumber>) {
        if let Some(client) = self.clients.get_mut(&key) {
            client.departed(groups);
        }
    }

    /// Forgets clients for which nothing is left to do, but for the last few.
    pub fn tidy(&mut self) {
        let at_rest = self.clients.iter().filter(|(_, client)| client.is_at_rest());
        let mut at_rest: Vec<_> = at_rest.map(|(key, client)| (client.last.number, *key)).collect();
        if at_rest.len() > AT_REST_MAX {
            at_rest.sort_unstable();
            let last = at_rest.len() - AT_REST_MAX;
            at_rest[..last].iter().for_each(|(_, key)| drop(self.clients.remove(key)));
        }
    }

    /// Forgets a client that is gone and has left nothing behind: its connections are known to be closed, though nobody has said
    /// so.
    pub fn forget_client(&mut self, key: ClientKey, number: AttachmentNumber) {
        self.clients.retain(|of, client| *of != key || !client.has_departed() || client.last.number != number);
    }

    /// Whether nothing is left to do for it, so that it may leave the memory.
    pub fn is_at_rest(&self) -> bool {
        self.clients.values().all(|client| client.has_departed()) && !self.is_unsaved()
    }
}
