//! A reader of server-sent events, as strict as the standards are: HTTP in chunks (RFC 9112, 7.1), and events as the HTML
//! standard (9.2) has them parsed. It reads from a socket of its own, or what `curl` prints.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    process::{Child, Command},
};

/// For the next event, wherever a test knows no better.
pub const LIMIT: Duration = Duration::from_secs(30);

/// An event.
#[derive(Clone, PartialEq, Debug)]
pub struct Event {
    /// `message` where it has no name.
    pub kind: String,
    pub data: Value,
    /// The last id that came with it or before it; empty before the first.
    pub id: String,
}

/// Where the bytes come from.
enum Source {
    /// What came of the answer and is not decoded yet.
    Socket(TcpStream, Vec<u8>),
    Curl(Box<Child>),
}

/// An open stream of events.
pub struct Reader {
    source: Source,
    /// Of the body, what no event was made of yet.
    text: Vec<u8>,
    id: String,
    /// The last `retry:`.
    pub retry_ms: Option<u64>,
    /// How many comments came.
    pub comments: usize,
    ended: bool,
}

/// What a node answers that gives no events.
#[derive(Clone, PartialEq, Debug)]
pub struct Refusal {
    pub status: u16,
    /// The head, in lower case.
    pub head: String,
    pub body: Value,
}

impl Reader {
    /// Opens a stream, or gives the refusal.
    pub async fn open(node: &str, path: &str, headers: &[(&str, &str)]) -> Result<Result<Self, Refusal>> {
        Self::open_over(TcpSocket::new_v4()?, node, path, headers).await
    }

    /// The same over a socket with settings of its own.
    pub async fn open_over(
        socket: TcpSocket,
        node: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Result<Self, Refusal>> {
        let address: SocketAddr = node.trim_start_matches("http://").parse()?;
        let mut socket = socket.connect(address).await?;
        let mut request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\n");
        headers.iter().for_each(|(name, value)| request += &format!("{name}: {value}\r\n"));
        socket.write_all(format!("{request}\r\n").as_bytes()).await?;
        let mut bytes = Vec::new();
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|end| end == b"\r\n\r\n") {
                break at + 4;
            }
            ensure!(read(&mut socket, &mut bytes).await? > 0, "the connection ended before the head of an answer");
        };
        let rest = bytes.split_off(end);
        let head = String::from_utf8(bytes)?.to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("a status line")?;
        if status != 200 {
            let mut body = rest;
            while read(&mut socket, &mut body).await? > 0 {}
            return Ok(Err(Refusal { status, head, body: serde_json::from_slice(&body).unwrap_or_default() }));
        }
        for line in [
            "content-type: text/event-stream",
            "transfer-encoding: chunked",
            "cache-control: no-store",
            "x-accel-buffering: no",
        ] {
            // That one is for nginx, which does not pass it on.
            if line.starts_with("x-accel") && head.contains("server: nginx") {
                continue;
            }
            ensure!(head.contains(line), "the head lacks `{line}`: {head}");
        }
        Ok(Ok(Self::of(Source::Socket(socket, rest))))
    }

    /// The same by `curl -N`, which is to know nothing but the URL and the headers.
    pub fn by_curl(node: &str, path: &str, headers: &[(&str, &str)]) -> Result<Self> {
        let mut curl = Command::new("curl");
        curl.args(["-sSN", "--fail"]);
        for (name, value) in headers {
            curl.args(["-H", &format!("{name}: {value}")]);
        }
        let child = curl.arg(format!("{node}{path}")).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        Ok(Self::of(Source::Curl(Box::new(child.spawn().context("curl")?))))
    }

    fn of(source: Source) -> Self {
        Self { source, text: Vec::new(), id: String::new(), retry_ms: None, comments: 0, ended: false }
    }

    /// The last id, as a client that comes again sends it.
    pub fn last_id(&self) -> &str {
        &self.id
    }

    /// The next event; nothing where the stream has ended, whole or not.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        tokio::time::timeout(LIMIT, self.read_event()).await.context("no event came")?
    }

    /// The next event of this kind; others before it are passed over, but for those that tell of a loss.
    pub async fn event(&mut self, kind: &str) -> Result<Event> {
        loop {
            let event = self.next().await?.with_context(|| format!("the stream ended before a `{kind}`"))?;
            if event.kind == kind {
                return Ok(event);
            }
            ensure!(!matches!(event.kind.as_str(), "gap" | "reset"), "{event:?} came before a `{kind}`");
        }
    }

    async fn read_event(&mut self) -> Result<Option<Event>> {
        loop {
            while let Some(end) = self.text.windows(2).position(|end| end == b"\n\n") {
                let block: Vec<u8> = self.text.drain(..end + 2).collect();
                if let Some(event) = self.block(std::str::from_utf8(&block)?)? {
                    return Ok(Some(event));
                }
            }
            if self.ended || !self.more().await? {
                return Ok(None);
            }
        }
    }

    /// Lines up to an empty one.
    fn block(&mut self, block: &str) -> Result<Option<Event>> {
        let (mut kind, mut data) = ("message", Vec::new());
        for line in block.split('\n').filter(|line| !line.is_empty()) {
            let (field, value) = line.split_once(':').context("a line of an event has a colon")?;
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" => self.comments += 1,
                "id" => value.clone_into(&mut self.id),
                "event" => kind = value,
                "data" => data.push(value),
                "retry" => self.retry_ms = Some(value.parse()?),
                other => bail!("no event has a field {other}"),
            }
        }
        if data.is_empty() {
            return Ok(None);
        }
        let data = serde_json::from_str(&data.join("\n"))?;
        Ok(Some(Event { kind: kind.to_owned(), data, id: self.id.clone() }))
    }

    /// Reads more of the body; false at its end.
    async fn more(&mut self) -> Result<bool> {
        match &mut self.source {
            Source::Curl(curl) => {
                let out = curl.stdout.as_mut().context("curl prints")?;
                Ok(out.read_buf(&mut self.text).await? > 0)
            }
            Source::Socket(socket, bytes) => loop {
                if let Some((chunk, rest)) = chunk(bytes)? {
                    let (chunk, left) = (chunk.to_vec(), bytes.len() - rest);
                    bytes.drain(..left);
                    self.ended = chunk.is_empty();
                    self.text.extend(chunk);
                    return Ok(!self.ended);
                }
                // A node that is killed leaves its answers unfinished.
                if !matches!(read(socket, bytes).await, Ok(1..)) {
                    return Ok(false);
                }
            },
        }
    }

    /// Whether the answer ended as it should.
    pub fn ended_whole(&self) -> bool {
        self.ended && self.text.is_empty()
    }
}

async fn read(socket: &mut TcpStream, bytes: &mut Vec<u8>) -> Result<usize> {
    Ok(tokio::time::timeout(LIMIT, socket.read_buf(bytes)).await.context("nothing came")??)
}

/// The first chunk, where all of it is there, and how much follows it.
fn chunk(bytes: &[u8]) -> Result<Option<(&[u8], usize)>> {
    let Some(at) = bytes.windows(2).position(|end| end == b"\r\n") else { return Ok(None) };
    let length = usize::from_str_radix(std::str::from_utf8(&bytes[..at])?, 16)?;
    let Some((chunk, rest)) = bytes[at + 2..].split_at_checked(length) else { return Ok(None) };
    match rest {
        [b'\r', b'\n', rest @ ..] => Ok(Some((chunk, rest.len()))),
        [] | [b'\r'] => Ok(None),
        _ => bail!("a chunk is longer than it says"),
    }
}
