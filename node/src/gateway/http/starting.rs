//! What is answered before the node serves: that it lives, and what it waits for. It may wait for its store for hours, and
//! whoever looks after it is not to take that for death.

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::sync::watch;

use super::{
    error::ApiError,
    mark_answer,
    probes::{NodeReport, Probe},
};
use crate::wire::reason::Reason;

/// What the node waits for, in words.
type Waiting = watch::Receiver<String>;

/// `/livez` is 200 and all else 503, each on a connection that ends with it: the next one is the serving node's.
pub fn routes(waiting: Waiting) -> Router {
    Router::new()
        .route("/livez", get(async || Json(Probe::ALIVE)))
        .route("/health", get(health))
        .fallback(not_yet)
        .layer(from_fn(mark_answer))
        .layer(from_fn(end_connection))
        .with_state(waiting)
}

async fn not_yet(State(waiting): State<Waiting>) -> ApiError {
    ApiError::saying(Reason::NotReady, words(&waiting))
}

async fn health(State(waiting): State<Waiting>) -> Response {
    (StatusCode::SERVICE_UNAVAILABLE, Json(NodeReport::starting(words(&waiting)))).into_response()
}

fn words(waiting: &Waiting) -> String {
    format!("starting: {}", *waiting.borrow())
}

async fn end_connection(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

#[cfg(test)]
mod tests {
    use axum::{
        body::{Body, to_bytes},
        http::Request,
    };
    use serde_json::Value;
    use tower::ServiceExt;

    use super::*;

    async fn ask(routes: &Router, path: &str) -> (StatusCode, bool, Value) {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let response = routes.clone().oneshot(request).await.unwrap();
        assert_eq!(response.headers()[header::CONNECTION], "close");
        let (status, comes_back) = (response.status(), response.headers().contains_key(header::RETRY_AFTER));
        let body = to_bytes(response.into_body(), 1 << 16).await.unwrap();
        (status, comes_back, serde_json::from_slice(&body).unwrap())
    }

    #[tokio::test]
    async fn a_node_that_waits_says_so() {
        let (waiting, words) = watch::channel("waiting for the store".to_owned());
        let routes = routes(words);
        let (status, _, body) = ask(&routes, "/livez").await;
        assert_eq!((status, &body["status"]), (StatusCode::OK, &"alive".into()));
        for path in ["/readyz", "/v1/groups", "/ws"] {
            let (status, comes_back, body) = ask(&routes, path).await;
            assert!(status == StatusCode::SERVICE_UNAVAILABLE && comes_back, "{path}: {status}");
            assert_eq!(body["detail"][0]["msg"], "starting: waiting for the store", "{path}");
        }
        waiting.send_replace("looking around".to_owned());
        let (status, _, body) = ask(&routes, "/health").await;
        assert_eq!((status, &body["status"]), (StatusCode::SERVICE_UNAVAILABLE, &"unavailable".into()));
        assert_eq!(body["checks"][0]["detail"], "starting: looking around");
    }
}
