//! What a node knows about the others by gossip and from its own links. Nothing here is fresh enough for correctness.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use serde::{Deserialize, Serialize};

pub use crate::peer::LinkView;
use crate::{
    id::{Generation, Member, NodeId},
    logic::{liveness::Says, plan::Life},
};

/// Where a node is in its life, as it says itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Has no slots to serve from yet.
    #[default]
    Starting,
    /// Takes slots and clients.
    Serving,
    /// Hands its slots over and sends its clients away.
    Draining,
}

/// How busy a node is.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(default)]
pub struct Load {
    /// Connected clients.
    pub connections: u64,
    /// Sessions in memory, of the slots that it is primary of.
    pub sessions: u64,
    /// Groups with subscribers on this node.
    pub groups: u64,
    /// Messages handed to clients in the last second.
    pub deliveries_per_s: u64,
    /// Messages ordered by its primaries in the last second.
    pub publishes_per_s: u64,
    /// How late the event loop was at worst in the last seconds, in milliseconds.
    pub lag_ms: u64,
    /// What clients make it hold, in bytes.
    pub memory_bytes: u64,
    /// What they may make it hold (`limits.memory_bytes`); 0 where that is not known.
    pub memory_budget_bytes: u64,
}

/// The store, as a node sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoreView {
    /// It answers.
    Up,
    /// It answers, slowly.
    Slow,
    /// It does not answer.
    #[default]
    Down,
}

/// One node of the cluster.
#[derive(Clone, PartialEq, Debug)]
pub struct NodeView {
    pub member: Member,
    /// Its UDP address (gossip and QUIC).
    pub addr: SocketAddr,
    /// Gossip hears of it (the node itself is always alive).
    pub alive: bool,
    /// What it says of itself.
    pub state: NodeState,
    /// Where its HTTP listens, as `http://host:port`, for people.
    pub http: String,
    /// Its availability zone, where it names one.
    pub zone: String,
    /// The version of the program.
    pub version: String,
    /// The cluster map that it knows.
    pub map_version: u64,
    /// The identity of its store; empty while unknown.
    pub store_id: String,
    /// A digest of the settings that all nodes must share.
    pub settings: String,
    /// How busy it is.
    pub load: Load,
    /// Its view of the store.
    pub store: StoreView,
    /// Its view of its links, by peer.
    pub links: BTreeMap<NodeId, LinkView>,
    /// Which groups have members there: (a hash of the name, how many); by bucket of slots. A bucket over its budget says
    /// only how many in all.
    pub groups: BTreeMap<u8, BucketView>,
}

/// One bucket of a node's group membership.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BucketView {
    /// The low 32 bits of xxh3 of each group's name, with how many subscribers the group has on that node. Sorted.
    pub groups: Vec<(u32, u32)>,
    /// How many groups there are, listed or not.
    pub total: u32,
    /// Whether `groups` lists them all.
    pub complete: bool,
}

/// All nodes that gossip has told of lately, each by its newest generation; this one included.
#[derive(Clone, PartialEq, Debug)]
pub struct ClusterView {
    pub me: Member,
    /// By name.
    pub nodes: BTreeMap<NodeId, NodeView>,
}

/// A view as it is passed around (in a `tokio::sync::watch`).
pub type SharedView = Arc<ClusterView>;

impl StoreView {
    /// As metrics say it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Slow => "slow",
            Self::Down => "down",
        }
    }
}

impl ClusterView {
    /// Whether this very process is alive, as far as this node knows.
    pub fn is_alive(&self, member: &Member) -> bool {
        self.nodes.get(&member.node).is_some_and(|node| node.alive && node.member == *member)
    }

    /// The newest generation heard of for a node.
    pub fn generation(&self, node: &NodeId) -> Option<Generation> {
        self.nodes.get(node).map(|view| view.member.generation)
    }
}

impl NodeView {
    /// What the judge of liveness and the steward go by.
    pub fn says(&self) -> Says {
        let life = match self.state {
            NodeState::Starting => Life::Starting,
            NodeState::Serving => Life::Serving,
            NodeState::Draining => Life::Draining,
        };
        Says { life, zone: self.zone.clone(), store_up: self.store != StoreView::Down, map_version: self.map_version }
    }
}
