//! Publishing: to a group, to a session or a user, to many groups at once, many messages at once.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use axum::{
    Json,
    extract::State,
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    api::Api,
    error::{ApiError, ErrorBody, Loc, Problem, Problems, loc},
    extract::{InPath, JsonBody, Object, UserName, group_name, whole},
    route::Route,
};
use crate::{
    clock,
    gateway::service::{self, By, in_order},
    id::{GroupName, SessionId},
    logic::{few::Few, request},
    metrics::Limit,
    seldom::Seldom,
    wire::reason::Reason,
};

pub(super) const KEY_MAX_BYTES: usize = 200;
pub(super) const BROADCAST_GROUPS_MAX: usize = 100;
pub(super) const BATCH_MAX: usize = 1_000;
/// How many groups of one call are published to at once.
const AT_ONCE: usize = 32;
/// A batch may take this many times as long as one request.
const BATCH_DEADLINES: u64 = 6;

pub(super) fn table() -> Vec<Route> {
    vec![
        Route::keyed(Method::POST, "/v1/groups/{group}/messages", publish),
        Route::keyed(Method::POST, "/v1/users/{user}/messages", to_user),
        Route::keyed(Method::POST, "/v1/sessions/{id}/messages", to_session),
        Route::keyed(Method::POST, "/v1/broadcast", broadcast),
        Route::keyed(Method::POST, "/v1/batch", batch),
    ]
}

/// A message to be published.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"data": {"text": "hello"}, "key": "order-17"}))]
pub struct NewMessage {
    /// Any JSON, passed on as it is.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// Repeats with this key are one publish: choose one for every message that you may have to repeat. They are recognised for
    /// the namespace's `idempotency_s` (5 minutes unless configured), of each group the last `idempotency_publishes` (100,000),
    /// whichever ends first. All calls of the API share one key space in each group; each client session has its own.
    key: Option<String>,
    /// Refuse the message unless this number of nodes would hold it, and answer when they do: a message that was accepted while
    /// a node was lost may be of unknown outcome (504), and a repeat with its key waits for the copies or says where it is. The
    /// namespace's `min_copies` holds in any case.
    #[serde(default, deserialize_with = "whole")]
    #[schema(minimum = 1)]
    min_copies: Option<u8>,
    /// For typing indicators, cursors and the like: told to who is there now, at most once, and kept nowhere. It has no place in
    /// the group, so that nobody misses it, and those who read slowly are the first to do without it. It goes without `key` and
    /// `min_copies`.
    #[serde(default)]
    ephemeral: bool,
}

/// A message for several groups.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"groups": ["chat:lobby", "chat:office"], "data": {"text": "closing in ten minutes"}, "key": "closing-17"}))]
pub struct NewBroadcast {
    /// 1 to 100 different groups.
    groups: Vec<String>,
    /// Any JSON, passed on as it is.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// As for one message; it holds for each group by itself.
    key: Option<String>,
}

/// Several messages.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"publishes": [
    {"group": "chat:lobby", "data": {"text": "one"}, "key": "a-1"}, {"group": "chat:lobby", "data": {"text": "two"}, "key": "a-2"}
]}))]
pub struct NewBatch {
    /// 1 to 1,000. Those of one group are published in this order.
    #[schema(value_type = Vec<BatchItem>)]
    publishes: Vec<Object<BatchItem>>,
}

/// One message of a batch.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchItem {
    /// Where to.
    group: String,
    /// Any JSON, passed on as it is.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
    /// As for one message.
    key: Option<String>,
}

/// Where a message stands. An ephemeral one stands nowhere, and has nothing else here.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct Published {
    /// The log of its group.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "0f3a9c1b2d4e5f60")]
    epoch: Option<String>,
    /// Its number in that log.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// How many nodes hold it.
    #[serde(skip_serializing_if = "Option::is_none")]
    copies: Option<u8>,
    /// True where it was passed on to who is there, and is kept nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    ephemeral: Option<bool>,
}

/// What came of one publish of several.
#[derive(Debug, Serialize, ToSchema)]
pub struct PublishResult {
    /// Where to.
    #[schema(value_type = String)]
    group: GroupName,
    /// The status that this publish alone would have been answered with; 424 where it was not tried because an earlier
    /// one of the batch to the same group was not accepted.
    status: u16,
    /// The log of its group, where accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<String>,
    /// Its number in that log, where accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    /// How many nodes hold it, where accepted.
    #[serde(skip_serializing_if = "Option::is_none")]
    copies: Option<u8>,
    /// Why not, where not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    detail: Vec<Problem>,
}

/// What came of several publishes, in their order.
#[derive(Debug, Serialize, ToSchema)]
pub struct PublishResults {
    /// One for each.
    results: Vec<PublishResult>,
}

/// Publishes to a group. Also to `@user:…` and `@session:…`.
#[utoipa::path(post, path = "/v1/groups/{group}/messages", tag = "messages", request_body = NewMessage, params(("group" = String, Path, description = "The group", example = "chat:lobby")),
    responses((status = 200, description = "Accepted: `copies` nodes hold it, or an ephemeral one was passed on", body = Published)))]
async fn publish(
    State(api): State<Arc<Api>>,
    InPath(group): InPath<GroupName>,
    JsonBody(message): JsonBody<NewMessage>,
) -> Result<Json<Published>, ApiError> {
    let publish = checked(&api, message)?;
    Ok(Json(accept(&api, group, publish).await?))
}

/// Publishes to all sessions of a user, by the user's private group.
#[utoipa::path(post, path = "/v1/users/{user}/messages", tag = "messages", request_body = NewMessage, params(("user" = String, Path, description = "The user", example = "alice")),
    responses((status = 200, description = "Accepted: `copies` nodes hold it, or an ephemeral one was passed on", body = Published)))]
async fn to_user(
    State(api): State<Arc<Api>>,
    InPath(UserName(user)): InPath<UserName>,
    JsonBody(message): JsonBody<NewMessage>,
) -> Result<Json<Published>, ApiError> {
    let publish = checked(&api, message)?;
    Ok(Json(accept(&api, GroupName::of_user(&user), publish).await?))
}

/// Publishes to one session, by its private group.
#[utoipa::path(post, path = "/v1/sessions/{id}/messages", tag = "messages", request_body = NewMessage, params(("id" = String, Path, description = "The session's id", example = "0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d")),
    responses((status = 200, description = "Accepted: `copies` nodes hold it, or an ephemeral one was passed on", body = Published), (status = 404, description = "No such session", body = ErrorBody), (status = 410, description = "The session is over", body = ErrorBody)))]
async fn to_session(
    State(api): State<Arc<Api>>,
    InPath(id): InPath<SessionId>,
    JsonBody(message): JsonBody<NewMessage>,
) -> Result<Json<Published>, ApiError> {
    let publish = checked(&api, message)?;
    // A message that nobody will ever read is an error of the caller's. Where it cannot be told now, the message counts.
    if let Err(refused) = api.service.session(id).await
        && refused.is_session_over()
    {
        return Err(refused.into());
    }
    Ok(Json(accept(&api, GroupName::of_session(id), publish).await?))
}

/// Publishes one message to many groups. There is no order between groups, and some may be accepted while others are not.
#[utoipa::path(post, path = "/v1/broadcast", tag = "messages", request_body = NewBroadcast,
    responses((status = 200, description = "All were accepted", body = PublishResults), (status = 207, description = "Some were not: `status` and `detail` of each say why. Repeat with the same key.", body = PublishResults)))]
async fn broadcast(State(api): State<Arc<Api>>, JsonBody(body): JsonBody<NewBroadcast>) -> Result<Response, ApiError> {
    let mut problems = Problems::default();
    count(body.groups.len(), BROADCAST_GROUPS_MAX, "groups", &mut problems);
    let mut groups: Vec<GroupName> = Vec::new();
    for (index, name) in body.groups.iter().take(BROADCAST_GROUPS_MAX).enumerate() {
        match group_name(name) {
            Ok(group) if groups.contains(&group) => {
                problems.value(loc!["body", "groups", index], "this group is named twice");
            }
            Ok(group) => groups.push(group),
            Err(msg) => problems.value(loc!["body", "groups", index], msg),
        }
    }
    let publish = service::NewMessage { data: data(&api, &body.data, || loc!["body"], &mut problems), key: body.key };
    check_key(publish.key.as_deref(), || loc!["body"], &mut problems);
    problems.refuse()?;
    let sends = groups.into_iter().map(|group| {
        let (api, publish) = (&api, publish.clone());
        async move { result(group.clone(), send(api, group, (publish, 1)).await) }
    });
    Ok(many(in_order(AT_ONCE, sends).await))
}

/// Publishes many messages. Those of one group keep the batch's order; where one is not accepted, the later ones of its group
/// are not done either (424, or 504 where that is not known), unless they were done before: a repeat of the batch with the same
/// keys keeps the order.
#[utoipa::path(post, path = "/v1/batch", tag = "messages", request_body = NewBatch,
    responses((status = 200, description = "All were accepted", body = PublishResults), (status = 207, description = "Some were not: `status` and `detail` of each say why. Repeat with the same keys.", body = PublishResults)))]
async fn batch(State(api): State<Arc<Api>>, JsonBody(body): JsonBody<NewBatch>) -> Result<Response, ApiError> {
    let mut problems = Problems::default();
    count(body.publishes.len(), BATCH_MAX, "publishes", &mut problems);
    let mut by_group: BTreeMap<GroupName, VecDeque<(usize, service::NewMessage)>> = BTreeMap::new();
    for (index, Object(item)) in body.publishes.into_iter().take(BATCH_MAX).enumerate() {
        let at = || loc!["body", "publishes", index];
        let data = data(&api, &item.data, at, &mut problems);
        check_key(item.key.as_deref(), at, &mut problems);
        if let Some(group) = problems.take(|| loc!["body", "publishes", index, "group"], group_name(&item.group)) {
            by_group.entry(group).or_default().push_back((index, service::NewMessage { data, key: item.key }));
        }
    }
    problems.refuse()?;
    let until_ms = clock::mono_ms() + BATCH_DEADLINES * api.config.limits.request_ms;
    let groups = by_group.into_iter().map(|(group, publishes)| in_turn(&api, group, publishes, until_ms));
    let mut results: Vec<(usize, PublishResult)> = in_order(AT_ONCE, groups).await.into_iter().flatten().collect();
    results.sort_by_key(|(index, _)| *index);
    Ok(many(results.into_iter().map(|(_, result)| result).collect()))
}

/// The publishes of a batch to one group.
async fn in_turn(
    api: &Api,
    group: GroupName,
    mut publishes: VecDeque<(usize, service::NewMessage)>,
    until_ms: u64,
) -> Vec<(usize, PublishResult)> {
    let mut results = Vec::with_capacity(publishes.len());
    let mut not_tried = Reason::NotTried.row().words;
    while !publishes.is_empty() {
        if clock::mono_ms() > until_ms {
            not_tried = "the batch took too long: not done, repeat it with the same keys";
            break;
        }
        let fitting = api.service.fitting(&group, publishes.iter().map(|(_, message)| message.data.len()));
        let (indexes, messages): (Vec<_>, Few<_>) = publishes.drain(..fitting).unzip();
        let publication = service::Publication { messages, min_copies: 1 };
        let outcomes = api.service.publish(&By::Server, &group, publication).await;
        let mut stopped = false;
        for (index, outcome) in indexes.into_iter().zip(outcomes) {
            // It was refused together with an earlier one.
            let was_tried = !matches!(&outcome, Err(refused) if stopped && refused.reason != Reason::UnknownOutcome);
            stopped |= outcome.is_err();
            let outcome = if was_tried {
                outcome.map(Published::from).map_err(ApiError::from)
            } else {
                Err(ApiError::saying(Reason::NotTried, not_tried))
            };
            results.push((index, result(group.clone(), outcome)));
        }
        if stopped {
            break;
        }
    }
    let rest = publishes.into_iter().map(|(index, _)| index);
    results
        .extend(rest.map(|index| (index, result(group.clone(), Err(ApiError::saying(Reason::NotTried, not_tried))))));
    results
}

/// A message, and how many nodes are to hold it at least.
type Checked = (service::NewMessage, u8);

/// What is to be done with a message.
enum ToPublish {
    Keep(Checked),
    PassOn(Bytes),
}

fn checked(api: &Api, message: NewMessage) -> Result<ToPublish, ApiError> {
    let mut problems = Problems::default();
    for (field, given) in [("key", message.key.is_some()), ("min_copies", message.min_copies.is_some())] {
        if message.ephemeral && given {
            let msg = "an ephemeral message has none: it is passed on at most once, and no node holds it";
            problems.value(loc!["body", field], msg);
        }
    }
    let data = data(api, &message.data, || loc!["body"], &mut problems);
    check_key(message.key.as_deref(), || loc!["body"], &mut problems);
    let min_copies = message.min_copies.unwrap_or(1);
    let copies = api.config.cluster.copies;
    if !(1..=copies).contains(&min_copies) {
        problems.value(
            loc!["body", "min_copies"],
            format!("must be from 1 to {copies}, the copies that this cluster keeps"),
        );
    }
    problems.refuse()?;
    Ok(match message.ephemeral {
        true => ToPublish::PassOn(data),
        false => ToPublish::Keep((service::NewMessage { data, key: message.key }, min_copies)),
    })
}

async fn accept(api: &Api, group: GroupName, publish: ToPublish) -> Result<Published, ApiError> {
    match publish {
        ToPublish::Keep(message) => send(api, group, message).await,
        ToPublish::PassOn(data) => {
            api.service.publish_ephemeral(&By::Server, &group, Few::one(data)).await?;
            Ok(Published { ephemeral: Some(true), ..Published::default() })
        }
    }
}

async fn send(api: &Api, group: GroupName, (message, min_copies): Checked) -> Result<Published, ApiError> {
    Ok(api.service.publish_one(&By::Server, &group, message, min_copies).await?.into())
}

impl From<request::Published> for Published {
    fn from(request::Published { position, copies }: request::Published) -> Self {
        let (epoch, offset) = (Some(position.epoch.to_string()), Some(position.offset));
        Self { epoch, offset, copies: Some(copies), ephemeral: None }
    }
}

fn check_key(key: Option<&str>, at: impl FnOnce() -> Vec<Loc>, problems: &mut Problems) {
    let Some(key) = key else { return };
    if key.is_empty() || key.len() > KEY_MAX_BYTES || key.chars().any(char::is_control) {
        let mut place = at();
        place.push(Loc::from("key"));
        problems.value(place, format!("a key has 1 to {KEY_MAX_BYTES} bytes and no control characters"));
    }
}

pub(super) fn data(api: &Api, raw: &RawValue, at: impl FnOnce() -> Vec<Loc>, problems: &mut Problems) -> Bytes {
    let (text, limit) = (raw.get(), api.config.limits.message_bytes);
    if text.len() > limit {
        api.metrics.limit_hit(Limit::MessageBytes);
        let mut place = at();
        place.push(Loc::from("data"));
        let msg = format!("a message has at most {limit} bytes (limits.message_bytes), this has {}", text.len());
        problems.add(Problem::new(place, Reason::TooLarge.code(), msg));
        return Bytes::new();
    }
    Bytes::copy_from_slice(text.as_bytes())
}

fn count(given: usize, max: usize, field: &str, problems: &mut Problems) {
    if given == 0 || given > max {
        problems.value(loc!["body", field], format!("1 to {max} are taken at once, these are {given}"));
    }
}

fn result(group: GroupName, outcome: Result<Published, ApiError>) -> PublishResult {
    let (status, published, detail) = match outcome {
        Ok(published) => (StatusCode::OK, Some(published), Vec::new()),
        Err(error) => (error.status, None, error.detail),
    };
    PublishResult {
        group,
        status: status.as_u16(),
        offset: published.as_ref().and_then(|published| published.offset),
        copies: published.as_ref().and_then(|published| published.copies),
        epoch: published.and_then(|published| published.epoch),
        detail,
    }
}

fn many(results: Vec<PublishResult>) -> Response {
    let all = results.iter().all(|result| result.status == StatusCode::OK.as_u16());
    let status = if all { StatusCode::OK } else { StatusCode::MULTI_STATUS };
    (status, Json(PublishResults { results })).into_response()
}

/// JSON text that was checked when it was taken in.
pub(super) fn raw(text: &Bytes) -> Result<Box<RawValue>, ApiError> {
    let checked = std::str::from_utf8(text).ok().and_then(|text| RawValue::from_string(text.to_owned()).ok());
    checked.ok_or_else(|| {
        static COMPLAIN: Seldom = Seldom::new();
        if let Some(left_out) = COMPLAIN.now() {
            tracing::error!(bytes = text.len(), left_out, "something kept as JSON is not");
        }
        ApiError::internal()
    })
}
