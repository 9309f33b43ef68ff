//! A node that waits for its store: it can be asked, and says what it waits for.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cluster_tests::{api::Api, ports::free_block, process::binary, turn, wait::wait_until};
use reqwest::Method;
use tokio::process::Command;

/// Until the probes are answered: a second, and what a busy machine takes to start a process.
const LIMIT: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_its_store_answers_probes() -> Result<()> {
    let _turn = turn::take(module_path!());
    let (folder, port) = (tempfile::tempdir()?, free_block(3)?);
    let roost = binary()?;
    for arguments in [
        &["certs", "init", "--dir", "."][..],
        &["certs", "node", "n1", "--dir", "."],
        &["keys", "new", "--file", "keyring.toml"],
    ] {
        let made = Command::new(&roost).args(arguments).current_dir(folder.path()).output().await?;
        ensure!(made.status.success(), "{arguments:?}: {made:?}");
    }
    let config = format!(
        "[node]\nid = \"n1\"\nhttp_listen = \"127.0.0.1:{port}\"\npeer_listen = \"127.0.0.1:0\"\n\
         [tls]\nca = \"ca.pem\"\ncert = \"n1.pem\"\nkey = \"n1.key\"\n\
         [auth]\napi_keys = [\"{}\"]\n\
         [store]\nkind = \"cassandra\"\n[store.cassandra]\ncontact_points = [\"127.0.0.1:{}\"]\n",
        cluster_tests::api::KEY,
        port + 1,
    );
    std::fs::write(folder.path().join("node.toml"), config)?;
    let mut node = Command::new(&roost)
        .args(["serve", "--config", "node.toml"])
        .current_dir(folder.path())
        .kill_on_drop(true)
        .spawn()?;
    let api = Api::new(format!("http://127.0.0.1:{port}"));
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
    let id = node.id().context("it runs")?;
    ensure!(Command::new("kill").args(["-TERM", &id.to_string()]).status().await?.success());
    ensure!(node.wait().await?.success(), "a signal ends it while it waits");
    Ok(())
}
