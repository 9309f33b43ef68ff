//! What a gateway decides about the groups that its connections follow: one [`Feed`] for each, and what concerns all groups
//! of a slot. Which primary a slot has, whether it can be heard, when everything has to be registered again, what goes in
//! one request, and when a group is forgotten.
//!
//! A feed lives from its first subscriber, or from a push that nobody asked for, until it is over. Requests are numbered
//! on from one feed of a group to the next (`last_attempt`), so that an answer to an earlier one means nothing
//! to a later one.
//!
//! The shell holds the connections: it does what [`Output`] says, and tells of a connection that took nothing more, or had
//! no room, before the next input. It calls [`Following::flush`] after the inputs that it had at once.

mod primaries;
mod requests;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use primaries::{Primaries, Slot};
use requests::Requests;
pub use requests::{Answer, Ask, Asked};

use crate::{
    entry::{EphemeralMessage, MemberEvent, Message, Presence, Present},
    feed::{self, Attempt, Feed, FeedSettings, Mark, Notice, Subscriber, To},
    few::Few,
    id::{Epoch, GroupName, Member, Position, Seat, SessionId, SlotId, Term},
    map::SharedMap,
    request::{Join, Leave, SlotError},
};

/// Times in milliseconds, and bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FollowingSettings {
    /// Of each group's feed. Its `renew_phase_ms` is set for each slot.
    pub feed: FeedSettings,
    /// A lost link is noticed this long after the last thing heard.
    pub noticed_after_ms: u64,
    /// Requests under way at once.
    pub in_flight: usize,
    /// Joins and leaves that may wait for their turn. Past it joins are refused as `Busy`, and presences stay.
    pub waiting: usize,
    /// Groups in one request.
    pub groups_at_once: usize,
    /// How often a leave is asked. A presence that cannot be taken back stays visible until its session is gone.
    pub leave_tries: u32,
    /// The pause before a leave is asked again.
    pub leave_pause_ms: u64,
}

impl Default for FollowingSettings {
    fn default() -> Self {
        Self {
            feed: FeedSettings::default(),
            noticed_after_ms: 1_000,
            in_flight: 1_024,
            waiting: 65_536,
            groups_at_once: 500,
            leave_tries: 3,
            leave_pause_ms: 500,
        }
    }
}

/// What happens.
#[derive(Clone, PartialEq, Debug)]
pub enum Input {
    /// The confirmed map is another one.
    Map(SharedMap),
    /// Who is alive is another set.
    Alive(Arc<BTreeSet<Member>>),
    /// There is a new connection from this member; what it sent before may be lost.
    PeerConnected(Member),
    /// The connection from this member is gone.
    PeerLost(Member),
    /// A connection joins a group. One that has joined already joins anew.
    Subscribe {
        /// The group's slot.
        slot: SlotId,
        group: GroupName,
        subscriber: Subscriber,
        /// Given back in the answer.
        request: Mark,
        /// Who, where the namespace has presence.
        member: Option<Presence>,
        /// It is told how many there are, not who comes and goes.
        summed: bool,
        /// Where the client stopped.
        since: Option<Position>,
    },
    /// A connection leaves a group.
    Unsubscribe {
        /// The group's slot.
        slot: SlotId,
        group: GroupName,
        subscriber: Subscriber,
        /// Whose presence is to end with it; nothing where it goes on for a while.
        leave: Option<Seat>,
    },
    /// A connection is gone: it leaves all its groups, and its presence goes on for a while.
    Gone { subscriber: Subscriber },
    /// A live connection had no room for a message.
    Lag {
        /// The group's slot.
        slot: SlotId,
        group: GroupName,
        subscriber: Subscriber,
        /// What it was told last.
        at: Position,
    },
    /// A connection that is [`Output::Behind`] has room for a page.
    Room {
        /// The group's slot.
        slot: SlotId,
        group: GroupName,
        subscriber: Subscriber,
    },
    /// A primary pushed messages.
    Deliver {
        /// The group's slot.
        slot: SlotId,
        /// The primary's term.
        term: Term,
        group: GroupName,
        epoch: Epoch,
        /// In the order of their offsets.
        messages: Few<Message>,
    },
    /// A primary pushed a change of the presence.
    Member {
        /// The group's slot.
        slot: SlotId,
        group: GroupName,
        event: MemberEvent,
        member: Presence,
        /// Who is there then.
        present: Present,
    },
    /// A primary passed messages on that have no place.
    Ephemeral {
        /// The group's slot.
        slot: SlotId,
        group: GroupName,
        messages: Few<EphemeralMessage>,
    },
    /// What became of an [`Output::Ask`].
    Answered(Answer),
    /// The time of [`Following::next_wake`] has come.
    Tick,
}

/// What is to be done.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// Ask a slot's primary. Every one is answered by [`Input::Answered`], whatever came of it.
    Ask(Ask),
    /// The client has joined and is live from now on; messages for it alone may follow.
    Joined {
        group: GroupName,
        subscriber: Subscriber,
        /// The client's mark.
        request: Mark,
        /// The join point's log.
        epoch: Epoch,
        /// The join point.
        offset: u64,
        /// Everything since the client's position follows.
        recovered: bool,
    },
    /// The client has not joined.
    JoinFailed {
        group: GroupName,
        subscriber: Subscriber,
        /// The client's mark.
        request: Mark,
        error: SlotError,
        /// Another join of the same connection has taken its place and goes on. Otherwise [`Output::Ended`] follows.
        overtaken: bool,
    },
    /// A page of what the client is behind with; it is live from now on. Messages for it alone may follow.
    Replay { group: GroupName, subscriber: Subscriber },
    /// A page could not be had: the client is behind as before.
    ReplayFailed { group: GroupName, subscriber: Subscriber, error: SlotError },
    /// The client is not live any more: it is told nothing until [`Input::Room`] has brought it a page.
    Behind { group: GroupName, subscriber: Subscriber },
    /// Tell subscribers something.
    Tell { group: GroupName, to: To, notice: Notice },
    /// The connection follows the group no more, and is told nothing of it.
    Ended { group: GroupName, subscriber: Subscriber },
    /// Another number of connections follows the group, or is about to. 0 when the last has gone.
    Followers { group: GroupName, count: usize },
    /// A session could not be taken out of a group's presence: it stays visible there until it is gone.
    StaysPresent { group: GroupName, session: SessionId, error: SlotError },
}

/// A group that is followed here.
#[derive(Debug)]
struct Group {
    /// Apart, since a map has room for as many again as there are.
    feed: Box<Feed>,
    /// As it stands in the timers.
    wake_ms: Option<u64>,
    /// As it was told.
    followers: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Following {
    settings: FollowingSettings,
    primaries: Primaries,
    slots: BTreeMap<SlotId, Slot>,
    timers: BTreeSet<(u64, SlotId, GroupName)>,
    /// The groups of each connection, sorted: most have few, and a set would have room for eleven.
    followed_by: BTreeMap<Subscriber, Vec<(SlotId, GroupName)>>,
    requests: Requests,
    /// The highest number of a request by a feed that is no more.
    last_attempt: Attempt,
    /// Kept for its memory; empty between uses.
    said: Vec<feed::Output>,
}

impl Following {
    /// Nothing is followed yet, nobody is heard, and there is no map.
    pub fn new(me: Member, settings: FollowingSettings) -> Self {
        Self {
            settings,
            primaries: Primaries::new(me),
            slots: BTreeMap::new(),
            timers: BTreeSet::new(),
            followed_by: BTreeMap::new(),
            requests: Requests::new(settings),
            last_attempt: 0,
            said: Vec::new(),
        }
    }

    /// Takes one step. `now_ms` never goes back.
    pub fn handle(&mut self, now_ms: u64, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Map(map) => self.map_changed(now_ms, map, out),
            Input::Alive(alive) => self.alive_changed(now_ms, alive, out),
            Input::PeerConnected(peer) => self.peer_connected(now_ms, peer, out),
            Input::PeerLost(peer) => self.peer_lost(now_ms, &peer, out),
            Input::Subscribe { slot, group, subscriber, request, member, summed, since } => {
                let (groups, new) = (self.followed_by.entry(subscriber).or_default(), (slot, group.clone()));
                if let Err(at) = groups.binary_search(&new) {
                    if groups.len() < 4 {
                        groups.reserve_exact(1);
                    }
                    groups.insert(at, new);
                }
                let input = feed::Input::Subscribe { subscriber, request, member, summed, since };
                self.step_opening(now_ms, slot, &group, input, out);
            }
            Input::Unsubscribe { slot, group, subscriber, leave } => {
                self.unsubscribe(now_ms, slot, &group, subscriber, leave, out);
            }
            Input::Gone { subscriber } => {
                for (slot, group) in self.followed_by.remove(&subscriber).unwrap_or_default() {
                    self.unsubscribe(now_ms, slot, &group, subscriber, None, out);
                }
            }
            Input::Lag { slot, group, subscriber, at } => {
                self.step(now_ms, slot, &group, feed::Input::Lag { subscriber, at }, out);
            }
            Input::Room { slot, group, subscriber } => {
                self.step(now_ms, slot, &group, feed::Input::Room { subscriber }, out);
            }
            Input::Deliver { slot, term, group, epoch, messages } => {
                for message in messages {
                    // Where nobody here follows the group, its primary is to know.
                    self.step_opening(now_ms, slot, &group, feed::Input::Deliver { epoch, message, term }, out);
                }
            }
            Input::Member { slot, group, event, member, present } => {
                self.step(now_ms, slot, &group, feed::Input::Member { event, member, present }, out);
            }
            Input::Ephemeral { slot, group, messages } => {
                for message in messages {
                    self.step(now_ms, slot, &group, feed::Input::Ephemeral { message }, out);
                }
            }
            Input::Answered(answer) => {
                self.requests.is_answered();
                self.answered(now_ms, answer, out);
            }
            Input::Tick => self.tick(now_ms, out),
        }
    }

    /// Asks what has gathered, as far as may be under way at once. To be called after the inputs that were there at once.
    pub fn flush(&mut self, out: &mut Vec<Output>) {
        while let Some(ask) = self.requests.next() {
            out.push(Output::Ask(ask));
        }
    }

    /// When [`Input::Tick`] is due next.
    pub fn next_wake(&self) -> Option<u64> {
        let feeds = self.timers.first().map(|(at_ms, ..)| *at_ms);
        [feeds, self.requests.next_wake()].into_iter().flatten().min()
    }

    /// Whether clients are joining the group, or wait for a page.
    pub fn has_joining(&self, slot: SlotId, group: &GroupName) -> bool {
        let group = self.slots.get(&slot).and_then(|slot| slot.groups.get(group));
        group.is_some_and(|group| group.feed.has_joining())
    }

    fn unsubscribe(
        &mut self,
        now_ms: u64,
        slot: SlotId,
        group: &GroupName,
        subscriber: Subscriber,
        leave: Option<Seat>,
        out: &mut Vec<Output>,
    ) {
        self.ended(slot, group, subscriber, out);
        self.step(now_ms, slot, group, feed::Input::Unsubscribe { subscriber, leave }, out);
    }

    fn ended(&mut self, slot: SlotId, group: &GroupName, subscriber: Subscriber, out: &mut Vec<Output>) {
        if let Some(groups) = self.followed_by.get_mut(&subscriber) {
            if let Ok(at) = groups.binary_search(&(slot, group.clone())) {
                groups.remove(at);
            }
            if groups.is_empty() {
                self.followed_by.remove(&subscriber);
            }
        }
        out.push(Output::Ended { group: group.clone(), subscriber });
    }

    fn answered(&mut self, now_ms: u64, answer: Answer, out: &mut Vec<Output>) {
        match answer {
            Answer::Joined { asked: Asked { slot, group, attempt }, subscriber, result } => {
                self.step(now_ms, slot, &group, feed::Input::JoinAnswer { attempt, subscriber, result }, out);
            }
            Answer::Left { asked, subscriber, request, tries, result } => {
                if let Err(error) = result {
                    if tries < self.settings.leave_tries {
                        let again = Ask::Leave { asked, subscriber, request, tries: tries + 1 };
                        return self.requests.ask_again(now_ms + self.settings.leave_pause_ms, again);
                    }
                    let (group, session) = (asked.group.clone(), request.seat.session);
                    out.push(Output::StaysPresent { group, session, error });
                }
                let Asked { slot, group, attempt } = asked;
                self.step(now_ms, slot, &group, feed::Input::LeaveAnswer { attempt, subscriber }, out);
            }
            Answer::Unregistered { slot, asked } => {
                for (group, attempt) in asked {
                    self.step(now_ms, slot, &group, feed::Input::UnregisterAnswer { attempt }, out);
                }
            }
            Answer::Registered { slot, asked, result } => {
                for (group, attempt, result) in requests::each(asked, result) {
                    self.step(now_ms, slot, &group, feed::Input::RegisterAnswer { attempt, result }, out);
                }
            }
        }
    }

    fn tick(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        self.requests.tick(now_ms);
        let mut due = Vec::new();
        while self.timers.first().is_some_and(|(at_ms, ..)| *at_ms <= now_ms) {
            due.extend(self.timers.pop_first());
        }
        for (_, slot, name) in due {
            if let Some(group) = self.slots.get_mut(&slot).and_then(|slot| slot.groups.get_mut(&name)) {
                group.wake_ms = None;
            }
            self.step(now_ms, slot, &name, feed::Input::Tick, out);
        }
    }

    /// Something happens to a group, which is opened where it is not known.
    fn step_opening(&mut self, now_ms: u64, slot: SlotId, name: &GroupName, input: feed::Input, out: &mut Vec<Output>) {
        if let Some(input) = self.step(now_ms, slot, name, input, out) {
            self.open(now_ms, slot, name);
            self.step(now_ms, slot, name, input, out);
        }
    }

    fn open(&mut self, now_ms: u64, id: SlotId, name: &GroupName) {
        // Slots are renewed one after the other, the groups of each together.
        let renew_phase_ms = u64::from(id).wrapping_mul(0x9E37_79B9) % self.settings.feed.renew_ms;
        let feeds = FeedSettings { renew_phase_ms, ..self.settings.feed };
        let slot = self.slots.entry(id).or_insert_with(|| self.primaries.look_up(now_ms, id, feeds));
        let mut feed = Box::new(Feed::new(slot.feeds.clone(), self.last_attempt));
        if let Some(since_ms) = slot.unreachable_since_ms {
            feed.handle(now_ms, feed::Input::PrimaryUnreachable { since_ms }, &mut self.said);
            assert!(self.said.is_empty(), "there is nobody to tell");
        }
        slot.groups.insert(name.clone(), Group { feed, wake_ms: None, followers: 0 });
    }

    /// Something happens to all groups of a slot.
    fn step_all(&mut self, now_ms: u64, slot: SlotId, input: &feed::Input, out: &mut Vec<Output>) {
        let names: Vec<_> = self.slots.get(&slot).into_iter().flat_map(|slot| slot.groups.keys().cloned()).collect();
        for name in names {
            self.step(now_ms, slot, &name, input.clone(), out);
        }
    }

    /// Something happens to a group. Gives it back where the group is not known.
    fn step(
        &mut self,
        now_ms: u64,
        id: SlotId,
        name: &GroupName,
        input: feed::Input,
        out: &mut Vec<Output>,
    ) -> Option<feed::Input> {
        let Some(group) = self.slots.get_mut(&id).and_then(|slot| slot.groups.get_mut(name)) else {
            return Some(input);
        };
        let mut said = std::mem::take(&mut self.said);
        group.feed.handle(now_ms, input, &mut said);
        let wake_ms = group.feed.next_wake();
        if wake_ms != group.wake_ms {
            if let Some(at_ms) = group.wake_ms {
                self.timers.remove(&(at_ms, id, name.clone()));
            }
            self.timers.extend(wake_ms.map(|at_ms| (at_ms, id, name.clone())));
            group.wake_ms = wake_ms;
        }
        let count = group.feed.subscriber_count();
        if count != group.followers {
            group.followers = count;
            out.push(Output::Followers { group: name.clone(), count });
        }
        if group.feed.is_over() {
            self.close(id, name);
        }
        for said in said.drain(..) {
            self.perform(id, name, said, out);
        }
        self.said = said;
        while let Some(refused) = self.requests.next_refused() {
            self.answered(now_ms, refused, out);
        }
        None
    }

    fn close(&mut self, id: SlotId, name: &GroupName) {
        let Some(slot) = self.slots.get_mut(&id) else { return };
        if let Some(group) = slot.groups.remove(name) {
            self.last_attempt = self.last_attempt.max(group.feed.last_attempt());
            if let Some(at_ms) = group.wake_ms {
                self.timers.remove(&(at_ms, id, name.clone()));
            }
        }
        if slot.groups.is_empty() {
            self.slots.remove(&id);
        }
    }

    fn perform(&mut self, slot: SlotId, name: &GroupName, said: feed::Output, out: &mut Vec<Output>) {
        let group = name.clone();
        match said {
            feed::Output::AskJoin { attempt, subscriber, member, since } => {
                let asked = Asked { slot, group, attempt };
                self.requests.single(Ask::Join { asked, subscriber, request: Join { member, since } });
            }
            feed::Output::AskLeave { attempt, subscriber, seat } => {
                let asked = Asked { slot, group, attempt };
                let request = Leave { seat };
                self.requests.single(Ask::Leave { asked, subscriber, request, tries: 1 });
            }
            feed::Output::AskRegister { attempt, since } => self.requests.register(slot, group, attempt, since),
            feed::Output::AskUnregister { attempt } => self.requests.unregister(slot, group, attempt),
            feed::Output::Joined { subscriber, request, epoch, offset, recovered } => {
                out.push(Output::Joined { group, subscriber, request, epoch, offset, recovered });
            }
            feed::Output::JoinFailed { subscriber, request, error } => {
                let there = self.slots.get(&slot).and_then(|slot| slot.groups.get(name));
                let overtaken = there.is_some_and(|there| there.feed.follows(subscriber));
                out.push(Output::JoinFailed { group, subscriber, request, error, overtaken });
                if !overtaken {
                    self.ended(slot, name, subscriber, out);
                }
            }
            feed::Output::Replay { subscriber } => out.push(Output::Replay { group, subscriber }),
            feed::Output::ReplayFailed { subscriber, error } => {
                out.push(Output::ReplayFailed { group, subscriber, error });
            }
            feed::Output::Behind { subscriber } => out.push(Output::Behind { group, subscriber }),
            feed::Output::Tell { to, notice } => out.push(Output::Tell { group, to, notice }),
        }
    }
}
