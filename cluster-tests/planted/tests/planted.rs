//! Every planted bug is found, and without a bug the copies do what the originals do.

use planted_bugs::{find, run};

#[test]
fn every_bug_is_found() {
    if cfg!(debug_assertions) {
        // Without optimisation it takes minutes; scripts/check builds with it.
        return;
    }
    std::panic::set_hook(Box::new(|_| {}));
    let found = find::find_all(0, None, |_| true);
    println!("{}", find::table(&found));
    let missed: Vec<_> = found.iter().filter(|found| found.violation.is_none()).map(|found| found.bug.name).collect();
    assert!(missed.is_empty(), "the simulator is blind to {}", missed.join(", "));
}

#[test]
fn without_a_bug_the_copies_are_the_originals() {
    for seed in 0..5 {
        let (copy, original) = (run(seed, None, false), cluster_tests::sim::run(seed, false));
        assert_eq!((copy.trace_hash, copy.counts), (original.trace_hash, original.counts), "seed {seed}");
    }
}
