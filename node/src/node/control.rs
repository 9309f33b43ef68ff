//! What concerns the cluster as a whole: asked of other nodes, answered to them, and whether this node is ready.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{probe::Probes, spread::living_peers};
use crate::{
    clock,
    cluster::{
        clocks::ClockWatch,
        health::{self, LocalFacts, OUTSIDE_WARNING_MS, OutsideNode, RefusedNode},
        steward::Steward,
        view::{NodeState, SharedView},
    },
    gateway::{
        client::attachments::Attachments,
        door::certificate::Shown,
        http::api::{ClusterControl, Disconnected, GroupPage, NotDrained},
    },
    id::{ClientId, Member, NodeId, SessionId},
    logic::liveness::{Outside, SharedPicture},
    metrics::PeerMetrics,
    peer::{SendError, mesh::Mesh},
    router::Router,
    slots::Slots,
    tasks::Tasks,
    wire::{
        command::Event,
        peer::{Farewell, NodeAnswer, NodeRequest, PeerFrame, Whom},
    },
};

/// Another node answers within this or counts as missing.
const ASK_DEADLINE: Duration = Duration::from_secs(1);
/// An event loop as late as this makes a node not ready.
const LAG_LIMIT_MS: u64 = 2_000;
/// At most this number of groups in a page, whatever was asked.
const GROUPS_MAX: u32 = 10_000;

pub(super) struct Control {
    pub(super) me: Member,
    pub(super) copies: u8,
    pub(super) certificate_expires_ms: u64,
    /// What clients are shown over TLS.
    pub(super) http_certificate: Option<watch::Receiver<Shown>>,
    pub(super) mesh: Mesh,
    pub(super) router: Router,
    pub(super) slots: Slots,
    pub(super) steward: Steward,
    pub(super) attachments: Attachments,
    pub(super) view: tokio::sync::watch::Receiver<SharedView>,
    pub(super) pictures: tokio::sync::watch::Receiver<SharedPicture>,
    pub(super) probes: Arc<Probes>,
    pub(super) clocks: ClockWatch,
    pub(super) deaf: AtomicBool,
    pub(super) drain: CancellationToken,
    pub(super) tasks: Tasks,
}

impl Control {
    /// A peer asks; the answer goes back over the mesh.
    pub(super) fn answer_peer(self: &Arc<Self>, from: &Member, id: u64, request: NodeRequest) {
        let (this, to) = (self.clone(), from.node.clone());
        self.tasks.spawn_detached("node request", async move {
            let answer = match request {
                NodeRequest::ListGroups { after, limit } => {
                    let limit = limit.min(GROUPS_MAX) as usize;
                    let mut groups = this.slots.groups(&after, limit + 1).await;
                    let more = groups.len() > limit;
                    groups.truncate(limit);
                    NodeAnswer::Groups { groups, more }
                }
                NodeRequest::Drain { force } => match this.begin_drain(force) {
                    Ok(()) => NodeAnswer::Done,
                    Err(other) => NodeAnswer::OtherDrains { node: other.to_string() },
                },
                NodeRequest::Disconnect { whom, farewell } => {
                    let clients = this.attachments.disconnect(&whom, &farewell) as u64;
                    NodeAnswer::Disconnected { clients }
                }
                NodeRequest::Send { session, client, data } => {
                    if this.attachments.tell(session, &client, &Event::Direct { data }) {
                        NodeAnswer::Done
                    } else {
                        NodeAnswer::NotHere
                    }
                }
                NodeRequest::Forget { node } => match NodeId::parse(&node) {
                    Ok(node) => {
                        this.steward.forget(&node).await.map_or_else(NodeAnswer::Refused, |()| NodeAnswer::Done)
                    }
                    Err(error) => NodeAnswer::Refused(error),
                },
            };
            if this.mesh.send(&to, 0, &PeerFrame::NodeResponse { id, answer }) == Err(SendError::TooLong) {
                let answer = NodeAnswer::Refused("the answer is longer than a frame between nodes".to_owned());
                let _ = this.mesh.send(&to, 0, &PeerFrame::NodeResponse { id, answer });
            }
        });
    }

    /// Asks these nodes at once; with each its answer, where that has come in time.
    async fn ask_each(&self, nodes: Vec<NodeId>, request: &NodeRequest) -> Vec<(NodeId, Option<NodeAnswer>)> {
        let asked = nodes.into_iter().map(|node| async move {
            let answer = self.router.ask_node(&node, request.clone(), ASK_DEADLINE).await;
            (node, answer)
        });
        join_all(asked).await
    }

    /// This node drains, unless another one does.
    fn begin_drain(&self, force: bool) -> Result<(), NodeId> {
        match self.other_drains(&self.me.node).filter(|_| !force) {
            Some(other) => Err(other),
            None => {
                self.drain.cancel();
                Ok(())
            }
        }
    }

    /// The node that drains as far as gossip tells, if it is another one than this.
    fn other_drains(&self, node: &NodeId) -> Option<NodeId> {
        let view = self.view.borrow();
        let draining = view
            .nodes
            .values()
            .find(|other| other.alive && other.state == NodeState::Draining && other.member.node != *node);
        draining.map(|other| other.member.node.clone())
    }

    /// Who tried to join lately and may not.
    fn refused(&self) -> Vec<RefusedNode> {
        let now_ms = clock::mono_ms();
        let refused = self.mesh.refused().into_iter().map(|(node, refused)| RefusedNode {
            node,
            for_s: now_ms.saturating_sub(refused.since_ms) / 1_000,
            why: refused.why,
        });
        refused.collect()
    }

    /// Who lives, and has not been named by a map for long.
    fn outside(&self) -> Vec<OutsideNode> {
        let (picture, now_ms) = (self.pictures.borrow().clone(), clock::mono_ms());
        let for_ms = |outside: &Outside| now_ms.saturating_sub(outside.since_ms);
        let lasting = picture.outside.iter().filter(|(_, outside)| for_ms(outside) >= OUTSIDE_WARNING_MS);
        let told = lasting.map(|(node, outside)| OutsideNode {
            member: Member { node: node.clone(), generation: outside.generation },
            for_s: for_ms(outside) / 1_000,
            is_allotted: picture.generation(node) == Some(outside.generation),
        });
        told.collect()
    }

    /// Tells the metrics how many nodes are refused, have other keys, or are not taken in.
    pub(super) fn count_strangers(&self, metrics: &PeerMetrics) {
        metrics.nodes_outside.set(self.outside().len() as i64);
        metrics.refused_nodes.set(self.mesh.refused().len() as i64);
        metrics.other_keyrings.set(self.mesh.with_other_keys().len() as i64);
    }

    /// Sends the probes out, and looks at what came back of the last ones.
    pub(super) fn probe(&self) {
        let peers = living_peers(&self.view.borrow().clone());
        self.deaf.store(!peers.is_empty() && self.probes.is_deaf(&peers), Ordering::Relaxed);
        for peer in peers {
            let frame =
                PeerFrame::Probe { origin: self.me.clone(), nonce: clock::mono_ms(), wall_ms: clock::wall_ms() };
            let _ = self.mesh.send(&peer, 0, &frame);
        }
    }
}

#[async_trait]
impl ClusterControl for Control {
    async fn list_groups(&self, after: &str, limit: u32) -> GroupPage {
        let view = self.view.borrow().clone();
        let holders: BTreeSet<NodeId> = self
            .router
            .map()
            .into_iter()
            .flat_map(|map| map.slots.iter().map(|slot| slot.primary.node.clone()).collect::<BTreeSet<_>>())
            .collect();
        let here = self.slots.groups(after, limit as usize + 1);
        let is_alive = |node: &NodeId| view.nodes.get(node).is_some_and(|node| node.alive);
        let others = holders.into_iter().filter(|node| *node != self.me.node);
        let (living, dead): (Vec<_>, Vec<_>) = others.partition(is_alive);
        let request = NodeRequest::ListGroups { after: after.to_owned(), limit };
        let (mut groups, others) = tokio::join!(here, self.ask_each(living, &request));
        let (mut more, mut missing_nodes) = (false, dead);
        for (node, answer) in others {
            match answer {
                Some(NodeAnswer::Groups { groups: theirs, more: theirs_more }) => {
                    groups.extend(theirs);
                    more |= theirs_more;
                }
                _ => missing_nodes.push(node),
            }
        }
        missing_nodes.sort();
        groups.sort_by(|a, b| a.group.cmp(&b.group));
        // A slot that moved meanwhile may have been told of twice.
        groups.dedup_by(|a, b| a.group == b.group);
        more |= groups.len() > limit as usize;
        groups.truncate(limit as usize);
        GroupPage { groups, more, missing_nodes }
    }

    async fn disconnect(&self, whom: Whom, farewell: Farewell) -> Disconnected {
        let here = self.attachments.disconnect(&whom, &farewell) as u64;
        let mut done = Disconnected { clients: here, missing_nodes: Vec::new() };
        let living = living_peers(&self.view.borrow().clone());
        for (node, answer) in self.ask_each(living, &NodeRequest::Disconnect { whom, farewell }).await {
            match answer {
                Some(NodeAnswer::Disconnected { clients }) => done.clients += clients,
                _ => done.missing_nodes.push(node),
            }
        }
        done
    }

    async fn send(&self, node: &NodeId, (session, client): (SessionId, ClientId), data: Bytes) -> Option<bool> {
        if *node == self.me.node {
            return Some(self.attachments.tell(session, &client, &Event::Direct { data }));
        }
        match self.router.ask_node(node, NodeRequest::Send { session, client, data }, ASK_DEADLINE).await {
            Some(NodeAnswer::Done) => Some(true),
            Some(NodeAnswer::NotHere) => Some(false),
            _ => None,
        }
    }

    async fn drain(&self, node: &NodeId, force: bool) -> Result<(), NotDrained> {
        if *node == self.me.node {
            return self.begin_drain(force).map_err(NotDrained::OtherDrains);
        }
        if let Some(other) = self.other_drains(node).filter(|_| !force) {
            return Err(NotDrained::OtherDrains(other));
        }
        if !living_peers(&self.view.borrow().clone()).contains(node) {
            return Err(NotDrained::Failed(format!("{node} is not among the live nodes: see /v1/cluster/nodes")));
        }
        // It looks again by itself: what this node has heard may be older.
        match self.router.ask_node(node, NodeRequest::Drain { force }, ASK_DEADLINE).await {
            Some(NodeAnswer::Done) => Ok(()),
            Some(NodeAnswer::OtherDrains { node: other }) => Err(match NodeId::parse(&other) {
                Ok(other) => NotDrained::OtherDrains(other),
                Err(error) => NotDrained::Failed(error),
            }),
            Some(NodeAnswer::Refused(reason)) => Err(NotDrained::Failed(reason)),
            _ => Err(NotDrained::Failed(format!("{node} did not answer: try again"))),
        }
    }

    async fn forget(&self, node: &NodeId) -> Result<(), String> {
        // Whoever is steward carries it out; every live node is told, as any may be next.
        let request = NodeRequest::Forget { node: node.to_string() };
        let living = living_peers(&self.view.borrow().clone());
        let (here, _) = tokio::join!(self.steward.forget(node), self.ask_each(living, &request));
        here
    }

    fn ready(&self) -> Result<(), String> {
        let map = self.router.map();
        health::ready(map.as_deref(), &self.view.borrow(), &self.facts())
    }

    fn facts(&self) -> LocalFacts {
        let left_ms = self.certificate_expires_ms as i64 - clock::wall_ms() as i64;
        LocalFacts {
            copies: self.copies,
            certificate_days_left: Some(left_ms / 86_400_000),
            http_certificate: self.http_certificate.as_ref().and_then(|shown| shown.borrow().end_is_near()),
            lag_limit_ms: LAG_LIMIT_MS,
            deaf: self.deaf.load(Ordering::Relaxed),
            clock: self.clocks.view(),
            refused: self.refused(),
            other_keys: self.mesh.with_other_keys(),
            outside: self.outside(),
        }
    }
}
