//! What a node counts of the mesh between nodes, gossip included.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::ReasonLabel;

/// Why a link was reset, as `peer_link_resets` says it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum LinkReset {
    /// More waited for the peer than `limits.peer_queue_bytes`.
    Overflow,
    /// The peer was started again: what this node has to its earlier start is no use.
    Restart,
    /// The connection was lost: the peer is gone, or the network is.
    Lost,
}

impl LinkReset {
    const ALL: [Self; 3] = [Self::Overflow, Self::Restart, Self::Lost];

    const fn word(self) -> &'static str {
        match self {
            Self::Overflow => "overflow",
            Self::Restart => "restart",
            Self::Lost => "lost",
        }
    }
}

/// Why a gossip message was dropped, as `gossip_dropped` says it. Gossip says it again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum GossipDrop {
    /// To send: no connection to that address, or no room on the way to it.
    NoWay,
    /// Received: its sender says too much, or too much waits already.
    TooMuch,
    /// Received: the guard does not believe it.
    Refused,
}

impl GossipDrop {
    const ALL: [Self; 3] = [Self::NoWay, Self::TooMuch, Self::Refused];

    const fn word(self) -> &'static str {
        match self {
            Self::NoWay => "no_way",
            Self::TooMuch => "too_much",
            Self::Refused => "refused",
        }
    }
}

/// The metrics of the mesh.
#[derive(Debug, Default)]
pub struct PeerMetrics {
    /// Frames put on lanes, or queued for streams of their own.
    pub frames_sent: Counter,
    /// Their bytes.
    pub bytes_sent: Counter,
    /// Frames not sent because no peer takes one of that length.
    pub frames_too_long: Counter,
    /// Frames received and understood.
    pub frames_received: Counter,
    /// Frames received that are none.
    pub frames_undecodable: Counter,
    /// Connections refused: strangers, other clusters, other starts of this node, too many at once.
    pub connections_refused: Counter,
    /// Nodes that tried to join within the last 10 minutes and were refused, since they do not belong here.
    pub refused_nodes: Gauge,
    /// Peers whose keyrings have other keys than this node's.
    pub other_keyrings: Gauge,
    /// Nodes that live and that no map has named for 10 s, this one among them.
    pub nodes_outside: Gauge,
    link_resets: Family<ReasonLabel, Counter>,
    gossip_dropped: Family<ReasonLabel, Counter>,
}

impl PeerMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let mut counter = |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        counter("peer_frames_sent", "Frames sent to other nodes", &self.frames_sent);
        counter("peer_bytes_sent", "Bytes of the frames sent to other nodes", &self.bytes_sent);
        counter("peer_frames_too_long", "Frames that were not sent, longer than nodes take", &self.frames_too_long);
        counter("peer_frames_received", "Frames received from other nodes", &self.frames_received);
        counter("peer_frames_undecodable", "What came from other nodes and is no frame", &self.frames_undecodable);
        counter("peer_connections_refused", "Connections to the mesh that were refused", &self.connections_refused);
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| registry.register(name, help, gauge.clone());
        gauge("peer_refused_nodes", "Nodes that tried to join lately and do not belong here", &self.refused_nodes);
        gauge("peer_other_keyrings", "Peers whose keyrings have other keys than this node's", &self.other_keyrings);
        gauge("peer_nodes_outside", "Nodes that are up and that no cluster map names for long", &self.nodes_outside);
        registry.register("peer_link_resets", "Links to peers that were reset", self.link_resets.clone());
        registry.register("gossip_dropped", "Gossip messages that were dropped", self.gossip_dropped.clone());
        // They start at zero, so that a first one is a change that an alert sees.
        for reason in LinkReset::ALL.map(LinkReset::word) {
            let _ = self.link_resets.get_or_create(&ReasonLabel { reason });
        }
        for reason in GossipDrop::ALL.map(GossipDrop::word) {
            let _ = self.gossip_dropped.get_or_create(&ReasonLabel { reason });
        }
    }

    /// A frame was sent, of that length.
    pub fn sent(&self, bytes: usize) {
        self.frames_sent.inc();
        self.bytes_sent.inc_by(bytes as u64);
    }

    /// A link to a peer was reset.
    pub fn link_reset(&self, why: LinkReset) {
        self.link_resets.get_or_create(&ReasonLabel { reason: why.word() }).inc();
    }

    /// How often links were reset for that reason.
    pub fn link_resets(&self, why: LinkReset) -> u64 {
        self.link_resets.get_or_create(&ReasonLabel { reason: why.word() }).get()
    }

    /// A gossip message was dropped.
    pub fn gossip_drop(&self, why: GossipDrop) {
        self.gossip_dropped.get_or_create(&ReasonLabel { reason: why.word() }).inc();
    }

    /// How many gossip messages were dropped for that reason.
    pub fn gossip_drops(&self, why: GossipDrop) -> u64 {
        self.gossip_dropped.get_or_create(&ReasonLabel { reason: why.word() }).get()
    }
}
