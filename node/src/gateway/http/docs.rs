//! The OpenAPI document, the pages that show it, the landing page, and our client for JavaScript. Everything comes out of the
//! binary: the pages load nothing from elsewhere, and say so to the browser.

mod bounds;

use std::sync::{Arc, OnceLock};

use axum::{
    Json, Router as Routes,
    extract::{Path, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{Html, IntoResponse, Redirect, Response},
    routing::get,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;
use sha2::{Digest, Sha256};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        Components, ContentBuilder, Ref, RefOr, ResponseBuilder, SecurityRequirement,
        path::{Operation, PathItem},
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{
    api::Api,
    clients, cluster,
    error::{ApiError, ErrorBody, loc},
    groups, messages, probes, sessions, table,
};
use crate::{config::Config, gateway::client::events, wire::reason::Reason};

const PAGE_POLICY: &str =
    "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'";

/// The whole document.
#[derive(Debug, OpenApi)]
#[openapi(
    info(title = "Roost", description = "Client sessions for a whole cluster: groups, broadcast and resume without a broker.\n\n\
        Every error has the body `{\"detail\": [{\"loc\": […], \"msg\": …, \"type\": …}]}`; `loc` is the way to what is wrong. \
        `503` and `504` carry `Retry-After`. Clients connect by WebSocket at `/ws`, readers by server-sent events; `/roost.js` is the client for JavaScript, an ES module.", license(name = "Apache-2.0", identifier = "Apache-2.0")),
    paths(
        sessions::create, sessions::read, sessions::change, sessions::end, sessions::renew_token, sessions::join, sessions::leave, sessions::of_user,
        sessions::end_of_user, messages::publish, messages::to_user, messages::to_session, messages::broadcast, messages::batch,
        clients::disconnect_session, clients::disconnect_user, clients::send,
        groups::list, groups::info, groups::history, groups::members, groups::presence, events::of_group, events::of_groups, cluster::nodes, cluster::map, cluster::health,
        cluster::drain, cluster::forget, probes::livez, probes::readyz, probes::health, probes::metrics,
    ),
    components(schemas(ErrorBody)),
    tags(
        (name = "sessions", description = "Who may connect, and what they may do"),
        (name = "messages", description = "Publishing and history"),
        (name = "clients", description = "Those that are connected"),
        (name = "groups", description = "What there is and who is there"),
        (name = "events", description = "Following groups by server-sent events, with a session's token, a JWT that a backend made, or the cookie; no key"),
        (name = "cluster", description = "Nodes, slots, health"),
        (name = "probes", description = "For balancers and monitoring; no key"),
    ),
    modifiers(&Common)
)]
struct Document;

/// What all keyed calls have in common, written once.
#[derive(Debug)]
struct Common;

impl Modify for Common {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_with(Components::new);
        components.add_security_scheme(
            "bearer",
            SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()),
        );
        components
            .add_security_scheme("x_api_key", SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("X-API-Key"))));
        for route in table().into_iter().filter(|route| route.key) {
            let item = document.paths.paths.get_mut(route.path);
            if let Some(operation) = item.and_then(|item| operation(item, &route.method)) {
                complete(operation);
            }
        }
    }
}

fn operation<'a>(item: &'a mut PathItem, method: &axum::http::Method) -> Option<&'a mut Operation> {
    match method.as_str() {
        "GET" => item.get.as_mut(),
        "POST" => item.post.as_mut(),
        "PATCH" => item.patch.as_mut(),
        "DELETE" => item.delete.as_mut(),
        _ => None,
    }
}

fn complete(operation: &mut Operation) {
    let scopes: [&str; 0] = [];
    operation.security =
        Some(["bearer", "x_api_key"].into_iter().map(|scheme| SecurityRequirement::new(scheme, scopes)).collect());
    let mut common = vec![
        ("401", "No API key, or not a known one"),
        ("422", "Something in the request is not valid: `loc` says where"),
        ("503", "Not done; try again after `Retry-After`"),
        ("504", "It may or may not have been done: repeat it, a publish with the same key"),
    ];
    if operation.request_body.is_some() {
        common.extend([("413", "Too large"), ("415", "Not `Content-Type: application/json`")]);
    }
    for (status, description) in common {
        operation.responses.responses.entry(status.to_owned()).or_insert_with(|| {
            let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody"))).build();
            RefOr::T(ResponseBuilder::new().description(description).content("application/json", content).build())
        });
    }
}

/// The OpenAPI document, with the bounds that this configuration sets.
pub fn document(config: &Config) -> Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    // A document of strings, numbers and lists: it is JSON.
    let mut document = DOCUMENT.get_or_init(|| serde_json::to_value(Document::openapi()).unwrap_or_default()).clone();
    bounds::add(&mut document, config);
    document
}

/// The routes that are for people and so not in the document.
pub(super) fn pages() -> Routes<Arc<Api>> {
    Routes::new()
        .route("/", get(landing))
        .route("/openapi.json", get(|State(api): State<Arc<Api>>| async move { Json(document(&api.config)) }))
        .route("/roost.js", get(client))
        .route("/docs", get(|| async { Redirect::permanent("/docs/") }))
        .route("/docs/", get(|| async { asset("index.html") }))
        .route("/docs/{file}", get(|Path(file): Path<String>| async move { asset(&file) }))
}

/// A file of the page that shows the document.
fn asset(file: &str) -> Response {
    let (content_type, text) = match file {
        "index.html" => ("text/html; charset=utf-8", include_str!("docs/index.html")),
        "docs.css" => ("text/css; charset=utf-8", include_str!("docs/docs.css")),
        "docs.js" => ("text/javascript; charset=utf-8", include_str!("docs/docs.js")),
        _ => {
            let msg = "there is no such file among the documents: they begin at /docs/";
            return ApiError::at(Reason::NotFound, loc!["path", "file"], msg).into_response();
        }
    };
    page([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))], text)
}

/// Our client for JavaScript, for pages from anywhere. It has a tag by its content: a browser that has it asks each time, and
/// gets it again only where this node has another one.
async fn client(headers: HeaderMap) -> Response {
    const TEXT: &str = include_str!("../../../clients/js/roost.js");
    static TAG: OnceLock<HeaderValue> = OnceLock::new();
    let tag = TAG.get_or_init(|| {
        let tag = format!("\"{}\"", URL_SAFE_NO_PAD.encode(Sha256::digest(TEXT)));
        HeaderValue::try_from(tag).expect("letters, digits and hyphens are a header's value")
    });
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let is_known = known.flat_map(|list| list.split(',')).any(|one| {
        let one = one.trim();
        one == "*" || one.strip_prefix("W/").unwrap_or(one).as_bytes() == tag.as_bytes()
    });
    let headers = [
        (header::ETAG, tag.clone()),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*")),
        (HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("cross-origin")),
        (header::CONTENT_TYPE, HeaderValue::from_static("text/javascript; charset=utf-8")),
    ];
    if is_known { (StatusCode::NOT_MODIFIED, headers).into_response() } else { (headers, TEXT).into_response() }
}

async fn landing() -> Response {
    page([], Html(include_str!("landing.html")))
}

fn page<const N: usize>(headers: [(HeaderName, HeaderValue); N], body: impl IntoResponse) -> Response {
    let mut response = (headers, body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=3600"));
    response
}
