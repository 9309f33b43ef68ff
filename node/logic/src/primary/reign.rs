//! What a primary knows beyond its copy, and nothing else: it dies with its term, in one place.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    SlotOutput, SlotSettings, Ticket,
    groups::{Delivering, GroupPending, Held},
    sessions::SessionPending,
    timers::Timers,
};
use crate::{
    Now,
    chance::Chance,
    entry::{Entry, GroupEntry, SessionEntry},
    id::{AttachmentNumber, ClientKey, Epoch, GroupName, Index, Member, SessionId, Term},
    memory::Level,
    replication::Replica,
    request::{Done, GroupRequest, Push, Renewal, SessionRequest, SessionView, SlotAnswer, SlotError, SlotRequest},
    slot::{Effect, SlotState},
};

/// One term of this node as the slot's primary.
#[derive(Debug)]
pub(super) struct Reign {
    pub(super) term: Term,
    /// When it began.
    pub(super) since_ms: u64,
    /// The last entry whose commit was heard of.
    pub(super) committed: Index,
    /// The last entry that drops messages for want of memory: until it is applied none is ordered.
    pub(super) shed_at: Index,
    pub(super) timers: Timers,
    pub(super) groups: GroupsReign,
    pub(super) sessions: SessionsReign,
}

/// What it knows of groups.
#[derive(Debug, Default)]
pub(super) struct GroupsReign {
    /// What waits for an entry to be committed.
    pub(super) pending: BTreeMap<Index, GroupPending>,
    /// Publishes whose answers wait for more copies: at most as many as may wait for their commit.
    pub(super) held: Vec<Held>,
    /// Committed messages that are not pushed yet; nothing between steps.
    pub(super) delivering: Option<Delivering>,
    /// Who follows what, sorted, and when each last said so. Most groups are followed by few gateways.
    pub(super) interests: BTreeMap<GroupName, Vec<(Member, u64)>>,
    /// Groups that could be forgotten, and since when that is seen to be so in this term: a new primary does not know yet who
    /// follows what.
    pub(super) idle: BTreeMap<GroupName, u64>,
    /// Groups whose end is ordered and not committed.
    pub(super) forgetting: BTreeSet<GroupName>,
    /// The last entry that the groups' timers ordered: until it is applied they order no more.
    pub(super) tidied: Index,
}

/// What it knows of sessions.
#[derive(Debug, Default)]
pub(super) struct SessionsReign {
    /// What waits for an entry to be committed.
    pub(super) pending: BTreeMap<Index, SessionPending>,
    /// Requests that wait for their session to be loaded, and for what the store has to be committed.
    pub(super) loading: BTreeMap<SessionId, Vec<Asked>>,
    /// Requests answered when the store has the session as of an entry.
    pub(super) saving: BTreeMap<(SessionId, Index), Vec<Saving>>,
    pub(super) displacing: BTreeMap<(SessionId, ClientKey), Displacing>,
    /// When each gateway was last confirmed an attachment, and up to when it is known to have to confirm all again.
    pub(super) confirmed: BTreeMap<Member, u64>,
    pub(super) gone: BTreeMap<Member, u64>,
    /// Attachments of sessions that are not in memory, while the store is asked.
    pub(super) renewals: BTreeMap<SessionId, Vec<(Member, Renewal)>>,
    /// When a client's attachment was last heard of.
    pub(super) heard: BTreeMap<(SessionId, ClientKey), u64>,
    /// The attach of each client that was ordered last, until that is over.
    pub(super) latest: BTreeMap<(SessionId, ClientKey), Latest>,
    /// Sessions with a timer's entry under way, with a write under way, clients with groups being departed (and when to try again),
    /// and when to try a failed save again. A store that does not answer keeps no timer waiting.
    pub(super) timers: BTreeSet<SessionId>,
    pub(super) writes: BTreeSet<SessionId>,
    pub(super) departing: BTreeMap<(SessionId, ClientKey), u64>,
    pub(super) save_again_ms: u64,
    /// Creations that the store did not take: their ends are ordered, and not committed yet.
    pub(super) given_up: BTreeSet<SessionId>,
}

/// A request about a session that waits for it to be loaded.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) ticket: Ticket,
    pub(super) from: Member,
    pub(super) came_ms: u64,
    pub(super) request: SessionRequest,
}

/// An attach that was ordered.
#[derive(Debug)]
pub(super) struct Latest {
    pub(super) gateway: Member,
    pub(super) connection: u64,
    /// When its client asked for it first, by this node's own clock: before that began, perhaps.
    pub(super) since_ms: i64,
    pub(super) index: Index,
}

/// An attach that waits for earlier attachments to be cut off.
#[derive(Debug)]
pub(super) struct Displacing {
    /// Of the attach and of repeats of it; also those of attaches that this one displaces, which waited for the same.
    pub(super) answers: Vec<(Ticket, AttachmentNumber)>,
    pub(super) attachment: AttachmentNumber,
    /// Gateways that have not yet said so, each with the last attachment that it is to cut off.
    pub(super) earlier: BTreeMap<Member, AttachmentNumber>,
    pub(super) since_ms: u64,
}

/// A request that is answered when the store has the session.
#[derive(Debug)]
pub(super) struct Saving {
    pub(super) ticket: Ticket,
    pub(super) waiting: Waiting,
    /// As it was given to the store: what came later is not there yet, and no answer may say that it is.
    pub(super) view: SessionView,
}

/// What is answered when the store has a session, or at once where it is ephemeral.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Waiting {
    Create,
    Change,
    End,
}

impl Waiting {
    /// What is answered when nothing is left to wait for.
    pub(super) fn done(self, view: SessionView) -> SlotAnswer {
        match self {
            Self::Create | Self::Change => SlotAnswer::Session(view),
            Self::End => SlotAnswer::Done(Done),
        }
    }
}

impl Reign {
    pub(super) fn new(term: Term, now: Now) -> Self {
        Self {
            term,
            since_ms: now.mono_ms,
            committed: 0,
            shed_at: 0,
            timers: Timers::new(now),
            groups: GroupsReign::default(),
            sessions: SessionsReign::default(),
        }
    }

    /// Ends it. Whom nobody will answer any more: every field is named here, so that none is forgotten. With each whether
    /// what it asked may be ordered: the next primary may have taken the entry over, and then it is done.
    pub(super) fn into_tickets(self) -> Vec<(Ticket, bool)> {
        let Self { term: _, since_ms: _, committed: _, shed_at: _, timers: _, groups, sessions } = self;
        let GroupsReign { pending, held, delivering: _, interests: _, idle: _, forgetting: _, tidied: _ } = groups;
        let of_groups = pending.into_values().filter_map(GroupPending::into_ticket);
        let mut tickets: Vec<Ticket> = held.into_iter().map(|held| held.ticket).collect();
        let SessionsReign {
            pending,
            loading,
            saving,
            displacing,
            confirmed: _,
            gone: _,
            renewals: _,
            heard: _,
            latest: _,
            timers: _,
            writes: _,
            departing: _,
            save_again_ms: _,
            given_up: _,
        } = sessions;
        tickets.extend(pending.into_values().filter_map(SessionPending::into_ticket));
        tickets.extend(saving.into_values().flatten().map(|saving| saving.ticket));
        let answers = displacing.into_values().flat_map(|displacing| displacing.answers);
        tickets.extend(answers.map(|(ticket, _)| ticket));
        let waiting = loading.into_values().flatten().map(|asked| (asked.ticket, false));
        let tickets = tickets.into_iter().map(|ticket| (ticket, true));
        let tickets: Vec<_> = tickets.chain(of_groups).chain(waiting).collect();
        let once: BTreeSet<_> = tickets.iter().map(|(ticket, _)| ticket).collect();
        assert_eq!(once.len(), tickets.len(), "a ticket waits in one place");
        tickets
    }
}

/// A primary at work: its reign, its copy, and what it is told of the world.
#[derive(Debug)]
pub(super) struct Reigning<'a> {
    pub(super) term: Term,
    pub(super) since_ms: u64,
    pub(super) committed: &'a mut Index,
    pub(super) groups: &'a mut GroupsReign,
    pub(super) sessions: &'a mut SessionsReign,
    pub(super) replica: &'a mut Replica,
    pub(super) settings: &'a SlotSettings,
    /// The processes believed to be alive.
    pub(super) alive: &'a BTreeSet<Member>,
    /// Something may end by this node's wall clock.
    pub(super) clock_trusted: bool,
    /// How pressed the most pressed of those is that hold the slot.
    pub(super) memory: Level,
    pub(super) shed_at: &'a mut Index,
    pub(super) timers: &'a mut Timers,
    pub(super) map_version: u64,
    pub(super) chance: &'a mut Chance,
}

impl Reigning<'_> {
    pub(super) fn request(
        &mut self,
        now: Now,
        (ticket, from): (Ticket, Member),
        request: SlotRequest,
        out: &mut Vec<SlotOutput>,
    ) {
        let full =
            self.replica.uncommitted() >= self.settings.queue || self.sessions.loading.len() >= self.settings.queue;
        if full && !self.orders_nothing(&request) {
            if let SlotRequest::Group(group, GroupRequest::Publish(publish)) = &request {
                return self.publish_beyond_queue(now, ticket, (group, publish), out);
            }
            out.push(SlotOutput::Answer { ticket, result: Err(SlotError::Busy) });
            return;
        }
        if self.memory == Level::Full && self.begins_something(&request) {
            out.push(SlotOutput::Answer { ticket, result: Err(SlotError::Full) });
            return;
        }
        match request {
            SlotRequest::Register { interests } => self.register(now, (ticket, from), interests, out),
            SlotRequest::Unregister { groups } => self.unregister(&from, &groups, ticket, out),
            SlotRequest::Renew { attachments } => self.renew_all(now, (ticket, from), attachments, out),
            SlotRequest::Group(group, request) => self.group_request(now, (ticket, from), group, request, out),
            SlotRequest::Session(session, request) => {
                let came_ms = now.mono_ms;
                self.session_request(now, session, Asked { ticket, from, came_ms, request }, out);
            }
        }
    }

    /// What can be answered though nothing is being committed.
    pub(super) fn orders_nothing(&self, request: &SlotRequest) -> bool {
        match request {
            SlotRequest::Register { interests } => interests.iter().all(|interest| self.stays(&interest.group)),
            SlotRequest::Unregister { .. } => true,
            SlotRequest::Group(group, request) => match request {
                GroupRequest::Join(join) => join.member.is_none() && self.stays(group),
                GroupRequest::ReadHistory(_)
                | GroupRequest::ReadMembers(_)
                | GroupRequest::ReadGroup(_)
                | GroupRequest::PublishEphemeral(_) => true,
                GroupRequest::Publish(_) | GroupRequest::Leave(_) | GroupRequest::UpdateMember(_) => false,
            },
            SlotRequest::Renew { .. } | SlotRequest::Session(..) => false,
        }
    }

    /// Orders an entry of a group and notes who waits for it. Only called while serving.
    pub(super) fn order_group(&mut self, group: GroupName, entry: GroupEntry, pending: Option<GroupPending>) {
        let index = self.replica.order(Entry::Group(group, entry));
        if let (Some(index), Some(pending)) = (index, pending) {
            let earlier = self.groups.pending.insert(index, pending);
            assert!(earlier.is_none(), "one waits for an entry");
        }
    }

    /// Orders an entry of a session and notes who waits for it. Only called while serving.
    pub(super) fn order_session(
        &mut self,
        session: SessionId,
        entry: SessionEntry,
        pending: Option<SessionPending>,
    ) -> Option<Index> {
        let index = self.replica.order(Entry::Session(session, entry));
        if let (Some(index), Some(pending)) = (index, pending) {
            let earlier = self.sessions.pending.insert(index, pending);
            assert!(earlier.is_none(), "one waits for an entry");
        }
        index
    }

    /// Orders what the slot itself has to do about a session. Until it is committed the session's timers order nothing, or a
    /// slot that cannot commit would order the same again and again.
    pub(super) fn order_once(&mut self, session: SessionId, entry: SessionEntry) {
        if let Some(index) = self.replica.order(Entry::Session(session, entry)) {
            self.sessions.timers.insert(session);
            assert!(self.replica.applied() < index, "what is ordered is not committed yet");
            self.sessions.pending.insert(index, SessionPending::Timer);
        }
    }

    pub(super) fn committed(&mut self, now: Now, index: Index, effect: Effect, out: &mut Vec<SlotOutput>) {
        assert!(*self.committed < index, "entries are committed in their order: {index} after {}", *self.committed);
        *self.committed = index;
        match effect {
            Effect::Group(group, effect) => {
                let pending = self.groups.pending.remove(&index);
                self.group_committed(now, group, effect, pending, out);
            }
            Effect::Session(session, effect) => {
                let pending = self.sessions.pending.remove(&index);
                self.session_committed(now, index, (session, effect), pending, out);
            }
            Effect::Shed { messages, bytes } => out.push(SlotOutput::Shed { messages, bytes }),
        }
    }

    pub(super) fn push(&self, to: &Member, push: Push, out: &mut Vec<SlotOutput>) {
        out.push(SlotOutput::Push { to: to.clone(), term: self.term, push });
    }

    /// It is done here. Whether it lasts the next primary has to say.
    pub(super) fn leave_open(&self, ticket: Ticket, out: &mut Vec<SlotOutput>) {
        let error = SlotError::NotPrimary { map_version: self.map_version, ordered: true };
        out.push(SlotOutput::Answer { ticket, result: Err(error) });
    }

    pub(super) fn state(&self) -> Option<&SlotState> {
        self.replica.state()
    }

    pub(super) fn new_epoch(&mut self) -> Epoch {
        Epoch(self.chance.number())
    }
}
