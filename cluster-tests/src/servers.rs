//! `roost serve` processes over one Cassandra, each with its own configuration, certificate, ports and log, as an
//! operator would run them.

use std::{
    env,
    ffi::OsString,
    fmt::Write,
    fs::{self, File},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::{
    api::{Api, KEY},
    ports::free_block,
    process::{LIMIT, SPARE, binary},
    wait::wait_until,
};

/// What is above the HTTP port in each block of ports, as [`free_block`] has looked for.
const PEER_PORTS_ABOVE: u16 = 1_000;

/// Where a node runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// What it listens on.
    pub address: Ipv4Addr,
    /// What a command is run by, so that it runs there: a program and its first arguments; nothing for right here.
    pub run: Vec<String>,
    /// Where the other nodes find it: its address, or that of a relay before it.
    pub reached_at: Ipv4Addr,
}

impl Default for Host {
    /// An address on this machine.
    fn default() -> Self {
        Self { address: Ipv4Addr::LOCALHOST, run: Vec::new(), reached_at: Ipv4Addr::LOCALHOST }
    }
}

/// What all nodes are configured with.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// `cluster.name`.
    pub cluster: String,
    /// `store.cassandra.keyspace`.
    pub keyspace: String,
    /// `store.cassandra.contact_points`.
    pub contact_points: Vec<SocketAddr>,
    /// How many copies Cassandra keeps.
    pub store_copies: usize,
    /// Overrides, as in [`Servers::configure`].
    pub overrides: Vec<(String, String)>,
    /// Where the nodes run, in their order; right here where there are more of them.
    pub hosts: Vec<Host>,
}

impl ServerSettings {
    /// Of a cluster with a keyspace of its own in this Cassandra.
    pub fn over(cassandra: &crate::cassandra::Cassandra, keyspace: &str) -> Self {
        Self {
            cluster: format!("test-{keyspace}").replace('_', "-"),
            keyspace: keyspace.to_owned(),
            contact_points: cassandra.contact_points(),
            store_copies: cassandra.nodes(),
            overrides: Vec::new(),
            hosts: Vec::new(),
        }
    }

    /// The same on these hosts.
    pub fn on(self, hosts: Vec<Host>) -> Self {
        Self { hosts, ..self }
    }

    /// The same with an override: `limits.idle_s`, `60`.
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.overrides.push((key.to_owned(), value.to_string()));
        self
    }
}

/// Processes of one cluster, or of what is tried to be one. Nodes are counted from 0, their names from `n1`. Dropped,
/// they are killed.
pub struct Servers {
    settings: ServerSettings,
    nodes: Vec<Server>,
    folder: TempDir,
    first_port: u16,
}

struct Server {
    name: String,
    overrides: Vec<(String, String)>,
    /// What it is run by, after what its host is reached by.
    run: Vec<String>,
    /// Where its log goes; to a file of its own otherwise.
    log: Option<PathBuf>,
    child: Option<Child>,
}

impl Server {
    fn new(name: String) -> Self {
        Self { name, overrides: Vec::new(), run: Vec::new(), log: None, child: None }
    }
}

/// A signal, by its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// Ends it in good order.
    Term,
    /// Freezes it.
    Stop,
    /// Thaws it.
    Cont,
}

impl Servers {
    /// Prepares this number of nodes: certificates, keys and configurations. None runs yet.
    pub async fn prepare(settings: ServerSettings, nodes: usize) -> Result<Self> {
        let first_port = free_block(u16::try_from(nodes)? + SPARE)?;
        let mut folder = tempfile::tempdir()?;
        // For whoever looks for the reason of a failure: the logs are there.
        folder.disable_cleanup(env::var_os("ROOST_KEEP_LOGS").is_some());
        let mut this = Self { settings, nodes: Vec::new(), folder, first_port };
        this.command(&["certs", "init", "--dir", "certs"]).await?;
        this.command(&["keys", "new", "--file", "keyring.toml"]).await?;
        for _ in 0..nodes {
            this.add_node().await?;
        }
        Ok(this)
    }

    /// Prepares another node, and says which one that is.
    pub async fn add_node(&mut self) -> Result<usize> {
        let (node, name) = (self.nodes.len(), format!("n{}", self.nodes.len() + 1));
        self.command(&["certs", "node", &name, "--dir", "certs"]).await?;
        self.nodes.push(Server::new(name));
        Ok(node)
    }

    /// Prepares a node that uses another's name, certificate included, on ports of its own.
    pub fn add_impostor(&mut self, of: usize) -> usize {
        self.nodes.push(Server::new(self.nodes[of].name.clone()));
        self.nodes.len() - 1
    }

    /// Takes over the certificates and the keys of others: these could be nodes of theirs.
    pub fn take_papers_of(&self, others: &Self) -> Result<()> {
        let (from, to) = (others.folder(), self.folder());
        fs::copy(from.join("keyring.toml"), to.join("keyring.toml"))?;
        for file in fs::read_dir(from.join("certs"))? {
            let file = file?;
            fs::copy(file.path(), to.join("certs").join(file.file_name()))?;
        }
        Ok(())
    }

    /// Overrides a setting of one node from its next start on; the value is written as in an environment variable.
    pub fn configure(&mut self, node: usize, key: &str, value: impl ToString) {
        self.nodes[node].overrides.push((key.to_owned(), value.to_string()));
    }

    /// Runs a node by another program from its next start on, which is given the command that is to be run.
    pub fn run_by(&mut self, node: usize, program: &[&str]) {
        self.nodes[node].run = program.iter().map(|&part| part.to_owned()).collect();
    }

    /// Has a node write its log there from its next start on.
    pub fn log_to(&mut self, node: usize, file: PathBuf) {
        self.nodes[node].log = Some(file);
    }

    /// Takes back what was overridden for one node.
    pub fn restore(&mut self, node: usize) {
        let Server { overrides, run, log, .. } = &mut self.nodes[node];
        overrides.clear();
        run.clear();
        *log = None;
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.settings.cluster
    }

    /// Where they keep what they keep.
    pub fn keyspace(&self) -> &str {
        &self.settings.keyspace
    }

    /// How many nodes there are, running or not.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The base URL of a node.
    pub fn http_url(&self, node: usize) -> String {
        format!("http://{}:{}", self.host(node).address, self.port(node))
    }

    /// The API of a node.
    pub fn api(&self, node: usize) -> Api {
        Api::new(self.http_url(node))
    }

    /// Starts a node and does not wait for it. What it says is added to its log.
    pub fn spawn(&mut self, node: usize) -> Result<()> {
        ensure!(!self.is_running(node), "node {} runs already", node + 1);
        let config = self.folder.path().join(format!("node-{}.toml", node + 1));
        fs::write(&config, self.config(node))?;
        let log = File::options().create(true).append(true).open(self.log_file(node))?;
        let overrides = self.settings.overrides.iter().chain(&self.nodes[node].overrides);
        let variables = overrides
            .map(|(key, value)| (format!("ROOST_{}", key.to_ascii_uppercase().replace('.', "__")), value.as_str()));
        let program = binary()?.into_os_string();
        let run_by = self.host(node).run.into_iter().chain(self.nodes[node].run.iter().cloned()).map(OsString::from);
        let mut command = run_by.chain([program, "serve".into(), "--config".into(), config.into()]);
        let child = Command::new(command.next().context("there is a program")?)
            .args(command)
            .current_dir(self.folder.path())
            // Nothing that is set for the tests (`ROOST_…`) is meant for it.
            .env_clear()
            .envs(env::var_os("PATH").map(|path| ("PATH", path)))
            .envs([("RUST_BACKTRACE", "1"), ("NO_COLOR", "1")])
            .envs(variables)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .context("starting the program")?;
        self.nodes[node].child = Some(child);
        Ok(())
    }

    /// Starts a node and waits until it is ready.
    pub async fn start(&mut self, node: usize) -> Result<()> {
        self.spawn(node)?;
        self.ready(node).await
    }

    /// Starts all that do not run, at once, and waits until they are ready.
    pub async fn start_all(&mut self) -> Result<()> {
        let missing: Vec<usize> = (0..self.nodes.len()).filter(|node| !self.is_running(*node)).collect();
        for node in &missing {
            self.spawn(*node)?;
        }
        for node in missing {
            self.ready(node).await?;
        }
        Ok(())
    }

    /// Waits until a node is ready; an error at once where it has ended.
    pub async fn ready(&mut self, node: usize) -> Result<()> {
        let api = self.api(node);
        let mut ended = None;
        let child = self.nodes[node].child.as_mut().context("it was not started")?;
        let waited = wait_until(&format!("node {} to be ready", node + 1), LIMIT, async || {
            ended = child.try_wait().ok().flatten();
            ended.is_some() || api.is_ready().await
        })
        .await;
        if let Some(status) = ended {
            bail!("node {} ended with {status}; its last words:\n{}", node + 1, self.last_words(node));
        }
        if let Err(error) = waited {
            let says = (api.get("/readyz").await, api.health().await);
            return Err(error.context(format!("it says {says:?}\nits last words:\n{}", self.last_words(node))));
        }
        Ok(())
    }

    /// SIGKILL, and waits until it is gone.
    pub async fn kill(&mut self, node: usize) -> Result<()> {
        let mut child = self.nodes[node].child.take().context("it does not run")?;
        child.kill().await.context("killing it")
    }

    /// SIGKILL to all at once.
    pub async fn kill_all(&mut self) -> Result<()> {
        let mut children: Vec<Child> = self.nodes.iter_mut().filter_map(|server| server.child.take()).collect();
        for child in &mut children {
            child.start_kill()?;
        }
        for mut child in children {
            child.wait().await?;
        }
        Ok(())
    }

    /// Sends a signal.
    pub async fn signal(&self, node: usize, signal: Signal) -> Result<()> {
        let id = self.id(node).with_context(|| format!("node {} does not run", node + 1))?;
        let name = match signal {
            Signal::Term => "-TERM",
            Signal::Stop => "-STOP",
            Signal::Cont => "-CONT",
        };
        let sent = Command::new("kill").args([name, &id.to_string()]).status().await?;
        ensure!(sent.success(), "node {} could not be sent {signal:?}", node + 1);
        Ok(())
    }

    /// Waits until a node has ended by itself, or because it was asked to.
    pub async fn ended(&mut self, node: usize) -> Result<ExitStatus> {
        let child = self.nodes[node].child.as_mut().context("it does not run")?;
        let Ok(status) = tokio::time::timeout(LIMIT, child.wait()).await else {
            bail!("node {} has not ended within {LIMIT:?}; its last words:\n{}", node + 1, self.last_words(node));
        };
        self.nodes[node].child = None;
        Ok(status?)
    }

    /// Whether a node runs.
    pub fn is_running(&mut self, node: usize) -> bool {
        let child = self.nodes[node].child.as_mut();
        child.is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its process's id.
    pub fn id(&self, node: usize) -> Option<u32> {
        self.nodes[node].child.as_ref().and_then(Child::id)
    }

    /// Its memory at the moment, in MB.
    pub fn resident_mb(&self, node: usize) -> Result<u64> {
        resident_mb(self.id(node).context("it does not run")?)
    }

    /// All that a node has written, over all its starts.
    pub fn log(&self, node: usize) -> String {
        fs::read(self.log_file(node)).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// The end of its log.
    pub fn last_words(&self, node: usize) -> String {
        let log = self.log(node);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// An error where any node has panicked.
    pub fn without_panic(&self) -> Result<()> {
        let of = |node| self.log(node).lines().filter(|line| line.contains("panicked at")).map(str::to_owned).collect();
        let panics: Vec<String> = (0..self.nodes.len()).flat_map(|node| -> Vec<String> { of(node) }).collect();
        ensure!(panics.is_empty(), "nodes panicked: {panics:#?}");
        Ok(())
    }

    /// Asks all to end, as an operator would who has no patience, and waits for them.
    pub async fn shut_down(&mut self) -> Result<()> {
        let running: Vec<usize> = (0..self.nodes.len()).filter(|node| self.is_running(*node)).collect();
        for _ in 0..2 {
            for &node in &running {
                // A second signal cuts the draining short: there is nobody left to hand over to.
                if self.is_running(node) {
                    self.signal(node, Signal::Term).await?;
                }
            }
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        }
        for node in running {
            let status = self.ended(node).await?;
            ensure!(status.success(), "node {} ended with {status}:\n{}", node + 1, self.last_words(node));
        }
        Ok(())
    }

    /// Where the other nodes find a node, and where it listens for them.
    pub fn peer_addresses(&self, node: usize) -> (SocketAddr, SocketAddr) {
        let (Host { address, reached_at, .. }, port) = (self.host(node), self.port(node) + PEER_PORTS_ABOVE);
        ((reached_at, port).into(), (address, port).into())
    }

    fn host(&self, node: usize) -> Host {
        self.settings.hosts.get(node).cloned().unwrap_or_default()
    }

    fn port(&self, node: usize) -> u16 {
        self.first_port + node as u16
    }

    fn log_file(&self, node: usize) -> PathBuf {
        let own = || self.folder.path().join(format!("node-{}.log", node + 1));
        self.nodes[node].log.clone().unwrap_or_else(own)
    }

    /// The folder with everything.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    async fn command(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(binary()?);
        let output = command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null()).output().await?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "roost {}: {}\n{said}", arguments.join(" "), output.status);
        Ok(())
    }

    fn config(&self, node: usize) -> String {
        let ServerSettings { cluster, keyspace, contact_points, store_copies, .. } = &self.settings;
        let (name, port, address) = (&self.nodes[node].name, self.port(node), self.host(node).address);
        let (reached_at, peer_listen) = self.peer_addresses(node);
        let seeds = quoted((0..self.nodes.len()).map(|other| self.peer_addresses(other).0));
        let contact_points = quoted(contact_points);
        let mut config = String::new();
        let _ = write!(
            config,
            r#"[node]
id = "{name}"
http_listen = "{address}:{port}"
peer_listen = "{peer_listen}"
peer_advertise = "{reached_at}"
[cluster]
name = "{cluster}"
seeds = [{seeds}]
[tls]
ca = "certs/ca.pem"
cert = "certs/{name}.pem"
key = "certs/{name}.key"
[auth]
api_keys = ["{KEY}"]
keyring = "keyring.toml"
[session]
anonymous = true
[store]
kind = "cassandra"
[store.cassandra]
contact_points = [{contact_points}]
keyspace = "{keyspace}"
replication = {{ datacenter1 = {store_copies} }}
"#,
        );
        config
    }
}

/// A process's memory at the moment, in MB.
pub fn resident_mb(id: u32) -> Result<u64> {
    status_mb(id, "VmRSS:")
}

/// The most that a process has mapped so far, in MB.
pub fn mapped_mb(id: u32) -> Result<u64> {
    status_mb(id, "VmPeak:")
}

fn status_mb(id: u32, key: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).with_context(|| format!("process {id} is gone"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(key)).with_context(|| format!("no {key}"))?;
    let kb: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kb / 1_024)
}

fn quoted(items: impl IntoIterator<Item = impl std::fmt::Display>) -> String {
    items.into_iter().map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", ")
}
