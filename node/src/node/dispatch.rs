//! What is done with that which arrives from peers: each kind of frame goes to its owner.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

use super::{belonging, control::Control, lateness::Lateness, probe::Probes};
use crate::{
    clock,
    cluster::{gossip::GossipInput, maps::MapCell, steward::Steward, view::SharedView},
    gateway::hub::Hub,
    id::{Member, SlotId, Term},
    logic::request::{Leave, Push},
    peer::{Inbox, mesh::Mesh},
    router::Router,
    slots::{Departures, LocalGateway, ReplyTo, Slots},
    wire::peer::PeerFrame,
};

/// The parts that frames go to; the mesh is started before they exist.
pub(super) struct Wired {
    pub(super) mesh: Mesh,
    pub(super) maps: MapCell,
    pub(super) steward: Steward,
    pub(super) view: watch::Receiver<SharedView>,
    pub(super) slots: Slots,
    pub(super) router: Router,
    pub(super) hub: Hub,
    pub(super) probes: Arc<Probes>,
    pub(super) control: Arc<Control>,
}

/// Until it is wired, gossip alone gets through: what else peers send is lost, as before the node was there.
pub(super) struct Dispatch {
    gossip: GossipInput,
    wired: OnceLock<Wired>,
    /// Who has a connection to this node; those that came before there was a hub are told to it when there is.
    inbound: Mutex<BTreeSet<Member>>,
    lateness: Mutex<Lateness>,
}

impl Dispatch {
    pub(super) fn new(gossip: GossipInput) -> Self {
        Self { gossip, wired: OnceLock::new(), inbound: Mutex::default(), lateness: Mutex::default() }
    }

    pub(super) async fn wire(&self, wired: Wired) {
        let hub = wired.hub.clone();
        let _ = self.wired.set(wired);
        let inbound = self.inbound().clone();
        for peer in inbound {
            hub.peer_connected(&peer).await;
        }
    }

    fn inbound(&self) -> MutexGuard<'_, BTreeSet<Member>> {
        // No code panics while it holds this lock.
        self.inbound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lateness(&self) -> MutexGuard<'_, Lateness> {
        self.lateness.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Inbox for Dispatch {
    async fn receive(&self, from: &Member, frame: PeerFrame) {
        let Some(wired) = self.wired.get() else { return };
        match frame {
            PeerFrame::Replication { slot, message } => wired.slots.replicate(slot, from.clone(), message).await,
            PeerFrame::Request { id, slot, term, sent_ms, wait_ms, request } => {
                let now_ms = clock::mono_ms();
                let late_ms = self.lateness().of(from, sent_ms, now_ms);
                let until_ms = now_ms + u64::from(wait_ms).saturating_sub(late_ms);
                let reply = ReplyTo::Peer { node: from.node.clone(), id, until_ms };
                wired.slots.request(slot, from.clone(), term, request, reply).await;
            }
            PeerFrame::Response { id, result } => wired.router.answered(&from.node, id, result),
            PeerFrame::Push { slot, term, push } => wired.hub.push(slot, term, push).await,
            PeerFrame::FetchMap { newer_than } => {
                if let Some(map) = wired.maps.current().filter(|map| map.version > newer_than) {
                    let _ = wired.mesh.send(&from.node, 0, &PeerFrame::Map(map));
                }
            }
            PeerFrame::Map(map) => {
                if belonging::shares_store(&wired.view.borrow(), &from.node) {
                    wired.maps.offer(map);
                }
            }
            PeerFrame::MapRequests(requests) => wired.steward.request(requests),
            PeerFrame::NodeRequest { id, request } => wired.control.answer_peer(from, id, request),
            PeerFrame::NodeResponse { id, answer } => wired.router.node_answered(&from.node, id, answer),
            PeerFrame::Probe { origin, nonce } => {
                if wired.probes.is_mine(&origin) {
                    wired.probes.came_back(&from.node, nonce);
                } else if origin == *from {
                    let _ = wired.mesh.send(&origin.node, 0, &PeerFrame::Probe { origin: origin.clone(), nonce });
                }
            }
        }
    }

    async fn peer_connected(&self, from: &Member) {
        self.inbound().insert(from.clone());
        self.lateness().forget(from);
        let Some(wired) = self.wired.get() else { return };
        wired.router.peer_disrupted(&from.node);
        wired.hub.peer_connected(from).await;
        // The peer's connection is new, so it may be a new process, or the network was away: repeat what it may lack.
        wired.slots.link_reset(from.clone()).await;
    }

    async fn peer_lost(&self, from: &Member) {
        self.inbound().remove(from);
        self.lateness().forget(from);
        let Some(wired) = self.wired.get() else { return };
        wired.router.peer_disrupted(&from.node);
        wired.hub.peer_lost(from).await;
    }

    async fn gossip(&self, from: &Member, message: Bytes) {
        self.gossip.push(from, message);
    }
}

/// What this node's own primaries push, and the presences that they want taken out elsewhere.
pub(super) struct Local {
    slots: u16,
    wired: OnceLock<(Hub, Router)>,
}

impl Local {
    pub(super) fn new(slots: u16) -> Self {
        Self { slots, wired: OnceLock::new() }
    }

    /// Both are made after the slots.
    pub(super) fn wire(&self, hub: Hub, router: Router) {
        let _ = self.wired.set((hub, router));
    }
}

#[async_trait]
impl LocalGateway for Local {
    async fn push(&self, slot: SlotId, term: Term, push: Push) {
        if let Some((hub, _)) = self.wired.get() {
            hub.push(slot, term, push).await;
        }
    }
}

#[async_trait]
impl Departures for Local {
    async fn leave(&self, group: crate::id::GroupName, session: crate::id::SessionId, attachment: u64) -> bool {
        let Some((_, router)) = self.wired.get() else { return false };
        let slot = group.slot(self.slots);
        let request = (group, Leave { session, attachment });
        router.call(slot, request, std::time::Duration::from_secs(5), None).await.is_ok()
    }
}
