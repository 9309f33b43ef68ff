//! Runs the simulation for many seeds, or for one with every event in words. The first failures are cut down to what they
//! need.
//!
//! `sim [--seeds N] [--seed FIRST] [--until-failure] [--trace [--only FAULTS] [--set SETTINGS] [--noise N]]`

use std::{collections::BTreeMap, process::ExitCode, time::Instant};

use roost_simulation::sim::{self, Outcome, Schedule};

/// Failures that are cut down, and runs for each: some ten seconds.
const SHRINK: u32 = 3;
const SHRINK_RUNS: u32 = 1_500;

/// What was asked for.
struct Arguments {
    seeds: u64,
    schedule: Schedule,
    until_failure: bool,
    trace: bool,
}

impl Arguments {
    fn read(mut arguments: impl Iterator<Item = String>) -> Option<Self> {
        let mut read = Self { seeds: 1_000, schedule: Schedule::of(0), until_failure: false, trace: false };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--seeds" => read.seeds = arguments.next()?.parse().ok()?,
                "--until-failure" => read.until_failure = true,
                "--trace" => (read.trace, read.seeds) = (true, 1),
                name => {
                    let value = arguments.next()?;
                    read.schedule.read(name, &value).then_some(())?;
                }
            }
        }
        Some(read)
    }
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what the program is for")]
#[expect(clippy::disallowed_methods, reason = "tells how fast it is")]
fn main() -> ExitCode {
    let Some(arguments) = Arguments::read(std::env::args().skip(1)) else {
        eprintln!(
            "usage: sim [--seeds N] [--seed FIRST] [--until-failure] [--trace [--only FAULTS] [--set SETTINGS] [--noise N]]"
        );
        return ExitCode::FAILURE;
    };
    if !arguments.trace {
        // A panic is reported with its seed; the trace shows where it was.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let start = Instant::now();
    let mut counts = BTreeMap::new();
    let (mut done, mut failed) = (0_u32, 0_u32);
    let first = arguments.schedule.seed;
    for seed in first..first.saturating_add(arguments.seeds) {
        let schedule = Schedule { seed, ..arguments.schedule.clone() };
        let outcome = schedule.run(arguments.trace);
        done += 1;
        for (what, count) in outcome.counts {
            *counts.entry(what).or_insert(0) += count;
        }
        print!("{}", outcome.trace.unwrap_or_default());
        if let Some(violation) = outcome.violation {
            failed += 1;
            println!("seed {seed}: {violation}\n    again: scripts/sim {schedule} --trace");
            if !arguments.trace && failed <= SHRINK {
                shrink(&schedule);
            }
            if arguments.until_failure {
                break;
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    for (what, count) in counts {
        println!("{count:>10} {what}");
    }
    println!("{done} seeds in {seconds:.1} s ({:.1} runs/s), {failed} failed", f64::from(done) / seconds);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "what the program is for")]
fn shrink(schedule: &Schedule) {
    let fails = |outcome: &Outcome| outcome.violation.is_some();
    if let Some(shrunk) = sim::shrink(schedule, SHRINK_RUNS, fails) {
        println!("    {}", shrunk.report("scripts/sim"));
    }
}
