//! What is done with that which arrives from peers: each kind of frame goes to its owner.
//!
//! A peer's certificate says who it is, not that it speaks the truth. Here it is seen to that it speaks for itself only: as a
//! slot's primary where the map says that it is that, of maps as a hint, and to the steward under its own name.

use std::{sync::Arc, time::Duration};

use super::{control::Control, hints::Hints, lateness::Lateness, probe::Probes};
use crate::{
    clock,
    cluster::{maps::MapCell, steward::Steward},
    deliveries::Deliveries,
    id::{Member, SlotId, Term},
    lease::LeaseInbox,
    logic::{clocks::Voice, hints::HintInput, map::Leads},
    peer::{Inbox, mesh::Mesh},
    permit::Permit,
    router::Router,
    slots::{ReplyTo, Slots},
    wire::peer::PeerFrame,
};
use async_trait::async_trait;

/// A frame from a primary under a term that this node's map does not have yet waits for the map, and holds its lane back.
/// After this time it is dropped, and its sender repeats it.
const MAP_WAIT: Duration = Duration::from_millis(300);

/// The parts that frames go to.
pub(super) struct Dispatch {
    pub(super) mesh: Mesh,
    pub(super) maps: MapCell,
    pub(super) steward: Steward,
    pub(super) hints: Hints,
    pub(super) slots: Slots,
    pub(super) router: Router,
    pub(super) deliveries: Deliveries,
    pub(super) probes: Arc<Probes>,
    pub(super) control: Arc<Control>,
    pub(super) lateness: Lateness,
    pub(super) lease: LeaseInbox,
    pub(super) permit: Arc<Permit>,
}

#[async_trait]
impl Inbox for Dispatch {
    async fn receive(&self, from: &Member, frame: PeerFrame) {
        match frame {
            PeerFrame::Replication { slot, message } => {
                // An acknowledgement counts with the primary that waits for it.
                if message.is_answer() || self.leads(slot, message.term(), from).await {
                    self.slots.replicate(slot, from.clone(), message).await;
                }
            }
            PeerFrame::Request { id, slot, term, sent_ms, wait_ms, request } => {
                let now_ms = clock::mono_ms();
                let late_ms = self.lateness.of(from, sent_ms, now_ms);
                let until_ms = now_ms + u64::from(wait_ms).saturating_sub(late_ms);
                let reply = ReplyTo::Peer { node: from.node.clone(), id, until_ms };
                self.slots.request(slot, from.clone(), term, request.waited(late_ms), reply).await;
            }
            PeerFrame::Response { id, voters, result } => {
                self.hear_voters(from, voters);
                self.router.answered(&from.node, id, result);
            }
            PeerFrame::Push { slot, term, voters, push } => {
                if self.leads(slot, term, from).await {
                    self.hear_voters(from, voters);
                    self.deliveries.deliver(slot, term, push).await;
                }
            }
            PeerFrame::FetchMap { newer_than } => {
                if let Some(map) = self.maps.current().filter(|map| map.version > newer_than) {
                    let _ = self.mesh.send(&from.node, 0, &PeerFrame::Map(map));
                }
            }
            PeerFrame::Map(map) => self.hints.hear(HintInput::Sent { by: from.node.clone(), map }),
            PeerFrame::Memory(level) => self.slots.memory(from.clone(), level).await,
            PeerFrame::MapRequests(requests) => self.steward.request(from.clone(), requests),
            PeerFrame::NodeRequest { id, request } => self.control.answer_peer(from, id, request),
            PeerFrame::NodeResponse { id, answer } => self.router.node_answered(&from.node, id, answer),
            PeerFrame::Lease(message) => self.lease.receive(from, message),
            PeerFrame::Probe { origin, nonce, wall_ms } => {
                if self.probes.is_mine(&origin) {
                    self.probes.came_back(&from.node, nonce);
                    self.control.clocks.heard(Voice::Node(from.node.clone()), wall_ms, nonce);
                } else if origin == *from {
                    let back = PeerFrame::Probe { origin: origin.clone(), nonce, wall_ms: clock::wall_ms() };
                    let _ = self.mesh.send(&origin.node, 0, &back);
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

impl Dispatch {
    /// Before anything that is sent with it is delivered: a gateway that does not know this map may have been fenced.
    fn hear_voters(&self, from: &Member, version: u64) {
        if self.permit.hear_ahead(&from.node, version) {
            self.hints.hear(HintInput::Told { by: from.node.clone(), version });
        }
    }

    /// Whether this peer is the slot's primary in this term, by the map; where only a later map can say so, that is waited for.
    async fn leads(&self, slot: SlotId, term: Term, from: &Member) -> bool {
        let mut maps = self.maps.subscribe();
        let until = clock::deadline(MAP_WAIT);
        let mut is_hinted = false;
        loop {
            let known = maps.borrow_and_update().clone();
            let of = known.as_ref().map_or(0, |map| map.version);
            match known.map_or(Leads::NotKnownYet, |map| map.leads(slot, term, from)) {
                Leads::Yes => return true,
                Leads::No => return false,
                Leads::NotKnownYet => {}
            }
            if !std::mem::replace(&mut is_hinted, true) {
                self.hints.hear(HintInput::Ahead { by: from.node.clone(), of });
            }
            match tokio::time::timeout_at(until, maps.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return false,
            }
        }
    }
}
