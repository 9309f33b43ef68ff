//! HTTP: what backends call under `/v1`, what probes and balancers ask, and the documents. Every route stands in one
//! table, and a test holds the table and the OpenAPI document to each other.
//!
//! Nothing here keeps state: a call is checked, asked of the primary of its slot through [`Service`](crate::gateway::service::Service), and answered.

pub mod api;
pub mod clients;
pub mod cluster;
#[cfg(any(test, fuzzing))]
pub(crate) mod decoders;
pub mod docs;
pub mod error;
pub mod extract;
pub mod groups;
pub mod messages;
pub mod probes;
mod route;
pub mod sessions;
pub mod starting;

use std::{any::Any, sync::Arc, time::Duration};

use axum::{
    Router as Routes,
    extract::{MatchedPath, Request, State},
    http::{HeaderValue, Method, Uri, Version, header, request::Parts},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
};
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowHeaders, AllowOrigin, CorsLayer},
};

use self::{
    api::Api,
    error::{ApiError, loc},
    extract::require_key,
    route::Route,
};
use crate::{gateway::door::origin::is_listed, wire::reason::Reason};

/// How long a browser remembers what a page of another origin may ask.
const PREFLIGHT: Duration = Duration::from_secs(600);

/// Every documented route.
pub(crate) fn table() -> Vec<Route> {
    [sessions::table(), messages::table(), clients::table(), groups::table(), cluster::table(), probes::table()]
        .into_iter()
        .flatten()
        .collect()
}

/// The documented routes that are served beside the table, by who holds clients' connections.
#[cfg(test)]
const FOR_READERS: [&str; 2] = ["/v1/groups/{group}/events", "/v1/events"];

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

/// Lets the pages of these origins ask, with their cookies, and read what is answered (CORS, of the Fetch standard). Where none is listed
/// nothing is said of it: pages of other origins cannot.
pub fn for_pages_of(origins: &[String], routes: Routes) -> Routes {
    if origins.is_empty() {
        return routes;
    }
    let origins = origins.to_vec();
    let listed = move |origin: &HeaderValue, _: &Parts| origin.to_str().is_ok_and(|origin| is_listed(origin, &origins));
    let cors = CorsLayer::new()
        .allow_origin(AllowOrigin::predicate(listed))
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        // Whatever the page would send: a header that is not known does nothing.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([header::RETRY_AFTER])
        .max_age(PREFLIGHT);
    routes.layer(cors)
}

async fn no_such_path(uri: Uri) -> ApiError {
    let msg = format!("there is nothing at {}: /docs lists what there is", uri.path());
    ApiError::at(Reason::NotFound, loc!["path"], msg)
}

async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let msg = format!("{} does not take {method}: the Allow header lists what it takes", uri.path());
    ApiError::saying(Reason::MethodNotAllowed, msg)
}

/// Refuses a request of HTTP/1.1 that has no `Host` header, or several, as the standard asks (RFC 9112, 3.2): what stands
/// before a node may go by another one than the node does.
pub async fn names_its_host(request: Request, next: Next) -> Response {
    let hosts = request.headers().get_all(header::HOST).iter().count();
    if request.version() == Version::HTTP_11 && hosts != 1 {
        return ApiError::at(Reason::NoHost, loc!["header", "host"], Reason::NoHost.row().words).into_response();
    }
    next.run(request).await
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
