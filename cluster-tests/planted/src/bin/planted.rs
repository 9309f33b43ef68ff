//! Prints where each planted bug is found.
//!
//! `planted [--seeds N] [--seed FIRST] [--bug NAME] [--trace]`

use std::{process::ExitCode, time::Instant};

use planted_bugs::{find, run, table::TABLE};

/// What was asked for.
#[derive(Default)]
struct Arguments {
    seeds: Option<u64>,
    first: u64,
    bug: Option<String>,
    trace: bool,
}

impl Arguments {
    fn read(mut arguments: impl Iterator<Item = String>) -> Option<Self> {
        let mut read = Self::default();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--seeds" => read.seeds = Some(arguments.next()?.parse().ok()?),
                "--seed" => read.first = arguments.next()?.parse().ok()?,
                "--bug" => read.bug = Some(arguments.next()?),
                "--trace" => read.trace = true,
                _ => return None,
            }
        }
        Some(read)
    }
}

/// The same simulation over the copies without a bug, for whoever changes the simulator: it builds faster than the product.
#[expect(clippy::print_stdout, reason = "what the program is for")]
fn without(arguments: &Arguments) -> ExitCode {
    std::panic::set_hook(Box::new(|_| {}));
    let mut failed = 0;
    for seed in arguments.first..arguments.first.saturating_add(arguments.seeds.unwrap_or(1_000)) {
        if let Some(what) = run(seed, None, false).violation {
            failed += 1;
            println!("seed {seed}: {what}");
        }
    }
    println!("{failed} seeds failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "what the program is for")]
#[expect(clippy::disallowed_methods, reason = "tells how long it took")]
fn main() -> ExitCode {
    let Some(arguments) = Arguments::read(std::env::args().skip(1)) else {
        eprintln!("usage: planted [--seeds N] [--seed FIRST] [--bug NAME] [--trace]");
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
        let outcome = run(arguments.first, name, true);
        println!("{}{:?}", outcome.trace.unwrap_or_default(), outcome.violation);
        return ExitCode::SUCCESS;
    }
    std::panic::set_hook(Box::new(|_| {}));
    let start = Instant::now();
    let wanted = |bug: &planted_bugs::table::Planted| arguments.bug.as_ref().is_none_or(|name| name == bug.name);
    let found = find::find_all(arguments.first, arguments.seeds, wanted);
    print!("{}", find::table(&found));
    let missed = found.iter().filter(|found| found.violation.is_none()).count();
    println!("{} bugs, {missed} not found, {:.1} s", found.len(), start.elapsed().as_secs_f64());
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
