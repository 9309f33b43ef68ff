//! Processes that do not belong where they are, and what they send.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};
use rand::RngExt;
use tokio::net::UdpSocket;

use super::scene::{ONE, STAY, Scene};
use crate::{
    api::Api,
    servers::{ServerSettings, Servers, Signal},
};

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
async fn members(api: &Api) -> Result<String> {
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
