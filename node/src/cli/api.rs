//! Calls to a node's HTTP API, with errors that say what to try next.

use std::{error::Error, time::Duration};

use anyhow::Context;
use axum::body::{Body, to_bytes};
use hyper::{
    Method, Request, StatusCode,
    header::{self, HeaderValue},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde_json::Value;

use super::url::NodeUrl;

const DEADLINE: Duration = Duration::from_secs(15);

/// No answer of a node is longer.
const ANSWER_MAX_BYTES: usize = 256 << 20;

/// Where the API is, and the key for it.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ApiArgs {
    /// A node of the cluster
    #[arg(long, env = "ROOST_URL", default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// The key for the HTTP API (`auth.api_keys`)
    #[arg(long, env = "ROOST_API_KEY", hide_env_values = true, default_value = "dev-key")]
    pub api_key: String,
}

/// A node's HTTP API.
#[derive(Debug, Clone)]
pub(super) struct Api {
    client: Client<HttpConnector, Body>,
    base: NodeUrl,
    authorization: HeaderValue,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct Refusal {
    /// The reason, and what to try.
    pub message: String,
    /// The same call may work after this; a publish with the same key is never made twice.
    pub retry_after: Option<Duration>,
}

impl Api {
    pub(super) fn new(args: &ApiArgs) -> anyhow::Result<Self> {
        let base = NodeUrl::parse(&args.url, "http")?;
        let authorization = HeaderValue::try_from(format!("Bearer {}", args.api_key));
        let authorization = authorization.context("an API key has no such characters")?;
        // A proxy of the environment is for the world outside, not for the nodes: this client knows of none.
        let client = Client::builder(TokioExecutor::new()).build_http();
        Ok(Self { client, base, authorization })
    }

    pub(super) async fn get(&self, path: &[&str]) -> Result<String, Refusal> {
        self.send(self.request(Method::GET, path, None)?).await
    }

    pub(super) async fn post(&self, path: &[&str], body: String) -> Result<String, Refusal> {
        self.send(self.request(Method::POST, path, Some(body))?).await
    }

    /// Without a body, with parameters after the `?`.
    pub(super) async fn post_with(&self, path: &[&str], query: &str) -> Result<String, Refusal> {
        let mut request = self.request(Method::POST, path, None)?;
        let uri = format!("{}?{query}", request.uri());
        *request.uri_mut() =
            uri.parse().map_err(|error| Refusal { message: format!("{uri}: {error}"), retry_after: None })?;
        self.send(request).await
    }

    fn request(&self, method: Method, path: &[&str], body: Option<String>) -> Result<Request<Body>, Refusal> {
        let refuse = |message: String| Refusal { message, retry_after: None };
        if let Some(dots) = path.iter().find(|part| matches!(**part, "." | "..")) {
            return Err(refuse(format!(
                "{dots:?} cannot stand in a URL's path: a group of this name is not reached over HTTP"
            )));
        }
        let url = self.base.join(path).map_err(|error| refuse(format!("{error:#}")))?;
        let mut request = Request::builder().method(method).uri(url.to_string());
        request = request.header(header::AUTHORIZATION, &self.authorization);
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map_or_else(Body::empty, Body::from);
        request.body(body).map_err(|error| refuse(format!("{url}: {error}")))
    }

    async fn send(&self, request: Request<Body>) -> Result<String, Refusal> {
        let exchange = tokio::time::timeout(DEADLINE, self.exchange(request)).await;
        let (status, retry_after, body) = exchange
            .unwrap_or_else(|_| Err(format!("{} did not answer within {} s", self.base, DEADLINE.as_secs())))
            .map_err(|message| Refusal { message, retry_after: None })?;
        if status.is_success() {
            return Ok(body);
        }
        let reason = reason(&body).unwrap_or_else(|| "no reason given".to_owned());
        let hint = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                "; name a key of the node's auth.api_keys with --api-key or ROOST_API_KEY (`roost dev` takes dev-key)"
            }
            StatusCode::NOT_FOUND if reason == "no reason given" => "; is this a Roost node?",
            _ => "",
        };
        Err(Refusal {
            message: format!("{} answered {status}: {reason}{hint}", self.base),
            retry_after: retry_after.map(Duration::from_secs),
        })
    }

    /// The status, after how many seconds to try again, and the whole body.
    async fn exchange(&self, request: Request<Body>) -> Result<(StatusCode, Option<u64>, String), String> {
        let base = &self.base;
        let answer = self.client.request(request).await.map_err(|error| {
            if error.is_connect() {
                let cause = root(&error);
                format!(
                    "{base} cannot be reached ({cause}); start a cluster with `roost dev`, or name a node with --url"
                )
            } else {
                format!("{base}: {error} ({})", root(&error))
            }
        })?;
        let (parts, body) = answer.into_parts();
        let retry_after = parts.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = to_bytes(Body::new(body), ANSWER_MAX_BYTES).await;
        let body = body.map_err(|error| format!("{base}: the answer broke off ({})", root(&error)))?;
        Ok((parts.status, retry_after, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// The messages of `{"detail": [{loc, msg, type}]}`, or what else there is to read.
fn reason(body: &str) -> Option<String> {
    let Ok(value) = serde_json::from_str::<Value>(body) else {
        let line = body.lines().next().unwrap_or("").trim();
        return (!line.is_empty()).then(|| line.chars().take(200).collect());
    };
    let Some(details) = value["detail"].as_array() else {
        return ["message", "detail", "error"].iter().find_map(|key| value[key].as_str()).map(str::to_owned);
    };
    let lines: Vec<String> = details
        .iter()
        .map(|detail| {
            let loc: Vec<String> = detail["loc"].as_array().into_iter().flatten().map(step).collect();
            let msg = detail["msg"].as_str().unwrap_or("");
            if loc.is_empty() { msg.to_owned() } else { format!("{}: {msg}", loc.join(".")) }
        })
        .collect();
    (!lines.is_empty()).then(|| lines.join("; "))
}

fn step(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The innermost cause: what the system said.
fn root(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(url: &str) -> anyhow::Result<Api> {
        Api::new(&ApiArgs { url: url.to_owned(), api_key: "k".to_owned() })
    }

    #[test]
    fn a_path_does_not_climb() {
        assert!(api("http://a").unwrap().request(Method::GET, &["v1", ".."], None).is_err());
    }

    #[test]
    fn reasons_are_read_from_what_comes() {
        let check = |body: &str, expected: Option<&str>| assert_eq!(reason(body).as_deref(), expected, "{body}");
        check(
            r#"{"detail":[{"loc":["body","groups",3],"msg":"bad","type":"x"},{"loc":[],"msg":"worse"}]}"#,
            Some("body.groups.3: bad; worse"),
        );
        check(r#"{"message":"no"}"#, Some("no"));
        check("<html>\n...", Some("<html>"));
        check("", None);
        check("{}", None);
    }

    #[tokio::test]
    async fn a_refused_connection_says_what_to_try() {
        // A port that was free a moment ago: bound, and let go.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let error = api(&format!("http://127.0.0.1:{port}")).unwrap().get(&["livez"]).await.unwrap_err();
        assert!(error.message.contains("roost dev") && error.retry_after.is_none(), "{}", error.message);
    }
}
