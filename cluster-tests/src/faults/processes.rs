//! Faults of processes: they die, stand still, end and come back.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{
    freeze::Frozen,
    repeats::{Repeats, Tally},
    scene::{ONE, STAY, Scene},
};
use crate::{process::LIMIT, servers::Signal};

/// The thread that looks after the others, by its name.
const WATCHDOG: &str = "roost-watchdog";
pub(super) const KILLS: usize = 20;
const FEW_KILLS: usize = 6;
const CROWD: usize = 2_000;
const FREEZES_S: [u64; 4] = [1, 2, 4, 8];
/// Clients of a frozen node whose sessions attach elsewhere.
const FROZEN_CLIENTS: usize = 8;

pub(super) async fn kill_holder(scene: &mut Scene<'_>, which: usize) -> Result<()> {
    let holders = scene.holders().await?;
    let node = *holders.get(which).context("fewer copies than there should be")?;
    kill_some(scene, &[node]).await
}

pub(super) async fn kill_some(scene: &mut Scene<'_>, nodes: &[usize]) -> Result<()> {
    scene.begin();
    for node in nodes {
        scene.cluster.crash(*node).await?;
    }
    scene.stay(STAY).await;
    scene.cluster.restart_all().await
}

pub(super) async fn kill_gateway(scene: &mut Scene<'_>) -> Result<()> {
    scene.crowd(ONE, CROWD).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    scene.begin();
    scene.cluster.crash(ONE).await?;
    let back = scene.all_elsewhere(ONE).await?;
    scene.note(format!("all {CROWD} are back after {:.1} s", back.as_secs_f64()));
    scene.stay(STAY).await;
    scene.cluster.restart(ONE).await
}

pub(super) async fn kill_all(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    scene.cluster.crash_all().await?;
    scene.end();
    scene.cluster.restart_all().await
}

pub(super) async fn kill_again_and_again(scene: &mut Scene<'_>) -> Result<()> {
    kill_in_turn(scene, KILLS).await?;
    scene.end();
    Ok(())
}

/// This number of kills. Each finds all copies there.
pub(super) async fn kill_in_turn(scene: &mut Scene<'_>, kills: usize) -> Result<()> {
    for round in 0..kills {
        let node = round % 3;
        scene.begin();
        scene.cluster.crash(node).await?;
        scene.goes_on().await.context("after a kill")?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        scene.cluster.restart(node).await?;
        scene.cluster.green(LIMIT).await?;
    }
    Ok(())
}

pub(super) async fn kill_below_the_floor(scene: &mut Scene<'_>) -> Result<()> {
    let repeats = Repeats::start(&scene.cluster, 3, 2);
    kill_in_turn(scene, FEW_KILLS).await?;
    scene.end();
    let Tally { acknowledged, too_few, unknown } = repeats.stop().await?;
    ensure!(acknowledged > 100, "only {acknowledged} messages were repeated");
    scene.note(format!(
        "{acknowledged} messages over HTTP, each repeated once it was answered: none was denied, none was answered with one \
         copy; {too_few} times there were too few copies, {unknown} times no answer"
    ));
    Ok(())
}

pub(super) async fn drain(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    scene.cluster.drain(ONE).await?;
    scene.stay(STAY).await;
    scene.cluster.restart(ONE).await
}

pub(super) async fn rolling_restart(scene: &mut Scene<'_>) -> Result<()> {
    for node in scene.cluster.running() {
        scene.begin();
        scene.cluster.drain(node).await?;
        scene.cluster.restart(node).await?;
        scene.cluster.green(LIMIT).await?;
    }
    scene.end();
    Ok(())
}

pub(super) async fn pause(scene: &mut Scene<'_>, seconds: u64) -> Result<()> {
    scene.begin();
    scene.cluster.servers()?.signal(ONE, Signal::Stop).await?;
    scene.stay(Duration::from_secs(seconds)).await;
    scene.cluster.servers()?.signal(ONE, Signal::Cont).await
}

/// Nothing that is published after a session's welcome elsewhere may reach the client that it had on the frozen node: the
/// history tells.
pub(super) async fn frozen_gateway(scene: &mut Scene<'_>) -> Result<()> {
    let mut waited = Vec::new();
    for seconds in FREEZES_S {
        let earlier = scene.settle_on(ONE, FROZEN_CLIENTS).await?;
        scene.begin();
        let begun_ms = roost::clock::mono_ms();
        scene.cluster.servers()?.signal(ONE, Signal::Stop).await?;
        let longest = scene.attach_elsewhere(&earlier, 1).await;
        let passed = Duration::from_millis(roost::clock::mono_ms() - begun_ms);
        tokio::time::sleep(Duration::from_secs(seconds).saturating_sub(passed)).await;
        scene.cluster.servers()?.signal(ONE, Signal::Cont).await?;
        waited.push(longest?);
        scene.displaced(earlier).await?;
        scene.cluster.green(LIMIT).await?;
    }
    scene.end();
    let longest = waited.into_iter().max().unwrap_or_default();
    scene.note(format!("attached elsewhere after {:.1} s at the latest", longest.as_secs_f64()));
    Ok(())
}

pub(super) async fn stalled(scene: &mut Scene<'_>) -> Result<()> {
    let process = scene.cluster.servers()?.id(ONE).context("the node runs")?;
    scene.begin();
    let frozen = Frozen::all_but(process, WATCHDOG)?;
    let begun = roost::clock::mono_ms();
    let status = scene.cluster.ended(ONE).await?;
    drop(frozen);
    let log = scene.cluster.servers()?.last_words(ONE);
    let said = log.lines().rev().find(|line| line.contains("ERROR")).context("it ended without a word")?;
    scene.note(format!("it ended with {status} after {} ms and said:{said}", roost::clock::mono_ms() - begun));
    scene.end();
    scene.cluster.restart(ONE).await
}

pub(super) async fn scale(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    let added = [scene.cluster.add().await?, scene.cluster.add().await?];
    scene.cluster.green(LIMIT).await?;
    for node in added {
        scene.cluster.holds_slots(node, LIMIT).await?;
    }
    scene.stay(STAY / 2).await;
    for node in added {
        scene.cluster.drain(node).await?;
    }
    scene.end();
    Ok(())
}
