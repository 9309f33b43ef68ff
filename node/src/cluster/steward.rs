//! Drives the planner and the map's compare-and-set. Every node runs one; the one that is steward proposes, and whoever was
//! asked for something that the steward does not do. That two propose at once is no harm: the store lets one win, and the
//! other takes over what it wrote.
//!
//! After a write with an unknown outcome nothing is proposed before the map was read.

mod asked;
#[cfg(test)]
mod tests;
mod watch_store;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use self::asked::Asked;
use super::{
    evidence::{Evidence, steward_of},
    maps::MapCell,
    view::{SharedView, StoreView},
};
use crate::{
    clock,
    config::Config,
    id::{Generation, Member, NodeId},
    logic::{
        map::{ClusterMap, MapRequest, SharedMap},
        plan::{PlanInput, plan},
    },
    store::{MapChange, Store, StoreError},
    tasks::Tasks,
};

/// Batches of requests waiting for the steward's loop.
const REQUESTS: usize = 1_024;
/// Slots under way at once for balance (`PlanInput::max_moves`).
const MAX_MOVES: usize = 32;
/// See `StewardSettings::quiet`; well below `timing.replica_timeout_ms`.
const QUIET_MIN: Duration = Duration::from_millis(600);
/// Changes within so long are looked at together.
const GATHER: Duration = Duration::from_millis(20);
/// After an error of the store: this, then twice as long each time, up to `BACK_OFF_MAX_MS`.
const BACK_OFF_MS: u64 = 100;
const BACK_OFF_MAX_MS: u64 = 3_000;
/// A tick later than so many intervals: this node's own clock or event loop has stood still.
const LATE_INTERVALS: u64 = 3;
/// So many looks are then skipped.
const DOUBTED_LOOKS: u32 = 3;

/// What is told of a change that this node made.
pub type OnChange = Arc<dyn Fn(SharedMap) + Send + Sync>;

/// See [`StewardInputs::packets`].
pub type PacketCounts = Arc<dyn Fn() -> BTreeMap<NodeId, u64> + Send + Sync>;

/// What the configuration says of it.
#[derive(Clone, Debug)]
pub struct StewardSettings {
    /// Slots of the first map; a cluster with another number is refused.
    pub slots: u16,
    /// Copies of each slot.
    pub copies: u8,
    /// Between looks.
    pub interval: Duration,
    /// A peer from which nothing comes for so long is not heard (`Evidence::listen`).
    pub quiet: Duration,
    /// See `PlanInput::max_moves`.
    pub max_moves: usize,
}

/// What a steward works with.
pub struct StewardInputs {
    /// This node.
    pub me: Member,
    /// Where the map is kept.
    pub store: Arc<dyn Store>,
    /// What gossip says.
    pub view: watch::Receiver<SharedView>,
    /// The map that this node knows; kept up to date from the store.
    pub map: MapCell,
    /// From the configuration.
    pub settings: StewardSettings,
    /// How many packets have come from each peer so far, by the links that are up.
    pub packets: PacketCounts,
    /// Is called with each map that this node has brought about. Must not block.
    pub on_change: OnChange,
    /// Where it runs.
    pub tasks: Tasks,
}

/// Why a node cannot be counted as lost.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
enum ForgetError {
    #[error("there is no cluster map yet: is the store reachable?")]
    NoMap,
    #[error("{0} holds no slots: there is nothing to forget")]
    HoldsNothing(NodeId),
    #[error("{0} is alive: drain it, or stop it first")]
    Alive(NodeId),
    #[error("{0} is not known to be dead yet: try again in a few seconds")]
    NotSure(NodeId),
    #[error("{0} was started again (generation {1}): what it held before counts as lost already")]
    CameBack(NodeId, Generation),
    #[error("this node is stopping")]
    Stopping,
}

/// A handle to the running steward. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Steward {
    requests: mpsc::Sender<Vec<MapRequest>>,
    forget: mpsc::Sender<Forget>,
    store: watch::Receiver<StoreView>,
    fault: watch::Receiver<Option<String>>,
    retired: CancellationToken,
}

#[derive(Debug)]
struct Forget {
    node: NodeId,
    answer: oneshot::Sender<Result<Member, ForgetError>>,
}

/// A steward that has not been started.
pub struct IdleSteward(Shell);

impl IdleSteward {
    /// Starts it. The map appears in the cell as soon as the store gives one, or, on the steward of a new cluster, takes the
    /// first.
    pub fn start(self) {
        let Self(mut shell) = self;
        // What it has seen counts from now on.
        shell.looked_ms = clock::mono_ms();
        let StewardInputs { me, store, map, tasks, .. } = &shell.inputs;
        let (view, fault) = (shell.store_view.clone(), shell.fault.clone());
        tasks.spawn("store watch", watch_store::run(me.clone(), store.clone(), map.clone(), view, fault));
        let tasks = tasks.clone();
        tasks.spawn("steward", shell.run());
    }
}

impl fmt::Debug for IdleSteward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdleSteward").finish_non_exhaustive()
    }
}

impl StewardSettings {
    /// From the configuration.
    pub fn new(config: &Config) -> Self {
        Self {
            slots: config.cluster.slots,
            copies: config.cluster.copies,
            interval: Duration::from_millis(config.timing.steward_interval_ms),
            quiet: (Duration::from_millis(config.timing.keep_alive_ms) * 2).max(QUIET_MIN),
            max_moves: MAX_MOVES,
        }
    }
}

impl Steward {
    /// A steward that does nothing yet: what is asked of it waits until it is started.
    pub fn new(inputs: StewardInputs) -> (Self, IdleSteward) {
        let (requests, asked_now) = mpsc::channel(REQUESTS);
        let (forget, forgets) = mpsc::channel(16);
        let (store_view, store) = watch::channel(StoreView::Down);
        let (fault_sender, fault) = watch::channel(None);
        let retired = CancellationToken::new();
        let shell = Shell {
            inputs,
            retired: retired.clone(),
            asked_now,
            forgets,
            store_view,
            fault: fault_sender,
            evidence: Evidence::default(),
            asked: Asked::default(),
            forgotten: BTreeSet::new(),
            looked_ms: clock::mono_ms(),
            doubts: 0,
            must_read: true,
            outcome_unknown: false,
            back_off_ms: 0,
            not_before_ms: 0,
        };
        (Self { requests, forget, store, fault, retired }, IdleSteward(shell))
    }

    /// What primaries ask for, of this node or by way of peers. To be told to every node that may be steward; what is
    /// stale, or was carried out, does no harm. When too much is waiting it is dropped: primaries ask again.
    pub fn request(&self, requests: Vec<MapRequest>) {
        if self.requests.try_send(requests).is_err() {
            tracing::debug!("the steward is behind: requests of primaries were dropped");
        }
    }

    /// How the store answers this node; for gossip.
    pub fn store_view(&self) -> watch::Receiver<StoreView> {
        self.store.clone()
    }

    /// Why this node cannot take part in this cluster, once that is known. The steward's task then ends, which stops the
    /// node.
    pub fn fault(&self) -> watch::Receiver<Option<String>> {
        self.fault.clone()
    }

    /// Proposes nothing from now on. To be called before the node leaves the mesh: it would take all others for dead, and
    /// their copies out of the map.
    pub fn retire(&self) {
        self.retired.cancel();
    }

    /// An operator's word: the dead node's copies are lost for good. To be told to every node that may be steward; each
    /// remembers it until the map no longer names that start of the node, the node is back, or this process ends.
    /// Refused, with the reason, while the node is not dead for certain.
    pub async fn forget(&self, node: &NodeId) -> Result<(), String> {
        self.try_forget(node).await.map(|_| ()).map_err(|error| error.to_string())
    }

    async fn try_forget(&self, node: &NodeId) -> Result<Member, ForgetError> {
        let (answer, answered) = oneshot::channel();
        let forget = Forget { node: node.clone(), answer };
        self.forget.send(forget).await.map_err(|_| ForgetError::Stopping)?;
        answered.await.unwrap_or(Err(ForgetError::Stopping))
    }
}

/// What has been asked of the store.
enum Outcome {
    Read(Result<Option<ClusterMap>, StoreError>),
    Changed { next: SharedMap, result: Result<MapChange, StoreError> },
}

struct Shell {
    inputs: StewardInputs,
    retired: CancellationToken,
    asked_now: mpsc::Receiver<Vec<MapRequest>>,
    forgets: mpsc::Receiver<Forget>,
    store_view: watch::Sender<StoreView>,
    fault: watch::Sender<Option<String>>,
    evidence: Evidence,
    asked: Asked,
    forgotten: BTreeSet<Member>,
    looked_ms: u64,
    doubts: u32,
    /// Nothing is proposed before the map has been read.
    must_read: bool,
    /// This node's last proposal may have been applied.
    outcome_unknown: bool,
    back_off_ms: u64,
    not_before_ms: u64,
}

impl Shell {
    async fn run(mut self) {
        let mut ticks = tokio::time::interval(self.inputs.settings.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut maps = self.inputs.map.subscribe();
        let mut plan_at: Option<Instant> = None;
        // One at a time, beside the loop: a slow store must not look like a late tick.
        let mut asking: Option<BoxFuture<'static, Outcome>> = None;
        while self.fault.borrow().is_none() {
            let gathered = async {
                match plan_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let answered = async {
                match &mut asking {
                    Some(asking) => asking.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = ticks.tick() => self.look(),
                Ok(()) = self.inputs.view.changed() => {}
                Ok(()) = maps.changed() => self.check_slots(),
                Some(requests) = self.asked_now.recv() => {
                    for request in requests {
                        self.asked.add(request, self.inputs.settings.slots, clock::mono_ms());
                    }
                }
                Some(Forget { node, answer }) = self.forgets.recv() => {
                    // Whoever asked may have gone.
                    let _ = answer.send(self.forget(&node));
                }
                outcome = answered => {
                    asking = None;
                    self.take(outcome);
                }
                () = gathered => {
                    plan_at = None;
                    if asking.is_none() {
                        asking = self.propose();
                    }
                    continue;
                }
            }
            plan_at.get_or_insert_with(|| clock::deadline(GATHER));
        }
    }

    /// One look at who is there. A node that was itself away does not trust what it sees first.
    fn look(&mut self) {
        let now = clock::mono_ms();
        let interval_ms = self.inputs.settings.interval.as_millis() as u64;
        let late_ms = now.saturating_sub(self.looked_ms).saturating_sub(interval_ms);
        self.looked_ms = now;
        self.listen();
        if late_ms > LATE_INTERVALS * interval_ms {
            tracing::warn!(late_ms, "the steward's look came late: what it sees is not trusted for a while");
            self.evidence.forget_misses();
            self.doubts = DOUBTED_LOOKS;
        } else if self.doubts > 0 {
            self.doubts -= 1;
        } else {
            let map = self.inputs.map.current();
            self.evidence.look(&self.inputs.view.borrow(), map.as_deref());
            if let Some(map) = map {
                self.asked.prune(&map, self.looked_ms);
                let (view, evidence) = (self.inputs.view.borrow(), &self.evidence);
                let named = |gone: &Member| map.slots.iter().any(|slot| slot.concerns(gone));
                // One that came back is to be given up by another word, should it die again.
                self.forgotten.retain(|gone| named(gone) && evidence.is_dead(gone) && !view.is_alive(gone));
            }
        }
    }

    fn listen(&mut self) {
        let quiet_ms = self.inputs.settings.quiet.as_millis() as u64;
        self.evidence.listen((self.inputs.packets)(), clock::mono_ms(), quiet_ms);
    }

    /// What to ask of the store now, if anything.
    fn propose(&mut self) -> Option<BoxFuture<'static, Outcome>> {
        if self.retired.is_cancelled() || clock::mono_ms() < self.not_before_ms {
            // The next look asks again.
            return None;
        }
        let store = Arc::clone(&self.inputs.store);
        if self.must_read {
            return Some(Box::pin(async move { Outcome::Read(store.read_map().await) }));
        }
        let view = Arc::clone(&self.inputs.view.borrow_and_update());
        // Whoever cannot reach the steward, and is told by gossip that it lives, would ask in vain.
        let is_due = steward_of(&view) == Some(&self.inputs.me.node) || self.asked.is_overdue(clock::mono_ms());
        if self.doubts > 0 || !is_due {
            return None;
        }
        let (expected, next) = match self.inputs.map.current() {
            None => (0, ClusterMap::first(&self.inputs.me, self.inputs.settings.slots)),
            Some(map) => {
                // Since the last look a primary here may have lost patience.
                self.listen();
                if !self.evidence.may_change(&view, &map) {
                    return None;
                }
                self.asked.prune(&map, clock::mono_ms());
                let next = plan(&PlanInput {
                    map: &map,
                    nodes: &self.evidence.facts(&view, &map),
                    requests: &self.asked.list(),
                    forgotten: &self.forgotten,
                    copies: self.inputs.settings.copies,
                    max_moves: self.inputs.settings.max_moves,
                })?;
                (map.version, next)
            }
        };
        let next = Arc::new(next);
        let store_view = self.store_view.clone();
        Some(Box::pin(async move {
            let result = watch_store::timed(&store_view, store.change_map(expected, &next)).await;
            Outcome::Changed { next, result }
        }))
    }

    /// What the store said.
    fn take(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Read(Ok(found)) => {
                self.must_read = false;
                let was_unknown = std::mem::take(&mut self.outcome_unknown);
                if !was_unknown {
                    self.back_off_ms = 0;
                }
                if let Some(map) = found {
                    let map = Arc::new(map);
                    let is_newer = self.inputs.map.offer(Arc::clone(&map));
                    if was_unknown && is_newer {
                        (self.inputs.on_change)(map);
                    } else if was_unknown {
                        // It can be read; whether it can be written is not known.
                        self.failed(&"a change of the cluster map got no answer, and was not made");
                    }
                } else if self.inputs.map.version() > 0 {
                    self.failed(&"it has no cluster map any more: put its content back");
                }
            }
            Outcome::Changed { next, result: Ok(MapChange::Applied) } => {
                self.back_off_ms = 0;
                tracing::info!(version = next.version, "the cluster map was changed");
                self.inputs.map.offer(Arc::clone(&next));
                (self.inputs.on_change)(next);
            }
            Outcome::Changed { result: Ok(MapChange::Conflict(Some(map))), .. } => {
                self.back_off_ms = 0;
                if map.version < self.inputs.map.version() {
                    self.failed(&"its cluster map is older than the one in use: put its content back");
                } else {
                    self.inputs.map.offer(Arc::new(map));
                }
            }
            Outcome::Changed { result: Ok(MapChange::Conflict(None)), .. } => {
                self.failed(&"it has no cluster map any more: put its content back");
            }
            Outcome::Changed { next, result: Ok(MapChange::Unknown) } => {
                tracing::warn!(version = next.version, "whether the cluster map was changed is not known; reading it");
                (self.must_read, self.outcome_unknown) = (true, true);
            }
            Outcome::Changed { result: Err(error), .. } => {
                // A store should say `Unknown` where it was applied perhaps, but nothing is lost by reading.
                (self.must_read, self.outcome_unknown) = (true, true);
                self.failed(&error);
            }
            Outcome::Read(Err(error)) => self.failed(&error),
        }
    }

    fn failed(&mut self, error: &dyn fmt::Display) {
        self.back_off_ms = (self.back_off_ms * 2).clamp(BACK_OFF_MS, BACK_OFF_MAX_MS);
        self.not_before_ms = clock::mono_ms() + self.back_off_ms;
        tracing::warn!(%error, retry_ms = self.back_off_ms, "the store did not do what the steward asked of it");
    }

    fn check_slots(&self) {
        let configured = self.inputs.settings.slots;
        if let Some(map) = self.inputs.map.current().filter(|map| map.slot_count() != configured) {
            let has = map.slot_count();
            let fault = format!(
                "this cluster was created with {has} slots, but the configuration of {} says {configured}: set \
                 cluster.slots = {has} (it cannot be changed later), or use another store",
                self.inputs.me.node
            );
            tracing::error!("{fault}");
            self.fault.send_replace(Some(fault));
        }
    }

    fn forget(&mut self, node: &NodeId) -> Result<Member, ForgetError> {
        let view = Arc::clone(&self.inputs.view.borrow());
        let map = self.inputs.map.current().ok_or(ForgetError::NoMap)?;
        let named = map.slots.iter().flat_map(|slot| slot.in_sync.iter().chain(&slot.learner));
        let held = named.filter(|member| member.node == *node).max();
        let member = held.cloned().ok_or_else(|| ForgetError::HoldsNothing(node.clone()))?;
        let newest = view.generation(node).max(map.members.get(node).copied());
        if let Some(newest) = newest.filter(|newest| *newest > member.generation) {
            return Err(ForgetError::CameBack(node.clone(), newest));
        }
        if view.is_alive(&member) {
            return Err(ForgetError::Alive(node.clone()));
        }
        if !self.evidence.is_dead(&member) {
            return Err(ForgetError::NotSure(node.clone()));
        }
        tracing::warn!(%member, "an operator counts this node as lost for good");
        self.forgotten.insert(member.clone());
        Ok(member)
    }
}
