//! Cuts thousands of clients off at once and tells how long it takes until they are caught up on the other nodes.
//!
//! `storm [--clients N] [--groups N] [--rate PER_S] [--drain] [--set KEY=VALUE]…`

use std::{env, process::ExitCode};

use anyhow::{Context, Result};
use cluster_tests::storm::{self, Plan, generator};

fn read(mut arguments: impl Iterator<Item = String>) -> Result<Plan> {
    let generator = env::current_exe()?;
    let overrides = Vec::new();
    let mut plan = Plan { generator, clients: 10_000, groups: 100, rate: 50, drain: false, overrides };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} wants a value"));
        match argument.as_str() {
            "--clients" => plan.clients = value()?.parse()?,
            "--groups" => plan.groups = value()?.parse()?,
            "--rate" => plan.rate = value()?.parse()?,
            "--drain" => plan.drain = true,
            "--set" => {
                let setting = value()?;
                let (key, value) = setting.split_once('=').context("--set wants KEY=VALUE")?;
                plan.overrides.push((key.to_owned(), value.to_owned()));
            }
            _ => anyhow::bail!(
                "usage: storm [--clients N] [--groups N] [--rate PER_S] [--drain] [--set KEY=VALUE]…; not {argument}"
            ),
        }
    }
    Ok(plan)
}

fn run() -> Result<()> {
    let mut arguments = env::args().skip(1).peekable();
    if arguments.peek().is_some_and(|first| first == generator::COMMAND) {
        // One thread: the nodes need the others.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        return runtime.block_on(generator::serve());
    }
    let plan = read(arguments)?;
    let report = tokio::runtime::Runtime::new()?.block_on(storm::run(&plan))?;
    print(&report);
    report.verdict()
}

#[expect(clippy::print_stdout, reason = "what the program is for")]
fn print(report: &storm::Report) {
    println!("{report}");
}

#[expect(clippy::print_stderr, reason = "what the program is for")]
fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
