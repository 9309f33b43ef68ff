//! One of ten clients stops reading for a while, and messages go on until nothing more fits into what waits for it. Where its
//! namespace lets it lag it keeps its connection, and gets what it missed or is told what is gone; where not it is closed,
//! and gets all of it by resuming. The others notice nothing, and the memory stays bounded; also when many clients come at
//! once for all that was missed.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    client::{Client, State},
    cluster::Cluster,
    gauges::metric,
    history::History,
    latency::latencies,
    load::{self, Heads, Load},
    servers::resident_mb,
    turn,
    wait::wait_until,
};
use futures_util::future::try_join_all;
use roost::clock;
use serde_json::json;

const NODES: usize = 3;
/// Each a namespace, with one group and this number of clients.
const LAG: (&str, usize) = ("lag:room", 80);
/// Lets clients lag, and keeps next to nothing for them.
const SHORT: (&str, usize) = ("short:room", 40);
const CLOSE: (&str, usize) = ("close:room", 80);
/// With a publisher for each group.
const CONNECTIONS: u64 = (LAG.1 + SHORT.1 + CLOSE.1 + 3) as u64;
/// One in this number stops reading.
const STOPPED: usize = 10;
const OUTBOX_BYTES: u64 = 256 << 10;
const MESSAGE_BYTES: usize = 32 << 10;
const PAUSE: Duration = Duration::from_millis(25);
/// What the others' latencies are compared with.
const BEFORE: Duration = Duration::from_secs(4);
/// Of the three groups together: in each more than the buffers of two sockets (10 MB as Linux comes) and the outbox take.
const FILLING_MESSAGES: u64 = 3 * (12 << 20) / MESSAGE_BYTES as u64;
/// Until the sockets' and the nodes' queues are full.
const FULL_LIMIT: Duration = Duration::from_secs(120);
/// What the process may take beside what is counted: allocator, runtime, what clients that read have under way.
const MARGIN_MB: u64 = 256;

const SETTINGS: &[(&str, &str)] = &[
    ("ROOST_LIMITS__OUTBOX_BYTES", "262144"),
    // Longer than they are stopped, on any machine.
    ("ROOST_LIMITS__WRITE_TIMEOUT_MS", "300000"),
    ("ROOST_LIMITS__IDLE_S", "600"),
    ("ROOST_LIMITS__REPLAY_BYTES", "1048576"),
    ("ROOST_NAMESPACES__LAG__SLOW_CONSUMER", "lag"),
    ("ROOST_NAMESPACES__LAG__HISTORY_BYTES", "268435456"),
    ("ROOST_NAMESPACES__LAG__HISTORY_MESSAGES", "100000"),
    ("ROOST_NAMESPACES__SHORT__SLOW_CONSUMER", "lag"),
    ("ROOST_NAMESPACES__SHORT__HISTORY_BYTES", "262144"),
    ("ROOST_NAMESPACES__CLOSE__HISTORY_BYTES", "268435456"),
    ("ROOST_NAMESPACES__CLOSE__HISTORY_MESSAGES", "100000"),
];

/// The clients of one group.
struct Room {
    group: Arc<str>,
    stopped: Vec<Client>,
    readers: Vec<Client>,
}

impl Room {
    async fn open(cluster: &Cluster, (group, clients): (&str, usize)) -> Result<Self> {
        let mut this = Self { group: group.into(), stopped: Vec::new(), readers: Vec::new() };
        for number in 0..clients {
            let stops = number % STOPPED == 0;
            let name = format!("{}-{group}-{number}", if stops { "stopped" } else { "reader" });
            let node = (number / STOPPED + number) % NODES;
            let client = load::client_on(cluster, node, &name, std::slice::from_ref(&this.group)).await?;
            if stops { &mut this.stopped } else { &mut this.readers }.push(client);
        }
        Ok(this)
    }

    /// A publisher of this group alone.
    async fn publisher(&self, cluster: &Cluster, node: usize) -> Result<Load> {
        let name = format!("publisher-{}", self.group);
        let client = load::client_on(cluster, node, &name, std::slice::from_ref(&self.group)).await?;
        Ok(Load::start_with(vec![client], std::slice::from_ref(&self.group), PAUSE, MESSAGE_BYTES))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_reading_lags_or_is_closed_and_loses_nothing_unannounced() -> Result<()> {
    let _turn = turn::take(module_path!());
    let cluster = Cluster::program_with(NODES, SETTINGS).await?;
    let program = cluster.program().and_then(|program| program.id()).context("the program runs")?;
    let mut rooms = Vec::new();
    for of in [LAG, SHORT, CLOSE] {
        rooms.push(Room::open(&cluster, of).await?);
    }
    let mut loads = Vec::new();
    for (node, room) in rooms.iter().enumerate() {
        loads.push(room.publisher(&cluster, node).await?);
    }
    let begun_us = clock::mono_us();
    tokio::time::sleep(BEFORE).await;

    let stopped_us = clock::mono_us();
    let before_mb = resident_mb(program)?;
    for client in rooms.iter().flat_map(|room| &room.stopped) {
        client.stop_reading().await?;
    }
    let most_mb = stay_full(&cluster, program, &rooms).await?;
    let full_us = clock::mono_us();
    for client in rooms.iter().flat_map(|room| &room.stopped) {
        client.read_on().await?;
    }

    let (mut publishers, mut heads) = (Vec::new(), Heads::default());
    for load in loads {
        let (clients, noted) = load.stop().await?;
        publishers.extend(clients);
        heads.absorb(&noted);
    }
    for room in &rooms {
        heads.reached_by(&room.stopped, 2 * load::SETTLE).await?;
        heads.reached_by(&room.readers, load::SETTLE).await?;
    }
    // Each lagging client is told `live` when it is level again.
    let [lag, short, close] = &rooms[..] else { unreachable!("three rooms") };
    for client in lag.stopped.iter().chain(&short.stopped) {
        client.wait("be level again", load::SETTLE, |state| last(state, "live") > last(state, "stale")).await?;
    }
    check_lagging(lag, short)?;
    check_closed(close)?;
    nothing_held(&cluster).await?;
    let published_mb = published_mb(&rooms, &heads);
    bounded(before_mb, most_mb, published_mb)?;

    let clients: Vec<_> =
        rooms.into_iter().flat_map(|room| room.stopped.into_iter().chain(room.readers)).chain(publishers).collect();
    let history = load::settle(clients, &heads).await?;
    cluster.shut_down().await?;
    let sum = history.check()?;
    eprintln!("{sum:?}");
    ensure!(sum.gaps > 0, "nobody was told of a gap");
    tell_latencies(&history, begun_us, stopped_us, full_us);
    Ok(())
}

/// Clients that come at once for all that a group has, which is many times what replays may take.
const NEWCOMERS: usize = 600;
const OLD_MESSAGES: usize = 20;
/// As in [`SETTINGS`].
const REPLAY_BYTES: u64 = 1 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_mass_of_replays_takes_turns_within_its_memory() -> Result<()> {
    let _turn = turn::take(module_path!());
    let cluster = Cluster::program_with(NODES, SETTINGS).await?;
    let program = cluster.program().and_then(|program| program.id()).context("the program runs")?;
    let group: Arc<str> = "close:old".into();
    let publisher = load::client_on(&cluster, 0, "publisher", std::slice::from_ref(&group)).await?;
    let (mut heads, mut first) = (Heads::default(), None);
    for number in 0..OLD_MESSAGES {
        let payload = format!("{: <MESSAGE_BYTES$}", format!("old/{number}"));
        let at = publisher.publish_now(&group, &payload).await?;
        first.get_or_insert(at);
        heads.note(&group, at);
    }
    let since = first.context("something was published")?;
    let mut clients = Vec::new();
    for number in 0..NEWCOMERS {
        clients.push(load::client_on(&cluster, number % NODES, &format!("newcomer-{number}"), &[]).await?);
    }

    let before_mb = resident_mb(program)?;
    let start_us = clock::mono_us();
    let since = json!({"epoch": since.epoch.to_string(), "offset": since.offset});
    let join = json!({"type": "join", "group": &*group, "since": since});
    let joins = clients.iter().map(|client| client.request(join.clone()));
    for answer in try_join_all(joins).await? {
        ensure!(answer["recovered"] == true, "not recovered: {answer}");
    }
    let mut most_mb = 0;
    for client in &clients {
        let caught_up = heads.reached_by(std::slice::from_ref(client), load::SETTLE);
        let (caught_up, held) = tokio::join!(caught_up, of_all(&cluster, "roost_replay_bytes"));
        caught_up?;
        ensure!(held? <= NODES as u64 * REPLAY_BYTES, "replays take more than they may");
        most_mb = resident_mb(program)?.max(most_mb);
    }
    let waited = of_all(&cluster, "roost_limit_hits_total{limit=\"replay_bytes\"}").await?;
    let replayed_mb = (NEWCOMERS * OLD_MESSAGES * MESSAGE_BYTES) >> 20;
    eprintln!(
        "{replayed_mb} MB replayed in {} ms, {waited} pages waited; resident: {before_mb} MB before, {most_mb} MB after",
        (clock::mono_us() - start_us) / 1_000
    );
    ensure!(waited > 0, "nobody had to wait: the budget was not put to the test");
    ensure!(most_mb <= before_mb + MARGIN_MB / 2, "the replays took {} MB", most_mb - before_mb);
    nothing_held(&cluster).await?;
    clients.push(publisher);
    let history = load::settle(clients, &heads).await?;
    cluster.shut_down().await?;
    let sum = history.check()?;
    eprintln!("{sum:?}");
    ensure!(sum.gaps == 0 && sum.delivered >= NEWCOMERS * (OLD_MESSAGES - 1), "not everything was replayed");
    Ok(())
}

/// Waits until all that have stopped lag or are closed, and gives the most memory that was taken meanwhile.
async fn stay_full(cluster: &Cluster, program: u32, rooms: &[Room]) -> Result<u64> {
    let stopped = |name: &str| {
        rooms.iter().filter(|room| room.group.starts_with(name)).map(|room| room.stopped.len() as u64).sum::<u64>()
    };
    let ordered_before = of_all(cluster, "roost_publishes_ordered_total").await?;
    let (lagging, closed) = (stopped("lag") + stopped("short"), stopped("close"));
    let mut most_mb = 0;
    let full = wait_until("all that have stopped to lag or be closed", FULL_LIMIT, async || {
        most_mb = resident_mb(program).unwrap_or(0).max(most_mb);
        let lagged = of_all(cluster, "roost_lagged_total").await.unwrap_or(0);
        let ended = of_all(cluster, "roost_outbox_closed_total{reason=\"slow_consumer\"}").await.unwrap_or(0);
        // Others that were closed are back; those that have stopped do not know of it.
        let connected = of_all(cluster, "roost_connections").await.unwrap_or(u64::MAX);
        // On a busy machine those who read may lag too: the counts alone do not say that it was those who have stopped.
        let ordered = of_all(cluster, "roost_publishes_ordered_total").await.unwrap_or(0);
        let published = ordered.saturating_sub(ordered_before) >= FILLING_MESSAGES;
        published && lagged >= lagging && ended >= closed && connected <= CONNECTIONS - closed
    })
    .await;
    for name in
        ["roost_lagged_total", "roost_outbox_closed_total", "roost_connections", "roost_publishes_ordered_total"]
    {
        eprintln!("{name}: {}", of_all(cluster, name).await?);
    }
    full.map(|_| most_mb)
}

/// The sum of a metric over all nodes; with labels only that series.
async fn of_all(cluster: &Cluster, name: &str) -> Result<u64> {
    let mut sum = 0;
    for node in 0..NODES {
        let answer = cluster.api(node).raw(reqwest::Method::GET, "/metrics", None, Vec::new()).await?;
        // A series that nothing was counted in yet is not there.
        sum += metric(&answer.text().await?, name).unwrap_or(0);
    }
    Ok(sum)
}

/// What replays have taken is given back.
async fn nothing_held(cluster: &Cluster) -> Result<()> {
    wait_until("no replay to hold memory", load::SETTLE, async || {
        of_all(cluster, "roost_replay_bytes").await.is_ok_and(|held| held == 0)
    })
    .await?;
    eprintln!("pages that waited: {}", of_all(cluster, "roost_limit_hits_total{limit=\"replay_bytes\"}").await?);
    Ok(())
}

/// When something of this kind was last told of a public group, among what was told.
fn last(state: &State, kind: &str) -> Option<usize> {
    let public = |group: &str| !group.starts_with('@');
    state.notices.iter().rposition(|notice| notice["type"] == kind && notice["group"].as_str().is_some_and(public))
}

fn check_lagging(lag: &Room, short: &Room) -> Result<()> {
    for client in lag.stopped.iter().chain(&short.stopped) {
        let state = client.state();
        ensure!(state.connections == 1, "{} lost its connection: {:?}", client.name(), state.notices);
        ensure!(last(&state, "stale").is_some(), "{} was not told that it lags", client.name());
    }
    for client in &lag.stopped {
        ensure!(last(&client.state(), "gap").is_none(), "{} was told of a gap", client.name());
    }
    for client in &short.stopped {
        ensure!(last(&client.state(), "gap").is_some(), "{} was not told of a gap", client.name());
    }
    Ok(())
}

fn check_closed(close: &Room) -> Result<()> {
    for client in &close.stopped {
        let state = client.state();
        ensure!(state.connections > 1, "{} was not closed", client.name());
        ensure!(last(&state, "gap").is_none(), "{} was told of a gap", client.name());
    }
    Ok(())
}

/// All that was published, in MB.
fn published_mb(rooms: &[Room], heads: &Heads) -> u64 {
    let messages: u64 = rooms.iter().filter_map(|room| heads.of(&room.group)).map(|at| at.offset).sum();
    (messages * MESSAGE_BYTES as u64) >> 20
}

/// Two copies of what was published; for each connection what waits and as much that is being written; the replays.
fn bounded(before_mb: u64, most_mb: u64, published_mb: u64) -> Result<()> {
    let bound_mb = before_mb + 2 * published_mb + ((2 * OUTBOX_BYTES * CONNECTIONS) >> 20) + MARGIN_MB;
    eprintln!(
        "resident: {before_mb} MB before, {most_mb} MB at most; {published_mb} MB published; bound {bound_mb} MB"
    );
    ensure!(most_mb <= bound_mb, "the memory is not bounded: {most_mb} MB, {bound_mb} MB were expected");
    Ok(())
}

fn tell_latencies(history: &History, begun_us: u64, stopped_us: u64, full_us: u64) {
    for (when, window) in [("before", begun_us..stopped_us), ("while some did not read", stopped_us..full_us)] {
        let delivery = latencies(history, &[&window], "reader").delivery;
        eprintln!("deliveries to those who read, {when}: {delivery}");
    }
}
