//! What a node counts of its requests to the store.

use std::time::Duration;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

use super::{ReasonLabel, latencies};

/// A label that names a method of the store.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OperationLabel {
    /// A fixed word.
    pub(super) operation: &'static str,
}

/// A request to the store and how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    /// A fixed word.
    pub(super) operation: &'static str,
    /// A fixed word.
    pub(super) outcome: &'static str,
}

/// The metrics of the way to the store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StoreMetrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Family<OperationLabel, Histogram, fn() -> Histogram>,
    refused: Family<ReasonLabel, Counter>,
    in_flight: Gauge,
    waiting: Gauge,
    breaker: Gauge,
}

impl StoreMetrics {
    /// All at zero.
    pub fn new() -> Self {
        let this = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(latencies),
            refused: Family::default(),
            in_flight: Gauge::default(),
            waiting: Gauge::default(),
            breaker: Gauge::default(),
        };
        // They start at zero, so that a first one is a change that an alert sees.
        for reason in ["breaker", "queue", "wait"] {
            let _ = this.refused.get_or_create(&ReasonLabel { reason });
        }
        this
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("store_requests", "Requests to the store, by outcome", self.requests.clone());
        registry.register_with_unit("store", "What the store took to answer", Unit::Seconds, self.seconds.clone());
        registry.register(
            "store_refused",
            "Requests that were not sent to the store: the breaker was open, the queue was full, the wait too long",
            self.refused.clone(),
        );
        registry.register("store_in_flight", "Requests to the store under way", self.in_flight.clone());
        registry.register("store_waiting", "Requests to the store that wait for their turn", self.waiting.clone());
        registry.register("store_breaker", "1 while the store is taken to be down, else 0", self.breaker.clone());
    }

    /// A request has ended, after this time.
    pub fn answered(&self, operation: &'static str, outcome: &'static str, after: Duration) {
        self.requests.get_or_create(&RequestLabels { operation, outcome }).inc();
        self.seconds.get_or_create(&OperationLabel { operation }).observe(after.as_secs_f64());
    }

    /// A request was not sent.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A request is under way, until this is dropped.
    pub fn in_flight(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// So many wait.
    pub fn waiting(&self, count: usize) {
        self.waiting.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Whether the store is taken to be down.
    pub fn breaker_open(&self, open: bool) {
        self.breaker.set(i64::from(open));
    }
}

impl Default for StoreMetrics {
    fn default() -> Self {
        Self::new()
    }
}

/// Counts a request as long as it lives.
#[derive(Debug)]
pub struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}
