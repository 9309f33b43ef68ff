//! The real program, run as anyone would run it, on free ports and in a folder of its own.

use std::{
    collections::VecDeque,
    env,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use roost::tasks::Tasks;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
};

use crate::{
    api::{Api, KEY},
    ports::free_block,
    wait::wait_until,
};

/// Until a cluster that was just started serves, and until one that was asked to end has ended.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Nodes that may be added later.
pub const SPARE: u16 = 2;

/// The last lines of its output that are kept.
const LINES: usize = 20_000;

/// A running `roost dev`. Dropped, it is killed.
pub struct Program {
    child: Child,
    stdin: ChildStdin,
    output: Arc<Mutex<VecDeque<String>>>,
    tasks: Tasks,
    first_port: u16,
    nodes: usize,
    most_nodes: usize,
    data: TempDir,
}

impl Program {
    /// Starts `roost dev` with this number of nodes and waits until each is ready.
    pub async fn dev(nodes: usize) -> Result<Self> {
        Self::dev_with(nodes, &[]).await
    }

    /// The same with settings (`ROOST_…`).
    pub async fn dev_with(nodes: usize, settings: &[(&str, &str)]) -> Result<Self> {
        Self::run(nodes, r#"exec "$@""#, settings).await
    }

    /// The same by way of a shell: this text sets the scene and ends in `exec "$@"`. `$DATA` is the program's folder.
    pub async fn dev_in(nodes: usize, scene: &str) -> Result<Self> {
        Self::run(nodes, scene, &[]).await
    }

    async fn run(nodes: usize, scene: &str, settings: &[(&str, &str)]) -> Result<Self> {
        let most_nodes = nodes + usize::from(SPARE);
        let first_port = free_block(u16::try_from(most_nodes)?)?;
        let data = tempfile::tempdir()?;
        let mut child = Command::new("sh")
            .args(["-c", scene, "sh"])
            .arg(binary()?)
            .args(["dev", "--nodes", &nodes.to_string(), "--port", &first_port.to_string(), "--api-key", KEY, "--data"])
            .arg(data.path())
            // Commands are taken from standard input although it is no terminal.
            .env("ROOST_DEV_COMMANDS", "1")
            .env("NO_COLOR", "1")
            .env("DATA", data.path())
            .envs(settings.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting the program")?;
        let output = Arc::new(Mutex::new(VecDeque::new()));
        let tasks = Tasks::new();
        if let Some(stdout) = child.stdout.take() {
            tasks.spawn_detached("stdout", collect("out", stdout, output.clone()));
        }
        if let Some(stderr) = child.stderr.take() {
            tasks.spawn_detached("stderr", collect("err", stderr, output.clone()));
        }
        let stdin = child.stdin.take().context("it has a standard input")?;
        let mut this = Self { child, stdin, output, tasks, first_port, nodes, most_nodes, data };
        for node in 0..nodes {
            this.ready(node).await?;
        }
        Ok(this)
    }

    /// The base URL of a node, counted from 0.
    pub fn http_url(&self, node: usize) -> String {
        format!("http://127.0.0.1:{}", usize::from(self.first_port) + node)
    }

    /// How many nodes it has, dead ones included.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// Where it keeps what it keeps.
    pub fn data(&self) -> &Path {
        self.data.path()
    }

    /// Its process's id.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Kills a node (counted from 0) as a crash would.
    pub async fn kill(&mut self, node: usize) -> Result<()> {
        self.command(&format!("kill {}", node + 1)).await
    }

    /// Starts a killed or drained node again and waits until it is ready.
    pub async fn start(&mut self, node: usize) -> Result<()> {
        self.command(&format!("start {}", node + 1)).await?;
        self.ready(node).await
    }

    /// Has a node hand over what it has and end; returns at once.
    pub async fn drain(&mut self, node: usize) -> Result<()> {
        self.command(&format!("drain {}", node + 1)).await
    }

    /// Adds a node and waits until it is ready.
    pub async fn add(&mut self) -> Result<usize> {
        ensure!(self.nodes < self.most_nodes, "no ports were kept free for one more node");
        self.command("add").await?;
        let node = self.nodes;
        self.nodes += 1;
        self.ready(node).await?;
        Ok(node)
    }

    /// Writes a line to its prompt.
    pub async fn command(&mut self, line: &str) -> Result<()> {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await.with_context(|| format!("asking it to {line}"))?;
        Ok(self.stdin.flush().await?)
    }

    /// The latest of what it wrote to its standard output (`out: …`) and error (`err: …`).
    pub fn output(&self) -> Vec<String> {
        lines(&self.output).iter().cloned().collect()
    }

    /// Warnings, errors and panics among its output.
    pub fn complaints(&self) -> Vec<String> {
        let complains = |line: &&String| [" WARN ", " ERROR ", "panicked at"].iter().any(|word| line.contains(word));
        lines(&self.output).iter().filter(complains).cloned().collect()
    }

    /// Asks it to end, as an operator would, and waits for it.
    pub async fn shut_down(mut self) -> Result<ExitStatus> {
        let id = self.child.id().context("it has ended already")?;
        let asked = Command::new("kill").args(["-TERM", &id.to_string()]).status().await?;
        ensure!(asked.success(), "it could not be asked to end");
        let status = match tokio::time::timeout(LIMIT, self.child.wait()).await {
            Ok(status) => status?,
            Err(_) => {
                self.child.kill().await?;
                bail!("it did not end within {LIMIT:?} of a SIGTERM; its last words:\n{}", self.last_words());
            }
        };
        self.tasks.shut_down(Duration::from_secs(5)).await;
        Ok(status)
    }

    async fn ready(&mut self, node: usize) -> Result<()> {
        let api = Api::new(self.http_url(node));
        let mut ended = None;
        let child = &mut self.child;
        let waited = wait_until(&format!("node {} to be ready", node + 1), LIMIT, async || {
            ended = child.try_wait().ok().flatten();
            ended.is_some() || api.is_ready().await
        })
        .await;
        if let Some(status) = ended {
            bail!("the program ended with {status}; its last words:\n{}", self.last_words());
        }
        if let Err(error) = waited {
            let (ready, health) = (api.get("/readyz").await, api.health().await);
            return Err(error.context(format!("it says {ready:?}\n{health:?}\nits last words:\n{}", self.last_words())));
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let output = lines(&self.output);
        output.iter().skip(output.len().saturating_sub(40)).cloned().collect::<Vec<_>>().join("\n")
    }
}

/// The program under test: `ROOST_BIN`, or the one that was built with the tests, or the release build.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("ROOST_BIN").map(PathBuf::from) {
        ensure!(path.is_file(), "ROOST_BIN is {}, and there is no such file", path.display());
        return Ok(path);
    }
    // target/<profile>/deps/<test>, or target/<profile>/<program>
    let here = env::current_exe()?;
    let folder = here.parent().context("programs lie in the target folder")?;
    let profile = if folder.ends_with("deps") { folder.parent() } else { Some(folder) };
    let profile = profile.context("tests run from the target folder")?;
    let target = profile.parent().context("tests run from the target folder")?;
    let candidates = [profile.join("roost"), target.join("release/roost")];
    candidates.iter().find(|path| path.is_file()).cloned().with_context(|| {
        format!(
            "there is no program to test, neither {} nor {}: build it with `cargo build -p roost` (with `--release` \
             where the tests are run so), or name it in ROOST_BIN",
            candidates[0].display(),
            candidates[1].display()
        )
    })
}

fn lines(output: &Mutex<VecDeque<String>>) -> MutexGuard<'_, VecDeque<String>> {
    output.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn collect(from: &'static str, stream: impl AsyncRead + Unpin, output: Arc<Mutex<VecDeque<String>>>) {
    let mut reader = BufReader::new(stream).lines();
    while let Ok(Some(line)) = reader.next_line().await {
        let mut output = lines(&output);
        if output.len() == LINES {
            output.pop_front();
        }
        output.push_back(format!("{from}: {line}"));
    }
}
