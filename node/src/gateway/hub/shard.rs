//! One shard: holds the outboxes of its slots' groups, and is the shell of [`Following`], which decides what they are told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError},
    time::Duration,
};

use tokio::sync::{mpsc, watch};

use super::{
    Counts, HubMetrics, Input, Join, add,
    group::{Around, Group, Options, Unwritten},
    requests::Requests,
};
use crate::{
    clock,
    cluster::view::SharedView,
    config::{Config, PresenceMode, SlowConsumer},
    deliveries::Arrival,
    gateway::client::outbox::Outbox,
    id::{GroupName, Member, Position, Seat, SlotId},
    logic::{
        feed::{FeedSettings, Subscriber},
        following::{self, Following, FollowingSettings, Output},
        map::SharedMap,
        request::GroupPush,
    },
    seldom::Seldom,
    wire::command::{Event, LeftBy, RequestId},
};

/// Inputs taken from a queue at once.
const BATCH: usize = 256;
/// Connections that are written to before others get a turn.
const WRITES: usize = 64;

/// What a shard takes from.
pub(super) struct Inboxes {
    /// What primaries push, and whether they are heard.
    pub(super) arrivals: mpsc::Receiver<Arrival>,
    /// What connections want, and the answers to what the shard asked.
    pub(super) inbox: mpsc::Receiver<Input>,
}

/// Holds the outboxes of its slots' groups.
pub(super) struct Shard {
    inboxes: Inboxes,
    requests: Requests,
    maps: Watched<Option<SharedMap>>,
    view: Watched<SharedView>,
    following: Following,
    groups: BTreeMap<GroupName, Group>,
    /// As the core knows it.
    alive: Arc<BTreeSet<Member>>,
    config: Arc<Config>,
    counts: Counts,
    counters: HubMetrics,
    /// Both kept for their memory; empty between uses.
    out: Vec<Output>,
    back: Vec<following::Input>,
    unwritten: Unwritten,
    /// Who was told a join or a page last, and may be told more of it.
    answered: Option<(GroupName, Subscriber)>,
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
        inboxes: Inboxes,
        requests: Requests,
        maps: watch::Receiver<Option<SharedMap>>,
        view: watch::Receiver<SharedView>,
        config: Arc<Config>,
        counts: Counts,
        counters: HubMetrics,
    ) -> Self {
        let following = Following::new(view.borrow().me.clone(), settings(&config));
        let mut shard = Self {
            inboxes,
            requests,
            maps: Watched { receiver: maps, open: true },
            view: Watched { receiver: view, open: true },
            following,
            groups: BTreeMap::new(),
            alive: Arc::default(),
            config,
            counts,
            counters,
            out: Vec::new(),
            back: Vec::new(),
            unwritten: Unwritten::default(),
            answered: None,
        };
        shard.view_changed();
        shard.map_changed();
        shard
    }

    pub(super) async fn run(mut self) {
        let (mut arrivals, mut inputs) = (Vec::with_capacity(BATCH), Vec::with_capacity(BATCH));
        loop {
            let pause_ms = self.following.next_wake().map(|at_ms| at_ms.saturating_sub(clock::mono_ms()).max(1));
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
                count = self.inboxes.arrivals.recv_many(&mut arrivals, BATCH) => if count == 0 { return },
                count = self.inboxes.inbox.recv_many(&mut inputs, BATCH) => if count == 0 { return },
                () = wake => {}
            }
            for arrival in arrivals.drain(..) {
                self.arrived(arrival);
            }
            // Also after arrivals, so that a busy group does not keep others from joining.
            while inputs.len() < BATCH
                && let Ok(input) = self.inboxes.inbox.try_recv()
            {
                inputs.push(input);
            }
            for input in inputs.drain(..) {
                self.input(input);
            }
            if self.following.next_wake().is_some_and(|at_ms| at_ms <= clock::mono_ms()) {
                self.handle(following::Input::Tick);
            }
            self.flush();
            self.write().await;
        }
    }

    /// Each connection's frames in one write, whatever number of inputs they came from.
    async fn write(&mut self) {
        let mut unwritten = std::mem::take(&mut self.unwritten.0);
        for (at, outbox) in unwritten.drain(..).enumerate() {
            if at % WRITES == WRITES - 1 {
                tokio::task::yield_now().await;
            }
            outbox.flush();
        }
        self.unwritten.0 = unwritten;
    }

    fn arrived(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Push { slot, term, group, push: GroupPush::Deliver { epoch, messages } } => {
                let _span = tracing::trace_span!("deliver", slot, %group, messages = messages.len()).entered();
                self.handle(following::Input::Deliver { slot, term, group, epoch, messages });
            }
            Arrival::Push { slot, group, push: GroupPush::Member { event, member, present }, .. } => {
                self.handle(following::Input::Member { slot, group, event, member, present });
            }
            Arrival::Push { slot, group, push: GroupPush::Ephemeral { messages }, .. } => {
                let _span = tracing::trace_span!("deliver", slot, %group, messages = messages.len()).entered();
                self.handle(following::Input::Ephemeral { slot, group, messages });
            }
            Arrival::PeerConnected(from) => self.handle(following::Input::PeerConnected(from)),
            Arrival::PeerLost(from) => self.handle(following::Input::PeerLost(from)),
        }
    }

    fn input(&mut self, input: Input) {
        match input {
            Input::Answered(answer) => self.handle(following::Input::Answered(answer)),
            Input::Join { slot, join } => self.join(slot, *join),
            Input::Room { slot, connection, group, page, report } => {
                let there = self.groups.get_mut(&group);
                if there.is_some_and(|there| there.room(connection, page, report)) {
                    self.handle(following::Input::Room { slot, group, subscriber: connection });
                }
            }
            Input::Leave { slot, outbox, why, group, presence } => {
                self.leave(slot, &outbox, why, group, presence);
            }
            Input::LeftAll { connection, done } => {
                self.handle(following::Input::Gone { subscriber: connection });
                // The connection may be gone already.
                let _ = done.send(());
            }
        }
    }

    fn join(&mut self, slot: SlotId, join: Join) {
        let Join { outbox, request, group, member, since, page, report } = join;
        if outbox.is_closing() {
            return;
        }
        let subscriber = outbox.connection;
        // What is private is not of the namespace that its name may seem to have.
        let options = (!group.is_private()).then(|| self.config.namespace(group.namespace()));
        let summed = options.as_ref().is_some_and(|options| options.presence == PresenceMode::Counts);
        if !self.groups.contains_key(&group) {
            let options = options.map_or_else(Options::default, |options| Options {
                lags: options.slow_consumer == SlowConsumer::Lag,
                compresses: options.compress,
            });
            self.groups.insert(group.clone(), Group::new(slot, group.clone(), options));
        }
        if let Some(there) = self.groups.get_mut(&group) {
            there.add(outbox, page, report);
        }
        self.handle(following::Input::Subscribe { slot, group, subscriber, request, member, summed, since });
    }

    fn leave(
        &mut self,
        slot: SlotId,
        outbox: &Arc<Outbox>,
        (id, by): (RequestId, LeftBy),
        group: GroupName,
        presence: Option<Seat>,
    ) {
        let (subscriber, leave) = (outbox.connection, presence);
        self.handle(following::Input::Unsubscribe { slot, group: group.clone(), subscriber, leave });
        // Where the connection takes nothing more there is nobody to tell.
        self.unwritten.append(outbox, &Event::Left { id, group, by });
    }

    fn view_changed(&mut self) {
        let alive: BTreeSet<_> = {
            let view = self.view.receiver.borrow_and_update();
            view.nodes.values().filter(|node| node.alive).map(|node| node.member.clone()).collect()
        };
        if alive != *self.alive {
            self.alive = Arc::new(alive);
            self.handle(following::Input::Alive(self.alive.clone()));
        }
    }

    fn map_changed(&mut self) {
        let map = self.maps.receiver.borrow_and_update().clone();
        if let Some(map) = map {
            self.handle(following::Input::Map(map));
        }
    }

    fn flush(&mut self) {
        let mut out = std::mem::take(&mut self.out);
        self.following.flush(&mut out);
        self.perform(&mut out);
        self.out = out;
    }

    /// One step of the core, and those that come of telling the connections.
    fn handle(&mut self, input: following::Input) {
        let now_ms = clock::mono_ms();
        let mut out = std::mem::take(&mut self.out);
        let mut next = Some(input);
        while let Some(input) = next {
            self.following.handle(now_ms, input, &mut out);
            self.perform(&mut out);
            next = self.back.pop();
        }
        self.out = out;
    }

    fn perform(&mut self, out: &mut Vec<Output>) {
        for output in out.drain(..) {
            match output {
                Output::Ask(ask) => self.ask(ask),
                Output::Joined { group, subscriber, request, epoch, offset, recovered } => {
                    add(&self.counters.joins, 1);
                    let position = Position { epoch, offset };
                    self.with(&group, |there, around| {
                        there.joined(subscriber, request, position, recovered, around);
                    });
                    self.answers(group, subscriber);
                }
                Output::JoinFailed { group, subscriber, request, error, overtaken } => {
                    add(&self.counters.joins_failed, 1);
                    self.with(&group, |there, around| {
                        there.join_failed(subscriber, request, error, overtaken, around);
                    });
                }
                Output::Replay { group, subscriber } => {
                    self.with(&group, |there, _| there.answer(subscriber, false));
                    self.answers(group, subscriber);
                }
                Output::ReplayFailed { group, subscriber, error } => {
                    self.with(&group, |there, _| there.replay_failed(subscriber, error));
                    self.look_for_joining(&group);
                }
                Output::Behind { group, subscriber } => {
                    self.with(&group, |there, _| there.is_behind(subscriber));
                }
                Output::Tell { group, to, notice } => {
                    let Self { groups, counters, back, unwritten, .. } = self;
                    if let Some(there) = groups.get_mut(&group) {
                        there.tell(group, to, notice, &mut Around { counters, back, unwritten });
                    }
                }
                Output::Ended { group, subscriber } => self.ended(&group, subscriber),
                Output::Followers { group, count } => self.count(group, count),
                Output::StaysPresent { group, session, error } => {
                    static COMPLAIN: Seldom = Seldom::new();
                    if let Some(left_out) = COMPLAIN.now() {
                        let what = "a session could not be taken out of a group's presence";
                        tracing::warn!(%group, %session, ?error, left_out, "{what}");
                    }
                }
            }
        }
        self.all_is_told();
    }

    fn ask(&mut self, ask: following::Ask) {
        if let following::Ask::Register { asked, .. } = &ask {
            add(&self.counters.registrations, asked.len() as u64);
        }
        self.requests.spawn(ask);
    }

    fn with(&mut self, group: &GroupName, act: impl FnOnce(&mut Group, &mut Around<'_>)) {
        let Self { groups, counters, back, unwritten, .. } = self;
        if let Some(there) = groups.get_mut(group) {
            act(there, &mut Around { counters, back, unwritten });
        }
    }

    fn ended(&mut self, group: &GroupName, subscriber: Subscriber) {
        let Some(there) = self.groups.get_mut(group) else { return };
        there.remove(subscriber);
        if there.is_empty() {
            self.groups.remove(group);
        } else {
            self.look_for_joining(group);
        }
    }

    /// What is told to this connection alone from here on is of its answer.
    fn answers(&mut self, group: GroupName, subscriber: Subscriber) {
        self.all_is_told();
        self.answered = Some((group, subscriber));
    }

    fn all_is_told(&mut self) {
        if let Some((group, subscriber)) = self.answered.take() {
            self.with(&group, |there, _| there.is_answered(subscriber));
            self.look_for_joining(&group);
        }
    }

    /// Frames are kept only while clients catch up.
    fn look_for_joining(&mut self, group: &GroupName) {
        if let Some(there) = self.groups.get_mut(group)
            && there.keeps_frames()
            && !self.following.has_joining(there.slot(), group)
        {
            there.drop_frames();
        }
    }

    fn count(&self, group: GroupName, count: usize) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if count == 0 {
            counts.remove(&group);
        } else {
            counts.insert(group, u32::try_from(count).unwrap_or(u32::MAX));
        }
    }
}

fn settings(config: &Config) -> FollowingSettings {
    let request_ms = config.limits.request_ms;
    FollowingSettings {
        feed: FeedSettings {
            stale_after_ms: config.timing.stale_after_ms,
            answer_ms: request_ms * 2 + 2_000,
            join_ms: request_ms + 3_000,
            ..FeedSettings::default()
        },
        noticed_after_ms: config.timing.keep_alive_ms * 4,
        ..FollowingSettings::default()
    }
}
