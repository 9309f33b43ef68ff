//! One group with subscribers here: the outboxes that what is told of it goes to.

use std::{collections::BTreeMap, sync::Arc};

use indexmap::IndexMap;
use tokio::sync::oneshot;

use super::{Entered, HubMetrics, JoinOutcome, Page, add};
use crate::{
    gateway::client::outbox::{Outbox, Queued},
    id::{Epoch, GroupName, Position, SlotId},
    logic::{
        feed::{Notice, Subscriber, To},
        following::Input,
        request::SlotError,
    },
    metrics::EphemeralDrop,
    wire::{
        codec::Codec,
        command::{ClientError, Event, RequestId},
        frame::Frame,
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
    options: Options,
    /// Close together, as each message goes through all of them; in no order that means anything.
    listeners: IndexMap<Subscriber, Listener>,
    frames: Frames,
}

/// What the namespace of a group says.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    /// A connection without room for a message falls behind; otherwise it ends.
    pub(super) lags: bool,
    /// Messages are compressed for the clients that take it.
    pub(super) compresses: bool,
}

struct Listener {
    outbox: Arc<Outbox>,
    codec: Codec,
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
pub(super) struct Around<'a> {
    pub(super) counters: &'a HubMetrics,
    /// What the core is to hear before its next input: who had no room, and who takes nothing more.
    pub(super) back: &'a mut Vec<Input>,
    pub(super) unwritten: &'a mut Unwritten,
}

/// Outboxes that have something, and nobody else to write it.
#[derive(Default)]
pub(super) struct Unwritten(pub(super) Vec<Arc<Outbox>>);

/// What connections are told of a group: one frame for each codec that they have, made when it is asked for first.
struct Told {
    event: Event,
    /// Where it brings who is told.
    moves_to: Option<Position>,
    frames: [Option<Frame>; Codec::COUNT],
}

impl Told {
    fn new(event: Event) -> Self {
        Self { moves_to: event.moves_to(), event, frames: Default::default() }
    }

    /// Has `queue` queue it, counted once in however many outboxes it is to wait.
    fn queue(&mut self, group: &GroupName, listener: &Listener, queue: impl FnOnce(Frame) -> Queued) -> Queued {
        let Listener { outbox, codec, .. } = listener;
        let make = || outbox.counted(codec.encode_at(&self.event, self.moves_to));
        let frame = self.frames[*codec as usize].get_or_insert_with(make).clone();
        outbox.tell(group, self.moves_to, frame, queue)
    }
}

impl Unwritten {
    /// Whether it reaches the connection.
    pub(super) fn append(&mut self, outbox: &Arc<Outbox>, event: &Event) -> bool {
        let queued = outbox.append(outbox.codec().encode(event));
        self.note(outbox, queued);
        queued != Queued::Ended
    }

    fn note(&mut self, outbox: &Arc<Outbox>, queued: Queued) {
        if queued == Queued::First {
            self.0.push(outbox.clone());
        }
    }
}

impl Group {
    pub(super) fn new(slot: SlotId, name: GroupName, options: Options) -> Self {
        Self { slot, name, options, listeners: IndexMap::with_capacity(1), frames: Frames::default() }
    }

    pub(super) fn slot(&self) -> SlotId {
        self.slot
    }

    pub(super) fn is_empty(&self) -> bool {
        self.listeners.is_empty()
    }

    /// Whether frames are kept for clients that catch up.
    pub(super) fn keeps_frames(&self) -> bool {
        !self.frames.frames.is_empty()
    }

    /// Nobody catches up any more.
    pub(super) fn drop_frames(&mut self) {
        self.frames = Frames::default();
    }

    pub(super) fn add(
        &mut self,
        outbox: Arc<Outbox>,
        page: Option<Page>,
        report: Option<oneshot::Sender<JoinOutcome>>,
    ) {
        let (state, codec) = (ListenerState::Joining, outbox.codec().of_group(self.options.compresses));
        self.listeners.insert(outbox.connection, Listener { outbox, codec, state, page, report });
    }

    pub(super) fn remove(&mut self, subscriber: Subscriber) {
        self.listeners.swap_remove(&subscriber);
    }

    /// There is room for a page of what the connection is behind with. Whether it is behind.
    pub(super) fn room(&mut self, subscriber: Subscriber, page: Page, report: oneshot::Sender<JoinOutcome>) -> bool {
        let behind = |listener: &&mut Listener| listener.state == ListenerState::Behind;
        let Some(listener) = self.listeners.get_mut(&subscriber).filter(behind) else { return false };
        (listener.page, listener.report) = (Some(page), Some(report));
        true
    }

    /// The connection is told that it has joined, and all that follows.
    pub(super) fn joined(
        &mut self,
        subscriber: Subscriber,
        request: RequestId,
        position: Position,
        recovered: bool,
        around: &mut Around<'_>,
    ) {
        let Position { epoch, offset } = position;
        self.answer(subscriber, offset == 0);
        let Some(listener) = self.listeners.get(&subscriber) else { return };
        let moves_to = Some(listener.outbox.joined_at(&self.name, position));
        let event = Event::Joined { id: request, group: self.name.clone(), epoch, offset, recovered };
        self.tell_one(subscriber, &mut Told { moves_to, ..Told::new(event) }, around);
    }

    /// The connection is told something that was asked for it, and all that follows.
    pub(super) fn answer(&mut self, subscriber: Subscriber, nothing_published: bool) {
        let is_new = nothing_published && self.listeners.len() == 1;
        let entered = if is_new { Entered::NewGroup } else { Entered::KnownGroup };
        if let Some(listener) = self.listeners.get_mut(&subscriber) {
            listener.state = ListenerState::Live;
            // Whoever asked may have gone.
            let _ = listener.report.take().map(|report| report.send(Ok(entered)));
        }
    }

    /// All of the answer was told: what was not needed of its page goes back.
    pub(super) fn is_answered(&mut self, subscriber: Subscriber) {
        if let Some(listener) = self.listeners.get_mut(&subscriber) {
            listener.page = None;
        }
    }

    pub(super) fn replay_failed(&mut self, subscriber: Subscriber, error: SlotError) {
        if let Some(listener) = self.listeners.get_mut(&subscriber) {
            listener.page = None;
            // Whoever asked may have gone.
            let _ = listener.report.take().map(|report| report.send(Err(error)));
        }
    }

    /// The connection is told nothing until there is room for a page.
    pub(super) fn is_behind(&mut self, subscriber: Subscriber) {
        if let Some(listener) = self.listeners.get_mut(&subscriber) {
            listener.state = ListenerState::Behind;
            listener.outbox.behind(self.name.clone());
        }
    }

    pub(super) fn join_failed(
        &mut self,
        subscriber: Subscriber,
        request: RequestId,
        error: SlotError,
        overtaken: bool,
        around: &mut Around<'_>,
    ) {
        let event = Event::Error(refusal(request, &self.name, &error));
        if overtaken {
            return self.tell_one(subscriber, &mut Told::new(event), around);
        }
        if let Some(listener) = self.listeners.get_mut(&subscriber) {
            if let Some(report) = listener.report.take() {
                let _ = report.send(Err(error));
            }
            around.unwritten.append(&listener.outbox, &event);
        }
    }

    pub(super) fn tell(&mut self, name: GroupName, to: To, notice: Notice, around: &mut Around<'_>) {
        let counters = around.counters;
        match (&to, &notice) {
            (To::AllBut(_), Notice::Message { .. }) => add(&counters.messages, 1),
            (_, Notice::Gap { .. }) => add(&counters.gaps, 1),
            (_, Notice::Reset(_)) => add(&counters.resets, 1),
            (To::AllBut(_), Notice::Stale) => add(&counters.stale, 1),
            _ => {}
        }
        if let Notice::Ephemeral(message) = notice {
            return self.pass_on(&mut Told::new(Event::Ephemeral { group: name, message }), around);
        }
        let (is_presence, is_stale) =
            (matches!(notice, Notice::Member { .. } | Notice::Present(_)), notice == Notice::Stale);
        let before = match &notice {
            Notice::Message { epoch, message } => Some(Position { epoch: *epoch, offset: message.offset - 1 }),
            _ => None,
        };
        let mut told = Told::new(event(name, notice));
        match (to, before) {
            (To::One(subscriber), Some(before)) => self.replay(subscriber, before, &told.event, around),
            (To::One(subscriber), None) => {
                if self.listeners.get(&subscriber).is_some_and(|listener| listener.state == ListenerState::Live) {
                    self.tell_one(subscriber, &mut told, around);
                }
            }
            (To::AllBut(except), _) if is_stale => self.tell_stale(&except, &mut told, around),
            (To::AllBut(except), before) => {
                let hears = |listener: &Listener| match listener.state {
                    ListenerState::Joining => false,
                    ListenerState::Live => true,
                    ListenerState::Behind => is_presence,
                };
                self.broadcast(&except, before, &mut told, hears, around);
            }
        }
    }

    /// The group is not heard: they are to know it also while nothing may be delivered to them.
    fn tell_stale(&mut self, except: &[Subscriber], told: &mut Told, around: &mut Around<'_>) {
        let Self { name, listeners, .. } = self;
        let live = listeners
            .iter()
            .filter(|(subscriber, listener)| listener.state == ListenerState::Live && !except.contains(subscriber));
        let lost: Vec<_> = live
            .filter(|(_, listener)| {
                let aside = |frame| if listener.outbox.push_aside(frame) { Queued::Later } else { Queued::Ended };
                told.queue(name, listener, aside) == Queued::Ended
            })
            .map(|(subscriber, _)| *subscriber)
            .collect();
        for subscriber in lost {
            self.drop_listener(subscriber, around);
        }
    }

    /// An event for many. `before` is set where it is a message: the position that it follows.
    fn broadcast(
        &mut self,
        except: &[Subscriber],
        before: Option<Position>,
        told: &mut Told,
        hears: impl Fn(&Listener) -> bool,
        around: &mut Around<'_>,
    ) {
        let lags = before.filter(|_| self.options.lags);
        let mut reached = 0;
        let (mut lost, mut full) = (Vec::new(), Vec::new());
        for (subscriber, listener) in self.listeners.iter().filter(|(_, listener)| hears(listener)) {
            if !except.is_empty() && except.contains(subscriber) {
                continue;
            }
            let outbox = &*listener.outbox;
            let queued = told.queue(&self.name, listener, |frame| match lags {
                Some(_) => outbox.offer(frame, None),
                None => outbox.append(frame),
            });
            around.unwritten.note(&listener.outbox, queued);
            match (queued, lags) {
                (Queued::First | Queued::Later, _) => reached += 1,
                (Queued::Full, Some(before)) => full.push((*subscriber, before)),
                (Queued::Full | Queued::Ended, _) => lost.push(*subscriber),
            }
        }
        if before.is_some() {
            add(&around.counters.deliveries, reached);
        }
        for (subscriber, before) in full {
            // It is to know that it does not hear the group now; `live` ends that.
            self.tell_one(subscriber, &mut Told::new(Event::Stale { group: self.name.clone() }), around);
            self.park(subscriber, before, around);
            add(&around.counters.lagged, 1);
        }
        for subscriber in lost {
            self.drop_listener(subscriber, around);
        }
    }

    /// A message that has no place, for all that are live. Who has no room for it does without.
    fn pass_on(&mut self, told: &mut Told, around: &mut Around<'_>) {
        let (mut reached, mut dropped, mut lost) = (0, 0, Vec::new());
        for (subscriber, listener) in self.listeners.iter().filter(|(_, there)| there.state == ListenerState::Live) {
            let outbox = &*listener.outbox;
            let queued = told.queue(&self.name, listener, |frame| outbox.append_ephemeral(frame));
            around.unwritten.note(&listener.outbox, queued);
            match queued {
                Queued::First | Queued::Later => reached += 1,
                Queued::Full => dropped += 1,
                Queued::Ended => lost.push(*subscriber),
            }
        }
        add(&around.counters.ephemeral.deliveries, reached);
        around.counters.ephemeral.dropped(EphemeralDrop::Client, dropped);
        for subscriber in lost {
            self.drop_listener(subscriber, around);
        }
    }

    /// A message for one that was missed. What does not fit is told later, whatever the namespace says of slow consumers:
    /// it is the node that sets the pace of a replay.
    fn replay(&mut self, subscriber: Subscriber, before: Position, event: &Event, around: &mut Around<'_>) {
        let Some(listener) = self.listeners.get_mut(&subscriber) else { return };
        if listener.state != ListenerState::Live {
            return;
        }
        let Listener { outbox, codec, page, .. } = listener;
        let Some(frame) = self.frames.get(event, outbox, *codec) else { return };
        let queued = outbox.tell(&self.name, event.moves_to(), frame, |frame| outbox.offer(frame, page.as_mut()));
        around.unwritten.note(&listener.outbox, queued);
        match queued {
            Queued::First | Queued::Later => add(&around.counters.deliveries, 1),
            Queued::Full => self.park(subscriber, before, around),
            Queued::Ended => self.drop_listener(subscriber, around),
        }
    }

    /// The connection had no room for what follows `before`, and is told no later message.
    fn park(&mut self, subscriber: Subscriber, before: Position, around: &mut Around<'_>) {
        if let Some(listener) = self.listeners.get_mut(&subscriber) {
            listener.state = ListenerState::Behind;
            let (slot, group) = (self.slot, self.name.clone());
            around.back.push(Input::Lag { slot, group, subscriber, at: before });
        }
    }

    fn tell_one(&mut self, subscriber: Subscriber, told: &mut Told, around: &mut Around<'_>) {
        let Some(listener) = self.listeners.get(&subscriber) else { return };
        let queued = told.queue(&self.name, listener, |frame| listener.outbox.append(frame));
        around.unwritten.note(&listener.outbox, queued);
        if queued == Queued::Ended {
            self.drop_listener(subscriber, around);
        }
    }

    /// The connection takes nothing more.
    fn drop_listener(&mut self, subscriber: Subscriber, around: &mut Around<'_>) {
        self.listeners.swap_remove(&subscriber);
        add(&around.counters.dropped, 1);
        let (slot, group) = (self.slot, self.name.clone());
        around.back.push(Input::Unsubscribe { slot, group, subscriber, leave: None });
    }
}

fn event(group: GroupName, notice: Notice) -> Event {
    match notice {
        Notice::Message { epoch, message } => Event::Message { group, epoch, message },
        Notice::Ephemeral(message) => Event::Ephemeral { group, message },
        Notice::Member { event, member } => Event::Member { group, event, member },
        Notice::Present(present) => Event::Presence { group, present },
        Notice::Gap { epoch, from, to } => Event::Gap { group, epoch, from, to, reason: "trimmed" },
        Notice::Reset(Position { epoch, offset }) => Event::Reset { group, epoch, offset, reason: "log_lost" },
        Notice::Stale => Event::Stale { group },
        Notice::Live(Position { epoch, offset }) => Event::Live { group, epoch, offset },
    }
}

fn refusal(id: RequestId, group: &GroupName, error: &SlotError) -> ClientError {
    let (reason, why, retry_after_ms) = match error {
        SlotError::Busy => (Reason::Busy, "too much is waiting for it", 500),
        SlotError::Full => (Reason::Busy, "there is no memory left for more groups (limits.memory_bytes)", 1_000),
        SlotError::Unknown => (Reason::UnknownOutcome, "its node did not answer in time", 1_000),
        _ => (Reason::Unavailable, "no node can serve it now", 1_000),
    };
    let message = format!("the group {group} was not joined: {why}; join it again after retry_after_ms");
    ClientError { id, reason, message, detail: Vec::new(), retry_after_ms: Some(retry_after_ms) }
}

/// Messages as frames, while clients catch up: after a node's death thousands ask for the same ones.
#[derive(Default)]
struct Frames {
    frames: BTreeMap<(Epoch, u64, Codec), Frame>,
    bytes: usize,
}

impl Frames {
    /// Nothing where it is no message.
    fn get(&mut self, event: &Event, outbox: &Outbox, codec: Codec) -> Option<Frame> {
        let Event::Message { epoch, message, .. } = event else { return None };
        let key = (*epoch, message.offset, codec);
        if let Some(frame) = self.frames.get(&key) {
            return Some(frame.clone());
        }
        let is_full = |frames: &Self, more: usize| frames.frames.len() >= FRAMES || frames.bytes + more > FRAMES_BYTES;
        if is_full(self, 0) && self.frames.first_key_value().is_some_and(|(oldest, _)| key < *oldest) {
            // It would not be kept, so it is not compressed either, for each client anew.
            return Some(outbox.counted(codec.of_group(false).encode(event)));
        }
        let frame = outbox.counted(codec.encode(event));
        while is_full(self, frame.len()) {
            let Some((_, oldest)) = self.frames.pop_first() else {
                break;
            };
            self.bytes -= oldest.len();
        }
        self.bytes += frame.len();
        self.frames.insert(key, frame.clone());
        Some(frame)
    }
}
