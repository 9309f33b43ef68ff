//! Runs the simulation for many seeds, or for one with every event in words.
//!
//! `sim [--seeds N] [--seed FIRST] [--trace]`

use std::{collections::BTreeMap, process::ExitCode};

use cluster_tests::sim;

#[expect(clippy::print_stdout, reason = "what the program is for")]
#[expect(clippy::disallowed_methods, reason = "tells how fast it is")]
fn main() -> ExitCode {
    let (mut seeds, mut first, mut trace) = (1_000, 0, false);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|text| text.parse().ok());
        match (argument.as_str(), &mut seeds, &mut first) {
            ("--trace", ..) => trace = true,
            ("--seeds", into, _) | ("--seed", _, into) => match number() {
                Some(value) => *into = value,
                None => return usage(),
            },
            _ => return usage(),
        }
    }
    if trace {
        seeds = 1;
    } else {
        // Panics are reported with their seed.
        std::panic::set_hook(Box::new(|_| {}));
    }
    let start = std::time::Instant::now();
    let mut counts = BTreeMap::new();
    let mut failed = 0;
    for seed in first..first + seeds {
        let outcome = sim::run(seed, trace);
        for (what, count) in outcome.counts {
            *counts.entry(what).or_insert(0) += count;
        }
        print!("{}", outcome.trace.unwrap_or_default());
        if let Some(violation) = outcome.violation {
            failed += 1;
            println!("seed {seed}: {violation}\n    again: scripts/sim --seed {seed} --trace");
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    for (what, count) in counts {
        println!("{count:>10} {what}");
    }
    println!("{seeds} seeds in {seconds:.1} s ({:.1} runs/s), {failed} failed", seeds as f64 / seconds);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stderr, reason = "what the program is for")]
fn usage() -> ExitCode {
    eprintln!("usage: sim [--seeds N] [--seed FIRST] [--trace]");
    ExitCode::FAILURE
}
