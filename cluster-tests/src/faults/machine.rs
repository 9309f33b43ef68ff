//! Faults of the machine that a node runs on: its disk, its clock, its processor.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write},
    path::PathBuf,
};

use anyhow::{Context, Result, bail, ensure};
use tokio::process::Command;

use super::scene::{ONE, STAY, Scene};
use crate::process::LIMIT;

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
    let library = library().await?;
    let file = scene.cluster.servers()?.folder().join("clock");
    fs::write(&file, "+0")?;
    scene.cluster.drain(ONE).await?;
    let preload = format!("LD_PRELOAD={library}");
    let file_name = format!("FAKETIME_TIMESTAMP_FILE={}", file.display());
    let by =
        ["env", &preload, &file_name, "FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "DONT_FAKE_MONOTONIC=1"];
    scene.cluster.servers_mut()?.run_by(ONE, &by);
    scene.cluster.restart(ONE).await?;
    scene.cluster.green(LIMIT).await?;
    scene.begin();
    fs::write(&file, offset)?;
    scene.stay(STAY).await;
    fs::write(&file, "+0")?;
    Ok(())
}

/// Where the library lies that shows a process another time.
async fn library() -> Result<String> {
    let found = Command::new("sh").args(["-c", "ls /usr/lib/*/faketime/libfaketimeMT.so.1"]).output().await?;
    let found = String::from_utf8(found.stdout)?;
    let first = found.lines().next();
    first.map(str::to_owned).context("there is no libfaketime: scripts/setup installs it")
}

async fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status().await?;
    if !status.success() {
        bail!("{program} {}: {status}", arguments.join(" "));
    }
    Ok(())
}
