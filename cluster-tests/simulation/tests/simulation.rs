//! A sample of simulated runs. `ROOST_SIM_SEEDS` sets how many; `scripts/sim` runs as many as you like.

use std::{collections::BTreeMap, time::Instant};

use roost_simulation::sim::{self, Schedule};

/// About 20 s on one core of a small machine; without optimisation much fewer take as long.
const SEEDS: u64 = if cfg!(debug_assertions) { 100 } else { 2_000 };

/// To cut a failing run down.
const SHRINK_RUNS: u32 = 500;

fn check(seed: u64) -> BTreeMap<&'static str, u64> {
    let schedule = Schedule::of(seed);
    let outcome = schedule.run(false);
    if let Some(violation) = outcome.violation {
        let shrunk = sim::shrink(&schedule, SHRINK_RUNS, |outcome| outcome.violation.is_some());
        let shrunk = shrunk.map(|shrunk| shrunk.report("scripts/sim")).unwrap_or_default();
        panic!("seed {seed}: {violation}\nagain, with every event: scripts/sim {schedule} --trace\n{shrunk}");
    }
    outcome.counts
}

#[test]
#[expect(clippy::disallowed_methods, reason = "tells how fast it is")]
fn every_promise_holds_for_a_sample_of_seeds() {
    let seeds = std::env::var("ROOST_SIM_SEEDS").map_or(SEEDS, |text| text.parse().expect("ROOST_SIM_SEEDS: a number"));
    let start = Instant::now();
    let mut counts = BTreeMap::new();
    for seed in 0..seeds {
        for (what, count) in check(seed) {
            *counts.entry(what).or_insert(0) += count;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{seeds} runs in {seconds:.1} s: {:.1} runs/s", seeds as f64 / seconds);
    for (what, count) in &counts {
        println!("{count:>10} {what}");
    }
    if seeds >= 100 {
        let never: Vec<_> = sim::COVERAGE.iter().filter(|what| counts[*what] == 0).collect();
        assert!(never.is_empty(), "in {seeds} runs there were no {never:?}");
    }
}

#[test]
fn a_seed_is_a_run() {
    for seed in 0..10 {
        let (first, second) = (sim::run(seed, true), sim::run(seed, true));
        assert!(first.trace.is_some() && first.trace == second.trace, "seed {seed}");
        assert_eq!((first.trace_hash, first.counts), (second.trace_hash, second.counts), "seed {seed}");
        assert_eq!(first.trace_hash, sim::run(seed, false).trace_hash, "seed {seed}: tracing changes it");
        assert_ne!(first.trace_hash, sim::run(seed + 1, false).trace_hash, "seeds {seed} and {}", seed + 1);
    }
}
