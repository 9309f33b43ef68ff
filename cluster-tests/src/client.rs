//! A client of the plain JSON protocol that writes down all it does and sees, for [`crate::history`].
//!
//! It behaves as clients should: it repeats a publish with the same key until it knows the outcome, and when its
//! connection is lost it goes to the next node with its session's token and the positions where it stopped.

mod actor;
mod frame;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, anyhow};
use roost::{id::Position, tasks::Tasks};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::{
    history::{ConnectionLog, History, PublishLog},
    wait::wait_until,
};

/// What waits for the client's task.
const ASKS: usize = 256;

/// Publishes that are under way at once; below what a node allows a connection.
const WINDOW: usize = 64;

/// Until a request is answered, by another node if need be.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// The most repeats of a join or leave.
const REPEATS: usize = 3;

/// How a client behaves.
#[derive(Clone, Debug)]
pub struct ClientOptions {
    /// Its name in the logs.
    pub name: String,
    /// Base URLs (`http://host:port`): the first is where it goes, the others where it goes next.
    pub nodes: Vec<String>,
    /// Its session; without one it asks for a new one.
    pub token: Option<String>,
    /// Which client of its session it is: two of one name displace each other.
    pub client: String,
    /// Whether it comes back when its connection is lost.
    pub reconnect: bool,
    /// A node that was asked and says nothing for this time is left for the next one. Without it a connection is
    /// lost only when its end is seen.
    pub patience: Option<Duration>,
}

impl ClientOptions {
    /// A client without a session that goes to these nodes, in this order, and comes back.
    pub fn new(name: impl Into<String>, nodes: Vec<String>) -> Self {
        let client = "tab".to_owned();
        Self { name: name.into(), nodes, token: None, client, reconnect: true, patience: None }
    }

    /// The same with a session.
    pub fn with_token(self, token: impl Into<String>) -> Self {
        Self { token: Some(token.into()), ..self }
    }

    /// The same as this client of its session.
    pub fn as_client(self, client: impl Into<String>) -> Self {
        Self { client: client.into(), ..self }
    }

    /// The same with [`ClientOptions::patience`].
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self }
    }
}

/// What the client knows at the moment.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Its session's id and token.
    pub session: String,
    /// To come back with.
    pub token: String,
    /// The session's user.
    pub user: String,
    /// The node that it is connected to; none while it isn't.
    pub node: Option<String>,
    /// Connections so far.
    pub connections: u32,
    /// What the welcome named.
    pub groups: Vec<String>,
    /// Its groups, and where it stands in them.
    pub positions: BTreeMap<Arc<str>, Position>,
    /// Messages that came, for each group.
    pub received: BTreeMap<Arc<str>, u64>,
    /// Ephemeral messages that came, for each group.
    pub ephemeral: BTreeMap<Arc<str>, u64>,
    /// Everything that came and is not a message, an answer or a heartbeat, in order, the latest [`NOTICES_MAX`].
    pub notices: Vec<Value>,
    /// Why it is over; none while it isn't.
    pub ended: Option<String>,
}

/// So many of [`State::notices`] are kept.
pub const NOTICES_MAX: usize = 2_000;

/// What a node answered to a publish in the end.
#[derive(Clone, PartialEq, Debug)]
pub enum Published {
    /// It was acknowledged.
    Acked {
        at: Position,
        /// The number of nodes that hold it.
        copies: u8,
    },
    /// It does not, and asking again would not help.
    Refused(Value),
}

/// A running client.
pub struct Client {
    asks: mpsc::Sender<Ask>,
    state: Arc<Mutex<State>>,
    window: Arc<Semaphore>,
    tasks: Tasks,
    name: String,
}

/// What the client's task is asked to do.
pub(crate) enum Ask {
    /// Send this and hand over the answer. Sent again on the next connection where this one is lost.
    Request(Value, oneshot::Sender<Value>),
    /// Publish, and repeat until the outcome is known.
    Publish(PublishLog, Answer),
    /// Lose the connection, as a dead network would.
    Cut,
    /// Read nothing from the socket from now on, or again.
    Read(bool),
    /// End, and hand over the logs.
    Finish { settled: bool, logs: oneshot::Sender<Logs> },
}

/// The waiter for a publish's outcome, and its place in the window.
pub(crate) type Answer = (oneshot::Sender<Published>, OwnedSemaphorePermit);

/// What a client wrote down.
#[derive(Debug, Default)]
pub(crate) struct Logs {
    pub(crate) connections: Vec<ConnectionLog>,
    pub(crate) publishes: Vec<PublishLog>,
}

impl Client {
    /// Starts it; returns when it has been welcomed, or with the reason why it won't be.
    pub async fn connect(options: ClientOptions) -> Result<Self> {
        let (asks, rx) = mpsc::channel(ASKS);
        let state = Arc::new(Mutex::new(State::default()));
        let tasks = Tasks::new();
        let name = options.name.clone();
        tasks.spawn_detached("client", actor::run(options, state.clone(), rx));
        let this = Self { asks, state, window: Arc::new(Semaphore::new(WINDOW)), tasks, name };
        this.wait("be welcomed", crate::socket::LIMIT, |state| state.node.is_some()).await?;
        Ok(this)
    }

    /// Its name in the logs.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it knows at the moment.
    pub fn state(&self) -> State {
        self.locked().clone()
    }

    /// Waits until its state is so. An error, at once, where the client has ended without that.
    pub async fn wait(&self, what: &str, limit: Duration, is_so: impl Fn(&State) -> bool) -> Result<Duration> {
        let mut ended = None;
        let waited = wait_until(&format!("{} to {what}", self.name), limit, async || {
            let state = self.locked();
            if is_so(&state) {
                return true;
            }
            ended.clone_from(&state.ended);
            ended.is_some()
        })
        .await;
        if let Some(reason) = ended
            && !is_so(&self.locked())
        {
            return Err(anyhow!("{} ended before it could {what}: {reason}", self.name));
        }
        waited.with_context(|| {
            let State { node, connections, positions, received, .. } = self.state();
            format!("{} is at {node:?}, connection {connections}, at {positions:?}, got {received:?}", self.name)
        })
    }

    /// Sends any request; its `id` is added. The answer may be an `error`.
    pub async fn request(&self, request: Value) -> Result<Value> {
        let (answer, answered) = oneshot::channel();
        let asked = request.to_string();
        self.asks.send(Ask::Request(request, answer)).await.ok().context("the client has ended")?;
        let answered = tokio::time::timeout(ANSWER_LIMIT, answered).await;
        let answered = answered.with_context(|| format!("{} waits in vain for an answer to {asked}", self.name))?;
        answered.with_context(|| format!("{} ended without an answer to {asked}", self.name))
    }

    /// Repeats what may be repeated as often as it is told to, as any client would: the machine may have stood still.
    async fn request_until_done(&self, asked: serde_json::Value) -> Result<serde_json::Value> {
        let mut answer = self.request(asked.clone()).await?;
        for _ in 0..REPEATS {
            let Some(after_ms) = answer["retry_after_ms"].as_u64() else { break };
            tokio::time::sleep(Duration::from_millis(after_ms.max(100))).await;
            answer = self.request(asked.clone()).await?;
        }
        Ok(answer)
    }

    /// Joins a group.
    pub async fn join(&self, group: &str) -> Result<Position> {
        let answer = self.request_until_done(serde_json::json!({"type": "join", "group": group})).await?;
        frame::position_of(&answer).with_context(|| format!("{} was not let into {group}: {answer}", self.name))
    }

    /// Leaves a group.
    pub async fn leave(&self, group: &str) -> Result<()> {
        let answer = self.request_until_done(serde_json::json!({"type": "leave", "group": group})).await?;
        anyhow::ensure!(answer["type"] == "left", "{} could not leave {group}: {answer}", self.name);
        Ok(())
    }

    /// Hands over a publish, when fewer than 64 of this client are under way. The payload must be unique among
    /// all of the test's; it is the key as well. The answer comes when it comes.
    pub async fn publish(&self, group: &Arc<str>, payload: &str) -> Result<oneshot::Receiver<Published>> {
        let permit = self.window.clone().acquire_owned().await?;
        let (answer, answered) = oneshot::channel();
        let publish = PublishLog {
            publisher: self.name.as_str().into(),
            group: group.clone(),
            key: Some(payload.trim_end().into()),
            payload: Value::from(payload).to_string().into(),
            attempts: Vec::new(),
        };
        self.asks.send(Ask::Publish(publish, (answer, permit))).await.ok().context("the client has ended")?;
        Ok(answered)
    }

    /// Publishes and waits until the outcome is known; an error unless it stands.
    pub async fn publish_now(&self, group: &str, payload: &str) -> Result<Position> {
        match self.publish(&group.into(), payload).await?.await? {
            Published::Acked { at, .. } => Ok(at),
            Published::Refused(error) => Err(anyhow!("{} could not publish to {group}: {error}", self.name)),
        }
    }

    /// Waits until every publish is answered.
    pub async fn answered(&self, limit: Duration) -> Result<()> {
        let all = self.window.acquire_many(WINDOW as u32);
        let _all = tokio::time::timeout(limit, all).await.with_context(|| {
            let open = WINDOW - self.window.available_permits();
            format!("{} has {open} publishes without an answer after {limit:?}", self.name)
        })??;
        Ok(())
    }

    /// Loses the connection without a goodbye.
    pub async fn cut(&self) -> Result<()> {
        self.asks.send(Ask::Cut).await.ok().context("the client has ended")
    }

    /// Stops reading its socket, as a client that is too slow would, until [`Client::read_on`]. It still sends.
    pub async fn stop_reading(&self) -> Result<()> {
        self.asks.send(Ask::Read(false)).await.ok().context("the client has ended")
    }

    /// Reads its socket again.
    pub async fn read_on(&self) -> Result<()> {
        self.asks.send(Ask::Read(true)).await.ok().context("the client has ended")
    }

    /// Ends it and adds its logs to the history. `settled`: everything that was acknowledged had time to arrive.
    pub async fn finish(self, settled: bool, history: &mut History) -> Result<()> {
        let (logs, logged) = oneshot::channel();
        self.asks.send(Ask::Finish { settled, logs }).await.ok().context("the client's task is gone")?;
        let logs = logged.await.context("the client's task is gone")?;
        history.connections.extend(logs.connections);
        history.publishes.extend(logs.publishes);
        self.tasks.shut_down(crate::socket::LIMIT).await;
        Ok(())
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
