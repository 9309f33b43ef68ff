//! HTTP: what backends call under `/v1`, what probes and balancers ask, and the documents. Every route stands in one
//! table, and a test holds the table and the OpenAPI document to each other.
//!
//! Nothing here keeps state: a call is checked, asked of the primary of its slot through [`Service`], and answered.

pub mod cluster;
pub mod docs;
pub mod error;
pub mod extract;
pub mod groups;
pub mod messages;
pub mod probes;
pub mod sessions;

use std::{any::Any, fmt, sync::Arc};

use async_trait::async_trait;
use axum::{
    Router as Routes,
    extract::{MatchedPath, Request, State},
    handler::Handler,
    http::{HeaderValue, Method, Uri, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{MethodFilter, MethodRouter, on},
};
use tokio::sync::watch;
use tower_http::catch_panic::CatchPanicLayer;

use self::{
    error::{ApiError, loc},
    extract::require_key,
};
use crate::{
    cluster::{health::LocalFacts, view::SharedView},
    config::Config,
    gateway::service::Service,
    id::NodeId,
    logic::{map::SharedMap, request::GroupInfo},
    metrics::Metrics,
    token::Keyring,
    wire::reason::Reason,
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
    /// Has a live node begin to drain.
    async fn drain(&self, node: &NodeId) -> Result<(), String>;
    /// Counts a dead node's present start as lost for good.
    async fn forget(&self, node: &NodeId) -> Result<(), String>;
    /// Whether clients should be sent here, or why not (`cluster::health::ready`, with what else the node knows).
    fn ready(&self) -> Result<(), String>;
    /// What only this node knows of itself.
    fn facts(&self) -> LocalFacts;
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

/// A line of the table of routes.
pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) path: &'static str,
    /// Needs an API key.
    pub(crate) key: bool,
    handler: MethodRouter<Arc<Api>>,
}

impl Route {
    /// A route for backends, with an API key.
    fn keyed<H: Handler<T, Arc<Api>>, T: 'static>(method: Method, path: &'static str, handler: H) -> Self {
        Self::new(method, path, true, handler)
    }

    /// A route for anyone.
    fn open<H: Handler<T, Arc<Api>>, T: 'static>(method: Method, path: &'static str, handler: H) -> Self {
        Self::new(method, path, false, handler)
    }

    fn new<H: Handler<T, Arc<Api>>, T: 'static>(method: Method, path: &'static str, key: bool, handler: H) -> Self {
        let filter = MethodFilter::try_from(method.clone()).expect("the table has only methods that axum routes");
        Self { method, path, key, handler: on(filter, handler) }
    }
}

/// Every documented route.
pub(crate) fn table() -> Vec<Route> {
    [sessions::table(), messages::table(), groups::table(), cluster::table(), probes::table()]
        .into_iter()
        .flatten()
        .collect()
}

/// The whole of HTTP but the sockets, which are to be merged into this (they have no fallback of their own).
pub fn routes(api: Arc<Api>) -> Routes {
    let mut routes = Routes::new();
    for Route { path, key, handler, .. } in table() {
        let handler = if key { handler.route_layer(from_fn_with_state(api.clone(), require_key)) } else { handler };
        routes = routes.route(path, handler);
    }
    routes
        .merge(docs::pages())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(mark_answer))
        .layer(from_fn_with_state(api.clone(), count_answer))
        .with_state(api)
}

async fn no_such_path(uri: Uri) -> ApiError {
    let msg = format!("there is nothing at {}: /docs lists what there is", uri.path());
    ApiError::at(Reason::NotFound, loc!["path"], msg)
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let msg = format!("{} does not take {method}: the Allow header lists what it takes", uri.path());
    ApiError::saying(Reason::MethodNotAllowed, msg)
}

/// No answer is to be guessed at or kept by what stands between, unless its handler says otherwise.
async fn mark_answer(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Counts by the route as it is declared: a stranger must not make series.
async fn count_answer(
    State(api): State<Arc<Api>>,
    route: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    let response = next.run(request).await;
    api.metrics.http_request(route.as_ref().map_or("", MatchedPath::as_str), response.status().as_u16());
    response
}

fn panicked(_: Box<dyn Any + Send>) -> Response {
    // The panic hook has logged it.
    ApiError::internal().into_response()
}

#[cfg(test)]
mod tests;
