//! What a node counts of its deliveries to clients.

use prometheus_client::{metrics::counter::Counter, registry::Registry};

use super::EphemeralMetrics;

/// The metrics of the hub. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct HubMetrics {
    /// Messages handed to clients.
    pub deliveries: Counter,
    /// Messages that came from primaries, once for all subscribers.
    pub messages: Counter,
    /// Joins answered.
    pub joins: Counter,
    /// Joins refused.
    pub joins_failed: Counter,
    /// Registrations asked of primaries.
    pub registrations: Counter,
    /// Gaps declared to clients.
    pub gaps: Counter,
    /// Resets declared, one for all subscribers of the group.
    pub resets: Counter,
    /// Groups that went stale.
    pub stale: Counter,
    /// Subscriptions that ended because the connection took nothing more.
    pub dropped: Counter,
    /// Subscriptions without room for a message, to be caught up from the history.
    pub lagged: Counter,
    /// Of messages that are kept nowhere.
    pub ephemeral: EphemeralMetrics,
}

impl HubMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        for (name, help, counter) in [
            ("deliveries", "Messages handed to clients", &self.deliveries),
            ("lagged", "Subscriptions without room for a message, to be caught up from the history", &self.lagged),
            ("hub_messages", "Messages that came from primaries, once for all subscribers", &self.messages),
            ("hub_joins", "Joins answered", &self.joins),
            ("hub_joins_failed", "Joins refused", &self.joins_failed),
            ("hub_registrations", "Registrations asked of primaries", &self.registrations),
            ("hub_gaps", "Gaps declared to clients", &self.gaps),
            ("hub_resets", "Resets declared, one for all subscribers of the group", &self.resets),
            ("hub_stale", "Groups that went stale", &self.stale),
            ("hub_dropped", "Subscriptions that ended because the connection took nothing more", &self.dropped),
        ] {
            registry.register(name, help, counter.clone());
        }
        self.ephemeral.register(registry);
    }
}
