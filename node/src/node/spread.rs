//! How a map is spread: whoever changed it tells all, and a node takes it to its slots and says which version it knows. Who
//! hears of a newer one looks it up ([`super::hints`]). On the same way back goes what slots ask of the steward.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::{
    cluster::{
        gossip::Gossip,
        maps::MapCell,
        steward::{OnChange, Steward},
        view::{NodeState, SharedView},
    },
    id::{Member, NodeId},
    logic::map::MapRequest,
    metrics::Metrics,
    peer::mesh::Mesh,
    slots::Slots,
    tasks::Tasks,
    wire::peer::PeerFrame,
};

/// Requests that are sent on together.
const REQUESTS_AT_ONCE: usize = 1_024;

/// What maps are spread with.
#[derive(Clone)]
pub(super) struct Spread {
    pub(super) me: Member,
    pub(super) mesh: Mesh,
    pub(super) gossip: Gossip,
    pub(super) maps: MapCell,
    pub(super) steward: Steward,
    pub(super) slots: Slots,
    pub(super) metrics: Arc<Metrics>,
}

impl Spread {
    /// Starts the tasks. From now on this node's slots take part in the cluster.
    pub(super) fn start(self, requests: mpsc::Receiver<Vec<MapRequest>>, tasks: &Tasks) {
        tasks.spawn("map follower", self.clone().follow_map());
        tasks.spawn("alive follower", self.clone().follow_alive());
        tasks.spawn("steward requests", self.forward_requests(requests));
    }

    /// Every new map goes to the slots; the others hear its version.
    async fn follow_map(self) {
        let mut maps = self.maps.subscribe();
        // The first map may have come before this task: nobody might ever change it if it were passed over.
        maps.mark_changed();
        while maps.changed().await.is_ok() {
            let Some(map) = maps.borrow_and_update().clone() else { continue };
            self.metrics.map_version.set(map.version as i64);
            self.slots.map(map.clone()).await;
            self.gossip.set(|own| {
                own.map_version = map.version;
                if own.state == NodeState::Starting {
                    own.state = NodeState::Serving;
                }
            });
        }
    }

    /// Who is alive goes to the slots.
    async fn follow_alive(self) {
        let mut all = self.gossip.alive();
        loop {
            let alive = all.borrow_and_update().clone();
            self.slots.alive(alive).await;
            if all.changed().await.is_err() {
                return;
            }
        }
    }

    /// What slots ask of the steward goes to every node that may be it: whoever is carries it out.
    async fn forward_requests(self, mut inbox: mpsc::Receiver<Vec<MapRequest>>) {
        let mut gathered = Vec::new();
        while inbox.recv_many(&mut gathered, REQUESTS_AT_ONCE).await > 0 {
            let requests: Vec<MapRequest> = gathered.drain(..).flatten().collect();
            for peer in living_peers(&self.gossip.view().borrow().clone()) {
                let _ = self.mesh.send(&peer, 0, &PeerFrame::MapRequests(requests.clone()));
            }
            self.steward.request(self.me.clone(), requests);
        }
    }
}

/// Whoever changed the map sends it to all at once; who misses it hears the version by gossip.
pub(super) fn tell_peers(mesh: &Mesh, gossip: &Gossip) -> OnChange {
    let (mesh, view) = (mesh.clone(), gossip.view());
    Arc::new(move |map| {
        for peer in living_peers(&view.borrow().clone()) {
            let _ = mesh.send(&peer, 0, &PeerFrame::Map(map.clone()));
        }
    })
}

/// Nodes that are up, this one not among them.
pub(super) fn living_peers(view: &SharedView) -> Vec<NodeId> {
    let peers = view.nodes.values().filter(|node| node.alive && node.member != view.me);
    peers.map(|node| node.member.node.clone()).collect()
}
