//! What balancers, orchestrators and monitoring ask. None of it needs a key, and none waits for another node.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    api::Api,
    cluster::report_of,
    error::{ApiError, ErrorBody},
    route::Route,
};
use crate::{
    cluster::{health::Status, view::StoreView},
    metrics::CONTENT_TYPE,
    wire::reason::Reason,
};

pub(super) fn table() -> Vec<Route> {
    vec![
        Route::open(Method::GET, "/livez", livez),
        Route::open(Method::GET, "/readyz", readyz),
        Route::open(Method::GET, "/health", health),
        Route::open(Method::GET, "/metrics", metrics),
    ]
}

/// A probe's answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct Probe {
    /// In a word.
    #[schema(value_type = String, example = "ready")]
    status: &'static str,
}

impl Probe {
    /// Of a process that answers.
    pub(super) const ALIVE: Self = Self { status: "alive" };
}

/// How this node is.
#[derive(Debug, Serialize, ToSchema)]
pub struct NodeReport {
    /// Whether to send clients here.
    status: Service,
    /// The store, as this node sees it.
    database: StoreView,
    /// The whole cluster, as this node sees it.
    cluster: Status,
    /// What was looked at.
    checks: Vec<Check>,
}

impl NodeReport {
    /// Of a node that does not serve yet, for this reason.
    pub(super) fn starting(reason: String) -> Self {
        let checks = vec![Check { name: "ready", status: CheckStatus::Fail, detail: reason }];
        Self { status: Service::Unavailable, database: StoreView::Down, cluster: Status::Red, checks }
    }
}

/// Whether to send clients to a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// Yes.
    Ok,
    /// Yes, though something is wrong that another node would not do better.
    Degraded,
    /// No.
    Unavailable,
}

/// One thing that was looked at.
#[derive(Debug, Serialize, ToSchema)]
pub struct Check {
    /// What was looked at.
    #[schema(value_type = String, example = "ready")]
    name: &'static str,
    /// How it is.
    status: CheckStatus,
    /// In words.
    detail: String,
}

/// How one thing is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CheckStatus {
    /// As it should be.
    Pass,
    /// Not as it should be, but served.
    Warn,
    /// Not served.
    Fail,
}

/// The process answers.
#[utoipa::path(get, path = "/livez", tag = "probes", responses((status = 200, description = "It lives", body = Probe)))]
async fn livez() -> Json<Probe> {
    Json(Probe::ALIVE)
}

/// Clients may be sent here; otherwise the answer says why not: starting, isolated, lagging, draining.
#[utoipa::path(get, path = "/readyz", tag = "probes",
    responses((status = 200, description = "Ready", body = Probe), (status = 503, description = "Not ready, with the reason", body = ErrorBody)))]
async fn readyz(State(api): State<Arc<Api>>) -> Result<Json<Probe>, ApiError> {
    match api.control.ready() {
        Ok(()) => Ok(Json(Probe { status: "ready" })),
        Err(reason) => Err(ApiError::saying(Reason::NotReady, reason)),
    }
}

/// For a balancer: 503 while this node is not ready. A store that is down or a cluster that is red leaves it at 200 with
/// `degraded`, since every other node has the same trouble and what can be served still is.
#[utoipa::path(get, path = "/health", tag = "probes",
    responses((status = 200, description = "Send clients", body = NodeReport), (status = 503, description = "Send none", body = NodeReport)))]
async fn health(State(api): State<Arc<Api>>) -> Response {
    let cluster = report_of(&api);
    let ready = api.control.ready();
    let me = cluster.nodes.iter().find(|node| node.node == cluster.reported_by);
    let database = me.and_then(|me| me.store).unwrap_or_default();
    let lag_ms = me.map_or(0, |me| me.load.lag_ms);
    let facts = api.control.facts();

    let mut checks = vec![match &ready {
        Ok(()) => Check { name: "ready", status: CheckStatus::Pass, detail: "takes clients".to_owned() },
        Err(reason) => Check { name: "ready", status: CheckStatus::Fail, detail: reason.clone() },
    }];
    let (status, detail) = match database {
        StoreView::Up => (CheckStatus::Pass, "answers"),
        StoreView::Slow => (CheckStatus::Warn, "answers slowly"),
        StoreView::Down => (
            CheckStatus::Fail,
            "does not answer: no new sessions and no changes of the cluster map; everything else goes on",
        ),
    };
    checks.push(Check { name: "database", status, detail: detail.to_owned() });
    let (status, detail) = match cluster.status {
        Status::Green => (CheckStatus::Pass, "green".to_owned()),
        Status::Yellow => (CheckStatus::Warn, cluster.reasons.join("; ")),
        Status::Red => (CheckStatus::Fail, cluster.reasons.join("; ")),
    };
    checks.push(Check { name: "cluster", status, detail });
    let status = if lag_ms < facts.lag_limit_ms { CheckStatus::Pass } else { CheckStatus::Fail };
    checks.push(Check { name: "event_loop", status, detail: format!("at worst {lag_ms} ms late in the last seconds") });

    let status = match (&ready, checks.iter().all(|check| check.status == CheckStatus::Pass)) {
        (Err(_), _) => Service::Unavailable,
        (Ok(()), true) => Service::Ok,
        (Ok(()), false) => Service::Degraded,
    };
    let code = if status == Service::Unavailable { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    (code, Json(NodeReport { status, database, cluster: cluster.status, checks })).into_response()
}

/// Metrics for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "probes", responses((status = 200, description = "OpenMetrics text", body = String, content_type = "application/openmetrics-text")))]
async fn metrics(State(api): State<Arc<Api>>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], api.metrics.encode()).into_response()
}
