//! Faults of the store.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use roost::clock;

use super::{
    links,
    rows::Rows,
    scene::{HEAL_LIMIT, ONE, STAY, Scene},
};
use crate::{ledger::Creating, network::Lost, process::LIMIT, relay::Mode, wait::wait_until};

/// How long the store is away, and how long it is where faults may be long.
const AWAY: Duration = Duration::from_secs(60);
const LONG_AWAY: Duration = Duration::from_secs(600);
const BETWEEN_CREATES: Duration = Duration::from_millis(250);

pub(super) async fn cut_off_from_one(scene: &mut Scene<'_>) -> Result<()> {
    links::lose_on(scene, &[ONE], Lost::FromStore).await
}

pub(super) async fn cut_off(scene: &mut Scene<'_>) -> Result<()> {
    let relays = scene.cassandra.relays()?;
    scene.begin();
    relays.set_all(Mode::Hold);
    scene.stay(STAY).await;
    relays.set_all(Mode::Pass);
    Ok(())
}

pub(super) async fn cut_off_and_kill(scene: &mut Scene<'_>) -> Result<()> {
    let relays = scene.cassandra.relays()?;
    relays.set_all(Mode::Hold);
    tokio::time::sleep(Duration::from_secs(1)).await;
    scene.begin();
    scene.cluster.crash(ONE).await?;
    scene.stay(STAY).await;
    relays.set_all(Mode::Pass);
    scene.cluster.restart(ONE).await
}

/// Nobody listens where the store was, for long. What does not need it goes on, and who is refused is told when to come again.
pub(super) async fn away(scene: &mut Scene<'_>) -> Result<()> {
    let creating = Creating::start(&scene.cluster, 1, BETWEEN_CREATES);
    tokio::time::sleep(BETWEEN_CREATES * 10).await;
    let relays = scene.cassandra.relays()?;
    let begun_us = clock::mono_us();
    scene.begin();
    relays.set_all(Mode::Refuse);
    scene.stay(if scene.ground.long { LONG_AWAY } else { AWAY }).await;
    relays.set_all(Mode::Pass);
    let back_us = clock::mono_us();
    let since = async || creating.acknowledged_since(back_us).is_some();
    let again = wait_until("sessions to be made through every node", HEAL_LIMIT, since).await?;
    let ledger = creating.stop().await?;
    let tally = ledger.tally(&(begun_us..back_us));
    tally.as_promised()?;
    ensure!(tally.refused > 0, "no create was refused: was the store away at all?");
    ledger.read_back(&scene.cluster).await?;
    scene.note(format!(
        "{} creates were refused with Retry-After, the longest answer took {} ms; created through every node again \
         {:.1} s after its end; all {} that were acknowledged are there",
        tally.refused,
        tally.longest_ms,
        again.as_secs_f64(),
        ledger.acknowledged.len()
    ));
    Ok(())
}

/// All rows of sessions and the map's row are deleted past Roost, and a node dies. What nodes have in memory goes on without
/// them; what the dead node led waits until the row is put back.
pub(super) async fn rows_lost(scene: &mut Scene<'_>) -> Result<()> {
    let rows = Rows::of(scene)?;
    let kept = rows.map(scene).await?;
    scene.begin();
    for table in ["sessions", "sessions_by_user"] {
        scene.cassandra.cql(&format!("TRUNCATE {}.{table}", rows.keyspace)).await?;
    }
    scene.cassandra.cql(&format!("DELETE FROM {}.cluster_map WHERE key = 'cluster'", rows.keyspace)).await?;
    scene.goes_on().await.context("without rows in the store")?;
    tokio::time::sleep(STAY).await;
    scene.cluster.crash(ONE).await?;
    says(scene, "it has no cluster map any more").await?;
    tokio::time::sleep(STAY / 2).await;
    ensure!(map_version(scene).await? == kept.version, "the map changed although the store has none");
    rows.put_back(scene, &kept, "IF NOT EXISTS").await?;
    scene.end();
    scene.cluster.restart(ONE).await
}

/// An older map is put where the newest was, past Roost, and a node dies. The map in use stays the one that it is, and nothing
/// changes until its content is put back. A session that was ended is alive again where its row is put back.
pub(super) async fn rows_resurrected(scene: &mut Scene<'_>) -> Result<()> {
    let rows = Rows::of(scene)?;
    let old = rows.map(scene).await?;
    scene.cluster.crash(2).await?;
    scene.cluster.restart_all().await?;
    let newest = rows.map(scene).await?;
    ensure!(old.version != newest.version, "a death and a start did not change the map");
    scene.begin();
    rows.put_back(scene, &old, "").await?;
    scene.goes_on().await.context("with an old map in the store")?;
    scene.cluster.crash(ONE).await?;
    says(scene, "is older than the one in use").await?;
    tokio::time::sleep(STAY).await;
    ensure!(map_version(scene).await? == newest.version, "the map changed although the store has an older one");
    rows.put_back(scene, &newest, "").await?;
    scene.end();
    scene.cluster.restart(ONE).await?;
    let alive = rows.session_that_was_ended(scene).await?;
    scene.note(format!("the session's own row was put back after its end: {alive}"));
    Ok(())
}

/// A node's row of starts is deleted past Roost. Its next start counts as an old one, and does not serve, until the row says
/// more than there ever were.
pub(super) async fn starts_lost(scene: &mut Scene<'_>) -> Result<()> {
    let rows = Rows::of(scene)?;
    // So that there has been more than one.
    scene.cluster.drain(ONE).await?;
    scene.cluster.restart(ONE).await?;
    scene.cluster.green(LIMIT).await?;
    scene.begin();
    scene.cassandra.cql(&format!("DELETE FROM {}.node_generations WHERE node = 'n1'", rows.keyspace)).await?;
    scene.stay(STAY).await;
    ensure!(scene.cluster.servers_mut()?.is_running(ONE), "the node whose row was deleted ended");
    scene.cluster.crash(ONE).await?;
    let servers = scene.cluster.servers_mut()?;
    servers.spawn(ONE)?;
    tokio::time::sleep(STAY).await;
    let ready = servers.is_running(ONE) && servers.api(ONE).is_ready().await;
    ensure!(!ready, "a start that the store takes for the first serves beside a map that knows later ones");
    servers.kill(ONE).await?;
    let more = "SET generation = 1000 WHERE node = 'n1' IF generation = 1";
    let set = scene.cassandra.cql(&format!("UPDATE {}.node_generations {more}", rows.keyspace)).await?;
    ensure!(set == [["0x01"]], "the node's start was to be the first to the store: {set:?}");
    scene.end();
    scene.cluster.restart(ONE).await
}

/// Waits until a node that runs has logged this.
async fn says(scene: &Scene<'_>, what: &str) -> Result<()> {
    let servers = scene.cluster.servers()?;
    let running = scene.cluster.running();
    let said = async || running.iter().any(|node| servers.log(*node).contains(what));
    wait_until(&format!("a node to log that {what}"), LIMIT, said).await.map(drop)
}

/// The version of the map in use.
async fn map_version(scene: &Scene<'_>) -> Result<u64> {
    let node = *scene.cluster.running().first().context("a node runs")?;
    scene.cluster.api(node).health().await?["map_version"].as_u64().context("a map has a version")
}
