//! Sessions: create, read, change, end; those of a user; the groups they are in.

use std::{collections::BTreeSet, num::NonZero, sync::Arc};

use axum::{
    Json,
    extract::{RawQuery, State},
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{
    api::Api,
    error::{ApiError, ErrorBody, Problem, Problems, loc},
    extract::{InPath, JsonBody, Object, Query, UserName, check_user, group_name, session_id, whole},
    route::Route,
};
use crate::{
    clock,
    config::SessionConfig,
    gateway::service::SessionsOfUser,
    id::{ClientId, GroupName, NodeId, SessionId},
    logic::{
        entry::{Grant, SessionChange, SessionRecord},
        request::{ListedClient, SessionView},
    },
    metrics::Limit,
    wire::reason::Reason,
};

/// Ten years; a session that lives longer is a mistake in the unit.
pub(in crate::gateway) const TTL_MAX_S: u64 = 10 * 366 * 24 * 3600;
/// Attributes are sent to every member of each group that the session joins.
pub(in crate::gateway) const ATTRIBUTES_MAX_BYTES: usize = 8 << 10;
pub(in crate::gateway) const GRANTS_MAX: usize = 100;
pub(in crate::gateway) const PATTERN_MAX_BYTES: usize = 200;

pub(super) fn table() -> Vec<Route> {
    vec![
        Route::keyed(Method::POST, "/v1/sessions", create),
        Route::keyed(Method::GET, "/v1/sessions/{id}", read),
        Route::keyed(Method::PATCH, "/v1/sessions/{id}", change),
        Route::keyed(Method::DELETE, "/v1/sessions/{id}", end),
        Route::keyed(Method::POST, "/v1/sessions/{id}/token", renew_token),
        Route::keyed(Method::POST, "/v1/sessions/{id}/groups", join),
        Route::keyed(Method::DELETE, "/v1/sessions/{id}/groups/{group}", leave),
        Route::keyed(Method::GET, "/v1/users/{user}/sessions", of_user),
        Route::keyed(Method::DELETE, "/v1/users/{user}/sessions", end_of_user),
    ]
}

/// A session to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "user": "alice", "ttl_s": 86400, "attributes": {"name": "Alice"}, "groups": ["chat:lobby"],
    "grants": [{"pattern": "chat:*", "join": true, "publish": true}]
}))]
pub struct NewSession {
    /// The application's name for the user: 1 to 194 bytes without control characters and others that are not seen.
    user: String,
    /// It ends this number of seconds after its creation, whatever happens. `session.ttl_s` unless given.
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 1)]
    ttl_s: Option<u64>,
    /// It ends when it was not attached or used for this number of seconds. `session.idle_ttl_s` unless given.
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 1)]
    idle_ttl_s: Option<u64>,
    /// The application's own, up to 8 KB; members of the session's groups see it.
    #[schema(value_type = Option<Object>)]
    attributes: Option<Box<RawValue>>,
    /// Groups to be in from the start.
    #[serde(default)]
    groups: Vec<String>,
    /// What its clients may do. None: what the namespaces allow to everyone.
    #[serde(default)]
    #[schema(value_type = Vec<GrantBody>)]
    grants: Vec<Object<GrantBody>>,
    /// It may have at most this number of clients connected at once, where that is fewer than `session.clients_max`. What becomes of
    /// one too many `session.when_full` says.
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 1)]
    clients_max: Option<u16>,
    /// It is never stored, so it is made though the store is down. It ends when its last client has been gone for
    /// `session.resume_grace_s`, when none has come within `session.memory_ttl_s` (a minute at least), and where all nodes that
    /// hold it are lost. It is not listed among the sessions of its user, nor ended with them.
    #[serde(default)]
    ephemeral: bool,
}

/// A change to a session; what is not named stays.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"ttl_s": 3600, "attributes": {"name": "Alice B."}, "join": ["chat:office"], "leave": ["chat:lobby"]}))]
pub struct SessionPatch {
    /// It ends this number of seconds from now.
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 1)]
    ttl_s: Option<u64>,
    /// New attributes, whole.
    #[schema(value_type = Option<Object>)]
    attributes: Option<Box<RawValue>>,
    /// New grants, whole. Groups that its clients have joined and that they do not allow are left, on whatever node; those
    /// that a backend has put it into stay.
    #[schema(value_type = Option<Vec<GrantBody>>)]
    grants: Option<Vec<Object<GrantBody>>>,
    /// Groups to join, for its clients too.
    #[serde(default)]
    join: Vec<String>,
    /// Groups to leave.
    #[serde(default)]
    leave: Vec<String>,
}

/// What a session may do with the groups that match.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GrantBody {
    /// A group's name; `*` stands for any run of characters.
    #[schema(example = "chat:*")]
    pattern: String,
    /// May join, read history and members.
    join: bool,
    /// May publish.
    publish: bool,
}

/// A group to join.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupToJoin {
    /// Its name.
    #[schema(example = "chat:lobby")]
    group: String,
}

/// A session.
#[derive(Debug, Serialize, ToSchema)]
pub struct Session {
    /// A UUID.
    #[schema(value_type = String)]
    id: SessionId,
    /// The application's name for the user; empty for an anonymous session.
    user: String,
    /// It is never stored, and ends with its last client. So are those of clients that came without a token.
    ephemeral: bool,
    /// In milliseconds since 1970.
    created_ms: u64,
    /// It ends then, whatever happens; in milliseconds since 1970.
    expires_ms: u64,
    /// It ends when it was not attached or used for this number of seconds.
    idle_ttl_s: u64,
    /// In milliseconds since 1970.
    last_used_ms: u64,
    /// The application's own.
    #[schema(value_type = Object)]
    attributes: Box<RawValue>,
    /// All groups that it is in: those that a backend has put it into, and those that its clients have joined.
    #[schema(value_type = Vec<String>)]
    groups: BTreeSet<GroupName>,
    /// Those of `groups` that a client of it has joined by itself, and is alone in. It leaves them when it has been gone for
    /// `session.resume_grace_s`; the others are the session's, and all of its clients are in them, for as long as it lasts.
    #[schema(value_type = Vec<String>)]
    joined: BTreeSet<GroupName>,
    /// What its clients may do.
    grants: Vec<GrantBody>,
    /// Of the token that is good now: 0 for its first, one more for each that has taken the place of another.
    token_number: u32,
    /// The most clients that it may have connected at once, where that is fewer than `session.clients_max`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u16>)]
    clients_max: Option<NonZero<u16>>,
    /// A client is connected.
    attached: bool,
    /// A client is connected, or was a moment ago.
    present: bool,
    /// Its clients that are connected, or were a moment ago.
    clients: Vec<OneClient>,
}

/// A client of a session: a tab, or a device.
#[derive(Debug, Serialize, ToSchema)]
pub struct OneClient {
    /// As it names itself in `hello`, or as it was named.
    #[schema(value_type = String)]
    client: ClientId,
    /// The node that it is connected to, or was last.
    #[schema(value_type = String)]
    node: NodeId,
    /// When it connected last; in milliseconds since 1970.
    since_ms: u64,
    /// It is connected; else it was within `session.resume_grace_s`.
    attached: bool,
    /// Groups that it has joined by itself.
    #[schema(value_type = Vec<String>)]
    joined: BTreeSet<GroupName>,
}

/// A session and its new token.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionAndToken {
    /// The session.
    session: Session,
    /// For its clients: as a cookie, `Authorization: Bearer`, or in `hello`. Whoever has it has the session.
    #[schema(example = "v2.k1.C19vDlo8SlednX88KhsMnQ.0.kY0c3mXkMSc0yGmS0XkYb2m0yGmS0XkYb2m0yGmS0Xk")]
    token: String,
}

/// A session, read or changed.
#[derive(Debug, Serialize, ToSchema)]
pub struct OneSession {
    /// The session.
    session: Session,
}

/// A page of sessions.
#[derive(Debug, Serialize, ToSchema)]
pub struct SessionPage {
    /// By id.
    sessions: Vec<Session>,
    /// Ids of sessions that could not be read now.
    #[schema(value_type = Vec<String>)]
    unavailable: Vec<SessionId>,
    /// `after` for the next page; null at the end.
    #[schema(value_type = Option<String>)]
    next: Option<SessionId>,
}

/// How many sessions ended.
#[derive(Debug, Serialize, ToSchema)]
pub struct EndedSessions {
    /// Those that this call ended.
    ended: u64,
}

/// Creates a session, and stores it unless it is to be ephemeral.
#[utoipa::path(post, path = "/v1/sessions", tag = "sessions", request_body = NewSession,
    responses((status = 201, description = "Created. `Set-Cookie` carries the token too, for a backend that passes it on.", body = SessionAndToken), (status = 503, description = "The store did not take it, or not in time: `Retry-After` says when to try again", body = ErrorBody)))]
async fn create(State(api): State<Arc<Api>>, JsonBody(new): JsonBody<NewSession>) -> Result<Response, ApiError> {
    let mut problems = Problems::default();
    problems.take(|| loc!["body", "user"], check_user(&new.user));
    let ttl_s = ttl(new.ttl_s.unwrap_or(api.config.session.ttl_s), "ttl_s", &mut problems);
    let idle_ttl_s = ttl(new.idle_ttl_s.unwrap_or(api.config.session.idle_ttl_s), "idle_ttl_s", &mut problems);
    let attributes = new.attributes.as_deref().map(|raw| attributes(raw, &mut problems));
    let groups: BTreeSet<GroupName> = groups(&new.groups, "groups", &mut problems).into_iter().collect();
    let most = api.config.limits.groups_per_session;
    if groups.len() > most {
        api.metrics.limit_hit(Limit::GroupsPerSession);
        problems
            .value(loc!["body", "groups"], format!("a session has at most {most} groups (limits.groups_per_session)"));
    }
    let grants = grants(new.grants, &mut problems);
    let clients_max = new.clients_max.map(NonZero::new);
    if clients_max == Some(None) {
        problems.value(loc!["body", "clients_max"], "must be 1 at least");
    }
    problems.refuse()?;
    let clients_max = clients_max.flatten();

    let now_ms = clock::wall_ms();
    let record = SessionRecord {
        id: if new.ephemeral { SessionId::ephemeral(Uuid::new_v4()) } else { SessionId(Uuid::new_v4()) },
        user: new.user,
        created_ms: now_ms,
        expires_ms: now_ms + ttl_s * 1_000,
        idle_ttl_ms: idle_ttl_s * 1_000,
        last_used_ms: now_ms,
        attributes: attributes.unwrap_or_else(|| Bytes::from_static(b"{}")),
        groups,
        grants,
        revision: 0,
        token: 0,
        clients_max,
    };
    let location = HeaderValue::try_from(format!("/v1/sessions/{}", record.id)).map_err(|_| ApiError::internal())?;
    let created = with_token(&api, api.service.create(record, None).await?)?;
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], created).into_response())
}

/// Gives a session a new token. Earlier ones are refused from the answer on, on every node; who is connected stays so.
#[utoipa::path(post, path = "/v1/sessions/{id}/token", tag = "sessions", params(("id" = String, Path, description = "The session's id", example = "0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d")),
    responses((status = 200, description = "Its new token. `Set-Cookie` carries it too, for a backend that passes it on.", body = SessionAndToken), (status = 404, description = "No such session", body = ErrorBody), (status = 410, description = "The session is over", body = ErrorBody)))]
async fn renew_token(State(api): State<Arc<Api>>, InPath(id): InPath<SessionId>) -> Result<Response, ApiError> {
    Ok(with_token(&api, api.service.renew_token(id).await?)?.into_response())
}

/// The session with the token that is good now, also as a cookie that lasts as long as the session may.
fn with_token(api: &Api, view: SessionView) -> Result<impl IntoResponse + use<>, ApiError> {
    let SessionRecord { id, token: number, expires_ms, .. } = view.record;
    let token = api.keyring.sign(id, number);
    let left_s = expires_ms.saturating_sub(clock::wall_ms()).div_ceil(1_000);
    let cookie = [(header::SET_COOKIE, cookie(&api.config.session, &token, left_s)?)];
    Ok((cookie, Json(SessionAndToken { session: session(view)?, token })))
}

/// Reads a session.
#[utoipa::path(get, path = "/v1/sessions/{id}", tag = "sessions", params(("id" = String, Path, description = "The session's id", example = "0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d")),
    responses((status = 200, description = "The session", body = OneSession), (status = 404, description = "No such session", body = ErrorBody), (status = 410, description = "The session is over", body = ErrorBody)))]
async fn read(State(api): State<Arc<Api>>, InPath(id): InPath<SessionId>) -> Result<Json<OneSession>, ApiError> {
    Ok(Json(OneSession { session: session(api.service.session(id).await?)? }))
}

/// Changes a session; its clients are told at once. A change of nothing reads it.
#[utoipa::path(patch, path = "/v1/sessions/{id}", tag = "sessions", request_body = SessionPatch, params(("id" = String, Path, description = "The session's id", example = "0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d")),
    responses((status = 200, description = "The session as it is now", body = OneSession), (status = 404, description = "No such session", body = ErrorBody), (status = 409, description = "Too many groups", body = ErrorBody), (status = 410, description = "The session is over", body = ErrorBody)))]
async fn change(
    State(api): State<Arc<Api>>,
    InPath(id): InPath<SessionId>,
    JsonBody(patch): JsonBody<SessionPatch>,
) -> Result<Json<OneSession>, ApiError> {
    let mut problems = Problems::default();
    let ttl_s = patch.ttl_s.map(|ttl_s| ttl(ttl_s, "ttl_s", &mut problems));
    let attributes = patch.attributes.as_deref().map(|raw| attributes(raw, &mut problems));
    let grants = patch.grants.map(|given| grants(given, &mut problems));
    let join = groups(&patch.join, "join", &mut problems);
    let leave = groups(&patch.leave, "leave", &mut problems);
    for (index, group) in leave.iter().enumerate().filter(|(_, group)| join.contains(group)) {
        problems.value(loc!["body", "leave", index], format!("{group:?} stands under `join` too"));
    }
    let change = SessionChange {
        expires_ms: ttl_s.map(|ttl_s| clock::wall_ms() + ttl_s * 1_000),
        attributes,
        grants,
        new_token: false,
        join,
        leave,
    };
    problems.refuse()?;
    if change == SessionChange::default() {
        return read(State(api), InPath(id)).await;
    }
    changed(&api, id, change).await
}

/// Ends a session: its clients are told and disconnected, on whatever nodes. Repeats do no harm.
#[utoipa::path(delete, path = "/v1/sessions/{id}", tag = "sessions", params(("id" = String, Path, description = "The session's id", example = "0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d")),
    responses((status = 204, description = "It is over"), (status = 404, description = "No such session", body = ErrorBody)))]
async fn end(State(api): State<Arc<Api>>, InPath(id): InPath<SessionId>) -> Result<StatusCode, ApiError> {
    api.service.end(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has a session join a group, its clients too.
#[utoipa::path(post, path = "/v1/sessions/{id}/groups", tag = "sessions", request_body = GroupToJoin, params(("id" = String, Path, description = "The session's id", example = "0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d")),
    responses((status = 200, description = "The session as it is now", body = OneSession), (status = 404, description = "No such session", body = ErrorBody), (status = 409, description = "Too many groups", body = ErrorBody), (status = 410, description = "The session is over", body = ErrorBody)))]
async fn join(
    State(api): State<Arc<Api>>,
    InPath(id): InPath<SessionId>,
    JsonBody(body): JsonBody<GroupToJoin>,
) -> Result<Json<OneSession>, ApiError> {
    let mut problems = Problems::default();
    let group = problems.take(|| loc!["body", "group"], joinable(&body.group));
    problems.refuse()?;
    changed(&api, id, SessionChange { join: group.into_iter().collect(), ..SessionChange::default() }).await
}

/// Has a session leave a group, its clients too.
#[utoipa::path(delete, path = "/v1/sessions/{id}/groups/{group}", tag = "sessions", params(("id" = String, Path, description = "The session's id", example = "0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d"), ("group" = String, Path, description = "The group", example = "chat:lobby")),
    responses((status = 200, description = "The session as it is now", body = OneSession), (status = 404, description = "No such session", body = ErrorBody), (status = 410, description = "The session is over", body = ErrorBody)))]
async fn leave(
    State(api): State<Arc<Api>>,
    InPath(id): InPath<SessionId>,
    InPath(group): InPath<GroupName>,
) -> Result<Json<OneSession>, ApiError> {
    if let Err(msg) = joinable(group.as_str()) {
        return Err(ApiError::invalid(vec![Problem::new(loc!["path", "group"], "value_error", msg)]));
    }
    changed(&api, id, SessionChange { leave: vec![group], ..SessionChange::default() }).await
}

/// Lists a user's sessions, by id. Those that are ephemeral are not listed.
#[utoipa::path(get, path = "/v1/users/{user}/sessions", tag = "sessions", params(("user" = String, Path, description = "The user", example = "alice"), ("after" = Option<String>, Query, description = "`next` of the page before"), ("limit" = Option<u32>, Query, description = "1 to 1,000; 100 unless given")),
    responses((status = 200, description = "A page", body = SessionPage)))]
async fn of_user(
    State(api): State<Arc<Api>>,
    InPath(UserName(user)): InPath<UserName>,
    RawQuery(raw): RawQuery,
) -> Result<Json<SessionPage>, ApiError> {
    let mut query = Query::read(raw.as_deref(), &["after", "limit"]);
    let after = query.parsed("after", session_id);
    let limit = query.limit() as usize;
    query.done()?;
    let SessionsOfUser { sessions, unavailable, next } = api.service.of_user(&user, after, limit).await?;
    let sessions = sessions.into_iter().map(session).collect::<Result<_, _>>()?;
    Ok(Json(SessionPage { sessions, unavailable, next }))
}

/// Ends all sessions of a user but those that are ephemeral. Where some could not be ended the answer is 503: repeat the call.
#[utoipa::path(delete, path = "/v1/users/{user}/sessions", tag = "sessions", params(("user" = String, Path, description = "The user", example = "alice")),
    responses((status = 200, description = "All are over", body = EndedSessions)))]
async fn end_of_user(
    State(api): State<Arc<Api>>,
    InPath(UserName(user)): InPath<UserName>,
) -> Result<Json<EndedSessions>, ApiError> {
    Ok(Json(EndedSessions { ended: api.service.end_of_user(&user).await? }))
}

async fn changed(api: &Api, id: SessionId, change: SessionChange) -> Result<Json<OneSession>, ApiError> {
    Ok(Json(OneSession { session: session(api.service.change(id, change).await?)? }))
}

fn session(view: SessionView) -> Result<Session, ApiError> {
    let joined: BTreeSet<GroupName> = view.joined().into_iter().cloned().collect();
    let (attached, present) = (view.is_attached(), view.is_present());
    let SessionView { record, clients } = view;
    let groups = record.groups.union(&joined).cloned().collect();
    Ok(Session {
        id: record.id,
        user: record.user,
        ephemeral: record.id.is_ephemeral(),
        created_ms: record.created_ms,
        expires_ms: record.expires_ms,
        idle_ttl_s: record.idle_ttl_ms / 1_000,
        last_used_ms: record.last_used_ms,
        attributes: super::messages::raw(&record.attributes)?,
        groups,
        joined,
        token_number: record.token,
        clients_max: record.clients_max,
        grants: record
            .grants
            .into_iter()
            .map(|Grant { pattern, join, publish }| GrantBody { pattern, join, publish })
            .collect(),
        attached,
        present,
        clients: clients.into_iter().map(client).collect(),
    })
}

fn client(listed: ListedClient) -> OneClient {
    let ListedClient { id: client, gateway, since_ms, attached, joined } = listed;
    OneClient { client, node: gateway.node, since_ms, attached, joined: joined.into_keys().collect() }
}

/// The token as a cookie that scripts cannot read.
fn cookie(config: &SessionConfig, token: &str, max_age_s: u64) -> Result<HeaderValue, ApiError> {
    let same_site = match config.cookie_same_site.to_ascii_lowercase().as_str() {
        "strict" => "Strict",
        "none" => "None",
        _ => "Lax",
    };
    // Browsers drop `SameSite=None` without `Secure`.
    let secure = if config.cookie_secure || same_site == "None" { "; Secure" } else { "" };
    let name = &config.cookie_name;
    HeaderValue::try_from(format!(
        "{name}={token}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite={same_site}{secure}"
    ))
    .map_err(|_| ApiError::internal())
}

fn ttl(ttl_s: u64, field: &str, problems: &mut Problems) -> u64 {
    if !(1..=TTL_MAX_S).contains(&ttl_s) {
        problems.value(loc!["body", field], format!("must be from 1 to {TTL_MAX_S} seconds"));
    }
    ttl_s.min(TTL_MAX_S)
}

fn attributes(raw: &RawValue, problems: &mut Problems) -> Bytes {
    let text = raw.get();
    if !text.starts_with('{') {
        problems.add(Problem::new(loc!["body", "attributes"], "type_error", "must be a JSON object"));
    }
    if text.len() > ATTRIBUTES_MAX_BYTES {
        let msg = format!("attributes have at most {ATTRIBUTES_MAX_BYTES} bytes, these have {}", text.len());
        problems.add(Problem::new(loc!["body", "attributes"], Reason::TooLarge.code(), msg));
    }
    Bytes::copy_from_slice(text.as_bytes())
}

fn groups(names: &[String], field: &str, problems: &mut Problems) -> Vec<GroupName> {
    let parsed = names.iter().enumerate();
    parsed.filter_map(|(index, name)| problems.take(|| loc!["body", field, index], joinable(name))).collect()
}

/// A group that sessions join; their private ones they have anyway.
pub(in crate::gateway) fn joinable(name: &str) -> Result<GroupName, String> {
    let group = group_name(name)?;
    if group.is_private() {
        return Err("names that begin with '@' are private groups, which are neither joined nor left".to_owned());
    }
    Ok(group)
}

fn grants(given: Vec<Object<GrantBody>>, problems: &mut Problems) -> Vec<Grant> {
    if given.len() > GRANTS_MAX {
        problems.value(loc!["body", "grants"], format!("a session has at most {GRANTS_MAX} grants"));
    }
    for (index, Object(GrantBody { pattern, .. })) in given.iter().enumerate() {
        if pattern.is_empty() || pattern.len() > PATTERN_MAX_BYTES || pattern.chars().any(char::is_control) {
            let msg = format!("a pattern has 1 to {PATTERN_MAX_BYTES} bytes and no control characters");
            problems.value(loc!["body", "grants", index, "pattern"], msg);
        }
    }
    given.into_iter().map(|Object(GrantBody { pattern, join, publish })| Grant { pattern, join, publish }).collect()
}
