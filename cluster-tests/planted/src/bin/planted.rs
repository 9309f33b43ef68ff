//! Prints where each planted bug is found.
//!
//! `planted [--seeds N] [--seed FIRST] [--bug NAME] [--shrink] [--trace [--only …] [--set …] [--noise N]]`

use std::{collections::BTreeMap, process::ExitCode, time::Instant};

use planted_bugs::{find, run, sim::Schedule, table::TABLE, with};

/// To shrink one failure.
const SHRINK_RUNS: u32 = 1_500;

/// What was asked for.
struct Arguments {
    seeds: Option<u64>,
    schedule: Schedule,
    bug: Option<String>,
    shrink: bool,
    trace: bool,
}

impl Arguments {
    fn read(mut arguments: impl Iterator<Item = String>) -> Option<Self> {
        let mut read = Self { seeds: None, schedule: Schedule::of(0), bug: None, shrink: false, trace: false };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--seeds" => read.seeds = Some(arguments.next()?.parse().ok()?),
                "--bug" => read.bug = Some(arguments.next()?),
                "--shrink" => read.shrink = true,
                "--trace" => read.trace = true,
                name => {
                    let value = arguments.next()?;
                    read.schedule.read(name, &value).then_some(())?;
                }
            }
        }
        Some(read)
    }
}

/// The same simulation over the copies without a bug, for whoever changes the simulator: it builds faster than the product.
#[expect(clippy::print_stdout, reason = "what the program is for")]
fn without(arguments: &Arguments) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let (mut failed, mut counts) = (0, BTreeMap::new());
    let first = arguments.schedule.seed;
    for seed in first..first.saturating_add(arguments.seeds.unwrap_or(1_000)) {
        let outcome = run(seed, None, false);
        for (what, count) in outcome.counts {
            *counts.entry(what).or_insert(0) += count;
        }
        if let Some(what) = outcome.violation {
            failed += 1;
            println!("seed {seed}: {what}");
        }
    }
    for (what, count) in counts {
        println!("{count:>10} {what}");
    }
    println!("{failed} seeds failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what the program is for")]
#[expect(clippy::disallowed_methods, reason = "tells how long it took")]
fn main() -> ExitCode {
    let Some(arguments) = Arguments::read(std::env::args().skip(1)) else {
        eprintln!(
            "usage: planted [--seeds N] [--seed FIRST] [--bug NAME] [--shrink] [--trace [--only …] [--set …] [--noise N]]"
        );
        return ExitCode::FAILURE;
    };
    if arguments.bug.as_deref() == Some("none") && !arguments.trace {
        return without(&arguments);
    }
    if arguments.bug.as_deref() != Some("none")
        && !TABLE.iter().any(|bug| arguments.bug.as_ref().is_none_or(|name| name == bug.name))
    {
        let names: Vec<_> = TABLE.iter().map(|bug| bug.name).collect();
        eprintln!("no such bug; there are {}", names.join(", "));
        return ExitCode::FAILURE;
    }
    if arguments.trace {
        let name = TABLE.iter().map(|bug| bug.name).find(|name| Some(*name) == arguments.bug.as_deref());
        let outcome = with(name, || arguments.schedule.run(true));
        println!("{}{:?}", outcome.trace.unwrap_or_default(), outcome.violation);
        return ExitCode::SUCCESS;
    }
    std::panic::set_hook(Box::new(|_| {}));
    let start = Instant::now();
    let wanted = |bug: &planted_bugs::table::Planted| arguments.bug.as_ref().is_none_or(|name| name == bug.name);
    let found = find::find_all(arguments.schedule.seed, arguments.seeds, wanted);
    print!("{}", find::table(&found));
    for found in found.iter().filter(|_| arguments.shrink) {
        if let Some(shrunk) = find::shrink(found, SHRINK_RUNS) {
            println!("{}", shrunk.report(&format!("scripts/sim --planted --bug {}", found.bug.name)));
        }
    }
    let missed = found.iter().filter(|found| found.violation.is_none()).count();
    println!("{} bugs, {missed} not found, {:.1} s", found.len(), start.elapsed().as_secs_f64());
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
