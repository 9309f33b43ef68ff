//! What sessions in Cassandra cost: figures to read, and nothing that a slow machine would fail.
//!
//! `ROOST_STORED_SESSIONS=100000` for the whole; by default fewer.

use std::{env, time::Duration};

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    cassandra::Cassandra,
    cluster::Cluster,
    latency::Spread,
    ledger::{Acknowledged, Ledger, Outcome},
    servers::ServerSettings,
    socket::Socket,
    turn,
};
use futures_util::{StreamExt, stream};
use roost::clock;
use serde_json::json;

const NODES: usize = 3;
const SESSIONS: usize = 10_000;
/// Requests under way at once.
const AT_ONCE: usize = 64;
/// Sessions that are attached to, and read back.
const SAMPLE: usize = 2_000;

#[tokio::test(flavor = "multi_thread")]
async fn figures_of_stored_sessions() -> Result<()> {
    let _turn = turn::take(module_path!());
    let sessions = match env::var("ROOST_STORED_SESSIONS") {
        Ok(count) => count.parse().context("ROOST_STORED_SESSIONS is a number")?,
        Err(_) => SESSIONS,
    };
    let cassandra = Cassandra::start(1).await?;
    let mut cluster = Cluster::serve(ServerSettings::over(&cassandra, "figures"), NODES).await?;
    eprintln!("three nodes over one durable Cassandra node; {sessions} sessions; memory {}", memory(&cluster)?);
    let made = create(&cluster, sessions).await?;
    eprintln!("memory with all in it {}", memory(&cluster)?);
    let every = (made.acknowledged.len() / SAMPLE).max(1);
    let sample: Vec<Acknowledged> = made.acknowledged.iter().step_by(every).cloned().collect();
    attach(&cluster, &sample, "in memory").await?;

    cluster.crash_all().await?;
    let start_us = clock::mono_us();
    cluster.restart_all().await?;
    let took = clock::mono_us() - start_us;
    eprintln!("cold start of three nodes, {sessions} stored sessions: ready and green after {} ms", took / 1_000);
    eprintln!("memory after that {}", memory(&cluster)?);
    attach(&cluster, &sample, "from the store").await?;
    eprintln!("memory in the end {}", memory(&cluster)?);
    Ledger { acknowledged: sample, ..Ledger::default() }.read_back(&cluster).await?;
    cluster.servers()?.without_panic()?;
    cluster.shut_down().await
}

/// Through one node, as fast as that goes.
async fn create(cluster: &Cluster, sessions: usize) -> Result<Ledger> {
    let (api, start_us) = (cluster.api(0), clock::mono_us());
    let mut made = Ledger::default();
    let mut creating = stream::iter(0..sessions)
        .map(|number| {
            let api = &api;
            async move {
                let mut one = Ledger::default();
                one.create(api, 0, &format!("user-{}", number % 1_000), &["chat:all"]).await;
                one
            }
        })
        .buffer_unordered(AT_ONCE);
    while let Some(one) = creating.next().await {
        made.absorb(one);
        if made.attempts.len() % (sessions / 10).max(1) == 0 {
            eprintln!("  {} after {} s", made.attempts.len(), (clock::mono_us() - start_us) / 1_000_000);
        }
    }
    let took_us = clock::mono_us() - start_us;
    let refused: Vec<_> = made.attempts.iter().filter(|attempt| attempt.outcome != Outcome::Created).collect();
    ensure!(refused.is_empty(), "{} creates failed, such as {:?}", refused.len(), refused[0]);
    let spread = Spread::of(made.attempts.iter().map(|attempt| attempt.answered_us - attempt.sent_us).collect());
    eprintln!("creates through one node, {AT_ONCE} at once: {:.0}/s; {spread}", per_s(sessions, took_us));
    Ok(made)
}

/// Connects with each session's token, through all nodes.
async fn attach(cluster: &Cluster, sample: &[Acknowledged], where_from: &str) -> Result<()> {
    let urls: Vec<String> = (0..NODES).map(|node| cluster.url(node)).collect();
    let start_us = clock::mono_us();
    let took: Vec<Result<u64>> = stream::iter(sample.iter().enumerate())
        .map(|(number, one)| {
            let url = &urls[number % NODES];
            async move {
                let start_us = clock::mono_us();
                let mut socket = Socket::connect(url).await?;
                socket.send(&json!({"type": "hello", "session": one.token})).await?;
                let welcome = socket.frame_of("welcome").await?;
                ensure!(welcome["session"] == *one.session && welcome["user"] == *one.user, "{welcome}");
                let took_us = clock::mono_us() - start_us;
                socket.close().await;
                Ok(took_us)
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let all_us = clock::mono_us() - start_us;
    let spread = Spread::of(took.into_iter().collect::<Result<_>>()?);
    eprintln!("attaches through three nodes, sessions {where_from}: {:.0}/s; {spread}", per_s(sample.len(), all_us));
    Ok(())
}

fn memory(cluster: &Cluster) -> Result<String> {
    let servers = cluster.servers()?;
    let each: Vec<String> =
        (0..NODES).map(|node| Ok(format!("{} MB", servers.resident_mb(node)?))).collect::<Result<_>>()?;
    Ok(each.join(", "))
}

fn per_s(count: usize, took_us: u64) -> f64 {
    count as f64 / Duration::from_micros(took_us).as_secs_f64()
}
