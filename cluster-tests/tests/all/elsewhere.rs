//! Clients that nobody here wrote, against the real program: a stock WebSocket client from Python's registry, one from
//! npm, and a plain page in a browser.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use cluster_tests::{process::Program, turn};
use serde_json::{Value, json};
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(180);
/// None of these clients sends heartbeats: they stay since they answer pings.
const SILENCE: [(&str, &str); 2] = [("ROOST_LIMITS__HEARTBEAT_S", "2"), ("ROOST_LIMITS__IDLE_S", "8")];

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client() -> Result<()> {
    let _turn = turn::take(module_path!());
    let python = named_or("ROOST_PYTHON", folder().join("../../target/venv/bin/python"));
    ensure!(is_there(&python), "{} is missing: scripts/setup makes it, or name one in ROOST_PYTHON", python.display());
    let told = against_a_cluster(&python, "python_client.py").await?;
    ensure!(told == json!({"messages": 15, "resumed": 5}), "{told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_client() -> Result<()> {
    let _turn = turn::take(module_path!());
    let told = against_a_cluster(&node()?, "ws_client.mjs").await?;
    ensure!(told == json!({"messages": 15, "resumed": 5}), "{told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_a_browser() -> Result<()> {
    let _turn = turn::take(module_path!());
    let chromium = named_or("ROOST_CHROMIUM", "/usr/bin/chromium".into());
    ensure!(chromium.is_file(), "{} is missing: install chromium, or name one in ROOST_CHROMIUM", chromium.display());
    let told = against_a_cluster(&node()?, "page.mjs").await?;
    ensure!(told == json!({"messages": 56, "reloads": 5}), "{told}");
    Ok(())
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients")
}

fn named_or(variable: &str, path: PathBuf) -> PathBuf {
    env::var_os(variable).map_or(path, PathBuf::from)
}

/// Bare names are looked up by the system.
fn is_there(program: &Path) -> bool {
    program.components().count() == 1 || program.is_file()
}

fn node() -> Result<PathBuf> {
    let modules = folder().join("node_modules");
    ensure!(modules.is_dir(), "{} is missing: scripts/setup installs it (`npm ci` in its folder)", modules.display());
    Ok(named_or("ROOST_NODE", "node".into()))
}

/// Runs a client against two nodes of a fresh cluster and gives what it prints in the end.
async fn against_a_cluster(interpreter: &Path, script: &str) -> Result<Value> {
    let program = Program::dev_with(3, &SILENCE).await?;
    let running = Command::new(interpreter)
        .arg(folder().join(script))
        .args([program.http_url(0), program.http_url(1)])
        .envs(SILENCE)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LIMIT, running).await.with_context(|| format!("{script} takes too long"))??;
    let (told, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{script} ended with {}: {told}\n{complained}", output.status);
    ensure!(program.complaints().is_empty(), "the program complains: {:#?}", program.complaints());
    let status = program.shut_down().await?;
    ensure!(status.success(), "the program ended with {status}");
    let last = told.lines().last().with_context(|| format!("{script} said nothing"))?;
    serde_json::from_str(last).with_context(|| format!("{script} said {last}"))
}
