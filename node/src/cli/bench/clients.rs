//! The bench's clients: subscribers that stamp what arrives, publishers that keep what is under way bounded.

use std::sync::{Arc, atomic::Ordering};

use anyhow::{Context, bail};
use futures_util::{StreamExt, stream::FuturesUnordered};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Progress, Via};
use crate::{
    cli::{
        api::{Api, ApiArgs},
        print,
        url::NodeUrl,
        websocket::{Client, Frame, refused},
    },
    clock,
};

/// Publishes of one publisher that wait for their answers.
const UNDER_WAY: usize = 64;
const HEARTBEAT: std::time::Duration = std::time::Duration::from_secs(10);

/// What a subscriber saw.
#[derive(Debug, Default)]
pub(super) struct Received {
    /// From each message's being due to its arrival.
    pub latency_us: Vec<u64>,
    /// Offsets that did not follow the one before.
    pub disorder: u64,
}

impl Received {
    pub(super) fn add(&mut self, other: Self) {
        self.latency_us.extend(other.latency_us);
        self.disorder += other.disorder;
    }
}

/// What a publisher was answered.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// From each message's being due to its answer.
    pub answer_us: Vec<u64>,
    /// Publishes that were answered with an error.
    pub refused: u64,
}

impl Published {
    pub(super) fn add(&mut self, other: Self) {
        self.answer_us.extend(other.answer_us);
        self.refused += other.refused;
    }
}

/// The `data` of a message; what pads it is left alone.
#[derive(Deserialize)]
struct Stamp {
    due_us: u64,
}

fn data(due_us: u64, bytes: usize) -> serde_json::Value {
    let bare = json!({ "due_us": due_us, "pad": "" }).to_string().len();
    json!({ "due_us": due_us, "pad": "x".repeat(bytes.saturating_sub(bare)) })
}

/// Connects to a node as a new session and joins the group. Gives the join point's offset too.
async fn join(url: &str, group: &str) -> anyhow::Result<(Client, u64)> {
    let socket = NodeUrl::parse(url, "http")?.join(&["ws"])?.with_scheme("ws");
    let mut client = Client::open(&socket.to_string()).await?;
    client
        .hello(&json!({ "type": "hello" }))
        .await
        .context("the bench needs sessions for anyone (session.anonymous = true)")?;
    client.send(&json!({ "type": "join", "id": 0, "group": group })).await?;
    loop {
        let text = client.next().await?;
        let frame = Frame::parse(&text)?;
        match &*frame.kind {
            "joined" if frame.group == group => return Ok((client, frame.offset)),
            "error" | "bye" => return Err(refused(&frame)),
            _ => {}
        }
    }
}

/// One that listens.
pub(super) struct Subscriber {
    client: Client,
    group: String,
    expected: u64,
    offset: u64,
}

impl Subscriber {
    pub(super) async fn join(url: &str, group: &str, expected: u64) -> anyhow::Result<Self> {
        let (client, offset) = join(url, group).await?;
        Ok(Self { client, group: group.to_owned(), expected, offset })
    }

    /// Listens until everything is there or it is told to stop, and reports.
    pub(super) async fn run(
        mut self,
        progress: Arc<Progress>,
        enough: CancellationToken,
        done: mpsc::Sender<Received>,
    ) {
        let mut received = Received::default();
        let listening = async {
            while (received.latency_us.len() as u64) < self.expected {
                match tokio::time::timeout(HEARTBEAT, self.client.next()).await {
                    Ok(text) => {
                        let text = text?;
                        let now_us = clock::mono_us();
                        self.take(&text, now_us, &mut received, &progress)?;
                    }
                    Err(_) => self.client.send(&json!({ "type": "heartbeat" })).await?,
                }
            }
            anyhow::Ok(())
        };
        tokio::select! {
            biased;
            () = enough.cancelled() => {}
            result = listening => if let Err(error) = result {
                print::note(format_args!("a subscriber of {}: {error:#}", self.group));
            },
        }
        let _ = done.send(received).await;
    }

    fn take(&mut self, text: &str, now_us: u64, received: &mut Received, progress: &Progress) -> anyhow::Result<()> {
        let frame = Frame::parse(text)?;
        match &*frame.kind {
            "message" if frame.group == self.group => {
                let stamp = frame.data.and_then(|data| serde_json::from_str::<Stamp>(data.get()).ok());
                let stamp = stamp.context("a message that the bench did not publish")?;
                received.disorder += u64::from(frame.offset != self.offset + 1);
                self.offset = frame.offset;
                received.latency_us.push(now_us.saturating_sub(stamp.due_us));
                progress.delivered.fetch_add(1, Ordering::Relaxed);
            }
            "gap" | "reset" | "error" | "bye" => bail!("{}", text.trim()),
            _ => {}
        }
        Ok(())
    }
}

/// One that publishes.
pub(super) enum Publisher {
    /// As a client.
    Ws { client: Box<Client>, group: String, bytes: usize },
    /// As a server.
    Http { api: Box<Api>, group: String, bytes: usize },
}

impl Publisher {
    pub(super) async fn join(api: ApiArgs, group: String, via: Via, bytes: usize) -> anyhow::Result<Self> {
        match via {
            Via::Ws => Ok(Self::Ws { client: Box::new(join(&api.url, &group).await?.0), group, bytes }),
            Via::Http => Ok(Self::Http { api: Box::new(Api::new(&api)?), group, bytes }),
        }
    }

    /// Publishes what is due until nothing more will be and all is answered, and reports.
    pub(super) async fn run(
        self,
        due: mpsc::Receiver<u64>,
        progress: Arc<Progress>,
        enough: CancellationToken,
        done: mpsc::Sender<Published>,
    ) {
        let mut published = Published::default();
        let publishing = async {
            match self {
                Self::Ws { client, group, bytes } => {
                    over_ws(client, &group, bytes, due, &progress, &mut published).await
                }
                Self::Http { api, group, bytes } => {
                    over_http(&api, &group, bytes, due, &progress, &mut published).await
                }
            }
        };
        tokio::select! {
            biased;
            () = enough.cancelled() => {}
            result = publishing => if let Err(error) = result {
                print::note(format_args!("a publisher: {error:#}"));
            },
        }
        let _ = done.send(published).await;
    }
}

async fn over_ws(
    mut client: Box<Client>,
    group: &str,
    bytes: usize,
    mut due: mpsc::Receiver<u64>,
    progress: &Progress,
    published: &mut Published,
) -> anyhow::Result<()> {
    let mut under_way = std::collections::BTreeMap::new();
    let (mut next_id, mut more) = (1_u64, true);
    while more || !under_way.is_empty() {
        tokio::select! {
            message = due.recv(), if more && under_way.len() < UNDER_WAY => match message {
                Some(due_us) => {
                    let frame = json!({ "type": "publish", "id": next_id, "group": group, "data": data(due_us, bytes) });
                    client.send(&frame).await?;
                    under_way.insert(next_id, due_us);
                    next_id += 1;
                }
                None => more = false,
            },
            text = client.next() => {
                let text = text?;
                let frame = Frame::parse(&text)?;
                let due_us = frame.id.and_then(|id| under_way.remove(&id));
                match (&*frame.kind, due_us) {
                    ("published", Some(due_us)) => answered(due_us, progress, published),
                    ("error", _) => {
                        refuse(&refused(&frame).to_string(), progress, published);
                    }
                    ("bye", _) => return Err(refused(&frame)),
                    _ => {}
                }
            }
            () = tokio::time::sleep(HEARTBEAT) => client.send(&json!({ "type": "heartbeat" })).await?,
        }
    }
    Ok(())
}

async fn over_http(
    api: &Api,
    group: &str,
    bytes: usize,
    mut due: mpsc::Receiver<u64>,
    progress: &Progress,
    published: &mut Published,
) -> anyhow::Result<()> {
    let path = ["v1", "groups", group, "messages"];
    let mut under_way = FuturesUnordered::new();
    let mut more = true;
    while more || !under_way.is_empty() {
        tokio::select! {
            message = due.recv(), if more && under_way.len() < UNDER_WAY => match message {
                Some(due_us) => {
                    let body = json!({ "data": data(due_us, bytes) }).to_string();
                    let path = &path;
                    under_way.push(async move { (due_us, api.post(path, body).await) });
                }
                None => more = false,
            },
            Some((due_us, answer)) = under_way.next() => match answer {
                Ok(_) => answered(due_us, progress, published),
                Err(error) => refuse(&error.to_string(), progress, published),
            },
        }
    }
    Ok(())
}

fn answered(due_us: u64, progress: &Progress, published: &mut Published) {
    published.answer_us.push(clock::mono_us().saturating_sub(due_us));
    progress.answered.fetch_add(1, Ordering::Relaxed);
}

fn refuse(reason: &str, progress: &Progress, published: &mut Published) {
    // The first says it; thousands more would hide the rest.
    if published.refused == 0 {
        print::note(format_args!("a publish: {reason}"));
    }
    published.refused += 1;
    progress.answered.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_has_the_size_and_the_stamp() {
        for bytes in [64, 128, 1_000] {
            let text = data(123_456_789, bytes).to_string();
            assert_eq!(text.len(), bytes);
            assert_eq!(serde_json::from_str::<Stamp>(&text).unwrap().due_us, 123_456_789);
        }
    }
}
