//! Reading groups: history, who is there, what there is.

use std::sync::Arc;

use axum::{
    Json,
    extract::{RawQuery, State},
    http::Method,
};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use xxhash_rust::xxh3::xxh3_64;

use super::{
    api::Api,
    error::{ApiError, ErrorBody, loc},
    extract::{InPath, Query, session_id},
    messages::raw,
    route::Route,
};
use crate::{
    cluster::view::ClusterView,
    gateway::service::By,
    id::{Epoch, GroupName, NUMBER_MAX, NodeId, Position, SessionId},
    logic::{
        entry::{Message, Present},
        request::{self, GroupInfo, PresentSession},
    },
    wire::{command::ReadFrom, reason::Reason},
};

pub(super) fn table() -> Vec<Route> {
    vec![
        Route::keyed(Method::GET, "/v1/groups", list),
        Route::keyed(Method::GET, "/v1/groups/{group}", info),
        Route::keyed(Method::GET, "/v1/groups/{group}/messages", history),
        Route::keyed(Method::GET, "/v1/groups/{group}/members", members),
        Route::keyed(Method::GET, "/v1/groups/{group}/presence", presence),
    ]
}

/// A page of a group's messages.
#[derive(Debug, Serialize, ToSchema)]
pub struct History {
    /// The group's log; null where there is no such group.
    #[schema(example = "0f3a9c1b2d4e5f60")]
    epoch: Option<String>,
    /// The offset of its last message; 0 where there is none.
    head: u64,
    /// No message between the asked position and the first one here is missing.
    complete: bool,
    /// Oldest first. For the next page ask since the last one's offset; the last page ends at `head`.
    messages: Vec<OneMessage>,
}

/// A message.
#[derive(Debug, Serialize, ToSchema)]
pub struct OneMessage {
    /// Its number in its log.
    offset: u64,
    /// As it was published.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// The client that published it; absent for the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<From>,
    /// When it was ordered, in milliseconds since 1970.
    at_ms: u64,
}

/// Who published.
#[derive(Debug, Serialize, ToSchema)]
pub struct From {
    /// The session.
    #[schema(value_type = String)]
    session: SessionId,
    /// Its user.
    user: String,
}

/// A page of those who are present.
#[derive(Debug, Serialize, ToSchema)]
pub struct MemberPage {
    /// By session.
    members: Vec<GroupMember>,
    /// `after` for the next page; null at the end.
    #[schema(value_type = Option<String>)]
    next: Option<SessionId>,
}

/// How many are present.
#[derive(Debug, Serialize, ToSchema)]
pub struct GroupPresence {
    /// Sessions.
    sessions: u64,
    /// Clients of these.
    clients: u64,
    /// Different users of these sessions.
    users: u64,
    /// Sessions without a user.
    anonymous: u64,
}

/// Someone present.
#[derive(Debug, Serialize, ToSchema)]
pub struct GroupMember {
    /// The session.
    #[schema(value_type = String)]
    session: SessionId,
    /// Its user.
    user: String,
    /// The session's attributes.
    #[schema(value_type = Object)]
    info: Box<RawValue>,
    /// How many clients of the session are in the group.
    clients: u32,
}

/// A group.
#[derive(Debug, Serialize, ToSchema)]
pub struct OneGroup {
    /// Its name.
    #[schema(value_type = String)]
    group: GroupName,
    /// Its log.
    #[schema(example = "0f3a9c1b2d4e5f60")]
    epoch: String,
    /// The offset of its last message.
    head: u64,
    /// How many messages are kept.
    kept: u64,
    /// How many sessions are present.
    members: u64,
    /// How many clients of these are.
    clients: u64,
    /// Which nodes have subscribers of it connected, and about how many: from gossip, a few seconds old.
    nodes: Vec<Subscribers>,
    /// No node has too many groups to tell them all, so that `nodes` is not missing any.
    nodes_complete: bool,
}

/// A group in a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct GroupSummary {
    /// Its name.
    #[schema(value_type = String)]
    group: GroupName,
    /// Its log.
    #[schema(example = "0f3a9c1b2d4e5f60")]
    epoch: String,
    /// The offset of its last message.
    head: u64,
    /// How many messages are kept.
    kept: u64,
    /// How many sessions are present.
    members: u64,
    /// How many clients of these are.
    clients: u64,
}

/// Subscribers of a group on a node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Subscribers {
    /// The node.
    #[schema(value_type = String)]
    node: NodeId,
    /// About how many.
    subscribers: u32,
}

/// A page of groups.
#[derive(Debug, Serialize, ToSchema)]
pub struct GroupList {
    /// By name.
    groups: Vec<GroupSummary>,
    /// `after` for the next page; null at the end.
    #[schema(value_type = Option<String>)]
    next: Option<GroupName>,
    /// Nodes that did not answer in time: groups of theirs may be missing.
    #[schema(value_type = Vec<String>)]
    missing_nodes: Vec<NodeId>,
}

/// Lists all groups, by name.
#[utoipa::path(get, path = "/v1/groups", tag = "groups", params(("after" = Option<String>, Query, description = "`next` of the page before"), ("limit" = Option<u32>, Query, description = "1 to 1,000; 100 unless given")),
    responses((status = 200, description = "A page", body = GroupList)))]
async fn list(State(api): State<Arc<Api>>, RawQuery(raw): RawQuery) -> Result<Json<GroupList>, ApiError> {
    let mut query = Query::read(raw.as_deref(), &["after", "limit"]);
    let after = query.parsed("after", GroupName::parse);
    let limit = query.limit();
    query.done()?;
    let page = api.control.list_groups(after.as_ref().map_or("", GroupName::as_str), limit).await;
    let next = page.groups.last().map(|last| last.group.clone()).filter(|_| page.more);
    Ok(Json(GroupList {
        groups: page.groups.into_iter().map(summary).collect(),
        next,
        missing_nodes: page.missing_nodes,
    }))
}

/// Reads about a group.
#[utoipa::path(get, path = "/v1/groups/{group}", tag = "groups", params(("group" = String, Path, description = "The group", example = "chat:lobby")),
    responses((status = 200, description = "The group", body = OneGroup), (status = 404, description = "No such group: nobody is in it and no message is kept", body = ErrorBody)))]
async fn info(State(api): State<Arc<Api>>, InPath(group): InPath<GroupName>) -> Result<Json<OneGroup>, ApiError> {
    let found = api.service.group(&group).await.map_err(|refused| match refused.reason {
        Reason::NoGroup => ApiError::at(Reason::NoGroup, loc!["path", "group"], &refused.words),
        _ => refused.into(),
    })?;
    let (nodes, nodes_complete) = subscribers(&api.view.borrow(), &group);
    let GroupSummary { group, epoch, head, kept, members, clients } = summary(found);
    Ok(Json(OneGroup { group, epoch, head, kept, members, clients, nodes, nodes_complete }))
}

/// Reads a group's messages, oldest first.
#[utoipa::path(get, path = "/v1/groups/{group}/messages", tag = "messages",
    params(("group" = String, Path, description = "The group", example = "chat:lobby"), ("since_epoch" = Option<String>, Query, description = "After this position: the log, with `since_offset`. From the oldest kept unless given"), ("since_offset" = Option<u64>, Query, description = "The offset of the last message seen"), ("limit" = Option<u32>, Query, description = "1 to 1,000; 100 unless given")),
    responses((status = 200, description = "A page; empty where there is no such group", body = History)))]
async fn history(
    State(api): State<Arc<Api>>,
    InPath(group): InPath<GroupName>,
    RawQuery(raw): RawQuery,
) -> Result<Json<History>, ApiError> {
    let mut query = Query::read(raw.as_deref(), &["since_epoch", "since_offset", "limit"]);
    let limit = query.limit();
    let epoch = query.parsed("since_epoch", Epoch::parse);
    let offset = query.number("since_offset", 0..=NUMBER_MAX);
    match (query.has("since_epoch"), query.has("since_offset")) {
        (true, false) => query.problem("since_offset", "missing", "`since_epoch` is of use only with `since_offset`"),
        (false, true) => {
            query.problem("since_epoch", "missing", "an offset counts in one epoch: give `since_epoch` too");
        }
        _ => {}
    }
    query.done()?;
    let since = epoch.zip(offset).map(|(epoch, offset)| Position { epoch, offset });
    let from = since.map_or(ReadFrom::Oldest, ReadFrom::After);
    let request::History { position, complete, messages } =
        api.service.history(&By::Server, &group, from, limit).await?;
    Ok(Json(History {
        epoch: position.map(|position| position.epoch.to_string()),
        head: position.map_or(0, |position| position.offset),
        complete,
        messages: messages.into_iter().map(message).collect::<Result<_, _>>()?,
    }))
}

/// Lists who is present in a group, by session.
#[utoipa::path(get, path = "/v1/groups/{group}/members", tag = "groups", params(("group" = String, Path, description = "The group", example = "chat:lobby"), ("after" = Option<String>, Query, description = "`next` of the page before"), ("limit" = Option<u32>, Query, description = "1 to 1,000; 100 unless given")),
    responses((status = 200, description = "A page; empty where there is no such group", body = MemberPage)))]
async fn members(
    State(api): State<Arc<Api>>,
    InPath(group): InPath<GroupName>,
    RawQuery(query): RawQuery,
) -> Result<Json<MemberPage>, ApiError> {
    let mut query = Query::read(query.as_deref(), &["after", "limit"]);
    let after = query.parsed("after", session_id);
    let limit = query.limit();
    query.done()?;
    let request::MemberPage { members, more } = api.service.members(&By::Server, &group, after, limit).await?;
    let next = members.last().map(|last| last.member.session).filter(|_| more);
    Ok(Json(MemberPage { members: members.into_iter().map(member).collect::<Result<_, _>>()?, next }))
}

/// Says how many are present in a group, without a list: it takes no longer in a large group.
#[utoipa::path(get, path = "/v1/groups/{group}/presence", tag = "groups", params(("group" = String, Path, description = "The group", example = "chat:lobby")),
    responses((status = 200, description = "How many; none where there is no such group, or its namespace keeps no presence", body = GroupPresence)))]
async fn presence(
    State(api): State<Arc<Api>>,
    InPath(group): InPath<GroupName>,
) -> Result<Json<GroupPresence>, ApiError> {
    let Present { sessions, clients, users, anonymous } = api.service.present(&group).await?;
    Ok(Json(GroupPresence { sessions, clients, users, anonymous }))
}

fn summary(info: GroupInfo) -> GroupSummary {
    let GroupInfo { group, epoch, head, kept, present: Present { sessions: members, clients, .. } } = info;
    GroupSummary { group, epoch: epoch.to_string(), head, kept, members, clients }
}

fn message(message: Message) -> Result<OneMessage, ApiError> {
    Ok(OneMessage {
        offset: message.offset,
        data: raw(&message.data)?,
        from: message.from.map(|from| From { session: from.session, user: from.user.as_ref().to_owned() }),
        at_ms: message.at_ms,
    })
}

fn member(PresentSession { member, clients }: PresentSession) -> Result<GroupMember, ApiError> {
    Ok(GroupMember {
        session: member.session,
        user: member.user.as_ref().to_owned(),
        info: raw(&member.info)?,
        clients,
    })
}

/// Where gossip says that a group's subscribers are.
fn subscribers(view: &ClusterView, group: &GroupName) -> (Vec<Subscribers>, bool) {
    // Gossip carries the low half of the hash.
    let hash = xxh3_64(group.as_str().as_bytes()) as u32;
    let (mut nodes, mut complete) = (Vec::new(), true);
    for (node, seen) in view.nodes.iter().filter(|(_, seen)| seen.alive) {
        let found = seen.groups.values().find_map(|bucket| {
            let at = bucket.groups.binary_search_by_key(&hash, |(hash, _)| *hash).ok()?;
            Some(bucket.groups[at].1)
        });
        match found {
            Some(subscribers) => nodes.push(Subscribers { node: node.clone(), subscribers }),
            None => complete &= seen.groups.values().all(|bucket| bucket.complete),
        }
    }
    (nodes, complete)
}
