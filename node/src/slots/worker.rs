//! One worker: owns a share of the slots, lets each handle what has queued for it, and performs what they want done.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use tokio::sync::mpsc;
use tracing::Instrument;

use super::{Departure, Fence, ReplyTo, Request, SlotCounts, SlotsInputs, WorkerInput, watched::watched};
use crate::{
    clock,
    id::{Member, SessionId, SlotId, Term},
    logic::{
        encoded,
        entry::SessionRecord,
        memory::{CopyBytes, Level},
        primary::{SlotCore, SlotInput, SlotOutput},
        replication::ReplicationMessage,
        request::{GroupInfo, GroupRequest, Push, SessionRequest, SlotAnswer, SlotError, SlotRequest},
    },
    metrics::{EphemeralDrop, Limit},
    peer::SendError,
    seldom::Seldom,
    store::{StoreError, WriteVersion},
    wire::peer::{PeerFrame, REQUEST_MAX_BYTES},
};

/// Inputs handled before the outputs are sent.
const BATCH: usize = 1_024;
/// Between ticks while something is due.
const TICK: Duration = Duration::from_millis(100);
/// And at most, so that slots hear how pressed for memory the node is.
const REST_MAX: Duration = Duration::from_millis(500);
/// Between attempts at pieces that no link takes.
const UNSENT_MS: u64 = 300;
/// The first bytes of what the store says is wrong that go into an answer.
const REASON_CHARS: usize = 300;

pub(super) struct Worker {
    inputs: Arc<SlotsInputs>,
    /// For what comes back from the store; the worker's own inbox.
    back: mpsc::Sender<WorkerInput>,
    slots: BTreeMap<SlotId, SlotCore>,
    tickets: BTreeMap<u64, Asker>,
    next_ticket: u64,
    outputs: Vec<SlotOutput>,
    /// Pieces of snapshots that could not even be handed to the link: tried again after a while.
    unsent: BTreeSet<(SlotId, Member)>,
    unsent_again_ms: u64,
    clock_trusted: bool,
    /// How pressed for memory this node is, as the slots know it.
    pressed: Level,
    /// What each slot holds, as the node's ledger knows it.
    counted: BTreeMap<SlotId, CopyBytes>,
}

struct Asker {
    reply: ReplyTo,
    publish_since_us: Option<u64>,
}

impl Worker {
    /// With an empty core for each slot of its share.
    pub(super) fn new(
        inputs: Arc<SlotsInputs>,
        back: mpsc::Sender<WorkerInput>,
        share: impl Iterator<Item = SlotId>,
    ) -> Self {
        let new = |slot| (slot, SlotCore::new(slot, inputs.me.clone(), inputs.settings, rand::random()));
        let slots = share.map(new).collect();
        Self {
            inputs,
            back,
            slots,
            tickets: BTreeMap::new(),
            next_ticket: 1,
            outputs: Vec::new(),
            unsent: BTreeSet::new(),
            unsent_again_ms: 0,
            clock_trusted: true,
            pressed: Level::Calm,
            counted: BTreeMap::new(),
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<WorkerInput>) {
        let mut tick = pin!(tokio::time::sleep(TICK));
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                biased;
                () = &mut tick => {
                    self.look_at_memory().await;
                    self.tick_all().await;
                    tick.as_mut().reset(clock::deadline(self.rests()));
                }
                taken = inbox.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        return;
                    }
                    self.look_at_memory().await;
                    let mut touched = BTreeSet::new();
                    for input in batch.drain(..) {
                        self.take(input, &mut touched).await;
                    }
                    self.flush(touched).await;
                    // What came may have to be followed up.
                    let soon = clock::deadline(TICK);
                    if soon < tick.deadline() {
                        tick.as_mut().reset(soon);
                    }
                }
            }
        }
    }

    async fn flush(&mut self, touched: BTreeSet<SlotId>) {
        for slot in touched {
            if let Some(core) = self.slots.get_mut(&slot) {
                watched(slot, core, |core| core.flush(clock::now(), &mut self.outputs));
                self.perform(slot).await;
            }
            self.count_bytes(slot);
        }
    }

    /// Until the next tick.
    fn rests(&self) -> Duration {
        if !self.unsent.is_empty() {
            return TICK;
        }
        let next_ms = self.slots.values().filter_map(SlotCore::due_ms).min();
        let left = next_ms.map(|next_ms| Duration::from_millis(next_ms.saturating_sub(clock::mono_ms())));
        left.unwrap_or(REST_MAX).clamp(TICK, REST_MAX)
    }

    /// The ledger hears what a slot holds now.
    fn count_bytes(&mut self, slot: SlotId) {
        let Some(now) = self.slots.get(&slot).map(|core| core.replica().held_bytes()) else { return };
        let before = self.counted.insert(slot, now).unwrap_or_default();
        self.inputs.ledger.copy(&before, &now);
    }

    /// The slots hear how pressed this node is, where that has changed.
    async fn look_at_memory(&mut self) {
        let level = self.inputs.ledger.level();
        if std::mem::replace(&mut self.pressed, level) != level {
            let of = self.inputs.me.clone();
            self.handle_all(|| SlotInput::Memory { of: of.clone(), level }, &mut BTreeSet::new()).await;
        }
    }

    async fn handle_all(&mut self, input: impl Fn() -> SlotInput, touched: &mut BTreeSet<SlotId>) {
        let slots: Vec<SlotId> = self.slots.keys().copied().collect();
        for slot in slots {
            self.handle(slot, input(), touched).await;
        }
    }

    /// The slots that have something due have their tick.
    async fn tick_all(&mut self) {
        let now_ms = clock::mono_ms();
        let is_due = |core: &SlotCore| core.due_ms().is_some_and(|due_ms| due_ms <= now_ms);
        let due: Vec<SlotId> = self.slots.iter().filter(|(_, core)| is_due(core)).map(|(slot, _)| *slot).collect();
        let mut touched = BTreeSet::new();
        for slot in due {
            self.handle(slot, SlotInput::Tick, &mut touched).await;
        }
        if self.unsent_again_ms <= now_ms {
            self.unsent_again_ms = now_ms + UNSENT_MS;
            for (slot, to) in std::mem::take(&mut self.unsent) {
                self.handle(slot, SlotInput::LinkReset(to), &mut touched).await;
            }
        }
        self.flush(touched).await;
    }

    async fn take(&mut self, input: WorkerInput, touched: &mut BTreeSet<SlotId>) {
        match input {
            WorkerInput::Slot(slot, input) => self.handle(slot, input, touched).await,
            WorkerInput::Request(request) => self.order(request, touched).await,
            WorkerInput::Map(map) => {
                let slots: Vec<SlotId> = self.slots.keys().copied().collect();
                for slot in slots {
                    if let Some(assignment) = map.slot(slot) {
                        let input = SlotInput::Map { version: map.version, assignment: assignment.clone() };
                        self.handle(slot, input, touched).await;
                    }
                }
            }
            WorkerInput::Alive(alive) => {
                for (slot, core) in &mut self.slots {
                    let input = SlotInput::Alive(alive.clone());
                    watched(*slot, core, |core| core.handle(clock::now(), input, &mut self.outputs));
                }
            }
            WorkerInput::Clock { trusted } => {
                self.clock_trusted = trusted;
                self.handle_all(|| SlotInput::Clock { trusted }, touched).await;
            }
            WorkerInput::Memory { of, level } => {
                self.handle_all(|| SlotInput::Memory { of: of.clone(), level }, touched).await;
            }
            WorkerInput::Gone { gateway, since_ms } => {
                self.handle_all(|| SlotInput::Gone { gateway: gateway.clone(), since_ms }, touched).await;
            }
            WorkerInput::LinkReset(member) => {
                self.handle_all(|| SlotInput::LinkReset(member.clone()), touched).await;
            }
            WorkerInput::Groups { after, limit, reply } => {
                let _ = reply.send(self.groups(&after, limit));
            }
            WorkerInput::Count(reply) => {
                let _ = reply.send(self.count());
            }
        }
    }

    /// A request goes to its slot, which orders what it asks for. `answer` tells what came of it.
    async fn order(&mut self, request: Request, touched: &mut BTreeSet<SlotId>) {
        let Request { slot, from, term, request, reply } = request;
        if !reply.is_awaited() {
            self.inputs.metrics.requests_too_late.inc();
            return;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        if !self.slots.contains_key(&slot) {
            // A slot that the cluster does not have: a peer's mistake.
            self.tickets.insert(ticket, Asker { reply, publish_since_us: None });
            return self.answer(slot, ticket, Err(SlotError::Unavailable));
        }
        if encoded::bytes(&request) > REQUEST_MAX_BYTES {
            // Its entry would not get to the other copies.
            self.tickets.insert(ticket, Asker { reply, publish_since_us: None });
            return self.answer(slot, ticket, Err(SlotError::TooLong { done: false }));
        }
        // A session that is to be stored and cannot be is not begun: its end would have to be remembered until the store is back.
        if matches!(&request, SlotRequest::Session(id, SessionRequest::CreateSession(_)) if !id.is_ephemeral())
            && self.slots.get(&slot).is_some_and(|core| core.replica().serving().is_some())
            && let Some(error) = self.inputs.store.refuses()
        {
            self.tickets.insert(ticket, Asker { reply, publish_since_us: None });
            return self.answer(slot, ticket, Err(SlotError::StoreUnavailable(reason(&error))));
        }
        let publish_since_us = matches!(request, SlotRequest::Group(_, GroupRequest::Publish(_))).then(clock::mono_us);
        self.tickets.insert(ticket, Asker { reply, publish_since_us });
        let span = tracing::trace_span!("order", slot, term, ticket);
        self.handle(slot, SlotInput::Request { ticket, from, term, request }, touched).instrument(span).await;
    }

    fn groups(&self, after: &str, limit: usize) -> Vec<GroupInfo> {
        let serving = self.slots.values().filter(|core| core.replica().serving().is_some());
        let mut groups: Vec<GroupInfo> = serving
            .flat_map(|core| {
                let names = core.replica().state().into_iter().flat_map(|state| state.groups().keys());
                names.filter(|name| name.as_str() > after).filter_map(|name| core.group_info(name))
            })
            .collect();
        groups.sort_by(|a, b| a.group.cmp(&b.group));
        groups.truncate(limit);
        groups
    }

    fn count(&self) -> SlotCounts {
        let mut counts = SlotCounts::default();
        for core in self.slots.values() {
            match (core.replica().serving(), core.replica().state()) {
                (Some(_), Some(state)) => {
                    counts.primary += 1;
                    counts.sessions += state.sessions().len() as u64;
                    counts.groups += state.groups().len() as u64;
                }
                _ if core.replica().is_learner() => {
                    counts.learner += 1;
                    counts.incoming_bytes += core.replica().incoming().map_or(0, |incoming| incoming.bytes as u64);
                }
                (None, Some(_)) => counts.replica += 1,
                _ => {}
            }
        }
        counts
    }

    async fn handle(&mut self, slot: SlotId, input: SlotInput, touched: &mut BTreeSet<SlotId>) {
        // A slot that the cluster does not have: a peer's mistake, refused by dropping it.
        let Some(core) = self.slots.get_mut(&slot) else { return };
        watched(slot, core, |core| core.handle(clock::now(), input, &mut self.outputs));
        touched.insert(slot);
        if !self.outputs.is_empty() {
            self.perform(slot).await;
        }
    }

    async fn perform(&mut self, slot: SlotId) {
        for output in std::mem::take(&mut self.outputs) {
            match output {
                SlotOutput::Send { to, message } => self.replicate(slot, &to, message),
                SlotOutput::Answer { ticket, result } => self.answer(slot, ticket, result),
                SlotOutput::Push { to, term, push } => self.deliver(slot, &to, term, push).await,
                SlotOutput::Ask(request) => {
                    let _ = self.inputs.steward.try_send(vec![request]);
                }
                SlotOutput::Fence { gateway, since_ms } => {
                    let _ = self.inputs.fences.try_send(Fence { gateway, since_ms });
                }
                SlotOutput::Load { session } => self.load(slot, session),
                SlotOutput::Save { record, ended, term, index } => {
                    self.save(slot, record, ended, WriteVersion { term, index });
                }
                SlotOutput::Depart { session, client, groups } => {
                    let _ = self.inputs.departures.try_send(Departure { slot, session, client, groups });
                }
                SlotOutput::Shed { messages, bytes } => {
                    self.inputs.metrics.memory.shed.inc_by(messages);
                    self.inputs.metrics.memory.shed_bytes.inc_by(bytes);
                }
            }
        }
    }

    /// A message to another member of the slot.
    fn replicate(&mut self, slot: SlotId, to: &Member, message: ReplicationMessage) {
        let _span = tracing::trace_span!("replicate", slot, %to).entered();
        let bulk = matches!(message, ReplicationMessage::Piece { .. });
        let frame = PeerFrame::Replication { slot, message };
        if !bulk {
            // Lost where the link is down: the copy repeats what is not acknowledged.
            let _ = self.inputs.mesh.send(&to.node, slot, &frame);
        } else if let Err(SendError::Down | SendError::Busy) = self.inputs.mesh.send_bulk(&to.node, &frame) {
            self.unsent.insert((slot, to.clone()));
        }
    }

    /// What is committed goes to the gateways that follow the group or hold the session, this node's own among them.
    async fn deliver(&mut self, slot: SlotId, to: &Member, term: Term, push: Push) {
        if *to == self.inputs.me {
            self.inputs.deliveries.deliver(slot, term, push).await;
        } else {
            let _span = tracing::trace_span!("deliver", slot, %to).entered();
            let ephemeral = match &push {
                Push::Group(_, push) => push.ephemeral(),
                Push::Session(..) => 0,
            };
            let frame = PeerFrame::Push { slot, term, voters: self.inputs.permit.voters_since(), push };
            if ephemeral == 0 {
                // Lost where the link is down or full: the gateway learns of either and registers again.
                let _ = self.inputs.mesh.send(&to.node, slot, &frame);
            } else if self.inputs.mesh.send_ephemeral(&to.node, slot, &frame).is_err() {
                self.inputs.metrics.hub.ephemeral.dropped(EphemeralDrop::Peer, ephemeral);
            }
        }
    }

    fn load(&self, slot: SlotId, session: SessionId) {
        let store = self.inputs.store.clone();
        // By a clock that is not trusted none has passed its expiry.
        let now_ms = if self.clock_trusted { clock::wall_ms() } else { 0 };
        self.with_store(slot, async move {
            let result = store.session(session, now_ms).await.map_err(|error| {
                tracing::debug!(%session, %error, "a session could not be loaded");
                reason(&error)
            });
            SlotInput::Loaded { session, result }
        });
    }

    fn save(&self, slot: SlotId, record: SessionRecord, ended: bool, version: WriteVersion) {
        let (store, session, index) = (self.inputs.store.clone(), record.id, version.index);
        self.with_store(slot, async move {
            let saved = if ended {
                store.end_session(&record, version).await
            } else {
                store.put_session(&record, version).await
            };
            let result = saved.map_err(|error| {
                tracing::debug!(%session, %error, "a session could not be stored");
                reason(&error)
            });
            SlotInput::Saved { session, index, result }
        });
    }

    fn answer(&mut self, slot: SlotId, ticket: u64, result: Result<SlotAnswer, SlotError>) {
        let Some(Asker { reply, publish_since_us }) = self.tickets.remove(&ticket) else { return };
        let is_full = |core: &SlotCore| core.replica().uncommitted() >= self.inputs.settings.queue;
        let refusal = result.as_ref().map_or_else(Some, SlotAnswer::refused_part);
        if matches!(refusal, Some(SlotError::Busy)) && self.slots.get(&slot).is_some_and(is_full) {
            self.inputs.metrics.limit_hit(Limit::SlotQueue);
        }
        if matches!(refusal, Some(SlotError::Full)) {
            self.inputs.metrics.limit_hit(Limit::MemoryBytes);
        }
        if let (Some(since_us), Ok(SlotAnswer::Published(published))) = (publish_since_us, &result) {
            self.inputs.metrics.publishes_ordered.inc_by(published.iter().flatten().count() as u64);
            self.inputs.metrics.commit_seconds.observe((clock::mono_us() - since_us) as f64 / 1e6);
        }
        match reply {
            ReplyTo::Here(reply) => {
                let _ = reply.send(result);
            }
            ReplyTo::Peer { node, id, .. } => {
                // Lost where the link is down: the asker's deadline passes, or it sees the link come back, and it asks again.
                let voters = self.inputs.permit.voters_since();
                let sent = self.inputs.mesh.send(&node, slot, &PeerFrame::Response { id, voters, result });
                if sent == Err(SendError::TooLong) {
                    let result = Err(SlotError::TooLong { done: true });
                    let _ = self.inputs.mesh.send(&node, slot, &PeerFrame::Response { id, voters, result });
                }
            }
        }
    }

    /// Asks the store, in a task of its own; what comes of it is an input again. The store bounds how many ask at once, and
    /// for how long (`store::guarded`).
    fn with_store(&self, slot: SlotId, work: impl Future<Output = SlotInput> + Send + 'static) {
        let back = self.back.clone();
        self.inputs.tasks.spawn_detached("store request", async move {
            let _ = back.send(WorkerInput::Slot(slot, work.await)).await;
        });
    }
}

/// For whoever waits for the session. It travels between nodes, so it has an end.
fn reason(error: &StoreError) -> String {
    match error {
        StoreError::Unavailable(reason) | StoreError::Refused(reason) => reason.chars().take(REASON_CHARS).collect(),
        // What is wrong with the content is for the log alone.
        StoreError::Corrupt(reason) => {
            static COMPLAIN: Seldom = Seldom::new();
            if let Some(left_out) = COMPLAIN.now() {
                tracing::error!(reason, left_out, "the store's content cannot be read");
            }
            "its content cannot be read: the log of the node that asked says more".to_owned()
        }
    }
}
