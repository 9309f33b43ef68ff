//! Clients whose network goes away without a word: they come back from another address, or never.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, TryStreamExt, stream};
use roost::clock;
use serde_json::json;

use super::{
    idlers::connections,
    scene::{GROUPS, ONE, Scene},
};
use crate::{
    load,
    nat::Nat,
    network::{HOME, HOST_RELAYS},
    ports::free_block,
    socket::Socket,
    wait::wait_until,
};

/// Clients that come back.
const CROWD: usize = 200;
const TIMES: usize = 3;
/// Clients leave a node that says nothing for 4 s; they are to be back this much later.
const BACK: Duration = Duration::from_secs(8);
/// Clients that never come back, each in a group in which much is said.
const GONE: usize = 300;
/// Connections that are made at once.
const AT_ONCE: usize = 32;
/// `limits.idle_s` of [`half_open`], and what looking for it may take longer.
const LET_GO: Duration = Duration::from_secs(10 + 5);

/// Nobody misses anything, whoever was in the middle of what.
pub(super) async fn rebound_clients(scene: &mut Scene<'_>) -> Result<()> {
    let urls = vec![translated(scene, ONE).await?.url()];
    scene.crowd_at(urls, CROWD).await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut longest = Duration::ZERO;
    for _ in 0..TIMES {
        let connections = scene.connections();
        scene.begin();
        scene.nat.as_ref().context("there is a translation")?.forget();
        let all = connections + CROWD as u32;
        let is_back = async || scene.connections() >= all;
        longest = longest.max(wait_until("all to be back by another address", BACK, is_back).await?);
    }
    scene.end();
    let left = open_after(scene, CROWD as u64 + 3).await?;
    scene.note(format!(
        "{} connections were forgotten; all {CROWD} clients were back after at most {:.1} s; {:.1} s later the node had let \
         go of the earlier connections",
        scene.nat.as_ref().map_or(0, Nat::forgotten),
        longest.as_secs_f64(),
        left.as_secs_f64()
    ));
    Ok(())
}

/// The node lets go of who is silent for `limits.idle_s`, whatever it has to say to them.
pub(super) async fn half_open(scene: &mut Scene<'_>) -> Result<()> {
    let before = connections(scene).await?;
    let (url, groups) = (translated(scene, ONE).await?.url(), load::groups(GROUPS));
    let connecting = stream::iter(0..GONE).map(|number| {
        let (url, group) = (&url, &groups[number % groups.len()]);
        async move {
            let mut socket = Socket::connect(url).await?;
            socket.send(&json!({"type": "hello"})).await?;
            socket.frame_of("welcome").await?;
            let joined = socket.ask(&json!({"type": "join", "id": 1, "group": group})).await?;
            ensure!(joined["type"] == "joined", "{joined}");
            anyhow::Ok(socket)
        }
    });
    let gone: Vec<Socket> = connecting.buffer_unordered(AT_ONCE).try_collect().await?;
    let with_them = connections(scene).await?;
    ensure!(with_them >= before + GONE as u64, "{with_them} connections with {GONE} more than {before}");
    scene.begin();
    let begun_ms = clock::mono_ms();
    let nat = scene.nat.as_ref().context("there is a translation")?;
    nat.forget();
    // Before they end: the node is not to hear of that.
    let forgotten = async || nat.forgotten() >= GONE as u64;
    wait_until("all connections to be forgotten", LET_GO, forgotten).await?;
    drop(gone);
    let let_go = open_after(scene, before).await?;
    scene.note(format!("the node had let go of all {GONE} after {:.1} s", let_go.as_secs_f64()));
    scene.stay(LET_GO.saturating_sub(Duration::from_millis(clock::mono_ms() - begun_ms))).await;
    Ok(())
}

/// Puts an address translation before the clients of a node.
async fn translated<'s>(scene: &'s mut Scene<'_>, node: usize) -> Result<&'s Nat> {
    let url = scene.cluster.url(node);
    let node: SocketAddr = url.trim_start_matches("http://").parse().context("a URL is an address")?;
    let [a, b, c] = HOST_RELAYS;
    let from: Vec<_> = (1..=4).map(|number| [a, b, c, number].into()).collect();
    let nat = Nat::start((HOME, free_block(1)?).into(), node, &from).await?;
    Ok(scene.nat.insert(nat))
}

/// How long it takes until the first node has at most this number of clients.
async fn open_after(scene: &Scene<'_>, most: u64) -> Result<Duration> {
    let few = async || connections(scene).await.is_ok_and(|open| open <= most);
    let waited = wait_until("the node to let go of connections", LET_GO, few).await;
    waited.with_context(|| format!("no more than {most} were to be left"))
}
