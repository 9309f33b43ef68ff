//! Our own clients, for JavaScript and for Python: the same scenarios against real nodes, and what their compilers
//! say.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    cluster::Cluster,
    jwt,
    scenarios::{Puppet, Scenario},
    turn,
};
use tokio::{io::AsyncWriteExt, process::Command};

use super::elsewhere::{clients, node, python, repository};

/// Silence is noticed soon, and of `short:…` little is kept.
const SETTINGS: [(&str, &str); 5] = [
    ("ROOST_JWT__SECRETS__MAIN", jwt::SECRET),
    ("ROOST_JWT__LEEWAY_S", "0"),
    ("ROOST_LIMITS__HEARTBEAT_S", "2"),
    ("ROOST_LIMITS__IDLE_S", "60"),
    ("ROOST_NAMESPACES__SHORT__HISTORY_MESSAGES", "5"),
];

#[tokio::test(flavor = "multi_thread")]
async fn scenarios_in_javascript() -> Result<()> {
    let _turn = turn::take(module_path!());
    scenarios(&node()?, "puppet.mjs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn scenarios_in_python() -> Result<()> {
    let _turn = turn::take(module_path!());
    scenarios(&python()?, "puppet.py").await
}

/// All of them, or those that `ROOST_SCENARIO` names.
async fn scenarios(interpreter: &Path, puppet: &str) -> Result<()> {
    let wanted = std::env::var("ROOST_SCENARIO").unwrap_or_default();
    let mut cluster = Cluster::program_with(3, &SETTINGS).await?;
    let mut puppet = Puppet::start(interpreter, &clients().join(puppet))?;
    let mut played = 0;
    for scenario in Scenario::all(&repository().join("node/clients/scenarios"))? {
        if wanted.is_empty() || wanted.split(',').any(|wanted| wanted == scenario.name) {
            let began_ms = roost::clock::mono_ms();
            scenario.play(&mut puppet, &mut cluster).await?;
            eprintln!("{}: {} ms", scenario.name, roost::clock::mono_ms() - began_ms);
            played += 1;
        }
    }
    ensure!(played > 0, "there is no scenario {wanted}");
    ensure!(puppet.complaints().is_empty(), "{:#?}", puppet.complaints());
    cluster.shut_down().await
}

/// For a compiler, or a program of a document.
const LIMIT: Duration = Duration::from_secs(120);

/// The largest that the client for JavaScript may be, as browsers get it from a server that compresses.
const GZIPPED_MAX_BYTES: usize = 6 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn types_are_right_and_the_client_is_small() -> Result<()> {
    let _turn = turn::take(module_path!());
    let js = repository().join("node/clients/js");
    let tsc = clients().join("node_modules/.bin/tsc");
    run(&tsc, &["-p", "."], &js, &[], "").await.context("tsc on the client for JavaScript")?;
    let size = "console.log(require('zlib').gzipSync(require('fs').readFileSync('roost.js'), { level: 9 }).length)";
    let size: usize = run(&node()?, &["-e", size], &js, &[], "").await?.trim().parse()?;
    ensure!(size < GZIPPED_MAX_BYTES, "the client for JavaScript has {size} bytes");
    let python_client = repository().join("node/clients/python");
    let cache = tempfile::tempdir()?;
    let cache = cache.path().to_string_lossy();
    let mypy = ["-m", "mypy", "--strict", "--cache-dir", &cache, "roost_client"];
    run(&python()?, &mypy, &python_client, &[], "").await.context("mypy on the client for Python")?;
    Ok(())
}

/// A loop that reads nothing for a while, of a group with more than may wait for it, gets everything all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_loop_in_python() -> Result<()> {
    let _turn = turn::take(module_path!());
    let cluster = Cluster::program_with(3, &SETTINGS).await?;
    let path = [("PYTHONPATH", repository().join("node/clients/python"))];
    let (first, second) = (cluster.url(0), cluster.url(1));
    let told = run(&python()?, &["slow_loop.py", &first, &second], &clients(), &path, "").await?;
    ensure!(told.trim() == "200 messages", "{told}");
    cluster.shut_down().await
}

/// Runs a program in a folder with this input, and gives what it prints.
pub(crate) async fn run(
    program: &Path,
    arguments: &[&str],
    folder: &Path,
    variables: &[(&str, PathBuf)],
    input: &str,
) -> Result<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {}", program.display()))?;
    let mut stdin = child.stdin.take().context("it has an input")?;
    stdin.write_all(input.as_bytes()).await?;
    drop(stdin);
    let output = tokio::time::timeout(LIMIT, child.wait_with_output()).await.context("it takes too long")??;
    let (told, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{input}\nended with {}: {told}\n{complained}", output.status);
    Ok(told.into_owned())
}
