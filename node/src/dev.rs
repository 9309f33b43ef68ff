//! `roost dev`: a whole cluster in one process, with an embedded store and certificates of its own, to try things out and
//! to watch a fail-over. Each node has a runtime of its own, so that killing one drops all that it is at once: tasks,
//! sockets, memory, without a goodbye.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use tokio::runtime::Runtime;

use crate::{
    config::Config,
    id::NodeId,
    memory,
    node::{Node, NodeInputs},
    open_files::OpenFiles,
    peer::tls::ClusterCa,
    private_file,
    store::{Store, embedded::EmbeddedStore},
    token::Keyring,
};

/// What a development cluster is made of.
#[derive(Clone, Debug)]
pub struct DevOptions {
    /// How many nodes.
    pub nodes: usize,
    /// The first node's HTTP port, the others' follow; 0 for any free ones.
    pub http_port: u16,
    /// Where certificates, keys and sessions are kept.
    pub data: PathBuf,
    /// The key for the HTTP API.
    pub api_key: String,
    /// What every node's configuration is made from; names, addresses and keys are its own.
    pub settings: Config,
    /// Changes the configuration of every node before it starts.
    pub configure: fn(&mut Config),
}

/// A cluster in this process. Nodes are counted from 1, as their names are: `n1`, `n2`, …
#[expect(missing_debug_implementations, reason = "holds keys")]
pub struct DevCluster {
    options: DevOptions,
    ca: ClusterCa,
    keyring: Arc<Keyring>,
    store: Arc<dyn Store>,
    files: Arc<OpenFiles>,
    nodes: Vec<DevNode>,
}

struct DevNode {
    http: SocketAddr,
    peer: SocketAddr,
    running: Option<(Runtime, Node)>,
}

/// The time that a killed node's tasks get to leave the thread that they run on.
const KILL_LIMIT: Duration = Duration::from_secs(5);
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

impl DevCluster {
    /// Starts the nodes, one after the other.
    pub async fn start(options: DevOptions) -> anyhow::Result<Self> {
        if options.nodes == 0 || options.nodes > 64 {
            bail!("a development cluster has 1 to 64 nodes, not {}", options.nodes);
        }
        std::fs::create_dir_all(&options.data).with_context(|| format!("{} cannot be made", options.data.display()))?;
        let ca = load_ca(&options.data)?;
        let keyring = Arc::new(load_keyring(&options.data.join("keyring.toml"))?);
        let store: Arc<dyn Store> = EmbeddedStore::open(options.data.join("roost.redb"))?;
        let count = options.nodes;
        let files = OpenFiles::of_process()?;
        let mut cluster = Self { options, ca, keyring, store, files, nodes: Vec::new() };
        for _ in 0..count {
            cluster.add().await?;
        }
        Ok(cluster)
    }

    /// Adds a node; its number.
    pub async fn add(&mut self) -> anyhow::Result<usize> {
        let number = self.nodes.len() + 1;
        let port = match self.options.http_port {
            0 => 0,
            first => {
                first.checked_add(number as u16 - 1).context("there are no ports above 65535: choose a lower --port")?
            }
        };
        let (http, peer) = (SocketAddr::new(LOOPBACK, port), SocketAddr::new(LOOPBACK, 0));
        self.nodes.push(DevNode { http, peer, running: None });
        let started = self.restart(number).await;
        if started.is_err() {
            self.nodes.pop();
        }
        started.map(|()| number)
    }

    /// Starts a node that was killed, drained or has just been added, where it was before.
    pub async fn restart(&mut self, number: usize) -> anyhow::Result<()> {
        let mut config = self.options.settings.clone();
        let node = self.node(number)?;
        if node.running.is_some() {
            bail!("node {number} is running already");
        }
        let id = NodeId::parse(&format!("n{number}")).map_err(anyhow::Error::msg)?;
        config.node.id = id.to_string();
        config.node.http_listen = node.http;
        config.node.peer_listen = node.peer;
        config.cluster.name = "roost-dev".to_owned();
        config.cluster.seeds =
            self.nodes.iter().filter(|other| other.running.is_some()).map(|other| other.peer.to_string()).collect();
        config.auth.api_keys = vec![self.options.api_key.clone()];
        config.session.anonymous = true;
        config.session.allowed_origins = vec!["*".to_owned()];
        if config.limits.memory_bytes == 0 {
            let budget = memory::budget_of_machine(self.options.nodes.max(number) as u64);
            config.limits.memory_bytes = usize::try_from(budget)?;
        }
        (self.options.configure)(&mut config);
        let inputs = NodeInputs {
            config: Arc::new(config),
            identity: self.ca.identity(&id)?,
            keyring: self.keyring.clone(),
            store: self.store.clone(),
            files: self.files.clone(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().thread_name(id.to_string()).enable_all().build()?;
        let started = runtime.spawn(Node::start(inputs)).await?;
        match started {
            Ok(started) => {
                let node = self.node(number)?;
                (node.http, node.peer) = (started.http(), started.peer());
                node.running = Some((runtime, started));
                Ok(())
            }
            Err(error) => {
                runtime.shutdown_background();
                Err(error.into())
            }
        }
    }

    /// Ends a node as a crash would: nobody is told.
    pub async fn kill(&mut self, number: usize) -> anyhow::Result<()> {
        let (runtime, node) =
            self.node(number)?.running.take().with_context(|| format!("node {number} is not running"))?;
        node.abort();
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(KILL_LIMIT)).await?;
        Ok(())
    }

    /// Has a node hand its slots and clients over, and ends it.
    pub async fn drain(&mut self, number: usize) -> anyhow::Result<()> {
        let (runtime, node) =
            self.node(number)?.running.take().with_context(|| format!("node {number} is not running"))?;
        let drained = runtime.spawn(async move {
            node.drain().await;
            node.shut_down().await;
        });
        let outcome = drained.await;
        tokio::task::spawn_blocking(move || runtime.shutdown_timeout(KILL_LIMIT)).await?;
        outcome.map_err(Into::into)
    }

    /// Ends all nodes.
    pub async fn shut_down(mut self) {
        for node in &mut self.nodes {
            if let Some((runtime, node)) = node.running.take() {
                let _ = runtime.spawn(node.shut_down()).await;
                let _ = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(KILL_LIMIT)).await;
            }
        }
    }

    /// Where a node serves clients and the API, running or not.
    pub fn http_url(&self, number: usize) -> String {
        self.nodes.get(number.wrapping_sub(1)).map_or_else(String::new, |node| format!("http://{}", node.http))
    }

    /// How many nodes there are, running or not.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never: a cluster has nodes.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The numbers of the nodes that run.
    pub fn running(&self) -> Vec<usize> {
        (1..=self.nodes.len()).filter(|number| self.nodes[number - 1].running.is_some()).collect()
    }

    /// Nodes that have stopped by themselves, by an error that the log tells.
    pub fn failed(&self) -> Vec<usize> {
        let failed = |node: &DevNode| node.running.as_ref().is_some_and(|(_, node)| node.failed().is_cancelled());
        (1..=self.nodes.len()).filter(|number| failed(&self.nodes[number - 1])).collect()
    }

    /// Nodes that were asked over HTTP to drain.
    pub fn drain_asked(&self) -> Vec<usize> {
        let asked = |node: &DevNode| node.running.as_ref().is_some_and(|(_, node)| node.drain_asked().is_cancelled());
        (1..=self.nodes.len()).filter(|number| asked(&self.nodes[number - 1])).collect()
    }

    fn node(&mut self, number: usize) -> anyhow::Result<&mut DevNode> {
        let count = self.nodes.len();
        number
            .checked_sub(1)
            .and_then(|at| self.nodes.get_mut(at))
            .with_context(|| format!("there is no node {number}: they are 1 to {count}"))
    }
}

impl Drop for DevNode {
    fn drop(&mut self) {
        if let Some((runtime, _)) = self.running.take() {
            runtime.shutdown_background();
        }
    }
}

fn load_ca(data: &Path) -> anyhow::Result<ClusterCa> {
    let dir = data.join("certs");
    let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    if !cert.exists() {
        crate::certs::init_ca(&dir)?;
    }
    let read =
        |path: &Path| std::fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()));
    let ca_key = private_file::read_text(&key).with_context(|| format!("{} cannot be read", key.display()))?;
    ClusterCa::from_pem(&read(&cert)?, &ca_key)
        .with_context(|| format!("{} is damaged: remove it, and the nodes' certificates are made anew", dir.display()))
}

fn load_keyring(path: &Path) -> anyhow::Result<Keyring> {
    if !path.exists() {
        Keyring::generate().save(path)?;
    }
    Ok(Keyring::load(path)?)
}
