//! The composition root: builds one node in the order of what needs what, and is the only file that knows all parts.

mod belonging;
mod build;
mod control;
mod departures;
mod dispatch;
mod ground;
mod hints;
mod lateness;
mod pressure;
mod probe;
mod report;
mod spread;
#[cfg(test)]
mod tests;

use std::{net::SocketAddr, time::Duration};

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

pub use self::ground::{NodeInputs, StartError};
use self::{
    build::{Built, Running},
    ground::Ground,
};
use crate::{
    clock,
    cluster::view::NodeState,
    id::{Member, NodeId},
    logic::map::ClusterMap,
};

/// The time that tasks have to end after a stop.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Slots that cannot be handed over (no other node takes them) hold a drain up no longer than this.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);
const DRAIN_LOOK: Duration = Duration::from_millis(50);
/// The last requests over HTTP are answered within this, or the drain ends without.
const DRAIN_ANSWERS: Duration = Duration::from_secs(10);
/// Clients that a draining node sends away per second.
const DRAIN_PER_S: u32 = 2_000;
/// Each comes back at a time of its own within this.
const DRAIN_SPREAD: Duration = Duration::from_secs(2);

/// A running node.
#[expect(missing_debug_implementations, reason = "holds everything")]
pub struct Node(Running);

impl Node {
    /// Starts a node. It serves at once; its slots come as the cluster gives them.
    ///
    /// Boxed, so that the node's code is compiled once, and not again in each program and test that starts one.
    pub fn start(inputs: NodeInputs) -> BoxFuture<'static, Result<Self, StartError>> {
        Box::pin(Self::start_here(inputs))
    }

    async fn start_here(inputs: NodeInputs) -> Result<Self, StartError> {
        let built = Built::on(Ground::lay(inputs).await?);
        match built.look_around().await {
            Ok(()) => Ok(Self(built.serve())),
            Err(reason) => {
                Self(built.running).shut_down_here().await;
                Err(StartError::Misfit(reason))
            }
        }
    }

    /// This process.
    pub fn member(&self) -> &Member {
        &self.0.me
    }

    /// Where clients and the API are served.
    pub fn http(&self) -> SocketAddr {
        self.0.http
    }

    /// Where the other nodes reach this one.
    pub fn peer(&self) -> SocketAddr {
        self.0.peer
    }

    /// Is cancelled when the node cannot go on; the log says why.
    pub fn failed(&self) -> &CancellationToken {
        self.0.tasks.fatal()
    }

    /// Is cancelled when someone has asked this node to drain, over HTTP. Whoever runs the node carries it out.
    pub fn drain_asked(&self) -> &CancellationToken {
        &self.0.drain
    }

    /// Not ready any more; hands its slots over, then sends its clients to the other nodes, and answers the last requests
    /// over HTTP, each of which is told from the beginning to go elsewhere. Returns when that is done.
    pub fn drain(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.drain_here())
    }

    async fn drain_here(&self) {
        self.0.gossip.set(|own| own.state = NodeState::Draining);
        self.0.gateway.admission.close();
        self.0.door.leave();
        let view = self.0.gossip.view();
        let someone_takes_them = || {
            let view = view.borrow();
            view.nodes.values().any(|node| node.alive && node.state == NodeState::Serving && node.member != self.0.me)
        };
        let holds_slots = || self.0.maps.current().is_some_and(|map| slots_held(&map, &self.0.me.node) > 0);
        let until = clock::deadline(DRAIN_LIMIT);
        while holds_slots() && someone_takes_them() && clock::deadline(Duration::ZERO) < until {
            tokio::time::sleep(DRAIN_LOOK).await;
        }
        if holds_slots() {
            tracing::warn!(
                "some slots could not be handed over: they are taken over, where there are copies, when this node is gone"
            );
        }
        self.0.gateway.drain(DRAIN_PER_S, DRAIN_SPREAD).await;
        self.0.door.shut(DRAIN_ANSWERS).await;
    }

    /// Ends the node: peers are told, tasks awaited.
    pub fn shut_down(self) -> BoxFuture<'static, ()> {
        Box::pin(self.shut_down_here())
    }

    async fn shut_down_here(self) {
        self.0.steward.retire();
        self.0.mesh.shut_down().await;
        if !self.0.tasks.shut_down(STOP_LIMIT).await {
            tracing::warn!("some tasks did not end in time");
        }
    }

    /// Ends the node's part in the mesh without a word, as a crash would. What it runs in has to be dropped by the caller.
    pub fn abort(&self) {
        self.0.mesh.abort();
    }
}

/// How many slots of the map this node still has a part in.
fn slots_held(map: &ClusterMap, node: &NodeId) -> usize {
    map.slots.iter().filter(|slot| slot.in_sync.iter().any(|member| member.node == *node)).count()
}
