//! A bare WebSocket to a node: what the test client is built on, and what the tests of bad input send their rubbish by.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async_with_config,
    tungstenite::{
        Bytes, Error, Message,
        client::IntoClientRequest,
        http::{HeaderName, HeaderValue},
        protocol::{
            WebSocketConfig,
            frame::{
                Frame,
                coding::{Data, OpCode},
            },
        },
    },
};

/// How long a connection may take to be made, and an answer to come.
pub const LIMIT: Duration = Duration::from_secs(10);

/// An open connection.
pub struct Socket {
    inner: WebSocketStream<MaybeTlsStream<TcpStream>>,
}

/// What came from the node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Received {
    /// A text frame.
    Text(Box<str>),
    /// The end, with its close code (1006 where there was none) and reason.
    Closed(u16, String),
}

impl Socket {
    /// Connects to `/ws` of the node with this base URL (`http://host:port`).
    pub async fn connect(http_url: &str) -> Result<Self> {
        Self::connect_with(http_url, "/ws", &[]).await
    }

    /// Connects with these headers in the upgrade request.
    pub async fn connect_with(http_url: &str, path: &str, headers: &[(&str, &str)]) -> Result<Self> {
        let url = format!("{}{path}", http_url.replacen("http", "ws", 1));
        let mut request = url.as_str().into_client_request()?;
        for (name, value) in headers {
            request.headers_mut().insert(HeaderName::try_from(*name)?, HeaderValue::try_from(*value)?);
        }
        let config = WebSocketConfig::default().read_buffer_size(16 << 10).write_buffer_size(16 << 10);
        let connecting = connect_async_with_config(request, Some(config), true);
        let (inner, _) = tokio::time::timeout(LIMIT, connecting)
            .await
            .with_context(|| format!("{url} did not answer within {LIMIT:?}"))?
            .with_context(|| format!("connecting to {url}"))?;
        Ok(Self { inner })
    }

    /// Sends a JSON value as a text frame.
    pub async fn send(&mut self, value: &Value) -> Result<()> {
        self.send_text(value.to_string()).await
    }

    /// Sends a text frame.
    pub async fn send_text(&mut self, text: String) -> Result<()> {
        Ok(self.inner.send(Message::text(text)).await?)
    }

    /// Sends a binary frame.
    pub async fn send_binary(&mut self, bytes: Vec<u8>) -> Result<()> {
        Ok(self.inner.send(Message::Binary(Bytes::from(bytes))).await?)
    }

    /// Sends a text frame with any bytes, valid UTF-8 or not.
    pub async fn send_text_bytes(&mut self, bytes: Vec<u8>) -> Result<()> {
        let frame = Frame::message(bytes, OpCode::Data(Data::Text), true);
        Ok(self.inner.send(Message::Frame(frame)).await?)
    }

    /// Puts a text frame where [`Socket::flush`] sends it from.
    pub async fn feed(&mut self, text: String) -> Result<()> {
        Ok(self.inner.feed(Message::text(text)).await?)
    }

    /// Sends what was fed.
    pub async fn flush(&mut self) -> Result<()> {
        Ok(self.inner.flush().await?)
    }

    /// What comes next, however long that takes. Cancel-safe.
    pub async fn next(&mut self) -> Received {
        loop {
            return match self.inner.next().await {
                Some(Ok(Message::Text(text))) => Received::Text(text.as_str().into()),
                Some(Ok(Message::Binary(bytes))) => Received::Text(format!("{} binary bytes", bytes.len()).into()),
                Some(Ok(Message::Close(Some(frame)))) => Received::Closed(frame.code.into(), frame.reason.to_string()),
                Some(Ok(Message::Close(None))) => Received::Closed(1005, String::new()),
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => continue,
                Some(Err(Error::ConnectionClosed | Error::AlreadyClosed)) | None => {
                    Received::Closed(1006, "closed".to_owned())
                }
                Some(Err(error)) => Received::Closed(1006, error.to_string()),
            };
        }
    }

    /// The next frame, as JSON.
    pub async fn frame(&mut self) -> Result<Value> {
        match tokio::time::timeout(LIMIT, self.next()).await.context("no frame came")? {
            Received::Text(text) => serde_json::from_str(&text).with_context(|| format!("not JSON: {text}")),
            Received::Closed(code, reason) => bail!("the connection was closed: {code} {reason}"),
        }
    }

    /// The next frame of this type; others before it are passed over.
    pub async fn frame_of(&mut self, kind: &str) -> Result<Value> {
        loop {
            let frame = self.frame().await.with_context(|| format!("waiting for {kind}"))?;
            if frame["type"] == kind {
                return Ok(frame);
            }
        }
    }

    /// The answer to the request with this `id`.
    pub async fn answer_to(&mut self, id: &Value) -> Result<Value> {
        loop {
            let frame = self.frame().await.with_context(|| format!("waiting for the answer to {id}"))?;
            if frame["id"] == *id {
                return Ok(frame);
            }
        }
    }

    /// Sends and waits for the answer with the same `id`.
    pub async fn ask(&mut self, value: &Value) -> Result<Value> {
        self.send(value).await?;
        self.answer_to(&value["id"]).await
    }

    /// What comes until the end, and the end's code; an error where there is no end in time.
    pub async fn until_closed(&mut self) -> Result<(Vec<Value>, u16)> {
        let mut frames = Vec::new();
        let ending = async {
            loop {
                match self.next().await {
                    Received::Text(text) => frames.push(serde_json::from_str(&text).unwrap_or(Value::Null)),
                    Received::Closed(code, _) => return code,
                }
            }
        };
        match tokio::time::timeout(LIMIT, ending).await {
            Ok(code) => Ok((frames, code)),
            Err(_) => bail!("the connection was not closed; it got {frames:?}"),
        }
    }

    /// Ends it as the standard says.
    pub async fn close(mut self) {
        let _ = tokio::time::timeout(LIMIT, async {
            if self.inner.close(None).await.is_ok() {
                while let Received::Text(_) = self.next().await {}
            }
        })
        .await;
    }
}
