//! A node in its role towards the clients connected to it.

pub mod client;
pub mod door;
pub mod http;
pub mod hub;
pub mod publish_key;

use std::{fmt, sync::Arc, time::Duration};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    config::Config,
    id::{GroupName, NodeId, SessionId, SlotId},
    logic::{
        map::SharedMap,
        request::{Ask, AskGroup, AskSession, SlotError},
    },
    metrics::Metrics,
    router::Router,
    tasks::Tasks,
    token::Keyring,
};
use client::{connections::Connections, replays::Replays, socket};
use door::admission::Admission;
use hub::Hub;

/// What every connection works with; one for each node.
pub struct Gateway {
    /// This node's name, for `welcome`.
    pub node: NodeId,
    /// This node's configuration.
    pub config: Arc<Config>,
    /// Brings requests to the slots' primaries.
    pub router: Router,
    /// Delivers to the connections.
    pub hub: Hub,
    /// Checks tokens, signs those of new sessions.
    pub keyring: Arc<Keyring>,
    /// The newest map that this node has.
    pub maps: watch::Receiver<Option<SharedMap>>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where connections run.
    pub tasks: Tasks,
    /// Who may connect.
    pub admission: Arc<Admission>,
    /// What replays may take.
    pub replays: Replays,
    /// Who is connected.
    pub connections: Arc<Connections>,
}

impl fmt::Debug for Gateway {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gateway").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Gateway {
    /// The map knows how many there really are; the configuration only how many a new cluster gets.
    pub fn slots(&self) -> u16 {
        self.maps.borrow().as_ref().map_or(self.config.cluster.slots, |map| map.slot_count())
    }

    /// Asks the primary of a group's slot, within the configured deadline.
    pub async fn ask_group<R: AskGroup>(&self, group: &GroupName, request: R) -> Result<R::Answer, SlotError> {
        self.ask(group.slot(self.slots()), (group.clone(), request), None).await
    }

    /// Asks the primary of a session's slot, within the configured deadline.
    pub async fn ask_session<R: AskSession>(&self, session: SessionId, request: R) -> Result<R::Answer, SlotError> {
        self.ask(session.slot(self.slots()), (session, request), None).await
    }

    /// The same, but nothing is tried again once the token is cancelled.
    async fn ask_session_while<R: AskSession>(
        &self,
        session: SessionId,
        request: R,
        over: &CancellationToken,
    ) -> Result<R::Answer, SlotError> {
        self.ask(session.slot(self.slots()), (session, request), Some(over)).await
    }

    async fn ask<R: Ask>(
        &self,
        slot: SlotId,
        request: R,
        over: Option<&CancellationToken>,
    ) -> Result<R::Answer, SlotError> {
        let asked_us = clock::mono_us();
        let limit = Duration::from_millis(self.config.limits.request_ms);
        let answer = self.router.call(slot, request, limit, over).await;
        self.metrics.request_seconds.observe(Duration::from_micros(clock::mono_us() - asked_us).as_secs_f64());
        if matches!(answer, Err(SlotError::Unknown)) {
            self.metrics.limit_hit(crate::metrics::Limit::RequestMs);
        }
        answer
    }

    /// Closes the connections that have been silent for too long, for as long as the node runs. One look at all of them
    /// now and then, so that a connection at rest has no timer of its own.
    pub async fn close_idle(self: Arc<Self>) {
        let idle_ms = self.config.limits.idle_s.saturating_mul(1_000);
        let look_every = Duration::from_millis((idle_ms / 16).clamp(50, 5_000));
        loop {
            tokio::time::sleep(look_every).await;
            self.connections.close_idle(idle_ms, &self.metrics);
        }
    }

    /// Sends all clients away, so many a second, and takes no new ones. Each is told to come back after a time of its own
    /// within `spread`, so that they don't all come at once. Returns when all have been told.
    pub async fn drain(&self, per_second: u32, spread: Duration) {
        self.admission.close();
        self.connections.drain(per_second, spread).await;
    }
}

/// Everything that is served over HTTP: the API and the clients' WebSocket.
pub fn routes(gateway: Arc<Gateway>, api: http::Api) -> axum::Router {
    let sockets = axum::Router::new().route("/ws", axum::routing::get(socket::ws)).with_state(gateway);
    http::routes(Arc::new(api)).merge(sockets)
}
