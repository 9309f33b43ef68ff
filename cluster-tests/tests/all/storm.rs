//! A thousand clients lose their node at once, killed or drained, and come back to the others: nothing is missing, nothing
//! comes out of order, nobody is reset. `scripts/storm` does the same with ten times as many, and measures.

use anyhow::{Result, ensure};
use cluster_tests::{
    storm::{self, Plan, Report},
    turn,
};
use tokio::sync::Mutex;

/// One test at a time: each has the machine for itself.
static MACHINE: Mutex<()> = Mutex::const_new(());

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_all_clients_is_killed() -> Result<()> {
    let _turn = turn::take(module_path!());
    storm(false, &[]).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_all_clients_is_drained() -> Result<()> {
    let _turn = turn::take(module_path!());
    storm(true, &[]).await.map(drop)
}

/// So few are taken a second that most are refused at first.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_are_refused_come_back() -> Result<()> {
    let _turn = turn::take(module_path!());
    let report = storm(false, &[("limits.connects_per_s", "200")]).await?;
    ensure!(report.refused > 0, "none was refused");
    Ok(())
}

async fn storm(drain: bool, overrides: &[(&str, &str)]) -> Result<Report> {
    let _machine = MACHINE.lock().await;
    let overrides = overrides.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let generator = env!("CARGO_BIN_EXE_storm").into();
    let plan = Plan { generator, clients: 1_000, groups: 20, rate: 50, drain, overrides };
    let report = storm::run(&plan).await?;
    eprintln!("{report}");
    report.verdict()?;
    Ok(report)
}
