//! Starts a peer for one turn, and ends it. Whatever was started is ended by its id, also where a turn fails.

use std::{
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, bail};
use roost_bench::{Report, Target};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
};

use crate::{noise::Noise, peers::Peer, rows::Row};

const READY_LIMIT: Duration = Duration::from_secs(60);
const END_LIMIT: Duration = Duration::from_secs(10);
/// What a start sets off is over by then.
const SETTLE: Duration = Duration::from_secs(2);
/// Roost's settings in a race: presence off, as in the others; no bound on connects, operations or connections of a
/// client, which they have not either.
const SETTINGS: [(&str, &str); 6] = [
    ("ROOST_NAMESPACES__DEFAULT__PRESENCE", "false"),
    ("ROOST_LIMITS__CONNECTS_PER_S", "100000"),
    ("ROOST_LIMITS__OPERATIONS_PER_S", "100000"),
    ("ROOST_LIMITS__OPERATIONS_BURST", "100000"),
    ("ROOST_LIMITS__PUBLISH_BYTES_PER_S", "1000000000"),
    ("ROOST_LIMITS__NEW_GROUPS_PER_S", "100000"),
];

/// Where the peers' programs are.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub roost: PathBuf,
    pub centrifuge: PathBuf,
    pub socketio: PathBuf,
    pub naive: PathBuf,
    pub bare: PathBuf,
}

impl Programs {
    /// What each says of its version, for the page.
    pub(crate) fn versions(&self) -> Vec<String> {
        let said = |program: &Path, args: &[&str]| {
            let output = std::process::Command::new(program).args(args).output().ok()?;
            Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
        };
        let go = said(Path::new("go"), &["version"]);
        let library = std::process::Command::new("go").args(["version", "-m"]).arg(&self.centrifuge).output().ok();
        let library = library.and_then(|output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let line = text.lines().find(|line| line.contains("centrifugal/centrifuge\t"))?;
            Some(line.split_whitespace().skip(1).take(2).collect::<Vec<_>>().join(" "))
        });
        let socketio = std::fs::read_to_string(self.socketio.join("node_modules/socket.io/package.json")).ok();
        let socketio = socketio.and_then(|text| {
            let package: serde_json::Value = serde_json::from_str(&text).ok()?;
            Some(format!("Socket.IO {}", package["version"].as_str()?))
        });
        let node = said(Path::new("node"), &["--version"]).map(|version| format!("Node.js {version}"));
        let redis = said(Path::new("redis-server"), &["--version"]);
        let linux = said(Path::new("uname"), &["-sr"]);
        let processors = std::thread::available_parallelism().ok().map(|count| format!("{count} processors"));
        [said(&self.roost, &["--version"]), library, go, socketio, node, redis, linux, processors]
            .into_iter()
            .flatten()
            .collect()
    }
}

/// The processes of one turn, ended when this is dropped.
#[derive(Default)]
struct Servers {
    children: Vec<Child>,
}

impl Servers {
    fn start(&mut self, command: &mut Command) -> anyhow::Result<()> {
        let program = command.as_std().get_program().to_owned();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("{} cannot be started", program.display()))?;
        self.children.push(child);
        Ok(())
    }

    fn pids(&self) -> Vec<u32> {
        self.children.iter().filter_map(Child::id).collect()
    }

    async fn end(mut self) {
        for pid in self.pids() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        for child in &mut self.children {
            if tokio::time::timeout(END_LIMIT, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
    }
}

/// What one turn gave.
pub(crate) struct Ran {
    pub report: Report,
    /// Processors that other programs kept busy meanwhile.
    pub others: f64,
}

/// One turn of a peer: its server is started, the row's scenario is run, and the server is ended.
pub(crate) async fn turn(programs: &Programs, peer: Peer, row: &Row) -> anyhow::Result<Ran> {
    let folder = tempfile::tempdir()?;
    let mut servers = Servers::default();
    let noise = Noise::look()?;
    let outcome = async {
        let port = free_ports(row.nodes + 1)?;
        start(&mut servers, programs, peer, (port, row.nodes), folder.path())?;
        let urls: Vec<String> = (0..row.nodes).map(|node| format!("http://127.0.0.1:{}", port + node)).collect();
        for node in 0..row.nodes {
            ready(peer, port + node).await?;
        }
        tokio::time::sleep(SETTLE).await;
        let target = Target { urls, dialect: peer.dialect(), backend: None, pids: servers.pids() };
        let report = Box::pin(roost_bench::run(&target, row.plan)).await?;
        anyhow::Ok(Ran { report, others: noise.others_since(&servers.pids())? })
    };
    let outcome = outcome.await.with_context(|| format!("{}, {}", row.name, peer.word()));
    servers.end().await;
    outcome
}

fn start(
    servers: &mut Servers,
    programs: &Programs,
    peer: Peer,
    (port, nodes): (u16, u16),
    folder: &Path,
) -> anyhow::Result<()> {
    match peer {
        Peer::Roost => {
            let (nodes, port) = (nodes.to_string(), port.to_string());
            let mut command = Command::new(&programs.roost);
            command.args(["dev", "--nodes", &nodes, "--port", &port, "--data"]).arg(folder).envs(SETTINGS);
            servers.start(&mut command)
        }
        Peer::Centrifuge => {
            let redis = format!("127.0.0.1:{}", port + nodes);
            if nodes > 1 {
                let mut command = Command::new("redis-server");
                command.args(["--bind", "127.0.0.1", "--port", &(port + nodes).to_string(), "--save", "", "--dir"]);
                servers.start(command.arg(folder))?;
                wait_for(|| TcpStream::connect(&redis).is_ok(), "redis-server")?;
            }
            for node in 0..nodes {
                let mut command = Command::new(&programs.centrifuge);
                command.args(["-port", &(port + node).to_string()]);
                if nodes > 1 {
                    command.args(["-redis", &redis]);
                }
                servers.start(&mut command)?;
            }
            Ok(())
        }
        Peer::Naive => servers.start(Command::new(&programs.naive).arg(port.to_string())),
        Peer::Bare => servers.start(Command::new(&programs.bare).arg(port.to_string())),
        Peer::SocketIo => {
            let mut command = Command::new("node");
            servers.start(command.arg("server.mjs").arg(port.to_string()).current_dir(&programs.socketio))
        }
    }
}

/// Short: a broker starts in a moment.
fn wait_for(condition: impl Fn() -> bool, what: &str) -> anyhow::Result<()> {
    for _ in 0..100 {
        if condition() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("{what} does not take connections")
}

/// Waits until the server takes clients.
async fn ready(peer: Peer, port: u16) -> anyhow::Result<()> {
    let ready = async {
        while !is_ready(peer, port).await.unwrap_or(false) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(READY_LIMIT, ready).await.with_context(|| format!("{} is not ready in time", peer.word()))
}

async fn is_ready(peer: Peer, port: u16) -> anyhow::Result<bool> {
    let mut socket = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    if peer != Peer::Roost {
        return Ok(true);
    }
    socket.write_all(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await?;
    let mut answer = Vec::new();
    socket.take(4_096).read_to_end(&mut answer).await?;
    Ok(answer.starts_with(b"HTTP/1.1 200"))
}

/// The first of this number of ports in a row that nobody has, below those that the system gives away.
fn free_ports(count: u16) -> anyhow::Result<u16> {
    for _ in 0..100 {
        let first = rand::random_range(20_000..30_000);
        if (first..first + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return Ok(first);
        }
    }
    bail!("no {count} free ports in a row were found")
}
