//! Looks for each bug of the table, and tells what came of it.

use std::{
    fmt::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::{
    sim::{self, Outcome, Schedule, Shrunk},
    table::{Planted, TABLE},
};

/// What came of one bug.
#[derive(Clone, Debug)]
pub struct Found {
    pub bug: &'static Planted,
    /// The first seed that found it.
    pub seed: u64,
    /// How many seeds were tried, this one among them.
    pub tried: u64,
    /// How many events happened in that run until it showed.
    pub events: u64,
    /// The violation's first line; nothing where no seed found it.
    pub violation: Option<String>,
}

/// Tries seeds from `first` on until one finds the bug; at most `most`, or what the table says.
pub fn find(bug: &'static Planted, first: u64, most: Option<u64>) -> Found {
    let most = most.unwrap_or(bug.seeds);
    for seed in first..first.saturating_add(most) {
        let outcome = crate::run(seed, Some(bug.name), false);
        // An assertion of the cores that fails is a way to find it.
        if let Some(what) = outcome.violation {
            let line = what.lines().next().unwrap_or("").to_owned();
            return Found { bug, seed, tried: seed - first + 1, events: outcome.events, violation: Some(line) };
        }
    }
    Found { bug, seed: first, tried: most, events: 0, violation: None }
}

/// Cuts down the run in which a bug was found; nothing where it was not.
pub fn shrink(found: &Found, runs: u32) -> Option<Shrunk> {
    found.violation.as_ref()?;
    let fails = |outcome: &Outcome| outcome.violation.is_some();
    crate::with(Some(found.bug.name), || sim::shrink(&Schedule::of(found.seed), runs, fails))
}

/// All that `wanted` lets through, as many at once as there are processors, in the order of the table.
pub fn find_all(first: u64, most: Option<u64>, wanted: impl Fn(&Planted) -> bool + Sync) -> Vec<Found> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(bug) = TABLE.get(next.fetch_add(1, Ordering::Relaxed)) {
            if wanted(bug) {
                let this = find(bug, first, most);
                found.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(this);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut found = found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    found.sort_by_key(|found| TABLE.iter().position(|bug| bug.name == found.bug.name));
    found
}

/// As a table for people.
pub fn table(found: &[Found]) -> String {
    let mut text = format!("{:<22} {:>6} {:>6} {:>8}  violation\n", "bug", "tried", "within", "events");
    for found in found {
        let Found { bug, tried, events, violation, .. } = found;
        let what = violation.as_deref().unwrap_or("NOT FOUND");
        let short: String = what.chars().take(150).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<22} {tried:>6} {:>6} {events:>8}  {short}", bug.name, bug.seeds);
        let _ = writeln!(text, "{:<22} {:>22}  ({})", "", "", bug.breaks);
    }
    text
}
