//! One client of a session: attach, displace, grace, and what it leaves behind.
//!
//! What it has joined is kept beside its attachment, for as long as it is there or may come back: a slot that has lost it is told
//! by the client's gateway.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    entry::{Joined, NAMED_BYTES},
    id::{AttachmentNumber, ClientId, GroupName, Member},
};

/// The one live connection of a client.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// A later one of the client displaces it.
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

/// Where a client is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Stage {
    /// It is attached, by its last attachment.
    Attached,
    /// The socket of the last attachment dropped; present until then.
    Grace {
        /// Milliseconds since 1970.
        #[serde(deserialize_with = "crate::id::number")]
        until_ms: u64,
    },
    /// Not present; kept until its presences are gone and its connections are known to be closed, and for a while longer: what
    /// its gateways asked before may come late.
    Gone {
        /// Milliseconds since 1970.
        #[serde(deserialize_with = "crate::id::number")]
        since_ms: u64,
    },
}

/// A client of a session.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Client {
    /// As it names itself, or as its first gateway named it.
    pub id: ClientId,
    /// Where it is.
    pub stage: Stage,
    /// The last attachment, live or not.
    pub last: Attachment,
    /// What it has joined: nothing where it is gone, nothing that a backend has put its session into.
    pub joined: Joined,
    /// Presences to be taken out of these groups, up to this attachment.
    #[serde(deserialize_with = "crate::id::numbers")]
    pub departing: BTreeMap<GroupName, AttachmentNumber>,
    /// Groups that it left lately: should its gateway have died before it took the presence out, the end of the
    /// attachment does.
    pub left: BTreeSet<GroupName>,
    /// Earlier attachments, by gateway, which nobody has said to be closed: when it attaches it waits for them, also where the
    /// primary that displaced them has gone, or the gateway was wrongly believed dead.
    #[serde(deserialize_with = "crate::id::numbers")]
    pub open: BTreeMap<Member, AttachmentNumber>,
    /// The gateway of the last attachment has said that it is closed.
    pub closed: bool,
    /// The last attachment but one or an earlier one, if its gateway had not said that it is closed when another was given: it
    /// may have died, and left presences in groups that the client is not in any more.
    #[serde(deserialize_with = "crate::id::number")]
    pub doubtful: AttachmentNumber,
}

/// A first attempt is never refused for a later connection, whatever the clocks of primaries say.
const OVERTAKEN_AFTER_MS: u64 = 1_000;
/// More than these are not remembered in `left`, nor are they added to `departing` by leaves.
const LEFT_MAX: usize = 64;
/// More than these are not remembered in `open`; those of the past are nearly all of gateways that are dead.
const OPEN_MAX: usize = 16;
/// What it takes in memory beside what it names, in bytes, about.
const CLIENT_BYTES: usize = 450;

impl Client {
    /// With its first attachment.
    pub(super) fn new(id: ClientId, first: Attachment) -> Self {
        Self {
            id,
            stage: Stage::Attached,
            last: first,
            joined: Joined::new(),
            departing: BTreeMap::new(),
            left: BTreeSet::new(),
            open: BTreeMap::new(),
            closed: false,
            doubtful: 0,
        }
    }

    /// What it takes in memory, in bytes, about.
    pub(super) fn held_bytes(&self) -> usize {
        let named = self.departing.keys().chain(&self.left).chain(self.joined.keys());
        let named = named.map(|group| NAMED_BYTES + group.as_str().len());
        CLIENT_BYTES + self.open.len() * NAMED_BYTES + named.sum::<usize>()
    }

    /// The live connection, where there is one.
    pub fn attachment(&self) -> Option<&Attachment> {
        Some(&self.last).filter(|_| self.stage == Stage::Attached)
    }

    /// Whether it is attached, or may come back within its grace.
    pub fn is_present(&self) -> bool {
        match self.stage {
            Stage::Attached | Stage::Grace { .. } => true,
            Stage::Gone { .. } => false,
        }
    }

    /// Whether it is gone, and its presences and connections are.
    pub fn is_at_rest(&self) -> bool {
        self.has_departed() && self.open.is_empty() && self.closed
    }

    /// Whether it is gone, and its presences are.
    pub fn has_departed(&self) -> bool {
        !self.is_present() && self.departing.is_empty()
    }

    /// Gateways that have not said that their connections of this client are closed.
    pub fn unclosed(&self) -> impl Iterator<Item = &Member> {
        self.open.keys().chain(Some(&self.last.gateway).filter(|_| !self.closed))
    }

    /// Whether an attach of this connection comes too late: its gateway has said that it is gone; or it was asked for in vain
    /// for a while, and meanwhile a later connection was given: the client has most likely gone there.
    pub(super) fn overtakes(&self, gateway: &Member, connection: u64, since_ms: u64, at_ms: u64) -> bool {
        let is_it = self.last.is_of(gateway, connection);
        let retried = since_ms.saturating_add(OVERTAKEN_AFTER_MS) <= at_ms;
        let is_later = self.attachment().is_some_and(|live| since_ms < live.since_ms);
        // What its gateway asked before it said that the connection is gone comes after that.
        (!is_it && retried && is_later) || (is_it && self.closed)
    }

    /// The connection of the last attachment takes it up again under its number: its gateway was believed dead and is not.
    pub(super) fn attach_again(&mut self, given: &BTreeSet<GroupName>) {
        self.stage = Stage::Attached;
        // Its presences have this number too.
        let number = self.last.number;
        self.departing.retain(|group, of| *of < number || !given.contains(group));
    }

    /// A new connection has it; the attachment that it takes the place of is `open` until its gateway says otherwise.
    pub(super) fn attach(&mut self, now: Attachment) {
        assert!(self.last.number < now.number || now.number == u64::MAX, "attachment numbers grow");
        self.stage = Stage::Attached;
        // A node that has started anew has no earlier connections.
        let gateway = &now.gateway;
        self.open.retain(|other, _| other.node != gateway.node || other.generation >= gateway.generation);
        let earlier = std::mem::replace(&mut self.last, now);
        let left = std::mem::take(&mut self.left);
        // Its gateway takes these out, but may say that the connection is closed, and die, before it could.
        self.departing.extend(left.into_iter().map(|group| (group, earlier.number)));
        if !std::mem::take(&mut self.closed) {
            self.doubtful = earlier.number;
            self.open.insert(earlier.gateway, earlier.number);
        }
        if self.open.len() > OPEN_MAX {
            let oldest = self.open.iter().min_by_key(|(_, number)| **number).map(|(gateway, _)| gateway.clone());
            oldest.map(|gateway| self.open.remove(&gateway));
        }
    }

    /// A gateway has cut off this attachment and earlier ones.
    pub(super) fn close(&mut self, gateway: &Member, number: AttachmentNumber) {
        if self.open.get(gateway).is_some_and(|open| *open <= number) {
            self.open.remove(gateway);
        }
        self.closed |= !self.is_present() && self.last.gateway == *gateway && self.last.number <= number;
    }

    /// Whether something is open that this gateway closes, up to this attachment.
    pub fn waits_for(&self, gateway: &Member, number: AttachmentNumber) -> bool {
        let last = !self.is_present() && !self.closed && self.last.gateway == *gateway && self.last.number <= number;
        last || self.open.get(gateway).is_some_and(|open| *open <= number)
    }

    /// The socket is gone, as its gateway says (`closed`) or as it is believed. Whether that was the live attachment.
    pub(super) fn detach(&mut self, gateway: &Member, number: AttachmentNumber, until_ms: u64, closed: bool) -> bool {
        let is_last = self.last.number == number && self.last.gateway == *gateway;
        if closed {
            self.open.retain(|of, open| of != gateway || *open != number);
            self.closed |= is_last;
        }
        let live = is_last && self.stage == Stage::Attached;
        if live {
            self.stage = Stage::Grace { until_ms };
        }
        live
    }

    /// It is in this group from now on.
    pub(super) fn join(&mut self, group: GroupName, needs_grant: bool) {
        self.hold(&group);
        self.joined.insert(group, needs_grant);
    }

    /// It is in this group no longer, which it had joined itself. Whether it had.
    pub(super) fn leave(&mut self, group: &GroupName) -> bool {
        let had_joined = self.joined.remove(group).is_some();
        if had_joined {
            self.has_left(group);
        }
        had_joined
    }

    /// Its presence in this group is to end.
    pub(super) fn has_left(&mut self, group: &GroupName) {
        if !self.is_present() {
            return;
        }
        if self.left.len() >= LEFT_MAX {
            self.left.pop_first();
        }
        self.left.insert(group.clone());
        if self.doubtful > 0 && (self.departing.len() < LEFT_MAX || self.departing.contains_key(group)) {
            let departing = self.departing.entry(group.clone()).or_default();
            *departing = self.doubtful.max(*departing);
        }
    }

    /// It is in this group again. The presence of its attachment, where it is to be taken out, is to stay: that attachment's
    /// end takes it out. Not so an earlier one's, or that of a client that is gone, which nothing else would take out.
    pub(super) fn hold(&mut self, group: &GroupName) {
        self.left.remove(group);
        if self.is_present() && self.departing.get(group) == Some(&self.last.number) {
            self.departing.remove(group);
        }
    }

    /// Presences are out of these groups, each up to this attachment. A later one's is still to be taken out.
    pub(super) fn departed(&mut self, groups: &BTreeMap<GroupName, AttachmentNumber>) {
        self.departing.retain(|group, number| groups.get(group).is_none_or(|done| *done < *number));
    }

    /// It is present no longer, in these groups and in those that it had joined.
    pub(super) fn go(&mut self, given: &BTreeSet<GroupName>, at_ms: u64) {
        if !self.is_present() {
            return;
        }
        self.stage = Stage::Gone { since_ms: at_ms };
        let joined = std::mem::take(&mut self.joined).into_keys();
        let groups = given.iter().cloned().chain(joined).chain(std::mem::take(&mut self.left));
        self.departing.extend(groups.map(|group| (group, self.last.number)));
    }
}
