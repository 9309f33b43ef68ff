//! A cluster to test: nodes in this process, or the real program in one process for all or one for each, with the same
//! handles on all of them.

use std::{env, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use roost::{
    config::Config,
    dev::{DevCluster, DevOptions},
};
use tempfile::TempDir;

use crate::{
    api::{Api, KEY},
    ports::free_block,
    process::{LIMIT, Program, SPARE},
    servers::{ServerSettings, Servers, Signal},
    wait::wait_until,
};

/// Where the nodes of a cluster with an embedded store run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// In this process, through the library.
    Library,
    /// In a process of their own: `roost dev`.
    Program,
}

/// A running cluster. Nodes are counted from 0; their names from `n1`.
pub struct Cluster {
    nodes: Nodes,
    /// Which nodes were crashed, drained or are running.
    running: Vec<bool>,
}

enum Nodes {
    /// With the folder that it keeps its store in.
    Library(Box<DevCluster>, TempDir),
    Program(Box<Program>),
    Servers(Box<Servers>),
}

impl Cluster {
    /// Starts this number of nodes and waits until each says that the cluster is green.
    pub async fn start(kind: Kind, nodes: usize) -> Result<Self> {
        match kind {
            Kind::Library => {
                show_log();
                let data = tempfile::tempdir()?;
                let cluster = start_in_process(nodes, data.path().to_owned()).await?;
                Self::started(Nodes::Library(Box::new(cluster), data), nodes).await
            }
            Kind::Program => Self::program_with(nodes, &[]).await,
        }
    }

    /// Starts the real program with these settings (`ROOST_…`) and this number of nodes. Waits until each says that the
    /// cluster is green.
    pub async fn program_with(nodes: usize, settings: &[(&str, &str)]) -> Result<Self> {
        show_log();
        let program = Program::dev_with(nodes, settings).await?;
        Self::started(Nodes::Program(Box::new(program)), nodes).await
    }

    async fn started(nodes: Nodes, count: usize) -> Result<Self> {
        let this = Self { nodes, running: vec![true; count] };
        this.green(LIMIT).await?;
        Ok(this)
    }

    /// Starts this number of `roost serve` processes over a Cassandra. Waits until each says that the cluster is green.
    pub async fn serve(settings: ServerSettings, nodes: usize) -> Result<Self> {
        Self::of(Servers::prepare(settings, nodes).await?).await
    }

    /// Starts all of these and waits until each says that the cluster is green.
    pub async fn of(mut servers: Servers) -> Result<Self> {
        servers.start_all().await?;
        let running = vec![true; servers.len()];
        let this = Self { nodes: Nodes::Servers(Box::new(servers)), running };
        this.green(LIMIT).await?;
        Ok(this)
    }

    /// The base URL of a node.
    pub fn url(&self, node: usize) -> String {
        match &self.nodes {
            Nodes::Library(cluster, _) => cluster.http_url(node + 1),
            Nodes::Program(program) => program.http_url(node),
            Nodes::Servers(servers) => servers.http_url(node),
        }
    }

    /// The base URLs of all nodes, beginning with this one: where a client goes, and where it goes next.
    pub fn urls_from(&self, first: usize) -> Vec<String> {
        let count = self.running.len();
        (0..count).map(|step| self.url((first + step) % count)).collect()
    }

    /// The API of a node.
    pub fn api(&self, node: usize) -> Api {
        Api::new(self.url(node))
    }

    /// The nodes that run.
    pub fn running(&self) -> Vec<usize> {
        (0..self.running.len()).filter(|node| self.running[*node]).collect()
    }

    /// What the cluster calls a node.
    pub fn name(node: usize) -> String {
        format!("n{}", node + 1)
    }

    /// Ends a node without a goodbye: its tasks, sockets and endpoint are gone.
    pub async fn crash(&mut self, node: usize) -> Result<()> {
        self.running[node] = false;
        match &mut self.nodes {
            Nodes::Library(cluster, _) => crash_in_process(cluster, node).await,
            Nodes::Program(program) => program.kill(node).await,
            Nodes::Servers(servers) => servers.kill(node).await,
        }
    }

    /// Ends all nodes at once, as a power cut would.
    pub async fn crash_all(&mut self) -> Result<()> {
        if let Nodes::Servers(servers) = &mut self.nodes {
            self.running.fill(false);
            return servers.kill_all().await;
        }
        for node in self.running() {
            self.crash(node).await?;
        }
        Ok(())
    }

    /// Starts all nodes that do not run, and waits until each says that the cluster is green.
    pub async fn restart_all(&mut self) -> Result<()> {
        if let Nodes::Servers(servers) = &mut self.nodes {
            servers.start_all().await?;
            self.running.fill(true);
        }
        for node in (0..self.running.len()).filter(|node| !self.running[*node]).collect::<Vec<_>>() {
            self.restart(node).await?;
        }
        self.green(LIMIT).await.map(drop)
    }

    /// Starts a node again.
    pub async fn restart(&mut self, node: usize) -> Result<()> {
        match &mut self.nodes {
            Nodes::Library(cluster, _) => restart_in_process(cluster, node).await?,
            Nodes::Program(program) => program.start(node).await?,
            Nodes::Servers(servers) => servers.start(node).await?,
        }
        self.running[node] = true;
        self.ready(node).await
    }

    /// Starts a node's process again and does not wait for it.
    pub fn spawn(&mut self, node: usize) -> Result<()> {
        self.servers_mut()?.spawn(node)?;
        self.running[node] = true;
        Ok(())
    }

    /// Asks a node's process to hand over its slots and clients and end, and does not wait for it.
    pub async fn leave(&mut self, node: usize) -> Result<()> {
        self.running[node] = false;
        self.servers()?.signal(node, Signal::Term).await
    }

    /// Has a node hand over its slots and clients and end, and waits until the others know.
    pub async fn drain(&mut self, node: usize) -> Result<()> {
        self.running[node] = false;
        match &mut self.nodes {
            Nodes::Library(cluster, _) => drain_in_process(cluster, node).await?,
            Nodes::Program(program) => program.drain(node).await?,
            Nodes::Servers(servers) => {
                servers.signal(node, Signal::Term).await?;
                let status = servers.ended(node).await?;
                ensure!(status.success(), "the drained node ended with {status}:\n{}", servers.last_words(node));
            }
        }
        self.holds_nothing(node, LIMIT).await
    }

    /// Waits until a node's process has ended by itself.
    pub async fn ended(&mut self, node: usize) -> Result<std::process::ExitStatus> {
        self.running[node] = false;
        self.servers_mut()?.ended(node).await
    }

    /// Adds a node, and returns which one that is.
    pub async fn add(&mut self) -> Result<usize> {
        let node = match &mut self.nodes {
            Nodes::Library(cluster, _) => add_in_process(cluster).await?,
            Nodes::Program(program) => program.add().await?,
            Nodes::Servers(servers) => {
                let node = servers.add_node().await?;
                servers.start(node).await?;
                node
            }
        };
        ensure!(node == self.running.len(), "the new node has the number {node}, of {} so far", self.running.len());
        self.running.push(true);
        self.ready(node).await?;
        Ok(node)
    }

    /// Waits until each running node says that the cluster is green and that all running nodes are in it.
    pub async fn green(&self, limit: Duration) -> Result<Duration> {
        let running = self.running();
        let start = roost::clock::mono_ms();
        for node in &running {
            let api = self.api(*node);
            let what = format!("{} to report green with {} nodes", Self::name(*node), running.len());
            if let Err(error) = wait_until(&what, limit, async || api.is_green(running.len()).await).await {
                return Err(error.context(format!("it reports {:?}", api.health().await)));
            }
        }
        Ok(Duration::from_millis(roost::clock::mono_ms() - start))
    }

    /// Waits until this node holds slots, as primary or replica, says each running node.
    pub async fn holds_slots(&self, node: usize, limit: Duration) -> Result<()> {
        self.slots_held(node, limit, "hold slots", |held| held > 0).await
    }

    /// Waits until this node holds no slot, says each running node.
    pub async fn holds_nothing(&self, node: usize, limit: Duration) -> Result<()> {
        self.slots_held(node, limit, "hold nothing", |held| held == 0).await
    }

    async fn slots_held(&self, node: usize, limit: Duration, what: &str, is_so: impl Fn(u64) -> bool) -> Result<()> {
        let name = Self::name(node);
        for reporter in self.running() {
            let api = self.api(reporter);
            let by = Self::name(reporter);
            wait_until(&format!("{name} to {what}, as {by} reports"), limit, async || {
                let Ok(health) = api.health().await else { return false };
                let listed = health["nodes"].as_array().and_then(|nodes| nodes.iter().find(|one| one["node"] == *name));
                let count = |role: &str| listed.and_then(|one| one["slots"][role].as_u64()).unwrap_or(0);
                is_so(count("primary") + count("replica"))
            })
            .await?;
        }
        Ok(())
    }

    async fn ready(&self, node: usize) -> Result<()> {
        let api = self.api(node);
        let waited =
            wait_until(&format!("{} to be ready", Self::name(node)), LIMIT, async || api.is_ready().await).await;
        match waited {
            Ok(_) => Ok(()),
            Err(error) => {
                Err(error.context(format!("it says {:?}\n{:?}", api.get("/readyz").await, api.health().await)))
            }
        }
    }

    /// The program's output; nothing where the nodes are not in one process of their own.
    pub fn program(&self) -> Option<&Program> {
        match &self.nodes {
            Nodes::Library(..) | Nodes::Servers(_) => None,
            Nodes::Program(program) => Some(program),
        }
    }

    /// The processes; an error where there is not one for each node.
    pub fn servers(&self) -> Result<&Servers> {
        match &self.nodes {
            Nodes::Servers(servers) => Ok(servers),
            _ => bail!("the nodes of this cluster have no processes of their own"),
        }
    }

    /// The processes, to configure them.
    pub fn servers_mut(&mut self) -> Result<&mut Servers> {
        match &mut self.nodes {
            Nodes::Servers(servers) => Ok(servers),
            _ => bail!("the nodes of this cluster have no processes of their own"),
        }
    }

    /// Ends all nodes in good order.
    pub async fn shut_down(self) -> Result<()> {
        match self.nodes {
            Nodes::Library(cluster, _data) => shut_down_in_process(*cluster).await,
            Nodes::Program(program) => {
                let status = program.shut_down().await?;
                ensure!(status.success(), "the program ended with {status}");
                Ok(())
            }
            Nodes::Servers(mut servers) => servers.shut_down().await,
        }
    }
}

/// Shows the log of nodes in this process, with the test's output: warnings, or what `ROOST_LOG` names (`debug`, …).
fn show_log() {
    let level = env::var("ROOST_LOG").ok().and_then(|level| level.parse().ok()).unwrap_or(tracing::Level::WARN);
    // Another test of this process may have done it.
    let _ = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).try_init();
}

// What follows is all that is said to the library, which counts nodes from 1.

async fn start_in_process(nodes: usize, data: PathBuf) -> Result<DevCluster> {
    // A restarted node must come back where clients look for it.
    let http_port = free_block(u16::try_from(nodes)? + SPARE)?;
    let options =
        DevOptions { nodes, http_port, data, api_key: KEY.to_owned(), settings: Config::default(), configure: |_| {} };
    DevCluster::start(options).await.context("starting a cluster in this process")
}

async fn crash_in_process(cluster: &mut DevCluster, node: usize) -> Result<()> {
    cluster.kill(node + 1).await
}

async fn restart_in_process(cluster: &mut DevCluster, node: usize) -> Result<()> {
    cluster.restart(node + 1).await
}

async fn drain_in_process(cluster: &mut DevCluster, node: usize) -> Result<()> {
    cluster.drain(node + 1).await
}

async fn add_in_process(cluster: &mut DevCluster) -> Result<usize> {
    Ok(cluster.add().await? - 1)
}

async fn shut_down_in_process(cluster: DevCluster) -> Result<()> {
    let failed = cluster.failed();
    cluster.shut_down().await;
    ensure!(failed.is_empty(), "nodes {failed:?} stopped by themselves, by an error that the log tells");
    Ok(())
}
