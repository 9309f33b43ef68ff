//! What a node does again and again: follows the map and the view, says how it is, and looks whether it can be heard.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::mpsc;

use super::control::Control;
use crate::{
    clock,
    cluster::{
        gossip::Gossip,
        maps::MapCell,
        membership,
        steward::Steward,
        view::{Load, NodeState},
    },
    gateway::Gateway,
    id::NodeId,
    logic::map::{ClusterMap, MapRequest},
    metrics::Metrics,
    peer::mesh::Mesh,
    slots::Slots,
    tasks::Tasks,
    wire::peer::PeerFrame,
};

const SAY: Duration = Duration::from_secs(1);
const LAG_SAMPLE: Duration = Duration::from_millis(50);
/// The worst lateness of the event loop within about so long is what a node says of itself.
const LAG_SAMPLES_KEPT: u64 = 100;
const FETCH_MAP_AGAIN: Duration = Duration::from_millis(200);

/// What the beat works with.
#[derive(Clone)]
pub(super) struct Beat {
    pub(super) mesh: Mesh,
    pub(super) gossip: Gossip,
    pub(super) maps: MapCell,
    pub(super) steward: Steward,
    pub(super) slots: Slots,
    pub(super) gateway: Arc<Gateway>,
    pub(super) control: Arc<Control>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) lag_ms: Arc<AtomicU64>,
}

impl Beat {
    /// Starts the tasks.
    pub(super) fn start(self, requests: mpsc::Receiver<Vec<MapRequest>>, tasks: &Tasks) {
        tasks.spawn("map follower", self.clone().follow_map());
        tasks.spawn("view follower", self.clone().follow_view());
        tasks.spawn("steward requests", self.clone().forward_requests(requests));
        tasks.spawn("lag meter", measure_lag(self.lag_ms.clone()));
        tasks.spawn("load", self.say());
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

    /// Who is alive goes to the slots; a newer map than this node's is fetched.
    async fn follow_view(self) {
        let mut views = self.gossip.view();
        let mut alive = BTreeSet::new();
        loop {
            let view = views.borrow_and_update().clone();
            let now: BTreeSet<_> =
                view.nodes.values().filter(|node| node.alive).map(|node| node.member.clone()).collect();
            if now != alive {
                alive.clone_from(&now);
                self.slots.alive(Arc::new(now)).await;
            }
            let known = self.maps.current().map_or(0, |map| map.version);
            let newest = view.nodes.values().filter(|node| node.alive).max_by_key(|node| node.map_version);
            let behind = newest.filter(|node| node.map_version > known && node.member != view.me);
            if let Some(peer) = behind {
                let _ = self.mesh.send(&peer.member.node, 0, &PeerFrame::FetchMap { newer_than: known });
            }
            let pause = if behind.is_some() { FETCH_MAP_AGAIN } else { SAY };
            tokio::select! {
                changed = views.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// What slots ask of the steward goes to every node that may be it: whoever is carries it out.
    async fn forward_requests(self, mut inbox: mpsc::Receiver<Vec<MapRequest>>) {
        let mut gathered = Vec::new();
        while inbox.recv_many(&mut gathered, 1_024).await > 0 {
            let requests: Vec<MapRequest> = gathered.drain(..).flatten().collect();
            let view = self.gossip.view().borrow().clone();
            let peers: Vec<NodeId> =
                view.nodes.values().filter(|node| node.alive).map(|node| node.member.node.clone()).collect();
            for peer in peers.iter().filter(|peer| **peer != view.me.node) {
                let _ = self.mesh.send(peer, 0, &PeerFrame::MapRequests(requests.clone()));
            }
            self.steward.request(requests);
        }
    }

    /// Once a second: load, links, store, groups; and the probes.
    async fn say(self) {
        let mut every = tokio::time::interval(SAY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut deliveries, mut publishes) = (0, 0);
        loop {
            every.tick().await;
            let counts = self.slots.counts().await;
            let (delivered, ordered) = (self.metrics.hub.deliveries.get(), self.metrics.publishes_ordered.get());
            self.metrics.replay_bytes.set(self.gateway.replays.held_bytes() as i64);
            self.metrics.replays_waiting.set(self.gateway.replays.waiting() as i64);
            let mut groups = self.gateway.hub.membership();
            groups.retain(|group, _| !group.is_private());
            let load = Load {
                connections: self.gateway.admission.connections() as u64,
                sessions: counts.sessions,
                groups: groups.len() as u64,
                deliveries_per_s: delivered.saturating_sub(deliveries),
                publishes_per_s: ordered.saturating_sub(publishes),
                lag_ms: self.lag_ms.load(Ordering::Relaxed),
            };
            (deliveries, publishes) = (delivered, ordered);
            self.metrics.sessions.set(counts.sessions as i64);
            self.metrics.set_slots(counts.primary as usize, counts.replica as usize, 0);
            self.metrics.event_loop_lag_ms.set(load.lag_ms as i64);
            let store = *self.steward.store_view().borrow();
            self.metrics.set_store(store);
            let buckets = membership::gather(
                groups.iter().map(|(group, count)| (group, *count)),
                self.gateway.service.slot_count(),
            );
            self.gossip.set(|own| (own.load, own.store, own.groups) = (load, store, buckets));
            self.control.probe();
        }
    }
}

/// How late this task is woken tells how late everything else here is.
async fn measure_lag(worst_ms: Arc<AtomicU64>) {
    let mut kept: std::collections::VecDeque<u64> = std::iter::repeat_n(0, LAG_SAMPLES_KEPT as usize).collect();
    loop {
        let before_ms = clock::mono_ms();
        tokio::time::sleep(LAG_SAMPLE).await;
        let late_ms = (clock::mono_ms() - before_ms).saturating_sub(LAG_SAMPLE.as_millis() as u64);
        kept.pop_front();
        kept.push_back(late_ms);
        worst_ms.store(kept.iter().copied().max().unwrap_or(0), Ordering::Relaxed);
    }
}

/// How many slots of the map this node still has a part in.
pub(super) fn slots_held(map: &ClusterMap, node: &NodeId) -> usize {
    map.slots.iter().filter(|slot| slot.in_sync.iter().any(|member| member.node == *node)).count()
}
