//! A part of the faults that `scripts/faults` plays, against real processes in network namespaces: what CI has time for.

use cluster_tests::turn;
use std::{env, process::Command};

#[test]
fn faults_that_ci_plays() {
    let _turn = turn::take(module_path!());
    // In namespaces of its own, which a test's process cannot enter for itself alone.
    let status = Command::new(env!("CARGO_BIN_EXE_faults"))
        .arg("--ci")
        .env("PATH", format!("{}:/usr/sbin:/sbin", env::var("PATH").unwrap_or_default()))
        .status()
        .expect("it was built with the tests");
    assert!(status.success(), "faults: {status}; again: scripts/faults NAME");
}
