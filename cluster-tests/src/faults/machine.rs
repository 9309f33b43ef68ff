//! Faults of the machine that a node runs on: its disk, its clock, its processor.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::process::{Child, Command};

use super::scene::{ONE, STAY, Scene};
use crate::{api, process::LIMIT, socket::Socket, wait::wait_for};

/// Sessions that a clock which is days ahead would end, and how long they are to live.
const SHORT_SESSIONS: usize = 20;
const SHORT_TTL_S: u64 = 3_600;
/// A node whose clock is wrong says so within this, once it is ready.
const CLOCK_SAID: Duration = Duration::from_secs(15);
/// Busy processes beside a node.
const BUSY: usize = 2;

pub(super) async fn full_disk(scene: &mut Scene<'_>) -> Result<()> {
    let disk = scene.cluster.servers()?.folder().join("disk");
    fs::create_dir_all(&disk)?;
    run("mount", &["-t", "tmpfs", "-o", "size=64k", "disk", &disk.to_string_lossy()]).await?;
    scene.cluster.drain(ONE).await?;
    scene.cluster.servers_mut()?.log_to(ONE, disk.join("log"));
    scene.cluster.restart(ONE).await?;
    scene.cluster.green(LIMIT).await?;
    let filler = disk.join("filler");
    scene.begin();
    fill(&filler)?;
    scene.cluster.crash(1).await?;
    scene.stay(STAY).await;
    scene.cluster.restart(1).await?;
    ensure!(fill(&filler).is_ok(), "the disk is not there any more");
    fs::remove_file(&filler)?;
    ensure!(scene.cluster.servers_mut()?.is_running(ONE), "the node whose log had no room ended");
    Ok(())
}

/// Writes until nothing more fits.
fn fill(file: &PathBuf) -> Result<()> {
    let mut file = File::options().create(true).append(true).open(file)?;
    loop {
        match file.write_all(&[0]) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

pub(super) async fn clock(scene: &mut Scene<'_>, offset: &str) -> Result<()> {
    let file = show_another_time(scene, "+0").await?;
    scene.cluster.drain(ONE).await?;
    scene.cluster.restart(ONE).await?;
    scene.cluster.green(LIMIT).await?;
    scene.begin();
    fs::write(&file, offset)?;
    scene.stay(STAY).await;
    fs::write(&file, "+0")?;
    Ok(())
}

/// A node that starts with a wrong clock uses the store's, says so, and ends nobody. When it is set right the node takes note.
pub(super) async fn clock_at_start(scene: &mut Scene<'_>, offset: &str) -> Result<()> {
    let file = show_another_time(scene, offset).await?;
    let mut sessions = Vec::new();
    for number in 0..SHORT_SESSIONS {
        let (api, user) = (scene.cluster.api(number % 3), format!("short-{number}"));
        sessions.push(api.create_session_with(json!({"user": user, "ttl_s": SHORT_TTL_S})).await?);
    }
    scene.cluster.drain(ONE).await?;
    scene.begin();
    scene.cluster.restart(ONE).await.context("with a wrong clock")?;
    let api = scene.cluster.api(ONE);
    let says = async || {
        let health = api.health().await.ok()?;
        Some(api::reason(&health, "clock").map(str::to_owned))
    };
    let says_it = async || says().await.flatten();
    let (said, after) = wait_for("the node to say that its clock is wrong", CLOCK_SAID, says_it).await?;
    scene.note(format!("{:.1} s after it was ready it said: {said}", after.as_secs_f64()));
    for node in 0..3 {
        for session in &sessions {
            attaches(&scene.cluster.url(node), &session.token).await?;
        }
    }
    let path = "/v1/sessions";
    let made = api.post(path, json!({"user": "made", "ttl_s": SHORT_TTL_S})).await?;
    ensure!(made.status == 201, "creating a session where the clock is wrong: {made:?}");
    let id = made.body["session"]["id"].as_str().context("a session has an id")?;
    scene.stay(STAY).await;
    fs::write(&file, "+0")?;
    let says_nothing = async || says().await?.is_none().then_some(());
    let ((), after) = wait_for("the node to say that its clock is right", CLOCK_SAID, says_nothing).await?;
    scene.note(format!("{:.1} s after it was set right it said nothing of it any more", after.as_secs_f64()));
    for node in 0..3 {
        let read = scene.cluster.api(node).get(&format!("{path}/{id}")).await?;
        ensure!(read.status == 200, "the session that it made is not there: {read:?}");
    }
    scene.note(format!("{SHORT_SESSIONS} sessions of an hour attached at each node"));
    Ok(())
}

async fn attaches(url: &str, token: &str) -> Result<()> {
    let mut socket = Socket::connect(url).await?;
    socket.send(&json!({"type": "hello", "session": token})).await?;
    socket.frame_of("welcome").await.with_context(|| format!("a session that has most of an hour left, at {url}"))?;
    socket.close().await;
    Ok(())
}

/// From its next start on the first node's wall clock differs by what stands in this file.
async fn show_another_time(scene: &mut Scene<'_>, offset: &str) -> Result<PathBuf> {
    let library = library().await?;
    let file = scene.cluster.servers()?.folder().join("clock");
    fs::write(&file, offset)?;
    let preload = format!("LD_PRELOAD={library}");
    let file_name = format!("FAKETIME_TIMESTAMP_FILE={}", file.display());
    let by =
        ["env", &preload, &file_name, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1"];
    scene.cluster.servers_mut()?.run_by(ONE, &by);
    Ok(file)
}

/// Busy processes on one core, to which a node is bound. Dropped, they end.
pub(super) struct Siblings {
    busy: Vec<Child>,
    node: u32,
    /// All cores, as the system writes them.
    all: String,
}

impl Siblings {
    /// Binds a node to the last core, and has these many processes of this niceness take it.
    pub(super) async fn of(scene: &Scene<'_>, node: usize, many: usize, nice: &str) -> Result<Self> {
        let node = scene.cluster.servers()?.id(node).context("the node runs")?;
        let status = fs::read_to_string("/proc/self/status")?;
        let all = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        let all = all.context("which cores there are")?.trim().to_owned();
        let last = all.rsplit([',', '-']).next().unwrap_or_default();
        let mut busy = Vec::new();
        for _ in 0..many {
            let mut command = Command::new("taskset");
            command.args(["--cpu-list", last, "nice", "-n", nice, "sh", "-c", "while :; do :; done"]);
            busy.push(command.kill_on_drop(true).spawn().context("taskset (of util-linux) could not be run")?);
        }
        run("taskset", &["--all-tasks", "--cpu-list", "--pid", last, &node.to_string()]).await?;
        Ok(Self { busy, node, all })
    }

    /// The node has all cores again, and nobody is busy.
    pub(super) async fn end(mut self) -> Result<()> {
        for process in &mut self.busy {
            process.kill().await?;
        }
        run("taskset", &["--all-tasks", "--cpu-list", "--pid", &self.all, &self.node.to_string()]).await
    }
}

/// A node gets almost nothing of a core: it is slow or taken for dead, and neither harms anybody.
pub(super) async fn starved(scene: &mut Scene<'_>) -> Result<()> {
    scene.begin();
    let siblings = Siblings::of(scene, ONE, BUSY, "-20").await?;
    scene.stay(STAY).await;
    siblings.end().await
}

/// Where the library lies that shows a process another time.
async fn library() -> Result<String> {
    let found = Command::new("sh").args(["-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1"]).output().await?;
    let found = String::from_utf8(found.stdout)?;
    let first = found.lines().next();
    first.map(str::to_owned).context("there is no libfaketime: scripts/setup installs it")
}

async fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).stdout(std::process::Stdio::null()).status().await?;
    if !status.success() {
        bail!("{program} {}: {status}", arguments.join(" "));
    }
    Ok(())
}
