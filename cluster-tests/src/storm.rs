//! A storm: thousands of clients of one node lose it at once and come back to the others.
//!
//! Three `roost serve` over a real Cassandra. The crowd, light clients in [generator](`generator`) processes of their own,
//! is attached to the first node; a few [`crate::client`]s, which log all they see, publish and listen on the other two.
//! Then the first node is killed, or drained. What the crowd sees must be whole; how long that takes is printed, not judged.

mod crowd;
pub mod generator;
mod member;
mod report;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use roost::{clock, id::Position};
use serde_json::Value;

use self::generator::{Generators, Order};
pub use self::report::Report;
use crate::{
    cassandra::Cassandra,
    client::Client,
    cluster::Cluster,
    latency::latencies,
    load::{self, Load, client_on},
    servers::{ServerSettings, resident_mb},
    wait::wait_until,
};

const NODES: usize = 3;
/// The one that goes.
const LOST: usize = 0;
/// Of steady load before the cut, to compare with.
const BEFORE: Duration = Duration::from_secs(5);
/// Between two looks at the nodes' memory.
const LOOK: Duration = Duration::from_millis(100);
/// Until the survivors report that every slot has its copies again.
const LIMIT: Duration = Duration::from_secs(60);

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The program whose `generator` command runs [`generator::serve`].
    pub generator: PathBuf,
    /// How many clients.
    pub clients: usize,
    /// The number of groups; each client is in one.
    pub groups: usize,
    /// Messages a second, to all groups together.
    pub rate: u32,
    /// SIGTERM instead of SIGKILL.
    pub drain: bool,
    /// Settings of the nodes: `limits.connects_per_s`, `4000`.
    pub overrides: Vec<(String, String)>,
}

/// Carries a plan out.
///
/// # Errors
/// Where it cannot be carried out. What the clients saw is judged by [`Report::verdict`].
pub async fn run(plan: &Plan) -> Result<Report> {
    let cassandra = Cassandra::start(1).await?;
    let mut settings = ServerSettings::over(&cassandra, "storm");
    settings.overrides.clone_from(&plan.overrides);
    let mut cluster = Cluster::serve(settings, NODES).await?;
    let groups = load::groups(plan.groups);
    let start_us = clock::mono_us();
    let mut crowd = Generators::start(plan, &cluster, &groups).await?;
    let gathered_ms = (clock::mono_us() - start_us) / 1_000;
    let (subscribers, load) = begin(&cluster, plan, &groups).await?;
    let before_us = clock::mono_us();
    tokio::time::sleep(BEFORE).await;

    let survivors = (LOST + 1..NODES).map(|node| cluster.servers()?.id(node).context("it does not run"));
    let survivors = survivors.collect::<Result<Vec<u32>>>()?;
    let memory_before_mb = memory(&survivors)?;
    let heads = heads(&subscribers);
    let (cut_us, cut_ms) = (clock::mono_us(), clock::wall_ms());
    let losing = async { if plan.drain { cluster.drain(LOST).await } else { cluster.crash(LOST).await } };
    let caught_up = async {
        let mut peak_mb = memory_before_mb.clone();
        let order = Order::CatchUp { heads };
        let catching_up = crowd.all(&order);
        tokio::pin!(catching_up);
        loop {
            tokio::select! {
                done = &mut catching_up => return Ok::<_, anyhow::Error>((done?, peak_mb)),
                () = tokio::time::sleep(LOOK) => {
                    for (peak, now) in peak_mb.iter_mut().zip(memory(&survivors)?) {
                        *peak = now.max(*peak);
                    }
                }
            }
        }
    };
    let (lost, caught_up) = tokio::join!(losing, caught_up);
    lost?;
    let (times, memory_peak_mb) = caught_up?;
    let over_us = clock::mono_us();

    let whole = is_whole(&cluster).await;
    let (publishers, acknowledged) = load.stop().await?;
    let settled = crowd.all(&Order::Settle { heads: acknowledged.offsets() }).await?;
    let others = load::settle(subscribers.into_iter().chain(publishers).collect(), &acknowledged).await?;
    let mut report = Report {
        clients: plan.clients,
        gathered_ms,
        cut_ms,
        before: latencies(&others, &[&(before_us..cut_us)], "subscriber"),
        during: latencies(&others, &[&(cut_us..over_us)], "subscriber"),
        memory_before_mb,
        memory_peak_mb,
        ..Report::default()
    };
    report.add(times.into_iter().chain(settled));
    report.wrong.extend(whole.err().map(|error| format!("{error:#}")));
    report.wrong.extend(others.check().err().map(|violation| format!("the others: {violation}")));
    report.wrong.extend(cluster.servers()?.without_panic().err().map(|error| format!("{error:#}")));
    crowd.end().await?;
    cluster.shut_down().await?;
    Ok(report)
}

/// A subscriber to everything and a publisher on each node that stays, the publishers at work.
async fn begin(cluster: &Cluster, plan: &Plan, groups: &[Arc<str>]) -> Result<(Vec<Client>, Load)> {
    let (mut subscribers, mut publishers) = (Vec::new(), Vec::new());
    for node in LOST + 1..NODES {
        subscribers.push(client_on(cluster, node, &format!("subscriber-{node}"), groups).await?);
        publishers.push(client_on(cluster, node, &format!("publisher-{node}"), groups).await?);
    }
    let pause = Duration::from_secs(publishers.len() as u64) / plan.rate.max(1);
    Ok((subscribers, Load::start(publishers, groups, pause)))
}

/// Waits until the nodes that stay report every slot to have its copies. (A killed node stays in their reports for a while.)
async fn is_whole(cluster: &Cluster) -> Result<()> {
    for node in cluster.running() {
        let api = cluster.api(node);
        let none = |health: &Value, what: &str| health["slots"][what] == 0;
        let is_whole = |health: Value| none(&health, "short") && none(&health, "unavailable");
        wait_until("every slot to have its copies", LIMIT, async || api.health().await.is_ok_and(is_whole)).await?;
    }
    Ok(())
}

/// How far any of these has come in each group.
fn heads(clients: &[Client]) -> BTreeMap<String, u64> {
    let mut heads = BTreeMap::new();
    for (group, Position { offset, .. }) in clients.iter().flat_map(|client| client.state().positions) {
        let head = heads.entry(group.to_string()).or_insert(offset);
        *head = offset.max(*head);
    }
    heads
}

fn memory(processes: &[u32]) -> Result<Vec<u64>> {
    processes.iter().map(|id| resident_mb(*id)).collect()
}
