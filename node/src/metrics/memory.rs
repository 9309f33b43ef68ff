//! What a node counts of the memory that clients make it hold.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// A label that names what is held.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AccountLabel {
    /// A fixed word.
    pub account: &'static str,
}

/// The metrics of memory. Cheap to clone. What is refused for want of it is a hit of `limits.memory_bytes`.
#[derive(Clone, Debug, Default)]
pub struct MemoryMetrics {
    /// What is held, by account.
    pub held_bytes: Family<AccountLabel, Gauge>,
    /// What may be held.
    pub budget_bytes: Gauge,
    /// Messages that slots of this node dropped from all copies, as their primary.
    pub shed: Counter,
    /// What these took.
    pub shed_bytes: Counter,
}

impl MemoryMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("memory_bytes", "What clients make this node hold, by account", self.held_bytes.clone());
        registry.register(
            "memory_budget_bytes",
            "What they may make it hold (limits.memory_bytes)",
            self.budget_bytes.clone(),
        );
        registry.register(
            "memory_shed",
            "Messages that this node's primaries dropped from all copies for want of memory",
            self.shed.clone(),
        );
        registry.register("memory_shed_bytes", "What the messages dropped so took", self.shed_bytes.clone());
    }

    /// An account has this.
    pub fn set(&self, account: &'static str, bytes: u64) {
        self.held_bytes.get_or_create(&AccountLabel { account }).set(bytes as i64);
    }
}
