//! Memory that is short: a greedy client, and a node whose address space is bounded.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use roost::clock::mono_ms;
use tokio::task::JoinSet;

use super::scene::{ONE, Scene};
use crate::{api, greed::Greed, process::LIMIT, servers::mapped_mb};

/// What clients may make each node hold.
const BUDGET_MB: u64 = 64;
/// What a process may take beside: buffers of sockets, what the allocator keeps, what is under way.
const MARGIN_MB: u64 = 64;
/// What the process of the first node may map. Half of that is mapped before it has a client: code, stacks, the allocator's
/// arenas.
const MAPPED_MB: u64 = 640;
/// What is taken of the greedy client in the end: a node that kept its share, two copies on three nodes, would have ended.
const ENOUGH_MB: u64 = MAPPED_MB * 3 / 2;
/// The client goes on for this time at most.
const GREED_MS: u64 = 60_000;
/// Between two looks at the nodes.
const LOOK: Duration = Duration::from_millis(100);

/// Of all nodes: `open:…` may be published to without joining, and nothing but the budget bounds who does.
pub(super) const SETTINGS: &[(&str, &str)] = &[
    ("limits.memory_bytes", "67108864"),
    ("limits.replay_bytes", "8388608"),
    ("limits.publish_bytes_per_s", "1000000000"),
    ("limits.new_groups_per_s", "1000000"),
    ("limits.operations_per_s", "1000000"),
    ("limits.operations_burst", "1000000"),
    ("namespaces.open.publish", "any"),
];

/// A client publishes ever new groups full at a node that may map little. Every node stays within its budget, says that its
/// memory is short, and answers probes.
pub(super) async fn pressure(scene: &mut Scene<'_>) -> Result<()> {
    scene.cluster.drain(ONE).await?;
    let bound = format!("--as={}", MAPPED_MB << 20);
    scene.cluster.servers_mut()?.run_by(ONE, &["prlimit", &bound]);
    scene.cluster.restart(ONE).await?;
    scene.cluster.green(LIMIT).await?;
    let before_mb = resident_mb(scene)?;
    let greed = Arc::new(Greed::default());
    let mut greedy = JoinSet::new();
    scene.begin();
    greedy.spawn(greed.clone().publish(scene.cluster.url(ONE)));
    let mut seen = Seen { most_mb: before_mb.clone(), said: false, probes: 0 };
    let until_ms = mono_ms() + GREED_MS;
    while mono_ms() < until_ms && (!seen.said || greed.taken_bytes() < ENOUGH_MB << 20) {
        if let Some(ended) = greedy.try_join_next() {
            bail!("the greedy client has ended by itself: {ended:?}");
        }
        seen.look(scene).await?;
        tokio::time::sleep(LOOK).await;
    }
    greedy.shutdown().await;
    scene.end();
    let Seen { most_mb, said, probes } = seen;
    ensure!(said, "no health report says that memory is short");
    let (taken, taken_mb, refused) = (greed.taken(), greed.taken_bytes() >> 20, greed.refused());
    ensure!(taken_mb >= ENOUGH_MB, "only {taken_mb} MB were taken in {GREED_MS} ms: no greed at all");
    let mapped = mapped_mb(scene.cluster.servers()?.id(ONE).context("the node with little memory has ended")?)?;
    scene.note(format!(
        "{taken} messages ({taken_mb} MB) were taken, {refused} refused; the nodes grew from {before_mb:?} to {most_mb:?} MB, \
         bound {} more; the first mapped {mapped} MB; {probes} probes were answered",
        BUDGET_MB + MARGIN_MB
    ));
    for (before, most) in before_mb.iter().zip(&most_mb) {
        ensure!(*most <= before + BUDGET_MB + MARGIN_MB, "nodes grew from {before_mb:?} to {most_mb:?} MB");
    }
    Ok(())
}

/// What was seen of the nodes meanwhile.
struct Seen {
    /// Of each node.
    most_mb: Vec<u64>,
    /// Whether the first node's health report has said that memory is short.
    said: bool,
    probes: u32,
}

impl Seen {
    async fn look(&mut self, scene: &Scene<'_>) -> Result<()> {
        for (most, now) in self.most_mb.iter_mut().zip(resident_mb(scene)?) {
            *most = now.max(*most);
        }
        let api = scene.cluster.api(ONE);
        let live = api.get("/livez").await.context("/livez was not answered")?;
        ensure!(live.status == 200, "/livez: {live:?}");
        self.probes += 1;
        let health = api.health().await?;
        let short = api::reason(&health, "limits.memory_bytes").is_some();
        ensure!(!short || health["status"] == "yellow", "memory is short, and health is {health}");
        self.said |= short;
        Ok(())
    }
}

/// Of each node.
fn resident_mb(scene: &Scene<'_>) -> Result<Vec<u64>> {
    let servers = scene.cluster.servers()?;
    (0..servers.len()).map(|node| servers.resident_mb(node)).collect()
}
