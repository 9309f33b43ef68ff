//! One connection of a client: opened, let in, and then a text at a time.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, anyhow, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Error, Message, Utf8Bytes, http::Uri, protocol::WebSocketConfig},
};

use crate::dialect::{Dialect, Heard, Position, Return};

/// Connecting, and being let in and joined, take at most this each.
const LIMIT: Duration = Duration::from_secs(30);
/// Clients are many: none keeps more than this to read into.
const READ_BYTES: usize = 8 << 10;

/// Where a node's WebSocket is.
#[derive(Debug, Clone)]
pub struct Address {
    url: String,
    socket: SocketAddr,
}

impl Address {
    /// Of a node's `http://host:port`, perhaps with a path in front.
    ///
    /// # Errors
    /// Where it is no such URL, or its host has no address.
    pub async fn resolve(url: &str, dialect: &dyn Dialect) -> anyhow::Result<Self> {
        let uri: Uri = url.trim().parse().with_context(|| format!("{url:?} is no URL"))?;
        ensure!(uri.scheme_str() == Some("http"), "{url:?} must be like http://127.0.0.1:8000; TLS is not spoken here");
        let (Some(host), path) = (uri.host(), uri.path().trim_end_matches('/')) else { bail!("{url:?} names no host") };
        let port = uri.port_u16().unwrap_or(80);
        let bare = host.trim_matches(['[', ']']);
        let mut found = tokio::net::lookup_host((bare, port)).await.with_context(|| format!("{url} has no address"))?;
        let socket = found.next().with_context(|| format!("{url} has no address"))?;
        Ok(Self { url: format!("ws://{host}:{port}{path}/{}", dialect.path()), socket })
    }

    /// What is connected to.
    pub fn socket(&self) -> SocketAddr {
        self.socket
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    socket: WebSocketStream<TcpStream>,
    dialect: Arc<dyn Dialect>,
}

/// What a client got when it joined.
#[derive(Debug)]
pub struct Entered {
    /// What it is known by, where the server said so.
    pub token: Option<String>,
    /// Where it stands.
    pub position: Position,
    /// Whether the server says that nothing is missing.
    pub recovered: bool,
}

impl Client {
    /// Opens the socket.
    ///
    /// # Errors
    /// Where the node does not take it in time.
    pub async fn open(address: &Address, dialect: &Arc<dyn Dialect>) -> anyhow::Result<Self> {
        let config = WebSocketConfig::default().read_buffer_size(READ_BYTES).write_buffer_size(0);
        let connecting = async {
            let tcp = TcpStream::connect(address.socket).await.map_err(Error::Io)?;
            tcp.set_nodelay(true).map_err(Error::Io)?;
            client_async_with_config(&address.url, tcp, Some(config)).await
        };
        let url = &address.url;
        match tokio::time::timeout(LIMIT, Box::pin(connecting)).await {
            Ok(Ok((socket, _))) => Ok(Self { socket, dialect: dialect.clone() }),
            Ok(Err(Error::Io(error))) => Err(anyhow!("{url} cannot be reached ({error})")),
            Ok(Err(Error::Http(answer))) => {
                let body = answer.body().as_deref().map(String::from_utf8_lossy).unwrap_or_default();
                let body: String = body.chars().take(300).collect();
                Err(anyhow!("{url} answered {} {}", answer.status(), body.trim()))
            }
            Ok(Err(error)) => Err(anyhow!("{url}: {error}")),
            Err(_) => Err(anyhow!("{url} did not answer within {} s", LIMIT.as_secs())),
        }
    }

    /// Is let in and joins. Messages that come meanwhile go to `heard`.
    ///
    /// # Errors
    /// Where the server refuses, or does not answer in time.
    pub async fn enter(
        &mut self,
        group: &str,
        back: Option<&Return>,
        heard: &mut (impl FnMut(Heard<'_>) + Send),
    ) -> anyhow::Result<Entered> {
        let entering = Box::pin(self.enter_unbounded(group, back, heard));
        tokio::time::timeout(LIMIT, entering).await.map_err(|_| anyhow!("not let in within {} s", LIMIT.as_secs()))?
    }

    async fn enter_unbounded(
        &mut self,
        group: &str,
        back: Option<&Return>,
        heard: &mut (impl FnMut(Heard<'_>) + Send),
    ) -> anyhow::Result<Entered> {
        if let Some(hello) = self.dialect.hello(back) {
            self.say(hello).await?;
        }
        let (mut token, mut joins) = (None, (!self.dialect.greets()).then_some(true));
        loop {
            if joins.take() == Some(true) {
                let join = self.dialect.join(group, back.map(|back| &back.since));
                self.say(join).await?;
            }
            let text = self.text().await?;
            let (mut joined, mut refused) = (None, None);
            let says = self.read(&text, &mut |said| match said {
                Heard::Welcome { token: given, groups } => {
                    token = given;
                    joins = Some(!groups.iter().any(|name| name == group));
                }
                Heard::Joined { group: of, position, recovered } if of.is_empty() || of == group => {
                    joined = Some((position, recovered));
                }
                Heard::Joined { .. } => {}
                Heard::Refused { why, .. } => refused = Some(why),
                other => heard(other),
            })?;
            for say in says {
                self.say(say).await?;
            }
            if let Some(why) = refused {
                bail!("refused: {why}");
            }
            if let Some((position, recovered)) = joined {
                return Ok(Entered { token, position, recovered });
            }
        }
    }

    /// The next text. Cancel-safe.
    ///
    /// # Errors
    /// Where the connection has ended.
    pub async fn text(&mut self) -> anyhow::Result<Utf8Bytes> {
        loop {
            match self.socket.next().await {
                Some(Ok(Message::Text(text))) => return Ok(text),
                Some(Ok(Message::Close(Some(close)))) => {
                    bail!("the server closed the connection: {} ({})", close.reason, close.code)
                }
                Some(Ok(Message::Close(None))) | None => bail!("the server closed the connection"),
                // Pings are answered by the library.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error.into()),
            }
        }
    }

    /// Reads a text, and gives what has to be said to it at once.
    ///
    /// # Errors
    /// Where it is nothing of the dialect.
    pub fn read(&self, text: &str, heard: &mut (impl FnMut(Heard<'_>) + Send)) -> anyhow::Result<Vec<String>> {
        let mut says = Vec::new();
        self.dialect.read(text, &mut |said| match said {
            Heard::Say(say) => says.push(say),
            other => heard(other),
        })?;
        Ok(says)
    }

    /// Sends a text.
    ///
    /// # Errors
    /// Where the connection has ended.
    pub async fn say(&mut self, text: String) -> anyhow::Result<()> {
        Ok(self.socket.send(Message::text(text)).await?)
    }

    /// How it is talked to.
    pub fn dialect(&self) -> &dyn Dialect {
        &*self.dialect
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::roost::Roost;

    #[tokio::test]
    async fn who_is_told_of_another_group_has_not_joined_yet() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = async {
            let mut socket = tokio_tungstenite::accept_async(listener.accept().await.unwrap().0).await.unwrap();
            for frames in [
                &[
                    r#"{"type":"welcome","token":"t","groups":[]}"#,
                    r#"{"type":"joined","group":"@session:x","offset":0}"#,
                ][..],
                &[r#"{"type":"joined","group":"a","offset":7,"recovered":true}"#],
            ] {
                socket.next().await.unwrap().unwrap();
                for frame in frames {
                    socket.send(Message::text(*frame)).await.unwrap();
                }
            }
        };
        let client = async {
            let dialect: Arc<dyn Dialect> = Arc::new(Roost);
            let address = Address::resolve(&url, &Roost).await.unwrap();
            let mut client = Client::open(&address, &dialect).await.unwrap();
            client.enter("a", None, &mut |_| ()).await.unwrap()
        };
        let (entered, ()) = tokio::join!(client, server);
        assert_eq!((entered.position.offset, entered.recovered, entered.token.as_deref()), (7, true, Some("t")));
    }

    #[tokio::test]
    async fn urls_become_addresses() {
        for (url, expected) in [
            ("http://127.0.0.1:8000", "ws://127.0.0.1:8000/ws"),
            ("http://127.0.0.1:8000/a/", "ws://127.0.0.1:8000/a/ws"),
            ("http://[::1]:8000", "ws://[::1]:8000/ws"),
        ] {
            assert_eq!(Address::resolve(url, &Roost).await.unwrap().url, expected);
        }
        for url in ["https://127.0.0.1", "127.0.0.1:8000", "", "http://"] {
            assert!(Address::resolve(url, &Roost).await.is_err(), "{url}");
        }
    }
}
