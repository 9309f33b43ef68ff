//! Nodes that crash, come back, are drained and added, while publishes go on: nothing that was acknowledged is missing,
//! nothing comes twice or out of order, and the clients of a node that is gone go on elsewhere (S1–S6).

use std::{sync::Arc, time::Duration};

use anyhow::{Result, ensure};
use cluster_tests::{
    api::{self, Api},
    client::{Client, State},
    cluster::{Cluster, Kind},
    history::{History, Summary},
    load::{self, Load, client_on},
    turn,
    wait::wait_for,
};
use roost::clock;
use serde_json::Value;

const NODES: usize = 3;
const GROUPS: usize = 12;
/// Of each of the three publishers, after each message.
const PAUSE: Duration = Duration::from_millis(4);
/// Until a health report knows of a killed node.
const HEALTH_LIMIT: Duration = Duration::from_secs(3);
/// Until publishes to all groups go through again, and until slots are where they should be.
const LIMIT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_and_a_restart_in_process() -> Result<()> {
    let _turn = turn::take(module_path!());
    crash_and_restart(Kind::Library).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_and_a_restart_in_the_real_program() -> Result<()> {
    let _turn = turn::take(module_path!());
    crash_and_restart(Kind::Program).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_and_an_addition_in_process() -> Result<()> {
    let _turn = turn::take(module_path!());
    drain_and_add(Kind::Library).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_and_an_addition_in_the_real_program() -> Result<()> {
    let _turn = turn::take(module_path!());
    drain_and_add(Kind::Program).await
}

async fn crash_and_restart(kind: Kind) -> Result<()> {
    let mut cluster = Cluster::start(kind, NODES).await?;
    let groups = load::groups(GROUPS);
    let (subscribers, load) = begin(&cluster, &groups).await?;

    let victim = 1;
    let start_ms = clock::mono_ms();
    cluster.crash(victim).await?;
    for node in cluster.running() {
        let reason = noticed(&cluster.api(node), victim).await?;
        eprintln!("{} ms after the kill {} says: {reason}", clock::mono_ms() - start_ms, Cluster::name(node));
    }
    went_elsewhere(&subscribers[victim], victim).await?;
    load::goes_on(&subscribers, &load::received(&subscribers), LIMIT).await?;
    eprintln!("{} ms after the kill messages of all groups arrive everywhere", clock::mono_ms() - start_ms);

    let before: Vec<State> = subscribers.iter().map(Client::state).collect();
    let start_ms = clock::mono_ms();
    cluster.restart(victim).await?;
    cluster.holds_slots(victim, LIMIT).await?;
    eprintln!("{} ms after the restart it holds slots again", clock::mono_ms() - start_ms);
    cluster.green(LIMIT).await?;
    eprintln!("{} ms after the restart each node reports green", clock::mono_ms() - start_ms);
    load::goes_on(&subscribers, &load::received(&subscribers), LIMIT).await?;
    for (subscriber, before) in subscribers.iter().zip(&before) {
        noticed_nothing(subscriber, before)?;
    }

    let sum = prove(&end(subscribers, load).await?)?;
    ensure!(sum.resumes > 0, "no client had to resume");
    without_panic(&cluster)?;
    cluster.shut_down().await
}

async fn drain_and_add(kind: Kind) -> Result<()> {
    let mut cluster = Cluster::start(kind, NODES).await?;
    let groups = load::groups(GROUPS);
    let (subscribers, load) = begin(&cluster, &groups).await?;

    let leaving = 2;
    let others: Vec<State> = subscribers[..leaving].iter().map(Client::state).collect();
    let start_ms = clock::mono_ms();
    cluster.drain(leaving).await?;
    eprintln!("{} ms after the drain began {} holds nothing", clock::mono_ms() - start_ms, Cluster::name(leaving));
    went_elsewhere(&subscribers[leaving], leaving).await?;
    let byes = byes(&subscribers[leaving].state());
    ensure!(byes.iter().any(|bye| bye == "draining"), "its client was not told that it drains, but {byes:?}");
    load::goes_on(&subscribers, &load::received(&subscribers), LIMIT).await?;

    let start_ms = clock::mono_ms();
    let added = cluster.add().await?;
    cluster.holds_slots(added, LIMIT).await?;
    eprintln!("{} ms after the addition {} holds slots", clock::mono_ms() - start_ms, Cluster::name(added));
    load::goes_on(&subscribers, &load::received(&subscribers), LIMIT).await?;
    for (subscriber, before) in subscribers.iter().zip(&others) {
        noticed_nothing(subscriber, before)?;
    }

    prove(&end(subscribers, load).await?)?;
    without_panic(&cluster)?;
    cluster.shut_down().await
}

/// A subscriber to everything and a publisher on each node, the publishers at work.
async fn begin(cluster: &Cluster, groups: &[Arc<str>]) -> Result<(Vec<Client>, Load)> {
    let (mut subscribers, mut publishers) = (Vec::new(), Vec::new());
    for node in 0..NODES {
        subscribers.push(client_on(cluster, node, &format!("subscriber-{node}"), groups).await?);
        publishers.push(client_on(cluster, node, &format!("publisher-{node}"), groups).await?);
    }
    let load = Load::start(publishers, groups, PAUSE);
    load::goes_on(&subscribers, &load::received(&subscribers), LIMIT).await?;
    Ok((subscribers, load))
}

async fn end(mut subscribers: Vec<Client>, load: Load) -> Result<History> {
    let (publishers, heads) = load.stop().await?;
    subscribers.extend(publishers);
    load::settle(subscribers, &heads).await
}

/// Waits until a node's report is not green for a reason that names the dead node, and gives that reason.
async fn noticed(api: &Api, dead: usize) -> Result<String> {
    let name = Cluster::name(dead);
    let what = format!("{} to report that {name} is gone", api.base());
    let look = async || {
        let health = api.health().await.ok()?;
        let reason = api::reason(&health, &name)?;
        (health["status"] != "green").then(|| format!("{}: {reason}", health["status"]))
    };
    Ok(wait_for(&what, HEALTH_LIMIT, look).await?.0)
}

async fn went_elsewhere(client: &Client, from: usize) -> Result<()> {
    let from = Cluster::name(from);
    let elsewhere = |state: &State| state.node.as_ref().is_some_and(|node| *node != from);
    client.wait("be at another node", LIMIT, |state| state.connections > 1 && elsewhere(state)).await?;
    Ok(())
}

/// Nothing but messages has come, on the same connection.
fn noticed_nothing(client: &Client, before: &State) -> Result<()> {
    let after = client.state();
    ensure!(after.connections == before.connections, "{} was disconnected: {:?}", client.name(), after.notices);
    let telling = |state: &State| -> Vec<Value> {
        let quiet = ["joined", "live", "member"];
        let tells = |notice: &&Value| notice["type"].as_str().is_none_or(|kind| !quiet.contains(&kind));
        state.notices.iter().filter(tells).cloned().collect()
    };
    let (before, after) = (telling(before), telling(&after));
    ensure!(after == before, "{} was told {:?}, before that {before:?}", client.name(), after);
    Ok(())
}

fn byes(state: &State) -> Vec<String> {
    let byes = state.notices.iter().filter(|notice| notice["type"] == "bye");
    byes.filter_map(|bye| bye["code"].as_str().map(str::to_owned)).collect()
}

fn prove(history: &History) -> Result<Summary> {
    let sum = history.check()?;
    eprintln!("{sum:?}");
    ensure!(sum.acked > 0 && sum.refused == 0 && sum.unknown == 0, "not every publish was acknowledged in the end");
    ensure!(sum.resets == 0, "the loss of one node of three reset a group");
    ensure!(sum.gaps == 0 && sum.not_recovered == 0, "a client missed something");
    Ok(sum)
}

fn without_panic(cluster: &Cluster) -> Result<()> {
    let output = cluster.program().map(|program| program.output()).unwrap_or_default();
    let panics: Vec<_> = output.iter().filter(|line| line.contains("panicked at")).collect();
    ensure!(panics.is_empty(), "the program panicked: {panics:#?}");
    Ok(())
}
