//! Every planted bug is found, and without a bug the copies do what the originals do.

use planted_bugs::{find, run, sim::Schedule, table::TABLE, with};

/// Seeds that found a bug which was mended since, by the name under which it is planted again. They are tied to how the
/// simulation draws its numbers: whoever changes that looks for new ones, by `scripts/sim --planted --bug NAME`.
const REGRESSIONS: [(&str, u64); 7] = [
    ("ForgetsWhoIsOpen", 632),
    ("TrustsTheSuspicion", 9),
    ("AnswersTheSecondEnd", 40),
    ("ReconcilesInSteps", 275),
    ("ForgetsAtOnce", 99),
    ("AnswersOfTheForgotten", 1797),
    ("UndoesTooEarly", 804),
];

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
fn what_was_mended_stays_mended() {
    for (name, seed) in REGRESSIONS {
        let with_it = run(seed, Some(name), false);
        assert!(with_it.violation.is_some() && !with_it.panicked, "seed {seed} does not show {name} any more");
        assert_eq!(run(seed, None, false).violation, None, "seed {seed}: {name}");
    }
}

#[test]
fn without_a_bug_the_copies_are_the_originals() {
    for seed in 0..5 {
        let (copy, original) = (run(seed, None, false), roost_simulation::sim::run(seed, false));
        assert_eq!((copy.trace_hash, copy.counts), (original.trace_hash, original.counts), "seed {seed}");
    }
}

#[test]
fn a_failure_is_cut_down_to_what_it_needs() {
    for name in ["CommitsByTheFirst", "KeepsItsSuffix", "DisplacesLazily"] {
        let bug = TABLE.iter().find(|bug| bug.name == name).expect("a bug of the table");
        // Not from seed 0: a run as short as its own says little of how much can go.
        let found = find::find(bug, 1, None);
        let shrunk = find::shrink(&found, 1_500).unwrap_or_else(|| panic!("{name} is not found"));
        println!("{name}: {}", shrunk.report("scripts/sim"));
        let (faults, events) = (shrunk.outcome.faults.len(), shrunk.outcome.events);
        assert!(faults * 3 <= shrunk.faults_before && events * 2 <= shrunk.events_before, "{name}: {shrunk:?}");
        // What is printed is all that it takes to see it again.
        let mut again = Schedule::of(0);
        let words = shrunk.schedule.to_string();
        let words: Vec<_> = words.split(' ').collect();
        assert!(words.chunks(2).all(|pair| again.read(pair[0], pair[1])), "{words:?}");
        let outcome = with(Some(name), || again.run(true));
        assert_eq!((&outcome.violation, outcome.events), (&shrunk.outcome.violation, events), "{name}");
        assert!(outcome.violation.is_some() && outcome.trace.is_some());
        assert_eq!(again.run(false).violation, None, "{name}: it fails without the bug");
    }
}
