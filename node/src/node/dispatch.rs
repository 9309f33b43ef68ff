//! What is done with that which arrives from peers: each kind of frame goes to its owner.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;

use super::{belonging, control::Control, lateness::Lateness, probe::Probes};
use crate::{
    clock,
    cluster::{maps::MapCell, steward::Steward, view::SharedView},
    deliveries::Deliveries,
    id::Member,
    peer::{Inbox, mesh::Mesh},
    router::Router,
    slots::{ReplyTo, Slots},
    wire::peer::PeerFrame,
};

/// The parts that frames go to.
pub(super) struct Dispatch {
    pub(super) mesh: Mesh,
    pub(super) maps: MapCell,
    pub(super) steward: Steward,
    pub(super) view: watch::Receiver<SharedView>,
    pub(super) slots: Slots,
    pub(super) router: Router,
    pub(super) deliveries: Deliveries,
    pub(super) probes: Arc<Probes>,
    pub(super) control: Arc<Control>,
    pub(super) lateness: Lateness,
}

#[async_trait]
impl Inbox for Dispatch {
    async fn receive(&self, from: &Member, frame: PeerFrame) {
        match frame {
            PeerFrame::Replication { slot, message } => self.slots.replicate(slot, from.clone(), message).await,
            PeerFrame::Request { id, slot, term, sent_ms, wait_ms, request } => {
                let now_ms = clock::mono_ms();
                let late_ms = self.lateness.of(from, sent_ms, now_ms);
                let until_ms = now_ms + u64::from(wait_ms).saturating_sub(late_ms);
                let reply = ReplyTo::Peer { node: from.node.clone(), id, until_ms };
                self.slots.request(slot, from.clone(), term, request.waited(late_ms), reply).await;
            }
            PeerFrame::Response { id, result } => self.router.answered(&from.node, id, result),
            PeerFrame::Push { slot, term, push } => self.deliveries.deliver(slot, term, push).await,
            PeerFrame::FetchMap { newer_than } => {
                if let Some(map) = self.maps.current().filter(|map| map.version > newer_than) {
                    let _ = self.mesh.send(&from.node, 0, &PeerFrame::Map(map));
                }
            }
            PeerFrame::Map(map) => {
                if belonging::shares_store(&self.view.borrow(), &from.node) {
                    self.maps.offer(map);
                }
            }
            PeerFrame::MapRequests(requests) => self.steward.request(requests),
            PeerFrame::NodeRequest { id, request } => self.control.answer_peer(from, id, request),
            PeerFrame::NodeResponse { id, answer } => self.router.node_answered(&from.node, id, answer),
            PeerFrame::Probe { origin, nonce } => {
                if self.probes.is_mine(&origin) {
                    self.probes.came_back(&from.node, nonce);
                } else if origin == *from {
                    let _ = self.mesh.send(&origin.node, 0, &PeerFrame::Probe { origin: origin.clone(), nonce });
                }
            }
        }
    }

    async fn peer_connected(&self, from: &Member) {
        self.lateness.forget(from);
        self.router.peer_disrupted(&from.node);
        self.deliveries.peer_connected(from).await;
        // The peer's connection is new, so it may be a new process, or the network was away: repeat what it may lack.
        self.slots.link_reset(from.clone()).await;
    }

    async fn peer_lost(&self, from: &Member) {
        self.lateness.forget(from);
        self.router.peer_disrupted(&from.node);
        self.deliveries.peer_lost(from).await;
    }
}
