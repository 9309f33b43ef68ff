//! One shard: owns the groups of its slots, knows which of their primaries can be heard, and turns what happens into the
//! feeds' inputs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::sync::{mpsc, watch};

use super::{
    Answer, Connections, Counts, HubMetrics, Input, Join,
    group::{Group, Surroundings},
    requests::Requests,
};
use crate::{
    clock,
    cluster::view::SharedView,
    config::{Config, SlowConsumer},
    gateway::client::outbox::Outbox,
    id::{AttachmentNumber, GroupName, Member, SessionId, SlotId, Term},
    logic::{
        feed::{self, Attempt, FeedSettings, Output},
        map::SharedMap,
        request::{JoinPoint, SlotError},
    },
    wire::{
        command::{Event, RequestId},
        plain,
    },
};

/// Inputs taken from the inbox at once.
const BATCH: usize = 256;

/// Owns the groups of its slots.
pub(super) struct Shard {
    inbox: mpsc::Receiver<Input>,
    requests: Requests,
    maps: Watched<Option<SharedMap>>,
    view: Watched<SharedView>,
    slots: BTreeMap<SlotId, Slot>,
    timers: BTreeSet<(u64, SlotId, GroupName)>,
    connections: Connections,
    me: Member,
    /// Members that have a connection to this node.
    heard: BTreeSet<Member>,
    /// Members that gossip says are alive.
    alive: BTreeSet<Member>,
    settings: FeedSettings,
    /// A lost link is noticed so long after the last thing heard.
    noticed_after_ms: u64,
    config: Arc<Config>,
    counts: Counts,
    counters: HubMetrics,
    out: Vec<Output>,
    /// The highest number of a request by a feed that is no more.
    last_attempt: Attempt,
}

/// A slot with groups that are followed here.
#[derive(Default)]
struct Slot {
    primary: Option<(Term, Member)>,
    /// When the primary was last heard, while it is not.
    unreachable_since_ms: Option<u64>,
    groups: BTreeMap<GroupName, Group>,
}

/// A watched value, whose sender may be gone (the node stops).
struct Watched<T> {
    receiver: watch::Receiver<T>,
    open: bool,
}

impl<T> Watched<T> {
    async fn changed(&mut self) {
        if !self.open {
            std::future::pending::<()>().await;
        }
        self.open = self.receiver.changed().await.is_ok();
    }
}

impl Shard {
    pub(super) fn new(
        inbox: mpsc::Receiver<Input>,
        requests: Requests,
        maps: watch::Receiver<Option<SharedMap>>,
        view: watch::Receiver<SharedView>,
        config: Arc<Config>,
        counts: Counts,
        counters: HubMetrics,
    ) -> Self {
        let request_ms = config.limits.request_ms;
        let me = view.borrow().me.clone();
        let settings = FeedSettings {
            stale_after_ms: config.timing.stale_after_ms,
            answer_ms: request_ms * 2 + 2_000,
            join_ms: request_ms + 3_000,
            ..FeedSettings::default()
        };
        let mut shard = Self {
            inbox,
            requests,
            maps: Watched { receiver: maps, open: true },
            view: Watched { receiver: view, open: true },
            slots: BTreeMap::new(),
            timers: BTreeSet::new(),
            connections: BTreeMap::new(),
            me,
            heard: BTreeSet::new(),
            alive: BTreeSet::new(),
            settings,
            noticed_after_ms: config.timing.keep_alive_ms * 4,
            config,
            counts,
            counters,
            out: Vec::new(),
            last_attempt: 0,
        };
        shard.view_changed();
        shard
    }

    pub(super) async fn run(mut self) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let pause_ms = self.timers.first().map(|(at_ms, ..)| at_ms.saturating_sub(clock::mono_ms()).max(1));
            let wake = async {
                match pause_ms {
                    Some(pause_ms) => tokio::time::sleep(Duration::from_millis(pause_ms)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = self.maps.changed() => self.map_changed(),
                () = self.view.changed() => self.view_changed(),
                count = self.inbox.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    for input in batch.drain(..) {
                        self.input(input);
                    }
                }
                () = wake => {}
            }
            self.tick();
            self.requests.flush();
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Deliver { slot, term, group, epoch, message } => {
                let unreachable = self.open(slot, &group);
                self.feed(slot, &group, feed::Input::Deliver { epoch, message, term });
                self.feed_unreachable(slot, &group, unreachable);
            }
            Input::Member { slot, group, joined, member } => {
                self.feed(slot, &group, feed::Input::Member { joined, member });
            }
            Input::Join { slot, join } => self.join(slot, *join),
            Input::Room { slot, connection, group, page, report } => {
                let now_ms = clock::mono_ms();
                self.with_group(slot, &group, |group, around| group.room(now_ms, connection, page, report, around));
            }
            Input::Leave { slot, outbox, request, group, presence } => {
                self.leave(slot, &outbox, request, group, presence);
            }
            Input::LeftAll { connection, done } => {
                for (slot, group) in self.connections.remove(&connection).unwrap_or_default() {
                    self.feed(slot, &group, feed::Input::Unsubscribe { subscriber: connection, leave: None });
                }
                // The connection may be gone already.
                let _ = done.send(());
            }
            Input::PeerConnected(from) => self.peer_connected(from),
            Input::PeerLost(from) => {
                self.heard.remove(&from);
                let last_heard_ms = clock::mono_ms().saturating_sub(self.noticed_after_ms);
                self.look_at_primaries(last_heard_ms);
            }
            Input::Answer(answer) => self.answer(answer),
        }
    }

    fn join(&mut self, slot: SlotId, join: Join) {
        if join.outbox.is_closing() {
            return;
        }
        let name = join.group.clone();
        self.connections.entry(join.outbox.connection).or_default().insert((slot, name.clone()));
        let unreachable = self.open(slot, &name);
        self.with_group(slot, &name, |group, around| group.join(clock::mono_ms(), join, around));
        self.feed_unreachable(slot, &name, unreachable);
    }

    fn leave(
        &mut self,
        slot: SlotId,
        outbox: &Outbox,
        request: RequestId,
        group: GroupName,
        presence: Option<(SessionId, AttachmentNumber)>,
    ) {
        self.feed(slot, &group, feed::Input::Unsubscribe { subscriber: outbox.connection, leave: presence });
        // Where the connection takes nothing more there is nobody to tell.
        outbox.push(plain::encode(&Event::Left { id: request, group }));
    }

    fn answer(&mut self, answer: Answer) {
        match answer {
            Answer::Joined { slot, group, attempt, subscriber, result } => {
                self.feed(slot, &group, feed::Input::JoinAnswer { attempt, subscriber, result });
            }
            Answer::Left { slot, group, attempt, subscriber } => {
                self.feed(slot, &group, feed::Input::LeaveAnswer { attempt, subscriber });
            }
            Answer::Unregistered { slot, asked } => {
                for (group, attempt) in asked {
                    self.feed(slot, &group, feed::Input::UnregisterAnswer { attempt });
                }
            }
            Answer::Registered { slot, asked, result } => self.registered(slot, asked, result),
        }
    }

    fn registered(
        &mut self,
        slot: SlotId,
        asked: Vec<(GroupName, Attempt)>,
        result: Result<Vec<JoinPoint>, SlotError>,
    ) {
        let (mut points, error) = match result {
            Ok(points) => (points.into_iter(), SlotError::Unknown),
            Err(error) => (Vec::new().into_iter(), error),
        };
        for (group, attempt) in asked {
            // They come in the order of the interests; one that does not is not believed.
            let result = points.next().filter(|point| point.group == group).ok_or_else(|| error.clone());
            self.feed(slot, &group, feed::Input::RegisterAnswer { attempt, result });
        }
    }

    fn peer_connected(&mut self, from: Member) {
        self.heard.insert(from.clone());
        let is_from = |slot: &Slot| slot.primary.as_ref().is_some_and(|(_, primary)| *primary == from);
        let slots: Vec<_> = self.slots.iter().filter(|(_, slot)| is_from(slot)).map(|(slot, _)| *slot).collect();
        for slot in slots {
            self.feed_all(slot, &feed::Input::Disrupted);
        }
        self.look_at_primaries(clock::mono_ms());
    }

    fn view_changed(&mut self) {
        let alive: BTreeSet<_> = {
            let view = self.view.receiver.borrow_and_update();
            view.nodes.values().filter(|node| node.alive).map(|node| node.member.clone()).collect()
        };
        if alive != self.alive {
            self.alive = alive;
            self.look_at_primaries(clock::mono_ms());
        }
    }

    fn map_changed(&mut self) {
        let Some(map) = self.maps.receiver.borrow_and_update().clone() else {
            return;
        };
        let mut changed = Vec::new();
        for (id, slot) in &mut self.slots {
            let primary = map.slot(*id).map(|slot| (slot.term, slot.primary.clone()));
            if primary != slot.primary {
                slot.primary = primary;
                changed.push(*id);
            }
        }
        for slot in changed {
            self.feed_all(slot, &feed::Input::Disrupted);
        }
        self.look_at_primaries(clock::mono_ms());
    }

    /// Tells the feeds whose primary has become unreachable, or reachable again.
    fn look_at_primaries(&mut self, last_heard_ms: u64) {
        let mut changed = Vec::new();
        for (id, slot) in &mut self.slots {
            let reachable = reachable(&self.me, &self.heard, &self.alive, slot);
            match slot.unreachable_since_ms {
                None if !reachable => {
                    slot.unreachable_since_ms = Some(last_heard_ms);
                    changed.push((*id, feed::Input::PrimaryUnreachable { since_ms: last_heard_ms }));
                }
                Some(_) if reachable => {
                    slot.unreachable_since_ms = None;
                    changed.push((*id, feed::Input::PrimaryReachable));
                }
                _ => {}
            }
        }
        for (slot, input) in changed {
            self.feed_all(slot, &input);
        }
    }

    /// Makes the group known, where it is not. Gives since when its primary cannot be heard, for [`Self::feed_unreachable`]: a
    /// group that nobody has joined yet is over after every step, so that the step for which it was opened comes first.
    fn open(&mut self, id: SlotId, name: &GroupName) -> Option<u64> {
        let slot = self.slots.entry(id).or_insert_with(|| {
            let map = self.maps.receiver.borrow();
            let primary = map.as_ref().and_then(|map| map.slot(id)).map(|slot| (slot.term, slot.primary.clone()));
            let mut slot = Slot { primary, ..Slot::default() };
            if !reachable(&self.me, &self.heard, &self.alive, &slot) {
                slot.unreachable_since_ms = Some(clock::mono_ms());
            }
            slot
        });
        if slot.groups.contains_key(name) {
            return None;
        }
        // Slots are renewed one after the other, the groups of each together.
        let renew_phase_ms = u64::from(id).wrapping_mul(0x9E37_79B9) % self.settings.renew_ms;
        let settings = FeedSettings { renew_phase_ms, ..self.settings };
        // What is private is not of the namespace that its name may seem to have.
        let lags = !name.is_private() && self.config.namespace(name.namespace()).slow_consumer == SlowConsumer::Lag;
        slot.groups.insert(name.clone(), Group::new(id, name.clone(), lags, settings, self.last_attempt));
        slot.unreachable_since_ms
    }

    fn feed_unreachable(&mut self, id: SlotId, name: &GroupName, since_ms: Option<u64>) {
        if let Some(since_ms) = since_ms {
            self.feed(id, name, feed::Input::PrimaryUnreachable { since_ms });
        }
    }

    fn feed_all(&mut self, slot: SlotId, input: &feed::Input) {
        let names: Vec<_> = self.slots.get(&slot).into_iter().flat_map(|slot| slot.groups.keys().cloned()).collect();
        for name in names {
            self.feed(slot, &name, input.clone());
        }
    }

    fn feed(&mut self, slot: SlotId, name: &GroupName, input: feed::Input) {
        self.with_group(slot, name, |group, around| group.handle(clock::mono_ms(), input, around));
    }

    fn tick(&mut self) {
        let now_ms = clock::mono_ms();
        let mut due = Vec::new();
        while self.timers.first().is_some_and(|(at_ms, ..)| *at_ms <= now_ms) {
            due.extend(self.timers.pop_first());
        }
        for (_, slot, name) in due {
            if let Some(group) = self.slots.get_mut(&slot).and_then(|slot| slot.groups.get_mut(&name)) {
                group.wake = None;
            }
            self.feed(slot, &name, feed::Input::Tick);
        }
    }

    /// Does something with a group, where it is known, and keeps the shard's indexes true.
    fn with_group(&mut self, id: SlotId, name: &GroupName, act: impl FnOnce(&mut Group, &mut Surroundings<'_>)) {
        let Some(group) = self.slots.get_mut(&id).and_then(|slot| slot.groups.get_mut(name)) else {
            return;
        };
        let (mut refused, mut ended, mut full) = (Vec::new(), Vec::new(), Vec::new());
        let (requests, counters, out) = (&mut self.requests, &self.counters, &mut self.out);
        act(
            group,
            &mut Surroundings { requests, counters, out, refused: &mut refused, ended: &mut ended, full: &mut full },
        );
        let wake = group.next_wake();
        if wake != group.wake {
            if let Some(at_ms) = group.wake {
                self.timers.remove(&(at_ms, id, name.clone()));
            }
            self.timers.extend(wake.map(|at_ms| (at_ms, id, name.clone())));
            group.wake = wake;
        }
        let (over, count) = (group.is_over(), group.subscriber_count());
        if count != group.counted {
            group.counted = count;
            let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            if count == 0 {
                counts.remove(name);
            } else {
                counts.insert(name.clone(), u32::try_from(count).unwrap_or(u32::MAX));
            }
        }
        for connection in ended {
            if let Some(groups) = self.connections.get_mut(&connection) {
                groups.remove(&(id, name.clone()));
                if groups.is_empty() {
                    self.connections.remove(&connection);
                }
            }
        }
        if over {
            self.close(id, name);
        }
        for answer in refused {
            self.answer(answer);
        }
    }

    fn close(&mut self, id: SlotId, name: &GroupName) {
        let Some(slot) = self.slots.get_mut(&id) else {
            return;
        };
        if let Some(group) = slot.groups.remove(name) {
            self.last_attempt = self.last_attempt.max(group.last_attempt());
            if let Some(at_ms) = group.wake {
                self.timers.remove(&(at_ms, id, name.clone()));
            }
        }
        if slot.groups.is_empty() {
            self.slots.remove(&id);
        }
    }
}

/// Whether what the slot's primary pushes can get here. Without a map nothing is known yet.
fn reachable(me: &Member, heard: &BTreeSet<Member>, alive: &BTreeSet<Member>, slot: &Slot) -> bool {
    slot.primary.as_ref().is_none_or(|(_, primary)| primary == me || heard.contains(primary) && alive.contains(primary))
}
