//! Clients that are connected: to disconnect them, and to send something to one of them.

use std::sync::Arc;

use axum::{Json, extract::State, http::Method};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use super::{
    api::{self, Api},
    error::{ApiError, ErrorBody, Problems, loc},
    extract::{InPath, JsonBody, UserName, whole},
    messages,
    route::Route,
};
use crate::{
    id::{ClientId, NodeId, SessionId},
    wire::{
        peer::{CODE_MAX, Farewell, Whom},
        reason::Reason,
    },
};

/// A close frame has room for this.
pub(super) const WORDS_MAX_BYTES: usize = 120;
/// A client that is to come back comes within a day.
pub(super) const AFTER_MAX_MS: u64 = 24 * 3600 * 1_000;

pub(super) fn table() -> Vec<Route> {
    vec![
        Route::keyed(Method::POST, "/v1/sessions/{id}/disconnect", disconnect_session),
        Route::keyed(Method::POST, "/v1/users/{user}/disconnect", disconnect_user),
        Route::keyed(Method::POST, "/v1/sessions/{id}/clients/{client}/messages", send),
    ]
}

/// How clients are to be disconnected.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"client": "tab-1", "reconnect": false, "reason": "signed out elsewhere"}))]
pub struct Disconnect {
    /// Only this client of the session; all of them unless given.
    #[schema(value_type = Option<String>)]
    client: Option<String>,
    /// As for a user.
    #[serde(default)]
    reconnect: bool,
    /// As for a user.
    #[serde(default, deserialize_with = "whole")]
    after_ms: Option<u64>,
    /// As for a user.
    reason: Option<String>,
    /// As for a user.
    #[serde(default, deserialize_with = "whole")]
    code: Option<u8>,
}

/// How all clients of a user are to be disconnected.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"reconnect": true, "after_ms": 500, "reason": "your rights have changed"}))]
pub struct DisconnectUser {
    /// Whether they are to come back, with the same session. Not unless given.
    #[serde(default)]
    reconnect: bool,
    /// When they are to come back, in milliseconds from now, a day at most; at once unless given.
    #[serde(default, deserialize_with = "whole")]
    after_ms: Option<u64>,
    /// What they are told, for people: up to 120 bytes.
    reason: Option<String>,
    /// A number with a meaning of the application's own, 0 to 99: the WebSocket's close code is 4500 and this where they are to come
    /// back, 4600 and this where not. 4007 and 4106 unless given.
    #[serde(default, deserialize_with = "whole")]
    code: Option<u8>,
}

/// What came of it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Disconnected {
    /// How many clients were connected and told to go.
    disconnected: u64,
    /// Nodes that did not answer in time: clients of theirs may be connected still. Repeat the call.
    #[schema(value_type = Vec<String>)]
    missing_nodes: Vec<NodeId>,
}

/// Something for one client.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"data": {"open": "/invoices/17"}}))]
pub struct DirectMessage {
    /// Any JSON, passed on as it is.
    #[schema(value_type = serde_json::Value)]
    data: Box<RawValue>,
}

/// The client takes it.
#[derive(Debug, Serialize, ToSchema)]
pub struct Sent {
    /// The node that it is connected to.
    #[schema(value_type = String)]
    node: NodeId,
}

/// Disconnects the clients of a session, or one of them, on whatever nodes. The session goes on, and its clients keep what they
/// have joined for `session.resume_grace_s`. Who is connecting in this moment may stay; so do readers of events.
#[utoipa::path(post, path = "/v1/sessions/{id}/disconnect", tag = "clients", request_body = Disconnect, params(("id" = String, Path, description = "The session's id", example = "0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d")),
    responses((status = 200, description = "Who was connected is told to go", body = Disconnected), (status = 404, description = "No such session", body = ErrorBody), (status = 410, description = "The session is over", body = ErrorBody)))]
async fn disconnect_session(
    State(api): State<Arc<Api>>,
    InPath(session): InPath<SessionId>,
    JsonBody(body): JsonBody<Disconnect>,
) -> Result<Json<Disconnected>, ApiError> {
    let Disconnect { client, reconnect, after_ms, reason, code } = body;
    let mut problems = Problems::default();
    let client = client.and_then(|text| problems.take(|| loc!["body", "client"], ClientId::parse(&text)));
    let farewell = farewell(DisconnectUser { reconnect, after_ms, reason, code }, &mut problems);
    problems.refuse()?;
    api.service.session(session).await?;
    Ok(disconnect(&api, Whom::Session { session, client }, farewell).await)
}

/// Disconnects all clients of all sessions of a user, those that are ephemeral too. The sessions go on.
#[utoipa::path(post, path = "/v1/users/{user}/disconnect", tag = "clients", request_body = DisconnectUser, params(("user" = String, Path, description = "The user", example = "alice")),
    responses((status = 200, description = "Who was connected is told to go", body = Disconnected)))]
async fn disconnect_user(
    State(api): State<Arc<Api>>,
    InPath(UserName(user)): InPath<UserName>,
    JsonBody(body): JsonBody<DisconnectUser>,
) -> Result<Json<Disconnected>, ApiError> {
    let mut problems = Problems::default();
    let farewell = farewell(body, &mut problems);
    problems.refuse()?;
    Ok(disconnect(&api, Whom::User(user), farewell).await)
}

/// Sends something to one client of a session, at most once: it is kept nowhere, and a client that is not connected misses it.
/// It comes as `direct`. What every client of a session is to have, also after a reconnect, is published to the session.
#[utoipa::path(post, path = "/v1/sessions/{id}/clients/{client}/messages", tag = "clients", request_body = DirectMessage, params(("id" = String, Path, description = "The session's id", example = "0b5f6f0e-5a3c-4a57-9d6e-7f3c2a1b0c9d"), ("client" = String, Path, description = "The client's id", example = "tab-1")),
    responses((status = 200, description = "It is connected, and gets it unless its connection ends first", body = Sent), (status = 404, description = "No such session, or no such client of it that is connected", body = ErrorBody), (status = 410, description = "The session is over", body = ErrorBody), (status = 504, description = "Its node did not answer: it may or may not get it", body = ErrorBody)))]
async fn send(
    State(api): State<Arc<Api>>,
    InPath(session): InPath<SessionId>,
    InPath(client): InPath<ClientId>,
    JsonBody(DirectMessage { data }): JsonBody<DirectMessage>,
) -> Result<Json<Sent>, ApiError> {
    let mut problems = Problems::default();
    let data = messages::data(&api, &data, || loc!["body"], &mut problems);
    problems.refuse()?;
    let listed = api.service.session(session).await?.clients;
    let there = listed.into_iter().find(|listed| listed.attached && listed.id == client);
    let absent = || {
        let msg =
            format!("the session has no client {client} that is connected: GET /v1/sessions/{session} lists them");
        ApiError::at(Reason::NoClient, loc!["path", "client"], msg)
    };
    let node = there.ok_or_else(absent)?.gateway.node;
    match api.control.send(&node, (session, client.clone()), data).await {
        Some(true) => Ok(Json(Sent { node })),
        Some(false) => Err(absent()),
        None => {
            let msg = format!("{node} did not answer in time: the client may or may not get it");
            Err(ApiError::at(Reason::UnknownOutcome, loc!["path", "client"], msg))
        }
    }
}

async fn disconnect(api: &Api, whom: Whom, farewell: Farewell) -> Json<Disconnected> {
    let api::Disconnected { clients, missing_nodes } = api.control.disconnect(whom, farewell).await;
    Json(Disconnected { disconnected: clients, missing_nodes })
}

fn farewell(DisconnectUser { reconnect, after_ms, reason, code }: DisconnectUser, problems: &mut Problems) -> Farewell {
    let after_ms = after_ms.unwrap_or(0);
    if after_ms > AFTER_MAX_MS {
        problems.value(loc!["body", "after_ms"], format!("must be from 0 to {AFTER_MAX_MS} milliseconds"));
    }
    if let Some(words) = &reason
        && (words.is_empty() || words.len() > WORDS_MAX_BYTES || words.chars().any(char::is_control))
    {
        let msg = format!("a reason has 1 to {WORDS_MAX_BYTES} bytes and no control characters");
        problems.value(loc!["body", "reason"], msg);
    }
    if code.is_some_and(|code| code > CODE_MAX) {
        problems.value(loc!["body", "code"], format!("must be from 0 to {CODE_MAX}"));
    }
    Farewell { reconnect, after_ms: after_ms.min(AFTER_MAX_MS) as u32, words: reason, code }
}
