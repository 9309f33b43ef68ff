//! A process that uses one of our clients as it is told, a line of JSON each way.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use roost::tasks::Tasks;
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, Command},
};

/// What the program behind a client was told.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Told {
    #[serde(rename = "as")]
    pub(super) client: String,
    pub(super) event: String,
    #[serde(default)]
    pub(super) group: String,
    pub(super) value: Value,
}

impl Told {
    /// Whether this client was told it, of this group or (empty) of its connection.
    pub(super) fn of(&self, client: &str, group: &str) -> bool {
        self.client == client && self.group == group
    }
}

/// A process with clients. Dropped, it is killed.
pub struct Puppet {
    _child: Child,
    stdin: ChildStdin,
    heard: Arc<Mutex<Heard>>,
    asked: u64,
    _tasks: Tasks,
}

#[derive(Default)]
struct Heard {
    answers: BTreeMap<u64, Value>,
    told: Vec<Told>,
    complaints: Vec<String>,
}

impl Puppet {
    /// Starts one.
    pub fn start(interpreter: &Path, script: &Path) -> Result<Self> {
        let mut child = Command::new(interpreter)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {} {}", interpreter.display(), script.display()))?;
        let (tasks, heard) = (Tasks::new(), Arc::new(Mutex::new(Heard::default())));
        let stdout = child.stdout.take().context("it has an output")?;
        tasks.spawn_detached("puppet", each_line(stdout, heard.clone(), hear));
        let stderr = child.stderr.take().context("it has an error output")?;
        tasks.spawn_detached("puppet", each_line(stderr, heard.clone(), |heard, line| heard.complaints.push(line)));
        let stdin = child.stdin.take().context("it has an input")?;
        Ok(Self { _child: child, stdin, heard, asked: 0, _tasks: tasks })
    }

    /// What it has complained of: nothing, where the client is right.
    pub fn complaints(&self) -> Vec<String> {
        lock(&self.heard).complaints.clone()
    }

    /// Asks for something, and returns the number of the answer.
    pub(super) async fn ask(&mut self, mut ask: Value) -> Result<u64> {
        self.asked += 1;
        ask["n"] = self.asked.into();
        let complaints = self.complaints();
        self.stdin.write_all(format!("{ask}\n").as_bytes()).await.with_context(|| format!("{complaints:#?}"))?;
        self.stdin.flush().await?;
        Ok(self.asked)
    }

    pub(super) fn answer(&self, number: u64) -> Option<Value> {
        lock(&self.heard).answers.remove(&number)
    }

    pub(super) fn told(&self) -> Vec<Told> {
        lock(&self.heard).told.clone()
    }

    /// Gives all that was told, and begins anew.
    pub(super) fn forget(&self) -> Vec<Told> {
        std::mem::take(&mut lock(&self.heard).told)
    }
}

fn lock(heard: &Mutex<Heard>) -> MutexGuard<'_, Heard> {
    heard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn hear(heard: &mut Heard, line: String) {
    let Ok(value) = serde_json::from_str::<Value>(&line) else { return heard.complaints.push(line) };
    match value["n"].as_u64() {
        Some(number) => drop(heard.answers.insert(number, value)),
        None => match Told::deserialize(value) {
            Ok(told) => heard.told.push(told),
            Err(error) => heard.complaints.push(format!("{line}: {error}")),
        },
    }
}

async fn each_line(stream: impl AsyncRead + Unpin, heard: Arc<Mutex<Heard>>, with: fn(&mut Heard, String)) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        with(&mut lock(&heard), line);
    }
}
