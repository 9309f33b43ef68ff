//! A greedy client: it publishes messages as large as there may be, each to a group that is not there yet, as fast as it can.
//! The node's memory stays within its bound, and whoever else is there gets everything that it was told is published.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    api::{self, Api},
    client::{Client, ClientOptions},
    greed::{Greed, MESSAGE_BYTES},
    process::Program,
    servers::resident_mb,
    turn,
    wait::wait_until,
};
use roost::clock::mono_ms;
use serde_json::{Value, json};
use tokio::task::JoinSet;

const LIMIT_MS: u64 = 60_000;
const LIMIT: Duration = Duration::from_millis(LIMIT_MS);
/// What clients may make the node hold.
const BUDGET_MB: u64 = 16;
/// What the process may take beside: buffers of sockets, what the allocator keeps, what is under way.
const MARGIN_MB: u64 = 32;
/// How much of what is sent the node takes in the end, in budgets.
const ENOUGH: u64 = 4;
/// Between two messages of the bystander.
const PAUSE: Duration = Duration::from_millis(20);

/// Nothing but the budget bounds the client; `open:…` may be published to without joining.
const SCENE: &str = "
export ROOST_CLUSTER__COPIES=1
export ROOST_LIMITS__MEMORY_BYTES=16777216 ROOST_LIMITS__REPLAY_BYTES=1048576
export ROOST_LIMITS__PUBLISH_BYTES_PER_S=1000000000 ROOST_LIMITS__NEW_GROUPS_PER_S=1000000
export ROOST_LIMITS__OPERATIONS_PER_S=1000000 ROOST_LIMITS__OPERATIONS_BURST=1000000
export ROOST_NAMESPACES__OPEN__PUBLISH=any
exec \"$@\"";

#[tokio::test(flavor = "multi_thread")]
async fn a_greedy_client_does_not_take_the_nodes_memory() -> Result<()> {
    let _turn = turn::take(module_path!());
    let program = Program::dev_in(1, SCENE).await?;
    let (url, id) = (program.http_url(0), program.id().context("it runs")?);
    let api = Api::new(&url);
    let bystander = Client::connect(ClientOptions::new("bystander", vec![url.clone()])).await?;
    bystander.join("chat:1").await?;
    let before_mb = resident_mb(id)?;
    let mut greedy = JoinSet::new();
    let greed = Arc::new(Greed::default());
    greedy.spawn(greed.clone().publish(url.clone()));
    let (mut most_mb, mut sent, mut slowest_ms) = (before_mb, 0_u64, 0);
    let mut yellow = Value::Null;
    let until_ms = mono_ms() + LIMIT_MS;
    while mono_ms() < until_ms && greedy.try_join_next().is_none() && (yellow.is_null() || !had_enough(&greed)) {
        let asked_ms = mono_ms();
        publish(&api, sent).await?;
        (sent, slowest_ms) = (sent + 1, slowest_ms.max(mono_ms() - asked_ms));
        most_mb = most_mb.max(resident_mb(id)?);
        if yellow.is_null() {
            let health = api.get("/v1/cluster/health").await?.body;
            yellow = api::reason(&health, "limits.memory_bytes").map(Value::from).unwrap_or_default();
        }
        tokio::time::sleep(PAUSE).await;
    }
    ensure!(!greedy.is_empty(), "the greedy client has ended by itself");
    greedy.shutdown().await;
    let (taken, refused) = (greed.taken(), greed.refused());
    eprintln!(
        "{taken} messages of {MESSAGE_BYTES} bytes taken, {refused} refused; {before_mb} MB before, {most_mb} MB at most; \
         the bystander's slowest publish of {sent} took {slowest_ms} ms; {yellow}"
    );
    ensure!(had_enough(&greed), "only {taken} were taken in {LIMIT:?}: no greed at all");
    ensure!(most_mb <= before_mb + BUDGET_MB + MARGIN_MB, "{most_mb} MB, and {before_mb} MB before");
    let all = |state: &cluster_tests::client::State| state.received.values().sum::<u64>() == sent;
    bystander.wait("get all that was published", LIMIT, all).await?;
    ensure!(yellow.is_string(), "the health report says nothing of memory");
    let metrics = api.raw(reqwest::Method::GET, "/metrics", None, Vec::new()).await?.text().await?;
    ensure!(!metrics.contains("roost_memory_shed_total 0\n"), "nothing was dropped");
    wait_until("the node to be well again", LIMIT, async || api.is_green(1).await).await?;
    ensure!(program.shut_down().await?.success());
    Ok(())
}

/// Whether what was taken proves something.
fn had_enough(greed: &Greed) -> bool {
    greed.taken_bytes() > ENOUGH * (BUDGET_MB << 20)
}

/// As a backend does it: what is refused is repeated with its key.
async fn publish(api: &Api, number: u64) -> Result<()> {
    let key = format!("key-{number}");
    let until_ms = mono_ms() + LIMIT_MS;
    loop {
        match api.publish("chat:1", &json!(number), Some(&key)).await {
            Ok(_) => return Ok(()),
            Err(error) if until_ms < mono_ms() => return Err(error),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
