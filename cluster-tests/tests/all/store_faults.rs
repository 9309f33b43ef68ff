//! The store pauses, dies, is cut off, slows down, loses a node or two of three: publishes, deliveries, resumes and joins
//! go on as before (L4), new sessions wait or are refused, nothing that was acknowledged is lost, and all heals by itself.
//!
//! `ROOST_FAULT_SECONDS` sets how long each fault lasts (60 for the whole promise).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    cassandra::{Cassandra, Deed},
    cluster::Cluster,
    ledger::Creating,
    relay::{Mode, Relays},
    servers::ServerSettings,
    store_faults::{Effect, Stage},
    turn,
    wait::wait_until,
};
use roost::clock;
use tokio::sync::Mutex;

const LIMIT: Duration = Duration::from_secs(60);
/// Creates through each node at once, where they alone are what matters.
const STREAMS: usize = 8;

/// One test at a time: each measures, and has the machine for itself.
static MACHINE: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_one_node_that_fails_in_every_way() -> Result<()> {
    let _turn = turn::take(module_path!());
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
    stage
        .fault("killed (SIGKILL)", Effect::Away, async || node(Deed::Kill).await, async || node(Deed::Start).await)
        .await?;
    ensure!(relays.connections() > 0, "the drivers went past the relays");
    stage.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_three_nodes_that_loses_one_and_two() -> Result<()> {
    let _turn = turn::take(module_path!());
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

/// Cut off for about as long as a create waits for the store: writes that were given up, and repeats of theirs that were
/// not, arrive at the same moment. Whatever is then answered with 201 must be there.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_created_while_the_store_is_away_for_a_moment() -> Result<()> {
    let _turn = turn::take(module_path!());
    let _machine = MACHINE.lock().await;
    let cassandra = Cassandra::relayed(1).await?;
    let relays = cassandra.relays()?;
    let settings = ServerSettings::over(&cassandra, "moments").with("store.request_timeout_ms", 2_000);
    let mut cluster = Cluster::serve(settings, 3).await?;
    let creating = Creating::start(&cluster, STREAMS, Duration::from_millis(50));
    for moment_ms in [1_900, 2_200, 2_500, 2_800, 3_200] {
        let healed_us = clock::mono_us();
        let wait = async || creating.acknowledged_since(healed_us).is_some();
        wait_until("sessions to be created through every node", LIMIT, wait).await?;
        eprintln!("away from {} ms on, for {moment_ms} ms", clock::mono_ms());
        relays.set_all(Mode::Hold);
        tokio::time::sleep(Duration::from_millis(moment_ms)).await;
        relays.set_all(Mode::Pass);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ledger = creating.stop().await?;
    let tally = ledger.tally(&(0..u64::MAX));
    eprintln!("{tally:?}");
    let here = ledger.read_back(&cluster).await.context("from memory");
    cluster.crash_all().await?;
    cluster.restart_all().await?;
    let stored = ledger.read_back(&cluster).await.context("from the store");
    let wrong: Vec<_> = [here, stored].into_iter().filter_map(Result::err).map(|error| format!("{error:#}")).collect();
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    tally.as_promised()?;
    ensure!(tally.refused > 0, "none was refused: was the store away at all?");
    cluster.shut_down().await
}

fn set(relays: &Relays, mode: Mode) -> impl AsyncFnOnce() -> Result<()> {
    async move || {
        relays.set_all(mode);
        Ok(())
    }
}
