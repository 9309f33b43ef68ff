//! Three nodes, publishes through all of them at once, and a client on each: everybody sees every message of their groups
//! once and in the one order (S1, S2, S5).

use std::sync::Arc;

use anyhow::{Result, ensure};
use cluster_tests::{
    client::Client,
    cluster::{Cluster, Kind},
    history::History,
    load::{self, Heads},
    turn,
};
use futures_util::future::try_join_all;
use serde_json::Value;

const NODES: usize = 3;
const GROUPS: usize = 20;
/// In each group, from one publisher on each node.
const MESSAGES: usize = 10_000;
/// Before each round all have seen all of the rounds before: what a round publishes, some 3 MB for each subscriber, fits
/// into what may wait for a connection, however slowly this machine lets it read.
const ROUNDS: usize = 20;

#[tokio::test(flavor = "multi_thread")]
async fn every_message_once_and_in_order_in_process() -> Result<()> {
    let _turn = turn::take(module_path!());
    check(Kind::Library).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_once_and_in_order_by_the_real_program() -> Result<()> {
    let _turn = turn::take(module_path!());
    check(Kind::Program).await
}

async fn check(kind: Kind) -> Result<()> {
    let cluster = Cluster::start(kind, NODES).await?;
    let groups = load::groups(GROUPS);
    let (subscribers, publishers) = connect(&cluster, &groups).await?;

    let start = roost::clock::mono_ms();
    let mut heads = Heads::default();
    for round in 0..ROUNDS {
        let bursts = publishers.iter().enumerate().map(|(number, publisher)| {
            let messages = MESSAGES / ROUNDS;
            let share = messages / NODES + usize::from(number % NODES < messages % NODES);
            load::burst(publisher, &groups[number / NODES], round * share..(round + 1) * share)
        });
        try_join_all(bursts).await?.iter().for_each(|noted| heads.absorb(noted));
        heads.reached_by(&subscribers, load::SETTLE).await?;
    }
    let published_ms = roost::clock::mono_ms() - start;
    eprintln!("{kind:?}: {} publishes acknowledged after {published_ms} ms", GROUPS * MESSAGES);

    heads.reached_by(&publishers, load::SETTLE).await?;
    for client in subscribers.iter().chain(&publishers) {
        tell_disturbances(client);
        nothing_missing(client)?;
    }
    let mut history = load::settle(subscribers, &heads).await?;
    eprintln!("{kind:?}: all delivered after {} ms", roost::clock::mono_ms() - start);
    for (number, group) in groups.iter().enumerate() {
        history.replays.push(cluster.api(number % NODES).history(group, None).await?);
    }
    for publisher in publishers {
        publisher.finish(true, &mut history).await?;
    }
    if let Some(program) = cluster.program() {
        program.complaints().iter().for_each(|line| eprintln!("{line}"));
    }
    cluster.shut_down().await?;
    prove(&history)
}

/// A subscriber to everything on each node; for each group a publisher on each node.
async fn connect(cluster: &Cluster, groups: &[Arc<str>]) -> Result<(Vec<Client>, Vec<Client>)> {
    let mut subscribers = Vec::new();
    for node in 0..NODES {
        subscribers.push(load::client_on(cluster, node, &format!("subscriber-{node}"), groups).await?);
    }
    let mut publishers = Vec::new();
    for (number, group) in groups.iter().enumerate() {
        for node in 0..NODES {
            let name = format!("publisher-{number}-{node}");
            publishers.push(load::client_on(cluster, node, &name, std::slice::from_ref(group)).await?);
        }
    }
    Ok((subscribers, publishers))
}

/// An overloaded machine may cost a client its connection, or a message its second copy for a moment. That is no
/// violation, but worth knowing.
fn tell_disturbances(client: &Client) {
    let telling = |notice: &&Value| ["bye", "lost", "stale", "gap", "reset"].iter().any(|kind| notice["type"] == *kind);
    for notice in client.state().notices.iter().filter(telling) {
        eprintln!("{} was told {notice}", client.name());
    }
}

/// In the groups that were published to.
fn nothing_missing(client: &Client) -> Result<()> {
    let notices = client.state().notices;
    let declares = |notice: &&Value| ["gap", "reset"].iter().any(|kind| notice["type"] == *kind);
    let public = |notice: &&Value| notice["group"].as_str().is_some_and(|group| !group.starts_with('@'));
    let declared: Vec<_> = notices.iter().filter(declares).filter(public).collect();
    ensure!(declared.is_empty(), "{} was told that something is missing: {declared:?}", client.name());
    Ok(())
}

fn prove(history: &History) -> Result<()> {
    let sum = history.check()?;
    eprintln!("{sum:?}");
    ensure!(sum.acked == GROUPS * MESSAGES, "not everything was acknowledged");
    ensure!(sum.gaps == 0, "something was declared missing");
    // Three subscribers of everything, and three publishers in each group.
    ensure!(sum.delivered >= 2 * NODES * GROUPS * MESSAGES, "fewer deliveries than there should be");
    Ok(())
}
