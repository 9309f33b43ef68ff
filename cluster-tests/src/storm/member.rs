//! One light client: in one group, checks that what comes is contiguous, and comes back when its node is gone, as a client
//! should: after a moment of its own, to another node, when it is told to, with its token and where it stopped.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use rand::RngExt;
use roost::clock;
use serde::Deserialize;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{Error, Message, protocol::WebSocketConfig},
};

use super::generator::Tally;
use crate::socket::LIMIT;

/// A client that lost its connection waits for a time of its own within this.
const BACK_OFF_MS: u64 = 300;
/// And after each failure within twice as much as before, up to this.
const BACK_OFF_MAX_MS: u64 = 5_000;
const HEARTBEAT: Duration = Duration::from_secs(30);

/// Where a client goes.
pub(super) struct Place {
    pub(super) nodes: Arc<[SocketAddr]>,
    pub(super) source: Ipv4Addr,
    pub(super) group: Arc<str>,
}

/// What is known of a client.
#[derive(Default)]
pub(super) struct Standing(Mutex<Known>);

#[derive(Default)]
struct Known {
    epoch: Box<str>,
    offset: u64,
    /// How often it has joined its group.
    joins: u32,
    /// The head of the group when it last joined.
    goal: u64,
    caught_up_ms: Option<u64>,
    tally: Tally,
}

/// The client's task.
pub(super) struct Member {
    place: Place,
    standing: Arc<Standing>,
    room: Arc<Semaphore>,
    /// Held until it has joined for the first time.
    gathering: Option<OwnedSemaphorePermit>,
    token: Option<Box<str>>,
    node: usize,
}

type Stream = WebSocketStream<TcpStream>;

/// Any frame, as far as it matters here.
#[derive(Deserialize)]
struct Frame<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    group: Option<&'a str>,
    epoch: Option<&'a str>,
    offset: Option<u64>,
    recovered: Option<bool>,
    token: Option<&'a str>,
    groups: Option<Vec<&'a str>>,
    to: Option<u64>,
    retry_after_ms: Option<u64>,
    reconnect: Option<bool>,
    after_ms: Option<u64>,
}

/// Why there is no connection, and how long to wait for the next one, where somebody has said.
enum Lost {
    Gone,
    Failed,
    After(u64),
    ForGood,
}

impl Standing {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_joined(&self) -> bool {
        self.known().joins > 0
    }

    pub(super) fn offset(&self) -> u64 {
        self.known().offset
    }

    /// When it had, after coming back, all that there was when it came back.
    pub(super) fn caught_up_ms(&self) -> Option<u64> {
        self.known().caught_up_ms
    }

    /// Others had seen this much before.
    pub(super) fn must_have_reached(&self, head: u64) {
        let mut known = self.known();
        if known.caught_up_ms.is_some() && known.goal < head {
            let goal = known.goal;
            known.tally.wrong.push(format!("came back to a group that ends at {goal}, others had {head} before"));
        }
    }

    pub(super) fn must_be_at(&self, head: u64) {
        let mut known = self.known();
        if known.offset != head {
            let offset = known.offset;
            known.tally.wrong.push(format!("ends at {offset}, its group at {head}"));
        }
    }

    pub(super) fn add_to(&self, all: &mut Tally) {
        let Tally { refused, failed, byes, errors, duplicates, messages, wrong } = &self.known().tally;
        all.refused += refused;
        all.failed += failed;
        all.byes += byes;
        all.errors += errors;
        all.duplicates += duplicates;
        all.messages += messages;
        all.wrong.extend(wrong.iter().cloned());
    }
}

impl Known {
    fn joined(&mut self, frame: &Frame) {
        let (epoch, head) = (frame.epoch.unwrap_or_default(), frame.offset.unwrap_or(0));
        if self.joins == 0 {
            (self.epoch, self.offset) = (epoch.into(), head);
            // Gathering is no storm.
            (self.tally.refused, self.tally.failed) = (0, 0);
        } else if frame.recovered != Some(true) || *epoch != *self.epoch {
            self.tally.wrong.push(format!("came back at {} and was not recovered, but put at {head}", self.offset));
            (self.epoch, self.offset) = (epoch.into(), head);
        }
        self.joins += 1;
        self.goal = head;
        self.look();
    }

    fn message(&mut self, frame: &Frame) {
        let (epoch, offset) = (frame.epoch.unwrap_or_default(), frame.offset.unwrap_or(0));
        self.tally.messages += 1;
        if *epoch == *self.epoch && offset <= self.offset {
            self.tally.duplicates += 1;
            return;
        }
        if *epoch != *self.epoch || offset != self.offset + 1 {
            self.tally.wrong.push(format!("after {} {} came {epoch} {offset}", self.epoch, self.offset));
            self.epoch = epoch.into();
        }
        self.offset = offset;
        self.look();
    }

    fn look(&mut self) {
        if self.joins > 1 && self.caught_up_ms.is_none() && self.offset >= self.goal {
            self.caught_up_ms = Some(clock::wall_ms());
        }
    }
}

impl Member {
    pub(super) fn new(place: Place, standing: Arc<Standing>, room: Arc<Semaphore>) -> Self {
        Self { place, standing, room, gathering: None, token: None, node: 0 }
    }

    pub(super) async fn live(mut self) {
        self.gathering = self.room.clone().acquire_owned().await.ok();
        let mut back_off_ms = BACK_OFF_MS;
        loop {
            let Err(lost) = Box::pin(self.connection()).await;
            let random = |up_to_ms| rand::rng().random_range(0..=up_to_ms);
            let wait_ms = match lost {
                Lost::ForGood => return,
                Lost::After(ms) => ms + random(BACK_OFF_MS),
                Lost::Gone => {
                    back_off_ms = BACK_OFF_MS;
                    random(back_off_ms)
                }
                Lost::Failed => {
                    self.count(|tally| tally.failed += 1);
                    back_off_ms = (2 * back_off_ms).min(BACK_OFF_MAX_MS);
                    random(back_off_ms)
                }
            };
            tokio::time::sleep(Duration::from_millis(wait_ms)).await;
            if self.standing.has_joined() {
                let others = self.place.nodes.len() - 1;
                self.node = (self.node + 1 + rand::rng().random_range(0..others)) % self.place.nodes.len();
            }
        }
    }

    /// A connection, from its beginning to its end.
    async fn connection(&mut self) -> Result<std::convert::Infallible, Lost> {
        let connecting = tokio::time::timeout(LIMIT, self.connect());
        let mut stream = connecting.await.map_err(|_| Lost::Failed)??;
        let hello = self.hello();
        stream.send(Message::text(hello)).await.map_err(|_| Lost::Failed)?;
        let mut heartbeat = clock::deadline(HEARTBEAT);
        let mut welcomed = false;
        loop {
            let message = tokio::select! {
                message = stream.next() => message,
                () = tokio::time::sleep_until(heartbeat) => {
                    if !welcomed {
                        return Err(Lost::Failed);
                    }
                    heartbeat = clock::deadline(HEARTBEAT);
                    self.send(&mut stream, r#"{"type":"heartbeat"}"#.to_owned()).await?;
                    continue;
                }
            };
            let text = match message {
                Some(Ok(Message::Text(text))) => text,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                _ => return Err(if welcomed { Lost::Gone } else { Lost::Failed }),
            };
            let Ok(frame) = serde_json::from_str::<Frame>(&text) else {
                self.count(|tally| tally.wrong.push(format!("cannot be read: {text}")));
                continue;
            };
            welcomed |= frame.kind == "welcome";
            // Those of the session and of its user.
            if frame.group.is_some_and(|group| group != &*self.place.group) {
                continue;
            }
            self.take(&mut stream, &frame, &text).await?;
        }
    }

    async fn connect(&self) -> Result<Stream, Lost> {
        let node = self.place.nodes[self.node];
        let socket = TcpSocket::new_v4().map_err(|_| Lost::Failed)?;
        socket.bind((self.place.source, 0).into()).map_err(|_| Lost::Failed)?;
        let stream = socket.connect(node).await.map_err(|_| Lost::Failed)?;
        let _ = stream.set_nodelay(true);
        let config = WebSocketConfig::default().read_buffer_size(4 << 10).write_buffer_size(0);
        match client_async_with_config(format!("ws://{node}/ws"), stream, Some(config)).await {
            Ok((stream, _)) => Ok(stream),
            Err(Error::Http(answer)) if answer.status() == 503 => {
                self.count(|tally| tally.refused += 1);
                let after_s = answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
                if after_s.is_none() {
                    self.count(|tally| tally.wrong.push("a 503 without Retry-After".to_owned()));
                }
                Err(Lost::After(1_000 * after_s.unwrap_or(1)))
            }
            Err(_) => Err(Lost::Failed),
        }
    }

    fn hello(&self) -> String {
        let Some(token) = &self.token else { return r#"{"type":"hello","client":"member"}"#.to_owned() };
        let (group, since) = (&self.place.group, self.since());
        format!(r#"{{"type":"hello","client":"member","session":"{token}","resume":{{"{group}":{since}}}}}"#)
    }

    fn since(&self) -> String {
        let known = self.standing.known();
        format!(r#"{{"epoch":"{}","offset":{}}}"#, known.epoch, known.offset)
    }

    fn join(&self) -> String {
        let group = &self.place.group;
        if self.standing.has_joined() {
            format!(r#"{{"type":"join","id":1,"group":"{group}","since":{}}}"#, self.since())
        } else {
            format!(r#"{{"type":"join","id":1,"group":"{group}"}}"#)
        }
    }

    async fn take(&mut self, stream: &mut Stream, frame: &Frame<'_>, text: &str) -> Result<(), Lost> {
        match frame.kind {
            "message" => self.standing.known().message(frame),
            "welcome" => {
                self.token = frame.token.map(Into::into).or(self.token.take());
                let has_group = |groups: &Vec<&str>| groups.contains(&&*self.place.group);
                if !frame.groups.as_ref().is_some_and(has_group) {
                    let join = self.join();
                    self.send(stream, join).await?;
                }
            }
            "joined" => {
                self.standing.known().joined(frame);
                self.gathering = None;
            }
            "error" => {
                self.count(|tally| tally.errors += 1);
                tokio::time::sleep(Duration::from_millis(frame.retry_after_ms.unwrap_or(200))).await;
                let join = self.join();
                self.send(stream, join).await?;
            }
            "bye" => {
                self.count(|tally| tally.byes += 1);
                if frame.reconnect == Some(true) {
                    return Err(Lost::After(frame.after_ms.unwrap_or(0)));
                }
                self.count(|tally| tally.wrong.push(format!("sent away for good: {text}")));
                return Err(Lost::ForGood);
            }
            "gap" | "reset" => {
                self.count(|tally| tally.wrong.push(text.to_owned()));
                let mut known = self.standing.known();
                known.epoch = frame.epoch.unwrap_or_default().into();
                known.offset = frame.to.or(frame.offset).unwrap_or(0);
                known.look();
            }
            _ => {}
        }
        Ok(())
    }

    async fn send(&self, stream: &mut Stream, text: String) -> Result<(), Lost> {
        stream.send(Message::text(text)).await.map_err(|_| Lost::Gone)
    }

    fn count(&self, count: impl FnOnce(&mut Tally)) {
        count(&mut self.standing.known().tally);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a client that joined at 5 says of these frames, and where it stands then.
    fn check(frames: &[&str], wrong: usize, offset: u64, caught_up: bool) {
        let mut known = Known::default();
        let joined = r#"{"type":"joined","group":"g","epoch":"0a","offset":5,"recovered":true}"#;
        for text in std::iter::once(&joined).chain(frames) {
            let frame: Frame = serde_json::from_str(text).expect(text);
            match frame.kind {
                "joined" => known.joined(&frame),
                _ => known.message(&frame),
            }
        }
        let told = (known.tally.wrong.len(), known.offset, known.caught_up_ms.is_some());
        assert_eq!(told, (wrong, offset, caught_up), "{frames:?}: {:?}", known.tally.wrong);
    }

    #[test]
    fn what_is_not_whole_is_noticed() {
        let message = |offset: u64| format!(r#"{{"type":"message","epoch":"0a","offset":{offset},"data":"x"}}"#);
        let [six, seven, eight] = [6, 7, 8].map(message);
        let back = r#"{"type":"joined","epoch":"0a","offset":7,"recovered":true}"#;
        check(&[&six, &seven], 0, 7, false);
        check(&[&six, back, &seven, &eight], 0, 8, true);
        check(&[&six, back], 0, 6, false);
        check(&[&six, &seven, back, &seven], 0, 7, true);
        check(&[&six, &eight], 1, 8, false);
        check(&[&six, back, &eight], 1, 8, true);
        check(&[&six, r#"{"type":"message","epoch":"0b","offset":7}"#], 1, 7, false);
        check(&[&six, r#"{"type":"joined","epoch":"0a","offset":7,"recovered":false}"#], 1, 7, true);
        check(&[&six, r#"{"type":"joined","epoch":"0b","offset":6,"recovered":true}"#], 1, 6, true);
    }
}
