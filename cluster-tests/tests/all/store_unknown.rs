//! Changes of the cluster map whose outcome nobody learns: of the conditional writes one half never arrives and the answers
//! to the others are lost. The map never forks, and the messages of groups whose nodes die meanwhile are neither lost nor
//! doubled.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    api::Api,
    cassandra::Cassandra,
    client::Client,
    cluster::Cluster,
    load::{self, Load, client_on},
    relay::{Lost, Mode, Relays},
    servers::ServerSettings,
    turn,
    wait::{wait_for, wait_until},
};
use roost::{clock, tasks::Tasks};

const NODES: usize = 3;
const GROUPS: usize = 12;
const PAUSE: Duration = Duration::from_millis(12);
const LOOK: Duration = Duration::from_millis(50);
const LIMIT: Duration = Duration::from_secs(90);
/// Conditional writes to be lost for each node that dies.
const LOST: u64 = 6;

#[tokio::test(flavor = "multi_thread")]
async fn the_map_never_forks_when_nobody_knows_whether_it_was_changed() -> Result<()> {
    let _turn = turn::take(module_path!());
    let cassandra = Cassandra::relayed(1).await?;
    let relays = cassandra.relays()?;
    // An answer that is lost is waited for no longer than this, so that several are.
    let settings = ServerSettings::over(&cassandra, "unknown").with("store.request_timeout_ms", 1_000);
    let mut cluster = Cluster::serve(settings, NODES).await?;
    let groups = load::groups(GROUPS);
    let (mut subscribers, mut publishers) = (Vec::new(), Vec::new());
    for node in 0..NODES {
        subscribers.push(client_on(&cluster, node, &format!("subscriber-{node}"), &groups).await?);
        publishers.push(client_on(&cluster, node, &format!("publisher-{node}"), &groups).await?);
    }
    let load = Load::start(publishers, &groups, PAUSE);
    let maps = Maps::watch(&cluster);
    let first = maps.newest().await?;
    load::goes_on(&subscribers, &load::received(&subscribers), LIMIT).await?;

    // The steward is the node with the lowest id: once another one dies, once the steward itself.
    for victim in [2, 0] {
        let name = Cluster::name(victim);
        die_and_return(&mut cluster, relays, &subscribers, victim).await.context(name)?;
    }

    let last = agreed(&cluster).await?;
    let (seen, forks) = maps.found();
    eprintln!("the map went from version {first} to {last}; {seen} versions were seen; lost: {:?}", relays.lost());
    ensure!(forks.is_empty(), "the map has forked: {forks:#?}");
    ensure!(last > first, "the map was never changed");

    let (publishers, heads) = load.stop().await?;
    subscribers.extend(publishers);
    let sum = load::settle(subscribers, &heads).await?.check()?;
    eprintln!("{sum:?}");
    ensure!(sum.acked > 0 && sum.refused == 0 && sum.unknown == 0, "not every publish was acknowledged in the end");
    ensure!(sum.resets == 0 && sum.gaps == 0 && sum.not_recovered == 0, "a client missed something");
    cluster.servers()?.without_panic()?;
    cluster.shut_down().await
}

/// A node dies while changes of the map get lost, and comes back when they don't any more.
async fn die_and_return(cluster: &mut Cluster, relays: &Relays, subscribers: &[Client], victim: usize) -> Result<()> {
    let start_ms = clock::mono_ms();
    let before = relays.lost();
    relays.set_all(Mode::LoseConditional);
    cluster.crash(victim).await?;
    wait_until("conditional writes to be lost", LIMIT, async || total(relays.lost()) >= total(before) + LOST).await?;
    load::goes_on(subscribers, &load::received(subscribers), LIMIT).await?;
    let lost = relays.lost();
    let name = Cluster::name(victim);
    eprintln!(
        "{} ms after the kill of {name} all groups go on, though {} changes never arrived and {} answers were lost",
        clock::mono_ms() - start_ms,
        lost.requests - before.requests,
        lost.answers - before.answers,
    );
    ensure!(lost.requests > before.requests && lost.answers > before.answers, "{before:?}, then {lost:?}");
    relays.set_all(Mode::Pass);
    cluster.restart(victim).await?;
    let healed = cluster.green(LIMIT).await?;
    eprintln!("green {healed:?} after it was back");
    load::goes_on(subscribers, &load::received(subscribers), LIMIT).await.map(drop)
}

fn total(lost: Lost) -> u64 {
    lost.requests + lost.answers
}

/// Waits until all nodes have one map, and gives its version.
async fn agreed(cluster: &Cluster) -> Result<u64> {
    let look = async || {
        let mut all = Vec::new();
        for node in cluster.running() {
            all.push(map_of(&cluster.api(node)).await?);
        }
        let (version, _) = all[0];
        all.windows(2).all(|pair| pair[0] == pair[1]).then_some(version)
    };
    Ok(wait_for("all nodes to have one map", LIMIT, look).await?.0)
}

/// A node's map: its version, and all that it says.
async fn map_of(api: &Api) -> Option<(u64, String)> {
    let answer = api.get("/v1/cluster/map").await.ok().filter(|answer| answer.status == 200)?;
    Some((answer.body["version"].as_u64()?, answer.body.to_string()))
}

/// Every map that any node had at any time.
struct Maps {
    seen: Arc<Mutex<Seen>>,
    tasks: Tasks,
}

#[derive(Default)]
struct Seen {
    /// By version: what it says, and the node that said so first.
    versions: BTreeMap<u64, (String, String)>,
    forks: Vec<String>,
}

impl Maps {
    fn watch(cluster: &Cluster) -> Self {
        let this = Self { seen: Arc::default(), tasks: Tasks::new() };
        for node in 0..NODES {
            let (api, seen) = (cluster.api(node), this.seen.clone());
            this.tasks.spawn_detached("maps", async move {
                loop {
                    if let Some((version, text)) = map_of(&api).await {
                        seen.lock().unwrap_or_else(PoisonError::into_inner).note(version, text, api.base());
                    }
                    tokio::time::sleep(LOOK).await;
                }
            });
        }
        this
    }

    async fn newest(&self) -> Result<u64> {
        let look = async || self.locked().versions.last_key_value().map(|(version, _)| *version);
        Ok(wait_for("a map", LIMIT, look).await?.0)
    }

    fn found(&self) -> (usize, Vec<String>) {
        let seen = self.locked();
        (seen.versions.len(), seen.forks.clone())
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    fn note(&mut self, version: u64, text: String, by: &str) {
        let (first, whose) = self.versions.entry(version).or_insert_with(|| (text.clone(), by.to_owned()));
        if *first != text {
            self.forks.push(format!("version {version} is at {whose}:\n{first}\nand at {by}:\n{text}"));
        }
    }
}

impl Drop for Maps {
    fn drop(&mut self) {
        self.tasks.stopping().cancel();
    }
}
