//! `roost bench` as its users run it, against a cluster of the real program.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use cluster_tests::{
    process::{Program, binary},
    turn,
};
use serde_json::Value;
use tokio::process::Command;

async fn bench(args: &[&str]) -> Result<Output> {
    Ok(Command::new(binary()?).arg("bench").args(args).kill_on_drop(true).output().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn scenarios_are_measured() -> Result<()> {
    let _turn = turn::take(module_path!());
    let program = Program::dev(2).await?;
    let urls = format!("{},{}", program.http_url(0), program.http_url(1));
    let page = program.data().join("bench.html");
    let path = page.to_str().context("a path of text")?;
    let sizes =
        ["--seconds", "1", "--members", "10", "--groups", "3", "--clients", "30", "--missed", "20", "--rate", "100"];
    let given = ["cluster", "latency", "connect", "idle", "resume", "--json", "--urls", &urls, "--html", path];
    let output = bench(&[&given[..], &sizes[..]].concat()).await?;
    let (text, errors) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    ensure!(output.status.success(), "{errors}\n{text}");
    let reports: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let names: Vec<&str> = reports.iter().filter_map(|report| report["plan"]["scenario"].as_str()).collect();
    ensure!(names == ["cluster", "latency", "connect", "idle", "resume"], "{names:?}");
    for report in &reports {
        ensure!(report["pids"] == serde_json::json!([program.id()]), "found other processes: {report}");
        for fault in ["missing", "repeats", "disorder", "holes", "refused", "unanswered"] {
            ensure!(report["faults"][fault] == 0, "{fault}: {report}");
        }
    }
    let number = |at: usize, name: &str| reports[at].pointer(name).and_then(Value::as_f64).unwrap_or(-1.0);
    // Ten members get each message, also of what is cut off by the ends of the second.
    ensure!(number(0, "/deliveries") > number(0, "/answered") && number(0, "/cpu_us_each") > 0.0, "{}", reports[0]);
    // The publisher of a group is on another node than the others, and is not timed.
    ensure!((80.0..=1_000.0).contains(&number(1, "/latency/count")), "{}", reports[1]);
    ensure!(number(1, "/latency/p50_us") > 0.0 && number(1, "/latency/p99_us") >= number(1, "/latency/p50_us"));
    ensure!(number(2, "/clients") == 30.0 && number(2, "/latency/count") == 30.0, "{}", reports[2]);
    ensure!(number(3, "/cores") >= 0.0 && reports[3]["memory_each"].is_number(), "{}", reports[3]);
    ensure!(number(4, "/clients") == 30.0 && number(4, "/deliveries") == 600.0, "{}", reports[4]);
    let html = tokio::fs::read_to_string(&page).await?;
    ensure!(html.matches("<svg").count() >= 5 && html.contains("resume: 30 clients"), "{html}");
    program.shut_down().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_measured_is_said() -> Result<()> {
    let _turn = turn::take(module_path!());
    let nobody = "http://127.0.0.1:1";
    for (args, expected) in [
        (&["fanout", "--members", "10", "--urls", nobody][..], "cannot be reached"),
        (&["fanout", "--members", "1"], "at least two members"),
        (&["cluster", "--urls", nobody], "several nodes"),
        (&["connect", "--clients", "4000000000", "--urls", nobody], "open files"),
        (&["connect", "--urls", "https://127.0.0.1"], "TLS is not spoken"),
        (&["connect", "--urls", nobody, "--pid", "4294967295"], "not there"),
    ] {
        let output = bench(args).await?;
        let errors = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(1) && errors.contains(expected), "{args:?}: {errors}");
    }
    Ok(())
}
