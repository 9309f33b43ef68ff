//! A real Cassandra of one node or three, started by `scripts/cassandra` in a folder and on addresses of its own, and
//! stopped when dropped. With [`Cassandra::relayed`] everything that a driver sends it goes through [`Relays`];
//! [`Cassandra::secure`] wants TLS and a password.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use rand::RngExt;
use tempfile::TempDir;
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{ports::free_block, relay::Relays};

/// Third parts of loopback addresses; each cluster takes two neighbours, the first one even: nodes and relays.
const NETS: std::ops::Range<u8> = 30..120;
/// Where nodes talk to each other: the same on all addresses.
const STORAGE_PORT: u16 = 7000;

/// A running cluster. Its nodes are counted from 0.
pub struct Cassandra {
    folder: TempDir,
    nodes: usize,
    net: Net,
    port: u16,
    is_secure: bool,
    relays: Option<(Net, Relays)>,
}

/// The first three parts of addresses.
type Net = [u8; 3];

/// Whether there are relays before the nodes, and where.
enum Relayed {
    No,
    Beside,
    At(Net),
}

/// What can be done to one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Deed {
    /// Start it again and wait until it answers.
    Start,
    /// SIGTERM.
    Stop,
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Pause,
    /// SIGCONT.
    Resume,
}

impl Cassandra {
    /// Starts this number of nodes (1 or 3) and waits until they answer.
    pub async fn start(nodes: usize) -> Result<Self> {
        Self::start_with(nodes, Relayed::No, false).await
    }

    /// The same with a relay before each node.
    pub async fn relayed(nodes: usize) -> Result<Self> {
        Self::start_with(nodes, Relayed::Beside, false).await
    }

    /// The same with the relays on addresses that begin so, for whoever cannot reach the nodes themselves.
    pub async fn relayed_at(nodes: usize, net: [u8; 3]) -> Result<Self> {
        Self::start_with(nodes, Relayed::At(net), false).await
    }

    /// The same with TLS, whose CA is [`Cassandra::ca`], and roles: `cassandra` with the password `cassandra` may do
    /// everything.
    pub async fn secure(nodes: usize) -> Result<Self> {
        Self::start_with(nodes, Relayed::No, true).await
    }

    async fn start_with(nodes: usize, relayed: Relayed, is_secure: bool) -> Result<Self> {
        let (folder, port) = (tempfile::tempdir()?, free_block(1)?);
        let mut this = Self { folder, nodes, net: free_net(nodes, port)?, port, is_secure, relays: None };
        let [a, b, c] = this.net;
        let relays = match relayed {
            Relayed::No => None,
            Relayed::Beside => Some([a, b, c + 1]),
            Relayed::At(net) => Some(net),
        };
        if let Some(net) = relays {
            let pairs: Vec<_> =
                (0..nodes).map(|node| (this.address(net, node), this.address(this.net, node))).collect();
            this.relays = Some((net, Relays::start(&pairs).await?));
        }
        this.launch().await?;
        Ok(this)
    }

    /// Where drivers find its nodes.
    pub fn contact_points(&self) -> Vec<SocketAddr> {
        let net = self.relays.as_ref().map_or(self.net, |(net, _)| *net);
        (0..self.nodes).map(|node| self.address(net, node)).collect()
    }

    /// The CA of its certificates, where it is secure.
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// All that its nodes have logged.
    pub fn log(&self) -> Result<String> {
        let mut all = String::new();
        for node in 1..=self.nodes {
            let file = self.folder.path().join(format!("n{node}/log"));
            all += &std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        }
        Ok(all)
    }

    /// How many nodes it has.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// The relays before its nodes; an error where there are none.
    pub fn relays(&self) -> Result<&Relays> {
        let relays = self.relays.as_ref().map(|(_, relays)| relays);
        relays.context("this Cassandra was started without relays")
    }

    /// Does something to a node.
    pub async fn node(&self, node: usize, deed: Deed) -> Result<()> {
        let deed = match deed {
            Deed::Start => "start",
            Deed::Stop => "stop",
            Deed::Kill => "kill",
            Deed::Pause => "pause",
            Deed::Resume => "resume",
        };
        self.script(&["node", &(node + 1).to_string(), deed]).await.map(drop)
    }

    /// Has a node carry out a statement, past Roost. The rows that come of it, each value in CQL's hexadecimal (`0x…`) or `-`.
    pub async fn cql(&self, statement: &str) -> Result<Vec<Vec<String>>> {
        // A statement may be longer than an argument.
        let rows = self.script_given(&["cql", "-"], statement).await?;
        Ok(rows.lines().map(|row| row.split(' ').map(str::to_owned).collect()).collect())
    }

    /// Stops it, loses all that it ever stored, and starts it again: what a test must notice.
    pub async fn wipe(&self) -> Result<()> {
        self.script(&["stop"]).await?;
        for node in 0..self.nodes {
            let kept = self.folder.path().join(format!("n{}", node + 1));
            std::fs::remove_dir_all(&kept).with_context(|| format!("wiping {}", kept.display()))?;
        }
        self.launch().await
    }

    async fn launch(&self) -> Result<()> {
        let (nodes, port) = (self.nodes.to_string(), self.port.to_string());
        let text = |[a, b, c]: Net| format!("{a}.{b}.{c}");
        let (net, advertise) = (text(self.net), self.relays.as_ref().map(|(net, _)| text(*net)));
        let mut arguments = vec!["start", "--nodes", &nodes, "--net", &net, "--port", &port, "--durable"];
        if let Some(advertise) = &advertise {
            arguments.extend(["--advertise", advertise]);
        }
        if self.is_secure {
            arguments.push("--secure");
        }
        self.script(&arguments).await.map(drop)
    }

    /// What it says on its standard output.
    async fn script(&self, arguments: &[&str]) -> Result<String> {
        self.script_given(arguments, "").await
    }

    /// The same with this on its standard input.
    async fn script_given(&self, arguments: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new(script()?);
        command.args(arguments).arg("--dir").arg(self.folder.path());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("running scripts/cassandra")?;
        let mut stdin = child.stdin.take().context("it has a standard input")?;
        // Who does not read has ended, and says why.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let Output { status, stdout, stderr } = child.wait_with_output().await.context("running scripts/cassandra")?;
        let said = [stdout, stderr].map(|said| String::from_utf8_lossy(&said).trim().to_owned());
        ensure!(status.success(), "scripts/cassandra {}: {status}\n{}\n{}", arguments.join(" "), said[0], said[1]);
        let [stdout, _] = said;
        Ok(stdout)
    }

    fn address(&self, [a, b, c]: Net, node: usize) -> SocketAddr {
        // One or three nodes: they fit.
        (Ipv4Addr::new(a, b, c, node as u8 + 1), self.port).into()
    }
}

impl Drop for Cassandra {
    fn drop(&mut self) {
        let Ok(script) = script() else { return };
        // Nothing can be done about a failure, and the folder goes in any case.
        let _ = std::process::Command::new(script)
            .args(["stop", "--dir"])
            .arg(self.folder.path())
            .stdin(Stdio::null())
            .output();
    }
}

fn script() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("this package lies in a workspace")?;
    let script = root.join("scripts/cassandra");
    ensure!(script.is_file(), "there is no {}", script.display());
    Ok(script)
}

/// Addresses on which nobody listens where Cassandra and the relays will.
fn free_net(nodes: usize, port: u16) -> Result<Net> {
    let free = |net: u8, port: u16| {
        (1..=nodes as u8).all(|node| TcpListener::bind((Ipv4Addr::new(127, 0, net, node), port)).is_ok())
    };
    for _ in 0..1_000 {
        let net = rand::rng().random_range(NETS) * 2;
        if free(net, STORAGE_PORT) && free(net, port) && free(net + 1, port) {
            return Ok([127, 0, net]);
        }
    }
    bail!("no loopback addresses are free for {nodes} Cassandra nodes with the ports {STORAGE_PORT} and {port}")
}
