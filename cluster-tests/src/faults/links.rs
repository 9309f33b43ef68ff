//! Faults of the network between nodes, and between nodes and the store.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{
    scene::{ONE, STAY, Scene},
    strangers::members,
};
use crate::{datagrams::Road, network::Lost};

/// How often the addresses of peers change.
const REBINDS: u32 = 3;

pub(super) async fn part(scene: &mut Scene<'_>, one: &[usize], other: &[usize]) -> Result<()> {
    scene.begin();
    scene.network.part(one, other)?;
    scene.stay(STAY).await;
    mend(scene)
}

pub(super) async fn cut_off(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    scene.network.part(&[ONE], &[1, 2])?;
    stay_alone(scene).await
}

pub(super) async fn deaf(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    scene.network.lose(ONE, &[Lost::From(1), Lost::From(2)])?;
    stay_alone(scene).await
}

pub(super) async fn mute(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    for other in [1, 2] {
        scene.network.lose(other, &[Lost::From(ONE)])?;
    }
    stay_alone(scene).await
}

pub(super) async fn without_datagrams(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    scene.network.lose(ONE, &[Lost::DatagramsFrom(1), Lost::DatagramsFrom(2)])?;
    for other in [1, 2] {
        scene.network.lose(other, &[Lost::DatagramsFrom(ONE)])?;
    }
    stay_alone(scene).await
}

/// One node is cut off from two that hear each other: these are to have all slots, and not that one theirs.
async fn stay_alone(scene: &mut Scene<'_>) -> Result<()> {
    let begun_ms = roost::clock::mono_ms();
    let elapsed = || Duration::from_millis(roost::clock::mono_ms() - begun_ms);
    scene.cluster.holds_nothing(ONE, STAY).await.context("the node that is cut off kept its slots from the others")?;
    scene.note(format!("the others have all slots after {:.1} s", elapsed().as_secs_f64()));
    scene.stay(STAY.saturating_sub(elapsed())).await;
    mend(scene)
}

/// Takes back what packets were lost by, and sees to it that some were.
fn mend(scene: &mut Scene<'_>) -> Result<()> {
    let lost = scene.network.lost()?;
    ensure!(lost > 0, "no packet was lost");
    scene.note(format!("{lost} packets lost"));
    scene.network.mend_all()
}

pub(super) async fn lose(scene: &mut Scene<'_>, lost: Lost) -> Result<()> {
    lose_on(scene, &[0, 1, 2], lost).await
}

pub(super) async fn lose_on(scene: &mut Scene<'_>, nodes: &[usize], lost: Lost) -> Result<()> {
    scene.begin();
    for node in nodes {
        scene.network.lose(*node, &[lost])?;
    }
    scene.stay(STAY).await;
    mend(scene)
}

pub(super) async fn narrow(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    scene.network.narrow(ONE, 1_000)?;
    scene.stay(STAY).await;
    scene.network.mend_all()
}

pub(super) async fn rough(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    let road =
        Road { least: Duration::from_millis(5), more: Duration::from_millis(40), twice_percent: 5, ..Road::default() };
    scene.relays()?.set(road);
    scene.stay(STAY).await;
    scene.relays()?.set(Road::default());
    let carried = scene.relays()?.carried();
    ensure!(carried.twice > 0, "no datagram went through the relays");
    scene.note(format!("{} datagrams, {} twice", carried.datagrams, carried.twice));
    Ok(())
}

pub(super) async fn replay(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    for _ in 0..3 {
        scene.relays()?.replay().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    scene.end();
    let carried = scene.relays()?.carried();
    ensure!(carried.replayed > 0, "no datagram went through the relays");
    scene.note(format!("{} of {} datagrams sent again", carried.replayed, carried.datagrams));
    Ok(())
}

/// Nodes that are far from each other, `each_way_ms` in fact.
pub(super) async fn far(scene: &mut Scene<'_>, each_way_ms: u64) -> Result<()> {
    scene.begin();
    scene.relays()?.set(Road { least: Duration::from_millis(each_way_ms), ..Road::default() });
    scene.stay(STAY).await;
    scene.relays()?.set(Road::default());
    Ok(())
}

/// Whoever is behind an address translation is seen at another address from one moment to the next.
pub(super) async fn rebound_peers(scene: &mut Scene<'_>) -> Result<()> {
    let before = members(&scene.cluster.api(1)).await?;
    for _ in 0..REBINDS {
        scene.begin();
        scene.relays()?.rebind();
        scene.goes_on().await.context("after the addresses changed")?;
        tokio::time::sleep(STAY / REBINDS).await;
    }
    scene.end();
    let after = members(&scene.cluster.api(1)).await?;
    ensure!(before == after, "the members were {before}, and are {after}");
    scene.note(format!("the addresses of all peers changed {REBINDS} times; the members stayed the same"));
    Ok(())
}
