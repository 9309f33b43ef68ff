//! What is published to be kept nowhere: told to who is there, on all nodes, and first of all left out for who is slow.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    api::Api,
    client::{Client, ClientOptions},
    cluster::Cluster,
    gauges::metric,
    history::{EphemeralLog, History},
    turn,
    wait::wait_until,
};
use roost::clock;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);
const GROUP: &str = "chat:room";
/// Of each kind of publish.
const TYPING: usize = 30;
/// For who stops reading: more than the buffers of two sockets take.
const FLOOD: usize = 1_200;
const FLOOD_BYTES: usize = 32 << 10;
const SETTINGS: [(&str, &str); 3] = [
    ("ROOST_LIMITS__OUTBOX_BYTES", "262144"),
    ("ROOST_LIMITS__WRITE_TIMEOUT_MS", "300000"),
    // All of it may be published at once.
    ("ROOST_LIMITS__PUBLISH_BYTES_PER_S", "100000000"),
];

/// Publishes what nobody keeps, once, and notes it.
async fn typing(client: &Client, history: &mut History, payload: &str) -> Result<()> {
    let log = EphemeralLog {
        publisher: client.name().into(),
        group: GROUP.into(),
        payload: Value::from(payload).to_string().into(),
        sent_us: clock::mono_us(),
        is_refused: false,
    };
    history.ephemerals.push(log);
    let asked = json!({"type": "publish", "group": GROUP, "data": payload, "ephemeral": true});
    let answer = client.request(asked).await?;
    let is_right = answer["type"] == "published" && answer["ephemeral"] == true && answer.get("offset").is_none();
    ensure!(is_right, "{answer}");
    Ok(())
}

async fn hears(client: &Client, (kept, ephemeral): (u64, u64)) -> Result<()> {
    let of = |counts: &std::collections::BTreeMap<Arc<str>, u64>| counts.get(GROUP).copied().unwrap_or(0);
    let what = format!("hear {kept} messages and {ephemeral} that are not kept");
    client.wait(&what, LIMIT, |state| (of(&state.received), of(&state.ephemeral)) == (kept, ephemeral)).await?;
    Ok(())
}

/// What is not kept may be lost while slots move: waits until the map has stood still for a while.
async fn rests(api: &Api) -> Result<()> {
    let mut before = Value::Null;
    wait_until("the map to stand still", LIMIT, async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let version = api.get("/v1/cluster/map").await.map_or(Value::Null, |answer| answer.body["version"].clone());
        std::mem::replace(&mut before, version.clone()) == version && !version.is_null()
    })
    .await?;
    Ok(())
}

async fn dropped(api: &Api, reason: &str) -> Result<u64> {
    let text = api.raw(reqwest::Method::GET, "/metrics", None, Vec::new()).await?.text().await?;
    metric(&text, &format!("roost_ephemeral_dropped_total{{reason=\"{reason}\"}}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn typing_reaches_all_who_are_there_and_leaves_no_trace() -> Result<()> {
    let _turn = turn::take(module_path!());
    let cluster = Cluster::program_with(3, &[]).await?;
    let mut history = History { publishes_complete: true, ..History::default() };
    let mut clients = Vec::new();
    for (node, name) in ["one", "two", "three"].into_iter().enumerate() {
        let client = Client::connect(ClientOptions::new(name, cluster.urls_from(node))).await?;
        client.join(GROUP).await?;
        clients.push(client);
    }
    let stranger = Client::connect(ClientOptions::new("stranger", cluster.urls_from(1))).await?;
    stranger.join("chat:other").await?;
    rests(&cluster.api(0)).await?;
    let mut head = None;
    for number in 0..TYPING {
        let client = &clients[number % 3];
        typing(client, &mut history, &format!("typing {number}")).await?;
        head = Some(client.publish_now(GROUP, &format!("said {number}")).await?);
    }
    for client in &clients {
        hears(client, (TYPING as u64, TYPING as u64)).await?;
    }

    // Who is away misses nothing of what is kept, and hears nothing of what is not.
    let [one, two, three] = &clients[..] else { unreachable!("three clients") };
    three.cut().await?;
    for number in 0..3 {
        one.publish_now(GROUP, &format!("meanwhile {number}")).await?;
    }
    three.wait("be back", LIMIT, |state| state.node.is_some() && state.connections == 2).await?;
    hears(three, (TYPING as u64 + 3, TYPING as u64)).await?;
    typing(two, &mut history, "typing at last").await?;
    for client in &clients {
        hears(client, (TYPING as u64 + 3, TYPING as u64 + 1)).await?;
    }
    ensure!(stranger.state().ephemeral.is_empty(), "it is in another group");
    let gap = three.state().notices.into_iter().find(|notice| notice["type"] == "gap" || notice["type"] == "reset");
    ensure!(gap.is_none(), "nothing is missing: {gap:?}");

    let kept = cluster.api(2).history(GROUP, None).await?;
    ensure!(kept.messages.len() == TYPING + 3, "{} messages are kept", kept.messages.len());
    let head = head.context("something was said")?;
    ensure!(head.offset == TYPING as u64, "what is not kept has no offset: {head:?}");
    history.replays.push(kept);
    // Nobody follows this one, and nobody keeps it.
    let answer = cluster.api(0).post("/v1/groups/chat:nobody/messages", json!({"data": 1, "ephemeral": true})).await?;
    ensure!(answer.status == 200 && answer.body == json!({"ephemeral": true}), "{answer:?}");
    ensure!(cluster.api(0).get("/v1/groups/chat:nobody").await?.status == 404, "it makes no group");
    for client in clients.into_iter().chain([stranger]) {
        client.finish(true, &mut history).await?;
    }
    cluster.shut_down().await?;
    let sum = history.check()?;
    ensure!(sum.ephemerals == 3 * (TYPING + 1), "{sum:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stops_reading_does_without_typing_and_stays_connected() -> Result<()> {
    let _turn = turn::take(module_path!());
    let cluster = Cluster::program_with(1, &SETTINGS).await?;
    let (slow, writer) = (
        Client::connect(ClientOptions::new("slow", cluster.urls_from(0))).await?,
        Client::connect(ClientOptions::new("writer", cluster.urls_from(0))).await?,
    );
    slow.join(GROUP).await?;
    writer.join(GROUP).await?;
    slow.stop_reading().await?;
    let mut history = History::default();
    let padding = "x".repeat(FLOOD_BYTES);
    for number in 0..FLOOD {
        typing(&writer, &mut history, &format!("{number} {padding}")).await?;
    }
    let api = cluster.api(0);
    wait_until("the slow one does without", LIMIT, async || dropped(&api, "client").await.unwrap_or(0) > 0).await?;
    hears(&writer, (0, FLOOD as u64)).await?;
    // What is kept still has room.
    writer.publish_now(GROUP, "said").await?;
    slow.read_on().await?;
    slow.wait("hear it", LIMIT, |state| state.received.get(GROUP) == Some(&1)).await?;
    let state = slow.state();
    let bothered = state.notices.iter().find(|notice| !["joined", "member"].map(Value::from).contains(&notice["type"]));
    ensure!(state.connections == 1 && bothered.is_none(), "it was bothered: {bothered:?}");
    let heard = state.ephemeral.get(GROUP).copied().unwrap_or(0);
    let lost = dropped(&api, "client").await?;
    ensure!(heard + lost == FLOOD as u64, "{heard} came and {lost} were dropped");
    eprintln!("of {FLOOD} typed, {heard} came to who did not read, {lost} were dropped");
    cluster.shut_down().await
}
