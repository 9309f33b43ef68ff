//! A slot on one node: its copy ([`Replica`]) and, while this node is the slot's primary, what only a primary does:
//! answer requests, deliver what is committed to the gateways that asked for it, and drive sessions' lives.
//!
//! Nothing here but the copy outlives a change of the primary: who waits for an answer is told `NotPrimary` and asks the
//! new one, gateways register again, and what a session still needs done stands in its state.

mod groups;
mod joins;
mod sessions;
#[cfg(test)]
mod tests;
mod timers;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use self::{groups::GroupPending, sessions::SessionPending};
use super::{
    Now,
    entry::{Entry, GroupEntry, SessionEntry, SessionRecord},
    map::{MapRequest, SlotAssignment},
    replication::{Replica, ReplicaLimits, ReplicaOutput, ReplicationMessage},
    request::{Attached, GroupRequest, Push, SessionRequest, SlotAnswer, SlotError, SlotRequest},
    slot::{Effect, SlotState},
};
use crate::id::{AttachmentNumber, Epoch, GroupName, Index, Member, SessionId, SlotId, Term};

/// What a slot needs to know of the configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotSettings {
    /// A replica that has not acknowledged for so long is reported to the steward.
    pub replica_timeout_ms: u64,
    /// A session stays present for so long after its socket dropped.
    pub resume_grace_ms: u64,
    /// It leaves the memory when detached for so long.
    pub memory_ttl_ms: u64,
    /// A group of which nothing is kept, in which nobody is, and which no gateway follows, is forgotten after so long, and with
    /// it the epoch by which a client could tell that it missed nothing.
    pub group_idle_ms: u64,
    /// Entries waiting for their commit; past it requests are refused with `Busy`.
    pub queue: usize,
    /// Groups of one session.
    pub groups_per_session: usize,
}

/// Names a request for its answer; the shell's.
pub type Ticket = u64;

/// What happens to a slot.
#[derive(Clone, PartialEq, Debug)]
pub enum SlotInput {
    /// A confirmed map.
    Map {
        /// Its version.
        version: u64,
        /// What it says of this slot.
        assignment: SlotAssignment,
    },
    /// A message from another member.
    Peer {
        /// Whose.
        from: Member,
        /// What.
        message: ReplicationMessage,
    },
    /// A request from a gateway.
    Request {
        /// For the answer.
        ticket: Ticket,
        /// The gateway.
        from: Member,
        /// The term under which it believes this node to be primary.
        term: Term,
        /// What it asks.
        request: SlotRequest,
    },
    /// To [`SlotOutput::Load`].
    Loaded {
        /// Which.
        session: SessionId,
        /// The store's record; nothing where it has none; why not, where it did not answer.
        result: Result<Option<SessionRecord>, String>,
    },
    /// To [`SlotOutput::Save`].
    Saved {
        /// Which.
        session: SessionId,
        /// As of this entry.
        index: Index,
        /// Why the store did not take it, or may not have.
        result: Result<(), String>,
    },
    /// To [`SlotOutput::Depart`]: these are done.
    Departed {
        /// Which.
        session: SessionId,
        /// Not all of those asked for, perhaps; the rest is asked for again.
        groups: Vec<GroupName>,
    },
    /// The processes believed to be alive.
    Alive(Arc<BTreeSet<Member>>),
    /// What was sent to this node lately may be lost.
    LinkReset(Member),
    /// Time has passed; every 50–100 ms.
    Tick,
}

/// What a slot wants done.
#[derive(Clone, PartialEq, Debug)]
pub enum SlotOutput {
    /// To another member.
    Send {
        /// Whom.
        to: Member,
        /// What.
        message: ReplicationMessage,
    },
    /// To whoever asked.
    Answer {
        /// Of the request.
        ticket: Ticket,
        /// The answer.
        result: Result<SlotAnswer, SlotError>,
    },
    /// To a gateway, this node's own perhaps.
    Push {
        /// Whom.
        to: Member,
        /// The primary's term.
        term: Term,
        /// What.
        push: Push,
    },
    /// To the steward.
    Ask(MapRequest),
    /// Read a session from the store.
    Load {
        /// Which.
        session: SessionId,
    },
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
    /// Take a session's presences out of these groups, which live in other slots.
    Depart {
        /// Which.
        session: SessionId,
        /// Each up to an attachment.
        groups: Vec<(GroupName, AttachmentNumber)>,
    },
}

/// A request about a session that waits for it to be loaded.
#[derive(Debug)]
struct Asked {
    ticket: Ticket,
    from: Member,
    request: SessionRequest,
}

/// An attach that waits for earlier attachments to be cut off.
#[derive(Debug)]
struct Displacing {
    /// Of the attach and of repeats of it; also those of attaches that this one displaces, which waited for the same.
    answers: Vec<(Ticket, Attached)>,
    attachment: AttachmentNumber,
    /// Gateways that have not yet said so, each with the last attachment that it is to cut off.
    earlier: BTreeMap<Member, AttachmentNumber>,
    until_ms: u64,
}

/// What is answered when the store has a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Waiting {
    Create,
    Change,
    End,
}

/// A gateway's word that it has an attachment.
#[derive(Clone, Debug)]
struct Renewal {
    gateway: Member,
    attachment: AttachmentNumber,
    connection: u64,
}

/// See the module.
#[derive(Debug)]
pub struct SlotCore {
    settings: SlotSettings,
    replica: Replica,
    random: u64,
    map_version: u64,
    alive: Arc<BTreeSet<Member>>,
    ticks: u64,
    /// The term that all below belongs to.
    term: Option<Term>,
    /// Who follows what, and when it last said so.
    interests: BTreeMap<GroupName, BTreeMap<Member, u64>>,
    /// Groups that could be forgotten, and since when that is seen to be so in this term: a new primary does not know yet who
    /// follows what.
    idle: BTreeMap<GroupName, u64>,
    /// Groups whose end is ordered and not committed.
    forgetting: BTreeSet<GroupName>,
    /// The last entry that the groups' timers ordered: until it is applied they order no more.
    tidied: Index,
    /// What waits for an entry of a group to be committed, and of a session.
    group_pending: BTreeMap<Index, GroupPending>,
    session_pending: BTreeMap<Index, SessionPending>,
    loading: BTreeMap<SessionId, Vec<Asked>>,
    /// Requests answered when the store has the session as of an entry.
    saving: BTreeMap<(SessionId, Index), Vec<(Ticket, Waiting)>>,
    displacing: BTreeMap<SessionId, Displacing>,
    /// Attachments of sessions that are not in memory, while the store is asked.
    renewals: BTreeMap<SessionId, Vec<Renewal>>,
    /// When the term began, and when a session's attachment was last heard of in it.
    since_ms: u64,
    heard: BTreeMap<SessionId, u64>,
    /// Sessions with a timer's entry under way, with a write under way, with groups being departed, with a failed save (and
    /// when to try again). A store that does not answer keeps no timer waiting.
    timers: BTreeSet<SessionId>,
    writes: BTreeSet<SessionId>,
    /// Creations that the store did not take: their ends are ordered, and not committed yet.
    given_up: BTreeSet<SessionId>,
    departing: BTreeMap<SessionId, u64>,
    save_again_ms: u64,
}

impl SlotCore {
    /// A slot that this node holds nothing of. `seed` is for the epochs that it makes.
    pub fn new(slot: SlotId, me: Member, settings: SlotSettings, seed: u64) -> Self {
        Self {
            settings,
            replica: Replica::new(slot, me, settings.replica_timeout_ms),
            random: seed,
            map_version: 0,
            alive: Arc::default(),
            ticks: 0,
            term: None,
            interests: BTreeMap::new(),
            idle: BTreeMap::new(),
            forgetting: BTreeSet::new(),
            tidied: 0,
            group_pending: BTreeMap::new(),
            session_pending: BTreeMap::new(),
            loading: BTreeMap::new(),
            saving: BTreeMap::new(),
            displacing: BTreeMap::new(),
            renewals: BTreeMap::new(),
            since_ms: 0,
            heard: BTreeMap::new(),
            timers: BTreeSet::new(),
            writes: BTreeSet::new(),
            given_up: BTreeSet::new(),
            departing: BTreeMap::new(),
            save_again_ms: 0,
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
        self.interests.keys()
    }

    /// Takes an input. Call [`SlotCore::flush`] after a batch of them.
    pub fn handle(&mut self, now: Now, input: SlotInput, out: &mut Vec<SlotOutput>) {
        let mut from_replica = Vec::new();
        match input {
            SlotInput::Map { version, assignment } => {
                self.map_version = version;
                self.replica.on_map(now, version, &assignment, &mut from_replica);
            }
            SlotInput::Peer { from, message } => self.replica.on_message(now, &from, message, &mut from_replica),
            SlotInput::Request { ticket, from, term, request } => {
                if self.replica.serving() == Some(term) && self.term == Some(term) {
                    self.request(now, (ticket, from), request, out);
                } else {
                    self.refuse(ticket, out);
                }
            }
            SlotInput::Loaded { session, result } => self.loaded(now, session, result, out),
            SlotInput::Saved { session, index, result } => self.saved(now, (session, index), result, out),
            SlotInput::Departed { session, groups } => {
                self.departing.remove(&session);
                if !groups.is_empty() {
                    self.order_once(session, SessionEntry::Departed { groups });
                }
            }
            SlotInput::Alive(alive) => self.alive = alive,
            SlotInput::LinkReset(member) => self.replica.link_reset(&member),
            SlotInput::Tick => {
                self.replica.on_tick(now, &mut from_replica);
                self.timers(now, out);
            }
        }
        self.perform(now, from_replica, out);
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
                ReplicaOutput::Committed { index, effect } => self.committed(now, index, effect, out),
            }
        }
    }

    /// Begins or ends being the primary.
    fn follow_role(&mut self, now: Now, out: &mut Vec<SlotOutput>) {
        let term = self.replica.primary_term();
        if term == self.term {
            return;
        }
        self.term = term;
        self.interests.clear();
        self.idle.clear();
        self.forgetting.clear();
        self.tidied = 0;
        self.timers.clear();
        self.writes.clear();
        self.given_up.clear();
        self.departing.clear();
        self.save_again_ms = 0;
        self.renewals.clear();
        self.heard.clear();
        self.since_ms = now.mono_ms;
        let mut tickets: Vec<Ticket> = Vec::new();
        let groups = std::mem::take(&mut self.group_pending).into_values();
        tickets.extend(groups.filter_map(GroupPending::into_ticket));
        let sessions = std::mem::take(&mut self.session_pending).into_values();
        tickets.extend(sessions.flat_map(SessionPending::into_tickets));
        tickets.extend(std::mem::take(&mut self.loading).into_values().flatten().map(|asked| asked.ticket));
        tickets.extend(std::mem::take(&mut self.saving).into_values().flatten().map(|(ticket, _)| ticket));
        let displacing = std::mem::take(&mut self.displacing).into_values().flat_map(|displacing| displacing.answers);
        tickets.extend(displacing.map(|(ticket, _)| ticket));
        for ticket in tickets {
            self.refuse(ticket, out);
        }
    }

    fn refuse(&self, ticket: Ticket, out: &mut Vec<SlotOutput>) {
        let error = SlotError::NotPrimary { map_version: self.map_version };
        out.push(SlotOutput::Answer { ticket, result: Err(error) });
    }

    fn request(&mut self, now: Now, (ticket, from): (Ticket, Member), request: SlotRequest, out: &mut Vec<SlotOutput>) {
        let full = self.replica.uncommitted() >= self.settings.queue || self.loading.len() >= self.settings.queue;
        if full && !self.orders_nothing(&request) {
            out.push(SlotOutput::Answer { ticket, result: Err(SlotError::Busy) });
            return;
        }
        match request {
            SlotRequest::Register { interests } => self.register(now, (ticket, from), interests, out),
            SlotRequest::Unregister { groups } => self.unregister(&from, &groups, ticket, out),
            SlotRequest::Renew { attachments } => self.renew_all(now, (ticket, from), attachments, out),
            SlotRequest::Group(group, request) => self.group_request(now, (ticket, from), group, request, out),
            SlotRequest::Session(session, request) => {
                self.session_request(now, session, Asked { ticket, from, request }, out);
            }
        }
    }

    /// What can be answered though nothing is being committed.
    fn orders_nothing(&self, request: &SlotRequest) -> bool {
        match request {
            SlotRequest::Register { interests } => interests.iter().all(|interest| self.stays(&interest.group)),
            SlotRequest::Unregister { .. } => true,
            SlotRequest::Group(group, request) => match request {
                GroupRequest::Join(join) => join.member.is_none() && self.stays(group),
                GroupRequest::ReadHistory(_) | GroupRequest::ReadMembers(_) | GroupRequest::ReadGroup(_) => true,
                GroupRequest::Publish(_) | GroupRequest::Leave(_) => false,
            },
            SlotRequest::Renew { .. } | SlotRequest::Session(..) => false,
        }
    }

    /// Orders an entry of a group and notes who waits for it. Only called while serving.
    fn order_group(&mut self, group: GroupName, entry: GroupEntry, pending: Option<GroupPending>) {
        let index = self.replica.order(Entry::Group(group, entry));
        if let (Some(index), Some(pending)) = (index, pending) {
            self.group_pending.insert(index, pending);
        }
    }

    /// Orders an entry of a session and notes who waits for it. Only called while serving.
    fn order_session(&mut self, session: SessionId, entry: SessionEntry, pending: Option<SessionPending>) {
        let index = self.replica.order(Entry::Session(session, entry));
        if let (Some(index), Some(pending)) = (index, pending) {
            self.session_pending.insert(index, pending);
        }
    }

    /// Orders what the slot itself has to do about a session. Until it is committed the session's timers order nothing, or a
    /// slot that cannot commit would order the same again and again.
    fn order_once(&mut self, session: SessionId, entry: SessionEntry) {
        if let Some(index) = self.replica.order(Entry::Session(session, entry)) {
            self.timers.insert(session);
            self.session_pending.insert(index, SessionPending::Timer);
        }
    }

    fn committed(&mut self, now: Now, index: Index, effect: Effect, out: &mut Vec<SlotOutput>) {
        match effect {
            Effect::Group(group, effect) => {
                let pending = self.group_pending.remove(&index);
                self.group_committed(now, group, effect, pending, out);
            }
            Effect::Session(session, effect) => {
                let pending = self.session_pending.remove(&index);
                self.session_committed(now, index, (session, effect), pending, out);
            }
        }
    }

    fn push(&self, to: &Member, push: Push, out: &mut Vec<SlotOutput>) {
        if let Some(term) = self.term {
            out.push(SlotOutput::Push { to: to.clone(), term, push });
        }
    }

    fn state(&self) -> Option<&SlotState> {
        self.replica.state()
    }

    /// The next epoch: splitmix64 (Steele, Lea, Flood 2014) over the seed.
    fn new_epoch(&mut self) -> Epoch {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Epoch(z ^ (z >> 31))
    }
}
