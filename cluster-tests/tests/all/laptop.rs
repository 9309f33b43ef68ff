//! Our JavaScript client in twenty tabs of a real browser, some in workers, on three nodes in processes of their own: one node is killed,
//! another one drained, both come back, and a part of the tabs is on a laptop that sleeps meanwhile. What each tab was told is proved
//! by the checker.

use std::{env, process::Stdio, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    cassandra::Cassandra,
    client::{Client, ClientOptions},
    cluster::Cluster,
    history::{ConnectionLog, History, Seen, Stamped, Welcome},
    servers::ServerSettings,
    turn,
};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use roost::{
    clock,
    id::{Epoch, Position},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use super::elsewhere::{clients, has_chromium, node};

const TABS: usize = 20;
const GROUPS: [&str; 2] = ["chat:one", "chat:two"];
/// Longer than a silent connection lives, and than a session waits for its client; `ROOST_SLEEP_S` names another.
const SLEEP_S: u64 = 15;
/// Between two publishes to a group.
const PAUSE: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(120);
/// A browser's clock counts milliseconds from its page's start by another one, which may have been set since: nothing was told
/// later than that after what it says.
const CLOCK_MS: u64 = 50;

/// What a tab's program was told.
#[derive(Deserialize)]
struct Told {
    kind: String,
    at_ms: u64,
    #[serde(default)]
    node: Option<String>,
    #[serde(default)]
    session: Option<String>,
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    epoch: Option<String>,
    #[serde(default)]
    offset: Option<u64>,
    #[serde(default)]
    from: Value,
    #[serde(default)]
    to: Option<u64>,
    #[serde(default)]
    since: Option<Since>,
    #[serde(default)]
    recovered: bool,
    #[serde(default)]
    data: Value,
}

#[derive(Deserialize)]
struct Since {
    epoch: String,
    offset: u64,
}

#[derive(Deserialize)]
struct Tab {
    client: String,
    told: Vec<Told>,
}

/// The processes of the browser that is the laptop. Dropped, they end, though they may be asleep.
struct Laptop(Pid);

impl Drop for Laptop {
    fn drop(&mut self) {
        // A stopped process is killed too.
        killpg(self.0, Signal::SIGKILL).ok();
    }
}

/// The program that drives the browsers.
struct Browsers {
    _child: Child,
    _laptop: Laptop,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Browsers {
    async fn open(nodes: &[String]) -> Result<Self> {
        let mut child = Command::new(node()?)
            .arg(clients().join("laptop.mjs"))
            .args(nodes)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let (stdin, stdout) = child.stdin.take().zip(child.stdout.take()).context("it has its streams")?;
        let mut lines = BufReader::new(stdout).lines();
        let open = says(&mut lines, "open").await?;
        let group = open["laptop"].as_i64().context("the group of the laptop's processes")?;
        ensure!(group > 1, "{group} is no group of processes");
        let this = Self { _child: child, _laptop: Laptop(Pid::from_raw(i32::try_from(group)?)), stdin, lines };
        ensure!(open["tabs"] == TABS, "{open} are open");
        Ok(this)
    }

    async fn order(&mut self, order: &Value) -> Result<()> {
        Ok(self.stdin.write_all(format!("{order}\n").as_bytes()).await?)
    }

    async fn says(&mut self, what: &str) -> Result<Value> {
        says(&mut self.lines, what).await
    }
}

async fn says(lines: &mut Lines<BufReader<ChildStdout>>, what: &str) -> Result<Value> {
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.context("it says nothing")??;
    let mut said: Value = serde_json::from_str(&line.context("it has ended")?)?;
    Ok(said[what].take())
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_tabs_a_kill_a_drain_and_a_laptop_that_sleeps() -> Result<()> {
    let _turn = turn::take(module_path!());
    has_chromium()?;
    let sleep_s = env::var("ROOST_SLEEP_S").map_or(Ok(SLEEP_S), |given| given.parse())?;
    let cassandra = Cassandra::start(1).await?;
    let settings = ServerSettings::over(&cassandra, "laptop")
        .with("session.anonymous", true)
        .with("session.resume_grace_s", 5)
        .with("limits.heartbeat_s", 2)
        .with("limits.idle_s", 6)
        .with("namespaces.default.history_messages", 5_000);
    let mut cluster = Cluster::serve(settings, 3).await?;
    let mut history = History { publishes_complete: true, ..History::default() };
    let mut writers = Vec::new();
    for (at, group) in GROUPS.into_iter().enumerate() {
        let writer = Client::connect(ClientOptions::new(format!("writer-{at}"), cluster.urls_from(at))).await?;
        writer.join(group).await?;
        writers.push(writer);
    }
    let mut browsers = Browsers::open(&cluster.urls_from(0)).await?;

    let began_ms = clock::mono_ms();
    let faults = async {
        // All of them are told something before.
        tokio::time::sleep(Duration::from_secs(1)).await;
        browsers.order(&json!({"sleep": sleep_s})).await?;
        faults(&mut cluster).await?;
        eprintln!("a kill, a drain and two returns: {} ms", clock::mono_ms() - began_ms);
        let slept_ms = browsers.says("slept").await?.as_u64().context("how long it slept")?;
        ensure!(slept_ms >= sleep_s * 1_000, "it slept {slept_ms} ms");
        tokio::time::sleep(Duration::from_secs(1)).await;
        anyhow::Ok(slept_ms)
    };
    let published = write_until(&writers, faults).await?;
    let ends = ends(&writers)?;
    browsers.order(&json!({"until": ends})).await?;
    let tabs: Vec<Tab> = serde_json::from_value(browsers.says("tabs").await?)?;
    eprintln!("all tabs were told all: {} ms", clock::mono_ms() - began_ms);

    ensure!(tabs.len() == TABS, "{} tabs", tabs.len());
    for tab in &tabs {
        let messages = tab.told.iter().filter(|told| told.kind == "message").count();
        ensure!(messages == published, "{} was told {messages} messages of {published}", tab.client);
        // It falls asleep and wakes up a moment late.
        let first = tab.told.iter().position(|told| told.kind == "message").context("it was told something")?;
        let silences = tab.told[first..].windows(2).map(|pair| pair[1].at_ms.saturating_sub(pair[0].at_ms));
        let silent_ms = silences.max().unwrap_or(0);
        let slept = silent_ms + 1_000 >= sleep_s * 1_000;
        ensure!(slept || !tab.client.starts_with("laptop"), "{} was silent for {silent_ms} ms", tab.client);
        history.connections.extend(connections(tab).with_context(|| tab.client.clone())?);
    }
    for writer in writers {
        writer.finish(true, &mut history).await?;
    }
    let back = |prefix: &str| {
        let of = history.connections.iter().filter(|connection| connection.client.starts_with(prefix));
        of.filter(|connection| connection.number > 1).count()
    };
    let (of_desk, of_laptop) = (back("desk"), back("laptop"));
    let summary = history.check()?;
    eprintln!(
        "{published} messages in each of {TABS} tabs; connections made again: {of_desk} and {of_laptop}; {summary:?}"
    );
    ensure!(summary.gaps + summary.resets + summary.not_recovered == 0, "{summary:?}");
    ensure!(of_desk >= 5 && of_laptop >= 5, "{of_desk} and {of_laptop} connections were made again");
    drop(browsers);
    cluster.shut_down().await
}

/// One node is killed and comes back, then another one is drained and comes back.
async fn faults(cluster: &mut Cluster) -> Result<()> {
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.crash(0).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.restart(0).await?;
    cluster.green(LIMIT).await?;
    cluster.drain(1).await?;
    cluster.restart(1).await?;
    cluster.green(LIMIT).await.map(drop)
}

/// Publishes to all groups until something is over, and says how many messages that were.
async fn write_until<T>(writers: &[Client], over: impl Future<Output = Result<T>>) -> Result<usize> {
    let mut over = std::pin::pin!(over);
    let (mut published, mut answers) = (0, Vec::new());
    loop {
        for (writer, group) in writers.iter().zip(GROUPS) {
            answers.push(writer.publish(&Arc::from(group), &format!("{group} {published}")).await?);
            published += 1;
        }
        tokio::select! {
            ended = &mut over => {
                ended?;
                break;
            }
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
    for writer in writers {
        writer.answered(LIMIT).await?;
    }
    Ok(published)
}

/// Where the groups are in the end.
fn ends(writers: &[Client]) -> Result<Map<String, Value>> {
    let mut ends = Map::new();
    for (writer, group) in writers.iter().zip(GROUPS) {
        let at = writer.state().positions.get(group).copied().context("it was told something")?;
        ends.insert(group.to_owned(), json!({"epoch": at.epoch.to_string(), "offset": at.offset}));
    }
    Ok(ends)
}

/// The connections that a tab had, by what its program was told.
fn connections(tab: &Tab) -> Result<Vec<ConnectionLog>> {
    let skew_us = (clock::wall_ms() * 1_000).saturating_sub(clock::mono_us());
    let on_clock = |at_ms: u64| ((at_ms + CLOCK_MS) * 1_000).saturating_sub(skew_us);
    let client: Arc<str> = tab.client.as_str().into();
    let (mut connections, mut asked_us): (Vec<ConnectionLog>, u64) = (Vec::new(), 0);
    for told in &tab.told {
        let at_us = on_clock(told.at_ms);
        match &*told.kind {
            "connecting" => asked_us = at_us,
            "connected" => {
                let session = told.session.as_deref().context("a session")?.into();
                connections.push(ConnectionLog {
                    client: client.clone(),
                    number: u32::try_from(connections.len())? + 1,
                    node: told.node.as_deref().context("a node")?.into(),
                    welcome: Some(Welcome { session, client: client.clone(), asked_us, at_us }),
                    events: Vec::new(),
                    settled: false,
                });
            }
            "waiting" => {}
            "ended" => anyhow::bail!("it has ended"),
            _ => {
                let seen = seen(told).with_context(|| format!("what is {}?", told.kind))?;
                let connection = connections.last_mut().context("it was told something without a connection")?;
                connection.events.push(Stamped { at_us, seen });
            }
        }
    }
    connections.last_mut().context("it was never connected")?.settled = true;
    Ok(connections)
}

fn seen(told: &Told) -> Option<Seen> {
    let group: Arc<str> = told.group.as_deref()?.into();
    let epoch = || Epoch::parse(told.epoch.as_deref()?).ok();
    let at = || Some(Position { epoch: epoch()?, offset: told.offset? });
    Some(match &*told.kind {
        "joined" => {
            let since = match &told.since {
                Some(since) => Some(Position { epoch: Epoch::parse(&since.epoch).ok()?, offset: since.offset }),
                None => None,
            };
            Seen::Joined { group, since, at: at()?, recovered: told.recovered }
        }
        "message" => Seen::Message { group, at: at()?, payload: told.data.to_string().into() },
        "gap" => Seen::Gap { group, epoch: epoch()?, from: told.from.as_u64()?, to: told.to? },
        "reset" => Seen::Reset { group, to: at()? },
        "left" => Seen::Left { group },
        _ => return None,
    })
}
