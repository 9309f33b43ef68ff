//! A slot on one node: its copy ([`Replica`]) and, while this node is the slot's primary, what only a primary does:
//! answer requests, deliver what is committed to the gateways that asked for it, and drive sessions' lives.
//!
//! Nothing here but the copy outlives a change of the primary: who waits for an answer is told `NotPrimary` and asks the
//! new one, gateways register again, and what a session still needs done stands in its state.

mod groups;
mod joins;
mod memory;
mod reign;
mod sessions;
#[cfg(test)]
mod tests;
mod timers;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use self::reign::{Reign, Reigning};
use super::{
    Now,
    chance::Chance,
    entry::SessionRecord,
    map::{MapRequest, SlotAssignment},
    memory::{Level, Pressure},
    replication::{Replica, ReplicaLimits, ReplicaOutput, ReplicationMessage},
    request::{GroupInfo, Push, SlotAnswer, SlotError, SlotRequest},
    session::Room,
};
use crate::id::{AttachmentNumber, ClientKey, GroupName, Index, Member, SessionId, SlotId, Term};

/// What a slot needs to know of the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotSettings {
    /// A replica that has not acknowledged for this time is reported to the steward.
    pub replica_timeout_ms: u64,
    /// A client stays present for this time after its socket dropped.
    pub resume_grace_ms: u64,
    /// It leaves the memory when detached for this time.
    pub memory_ttl_ms: u64,
    /// An ephemeral session to which no client has attached yet ends after this time.
    pub unclaimed_ms: u64,
    /// A group of which nothing is kept, in which nobody is, and which no gateway follows, is forgotten after this time, and with
    /// it the epoch by which a client could tell that it missed nothing.
    pub group_idle_ms: u64,
    /// The same while memory is short; not above `group_idle_ms`.
    pub group_idle_tight_ms: u64,
    /// Entries waiting for their commit; past it requests are refused with `Busy`.
    pub queue: usize,
    /// Groups of one client.
    pub groups_per_session: usize,
    /// Clients of one session.
    pub room: Room,
}

/// Names a request for its answer; the shell's.
pub type Ticket = u64;

/// What happens to a slot.
#[derive(Clone, PartialEq, Debug)]
pub enum SlotInput {
    /// A confirmed map.
    Map {
        version: u64,
        /// What it says of this slot.
        assignment: SlotAssignment,
    },
    /// A message from another member.
    Peer { from: Member, message: ReplicationMessage },
    /// A request from a gateway.
    Request {
        /// For the answer.
        ticket: Ticket,
        from: Member,
        /// The term under which it believes this node to be primary.
        term: Term,
        /// What it asks.
        request: SlotRequest,
    },
    /// To [`SlotOutput::Load`].
    Loaded {
        session: SessionId,
        /// The store's record; nothing where it has none; why not, where it did not answer.
        result: Result<Option<SessionRecord>, String>,
    },
    /// To [`SlotOutput::Save`].
    Saved {
        session: SessionId,
        /// As of this entry.
        index: Index,
        /// Why the store did not take it, or may not have.
        result: Result<(), String>,
    },
    /// To [`SlotOutput::Depart`]: these are done.
    Departed {
        session: SessionId,
        client: ClientKey,
        /// Not all of those asked for, perhaps; the rest is asked for again. Each up to the attachment that was asked for.
        groups: BTreeMap<GroupName, AttachmentNumber>,
    },
    /// The processes believed to be alive.
    Alive(Arc<BTreeSet<Member>>),
    /// To [`SlotOutput::Fence`]: what this gateway was confirmed here up to this time, by this node's clock, it has to have
    /// confirmed again before it delivers.
    Gone { gateway: Member, since_ms: u64 },
    /// What was sent to this node lately may be lost.
    LinkReset(Member),
    /// Whether something may end by this node's wall clock ([`Verdict::trusted`](crate::clocks::Verdict)).
    Clock { trusted: bool },
    /// How pressed for memory a node is: this one, or another.
    Memory { of: Member, level: Level },
    /// Time has passed; every 50–100 ms, as long as something is due ([`SlotCore::due_ms`]).
    Tick,
}

/// What a slot wants done.
#[derive(Clone, PartialEq, Debug)]
pub enum SlotOutput {
    /// To another member.
    Send { to: Member, message: ReplicationMessage },
    /// To whoever asked.
    Answer {
        /// Of the request.
        ticket: Ticket,
        result: Result<SlotAnswer, SlotError>,
    },
    /// To a gateway, this node's own perhaps.
    Push {
        to: Member,
        /// The primary's term.
        term: Term,
        push: Push,
    },
    /// This gateway does not say that it has cut an earlier attachment: whatever was confirmed to it up to this time is to
    /// count for nothing. Said again until [`SlotInput::Gone`].
    Fence { gateway: Member, since_ms: u64 },
    /// To the steward.
    Ask(MapRequest),
    /// Read a session from the store.
    Load { session: SessionId },
    /// Write a session to the store.
    Save {
        /// As it is; ended where `ended`.
        record: SessionRecord,
        /// Whether it is over.
        ended: bool,
        /// Orders the writes, with `index`.
        term: Term,
        /// The last applied entry.
        index: Index,
    },
    /// Take a client's presences out of these groups, which live in other slots.
    Depart {
        session: SessionId,
        client: ClientKey,
        /// Each up to an attachment.
        groups: Vec<(GroupName, AttachmentNumber)>,
    },
    /// Messages were dropped in all copies, for want of memory.
    Shed {
        messages: u64,
        /// What they took.
        bytes: u64,
    },
}

/// See the module.
#[derive(Debug)]
pub struct SlotCore {
    settings: SlotSettings,
    replica: Replica,
    chance: Chance,
    map_version: u64,
    alive: Arc<BTreeSet<Member>>,
    clock_trusted: bool,
    me: Member,
    pressure: Pressure,
    /// While this node is the slot's primary.
    reign: Option<Reign>,
}

impl SlotCore {
    /// A slot that this node holds nothing of. `seed` is for the epochs that it makes.
    pub fn new(slot: SlotId, me: Member, settings: SlotSettings, seed: u64) -> Self {
        let replica = Replica::new(slot, me.clone(), settings.replica_timeout_ms);
        let chance = Chance::new(seed);
        Self {
            settings,
            replica,
            chance,
            map_version: 0,
            alive: Arc::default(),
            clock_trusted: true,
            me,
            pressure: Pressure::default(),
            reign: None,
        }
    }

    /// The same with other bounds for its copy.
    #[must_use]
    pub fn with_limits(mut self, limits: ReplicaLimits) -> Self {
        self.replica = self.replica.with_limits(limits);
        self
    }

    /// The copy, to look at.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The groups that gateways follow here, to look at.
    pub fn followed(&self) -> impl Iterator<Item = &GroupName> {
        self.reign.iter().flat_map(|reign| reign.groups.interests.keys())
    }

    /// How many publishes are committed and wait for more copies before they are answered, to look at.
    pub fn held(&self) -> usize {
        self.reign.as_ref().map_or(0, |reign| reign.groups.held.len())
    }

    /// From when on, by [`Now::mono_ms`], a [`SlotInput::Tick`] has something to do: always (0), from this time on, or not at all.
    /// Counts until there is another input. Ticks that come all the same do nothing.
    pub fn due_ms(&self) -> Option<u64> {
        if !self.replica.is_at_rest() {
            return Some(0);
        }
        let (reign, state) = (self.reign.as_ref()?, self.replica.state()?);
        reign.due_ms(state, self.pressure.is_calm())
    }

    /// Takes an input. Call [`SlotCore::flush`] after a batch of them.
    pub fn handle(&mut self, now: Now, input: SlotInput, out: &mut Vec<SlotOutput>) {
        let mut from_replica = Vec::new();
        let is_map = matches!(input, SlotInput::Map { .. });
        match input {
            SlotInput::Map { version, assignment } => {
                self.map_version = version;
                self.replica.on_map(now, version, &assignment, &mut from_replica);
            }
            SlotInput::Peer { from, message } => self.replica.on_message(now, &from, message, &mut from_replica),
            SlotInput::Request { ticket, from, term, request } => {
                let serves = self.replica.serving() == Some(term);
                match self.reigning(now).filter(|reigning| serves && reigning.term == term) {
                    Some(mut reigning) => reigning.request(now, (ticket, from), request, out),
                    None => self.refuse(ticket, out),
                }
            }
            SlotInput::Loaded { session, result } => {
                if let Some(mut reigning) = self.reigning(now) {
                    reigning.loaded(now, session, result, out);
                }
            }
            SlotInput::Saved { session, index, result } => {
                if let Some(mut reigning) = self.reigning(now) {
                    reigning.saved(now, (session, index), result, out);
                }
            }
            SlotInput::Departed { session, client, groups } => {
                if let Some(mut reigning) = self.reigning(now) {
                    reigning.departed((session, client), groups);
                }
            }
            SlotInput::Alive(alive) => self.alive = alive,
            SlotInput::Clock { trusted } => self.clock_trusted = trusted,
            SlotInput::Gone { gateway, since_ms } => {
                if let Some(mut reigning) = self.reigning(now) {
                    reigning.gone(now, gateway, since_ms, out);
                }
            }
            SlotInput::Memory { of, level } if of == self.me => self.pressure.is_now(level),
            SlotInput::Memory { of, level } => self.pressure.hear(now.mono_ms, of, level),
            SlotInput::LinkReset(member) => self.replica.link_reset(&member),
            SlotInput::Tick => {
                self.replica.on_tick(now, &mut from_replica);
                if let Some(mut reigning) = self.reigning(now) {
                    reigning.timers(now, out);
                }
            }
        }
        self.perform(now, from_replica, out);
        if is_map && let Some(mut reigning) = self.reigning(now) {
            reigning.answer_held(now, out);
        }
    }

    /// Sends and commits what the inputs so far allow.
    pub fn flush(&mut self, now: Now, out: &mut Vec<SlotOutput>) {
        loop {
            let last = self.replica.applied() + self.replica.uncommitted() as u64;
            let mut from_replica = Vec::new();
            self.replica.flush(now, &mut from_replica);
            self.perform(now, from_replica, out);
            // What was committed may have let more be ordered: a request whose session had to be loaded first.
            if self.replica.applied() + self.replica.uncommitted() as u64 <= last {
                return;
            }
        }
    }

    fn perform(&mut self, now: Now, outputs: Vec<ReplicaOutput>, out: &mut Vec<SlotOutput>) {
        self.follow_role(now, out);
        for output in outputs {
            match output {
                ReplicaOutput::Send { to, message } => out.push(SlotOutput::Send { to, message }),
                ReplicaOutput::Ask(request) => out.push(SlotOutput::Ask(request)),
                ReplicaOutput::Committed { index, effect } => {
                    if let Some(mut reigning) = self.reigning(now) {
                        reigning.committed(now, index, effect, out);
                    }
                }
            }
        }
        if self.reign.as_ref().is_some_and(|reign| reign.groups.delivering.is_some())
            && let Some(mut reigning) = self.reigning(now)
        {
            reigning.deliver(out);
        }
    }

    /// Begins or ends being the primary. Whoever waits for what the old term was about to do is told to ask the new one.
    fn follow_role(&mut self, now: Now, out: &mut Vec<SlotOutput>) {
        let term = self.replica.primary_term();
        if term == self.reign.as_ref().map(|reign| reign.term) {
            return;
        }
        let before = self.reign.as_ref().map_or(0, |reign| reign.term);
        assert!(term.is_none_or(|term| before < term), "terms never go back: {term:?} after {before}");
        let ended = std::mem::replace(&mut self.reign, term.map(|term| Reign::new(term, now)));
        for (ticket, ordered) in ended.map(Reign::into_tickets).unwrap_or_default() {
            let error = SlotError::NotPrimary { map_version: self.map_version, ordered };
            out.push(SlotOutput::Answer { ticket, result: Err(error) });
        }
    }

    fn reigning(&mut self, now: Now) -> Option<Reigning<'_>> {
        let Reign { term, since_ms, committed, shed_at, timers, groups, sessions } = self.reign.as_mut()?;
        let memory = self.pressure.greatest(now.mono_ms, self.replica.holders());
        Some(Reigning {
            term: *term,
            since_ms: *since_ms,
            committed,
            groups,
            sessions,
            replica: &mut self.replica,
            settings: &self.settings,
            alive: &self.alive,
            clock_trusted: self.clock_trusted,
            memory,
            shed_at,
            timers,
            map_version: self.map_version,
            chance: &mut self.chance,
        })
    }

    /// What there is to say about a group, if it exists.
    pub fn group_info(&self, name: &GroupName) -> Option<GroupInfo> {
        groups::info(self.replica.state()?, name)
    }

    /// Nothing was done.
    fn refuse(&self, ticket: Ticket, out: &mut Vec<SlotOutput>) {
        let error = SlotError::NotPrimary { map_version: self.map_version, ordered: false };
        out.push(SlotOutput::Answer { ticket, result: Err(error) });
    }
}
