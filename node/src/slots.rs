//! The shell of [`SlotCore`]: drives the slots that this node has a copy of or serves, and performs what they want done.
//!
//! One task per core of the machine owns a share of the slots. It takes what has queued, lets each slot handle its part,
//! then flushes the slots it touched: what came together leaves together. It waits for nothing but its inbox and, when
//! the node's own hub is behind, for that.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::Arc,
    time::Duration,
};

use tokio::sync::{mpsc, oneshot};

use crate::{
    clock,
    id::{Member, NodeId, SlotId, Term},
    logic::{
        map::{MapRequest, SharedMap},
        primary::{SlotCore, SlotInput, SlotOutput, SlotSettings},
        replication::{Replica, ReplicationMessage},
        request::{GroupInfo, GroupRequest, Push, SessionRequest, SlotAnswer, SlotError, SlotRequest},
    },
    metrics::Metrics,
    peer::{SendError, mesh::Mesh},
    store::{Store, StoreError, WriteVersion},
    tasks::Tasks,
    wire::peer::PeerFrame,
};

/// Inputs waiting for one worker; past it senders wait.
const INBOX: usize = 16_384;
/// Inputs handled before the outputs are sent.
const BATCH: usize = 1_024;
const TICK: Duration = Duration::from_millis(100);
/// Between attempts at a snapshot that no link takes.
const UNSENT_TICKS: u64 = 3;
/// Of what the store says is wrong, so much goes into an answer.
const REASON_CHARS: usize = 300;

/// Where an answer goes.
#[derive(Debug)]
pub enum ReplyTo {
    /// To a caller in this process.
    Here(oneshot::Sender<Result<SlotAnswer, SlotError>>),
    /// To a peer's request.
    Peer {
        /// Who asked.
        node: NodeId,
        /// The request's number.
        id: u64,
        /// Nobody waits for the answer any more, by this node's clock.
        until_ms: u64,
    },
}

impl ReplyTo {
    /// Whether somebody still waits. What is carried out although nobody does can do harm: an attach that comes late
    /// displaces the one that its client has made elsewhere since.
    fn is_awaited(&self) -> bool {
        match self {
            Self::Here(reply) => !reply.is_closed(),
            Self::Peer { until_ms, .. } => clock::mono_ms() < *until_ms,
        }
    }
}

#[derive(Debug)]
enum WorkerInput {
    Slot(SlotId, SlotInput),
    Request { slot: SlotId, from: Member, term: Term, request: SlotRequest, reply: ReplyTo },
    Map(SharedMap),
    Alive(Arc<BTreeSet<Member>>),
    LinkReset(Member),
    Groups { after: String, limit: usize, reply: oneshot::Sender<Vec<GroupInfo>> },
    Count(oneshot::Sender<SlotCounts>),
}

/// What a node's slots hold, for load and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlotCounts {
    /// Slots served as primary.
    pub primary: u64,
    /// Slots held otherwise.
    pub replica: u64,
    /// Sessions in the slots served.
    pub sessions: u64,
    /// Groups in the slots served.
    pub groups: u64,
}

/// Takes what slots push to this node's own gateway.
#[async_trait::async_trait]
pub trait LocalGateway: Send + Sync + 'static {
    /// From the slot's primary, which is this node.
    async fn push(&self, slot: SlotId, term: Term, push: Push);
}

/// What the slots need around them.
#[expect(missing_debug_implementations, reason = "holds trait objects")]
pub struct SlotsInputs {
    /// This process.
    pub me: Member,
    /// From the configuration.
    pub settings: SlotSettings,
    /// How many slots the cluster has.
    pub slots: u16,
    /// To the other nodes.
    pub mesh: Mesh,
    /// Sessions.
    pub store: Arc<dyn Store>,
    /// This node's clients.
    pub gateway: Arc<dyn LocalGateway>,
    /// Requests to whoever is steward; full: dropped, they are repeated.
    pub steward: mpsc::Sender<Vec<MapRequest>>,
    /// Takes presences out of groups of other slots: session, group, attachment.
    pub departures: Arc<dyn Departures>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Spawns.
    pub tasks: Tasks,
}

/// Takes presences out of groups wherever they live.
#[async_trait::async_trait]
pub trait Departures: Send + Sync + 'static {
    /// Whether it is done.
    async fn leave(&self, group: crate::id::GroupName, session: crate::id::SessionId, attachment: u64) -> bool;
}

/// A handle on the slots. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Slots {
    me: Member,
    workers: Arc<[mpsc::Sender<WorkerInput>]>,
}

impl Slots {
    /// Starts the workers.
    pub fn start(inputs: SlotsInputs) -> Self {
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(usize::from(inputs.slots));
        let me = inputs.me.clone();
        let inputs = Arc::new(inputs);
        let workers = (0..count).map(|number| {
            let (sender, inbox) = mpsc::channel(INBOX);
            let worker = Worker {
                inputs: inputs.clone(),
                back: sender.clone(),
                slots: (number..usize::from(inputs.slots))
                    .step_by(count)
                    .map(|slot| new_slot(&inputs, slot as SlotId))
                    .collect(),
                tickets: BTreeMap::new(),
                next_ticket: 1,
                outputs: Vec::new(),
                unsent: BTreeSet::new(),
                ticks: 0,
            };
            inputs.tasks.spawn("slots", worker.run(inbox));
            sender
        });
        Self { me, workers: workers.collect() }
    }

    /// A request from a gateway. The answer comes to `reply`.
    pub async fn request(&self, slot: SlotId, from: Member, term: Term, request: SlotRequest, reply: ReplyTo) {
        self.send(slot, WorkerInput::Request { slot, from, term, request, reply }).await;
    }

    /// A request from this node's own gateway.
    pub async fn request_here(
        &self,
        slot: SlotId,
        term: Term,
        request: SlotRequest,
    ) -> oneshot::Receiver<Result<SlotAnswer, SlotError>> {
        let (reply, answer) = oneshot::channel();
        self.request(slot, self.me.clone(), term, request, ReplyTo::Here(reply)).await;
        answer
    }

    /// A message from another member of the slot.
    pub async fn replicate(&self, slot: SlotId, from: Member, message: ReplicationMessage) {
        self.send(slot, WorkerInput::Slot(slot, SlotInput::Peer { from, message })).await;
    }

    /// A confirmed map; versions grow.
    pub async fn map(&self, map: SharedMap) {
        self.send_all(|| WorkerInput::Map(map.clone())).await;
    }

    /// Who is believed to be alive.
    pub async fn alive(&self, alive: Arc<BTreeSet<Member>>) {
        self.send_all(|| WorkerInput::Alive(alive.clone())).await;
    }

    /// What was sent to this member lately may be lost.
    pub async fn link_reset(&self, member: Member) {
        self.send_all(|| WorkerInput::LinkReset(member.clone())).await;
    }

    /// A page of the groups in the slots served here, by name.
    pub async fn groups(&self, after: &str, limit: usize) -> Vec<GroupInfo> {
        let mut all = Vec::new();
        for worker in self.workers.iter() {
            let (reply, answer) = oneshot::channel();
            let _ = worker.send(WorkerInput::Groups { after: after.to_owned(), limit, reply }).await;
            all.extend(answer.await.unwrap_or_default());
        }
        all.sort_by(|a, b| a.group.cmp(&b.group));
        all.truncate(limit);
        all
    }

    /// What there is.
    pub async fn counts(&self) -> SlotCounts {
        let mut sum = SlotCounts::default();
        for worker in self.workers.iter() {
            let (reply, answer) = oneshot::channel();
            let _ = worker.send(WorkerInput::Count(reply)).await;
            let one = answer.await.unwrap_or_default();
            sum.primary += one.primary;
            sum.replica += one.replica;
            sum.sessions += one.sessions;
            sum.groups += one.groups;
        }
        sum
    }

    async fn send(&self, slot: SlotId, input: WorkerInput) {
        // An error means that the node stops: whoever waits for an answer sees its sender dropped.
        let _ = self.workers[usize::from(slot) % self.workers.len()].send(input).await;
    }

    async fn send_all(&self, input: impl Fn() -> WorkerInput) {
        for worker in self.workers.iter() {
            let _ = worker.send(input()).await;
        }
    }
}

fn new_slot(inputs: &SlotsInputs, slot: SlotId) -> (SlotId, SlotCore) {
    (slot, SlotCore::new(slot, inputs.me.clone(), inputs.settings, rand::random()))
}

struct Worker {
    inputs: Arc<SlotsInputs>,
    /// For what comes back from the store; the worker's own inbox.
    back: mpsc::Sender<WorkerInput>,
    slots: BTreeMap<SlotId, SlotCore>,
    tickets: BTreeMap<u64, Asker>,
    next_ticket: u64,
    outputs: Vec<SlotOutput>,
    /// Snapshots that could not even be handed to the link: tried again after a while, as nobody would miss them for long.
    unsent: BTreeSet<(SlotId, Member)>,
    ticks: u64,
}

struct Asker {
    reply: ReplyTo,
    publish_since_us: Option<u64>,
}

impl Worker {
    async fn run(mut self, mut inbox: mpsc::Receiver<WorkerInput>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            let mut touched = BTreeSet::new();
            tokio::select! {
                biased;
                _ = tick.tick() => self.tick_all(&mut touched).await,
                taken = inbox.recv_many(&mut batch, BATCH) => {
                    if taken == 0 {
                        return;
                    }
                    for input in batch.drain(..) {
                        self.take(input, &mut touched).await;
                    }
                }
            }
            for slot in touched {
                if let Some(core) = self.slots.get_mut(&slot) {
                    watched(slot, core, |core| core.flush(clock::now(), &mut self.outputs));
                    self.perform(slot).await;
                }
            }
        }
    }

    async fn tick_all(&mut self, touched: &mut BTreeSet<SlotId>) {
        let slots: Vec<SlotId> = self.slots.keys().copied().collect();
        for slot in slots {
            self.handle(slot, SlotInput::Tick, touched).await;
        }
        self.ticks += 1;
        if self.ticks.is_multiple_of(UNSENT_TICKS) {
            for (slot, to) in std::mem::take(&mut self.unsent) {
                self.handle(slot, SlotInput::LinkReset(to), touched).await;
            }
        }
        touched.clear();
    }

    async fn take(&mut self, input: WorkerInput, touched: &mut BTreeSet<SlotId>) {
        match input {
            WorkerInput::Slot(slot, input) => self.handle(slot, input, touched).await,
            WorkerInput::Request { reply, .. } if !reply.is_awaited() => {
                self.inputs.metrics.requests_too_late.inc();
            }
            WorkerInput::Request { slot, from, term, request, reply } => {
                let ticket = self.next_ticket;
                self.next_ticket += 1;
                // A session that cannot be stored is not begun: its end would have to be remembered until the store is back.
                if matches!(request, SlotRequest::Session(_, SessionRequest::CreateSession(_)))
                    && self.slots.get(&slot).is_some_and(|core| core.replica().serving().is_some())
                    && let Some(error) = self.inputs.store.refuses()
                {
                    self.tickets.insert(ticket, Asker { reply, publish_since_us: None });
                    return self.answer(slot, ticket, Err(SlotError::StoreUnavailable(reason(&error))));
                }
                let publish_since_us =
                    matches!(request, SlotRequest::Group(_, GroupRequest::Publish(_))).then(clock::mono_us);
                self.tickets.insert(ticket, Asker { reply, publish_since_us });
                self.handle(slot, SlotInput::Request { ticket, from, term, request }, touched).await;
            }
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
            WorkerInput::LinkReset(member) => {
                let slots: Vec<SlotId> = self.slots.keys().copied().collect();
                for slot in slots {
                    self.handle(slot, SlotInput::LinkReset(member.clone()), touched).await;
                }
            }
            WorkerInput::Groups { after, limit, reply } => {
                let serving = self.slots.values().filter(|core| core.replica().serving().is_some());
                let mut groups: Vec<GroupInfo> = serving
                    .flat_map(|core| {
                        let names = core.replica().state().into_iter().flat_map(|state| state.groups().keys());
                        names.filter(|name| name.as_str() > after.as_str()).filter_map(|name| core.group_info(name))
                    })
                    .collect();
                groups.sort_by(|a, b| a.group.cmp(&b.group));
                groups.truncate(limit);
                let _ = reply.send(groups);
            }
            WorkerInput::Count(reply) => {
                let _ = reply.send(self.count());
            }
        }
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
                SlotOutput::Send { to, message } => self.send(slot, &to, message),
                SlotOutput::Answer { ticket, result } => self.answer(slot, ticket, result),
                SlotOutput::Push { to, term, push } if to == self.inputs.me => {
                    self.inputs.gateway.push(slot, term, push).await;
                }
                SlotOutput::Push { to, term, push } => {
                    // Lost where the link is down or full: the gateway learns of either and registers again.
                    let _ = self.inputs.mesh.send(&to.node, slot, &PeerFrame::Push { slot, term, push });
                }
                SlotOutput::Ask(request) => {
                    let _ = self.inputs.steward.try_send(vec![request]);
                }
                SlotOutput::Load { session } => {
                    let store = self.inputs.store.clone();
                    self.with_store(slot, async move {
                        let result = store.session(session, clock::wall_ms()).await.map_err(|error| {
                            tracing::debug!(%session, %error, "a session could not be loaded");
                            reason(&error)
                        });
                        SlotInput::Loaded { session, result }
                    });
                }
                SlotOutput::Save { record, ended, term, index } => {
                    let (store, session, version) =
                        (self.inputs.store.clone(), record.id, WriteVersion { term, index });
                    self.with_store(slot, async move {
                        let result = if ended {
                            store.end_session(&record, version).await
                        } else {
                            store.put_session(&record, version).await
                        };
                        let result = result.map_err(|error| {
                            tracing::debug!(%session, %error, "a session could not be stored");
                            reason(&error)
                        });
                        SlotInput::Saved { session, index, result }
                    });
                }
                SlotOutput::Depart { session, groups } => {
                    let (departures, back) = (self.inputs.departures.clone(), self.back.clone());
                    self.inputs.tasks.spawn_detached("departure", async move {
                        let mut done = Vec::new();
                        for (group, attachment) in groups {
                            if departures.leave(group.clone(), session, attachment).await {
                                done.push(group);
                            }
                        }
                        let _ = back.send(WorkerInput::Slot(slot, SlotInput::Departed { session, groups: done })).await;
                    });
                }
            }
        }
    }

    fn send(&mut self, slot: SlotId, to: &Member, message: ReplicationMessage) {
        let bulk = matches!(message, ReplicationMessage::Snapshot { .. });
        let frame = PeerFrame::Replication { slot, message };
        if !bulk {
            // Lost where the link is down: the copy repeats what is not acknowledged.
            let _ = self.inputs.mesh.send(&to.node, slot, &frame);
        } else if let Err(SendError::Down | SendError::Busy) = self.inputs.mesh.send_bulk(&to.node, &frame) {
            self.unsent.insert((slot, to.clone()));
        }
    }

    fn answer(&mut self, slot: SlotId, ticket: u64, result: Result<SlotAnswer, SlotError>) {
        let Some(Asker { reply, publish_since_us }) = self.tickets.remove(&ticket) else { return };
        if let (Some(since_us), Ok(_)) = (publish_since_us, &result) {
            self.inputs.metrics.publishes_ordered.inc();
            self.inputs.metrics.commit_seconds.observe((clock::mono_us() - since_us) as f64 / 1e6);
        }
        match reply {
            ReplyTo::Here(reply) => {
                let _ = reply.send(result);
            }
            ReplyTo::Peer { node, id, .. } => {
                // Lost where the link is down: the asker's deadline passes, or it sees the link come back, and it asks again.
                let _ = self.inputs.mesh.send(&node, slot, &PeerFrame::Response { id, result });
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

/// Has the core do something. Where a broken invariant ends that, the log says in which slot; the panic goes on, and ends the
/// node ([`Tasks::spawn`]): a state that cannot be must not be replicated.
fn watched(slot: SlotId, core: &mut SlotCore, work: impl FnOnce(&mut SlotCore)) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(core))) {
        tracing::error!("{}", broken(slot, core.replica(), panic.as_ref()));
        resume_unwind(panic);
    }
}

fn broken(slot: SlotId, replica: &Replica, panic: &(dyn Any + Send)) -> String {
    let said = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let (term, entry, uncommitted) = (replica.term(), replica.applied(), replica.uncommitted());
    let what = said.unwrap_or("a panic that says nothing");
    format!("slot {slot}, term {term}, entry {entry} ({uncommitted} after it): {what}")
}

/// For whoever waits for the session. It travels between nodes, so it has an end.
fn reason(error: &StoreError) -> String {
    match error {
        StoreError::Unavailable(reason) | StoreError::Refused(reason) => reason.chars().take(REASON_CHARS).collect(),
        // What is wrong with the content is for the log alone.
        StoreError::Corrupt(reason) => {
            tracing::error!(reason, "the store's content cannot be read");
            "its content cannot be read: the log of the node that asked says more".to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_invariant_is_told_with_its_place_and_goes_on() {
        let me = Member { node: NodeId::parse("n1").unwrap(), generation: 1 };
        let settings = SlotSettings {
            replica_timeout_ms: 1,
            resume_grace_ms: 1,
            memory_ttl_ms: 1,
            group_idle_ms: 1,
            queue: 1,
            groups_per_session: 1,
        };
        let mut core = SlotCore::new(7, me, settings, 1);
        let panic = catch_unwind(AssertUnwindSafe(|| watched(7, &mut core, |_| panic!("offsets follow each other"))));
        let panic = panic.unwrap_err();
        let told = broken(7, core.replica(), panic.as_ref());
        assert_eq!(told, "slot 7, term 0, entry 0 (0 after it): offsets follow each other");
    }
}
