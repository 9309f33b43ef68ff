//! Publishers and subscribers for tests of a whole cluster, and waiting until all has arrived.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use roost::{id::Position, tasks::Tasks};
use tokio::sync::oneshot;

use crate::{
    client::{Client, ClientOptions, Published},
    cluster::Cluster,
    history::History,
};

/// Until everything that was under way is answered and delivered.
pub const SETTLE: Duration = Duration::from_secs(60);

/// The last acknowledged position of each group.
#[derive(Clone, Debug, Default)]
pub struct Heads(BTreeMap<Arc<str>, Position>);

impl Heads {
    /// Takes in an acknowledgement.
    pub fn note(&mut self, group: &Arc<str>, at: Position) {
        let head = self.0.entry(group.clone()).or_insert(at);
        if head.epoch != at.epoch || head.offset < at.offset {
            *head = at;
        }
    }

    /// That of a group.
    pub fn of(&self, group: &str) -> Option<Position> {
        self.0.get(group).copied()
    }

    /// Takes in another publisher's.
    pub fn absorb(&mut self, other: &Self) {
        for (group, at) in &other.0 {
            self.note(group, *at);
        }
    }

    /// The offsets alone.
    pub fn offsets(&self) -> BTreeMap<String, u64> {
        self.0.iter().map(|(group, at)| (group.to_string(), at.offset)).collect()
    }

    /// Waits until each of the clients has come up to these in each of its groups.
    pub async fn reached_by(&self, clients: &[Client], limit: Duration) -> Result<()> {
        for client in clients {
            let has_all = |positions: &BTreeMap<Arc<str>, Position>| {
                self.0.iter().all(|(group, head)| {
                    positions.get(group).is_none_or(|at| at.epoch == head.epoch && at.offset >= head.offset)
                })
            };
            client.wait(&format!("see {:?}", self.0), limit, |state| has_all(&state.positions)).await?;
        }
        Ok(())
    }
}

/// Names of groups.
pub fn groups(count: usize) -> Vec<Arc<str>> {
    (0..count).map(|number| format!("chat:room-{number}").into()).collect()
}

/// A client that goes to this node, has a session of its own and is in these groups.
pub async fn client_on(cluster: &Cluster, node: usize, name: &str, groups: &[Arc<str>]) -> Result<Client> {
    client_with(cluster, node, name, groups, |options| options).await
}

/// The same with other options.
pub async fn client_with(
    cluster: &Cluster,
    node: usize,
    name: &str,
    groups: &[Arc<str>],
    options: impl FnOnce(ClientOptions) -> ClientOptions,
) -> Result<Client> {
    let session = cluster.api(node).create_session(name).await?;
    let own = ClientOptions::new(name, cluster.urls_from(node)).with_token(session.token);
    let client = Client::connect(options(own)).await?;
    for group in groups {
        client.join(group).await?;
    }
    Ok(client)
}

/// Publishes messages of these numbers to one group, as fast as the answers allow, and waits for all of them.
pub async fn burst(client: &Client, group: &Arc<str>, numbers: Range<usize>) -> Result<Heads> {
    let mut heads = Heads::default();
    let mut open = Vec::with_capacity(numbers.len());
    for number in numbers {
        open.push(client.publish(group, &format!("{}/{number}", client.name())).await?);
    }
    for answered in open {
        note(client, group, answered.await, &mut heads)?;
    }
    Ok(heads)
}

fn note(
    client: &Client,
    group: &Arc<str>,
    answer: Result<Published, oneshot::error::RecvError>,
    heads: &mut Heads,
) -> Result<()> {
    let why = || client.state().ended.unwrap_or_else(|| "nobody says why".to_owned());
    match answer.with_context(|| format!("{} ended without an answer: {}", client.name(), why()))? {
        Published::Acked { at, copies } => {
            ensure!(copies > 0, "{} was acknowledged by no node", client.name());
            heads.note(group, at);
            Ok(())
        }
        Published::Refused(error) => Err(anyhow::anyhow!("{} was refused: {error}", client.name())),
    }
}

/// Publishers that go on until they are told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    tasks: Tasks,
    publishers: Vec<oneshot::Receiver<Result<(Client, Heads)>>>,
}

impl Load {
    /// Has each client publish to one of the groups after the other, with this pause after each message.
    pub fn start(clients: Vec<Client>, groups: &[Arc<str>], pause: Duration) -> Self {
        Self::start_with(clients, groups, pause, 0)
    }

    /// The same, with messages of at least this number of bytes.
    pub fn start_with(clients: Vec<Client>, groups: &[Arc<str>], pause: Duration, bytes: usize) -> Self {
        let (stop, tasks) = (Arc::new(AtomicBool::new(false)), Tasks::new());
        let publishers = clients
            .into_iter()
            .map(|client| {
                let (done, finished) = oneshot::channel();
                let publishing = publish_until(client, groups.to_vec(), pause, bytes, stop.clone());
                tasks.spawn_detached("publisher", async move {
                    let _ = done.send(publishing.await);
                });
                finished
            })
            .collect();
        Self { stop, tasks, publishers }
    }

    /// Stops publishing, waits for all answers and hands the clients back.
    pub async fn stop(self) -> Result<(Vec<Client>, Heads)> {
        self.stop.store(true, Ordering::Relaxed);
        let mut clients = Vec::new();
        let mut heads = Heads::default();
        for publisher in self.publishers {
            let finished = tokio::time::timeout(SETTLE, publisher).await;
            let (client, noted) = finished.context("a publisher waits for answers that don't come")???;
            heads.absorb(&noted);
            clients.push(client);
        }
        self.tasks.shut_down(SETTLE).await;
        Ok((clients, heads))
    }
}

async fn publish_until(
    client: Client,
    groups: Vec<Arc<str>>,
    pause: Duration,
    bytes: usize,
    stop: Arc<AtomicBool>,
) -> Result<(Client, Heads)> {
    let mut heads = Heads::default();
    let mut open = Vec::new();
    for (number, group) in groups.iter().cycle().enumerate() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        open.push((
            group,
            client.publish(group, &format!("{: <bytes$}", format!("{}/{number}", client.name()))).await?,
        ));
        tokio::time::sleep(pause).await;
    }
    for (group, answered) in open {
        note(&client, group, answered.await, &mut heads)?;
    }
    Ok((client, heads))
}

/// How many messages each of the clients has got by now, of each group.
pub fn received(clients: &[Client]) -> Vec<BTreeMap<Arc<str>, u64>> {
    clients.iter().map(|client| client.state().received).collect()
}

/// Waits until each of the clients has got more of each of its groups than before: publishes go through everywhere.
pub async fn goes_on(clients: &[Client], before: &[BTreeMap<Arc<str>, u64>], limit: Duration) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    for (client, before) in clients.iter().zip(before) {
        let waited = client
            .wait("get more of every group", limit, |state| {
                state.positions.keys().filter(|group| !group.starts_with('@')).all(|group| {
                    state.received.get(group).copied().unwrap_or(0) > before.get(group).copied().unwrap_or(0)
                })
            })
            .await?;
        longest = longest.max(waited);
    }
    Ok(longest)
}

/// Waits until all have everything, ends them, and gives what they logged.
pub async fn settle(clients: Vec<Client>, heads: &Heads) -> Result<History> {
    heads.reached_by(&clients, SETTLE).await?;
    let mut history = History { publishes_complete: true, ..History::default() };
    for client in clients {
        client.finish(true, &mut history).await?;
    }
    Ok(history)
}
