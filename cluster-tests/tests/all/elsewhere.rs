//! Clients that nobody here wrote, against the real program: a stock WebSocket client from Python's registry, one from
//! npm, and a browser, with the pages of our documents.

use std::{
    env,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    api::{Api, KEY},
    process::Program,
    turn,
    wait::wait_until,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::Command,
};

const LIMIT: Duration = Duration::from_secs(180);
/// Those without our client send no heartbeats: they stay since they answer pings. Who is gone is not waited for long.
/// They offer compression without being asked to, and get it.
const SETTINGS: [(&str, &str); 5] = [
    ("ROOST_LIMITS__HEARTBEAT_S", "2"),
    ("ROOST_LIMITS__IDLE_S", "8"),
    ("ROOST_SESSION__RESUME_GRACE_S", "4"),
    ("ROOST_NAMESPACES__DEFAULT__COMPRESS", "true"),
    ("ROOST_NAMESPACES__PLAIN__COMPRESS", "false"),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_python_client() -> Result<()> {
    let _turn = turn::take(module_path!());
    let told = against_a_cluster(&python()?, "python_client.py").await?;
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
async fn a_client_that_compresses_and_one_that_does_not() -> Result<()> {
    let _turn = turn::take(module_path!());
    let told = against_a_cluster(&node()?, "deflated.mjs").await?;
    ensure!(told == json!({"messages": 50}), "{told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_in_a_browser() -> Result<()> {
    let _turn = turn::take(module_path!());
    has_chromium()?;
    let told = against_a_cluster(&node()?, "page.mjs").await?;
    ensure!(told == json!({"messages": 107, "reloads": 8, "tabs": 9}), "{told}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tabs_of_one_profile() -> Result<()> {
    let _turn = turn::take(module_path!());
    has_chromium()?;
    let told = against_a_cluster(&node()?, "tabs.mjs").await?;
    ensure!(told == json!({"tabs": 2, "members": 1}), "{told}");
    Ok(())
}

/// The top of the repository.
pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The folder of programs that are not in Rust.
pub(crate) fn clients() -> PathBuf {
    repository().join("cluster-tests/clients")
}

fn named_or(variable: &str, path: PathBuf) -> PathBuf {
    env::var_os(variable).map_or(path, PathBuf::from)
}

/// Bare names are looked up by the system.
fn is_there(program: &Path) -> bool {
    program.components().count() == 1 || program.is_file()
}

pub(crate) fn has_chromium() -> Result<()> {
    let chromium = named_or("ROOST_CHROMIUM", "/usr/bin/chromium".into());
    ensure!(chromium.is_file(), "{} is missing: install chromium, or name one in ROOST_CHROMIUM", chromium.display());
    Ok(())
}

pub(crate) fn python() -> Result<PathBuf> {
    let python = named_or("ROOST_PYTHON", repository().join("target/venv/bin/python"));
    ensure!(is_there(&python), "{} is missing: scripts/setup makes it, or name one in ROOST_PYTHON", python.display());
    Ok(python)
}

pub(crate) fn node() -> Result<PathBuf> {
    let modules = clients().join("node_modules");
    ensure!(modules.is_dir(), "{} is missing: scripts/setup installs it (`npm ci` in its folder)", modules.display());
    Ok(named_or("ROOST_NODE", "node".into()))
}

/// Runs a client against the nodes of a fresh cluster and gives what it prints in the end. A node that it asks for is killed.
async fn against_a_cluster(interpreter: &Path, script: &str) -> Result<Value> {
    let mut program = Program::dev_with(3, &SETTINGS).await?;
    for node in 0..3 {
        // Before its slots have their copies a publish is answered with one.
        let api = Api::new(program.http_url(node));
        wait_until("the cluster to be green", LIMIT, async || api.is_green(3).await).await?;
    }
    let mut child = Command::new(interpreter)
        .arg(clients().join(script))
        .args((0..3).map(|node| program.http_url(node)))
        .envs(SETTINGS)
        .env("ROOST_API_KEY", KEY)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (mut stdin, mut stderr) = child.stdin.take().zip(child.stderr.take()).context("it has its streams")?;
    let mut lines = BufReader::new(child.stdout.take().context("it has an output")?).lines();
    let (mut told, mut complained, mut complaints) = (Value::Null, String::new(), None);
    let talking = async {
        while let Some(line) = lines.next_line().await? {
            told = serde_json::from_str(&line).with_context(|| format!("{script} said {line}"))?;
            if let Some(node) = told["kill"].as_str() {
                complaints.get_or_insert(program.complaints());
                let number: usize = node.trim_start_matches('n').parse()?;
                program.kill(number - 1).await?;
                stdin.write_all(b"done\n").await?;
            }
        }
        anyhow::Ok(())
    };
    let (talked, read) =
        tokio::time::timeout(LIMIT, async { tokio::join!(talking, stderr.read_to_string(&mut complained)) })
            .await
            .with_context(|| format!("{script} takes too long"))?;
    talked?;
    read?;
    let status = child.wait().await?;
    ensure!(status.success(), "{script} ended with {status}: {told}\n{complained}");
    // What is said of a node that was killed is no complaint, nor that a browser takes all of a small machine for a moment.
    let mut complaints = complaints.unwrap_or_else(|| program.complaints());
    complaints.retain(|line| !line.contains("this node stood still"));
    ensure!(complaints.is_empty(), "the program complains: {complaints:#?}");
    let status = program.shut_down().await?;
    ensure!(status.success(), "the program ended with {status}");
    Ok(told)
}
