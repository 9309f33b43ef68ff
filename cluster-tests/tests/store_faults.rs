//! The store pauses, dies, is cut off, slows down, loses a node or two of three: publishes, deliveries, resumes and joins
//! go on as before (L4), new sessions wait or are refused, nothing that was acknowledged is lost, and all heals by itself.
//!
//! `ROOST_FAULT_SECONDS` sets how long each fault lasts (60 for the whole promise).

use std::time::Duration;

use anyhow::Result;
use cluster_tests::{
    cassandra::{Cassandra, Deed},
    faults::{Effect, Stage},
    relay::Mode,
};
use tokio::sync::Mutex;

/// One test at a time: each measures, and has the machine for itself.
static MACHINE: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_one_node_that_fails_in_every_way() -> Result<()> {
    let _machine = MACHINE.lock().await;
    let cassandra = Cassandra::relayed(1).await?;
    let relays = cassandra.relays()?;
    let mut stage = Stage::set(&cassandra, "one_node").await?;
    let node = async |deed| cassandra.node(0, deed).await;
    stage
        .fault("paused (SIGSTOP)", Effect::Away, async || node(Deed::Pause).await, async || node(Deed::Resume).await)
        .await?;
    stage.fault("cut off", Effect::Away, set(relays, Mode::Hold), set(relays, Mode::Pass)).await?;
    let slow = Mode::Slow(Duration::from_secs(1));
    stage.fault("slowed to 2 s", Effect::Slow, set(relays, slow), set(relays, Mode::Pass)).await?;
    stage.fault("refusing connections", Effect::Away, set(relays, Mode::Refuse), set(relays, Mode::Pass)).await?;
    stage
        .fault("killed (SIGKILL)", Effect::Away, async || node(Deed::Kill).await, async || node(Deed::Start).await)
        .await?;
    anyhow::ensure!(relays.connections() > 0, "the drivers went past the relays");
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_three_nodes_that_loses_one_and_two() -> Result<()> {
    let _machine = MACHINE.lock().await;
    let cassandra = Cassandra::relayed(3).await?;
    let mut stage = Stage::set(&cassandra, "three_nodes").await?;
    let all = async |nodes: &[usize], deed| {
        for node in nodes {
            cassandra.node(*node, deed).await?;
        }
        anyhow::Ok(())
    };
    stage
        .fault(
            "one of three killed",
            Effect::None,
            async || all(&[2], Deed::Kill).await,
            async || all(&[2], Deed::Start).await,
        )
        .await?;
    stage
        .fault(
            "two of three killed",
            Effect::Away,
            async || all(&[1, 2], Deed::Kill).await,
            async || all(&[1, 2], Deed::Start).await,
        )
        .await?;
    stage.end().await
}

fn set(relays: &cluster_tests::relay::Relays, mode: Mode) -> impl AsyncFnOnce() -> Result<()> {
    async move || {
        relays.set_all(mode);
        Ok(())
    }
}
