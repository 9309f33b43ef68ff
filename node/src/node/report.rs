//! What a node reports of itself once a second: to the others its load, its view of the store and its groups; to whoever
//! reads its metrics the gauges. And how late its event loop is.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use super::control::Control;
use crate::{
    clock,
    cluster::{gossip::Gossip, membership, steward::Steward, view::Load},
    gateway::Gateway,
    memory::{Account, Ledger},
    metrics::Metrics,
    slots::{SlotCounts, Slots},
    tasks::Tasks,
};

const EVERY: Duration = Duration::from_secs(1);
const LAG_SAMPLE: Duration = Duration::from_millis(50);
/// The worst lateness of the event loop among the last samples, within about 5 s, is what a node says of itself.
const LAG_SAMPLES_KEPT: usize = 100;

/// What is reported on.
pub(super) struct Report {
    pub(super) ledger: Arc<Ledger>,
    pub(super) gossip: Gossip,
    pub(super) steward: Steward,
    pub(super) slots: Slots,
    pub(super) gateway: Arc<Gateway>,
    pub(super) control: Arc<Control>,
    pub(super) metrics: Arc<Metrics>,
}

impl Report {
    /// Starts the tasks.
    pub(super) fn start(self, tasks: &Tasks) {
        let lag_ms = Arc::new(AtomicU64::new(0));
        tasks.spawn("lag meter", measure_lag(lag_ms.clone()));
        tasks.spawn("report", self.run(lag_ms));
    }

    async fn run(self, lag_ms: Arc<AtomicU64>) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut deliveries, mut publishes, mut clock_trusted) = (0, 0, true);
        loop {
            every.tick().await;
            let counts = self.slots.counts().await;
            let (delivered, ordered) = (self.metrics.hub.deliveries.get(), self.metrics.publishes_ordered.get());
            let mut groups = self.gateway.hub.membership();
            groups.retain(|group, _| !group.is_private());
            let load = Load {
                connections: self.gateway.admission.connections() as u64,
                sessions: counts.sessions,
                groups: groups.len() as u64,
                deliveries_per_s: delivered.saturating_sub(deliveries),
                publishes_per_s: ordered.saturating_sub(publishes),
                lag_ms: lag_ms.load(Ordering::Relaxed),
                memory_bytes: self.ledger.held_bytes(),
                memory_budget_bytes: self.ledger.budget_bytes(),
            };
            (deliveries, publishes) = (delivered, ordered);
            self.set_gauges(counts, &load);
            let store = *self.steward.store_view().borrow();
            let buckets = membership::gather(
                groups.iter().map(|(group, count)| (group, *count)),
                self.gateway.service.slot_count(),
            );
            self.gossip.set(|own| (own.load, own.store, own.groups) = (load, store, buckets));
            self.control.probe();
            self.control.count_strangers(&self.metrics.peer);
            let trusted = self.control.clocks.is_trusted();
            if std::mem::replace(&mut clock_trusted, trusted) != trusted {
                self.slots.clock(trusted).await;
            }
        }
    }

    fn set_gauges(&self, slots: SlotCounts, load: &Load) {
        let metrics = &self.metrics;
        metrics.sessions.set(slots.sessions as i64);
        metrics.set_slots(slots.primary as usize, slots.replica as usize, slots.learner as usize);
        metrics.incoming_bytes.set(slots.incoming_bytes as i64);
        metrics.event_loop_lag_ms.set(load.lag_ms as i64);
        metrics.set_store(self.steward.store_view().borrow().word());
        for account in Account::ALL {
            metrics.memory.set(account.word(), self.ledger.bytes(account));
        }
        metrics.memory.budget_bytes.set(self.ledger.budget_bytes() as i64);
        metrics.replay_bytes.set(self.gateway.replays.held_bytes() as i64);
    }
}

/// How late this task is woken tells how late everything else here is.
async fn measure_lag(worst_ms: Arc<AtomicU64>) {
    let mut kept: VecDeque<u64> = std::iter::repeat_n(0, LAG_SAMPLES_KEPT).collect();
    loop {
        let before_ms = clock::mono_ms();
        tokio::time::sleep(LAG_SAMPLE).await;
        let late_ms = (clock::mono_ms() - before_ms).saturating_sub(LAG_SAMPLE.as_millis() as u64);
        kept.pop_front();
        kept.push_back(late_ms);
        worst_ms.store(kept.iter().copied().max().unwrap_or(0), Ordering::Relaxed);
    }
}
