//! `roost dev`: a cluster on this machine, and a prompt to break it.

use std::{io::IsTerminal, path::PathBuf, time::Duration};

use anyhow::Context;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    signal,
};

use super::{
    api::{Api, ApiArgs},
    logging, print,
};
use crate::{
    config::{Config, LogConfig},
    dev::{DevCluster, DevOptions},
};

/// Tests set it to give commands without a terminal.
const COMMANDS_WITHOUT_TERMINAL: &str = "ROOST_DEV_COMMANDS";
/// The cluster is ready this soon, or something is wrong.
const READY_LIMIT: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Arguments of `roost dev`.
#[derive(Debug, Clone, clap::Args)]
pub struct DevArgs {
    /// How many nodes
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=20))]
    pub nodes: u16,
    /// The first node's HTTP port; the others follow
    #[arg(long, default_value_t = 8000, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    pub port: u16,
    /// The folder for sessions, certificates and keys; a temporary one, removed at the end, unless given
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// The key for the HTTP API
    #[arg(long, env = "ROOST_API_KEY", hide_env_values = true, default_value = "dev-key")]
    pub api_key: String,
}

/// Runs until it is told to stop.
///
/// # Errors
/// Where a node does not start; the text says why.
pub async fn run(args: DevArgs) -> anyhow::Result<()> {
    let mut settings = Config::load(None)?;
    let level = std::env::var("ROOST_LOG").unwrap_or_else(|_| "warn".to_owned());
    logging::init(&LogConfig { level, format: "text".to_owned() })?;
    // From here on, so that a stop during the start is one in good order too.
    let mut terminate = signal::unix::signal(signal::unix::SignalKind::terminate())?;
    let temporary = args.data.is_none();
    let data =
        args.data.clone().unwrap_or_else(|| std::env::temp_dir().join(format!("roost-dev-{}", std::process::id())));
    print::note(format_args!("starting {} nodes …", args.nodes));
    let copies = settings.cluster.copies;
    if let Ok(nodes) = u8::try_from(args.nodes)
        && nodes < copies
    {
        // With fewer copies than it wants the cluster would never be green.
        settings.cluster.copies = nodes;
        print::note(format_args!("cluster.copies is {nodes} here, not {copies}: there are no more nodes"));
    }
    let cluster = DevCluster::start(DevOptions {
        nodes: usize::from(args.nodes),
        http_port: args.port,
        data: data.clone(),
        api_key: args.api_key.clone(),
        settings,
        configure: |_| {},
    });
    let mut cluster = Box::pin(cluster).await?;
    let outcome = until_told(&mut cluster, &args, &mut terminate).await;
    cluster.shut_down().await;
    if temporary {
        let _ = std::fs::remove_dir_all(&data);
    }
    outcome
}

async fn until_told(
    cluster: &mut DevCluster,
    args: &DevArgs,
    terminate: &mut signal::unix::Signal,
) -> anyhow::Result<()> {
    tokio::select! {
        () = wait_until_green(cluster) => {}
        _ = signal::ctrl_c() => return Ok(()),
        _ = terminate.recv() => return Ok(()),
    }
    introduce(cluster, args).await?;
    let prompt = std::io::stdin().is_terminal();
    let commands = prompt || std::env::var_os(COMMANDS_WITHOUT_TERMINAL).is_some();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut watch = tokio::time::interval(Duration::from_secs(1));
    loop {
        if prompt {
            eprint_prompt();
        }
        let line = loop {
            tokio::select! {
                line = lines.next_line(), if commands => break line?,
                _ = signal::ctrl_c() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                _ = watch.tick() => {
                    let failed = cluster.failed();
                    anyhow::ensure!(failed.is_empty(), "node {failed:?} has stopped by itself: the log above says why");
                    for number in cluster.drain_asked() {
                        print::note(format_args!("node {number} was asked over HTTP to drain"));
                        cluster.drain(number).await?;
                    }
                }
            }
        };
        let Some(line) = line else { return Ok(()) };
        match Box::pin(command(cluster, line.trim())).await {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => print::note(format_args!("error: {error:#}")),
        }
    }
}

fn eprint_prompt() {
    use std::io::Write;
    let mut err = std::io::stderr().lock();
    let _ = write!(err, "roost> ");
    let _ = err.flush();
}

/// Carries a line of the prompt out. False to end.
async fn command(cluster: &mut DevCluster, line: &str) -> anyhow::Result<bool> {
    let mut words = line.split_whitespace();
    let (verb, number) = (words.next().unwrap_or(""), words.next());
    let number = || -> anyhow::Result<usize> {
        number
            .and_then(|text| text.trim_start_matches('n').parse().ok())
            .with_context(|| format!("which node? for instance: {verb} 2"))
    };
    match verb {
        "" => {}
        "kill" => {
            let number = number()?;
            cluster.kill(number).await?;
            print::note(format_args!("node {number} is gone, without a word; `start {number}` brings it back"));
        }
        "start" => {
            let number = number()?;
            cluster.restart(number).await?;
            print::note(format_args!("node {number} serves at {}", cluster.http_url(number)));
        }
        "drain" => {
            let number = number()?;
            print::note(format_args!("node {number} hands its slots and clients over …"));
            cluster.drain(number).await?;
            print::note(format_args!("node {number} is drained and has stopped; `start {number}` brings it back"));
        }
        "add" => {
            let number = cluster.add().await?;
            print::note(format_args!("node {number} serves at {}", cluster.http_url(number)));
        }
        "status" => status(cluster).await?,
        "quit" | "exit" => return Ok(false),
        _ => print::note(format_args!("kill N · start N · drain N · add · status · quit")),
    }
    Ok(true)
}

fn api(cluster: &DevCluster, number: usize, api_key: &str) -> anyhow::Result<Api> {
    Api::new(&ApiArgs { url: cluster.http_url(number), api_key: api_key.to_owned() })
}

async fn health(cluster: &DevCluster) -> anyhow::Result<Value> {
    let number = *cluster.running().first().context("no node is running: `start 1`")?;
    let answer = api(cluster, number, "")?.get(&["v1", "cluster", "health"]).await?;
    Ok(serde_json::from_str(&answer)?)
}

async fn status(cluster: &DevCluster) -> anyhow::Result<()> {
    let health = health(cluster).await?;
    print::note(format_args!("{}", health["status"].as_str().unwrap_or("unknown")));
    for reason in health["reasons"].as_array().into_iter().flatten() {
        print::note(format_args!("  {}", reason.as_str().unwrap_or_default()));
    }
    for node in health["nodes"].as_array().into_iter().flatten() {
        print::note(format_args!("  {node}"));
    }
    print::note(format_args!("  slots {}", health["slots"]));
    Ok(())
}

async fn wait_until_green(cluster: &DevCluster) {
    let green = async {
        while health(cluster).await.map_or(true, |health| health["status"] != "green") {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    if tokio::time::timeout(READY_LIMIT, green).await.is_err() {
        match health(cluster).await {
            Ok(health) => print::note(format_args!("the cluster is not healthy yet: {}", health["reasons"])),
            Err(error) => print::note(format_args!("the cluster does not say yet how it is: {error:#}")),
        }
    }
}

/// The token of a session to try things with.
async fn first_session(cluster: &DevCluster, api_key: &str) -> anyhow::Result<String> {
    let created = api(cluster, 1, api_key)?.post(&["v1", "sessions"], json!({"user": "ann"}).to_string()).await?;
    let created: Value = serde_json::from_str(&created)?;
    Ok(created["token"].as_str().context("the answer has no token")?.to_owned())
}

/// What to try next, with a session to try it with.
async fn introduce(cluster: &DevCluster, args: &DevArgs) -> anyhow::Result<()> {
    let (first, last) = (cluster.http_url(1), cluster.http_url(cluster.len()));
    let key = &args.api_key;
    // The cluster serves all the same: a full disk, for one, is over some time.
    let token = match first_session(cluster, key).await {
        Ok(token) => format!("{token}   (user ann)"),
        Err(error) => format!("none: the first session could not be created: {error:#}"),
    };
    print::note(format_args!(""));
    for number in cluster.running() {
        print::line(format_args!("node n{number}  {}", cluster.http_url(number)))?;
    }
    print::line(format_args!(
        "
API key        {key}
a token        {token}
documentation  {first}/docs
health         {first}/v1/cluster/health

try, in other terminals:
  {roost} tail chat:1 --url {ws}/ws
  {roost} publish chat:1 '{{\"text\":\"hello\"}}' --url {last}
  curl -s {last}/v1/groups/chat:1/messages -H 'X-API-Key: {key}' -H 'Content-Type: application/json' -d '{{\"data\":\"hi\"}}'
  curl -s {first}/v1/cluster/health
",
        ws = first.replacen("http", "ws", 1),
        roost = std::env::args().next().unwrap_or_else(|| "roost".to_owned()),
    ))?;
    if std::io::stdin().is_terminal() {
        print::note(format_args!("here: kill 2 · start 2 · drain 2 · add · status · quit"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_cluster_whose_first_session_is_refused_is_introduced_all_the_same() -> anyhow::Result<()> {
        let data = tempfile::tempdir()?;
        let cluster = DevCluster::start(DevOptions {
            nodes: 1,
            http_port: 0,
            data: data.path().to_owned(),
            api_key: "its-key".to_owned(),
            settings: Config::load(None)?,
            configure: |config| config.cluster.copies = 1,
        });
        let cluster = Box::pin(cluster).await?;
        let args = DevArgs { nodes: 1, port: 0, data: None, api_key: "another-key".to_owned() };
        let refused = first_session(&cluster, &args.api_key).await;
        assert!(refused.is_err(), "{refused:?}");
        introduce(&cluster, &args).await?;
        cluster.shut_down().await;
        Ok(())
    }
}
