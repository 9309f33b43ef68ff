//! What a node counts of ephemeral messages, which are dropped first wherever much waits.

use prometheus_client::{
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};

use super::ReasonLabel;

/// Where an ephemeral message found no room, as `ephemeral_dropped` says it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum EphemeralDrop {
    /// For a client: it reads slowly, or nothing may be delivered to it now. Once for each such client.
    Client,
    /// On the way to the clients of this node: its own deliveries are late.
    Hub,
    /// On the way to another node: the link to it is slow, or down.
    Peer,
}

impl EphemeralDrop {
    const ALL: [Self; 3] = [Self::Client, Self::Hub, Self::Peer];

    const fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Hub => "hub",
            Self::Peer => "peer",
        }
    }
}

/// The metrics of ephemeral messages. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct EphemeralMetrics {
    /// Messages handed to clients.
    pub deliveries: Counter,
    dropped: Family<ReasonLabel, Counter>,
}

impl EphemeralMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register("ephemeral_deliveries", "Ephemeral messages handed to clients", self.deliveries.clone());
        registry.register(
            "ephemeral_dropped",
            "Ephemeral messages dropped where much waits already, by where that is",
            self.dropped.clone(),
        );
        // They start at zero, so that a first one is a change that an alert sees.
        for reason in EphemeralDrop::ALL.map(EphemeralDrop::word) {
            let _ = self.dropped.get_or_create(&ReasonLabel { reason });
        }
    }

    /// A number of messages were dropped there.
    pub fn dropped(&self, at: EphemeralDrop, count: usize) {
        self.dropped.get_or_create(&ReasonLabel { reason: at.word() }).inc_by(count as u64);
    }

    /// How many messages were dropped there.
    pub fn drops(&self, at: EphemeralDrop) -> u64 {
        self.dropped.get_or_create(&ReasonLabel { reason: at.word() }).get()
    }
}
