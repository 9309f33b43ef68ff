//! What a node counts. One value, shared by all parts; `/metrics` shows it in the OpenMetrics text format.
//!
//! Names are those of the verb chain (publish, order, replicate, deliver). Labels take few values, all from this program
//! and never from a client: a stranger must not make series.

mod ephemeral;
mod hub;
mod memory;
mod peer;
mod store;

use std::sync::Arc;

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

pub use self::{
    ephemeral::{EphemeralDrop, EphemeralMetrics},
    hub::HubMetrics,
    memory::MemoryMetrics,
    peer::{GossipDrop, LinkReset, PeerMetrics},
    store::{InFlight, StoreMetrics},
};

/// The `Content-Type` of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The store's states, as `store_state` says them.
pub const STORE_STATES: [&str; 3] = ["up", "slow", "down"];

/// A label that says why.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// A fixed word.
    pub reason: &'static str,
}

/// A label that says how it ended.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct OutcomeLabel {
    /// A fixed word.
    pub outcome: &'static str,
}

/// A label that names a key of `[limits]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct LimitLabel {
    pub limit: &'static str,
}

/// A label that names this node's part in a slot.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RoleLabel {
    /// `primary`, `replica` or `learner`.
    pub role: &'static str,
}

/// A label that names the store's state.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StateLabel {
    /// `up`, `slow` or `down`.
    pub state: &'static str,
}

/// The labels of an HTTP request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HttpLabels {
    /// The route as it is declared (`/v1/groups/{group}/messages`), never the path that was asked for.
    pub route: String,
    pub status: u16,
}

/// The keys of `[limits]`, for [`Metrics::limit_hit`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Limit {
    /// No request on a new connection in time.
    RequestHeadMs,
    /// No `hello` in time.
    HandshakeMs,
    /// A client that sent nothing for longer than it was asked to (and not yet closed).
    HeartbeatS,
    /// A silent connection was closed.
    IdleS,
    /// A frame was too large.
    FrameBytes,
    /// A publish was too large.
    MessageBytes,
    /// A request's body was too large.
    BodyBytes,
    /// A session wanted to join too many groups.
    GroupsPerSession,
    /// A connection sent too much for long.
    OperationsPerS,
    /// A connection sent too much at once.
    OperationsBurst,
    /// Too many new connections in a second.
    ConnectsPerS,
    /// Too many connections.
    Connections,
    /// Too many connections from one address.
    ConnectionsPerAddress,
    /// A slow consumer was closed.
    OutboxBytes,
    /// A page of a replay had to wait for its turn.
    ReplayBytes,
    /// Too many pages of replays wait.
    ReplayQueue,
    /// There was no memory for something.
    MemoryBytes,
    /// A session published too many bytes.
    PublishBytesPerS,
    /// A session began too many groups.
    NewGroupsPerS,
    /// A client that took nothing was closed.
    WriteTimeoutMs,
    /// A request's deadline passed.
    RequestMs,
    /// A connection asked too much at once.
    RequestsInFlight,
    /// A slot had too much waiting for its copies.
    SlotQueue,
    /// A peer did not keep up.
    PeerQueueBytes,
    /// The group membership did not fit into the gossip.
    GossipGroupsBytes,
}

impl Limit {
    /// Every one; a test holds them equal to the keys of `LimitsConfig`.
    pub const ALL: [Self; 25] = [
        Self::RequestHeadMs,
        Self::HandshakeMs,
        Self::HeartbeatS,
        Self::IdleS,
        Self::FrameBytes,
        Self::MessageBytes,
        Self::BodyBytes,
        Self::GroupsPerSession,
        Self::OperationsPerS,
        Self::OperationsBurst,
        Self::ConnectsPerS,
        Self::Connections,
        Self::ConnectionsPerAddress,
        Self::OutboxBytes,
        Self::ReplayBytes,
        Self::ReplayQueue,
        Self::MemoryBytes,
        Self::PublishBytesPerS,
        Self::NewGroupsPerS,
        Self::WriteTimeoutMs,
        Self::RequestMs,
        Self::RequestsInFlight,
        Self::SlotQueue,
        Self::PeerQueueBytes,
        Self::GossipGroupsBytes,
    ];

    /// The key in `[limits]`.
    pub const fn key(self) -> &'static str {
        match self {
            Self::RequestHeadMs => "request_head_ms",
            Self::HandshakeMs => "handshake_ms",
            Self::HeartbeatS => "heartbeat_s",
            Self::IdleS => "idle_s",
            Self::FrameBytes => "frame_bytes",
            Self::MessageBytes => "message_bytes",
            Self::BodyBytes => "body_bytes",
            Self::GroupsPerSession => "groups_per_session",
            Self::OperationsPerS => "operations_per_s",
            Self::OperationsBurst => "operations_burst",
            Self::ConnectsPerS => "connects_per_s",
            Self::Connections => "connections",
            Self::ConnectionsPerAddress => "connections_per_address",
            Self::OutboxBytes => "outbox_bytes",
            Self::ReplayBytes => "replay_bytes",
            Self::ReplayQueue => "replay_queue",
            Self::MemoryBytes => "memory_bytes",
            Self::PublishBytesPerS => "publish_bytes_per_s",
            Self::NewGroupsPerS => "new_groups_per_s",
            Self::WriteTimeoutMs => "write_timeout_ms",
            Self::RequestMs => "request_ms",
            Self::RequestsInFlight => "requests_in_flight",
            Self::SlotQueue => "slot_queue",
            Self::PeerQueueBytes => "peer_queue_bytes",
            Self::GossipGroupsBytes => "gossip_groups_bytes",
        }
    }
}

/// The metrics of one node. Counters and gauges are cheap to touch from anywhere; a family's look-up takes a short lock.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Connected clients.
    pub connections: Gauge,
    /// Pings sent to clients that were silent.
    pub pings: Counter,
    /// Connections refused before `welcome`, by reason.
    pub connects_refused: Family<ReasonLabel, Counter>,
    /// Sessions in memory, of the slots that this node is primary of.
    pub sessions: Gauge,
    /// Deliveries to clients.
    pub hub: HubMetrics,
    /// What clients make this node hold.
    pub memory: MemoryMetrics,
    /// Memory that replays take.
    pub replay_bytes: Gauge,
    /// Pages of replays that wait for their turn.
    pub replays_waiting: Gauge,
    /// Messages ordered by this node's primaries.
    pub publishes_ordered: Counter,
    /// Requests that came too late, or waited too long for their turn, for anybody to wait for the answer: not carried out.
    pub requests_too_late: Counter,
    /// Publishes taken in here, by outcome: `accepted`, `refused`, `unknown`.
    pub publishes: Family<OutcomeLabel, Counter>,
    /// Connections that this node ended, by reason.
    pub outbox_closed: Family<ReasonLabel, Counter>,
    /// How often a limit was hit, by its key. See [`Metrics::limit_hit`].
    pub limit_hits: Family<LimitLabel, Counter>,
    /// The mesh between nodes.
    pub peer: PeerMetrics,
    /// From the order of an entry to its commit, in seconds.
    pub commit_seconds: Histogram,
    /// From a client's request to its answer, in seconds.
    pub request_seconds: Histogram,
    /// Slots that this node holds, by its role. See [`Metrics::set_slots`].
    pub slots: Family<RoleLabel, Gauge>,
    /// What has come of snapshots that are not here as a whole yet.
    pub incoming_bytes: Gauge,
    /// The version of the cluster map that this node knows.
    pub map_version: Gauge,
    /// How late the event loop was at worst lately, in milliseconds.
    pub event_loop_lag_ms: Gauge,
    /// 1 for the store's state as this node sees it, 0 for the others. See [`Metrics::set_store`].
    pub store_state: Family<StateLabel, Gauge>,
    /// The way to the store.
    pub store: StoreMetrics,
    /// When the certificate for clients is over, in seconds since 1970; 0 without TLS.
    pub certificate_expires: Gauge,
    /// HTTP requests, by route and status. See [`Metrics::http_request`].
    pub http_requests: Family<HttpLabels, Counter>,
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Arc<Self> {
        let mut metrics = Self {
            registry: Registry::with_prefix("roost"),
            connections: Gauge::default(),
            pings: Counter::default(),
            connects_refused: Family::default(),
            sessions: Gauge::default(),
            hub: HubMetrics::default(),
            memory: MemoryMetrics::default(),
            certificate_expires: Gauge::default(),
            replay_bytes: Gauge::default(),
            replays_waiting: Gauge::default(),
            publishes_ordered: Counter::default(),
            requests_too_late: Counter::default(),
            publishes: Family::default(),
            outbox_closed: Family::default(),
            limit_hits: Family::default(),
            peer: PeerMetrics::default(),
            commit_seconds: latencies(),
            request_seconds: latencies(),
            slots: Family::default(),
            incoming_bytes: Gauge::default(),
            map_version: Gauge::default(),
            event_loop_lag_ms: Gauge::default(),
            store_state: Family::default(),
            store: StoreMetrics::new(),
            http_requests: Family::default(),
        };
        metrics.register();
        // Known series start at zero, so that a first hit is a change that an alert sees.
        for limit in Limit::ALL {
            let _ = metrics.limit_hits.get_or_create(&LimitLabel { limit: limit.key() });
        }
        for outcome in ["accepted", "refused", "unknown"] {
            let _ = metrics.publishes.get_or_create(&OutcomeLabel { outcome });
        }
        metrics.set_slots(0, 0, 0);
        metrics.set_store("down");
        Arc::new(metrics)
    }

    fn register(&mut self) {
        let Self { registry, .. } = self;
        registry.register("connections", "Connected clients", self.connections.clone());
        registry.register(
            "pings",
            "WebSocket pings to clients that were silent for limits.heartbeat_s",
            self.pings.clone(),
        );
        registry.register("connects_refused", "Connections refused before welcome", self.connects_refused.clone());
        registry.register(
            "sessions",
            "Sessions in memory, of the slots that this node is primary of",
            self.sessions.clone(),
        );
        registry.register("replay_bytes", "Memory that replays take (limits.replay_bytes)", self.replay_bytes.clone());
        registry.register(
            "replays_waiting",
            "Pages of replays that wait for their turn (limits.replay_queue)",
            self.replays_waiting.clone(),
        );
        registry.register(
            "publishes_ordered",
            "Messages ordered by this node's primaries",
            self.publishes_ordered.clone(),
        );
        registry.register(
            "requests_too_late",
            "Requests that were not carried out since nobody waited for the answer any more",
            self.requests_too_late.clone(),
        );
        registry.register("publishes", "Publishes taken in by this node, by outcome", self.publishes.clone());
        registry.register("outbox_closed", "Connections that this node ended, by reason", self.outbox_closed.clone());
        registry.register("limit_hits", "How often a limit of the configuration was hit", self.limit_hits.clone());
        registry.register("slots", "Slots that this node holds, by its role", self.slots.clone());
        registry.register(
            "snapshot_incoming_bytes",
            "What has come of snapshots of slots that are not here as a whole yet",
            self.incoming_bytes.clone(),
        );
        registry.register(
            "map_version",
            "The version of the cluster map that this node knows",
            self.map_version.clone(),
        );
        registry.register(
            "event_loop_lag_ms",
            "How late the event loop was at worst lately, in milliseconds",
            self.event_loop_lag_ms.clone(),
        );
        registry.register("store_state", "1 for the store's state as this node sees it", self.store_state.clone());
        registry.register(
            "http_certificate_expires_seconds",
            "When the certificate for clients is over, in seconds since 1970; 0 without TLS",
            self.certificate_expires.clone(),
        );
        registry.register("http_requests", "HTTP requests by route and status", self.http_requests.clone());
        for (name, help, histogram) in [
            ("commit", "From the order of an entry to its commit", &self.commit_seconds),
            ("request", "From a client's request to its answer", &self.request_seconds),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, histogram.clone());
        }
        self.hub.register(registry);
        self.memory.register(registry);
        self.peer.register(registry);
        self.store.register(registry);
    }

    /// Everything, in the OpenMetrics text format ([`CONTENT_TYPE`]).
    pub fn encode(&self) -> String {
        let mut text = String::new();
        text::encode(&mut text, &self.registry).expect("writing to a string does not fail");
        text
    }

    /// The certificate for clients is over then, in milliseconds since 1970.
    pub fn certificate_expires(&self, at_ms: u64) {
        self.certificate_expires.set(i64::try_from(at_ms / 1_000).unwrap_or(i64::MAX));
    }

    /// A limit was hit.
    pub fn limit_hit(&self, limit: Limit) {
        self.limit_hits.get_or_create(&LimitLabel { limit: limit.key() }).inc();
    }

    /// How often that limit was hit.
    pub fn limit_hits(&self, limit: Limit) -> u64 {
        self.limit_hits.get_or_create(&LimitLabel { limit: limit.key() }).get()
    }

    /// A connection was refused before `welcome`.
    pub fn connect_refused(&self, reason: &'static str) {
        self.connects_refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A connection was ended by this node.
    pub fn connection_closed(&self, reason: &'static str) {
        self.outbox_closed.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// A publish taken in here ended as `accepted`, `refused` or `unknown`.
    pub fn publish_outcome(&self, outcome: &'static str) {
        self.publishes.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// What this node holds.
    pub fn set_slots(&self, primary: usize, replica: usize, learner: usize) {
        for (role, count) in [("primary", primary), ("replica", replica), ("learner", learner)] {
            self.slots.get_or_create(&RoleLabel { role }).set(count as i64);
        }
    }

    /// How the store is: one of [`STORE_STATES`].
    pub fn set_store(&self, now: &'static str) {
        for state in STORE_STATES {
            self.store_state.get_or_create(&StateLabel { state }).set(i64::from(state == now));
        }
    }

    /// A request was answered. `route` is the declared one, or `""` where none matched.
    pub fn http_request(&self, route: &str, status: u16) {
        self.http_requests.get_or_create(&HttpLabels { route: route.to_owned(), status }).inc();
    }
}

/// 50 µs to 26 s, each bucket double the last.
fn latencies() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 20))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::LimitsConfig;

    #[test]
    fn every_limit_of_the_configuration_has_a_metric() {
        let config = serde_json::to_value(LimitsConfig::default()).unwrap();
        let keys: BTreeSet<&str> = config.as_object().unwrap().keys().map(String::as_str).collect();
        let limits: BTreeSet<&str> = Limit::ALL.into_iter().map(Limit::key).collect();
        assert_eq!(keys, limits);
    }

    #[test]
    fn encodes_what_was_counted() {
        let metrics = Metrics::new();
        metrics.connections.set(3);
        metrics.hub.deliveries.inc_by(7);
        metrics.limit_hit(Limit::FrameBytes);
        metrics.limit_hit(Limit::FrameBytes);
        metrics.connect_refused("connections");
        metrics.publish_outcome("accepted");
        metrics.set_slots(5, 4, 0);
        metrics.set_store("slow");
        metrics.store.answered("ping", "ok", std::time::Duration::from_millis(3));
        metrics.http_request("/v1/groups/{group}", 200);
        let text = metrics.encode();
        for line in [
            "roost_connections 3",
            "roost_deliveries_total 7",
            "roost_limit_hits_total{limit=\"frame_bytes\"} 2",
            "roost_limit_hits_total{limit=\"idle_s\"} 0",
            "roost_connects_refused_total{reason=\"connections\"} 1",
            "roost_publishes_total{outcome=\"accepted\"} 1",
            "roost_slots{role=\"primary\"} 5",
            "roost_store_state{state=\"slow\"} 1",
            "roost_store_state{state=\"up\"} 0",
            "roost_store_seconds_count{operation=\"ping\"} 1",
            "roost_store_requests_total{operation=\"ping\",outcome=\"ok\"} 1",
            "roost_http_requests_total{route=\"/v1/groups/{group}\",status=\"200\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "no line {line:?} in:\n{text}");
        }
    }
}
