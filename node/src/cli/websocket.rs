//! A client of the plain JSON protocol, for the commands that listen: one frame out, one frame in.

use std::{borrow::Cow, time::Duration};

use anyhow::{Context, anyhow};
use futures_util::{SinkExt, StreamExt};
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream,
    tungstenite::{Error, Message, Utf8Bytes},
};

use super::url::NodeUrl;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const WELCOME_LIMIT: Duration = Duration::from_secs(10);

/// A connection to a node.
#[derive(Debug)]
pub(super) struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// The URL as it was given.
    pub url: String,
}

/// Any frame of the protocol; which fields there are depends on `kind`. What is unknown is left alone.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Frame<'a> {
    #[serde(rename = "type", borrow)]
    pub kind: Cow<'a, str>,
    pub id: Option<u64>,
    #[serde(borrow)]
    pub group: Cow<'a, str>,
    #[serde(borrow)]
    pub epoch: Cow<'a, str>,
    pub offset: u64,
    /// A message that has no position.
    pub ephemeral: bool,
    pub recovered: bool,
    /// A number in `gap`, the publisher in `message`.
    pub from: Option<Value>,
    pub to: u64,
    pub code: Option<Value>,
    #[serde(borrow)]
    pub message: Cow<'a, str>,
    #[serde(borrow)]
    pub reason: Cow<'a, str>,
    pub reconnect: bool,
    pub after_ms: u64,
    pub retry_after_ms: Option<u64>,
    pub token: Option<String>,
    pub node: String,
    pub heartbeat_s: u64,
    pub groups: Vec<String>,
}

impl<'a> Frame<'a> {
    pub(super) fn parse(text: &'a str) -> anyhow::Result<Self> {
        serde_json::from_str(text)
            .with_context(|| format!("not a frame of the protocol: {}", text.chars().take(200).collect::<String>()))
    }

    /// The code as text, whether it came as a word or a number.
    pub(super) fn code_text(&self) -> String {
        match &self.code {
            Some(Value::String(word)) => word.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        }
    }
}

impl Client {
    /// Opens the socket; `hello` is the caller's to say.
    pub(super) async fn open(url: &str) -> anyhow::Result<Self> {
        let parsed = NodeUrl::parse(url, "ws")?;
        let connecting = Box::pin(tokio_tungstenite::connect_async(parsed.to_string()));
        match tokio::time::timeout(CONNECT_LIMIT, connecting).await {
            Ok(Ok((socket, _))) => Ok(Self { socket, url: url.to_owned() }),
            Ok(Err(error)) => Err(explain(url, error)),
            Err(_) => Err(anyhow!("{url} did not answer within {} s", CONNECT_LIMIT.as_secs())),
        }
    }

    /// Says `hello` and waits for the `welcome`, whose text it gives.
    pub(super) async fn hello(&mut self, hello: &Value) -> anyhow::Result<Utf8Bytes> {
        self.send(hello).await?;
        let welcome = async {
            let text = self.next().await?;
            let frame = Frame::parse(&text)?;
            match &*frame.kind {
                "welcome" => Ok(text),
                _ => Err(refused(&frame)),
            }
        };
        tokio::time::timeout(WELCOME_LIMIT, welcome)
            .await
            .map_err(|_| anyhow!("{} did not say welcome in time", self.url))?
    }

    pub(super) async fn send(&mut self, frame: &Value) -> anyhow::Result<()> {
        self.socket.send(Message::text(frame.to_string())).await.with_context(|| format!("{} is gone", self.url))
    }

    /// The next text frame. Cancel-safe. An error where the connection ended.
    pub(super) async fn next(&mut self) -> anyhow::Result<Utf8Bytes> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return Ok(text),
                Some(Ok(Message::Close(Some(close)))) => {
                    return Err(anyhow!("{} closed the connection: {} ({})", self.url, close.reason, close.code));
                }
                Some(Ok(Message::Close(None))) | None => return Err(anyhow!("{} closed the connection", self.url)),
                // tungstenite answers pings by itself.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(anyhow!("{}: {error}", self.url)),
            }
        }
    }
}

/// A `hello` or `join` that was answered by something else.
pub(super) fn refused(frame: &Frame<'_>) -> anyhow::Error {
    let text = if frame.message.is_empty() { &frame.reason } else { &frame.message };
    anyhow!("refused ({}): {text}", frame.code_text())
}

fn explain(url: &str, error: Error) -> anyhow::Error {
    match error {
        Error::Io(error) => {
            anyhow!("{url} cannot be reached ({error}); start a cluster with `roost dev`, or name a node with --url")
        }
        Error::Http(answer) => {
            let body = answer.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
            let body: String = body.chars().take(300).collect();
            anyhow!("{url} answered {} {}", answer.status(), body.trim())
        }
        other => anyhow!("{url}: {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_of_every_kind_parse() {
        for text in [
            r#"{"type":"welcome","session":"x","user":"","token":"v1.a.b.c","node":"n1","heartbeat_s":30,"groups":["a"]}"#,
            r#"{"type":"joined","id":1,"group":"g \"q\"","epoch":"00000000000000ff","offset":3,"recovered":true}"#,
            r#"{"type":"message","group":"a","epoch":"e","offset":1,"data":{"a":[1]},"from":{"session":"x","user":"u"}}"#,
            r#"{"type":"gap","group":"a","epoch":"e","from":1,"to":3,"reason":"trimmed"}"#,
            r#"{"type":"bye","code":"draining","reason":"b","reconnect":true,"after_ms":5}"#,
            r#"{"type":"error","code":"forbidden","message":"no","detail":[]}"#,
            r#"{"type":"something_new","x":1}"#,
        ] {
            Frame::parse(text).unwrap();
        }
        assert_eq!(Frame::parse(r#"{"type":"bye","code":4001}"#).unwrap().code_text(), "4001");
        assert!(Frame::parse("3").is_err());
    }
}
