//! Processes that do not belong where they are, and what they send.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use rand::RngExt;
use tokio::net::UdpSocket;

use super::scene::{ONE, STAY, Scene};
use crate::{
    api::Api,
    cluster::Cluster,
    servers::{ServerSettings, Servers, Signal},
};

/// The node that there is a copy of.
const TWO: usize = 1;
/// The ghost's keyspace.
const GHOSTS: &str = "fault_ghosts";
/// More starts than there ever were.
const FAR: u64 = 1 << 40;
const HAUNTINGS: u32 = 3;

pub(super) async fn forged(scene: &mut Scene<'_>) -> Result<()> {
    let servers = scene.cluster.servers()?;
    let nodes: Vec<SocketAddr> = (0..3).map(|node| servers.peer_addresses(node).1).collect();
    let before = members(&scene.cluster.api(1)).await?;
    // Another CA, with the names of this cluster and of its first node.
    let seeds = serde_json::to_string(&nodes)?;
    let settings = ServerSettings::over(scene.cassandra, "fault_forger").on(scene.network.hosts().split_off(4));
    let settings = ServerSettings { cluster: servers.cluster().to_owned(), ..settings };
    let mut forger = Servers::prepare(settings.with("cluster.seeds", seeds), 1).await?;
    scene.begin();
    forger.spawn(0)?;
    let socket = UdpSocket::bind((crate::network::HOME, 0)).await?;
    let mut sent = 0_u64;
    for round in 0..600 {
        for node in &nodes {
            let length = rand::rng().random_range(1..1_400);
            let mut bytes: Vec<u8> = (0..length).map(|_| rand::rng().random()).collect();
            // Every other one looks like the first packet of a QUIC connection.
            if round % 2 == 0 && length > 6 {
                bytes[..6].copy_from_slice(&[0xc3, 0, 0, 0, 1, 8]);
            }
            socket.send_to(&bytes, node).await?;
            sent += 1;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(forger.is_running(0), "the forger ended by itself: {}", forger.last_words(0));
    let after = members(&scene.cluster.api(1)).await?;
    ensure!(before == after, "the members were {before:?}, and are {after:?}");
    let refused =
        (0..3).map(|node| scene.cluster.servers().map(|servers| servers.log(node))).collect::<Result<Vec<_>>>()?;
    ensure!(refused.iter().any(|log| log.contains("certificate")), "no node ever met the forger");
    scene.end();
    forger.kill(0).await?;
    scene.note(format!("{sent} random datagrams; the members stayed the same"));
    Ok(())
}

/// The members that a node counts on, with their generations.
pub(super) async fn members(api: &Api) -> Result<String> {
    Ok(api.get("/v1/cluster/map").await?.body["members"].to_string())
}

pub(super) async fn same_name(scene: &mut Scene<'_>) -> Result<()> {
    let second = scene.cluster.servers_mut()?.add_impostor(ONE);
    scene.begin();
    scene.cluster.servers_mut()?.spawn(second)?;
    let status = scene.cluster.ended(ONE).await?;
    scene.note(format!("the older one ended with {status}"));
    scene.stay(STAY).await;
    let servers = scene.cluster.servers_mut()?;
    servers.signal(second, Signal::Term).await?;
    servers.ended(second).await?;
    scene.cluster.restart(ONE).await
}

/// A copy of the second node's configuration over another store, which has seen more starts of it: a restored backup, or a
/// rehearsal with the seeds of what is real. It is told why it may not, each time, and the node that it is a copy of serves.
pub(super) async fn ghost(scene: &mut Scene<'_>) -> Result<()> {
    let real = scene.cluster.servers()?;
    let seeds: Vec<SocketAddr> = (0..3).map(|node| real.peer_addresses(node).1).collect();
    let (seeds, strange) = (serde_json::to_string(&seeds)?, scene.network.hosts().split_off(4).remove(0));
    let settings = ServerSettings::over(scene.cassandra, GHOSTS).on(vec![strange.clone(), strange]);
    let settings = ServerSettings { cluster: real.cluster().to_owned(), ..settings };
    let mut ghosts = Servers::prepare(settings, 2).await?;
    ghosts.take_papers_of(real)?;
    // It makes its store while it is alone.
    ghosts.configure(TWO, "cluster.seeds", "[]");
    ghosts.start(TWO).await?;
    ghosts.signal(TWO, Signal::Term).await?;
    ghosts.ended(TWO).await?;
    let set = format!("UPDATE {GHOSTS}.node_generations SET generation = {FAR} WHERE node = 'n2' IF generation = 1");
    ensure!(scene.cassandra.cql(&set).await? == [["0x01"]], "its store has no first start of n2");
    ghosts.configure(TWO, "cluster.seeds", seeds);
    let before = members(&scene.cluster.api(TWO)).await?;
    let begun_ms = roost::clock::mono_ms();
    for _ in 0..HAUNTINGS {
        scene.begin();
        ghosts.spawn(TWO)?;
        let status = ghosts.ended(TWO).await?;
        let said = ghosts.last_words(TWO);
        ensure!(!status.success() && said.contains("another store"), "the ghost ended with {status} and said {said}");
        scene.goes_on().await?;
    }
    let passed = Duration::from_millis(roost::clock::mono_ms() - begun_ms);
    scene.stay(STAY.saturating_sub(passed)).await;
    for node in scene.cluster.running() {
        let after = members(&scene.cluster.api(node)).await?;
        ensure!(before == after, "the members were {before}, and are {after} to {}", Cluster::name(node));
    }
    scene.cluster.holds_slots(TWO, Duration::ZERO).await.context("the node that it is a copy of")?;
    scene.note(format!("it was refused {HAUNTINGS} times, as one of another store; the members stayed the same"));
    Ok(())
}
