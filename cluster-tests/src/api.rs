//! A small client of the HTTP API.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::{Method, Response};
use roost::{
    clock,
    id::{Epoch, Position},
};
use serde_json::{Value, json};

use crate::history::Replay;

/// The API key of the clusters that tests start.
pub const KEY: &str = "key-of-cluster-tests";

/// No call may take longer.
const LIMIT: Duration = Duration::from_secs(10);

/// One node's API.
#[derive(Clone, Debug)]
pub struct Api {
    base: String,
    key: Option<String>,
    http: reqwest::Client,
}

/// An answer: its status and its body, null where that is no JSON.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, parsed as JSON.
    pub body: Value,
}

/// A session as its creator gets it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Session {
    pub id: String,
    pub token: String,
}

impl Api {
    /// Of the node with this base URL.
    pub fn new(base: impl Into<String>) -> Self {
        let http = reqwest::Client::builder().timeout(LIMIT).build().expect("without TLS nothing can fail");
        Self { base: base.into(), key: Some(KEY.to_owned()), http }
    }

    /// The same with another key, or none.
    pub fn with_key(self, key: Option<&str>) -> Self {
        Self { key: key.map(str::to_owned), ..self }
    }

    /// Of which node.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Any call with any body.
    pub async fn raw(&self, method: Method, path: &str, content_type: Option<&str>, body: Vec<u8>) -> Result<Response> {
        let mut request = self.http.request(method, format!("{}{path}", self.base)).body(body);
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        request.send().await.with_context(|| format!("calling {}{path}", self.base))
    }

    /// Any call with a JSON body, or none where it is null.
    pub async fn call(&self, method: Method, path: &str, body: Value) -> Result<Answer> {
        let response = match body {
            Value::Null => self.raw(method, path, None, Vec::new()).await?,
            body => self.raw(method, path, Some("application/json"), body.to_string().into_bytes()).await?,
        };
        let status = response.status().as_u16();
        let text = response.text().await?;
        Ok(Answer { status, body: serde_json::from_str(&text).unwrap_or(Value::Null) })
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Result<Answer> {
        self.call(Method::GET, path, Value::Null).await
    }

    /// `POST`.
    pub async fn post(&self, path: &str, body: Value) -> Result<Answer> {
        self.call(Method::POST, path, body).await
    }

    /// `PATCH`.
    pub async fn patch(&self, path: &str, body: Value) -> Result<Answer> {
        self.call(Method::PATCH, path, body).await
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &str) -> Result<Answer> {
        self.call(Method::DELETE, path, Value::Null).await
    }

    /// Creates a session for a user.
    pub async fn create_session(&self, user: &str) -> Result<Session> {
        self.create_session_with(json!({"user": user})).await
    }

    /// Creates a session as described.
    pub async fn create_session_with(&self, body: Value) -> Result<Session> {
        let Answer { status, body } = self.post("/v1/sessions", body).await?;
        ensure!(status == 201, "creating a session: {status} {body}");
        let text = |value: &Value| value.as_str().map(str::to_owned).with_context(|| format!("incomplete: {body}"));
        Ok(Session { id: text(&body["session"]["id"])?, token: text(&body["token"])? })
    }

    /// Publishes as the server.
    pub async fn publish(&self, group: &str, data: &Value, key: Option<&str>) -> Result<(Position, u8)> {
        let path = format!("/v1/groups/{}/messages", escaped(group));
        let mut request = json!({"data": data});
        if let Some(key) = key {
            request["key"] = key.into();
        }
        let Answer { status, body } = self.post(&path, request).await?;
        ensure!(status == 200 || status == 201, "publishing to {group}: {status} {body}");
        let copies = body["copies"].as_u64().and_then(|copies| u8::try_from(copies).ok());
        Ok((position(&body)?, copies.with_context(|| format!("no copies in {body}"))?))
    }

    /// Reads all that a group's history holds after `since`, or from the start of what there is.
    pub async fn history(&self, group: &str, since: Option<Position>) -> Result<Replay> {
        let mut replay: Option<Replay> = None;
        let mut since = since;
        loop {
            let after =
                since.map_or(String::new(), |at| format!("since_epoch={}&since_offset={}&", at.epoch, at.offset));
            let path = format!("/v1/groups/{}/messages?{after}limit=1000", escaped(group));
            let Answer { status, body } = self.get(&path).await?;
            ensure!(status == 200, "history of {group}: {status} {body}");
            let epoch = epoch(&body)?;
            let page = body["messages"].as_array().with_context(|| format!("no messages in {body}"))?;
            let messages: Vec<_> = page
                .iter()
                .filter_map(|message| Some((message["offset"].as_u64()?, message["data"].to_string().into())))
                .collect();
            ensure!(messages.len() == page.len(), "messages without offset in {body}");
            let last = messages.last().map(|(offset, _)| *offset);
            match &mut replay {
                Some(replay) => replay.messages.extend(messages),
                None => {
                    replay = Some(Replay {
                        what: format!("the history of {group} from {}", self.base),
                        group: group.into(),
                        epoch,
                        at_us: clock::mono_us(),
                        messages,
                    });
                }
            }
            match last {
                Some(offset) if page.len() == 1_000 => since = Some(Position { epoch, offset }),
                _ => break,
            }
        }
        replay.context("a loop that runs at least once")
    }

    /// The cluster's health as this node reports it.
    pub async fn health(&self) -> Result<Value> {
        let Answer { status, body } = self.get("/v1/cluster/health").await?;
        ensure!(body["status"].is_string(), "no health report: {status} {body}");
        Ok(body)
    }

    /// Whether the node says that it is ready.
    pub async fn is_ready(&self) -> bool {
        self.get("/readyz").await.is_ok_and(|answer| answer.status == 200)
    }

    /// Whether this node reports the whole cluster as green, with this number of living members.
    pub async fn is_green(&self, members: usize) -> bool {
        self.health().await.is_ok_and(|health| {
            let living = health["nodes"].as_array().is_some_and(|nodes| {
                nodes.iter().filter(|node| node["alive"] == true && node["member"] == true).count() == members
            });
            health["status"] == "green" && living
        })
    }
}

/// Of a health report, the first reason that has the word in it.
pub fn reason<'a>(health: &'a Value, word: &str) -> Option<&'a str> {
    health["reasons"].as_array()?.iter().filter_map(Value::as_str).find(|reason| reason.contains(word))
}

/// The position that an answer names.
pub fn position(body: &Value) -> Result<Position> {
    let offset = body["offset"].as_u64().with_context(|| format!("no offset in {body}"))?;
    Ok(Position { epoch: epoch(body)?, offset })
}

fn epoch(body: &Value) -> Result<Epoch> {
    let epoch = body["epoch"].as_str().and_then(|epoch| Epoch::parse(epoch).ok());
    epoch.with_context(|| format!("no epoch in {body}"))
}

/// A name as a part of a path.
pub fn escaped(name: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    name.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped() {
        assert_eq!(escaped("chat:a b/ü-1"), "chat%3Aa%20b%2F%C3%BC-1");
    }
}
