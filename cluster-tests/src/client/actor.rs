//! The client's task: owns its connection and its logs.

mod receive;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use roost::{clock, id::Position};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::{Answer, Ask, ClientOptions, Logs, State};
use crate::{
    history::{Attempt, ConnectionLog, Outcome, PublishLog, Seen, Welcome},
    socket::{LIMIT, Received, Socket},
};

/// Between two attempts to connect.
const BACK_OFF: Duration = Duration::from_millis(100);
/// Nodes may be gone for a while. When all of them are gone for this time, the client gives up.
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);
/// Before a publish is repeated, where the node does not say.
const REPEAT_AFTER_MS: u64 = 100;
/// Well below what nodes allow.
const HEARTBEAT_MS: u64 = 20_000;
/// Asks that are sent in one write.
const BATCH: usize = 64;
/// `error`s that say nothing about whether the publish was accepted.
const UNKNOWN_OUTCOME: &str = "unknown_outcome";
/// `error`s after which the same request may fare better.
const PASSING: [&str; 5] = ["busy", "unavailable", "rate_limited", "limit_rate", "timeout"];

struct Actor {
    options: ClientOptions,
    state: Arc<Mutex<State>>,
    asks: mpsc::Receiver<Ask>,
    groups: BTreeMap<Box<str>, Arc<str>>,
    /// The groups that it is in, also while it is not connected, and where it stopped.
    positions: BTreeMap<Arc<str>, Position>,
    /// Groups of the last connection that this one has not joined yet: publishes wait for them.
    restoring: BTreeSet<Arc<str>>,
    connections: Vec<ConnectionLog>,
    publishes: Vec<PublishLog>,
    answers: BTreeMap<usize, Answer>,
    next_id: u64,
    under_way: BTreeMap<u64, Pending>,
    /// Publishes to send, by index, each not before its time in milliseconds.
    to_publish: VecDeque<(u64, usize)>,
    to_request: VecDeque<(Value, Option<oneshot::Sender<Value>>)>,
    sequence: u64,
    /// When something was last sent.
    sent_ms: u64,
    /// When something last came.
    heard_ms: u64,
    /// When the last heartbeat was sent.
    beat_ms: u64,
    /// Nothing is read from the socket.
    deaf: bool,
    node: usize,
    bye: Option<Bye>,
    finish: Option<(bool, oneshot::Sender<Logs>)>,
}

enum Pending {
    Request(Value, Option<oneshot::Sender<Value>>, Option<Position>),
    Publish(usize),
}

struct Bye {
    reason: String,
    reconnect: bool,
    after_ms: u64,
}

/// How a connection came to its end.
enum End {
    Lost(String),
    Finish,
}

pub(super) async fn run(options: ClientOptions, state: Arc<Mutex<State>>, asks: mpsc::Receiver<Ask>) {
    let mut actor = Actor {
        options,
        state,
        asks,
        groups: BTreeMap::new(),
        positions: BTreeMap::new(),
        restoring: BTreeSet::new(),
        connections: Vec::new(),
        publishes: Vec::new(),
        answers: BTreeMap::new(),
        next_id: 0,
        under_way: BTreeMap::new(),
        to_publish: VecDeque::new(),
        to_request: VecDeque::new(),
        sequence: 0,
        sent_ms: 0,
        heard_ms: 0,
        beat_ms: 0,
        deaf: false,
        node: 0,
        bye: None,
        finish: None,
    };
    let why = actor.live().await;
    actor.update(|state| {
        state.node = None;
        state.ended = Some(why);
    });
    actor.after_life().await;
}

impl Actor {
    /// Connection after connection, until there is a reason to have no more.
    async fn live(&mut self) -> String {
        loop {
            let mut socket = match self.connect().await {
                Ok(socket) => socket,
                Err(reason) => return reason,
            };
            let end = self.serve(&mut socket).await;
            let reason = match end {
                End::Finish => {
                    socket.close().await;
                    return "asked to".to_owned();
                }
                End::Lost(reason) => reason,
            };
            drop(socket);
            self.notice(json!({"type": "lost", "reason": reason}));
            self.lost();
            let bye = self.bye.take();
            match bye {
                Some(bye) if !bye.reconnect => return format!("bye: {}", bye.reason),
                _ if !self.options.reconnect => return reason,
                Some(bye) => tokio::time::sleep(Duration::from_millis(bye.after_ms.min(2_000))).await,
                None => {}
            }
            self.node = (self.node + 1) % self.options.nodes.len();
        }
    }

    /// Connects and says hello, at one node after the other.
    async fn connect(&mut self) -> Result<Socket, String> {
        let give_up = clock::deadline(GIVE_UP_AFTER);
        loop {
            let url = self.options.nodes[self.node].clone();
            let reason = match tokio::time::timeout(self.patience(), Socket::connect(&url)).await {
                Ok(Ok(mut socket)) => match self.hello(&mut socket).await {
                    Ok(()) => return Ok(socket),
                    Err(reason) => reason,
                },
                Ok(Err(error)) => format!("{error:#}"),
                Err(_) => format!("{url} does not answer"),
            };
            let refused_for_good = self.bye.take().is_some_and(|bye| !bye.reconnect);
            if refused_for_good || !self.options.reconnect || clock::deadline(Duration::ZERO) >= give_up {
                return Err(reason);
            }
            if let Err(mpsc::error::TryRecvError::Disconnected) = self.drain_asks() {
                return Err("dropped".to_owned());
            }
            if self.finish.is_some() {
                return Err(reason);
            }
            self.node = (self.node + 1) % self.options.nodes.len();
            tokio::time::sleep(BACK_OFF).await;
        }
    }

    async fn hello(&mut self, socket: &mut Socket) -> Result<(), String> {
        let resume: serde_json::Map<String, Value> = self
            .positions
            .iter()
            .map(|(group, at)| (group.to_string(), json!({"epoch": at.epoch.to_string(), "offset": at.offset})))
            .collect();
        let mut hello = json!({"type": "hello", "client": self.options.client, "resume": resume});
        if let Some(token) = &self.options.token {
            hello["session"] = token.clone().into();
        }
        let asked_us = clock::mono_us();
        self.sent_ms = clock::mono_ms();
        socket.send(&hello).await.map_err(|error| error.to_string())?;
        let limit = clock::deadline(self.patience());
        loop {
            match tokio::time::timeout_at(limit, socket.next()).await {
                Err(_) => return Err("no welcome came".to_owned()),
                Ok(Received::Closed(code, reason)) => {
                    return Err(format!("closed with {code} {reason} before the welcome"));
                }
                Ok(Received::Text(text)) => {
                    let frame: Value = serde_json::from_str(&text).map_err(|error| format!("{error} in {text}"))?;
                    match frame["type"].as_str() {
                        Some("welcome") => {
                            self.welcome(&frame, asked_us);
                            return Ok(());
                        }
                        Some("bye") => self.take_bye(&text),
                        _ => self.notice(frame),
                    }
                }
            }
        }
    }

    /// How long a node may take to take a connection and to welcome.
    fn patience(&self) -> Duration {
        self.options.patience.unwrap_or(LIMIT)
    }

    fn welcome(&mut self, frame: &Value, asked_us: u64) {
        if let Some(token) = frame["token"].as_str() {
            self.options.token = Some(token.to_owned());
        }
        let node = frame["node"].as_str().unwrap_or("?");
        let number = self.connections.len() as u32 + 1;
        self.connections.push(ConnectionLog {
            client: self.options.name.as_str().into(),
            number,
            node: node.into(),
            welcome: frame["session"].as_str().map(|session| Welcome {
                session: session.into(),
                client: frame["client"].as_str().unwrap_or("?").into(),
                asked_us,
                at_us: clock::mono_us(),
            }),
            events: Vec::new(),
            settled: false,
        });
        let restored: Vec<String> = frame["groups"]
            .as_array()
            .map(|groups| groups.iter().filter_map(|group| Some(group.as_str()?.to_owned())).collect())
            .unwrap_or_default();
        self.restoring = self.positions.keys().cloned().collect();
        for (group, at) in self.positions.clone() {
            if !restored.iter().any(|name| **name == *group) {
                // The session does not remember it: join again from where we stopped.
                let since = json!({"epoch": at.epoch.to_string(), "offset": at.offset});
                let join = json!({"type": "join", "group": &*group, "since": since});
                self.to_request.push_back((join, None));
            }
        }
        let token = self.options.token.clone().unwrap_or_default();
        self.update(|state| {
            state.session = frame["session"].as_str().unwrap_or_default().to_owned();
            state.user = frame["user"].as_str().unwrap_or_default().to_owned();
            state.token = token;
            state.node = Some(node.to_owned());
            state.connections = number;
            state.groups = restored;
        });
    }

    /// When the next heartbeat is due: before the node gives up the client, or when it is time to ask whether it is there.
    fn next_heartbeat_ms(&self) -> u64 {
        let patience_ms = self.options.patience.map(|patience| patience.as_millis() as u64);
        let to_be_heard = patience_ms.map_or(u64::MAX, |ms| self.heard_ms.max(self.beat_ms) + ms / 3);
        to_be_heard.min(self.sent_ms + HEARTBEAT_MS)
    }

    async fn serve(&mut self, socket: &mut Socket) -> End {
        self.heard_ms = clock::mono_ms();
        loop {
            if let Err(error) = self.send_what_is_due(socket).await {
                return End::Lost(error.to_string());
            }
            if self.finish.is_some() {
                return End::Finish;
            }
            let now_ms = clock::mono_ms();
            if self.options.patience.is_some_and(|patience| now_ms > self.heard_ms + patience.as_millis() as u64) {
                return End::Lost("nothing was heard of the node".to_owned());
            }
            let heartbeat_ms = self.next_heartbeat_ms();
            if heartbeat_ms <= now_ms {
                (self.sent_ms, self.beat_ms) = (now_ms, now_ms);
                if socket.send(&json!({"type": "heartbeat"})).await.is_err() {
                    return End::Lost("the heartbeat could not be sent".to_owned());
                }
                continue;
            }
            let publish_ms = self.to_publish.front().map_or(u64::MAX, |(not_before_ms, _)| *not_before_ms);
            let wake = Duration::from_millis(heartbeat_ms.min(publish_ms).saturating_sub(now_ms).max(1));
            tokio::select! {
                biased;
                received = socket.next(), if !self.deaf => match received {
                    Received::Text(text) => {
                        self.heard_ms = clock::mono_ms();
                        self.received(&text);
                    }
                    Received::Closed(code, reason) => return End::Lost(format!("closed with {code} {reason}")),
                },
                ask = self.asks.recv() => match ask {
                    Some(ask) => {
                        if self.take(ask) || self.drain_asks().is_ok_and(|cut| cut) {
                            return End::Lost("cut".to_owned());
                        }
                    }
                    None => return End::Finish,
                },
                () = tokio::time::sleep(wake) => {}
            }
        }
    }

    /// Takes up to a batch of asks; whether one of them was to cut the connection.
    fn drain_asks(&mut self) -> Result<bool, mpsc::error::TryRecvError> {
        for _ in 0..BATCH {
            match self.asks.try_recv() {
                Ok(ask) => {
                    if self.take(ask) {
                        return Ok(true);
                    }
                }
                Err(mpsc::error::TryRecvError::Empty) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Whether the connection is to be cut.
    fn take(&mut self, ask: Ask) -> bool {
        match ask {
            Ask::Request(request, answer) => self.to_request.push_back((request, Some(answer))),
            Ask::Publish(publish, answer) => {
                let index = self.publishes.len();
                self.publishes.push(publish);
                self.answers.insert(index, answer);
                self.to_publish.push_back((0, index));
            }
            Ask::Cut => return true,
            Ask::Read(reads) => self.deaf = !reads,
            Ask::Finish { settled, logs } => self.finish = Some((settled, logs)),
        }
        false
    }

    async fn send_what_is_due(&mut self, socket: &mut Socket) -> anyhow::Result<()> {
        let mut fed = false;
        while let Some((mut request, answer)) = self.to_request.pop_front() {
            let id = self.new_id();
            request["id"] = id.into();
            socket.feed(request.to_string()).await?;
            let since = super::frame::position_of(&request["since"]);
            self.under_way.insert(id, Pending::Request(request, answer, since));
            fed = true;
        }
        let now_ms = clock::mono_ms();
        while self.restoring.is_empty() && self.to_publish.front().is_some_and(|(at_ms, _)| *at_ms <= now_ms) {
            let Some((_, index)) = self.to_publish.pop_front() else { break };
            let id = self.new_id();
            self.sequence += 1;
            let publish = &mut self.publishes[index];
            let group = Value::from(&*publish.group);
            let key = Value::from(publish.key.as_deref());
            let data = &publish.payload;
            let frame = format!(r#"{{"type":"publish","id":{id},"group":{group},"data":{data},"key":{key}}}"#);
            let sent_us = clock::mono_us();
            publish.attempts.push(Attempt {
                connection: self.connections.len() as u32,
                sequence: self.sequence,
                sent_us,
                answered_us: sent_us,
                outcome: Outcome::Unknown,
            });
            self.under_way.insert(id, Pending::Publish(index));
            socket.feed(frame).await?;
            fed = true;
        }
        if fed {
            self.sent_ms = now_ms;
            socket.flush().await?;
        }
        Ok(())
    }

    /// The connection is gone: what it had under way has an unknown outcome and is to be asked again.
    fn lost(&mut self) {
        let at_us = clock::mono_us();
        self.log(at_us, Seen::Closed);
        self.update(|state| state.node = None);
        let mut again: BTreeSet<usize> = self.to_publish.drain(..).map(|(_, index)| index).collect();
        for pending in std::mem::take(&mut self.under_way).into_values() {
            match pending {
                Pending::Publish(index) => {
                    if let Some(attempt) = self.publishes[index].attempts.last_mut() {
                        attempt.answered_us = at_us;
                    }
                    again.insert(index);
                }
                Pending::Request(request, answer, _) if answer.is_some() => {
                    self.to_request.push_back((request, answer));
                }
                // The next welcome decides again about groups to join.
                Pending::Request(..) => {}
            }
        }
        self.to_publish = again.into_iter().map(|index| (0, index)).collect();
    }

    /// Hands the logs over.
    async fn after_life(mut self) {
        loop {
            // Whoever waits for an answer learns that there is none.
            self.to_request.clear();
            self.answers.clear();
            if self.finish.is_some() {
                break;
            }
            match self.asks.recv().await {
                Some(ask) => drop(self.take(ask)),
                None => return,
            }
        }
        if let Some((settled, logs)) = self.finish.take() {
            if let Some(last) = self.connections.last_mut() {
                let open = last.events.last().is_none_or(|event| event.seen != Seen::Closed);
                last.settled = settled && open;
            }
            self.publishes.retain(|publish| !publish.attempts.is_empty());
            self.publishes.iter_mut().for_each(|publish| publish.payload = super::frame::logged(&publish.payload));
            let _ = logs.send(Logs { connections: self.connections, publishes: self.publishes });
        }
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
