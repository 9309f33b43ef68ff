//! What the OpenAPI document says, tried by a tool that nobody here wrote: it makes requests by the document, valid and not,
//! and looks whether the node answers as the document says.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, Result, ensure};
use cluster_tests::{api::KEY, process::Program, turn};
use tokio::process::Command;

const LIMIT: Duration = Duration::from_secs(300);

/// No 5xx, no answer of another shape than the document's, no request that the document allows and the node refuses, none
/// that it forbids and the node takes. Draining is left out: the node would be gone. So are
/// events: their answers have no end.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_does_what_its_document_says() -> Result<()> {
    let _turn = turn::take(module_path!());
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tool = here.join("../target/venv/bin/schemathesis");
    ensure!(tool.is_file(), "{} is missing: scripts/setup installs it", tool.display());
    let program = Program::dev(1).await?;
    let running = Command::new(&tool)
        .arg("--config-file")
        .arg(here.join("clients/schemathesis.toml"))
        .args(["run", &format!("{}/openapi.json", program.http_url(0)), "-H", &format!("X-API-Key: {KEY}")])
        // Names are generated in ASCII, since their lengths are told in characters and counted in bytes.
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", "20", "--generation-codec", "ascii"])
        .args(["--exclude-path-regex", "/(drain|events)$", "--continue-on-failure", "--no-color", "--seed", "1"])
        .current_dir(program.data())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LIMIT, running).await.context("it takes too long")??;
    let (told, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{}: {told}\n{complained}", output.status);
    let cases = told.lines().find(|line| line.contains("generated")).context("it says how many cases it made")?;
    println!("{}", cases.trim());
    let status = program.shut_down().await?;
    ensure!(status.success(), "the program ended with {status}");
    Ok(())
}
