//! A node in its role towards the clients connected to it.

pub mod ask;
pub mod client;
pub mod door;
pub mod http;
pub mod hub;
pub mod jwt;
pub mod service;

use std::{fmt, sync::Arc, time::Duration};

use crate::{config::Config, id::NodeId, memory::Ledger, metrics::Metrics, tasks::Tasks, token::Keyring};
use client::{allowances::Allowances, attachments::Attachments, connections::Connections, replays::Replays};
use door::admission::Admission;
use hub::Hub;
use jwt::Jwts;
use service::Service;

/// What every connection works with; one for each node.
pub struct Gateway {
    /// This node's name, for `welcome`.
    pub node: NodeId,
    /// This node's configuration.
    pub config: Arc<Config>,
    /// What is done for clients as for backends.
    pub service: Service,
    /// Delivers to the connections.
    pub hub: Hub,
    /// Which session is attached to which connection.
    pub attachments: Attachments,
    /// Checks tokens, signs those of new sessions.
    pub keyring: Arc<Keyring>,
    /// Verifies tokens that backends make themselves.
    pub jwts: Arc<Jwts>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Where connections run.
    pub tasks: Tasks,
    /// Who may connect.
    pub admission: Arc<Admission>,
    /// What clients make this node hold.
    pub ledger: Arc<Ledger>,
    /// What each client may make the cluster hold.
    pub allowances: Allowances,
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
    /// Pings the connections that are silent, closes those that have been so for too long, and tells those whose token expires soon, for
    /// as long as the node runs.
    /// One look at all of them now and then, so that a connection at rest has no timer of its own.
    pub async fn look_after_silent(self: Arc<Self>) {
        let limits = &self.config.limits;
        let (heartbeat_ms, idle_ms) = (limits.heartbeat_s.saturating_mul(1_000), limits.idle_s.saturating_mul(1_000));
        let look_every = Duration::from_millis((heartbeat_ms / 4).min(idle_ms / 16).clamp(50, 5_000));
        loop {
            tokio::time::sleep(look_every).await;
            self.connections.ping_silent(limits, &self.metrics).await;
            self.connections.close_idle(limits, &self.metrics);
            self.connections.tell_expiring();
            self.allowances.tidy();
        }
    }

    /// Sends all clients away, at a rate per second, and takes no new ones. Each is told to come back after a time of its own
    /// within `spread`, so that they don't all come at once. Returns when all have been told.
    pub async fn drain(&self, per_second: u32, spread: Duration) {
        self.admission.close();
        self.connections.drain(per_second, spread).await;
    }
}

/// Everything that is served over HTTP: the API, the clients' WebSocket and the readers' events.
pub fn routes(gateway: Arc<Gateway>, api: http::api::Api) -> axum::Router {
    let config = gateway.config.clone();
    // A WebSocket's origin is looked at by its own rules.
    let sockets = axum::Router::new().route("/ws", axum::routing::get(client::ws)).with_state(gateway.clone());
    let readers = axum::Router::new()
        .route("/v1/groups/{group}/events", axum::routing::get(client::events::of_group))
        .route("/v1/events", axum::routing::get(client::events::of_groups))
        .with_state(gateway);
    let routes = http::for_pages_of(&config.session.allowed_origins, http::routes(Arc::new(api)).merge(readers));
    routes.merge(sockets).layer(axum::middleware::from_fn(http::names_its_host))
}
