//! A node that waits for its store: it can be asked, and says what it waits for.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{api::Api, lone::Lone, turn, wait::wait_until};
use reqwest::Method;

/// Until the probes are answered: a second, and what a busy machine takes to start a process.
const LIMIT: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_its_store_answers_probes() -> Result<()> {
    let _turn = turn::take(module_path!());
    let away = |port: u16| {
        let store = "[store]\nkind = \"cassandra\"\n[store.cassandra]\n";
        format!("{store}contact_points = [\"127.0.0.1:{}\"]\n", port + 1)
    };
    let node = Lone::start(away).await?;
    let api = Api::new(&*node.url);
    let lives = async || api.get("/livez").await.is_ok_and(|answer| answer.status == 200);
    wait_until("the node to say that it lives", LIMIT, lives).await?;
    let ready = api.raw(Method::GET, "/readyz", None, Vec::new()).await?;
    ensure!(ready.status() == 503 && ready.headers().contains_key("retry-after"), "{ready:?}");
    let reason = ready.text().await?;
    ensure!(reason.contains("waiting for the store"), "{reason}");
    let health = api.get("/health").await?;
    ensure!(health.status == 503 && health.body["database"] == "down", "{health:?}");
    ensure!(health.body["checks"][0]["detail"].as_str().is_some_and(|why| why.contains("store")), "{health:?}");
    ensure!(api.get("/v1/groups").await?.status == 503);
    node.end().await.context("a signal ends it while it waits")
}
