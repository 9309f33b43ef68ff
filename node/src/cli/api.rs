//! Calls to a node's HTTP API, with errors that say what to try next.

use std::{error::Error, time::Duration};

use anyhow::{Context, bail};
use reqwest::{StatusCode, Url, header};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(15);

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
    client: reqwest::Client,
    base: Url,
    key: String,
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
        let base = parse_url(&args.url, "http")?;
        // A proxy of the environment is for the world outside, not for the nodes.
        let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().context("no HTTP client")?;
        Ok(Self { client, base, key: args.api_key.clone() })
    }

    pub(super) async fn get(&self, path: &[&str]) -> Result<String, Refusal> {
        self.send(self.client.get(self.url(path)?)).await
    }

    pub(super) async fn post(&self, path: &[&str], body: String) -> Result<String, Refusal> {
        let request = self.client.post(self.url(path)?).header(header::CONTENT_TYPE, "application/json").body(body);
        self.send(request).await
    }

    fn url(&self, path: &[&str]) -> Result<Url, Refusal> {
        let refuse = |message: String| Refusal { message, retry_after: None };
        if let Some(dots) = path.iter().find(|part| matches!(**part, "." | "..")) {
            return Err(refuse(format!(
                "{dots:?} cannot stand in a URL's path: a group of this name is not reached over HTTP"
            )));
        }
        let mut url = self.base.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => segments.pop_if_empty().extend(path),
            Err(()) => return Err(refuse(format!("{} has no path", self.base))),
        };
        Ok(url)
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<String, Refusal> {
        let answer = match request.bearer_auth(&self.key).send().await {
            Ok(answer) => answer,
            Err(error) => return Err(self.unreachable(&error)),
        };
        let status = answer.status();
        let retry_after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = answer.text().await.map_err(|error| self.unreachable(&error))?;
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

    fn unreachable(&self, error: &reqwest::Error) -> Refusal {
        let base = &self.base;
        let message = if error.is_timeout() {
            format!("{base} did not answer within {} s", DEADLINE.as_secs())
        } else if error.is_connect() {
            format!(
                "{base} cannot be reached ({}); start a cluster with `roost dev`, or name a node with --url",
                root(error)
            )
        } else {
            format!("{base}: {} ({})", error, root(error))
        };
        Refusal { message, retry_after: None }
    }
}

/// Reads a node's URL of this plain scheme, and says what to do about the secure one.
pub(super) fn parse_url(text: &str, scheme: &str) -> anyhow::Result<Url> {
    let url =
        Url::parse(text).with_context(|| format!("{text:?} is not a URL; one is like {scheme}://127.0.0.1:8000"))?;
    if url.scheme() == format!("{scheme}s") {
        bail!(
            "this command speaks {scheme}:// only, not TLS: name the node itself ({scheme}://host:8000), not what stands in front of it"
        );
    }
    if url.scheme() != scheme || url.host().is_none() {
        bail!("{text:?} must be like {scheme}://127.0.0.1:8000");
    }
    Ok(url)
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
    fn names_are_encoded_into_the_path() {
        let check = |base: &str, path: &[&str], expected: &str| {
            assert_eq!(api(base).unwrap().url(path).unwrap().as_str(), expected);
        };
        check(
            "http://a:8000",
            &["v1", "groups", "a/b ?#%ü", "messages"],
            "http://a:8000/v1/groups/a%2Fb%20%3F%23%25%C3%BC/messages",
        );
        check("http://a:8000/roost/", &["v1", "x"], "http://a:8000/roost/v1/x");
        assert!(api("http://a").unwrap().url(&["v1", ".."]).is_err());
    }

    #[test]
    fn urls_that_will_not_do_are_explained() {
        for (url, says) in [
            ("https://a", "not TLS"),
            ("a:8000", "must be like"),
            ("nonsense", "not a URL"),
            ("ws://a", "must be like"),
        ] {
            let error = format!("{:#}", api(url).unwrap_err());
            assert!(error.contains(says), "{url}: {error}");
        }
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
