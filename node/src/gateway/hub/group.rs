//! One group with subscribers here: its feed, and the outboxes that what the feed says goes to.

use std::{collections::BTreeMap, sync::Arc};

use tokio::sync::oneshot;
use tokio_tungstenite::tungstenite::Utf8Bytes;

use super::{
    Answer, HubMetrics, Join, JoinOutcome, Page, add,
    requests::{Requests, Single, What},
};
use crate::{
    gateway::client::outbox::{Offered, Outbox},
    id::{Epoch, GroupName, Position, SlotId},
    logic::{
        entry::Message,
        feed::{Attempt, Feed, FeedSettings, Input, Notice, Output, Subscriber, To},
        request::SlotError,
    },
    wire::{
        command::{ClientError, Event, RequestId},
        plain,
        reason::Reason,
    },
};

/// The frames kept for clients that catch up at the same time.
const FRAMES: usize = 256;
const FRAMES_BYTES: usize = 512 << 10;

/// One group of a shard.
pub(super) struct Group {
    slot: SlotId,
    name: GroupName,
    /// A connection without room for a message falls behind; otherwise it ends.
    lags: bool,
    feed: Feed,
    listeners: BTreeMap<Subscriber, Listener>,
    frames: Frames,
    /// Who was told a join or a page in this step.
    answered: Option<Subscriber>,
    /// When the feed was told to the shard's timers to wake.
    pub(super) wake: Option<u64>,
    /// As told to the shard's counts.
    pub(super) counted: usize,
}

struct Listener {
    outbox: Arc<Outbox>,
    state: ListenerState,
    /// Pays for what it is replayed.
    page: Option<Page>,
    report: Option<oneshot::Sender<JoinOutcome>>,
}

/// What a connection is told of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ListenerState {
    /// Nothing yet.
    Joining,
    /// All.
    Live,
    /// Who comes and goes, until there is room for a page of the messages that it is behind with.
    Behind,
}

/// What a group works with.
pub(super) struct Surroundings<'a> {
    pub(super) requests: &'a mut Requests,
    pub(super) counters: &'a HubMetrics,
    /// Kept for its memory; empty between uses.
    pub(super) out: &'a mut Vec<Output>,
    /// Requests that were refused at once.
    pub(super) refused: &'a mut Vec<Answer>,
    /// Connections whose subscription has ended here.
    pub(super) ended: &'a mut Vec<Subscriber>,
    /// Connections without room for a message, and what they were told last.
    pub(super) full: &'a mut Vec<(Subscriber, Position)>,
}

impl Group {
    pub(super) fn new(
        slot: SlotId,
        name: GroupName,
        lags: bool,
        settings: FeedSettings,
        last_attempt: Attempt,
    ) -> Self {
        let (listeners, frames) = (BTreeMap::new(), Frames::default());
        let feed = Feed::new(settings, last_attempt);
        Self { slot, name, lags, feed, listeners, frames, answered: None, wake: None, counted: 0 }
    }

    pub(super) fn next_wake(&self) -> Option<u64> {
        self.feed.next_wake()
    }

    pub(super) fn last_attempt(&self) -> Attempt {
        self.feed.last_attempt()
    }

    pub(super) fn is_over(&self) -> bool {
        self.feed.is_over()
    }

    pub(super) fn subscriber_count(&self) -> usize {
        self.feed.subscriber_count()
    }

    pub(super) fn join(&mut self, now_ms: u64, join: Join, around: &mut Surroundings<'_>) {
        let Join { outbox, request, member, since, page, report, .. } = join;
        let subscriber = outbox.connection;
        let state = ListenerState::Joining;
        self.listeners.insert(subscriber, Listener { outbox, state, page, report });
        self.handle(now_ms, Input::Subscribe { subscriber, request, member, since }, around);
    }

    /// There is room for a page of what the connection is behind with.
    pub(super) fn room(
        &mut self,
        now_ms: u64,
        subscriber: Subscriber,
        page: Page,
        report: oneshot::Sender<JoinOutcome>,
        around: &mut Surroundings<'_>,
    ) {
        let behind = |listener: &&mut Listener| listener.state == ListenerState::Behind;
        if let Some(listener) = self.listeners.get_mut(&subscriber).filter(behind) {
            (listener.page, listener.report) = (Some(page), Some(report));
            self.handle(now_ms, Input::Room { subscriber }, around);
        }
    }

    /// Steps the feed and does what it says; a connection that takes nothing more leaves at once.
    pub(super) fn handle(&mut self, now_ms: u64, input: Input, around: &mut Surroundings<'_>) {
        let first_ended = around.ended.len();
        let mut done = first_ended;
        if let Input::Unsubscribe { subscriber, .. } = &input
            && self.listeners.remove(subscriber).is_some()
        {
            around.ended.push(*subscriber);
            done += 1;
        }
        self.step(now_ms, input, around);
        if let Some(listener) = self.answered.take().and_then(|subscriber| self.listeners.get_mut(&subscriber)) {
            // What was not needed.
            listener.page = None;
        }
        loop {
            if let Some((subscriber, at)) = around.full.pop() {
                self.step(now_ms, Input::Lag { subscriber, at }, around);
            } else if let Some(subscriber) = around.ended.get(done).copied() {
                done += 1;
                self.step(now_ms, Input::Unsubscribe { subscriber, leave: None }, around);
            } else {
                break;
            }
        }
        if !self.feed.has_joining() {
            self.frames.clear();
        }
    }

    fn step(&mut self, now_ms: u64, input: Input, around: &mut Surroundings<'_>) {
        let mut out = std::mem::take(around.out);
        self.feed.handle(now_ms, input, &mut out);
        for output in out.drain(..) {
            self.perform(output, around);
        }
        *around.out = out;
    }

    fn perform(&mut self, output: Output, around: &mut Surroundings<'_>) {
        let single =
            |attempt, subscriber, what| Single { slot: self.slot, group: self.name.clone(), attempt, subscriber, what };
        match output {
            Output::AskJoin { attempt, subscriber, member, since } => {
                let refused = around.requests.single(single(attempt, subscriber, What::Join { member, since }));
                around.refused.extend(refused);
            }
            Output::AskLeave { attempt, subscriber, session, attachment } => {
                let refused = around.requests.single(single(attempt, subscriber, What::Leave { session, attachment }));
                around.refused.extend(refused);
            }
            Output::AskRegister { attempt, since } => {
                add(&around.counters.registrations, 1);
                around.requests.register(self.slot, self.name.clone(), attempt, since);
            }
            Output::AskUnregister { attempt } => around.requests.unregister(self.slot, self.name.clone(), attempt),
            Output::Joined { subscriber, request, epoch, offset, recovered } => {
                add(&around.counters.joins, 1);
                self.answer(subscriber);
                let event = Event::Joined { id: request, group: self.name.clone(), epoch, offset, recovered };
                self.tell_one(subscriber, plain::encode(&event), around);
            }
            Output::Replay { subscriber } => self.answer(subscriber),
            Output::ReplayFailed { subscriber, error } => {
                if let Some(listener) = self.listeners.get_mut(&subscriber) {
                    listener.page = None;
                    // Whoever asked may have gone.
                    let _ = listener.report.take().map(|report| report.send(Err(error)));
                }
            }
            Output::Behind { subscriber } => {
                if let Some(listener) = self.listeners.get_mut(&subscriber) {
                    listener.state = ListenerState::Behind;
                    listener.outbox.behind(self.name.clone());
                }
            }
            Output::JoinFailed { subscriber, request, error } => self.join_failed(subscriber, request, &error, around),
            Output::Tell { to, notice } => self.tell(to, notice, around),
        }
    }

    /// The connection is told something that was asked for it, and all that follows.
    fn answer(&mut self, subscriber: Subscriber) {
        if let Some(listener) = self.listeners.get_mut(&subscriber) {
            listener.state = ListenerState::Live;
            // Whoever asked may have gone.
            let _ = listener.report.take().map(|report| report.send(Ok(())));
            self.answered = Some(subscriber);
        }
    }

    fn join_failed(
        &mut self,
        subscriber: Subscriber,
        request: RequestId,
        error: &SlotError,
        around: &mut Surroundings<'_>,
    ) {
        add(&around.counters.joins_failed, 1);
        let error_frame = plain::encode(&Event::Error(refusal(request, &self.name, error)));
        if self.feed.follows(subscriber) {
            // Another join of the same connection has taken its place and goes on.
            return self.tell_one(subscriber, error_frame, around);
        }
        if let Some(mut listener) = self.listeners.remove(&subscriber) {
            if let Some(report) = listener.report.take() {
                let _ = report.send(Err(error.clone()));
            }
            listener.outbox.push(error_frame);
            around.ended.push(subscriber);
        }
    }

    fn tell(&mut self, to: To, notice: Notice, around: &mut Surroundings<'_>) {
        let counters = around.counters;
        match (&to, &notice) {
            (To::AllBut(_), Notice::Message { .. }) => add(&counters.messages, 1),
            (_, Notice::Gap { .. }) => add(&counters.gaps, 1),
            (_, Notice::Reset(_)) => add(&counters.resets, 1),
            (To::AllBut(_), Notice::Stale) => add(&counters.stale, 1),
            _ => {}
        }
        let is_presence = matches!(notice, Notice::Member { .. });
        let before = match &notice {
            Notice::Message { epoch, message } => Some(Position { epoch: *epoch, offset: message.offset - 1 }),
            _ => None,
        };
        let frame = match (&to, notice) {
            (To::One(_), Notice::Message { epoch, message }) => self.frames.get(&self.name, epoch, message),
            (_, notice) => plain::encode(&event(&self.name, notice)),
        };
        match (to, before) {
            (To::One(subscriber), Some(before)) => self.replay(subscriber, before, frame, around),
            (To::One(subscriber), None) => {
                if self.listeners.get(&subscriber).is_some_and(|listener| listener.state == ListenerState::Live) {
                    self.tell_one(subscriber, frame, around);
                }
            }
            (To::AllBut(except), before) => {
                let hears = |listener: &Listener| match listener.state {
                    ListenerState::Joining => false,
                    ListenerState::Live => true,
                    ListenerState::Behind => is_presence,
                };
                self.broadcast(&except, before, &frame, hears, around);
            }
        }
    }

    /// A frame for many. `before` is set where it is a message: the position that it follows.
    fn broadcast(
        &mut self,
        except: &[Subscriber],
        before: Option<Position>,
        frame: &Utf8Bytes,
        hears: impl Fn(&Listener) -> bool,
        around: &mut Surroundings<'_>,
    ) {
        let lags = before.filter(|_| self.lags);
        let mut reached = 0;
        let (mut lost, mut full) = (Vec::new(), Vec::new());
        for (subscriber, listener) in self.listeners.iter().filter(|(_, listener)| hears(listener)) {
            if !except.is_empty() && except.contains(subscriber) {
                continue;
            }
            match lags {
                Some(before) => match listener.outbox.offer(frame.clone(), None) {
                    Offered::Queued => reached += 1,
                    Offered::Full => full.push((*subscriber, before)),
                    Offered::Ended => lost.push(*subscriber),
                },
                None if listener.outbox.push(frame.clone()) => reached += 1,
                None => lost.push(*subscriber),
            }
        }
        if before.is_some() {
            add(&around.counters.deliveries, reached);
        }
        for (subscriber, before) in full {
            // It is to know that it does not hear the group now; `live` ends that.
            let stale = plain::encode(&Event::Stale { group: self.name.clone() });
            self.tell_one(subscriber, stale, around);
            self.park(subscriber, before, around);
            add(&around.counters.lagged, 1);
        }
        for subscriber in lost {
            self.drop_listener(subscriber, around);
        }
    }

    /// A message for one that was missed. What does not fit is told later, whatever the namespace says of slow consumers:
    /// it is the node that sets the pace of a replay.
    fn replay(&mut self, subscriber: Subscriber, before: Position, frame: Utf8Bytes, around: &mut Surroundings<'_>) {
        let Some(listener) = self.listeners.get_mut(&subscriber) else { return };
        if listener.state != ListenerState::Live {
            return;
        }
        match listener.outbox.offer(frame, listener.page.as_mut()) {
            Offered::Queued => add(&around.counters.deliveries, 1),
            Offered::Full => self.park(subscriber, before, around),
            Offered::Ended => self.drop_listener(subscriber, around),
        }
    }

    /// The connection had no room for what follows `before`, and is told no later message. The feed hears of it when it
    /// has said all.
    fn park(&mut self, subscriber: Subscriber, before: Position, around: &mut Surroundings<'_>) {
        if let Some(listener) = self.listeners.get_mut(&subscriber) {
            listener.state = ListenerState::Behind;
            around.full.push((subscriber, before));
        }
    }

    fn tell_one(&mut self, subscriber: Subscriber, frame: Utf8Bytes, around: &mut Surroundings<'_>) {
        if self.listeners.get(&subscriber).is_some_and(|listener| !listener.outbox.push(frame)) {
            self.drop_listener(subscriber, around);
        }
    }

    /// The connection takes nothing more. The feed hears of it when it has said all.
    fn drop_listener(&mut self, subscriber: Subscriber, around: &mut Surroundings<'_>) {
        self.listeners.remove(&subscriber);
        add(&around.counters.dropped, 1);
        around.ended.push(subscriber);
    }
}

fn event(group: &GroupName, notice: Notice) -> Event {
    let group = group.clone();
    match notice {
        Notice::Message { epoch, message } => Event::Message { group, epoch, message },
        Notice::Member { joined, member } => Event::Member { group, joined, member },
        Notice::Gap { epoch, from, to } => Event::Gap { group, epoch, from, to, reason: "trimmed" },
        Notice::Reset(Position { epoch, offset }) => Event::Reset { group, epoch, offset, reason: "log_lost" },
        Notice::Stale => Event::Stale { group },
        Notice::Live(Position { epoch, offset }) => Event::Live { group, epoch, offset },
    }
}

fn refusal(id: RequestId, group: &GroupName, error: &SlotError) -> ClientError {
    let (reason, why, retry_after_ms) = match error {
        SlotError::Busy => (Reason::Busy, "too much is waiting for it", 500),
        SlotError::Unknown => (Reason::UnknownOutcome, "its node did not answer in time", 1_000),
        _ => (Reason::Unavailable, "no node can serve it now", 1_000),
    };
    let message = format!("the group {group} was not joined: {why}; join it again after retry_after_ms");
    ClientError { id, reason, message, detail: Vec::new(), retry_after_ms: Some(retry_after_ms) }
}

/// Messages as frames, while clients catch up: after a node's death thousands ask for the same ones.
#[derive(Default)]
struct Frames {
    frames: BTreeMap<(Epoch, u64), Utf8Bytes>,
    bytes: usize,
}

impl Frames {
    fn get(&mut self, group: &GroupName, epoch: Epoch, message: Message) -> Utf8Bytes {
        let key = (epoch, message.offset);
        if let Some(frame) = self.frames.get(&key) {
            return frame.clone();
        }
        let frame = plain::encode(&Event::Message { group: group.clone(), epoch, message });
        self.bytes += frame.len();
        self.frames.insert(key, frame.clone());
        while self.frames.len() > FRAMES || self.bytes > FRAMES_BYTES {
            let Some((_, oldest)) = self.frames.pop_first() else {
                break;
            };
            self.bytes -= oldest.len();
        }
        frame
    }

    fn clear(&mut self) {
        if !self.frames.is_empty() {
            *self = Self::default();
        }
    }
}
