//! The shell of [`SlotCore`](crate::logic::primary::SlotCore): drives the slots that this node has a copy of or serves, and
//! performs what they want done.
//!
//! One task per core of the machine owns a share of the slots. It takes what has queued, lets each slot handle its part,
//! then flushes the slots it touched: what came together leaves together. It waits for nothing but its inbox and, when
//! the node's own hub is behind, for that.

#[cfg(test)]
mod tests;
mod watched;
mod worker;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use tokio::sync::{mpsc, oneshot};

use self::worker::Worker;
use crate::{
    clock,
    deliveries::Deliveries,
    id::{AttachmentNumber, ClientKey, GroupName, Member, NodeId, SessionId, SlotId, Term},
    logic::{
        map::{MapRequest, SharedMap},
        memory::Level,
        primary::{SlotInput, SlotSettings},
        replication::ReplicationMessage,
        request::{GroupInfo, SlotAnswer, SlotError, SlotRequest},
    },
    memory::Ledger,
    metrics::Metrics,
    peer::mesh::Mesh,
    permit::Permit,
    store::Store,
    tasks::Tasks,
};

/// Inputs waiting for one worker; past it senders wait.
const INBOX: usize = 16_384;

/// Where an answer goes.
#[derive(Debug)]
pub enum ReplyTo {
    /// To a caller in this process.
    Here(oneshot::Sender<Result<SlotAnswer, SlotError>>),
    /// To a peer's request.
    Peer {
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
    Request(Request),
    Map(SharedMap),
    Alive(Arc<BTreeSet<Member>>),
    Gone { gateway: Member, since_ms: u64 },
    LinkReset(Member),
    Clock { trusted: bool },
    Memory { of: Member, level: Level },
    Groups { after: String, limit: usize, reply: oneshot::Sender<Vec<GroupInfo>> },
    Count(oneshot::Sender<SlotCounts>),
}

/// A gateway's request to a slot's primary, as this node took it in.
#[derive(Debug)]
struct Request {
    slot: SlotId,
    from: Member,
    term: Term,
    request: SlotRequest,
    reply: ReplyTo,
}

/// What a node's slots hold, for load and metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SlotCounts {
    /// Slots served as primary.
    pub primary: u64,
    /// Slots of which this node has a copy that could take over.
    pub replica: u64,
    /// Slots of which this node is getting a copy.
    pub learner: u64,
    /// What has come of snapshots that are not here as a whole yet, in bytes as frames have them.
    pub incoming_bytes: u64,
    /// Sessions in the slots served.
    pub sessions: u64,
    /// Groups in the slots served.
    pub groups: u64,
}

/// Presences to be taken out of groups of other slots, whose client is gone. To be answered with [`Slots::departed`].
#[derive(Debug)]
pub struct Departure {
    /// The session's slot.
    pub slot: SlotId,
    pub session: SessionId,
    pub client: ClientKey,
    /// The groups, and the attachment that joined each.
    pub groups: Vec<(GroupName, AttachmentNumber)>,
}

/// A gateway is to confirm again whatever it was confirmed up to this time, by [`clock::mono_ms`]. To be answered with
/// [`Slots::gone`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fence {
    pub gateway: Member,
    pub since_ms: u64,
}

/// What the slots need around them.
#[expect(missing_debug_implementations, reason = "holds trait objects")]
pub struct SlotsInputs {
    pub me: Member,
    /// From the configuration.
    pub settings: SlotSettings,
    /// How many slots the cluster has.
    pub slots: u16,
    /// To the other nodes.
    pub mesh: Mesh,
    /// Sessions.
    pub store: Arc<dyn Store>,
    /// To this node's clients.
    pub deliveries: Deliveries,
    /// Requests to whoever is steward; full: dropped, they are repeated.
    pub steward: mpsc::Sender<Vec<MapRequest>>,
    /// Presences to be taken out of groups of other slots; full: dropped, they are repeated.
    pub departures: mpsc::Sender<Departure>,
    /// Gateways to be fenced; full: dropped, they are repeated.
    pub fences: mpsc::Sender<Fence>,
    /// Since which map the voters are those that it knows goes with all that is sent.
    pub permit: Arc<Permit>,
    /// Where it is told what slots hold.
    pub ledger: Arc<Ledger>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Spawns.
    pub tasks: Tasks,
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
            let share = (number..usize::from(inputs.slots)).step_by(count).map(|slot| slot as SlotId);
            let worker = Worker::new(inputs.clone(), sender.clone(), share);
            inputs.tasks.spawn("slots", worker.run(inbox));
            sender
        });
        Self { me, workers: workers.collect() }
    }

    /// A request from a gateway. The answer comes to `reply`.
    pub async fn request(&self, slot: SlotId, from: Member, term: Term, request: SlotRequest, reply: ReplyTo) {
        self.send(slot, WorkerInput::Request(Request { slot, from, term, request, reply })).await;
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

    /// The presences of a client were taken out of these groups ([`Departure`]).
    pub async fn departed(
        &self,
        slot: SlotId,
        (session, client): (SessionId, ClientKey),
        groups: BTreeMap<GroupName, AttachmentNumber>,
    ) {
        self.send(slot, WorkerInput::Slot(slot, SlotInput::Departed { session, client, groups })).await;
    }

    /// A confirmed map; versions grow.
    pub async fn map(&self, map: SharedMap) {
        self.send_all(|| WorkerInput::Map(map.clone())).await;
    }

    /// Who is believed to be alive.
    pub async fn alive(&self, alive: Arc<BTreeSet<Member>>) {
        self.send_all(|| WorkerInput::Alive(alive.clone())).await;
    }

    /// Whether something may end by this node's wall clock.
    pub async fn clock(&self, trusted: bool) {
        self.send_all(|| WorkerInput::Clock { trusted }).await;
    }

    /// What this gateway was confirmed up to this time counts for nothing ([`Fence`]). Never waits: slots that have no room for
    /// it ask again.
    pub fn gone(&self, gateway: &Member, since_ms: u64) {
        for worker in self.workers.iter() {
            let _ = worker.try_send(WorkerInput::Gone { gateway: gateway.clone(), since_ms });
        }
    }

    /// Another node says how pressed for memory it is. How this one is the slots know by themselves.
    pub async fn memory(&self, of: Member, level: Level) {
        self.send_all(|| WorkerInput::Memory { of: of.clone(), level }).await;
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
            sum.learner += one.learner;
            sum.incoming_bytes += one.incoming_bytes;
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
