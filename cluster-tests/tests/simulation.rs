//! A sample of simulated runs. `ROOST_SIM_SEEDS` sets how many; `scripts/sim` runs as many as you like.

use std::{collections::BTreeMap, time::Instant};

use cluster_tests::sim;

/// About 20 s on one core of a small machine; without optimisation much fewer take as long.
const SEEDS: u64 = if cfg!(debug_assertions) { 100 } else { 2_000 };

/// Seeds that fail again where a mend is taken back, each with what it was. They are tied to how the simulation draws its
/// numbers: whoever changes that looks for new ones, by taking the mend back and running `scripts/sim --until-failure`.
const REGRESSIONS: &[(u64, &str)] = &[];

fn check(seed: u64, what: &str) -> BTreeMap<&'static str, u64> {
    let outcome = sim::run(seed, false);
    if let Some(violation) = outcome.violation {
        panic!("seed {seed} ({what}): {violation}\nagain, with every event: scripts/sim --seed {seed} --trace");
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
        for (what, count) in check(seed, "of the sample") {
            *counts.entry(what).or_insert(0) += count;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{seeds} runs in {seconds:.1} s: {:.1} runs/s", seeds as f64 / seconds);
    for (what, count) in &counts {
        println!("{count:>10} {what}");
    }
    if seeds < 100 {
        return;
    }
    // A world in which nothing happens proves nothing.
    for what in [
        "crashes",
        "pauses",
        "partitions",
        "link resets",
        "false suspicions",
        "drains",
        "store outages",
        "map conflicts",
        "map changes of unknown outcome",
        "stewards out of turn",
        "replication messages lost",
        "replication messages repeated",
        "take-overs",
        "hand-overs",
        "promotions",
        "slots started again",
        "publishes acknowledged",
        "deliveries",
        "resumes",
        "resets",
        "gaps",
        "attachments displaced",
        "sessions loaded",
        "sessions ended",
    ] {
        assert!(counts.contains_key(what), "no {what} in {seeds} runs");
    }
}

#[test]
fn what_was_mended_stays_mended() {
    for (seed, what) in REGRESSIONS {
        check(*seed, what);
    }
}

#[test]
fn a_seed_is_a_run() {
    for seed in 0..10 {
        let (first, second) = (sim::run(seed, false), sim::run(seed, true));
        assert_eq!((first.trace_hash, first.counts), (second.trace_hash, second.counts), "seed {seed}");
        assert_ne!(first.trace_hash, sim::run(seed + 1, false).trace_hash, "seeds {seed} and {}", seed + 1);
    }
}
