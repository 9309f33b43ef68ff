//! What the handlers work with, and what they ask of the node as a whole.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use crate::{
    cluster::{health::LocalFacts, view::SharedView},
    config::Config,
    gateway::service::Service,
    id::{ClientId, NodeId, SessionId},
    logic::{map::SharedMap, request::GroupInfo},
    metrics::Metrics,
    token::Keyring,
    wire::peer::{Farewell, Whom},
};

/// What the handlers work with; one for each node.
pub struct Api {
    /// What is done for backends as for clients.
    pub service: Service,
    /// This node's configuration.
    pub config: Arc<Config>,
    /// Signs the tokens of new sessions.
    pub keyring: Arc<Keyring>,
    /// The newest map that this node has.
    pub maps: watch::Receiver<Option<SharedMap>>,
    /// The newest gossip view.
    pub view: watch::Receiver<SharedView>,
    /// What is counted, and shown at `/metrics`.
    pub metrics: Arc<Metrics>,
    /// What concerns the cluster as a whole.
    pub control: Arc<dyn ClusterControl>,
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Api").finish_non_exhaustive()
    }
}

/// What concerns the cluster as a whole; `node.rs` wires it.
#[async_trait]
pub trait ClusterControl: Send + Sync + 'static {
    /// Asks every node for the groups that it is primary of, by name after `after`; answers within a request's deadline,
    /// with what has come by then.
    async fn list_groups(&self, after: &str, limit: u32) -> GroupPage;
    /// Has all nodes disconnect the clients that are meant; their sessions go on.
    async fn disconnect(&self, whom: Whom, farewell: Farewell) -> Disconnected;
    /// Has a node send something to a client, at most once. Whether it is connected there and takes it; nothing where that is
    /// not known.
    async fn send(&self, node: &NodeId, whose: (SessionId, ClientId), data: Bytes) -> Option<bool>;
    /// Has a live node begin to drain; `force`: also while another one drains.
    async fn drain(&self, node: &NodeId, force: bool) -> Result<(), NotDrained>;
    /// Counts a dead node's present start as lost for good.
    async fn forget(&self, node: &NodeId) -> Result<(), String>;
    /// Whether clients should be sent here, or why not (`cluster::health::ready`, with what else the node knows).
    fn ready(&self) -> Result<(), String>;
    /// What only this node knows of itself.
    fn facts(&self) -> LocalFacts;
}

/// Why a node does not begin to drain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NotDrained {
    /// This other node drains.
    OtherDrains(NodeId),
    /// It could not be asked, or says why not.
    Failed(String),
}

/// What came of disconnecting clients.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Disconnected {
    /// How many were told to go.
    pub clients: u64,
    /// Nodes that did not answer: clients of theirs may be connected still.
    pub missing_nodes: Vec<NodeId>,
}

/// A page of the cluster's groups.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct GroupPage {
    /// By name.
    pub groups: Vec<GroupInfo>,
    /// There are more after the last.
    pub more: bool,
    /// Nodes that did not answer: groups of theirs may be missing.
    pub missing_nodes: Vec<NodeId>,
}
