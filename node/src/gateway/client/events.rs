//! Readers: server-sent events over HTTP, for who only follows groups (`EventSource` in a browser, `curl -N`).
//!
//! A reader has no attachment. It displaces nobody, nobody sees it in a group, and what it may read is what its session may, or
//! what its namespace allows to anyone. It is a follower of groups with an outbox like every connection's: what differs is the
//! codec, and that its answer is written past HTTP ([`Accepted::hand_over`]).

mod reader;

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header},
    response::{IntoResponse, Response},
};
use uuid::Uuid;

use self::reader::{Reader, Standing, Whose};
use super::{
    admit,
    allowances::Spender,
    backed,
    hello::{self, Identified, Source},
};
use crate::{
    clock,
    gateway::{
        Gateway,
        door::{
            accepted::Accepted,
            access,
            admission::count_refused,
            origin::{self, Credentials},
            reasons::Refused,
        },
        http::{
            error::{ApiError, ErrorBody, Loc, Problem, Problems, loc},
            extract::{InPath, Query, group_name},
        },
    },
    id::{GroupName, Position, SessionId},
    logic::request::{ClientView, SlotError},
    wire::{events, reason::Reason},
};

/// The header by which a reader resumes, and its like in the URL for who cannot set headers.
const LAST_EVENT_ID: &str = "last-event-id";
const LAST_EVENT_ID_PARAMETER: &str = "last_event_id";

/// What a reader asks for.
struct Asked {
    /// In the order of their names.
    groups: Vec<GroupName>,
    /// Where it stopped in each.
    places: Vec<Option<Position>>,
    /// Where its groups stand in the request.
    place: Vec<Loc>,
}

/// Follows a group by server-sent events, for as long as the connection lasts.
#[utoipa::path(get, path = "/v1/groups/{group}/events", tag = "events", params(("group" = String, Path, description = "The group", example = "chat:lobby"), ("last_event_id" = Option<String>, Query, description = "The `id` of the last event seen, where `Last-Event-ID` cannot be sent"), ("Last-Event-ID" = Option<String>, Header, description = "The `id` of the last event seen: everything after it follows")),
    responses((status = 200, description = "Events without end: messages, and `joined`, `gap`, `reset`, `stale`, `live`, `bye` as on `/ws`", body = String, content_type = "text/event-stream"), (status = 401, description = "No session, where the configuration asks for one, or a JWT that is not good", body = ErrorBody), (status = 403, description = "The session may not read the group, or the page not use its cookie", body = ErrorBody), (status = 422, description = "Something in the request is not valid, the id for instance: `loc` says where", body = ErrorBody), (status = 503, description = "No room; try again after `Retry-After`", body = ErrorBody)))]
pub async fn of_group(
    State(gateway): State<Arc<Gateway>>,
    InPath(group): InPath<GroupName>,
    request: Request,
) -> Response {
    let mut query = Query::read(request.uri().query(), &[LAST_EVENT_ID_PARAMETER]);
    let groups = vec![group];
    let places = places(&groups, request.headers(), &mut query);
    let asked = done(query, places).map(|places| Asked { groups, places, place: loc!["path", "group"] });
    answer(gateway, asked, request).await
}

/// Follows several groups by server-sent events, for as long as the connection lasts.
#[utoipa::path(get, path = "/v1/events", tag = "events", params(("group" = Vec<String>, Query, description = "1 to 16 different groups"), ("last_event_id" = Option<String>, Query, description = "The `id` of the last event seen of the same groups, where `Last-Event-ID` cannot be sent"), ("Last-Event-ID" = Option<String>, Header, description = "The `id` of the last event seen of the same groups: everything after it follows")),
    responses((status = 200, description = "Events without end: messages, and `joined`, `gap`, `reset`, `stale`, `live`, `bye` as on `/ws`", body = String, content_type = "text/event-stream"), (status = 401, description = "No session, where the configuration asks for one, or a JWT that is not good", body = ErrorBody), (status = 403, description = "The session may not read one of the groups, or the page not use its cookie", body = ErrorBody), (status = 422, description = "Something in the request is not valid, the id for instance: `loc` says where", body = ErrorBody), (status = 503, description = "No room; try again after `Retry-After`", body = ErrorBody)))]
pub async fn of_groups(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    let max = events::GROUPS_MAX.min(gateway.config.limits.groups_per_session);
    let mut query = Query::read_with_list(request.uri().query(), &["group", LAST_EVENT_ID_PARAMETER], "group");
    let given = query.count("group");
    if given == 0 || given > max {
        query.problem("group", "value_error", &format!("1 to {max} groups are followed at once, these are {given}"));
    }
    let named = query.list("group", max, group_name);
    let groups: Vec<GroupName> = named.iter().cloned().collect::<BTreeSet<_>>().into_iter().collect();
    if groups.len() < named.len() {
        query.problem("group", "value_error", "a group is named twice");
    }
    let places = places(&groups, request.headers(), &mut query);
    let asked = done(query, places).map(|places| Asked { groups, places, place: loc!["query", "group"] });
    answer(gateway, asked, request).await
}

/// Where a reader stopped in its groups. The header counts first: `EventSource` sends it when it comes back, to the URL that it
/// began with.
fn places(groups: &[GroupName], headers: &HeaderMap, query: &mut Query) -> Result<Vec<Option<Position>>, Problem> {
    let in_query = query.parsed(LAST_EVENT_ID_PARAMETER, |id| match id {
        "" => Ok(None),
        id => events::places(groups, id).map(Some),
    });
    let given: Vec<_> = headers.get_all(LAST_EVENT_ID).iter().filter(|id| !id.is_empty()).collect();
    let of_header = match given[..] {
        [] => return Ok(in_query.flatten().unwrap_or_else(|| vec![None; groups.len()])),
        [id] => id.to_str().map_err(|_| "an id is ASCII".to_owned()).and_then(|id| events::places(groups, id)),
        _ => Err("this header is given twice".to_owned()),
    };
    of_header.map_err(|msg| Problem::new(loc!["header", LAST_EVENT_ID], "value_error", msg))
}

/// Tells all that is wrong with a request at once.
fn done<T>(query: Query, places: Result<T, Problem>) -> Result<T, ApiError> {
    let mut problems = Problems::default();
    let wrong = query.done().err().map_or_else(Vec::new, |error| error.detail);
    wrong.into_iter().for_each(|problem| problems.add(problem));
    let places = places.map_err(|problem| problems.add(problem)).ok();
    problems.refuse()?;
    places.ok_or_else(ApiError::internal)
}

async fn answer(gateway: Arc<Gateway>, asked: Result<Asked, ApiError>, request: Request) -> Response {
    let headers = request.headers().clone();
    let mut response = match asked {
        Ok(asked) => follow(&gateway, asked, request).await.unwrap_or_else(IntoResponse::into_response),
        Err(error) => error.into_response(),
    };
    let allowed = &gateway.config.session.allowed_origins;
    let told = response.headers_mut();
    // An answer without end is the last of its connection, and a refused reader is not to hold a place.
    told.insert(header::CONNECTION, HeaderValue::from_static("close"));
    told.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    told.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    told.insert(header::VARY, HeaderValue::from_static("Origin"));
    match headers.get(header::ORIGIN) {
        None => {}
        Some(origin) if origin::origin_allowed(&headers, allowed) => {
            told.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            told.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        // No cookie was used for it, so it tells a page nothing that anyone could not ask.
        Some(_) => {
            told.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        }
    }
    response
}

/// The head of the answer; the rest of it is the reader's task's.
async fn follow(gateway: &Arc<Gateway>, asked: Asked, request: Request) -> Result<Response, ApiError> {
    let accepted = request.extensions().get::<Arc<Accepted>>().cloned();
    let Some(accepted) = accepted.filter(|_| request.version() == Version::HTTP_11) else {
        let words =
            "events come in chunks of HTTP/1.1, and this is another version of HTTP (in nginx: proxy_http_version 1.1)";
        return Err(ApiError::saying(Reason::UpgradeRequired, words));
    };
    if request.method() == Method::HEAD {
        return Ok(head(Body::empty()));
    }
    accepted
        .count_for_client(request.headers())
        .inspect_err(|refused| count_refused(refused.reason, &gateway.metrics))?;
    let admitted = admit(gateway)?;
    let session = &gateway.config.session;
    let credentials = Credentials::of(request.headers(), &session.cookie_name, &session.allowed_origins);
    let opened = authorise(gateway, &credentials, &asked).await.inspect_err(|error| {
        let code = error.detail.first().map_or(Reason::Internal.code(), |problem| problem.kind);
        gateway.metrics.connect_refused(code);
    })?;
    let allowance = gateway.allowances.of(Spender::of(opened.session, &opened.user, accepted.address()));
    allowance.may_begin_group()?;
    let (body, socket) = accepted.hand_over();
    let (gateway, tasks) = (gateway.clone(), gateway.tasks.clone());
    tasks.spawn_detached("reader", async move {
        let Ok(socket) = socket.await else { return };
        let reader = Reader::open(&gateway, socket, asked.groups, &asked.places, opened, allowance);
        reader.serve().await;
        drop((admitted, accepted));
    });
    Ok(head(body))
}

fn head(body: Body) -> Response {
    let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // What nginx understands; others pass on what has no length as it comes.
    let unbuffered = (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    (StatusCode::OK, [content_type, unbuffered], body).into_response()
}

/// Finds on whose behalf a reader comes, and whether that may read what it asks for.
async fn authorise(gateway: &Gateway, credentials: &Credentials, asked: &Asked) -> Result<Whose, ApiError> {
    let (identified, source) = hello::identify(gateway, credentials, None).await.map_err(at_header)?;
    let read = match identified {
        Identified::Nobody => Ok(None),
        Identified::Backed(claims) => {
            let view = backed::view_of(*claims, &gateway.config.session, clock::wall_ms());
            Ok(Some((Standing::Backed { expires_ms: view.record.expires_ms }, view)))
        }
        Identified::Session(signed) => match gateway.service.session(signed.session).await {
            Ok(view) if signed.number < view.record.token => Err(SlotError::OldToken.into()),
            read => read.map(|view| Some((Standing::Session { token: signed.number }, view.of_any()))),
        },
    };
    let read = match read {
        // As for a WebSocket: a page cannot drop a cookie that scripts cannot see.
        Err(refused)
            if hello::is_past(&refused) && source == Some(Source::Cookie) && gateway.config.session.anonymous =>
        {
            None
        }
        // Who is told that there is no session is to get another token, not to look for another path.
        Err(refused) if refused.is_session_over() => {
            return Err(at_header(Refused::saying(Reason::Unauthorized, refused.words)));
        }
        read => read.map_err(at_header)?,
    };
    let view = read.as_ref().map(|(_, view)| view);
    for group in &asked.groups {
        may_read(gateway, view, group)
            .map_err(|refused| ApiError::at(refused.reason, asked.place.clone(), &refused.words))?;
    }
    Ok(match read {
        Some((standing, view)) => Whose { session: view.record.id, user: view.record.user, standing },
        None => Whose { session: SessionId(Uuid::new_v4()), user: String::new(), standing: Standing::Nobody },
    })
}

/// What is wrong with a session is wrong with what names it.
fn at_header(refused: Refused) -> ApiError {
    let place = match refused.reason {
        Reason::Unauthorized | Reason::TokenExpired => loc!["header", "authorization"],
        Reason::ForbiddenOrigin => loc!["header", "origin"],
        _ => return refused.into(),
    };
    ApiError::at(refused.reason, place, &refused.words)
}

/// Whether a session, or nobody's, may read a group.
fn may_read(gateway: &Gateway, view: Option<&ClientView>, group: &GroupName) -> Result<(), Refused> {
    let grants = view.map_or(&[][..], |view| &view.record.grants);
    let is_own = |view: &ClientView| {
        let user = &view.record.user;
        *group == GroupName::of_session(view.record.id) || (!user.is_empty() && *group == GroupName::of_user(user))
    };
    let member = view.is_some_and(|view| if group.is_private() { is_own(view) } else { view.is_in(group) });
    Ok(access::may_read(&gateway.service.options(group), grants, member, group)?)
}

#[cfg(test)]
mod tests;
