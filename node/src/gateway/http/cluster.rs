//! The cluster: its nodes, its map, its health; draining and forgetting a node.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{RawQuery, State},
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use super::{
    api::{Api, NotDrained},
    error::{ApiError, ErrorBody, loc},
    extract::{InPath, Query},
    route::Route,
};
use crate::{
    cluster::health::{Health, NodeHealth, report},
    id::{Member, NodeId, SlotId},
    logic::map::ClusterMap,
    wire::reason::Reason,
};

pub(super) fn table() -> Vec<Route> {
    vec![
        Route::keyed(Method::GET, "/v1/cluster/nodes", nodes),
        Route::keyed(Method::GET, "/v1/cluster/map", map),
        Route::open(Method::GET, "/v1/cluster/health", health),
        Route::keyed(Method::POST, "/v1/cluster/nodes/{node}/drain", drain),
        Route::keyed(Method::DELETE, "/v1/cluster/nodes/{node}", forget),
    ]
}

/// The nodes.
#[derive(Debug, Serialize, ToSchema)]
pub struct Nodes {
    /// Every node of the map and every one heard of lately, by name.
    nodes: Vec<NodeHealth>,
}

/// The cluster map, slots with the same holders together.
#[derive(Debug, Serialize, ToSchema)]
pub struct MapView {
    /// Grows by one at every change.
    version: u64,
    /// The generation of each member, by name.
    #[schema(value_type = BTreeMap<String, u64>)]
    members: BTreeMap<NodeId, u64>,
    /// How many slots there are.
    slots: u16,
    /// Who holds what.
    assignments: Vec<Assignment>,
}

/// Slots with the same holders.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Assignment {
    /// Who orders their messages: name and generation.
    #[schema(value_type = String, example = "n1#3")]
    primary: String,
    /// Who else holds every message.
    replicas: Vec<String>,
    /// Who is catching up.
    learner: Option<String>,
    /// How many slots these are.
    count: usize,
    /// Which: ranges, both ends included.
    slots: Vec<(SlotId, SlotId)>,
}

/// A node that was told to drain.
#[derive(Debug, Serialize, ToSchema)]
pub struct Draining {
    /// Its name.
    #[schema(value_type = String)]
    node: NodeId,
    /// What it is doing now.
    #[schema(value_type = String, example = "draining")]
    state: &'static str,
}

/// Lists the nodes.
#[utoipa::path(get, path = "/v1/cluster/nodes", tag = "cluster", responses((status = 200, description = "The nodes", body = Nodes)))]
async fn nodes(State(api): State<Arc<Api>>) -> Json<Nodes> {
    Json(Nodes { nodes: report_of(&api).nodes })
}

/// Reads the cluster map that this node has.
#[utoipa::path(get, path = "/v1/cluster/map", tag = "cluster",
    responses((status = 200, description = "The map", body = MapView), (status = 503, description = "No map yet", body = ErrorBody)))]
async fn map(State(api): State<Arc<Api>>) -> Result<Json<MapView>, ApiError> {
    let map = api.maps.borrow().clone();
    let Some(map) = map else {
        let msg = "this node has no cluster map yet: try again";
        return Err(ApiError::saying(Reason::Unavailable, msg));
    };
    Ok(Json(MapView {
        version: map.version,
        members: map.members.clone(),
        slots: map.slot_count(),
        assignments: assignments(&map),
    }))
}

/// The health of the whole cluster, as this node knows it by gossip and the map. Always 200: `status` says how it is.
#[utoipa::path(get, path = "/v1/cluster/health", operation_id = "cluster_health", tag = "cluster", responses((status = 200, description = "The report", body = Health)))]
async fn health(State(api): State<Arc<Api>>) -> Json<Health> {
    Json(report_of(&api))
}

/// Has a node hand over its slots and send its clients away; not while another one does, unless `force` is given.
#[utoipa::path(post, path = "/v1/cluster/nodes/{node}/drain", tag = "cluster", params(("node" = String, Path, description = "The node", example = "n2"), ("force" = Option<bool>, Query, description = "Also while another node drains")),
    responses((status = 202, description = "It drains", body = Draining), (status = 404, description = "No such node", body = ErrorBody), (status = 409, description = "It is not there to drain, or another node drains", body = ErrorBody)))]
async fn drain(
    State(api): State<Arc<Api>>,
    InPath(node): InPath<NodeId>,
    RawQuery(raw): RawQuery,
) -> Result<Response, ApiError> {
    let mut query = Query::read(raw.as_deref(), &["force"]);
    let flag = |text: &str| text.parse().map_err(|_| "must be true or false".to_owned());
    let force = query.parsed("force", flag).unwrap_or(false);
    query.done()?;
    if !is_known(&api, &node)? {
        let msg = format!("{node} is not heard, so it cannot be told to drain: its slots are taken over without that");
        return Err(ApiError::at(Reason::NodeDead, loc!["path", "node"], msg));
    }
    api.control.drain(&node, force).await.map_err(|why| match why {
        NotDrained::OtherDrains(other) => {
            let msg = format!("{other} drains, and slots would move twice: wait until it has gone, or use force");
            ApiError::at(Reason::NodeDraining, loc!["path", "node"], msg)
        }
        NotDrained::Failed(reason) => refused(reason),
    })?;
    Ok((StatusCode::ACCEPTED, Json(Draining { node, state: "draining" })).into_response())
}

/// Counts a dead node's present start as lost for good, with all that only it held: its slots start again, and the clients of
/// their groups get a `reset`.
#[utoipa::path(delete, path = "/v1/cluster/nodes/{node}", tag = "cluster", params(("node" = String, Path, description = "The node", example = "n3")),
    responses((status = 204, description = "It counts as lost"), (status = 404, description = "No such node", body = ErrorBody), (status = 409, description = "It is alive", body = ErrorBody)))]
async fn forget(State(api): State<Arc<Api>>, InPath(node): InPath<NodeId>) -> Result<StatusCode, ApiError> {
    if is_known(&api, &node)? {
        let msg = format!("{node} is alive: drain it and stop it first");
        return Err(ApiError::at(Reason::NodeAlive, loc!["path", "node"], msg));
    }
    api.control.forget(&node).await.map_err(refused)?;
    Ok(StatusCode::NO_CONTENT)
}

/// The report, from what this node has at hand.
pub(super) fn report_of(api: &Api) -> Health {
    let map = api.maps.borrow().clone();
    let view = api.view.borrow().clone();
    report(map.as_deref(), &view, &api.control.facts())
}

/// Whether the node is alive; refused where nobody has heard of it.
fn is_known(api: &Api, node: &NodeId) -> Result<bool, ApiError> {
    let alive = api.view.borrow().nodes.get(node).map(|seen| seen.alive);
    let in_map = api.maps.borrow().as_ref().is_some_and(|map| map.members.contains_key(node));
    match alive {
        Some(alive) => Ok(alive),
        None if in_map => Ok(false),
        None => {
            let msg = Reason::NoNode.row().words;
            Err(ApiError::at(Reason::NoNode, loc!["path", "node"], msg))
        }
    }
}

fn refused(reason: String) -> ApiError {
    ApiError::saying(Reason::Refused, reason)
}

fn assignments(map: &ClusterMap) -> Vec<Assignment> {
    type Holders<'a> = (&'a Member, Vec<&'a Member>, Option<&'a Member>);
    let mut together: BTreeMap<Holders<'_>, Vec<(SlotId, SlotId)>> = BTreeMap::new();
    for (number, slot) in (0..).zip(&map.slots) {
        let replicas = slot.in_sync.iter().filter(|member| **member != slot.primary).collect();
        let ranges = together.entry((&slot.primary, replicas, slot.learner.as_ref())).or_default();
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    together
        .into_iter()
        .map(|((primary, replicas, learner), slots)| Assignment {
            primary: primary.to_string(),
            replicas: replicas.into_iter().map(Member::to_string).collect(),
            learner: learner.map(Member::to_string),
            count: slots.iter().map(|(first, last)| usize::from(last - first) + 1).sum(),
            slots,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_with_the_same_holders_stand_together() {
        let member = |name: &str| Member { node: NodeId::parse(name).unwrap(), generation: 1 };
        let mut map = ClusterMap::first(&member("a"), 8);
        for slot in [2, 3, 7] {
            map.slots[slot].primary = member("b");
            map.slots[slot].in_sync = vec![member("a"), member("b")];
        }
        let of = |primary: &str, replicas: &[&str], count, slots: &[(SlotId, SlotId)]| Assignment {
            primary: primary.to_owned(),
            replicas: replicas.iter().map(|name| (*name).to_owned()).collect(),
            learner: None,
            count,
            slots: slots.to_vec(),
        };
        assert_eq!(
            assignments(&map),
            [of("a#1", &[], 5, &[(0, 1), (4, 6)]), of("b#1", &["a#1"], 3, &[(2, 3), (7, 7)]),]
        );
    }
}
