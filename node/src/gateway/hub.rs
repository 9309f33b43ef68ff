//! Delivers to the connections of this node: the shell of [`crate::logic::following`].
//!
//! The groups are shared out among as many tasks as there are cores, by slot. Such a shard never waits for anything but its
//! inbox: what it asks of the cluster runs in tasks of its own, bounded in number, and comes back through that inbox. The
//! inbox is bounded; whoever has something for it waits when it is full: a connection, or the lane of a peer.

mod group;
mod requests;
mod shard;
#[cfg(test)]
pub(super) mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    thread::available_parallelism,
};

use prometheus_client::metrics::counter::Counter;
use tokio::sync::{mpsc, oneshot, watch};

use self::{
    requests::Requests,
    shard::{Inboxes, Shard},
};
use super::{
    ask::Ask,
    client::{outbox::Outbox, replays::Page},
};
use crate::{
    cluster::view::SharedView,
    config::Config,
    deliveries::Arrival,
    id::{GroupName, Position, Seat, SlotId},
    logic::{entry::Presence, following, map::SharedMap, request::SlotError},
    metrics::HubMetrics,
    tasks::Tasks,
    wire::command::{LeftBy, RequestId},
};

/// Inputs that may wait for one shard.
const INBOX: usize = 2_048;

/// Delivers to this node's connections. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Hub {
    shards: Shards,
}

/// What a connection has come into.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entered {
    /// A group to which nobody has published, and which nobody else follows here.
    NewGroup,
    /// Any other; or it was a page that was asked for.
    KnownGroup,
}

/// What a join or a page of a replay came to: the client was told it, or why not.
pub type JoinOutcome = Result<Entered, SlotError>;

impl Hub {
    /// How many shards a hub has on this machine.
    pub fn shards() -> usize {
        available_parallelism().map_or(1, usize::from)
    }

    /// Starts a shard for each of the queues.
    pub fn start(
        ask: Ask,
        arrivals: Vec<mpsc::Receiver<Arrival>>,
        maps: watch::Receiver<Option<SharedMap>>,
        view: watch::Receiver<SharedView>,
        config: Arc<Config>,
        metrics: HubMetrics,
        tasks: Tasks,
    ) -> Self {
        let started = arrivals.into_iter().map(|arrivals| {
            let (sender, inbox) = mpsc::channel(INBOX);
            let requests = Requests { ask: ask.clone(), inbox: sender.clone(), tasks: tasks.clone() };
            let counts = Arc::default();
            let shard = Shard::new(
                Inboxes { arrivals, inbox },
                requests,
                maps.clone(),
                view.clone(),
                Arc::clone(&config),
                Arc::clone(&counts),
                metrics.clone(),
            );
            tasks.spawn("hub_shard", shard.run());
            ShardHandle { inbox: sender, counts }
        });
        Self { shards: Shards { shards: started.collect(), ask: ask.clone() } }
    }

    /// Joins a group. The connection is told `joined` and what it missed, or an error; everything later follows. Waits
    /// only for room in the inbox.
    pub async fn join(
        &self,
        outbox: Arc<Outbox>,
        request: RequestId,
        group: GroupName,
        member: Option<Presence>,
        since: Option<Position>,
    ) {
        let join = Join { outbox, request, group, member, since, page: None, report: None };
        self.send_join(join).await;
    }

    /// The same, and tells the caller too. The receiver fails where the join was overtaken by a leave or the
    /// connection's end. `page` pays for what is replayed.
    pub async fn join_reported(
        &self,
        outbox: Arc<Outbox>,
        request: RequestId,
        group: GroupName,
        member: Option<Presence>,
        since: Option<Position>,
        page: Option<Page>,
    ) -> oneshot::Receiver<JoinOutcome> {
        let (report, outcome) = oneshot::channel();
        self.send_join(Join { outbox, request, group, member, since, page, report: Some(report) }).await;
        outcome
    }

    /// Has the connection told the next page of a group that its outbox said it is behind with. The receiver fails where
    /// it is not behind any more.
    pub async fn replay(&self, outbox: &Outbox, group: GroupName, page: Page) -> oneshot::Receiver<JoinOutcome> {
        let (report, outcome) = oneshot::channel();
        let slot = self.shards.slot_of(&group);
        self.shards.send(slot, Input::Room { slot, connection: outbox.connection, group, page, report }).await;
        outcome
    }

    async fn send_join(&self, join: Join) {
        let slot = self.shards.slot_of(&join.group);
        self.shards.send(slot, Input::Join { slot, join: Box::new(join) }).await;
    }

    /// Leaves a group. The connection is told `left`, to which request or by whose word, and nothing of the group after it. `presence` is taken out of the
    /// group, after any join of it that is still under way.
    pub async fn leave(&self, outbox: Arc<Outbox>, why: (RequestId, LeftBy), group: GroupName, presence: Option<Seat>) {
        let slot = self.shards.slot_of(&group);
        self.shards.send(slot, Input::Leave { slot, outbox, why, group, presence }).await;
    }

    /// Ends all subscriptions of a connection, without a word to it or to the groups. Returns when nothing more is pushed
    /// to its outbox from here.
    pub async fn left_all(&self, connection: u64) {
        self.shards.left_all(connection).await;
    }

    /// How many connections of this node follow each group.
    pub fn membership(&self) -> BTreeMap<GroupName, u32> {
        let mut all = BTreeMap::new();
        for shard in self.shards.shards.iter() {
            let counts = shard.counts.lock().unwrap_or_else(PoisonError::into_inner);
            all.extend(counts.iter().map(|(group, count)| (group.clone(), *count)));
        }
        all
    }

    /// How many groups have subscribers here.
    pub fn group_count(&self) -> usize {
        let counts =
            self.shards.shards.iter().map(|shard| shard.counts.lock().unwrap_or_else(PoisonError::into_inner).len());
        counts.sum()
    }
}

/// The way to the shards.
#[derive(Clone, Debug)]
pub(super) struct Shards {
    shards: Arc<[ShardHandle]>,
    ask: Ask,
}

/// How many connections follow each group of a shard.
type Counts = Arc<Mutex<BTreeMap<GroupName, u32>>>;

#[derive(Debug)]
struct ShardHandle {
    inbox: mpsc::Sender<Input>,
    counts: Counts,
}

impl ShardHandle {
    async fn send(&self, input: Input) {
        // It fails only while the node stops.
        let _ = self.inbox.send(input).await;
    }
}

impl Shards {
    /// See [`Hub::left_all`].
    pub(super) async fn left_all(&self, connection: u64) {
        let mut left = Vec::with_capacity(self.shards.len());
        for shard in self.shards.iter() {
            let (done, wait) = oneshot::channel();
            shard.send(Input::LeftAll { connection, done }).await;
            left.push(wait);
        }
        for wait in left {
            let _ = wait.await;
        }
    }

    /// How many slots the cluster has.
    pub(super) fn slot_count(&self) -> u16 {
        self.ask.slot_count()
    }

    fn slot_of(&self, group: &GroupName) -> SlotId {
        group.slot(self.slot_count())
    }

    async fn send(&self, slot: SlotId, input: Input) {
        self.shards[usize::from(slot) % self.shards.len()].send(input).await;
    }
}

/// What connections want of a shard, and what came of what it asked.
#[derive(Debug)]
enum Input {
    Join {
        slot: SlotId,
        join: Box<Join>,
    },
    Room {
        slot: SlotId,
        connection: u64,
        group: GroupName,
        page: Page,
        report: oneshot::Sender<JoinOutcome>,
    },
    Leave {
        slot: SlotId,
        outbox: Arc<Outbox>,
        why: (RequestId, LeftBy),
        group: GroupName,
        presence: Option<Seat>,
    },
    LeftAll {
        connection: u64,
        done: oneshot::Sender<()>,
    },
    /// A primary has answered, or has not.
    Answered(following::Answer),
}

#[derive(Debug)]
struct Join {
    outbox: Arc<Outbox>,
    request: RequestId,
    group: GroupName,
    member: Option<Presence>,
    since: Option<Position>,
    page: Option<Page>,
    report: Option<oneshot::Sender<JoinOutcome>>,
}

fn add(counter: &Counter, count: u64) {
    counter.inc_by(count);
}
