//! Faults of the store.

use std::time::Duration;

use anyhow::Result;

use super::{
    links,
    scene::{ONE, STAY, Scene},
};
use crate::{network::Lost, relay::Mode};

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
