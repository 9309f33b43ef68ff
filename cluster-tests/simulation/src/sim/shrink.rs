//! From a failing run to one that fails with less: fewer faults, smaller settings, fewer events. Whatever still breaks a
//! promise is kept, be it another one. Faults go by halves, quarters and so on down to single ones (delta debugging:
//! Zeller, Hildebrandt, 2002).

use std::collections::BTreeSet;

use super::{
    schedule::Schedule,
    settings::{SETTINGS, Setting},
    world::Outcome,
};

/// Leaving something out changes when all the rest happens, so each candidate is tried with this number of streams of chance.
const NOISES: u64 = 16;
/// And the last one with this number, for the fewest events.
const LAST_NOISES: u64 = 40;
/// Then single faults once more.
const LAST_RUNS: u32 = 200;

/// What a failing run came down to.
#[derive(Clone, Debug)]
pub struct Shrunk {
    /// What is left.
    pub schedule: Schedule,
    /// How that goes.
    pub outcome: Outcome,
    /// How many faults happened in the run as it was.
    pub faults_before: usize,
    /// How many events that had.
    pub events_before: u64,
    /// How many runs it took.
    pub runs: u32,
}

impl Shrunk {
    /// For people: what is left, and how to see it again; `command` is what runs a schedule.
    pub fn report(&self, command: &str) -> String {
        let Self { schedule, outcome, faults_before, events_before, runs } = self;
        let mut lines = vec![format!(
            "shrunk in {runs} runs: {} of {faults_before} faults, {} of {events_before} events",
            outcome.faults.len(),
            outcome.events
        )];
        lines.push(format!("fails {}", outcome.violation.as_deref().unwrap_or("no more")));
        let faults =
            outcome.faults.iter().map(|fault| format!("{:>6} ms fault {}: {}", fault.at_ms, fault.number, fault.what));
        lines.extend(faults);
        lines.push(format!("its trace: {command} {schedule} --trace"));
        lines.join("\n    ")
    }
}

/// Cuts a failing run down in about `runs` runs; nothing where it does not fail. `fails` says which outcomes count.
pub fn shrink(schedule: &Schedule, runs: u32, fails: impl Fn(&Outcome) -> bool) -> Option<Shrunk> {
    let outcome = schedule.run(false);
    if !fails(&outcome) {
        return None;
    }
    let (faults_before, events_before) = (outcome.faults.len(), outcome.events);
    // Fewer faults may take longer to break something.
    let mut search =
        Search { best: schedule.clone(), outcome, events_max: events_before * 2, runs: 0, runs_max: runs, fails };
    search.all();
    let Search { best, outcome, runs, .. } = search;
    Some(Shrunk { schedule: best, outcome, faults_before, events_before, runs })
}

struct Search<F> {
    best: Schedule,
    /// Of the best.
    outcome: Outcome,
    events_max: u64,
    runs: u32,
    runs_max: u32,
    fails: F,
}

impl<F: Fn(&Outcome) -> bool> Search<F> {
    fn all(&mut self) {
        self.only_what_happened();
        self.kinds();
        let mut before = None;
        while before.as_ref() != Some(&self.best) && self.runs < self.runs_max {
            before = Some(self.best.clone());
            self.settings();
            self.faults();
        }
        for noise in 0..LAST_NOISES {
            let candidate = Schedule { noise, ..self.best.clone() };
            let outcome = self.run(&candidate);
            if (self.fails)(&outcome) && outcome.events < self.outcome.events {
                (self.best, self.outcome) = (candidate, outcome);
            }
        }
        (self.events_max, self.runs_max) = (self.outcome.events, self.runs + LAST_RUNS);
        self.only_what_happened();
        self.faults();
    }

    fn run(&mut self, candidate: &Schedule) -> Outcome {
        self.runs += 1;
        candidate.run_at_most(self.events_max)
    }

    /// Takes the candidate in place of the best if it fails, with this noise or another one, and soon enough.
    fn try_this(&mut self, candidate: &Schedule) -> bool {
        if *candidate == self.best {
            return false;
        }
        let first = self.best.noise;
        for noise in std::iter::once(first).chain((0..NOISES).filter(|noise| *noise != first)) {
            if self.runs >= self.runs_max {
                return false;
            }
            let candidate = Schedule { noise, ..candidate.clone() };
            let outcome = self.run(&candidate);
            if (self.fails)(&outcome) {
                (self.best, self.outcome) = (candidate, outcome);
                return true;
            }
        }
        false
    }

    fn happened(&self) -> Vec<usize> {
        self.outcome.faults.iter().map(|fault| fault.number).collect()
    }

    fn with_faults(&self, faults: impl IntoIterator<Item = usize>) -> Schedule {
        Schedule { faults: Some(faults.into_iter().collect()), ..self.best.clone() }
    }

    /// Faults that came to nothing, or after the violation.
    fn only_what_happened(&mut self) {
        let candidate = self.with_faults(self.happened());
        self.try_this(&candidate);
    }

    /// Whole kinds of faults.
    fn kinds(&mut self) {
        let kinds: BTreeSet<_> = self.outcome.faults.iter().map(|fault| fault.kind.clone()).collect();
        for kind in kinds {
            let others = self.outcome.faults.iter().filter(|fault| fault.kind != kind).map(|fault| fault.number);
            let candidate = self.with_faults(others.collect::<Vec<_>>());
            self.try_this(&candidate);
        }
    }

    fn settings(&mut self) {
        for setting in SETTINGS {
            self.setting(setting);
        }
    }

    /// The least, or else as little as halving what is between comes to.
    fn setting(&mut self, setting: &Setting) {
        let mut low = setting.least;
        loop {
            let now = (setting.get)(&self.best.profile());
            if now <= low {
                return;
            }
            let value = if low == setting.least { low } else { low + (now - low) / 2 };
            let mut candidate = self.best.clone();
            candidate.set.insert(setting.name, value);
            if !self.try_this(&candidate) {
                // At the second failure the rest is not worth its runs.
                if low > setting.least {
                    return;
                }
                low += 1;
            } else if value == setting.least {
                return;
            }
        }
    }

    /// Single faults, from large parts to small ones.
    fn faults(&mut self) {
        let mut part = self.happened().len().div_ceil(2);
        while part > 0 {
            let mut start = 0;
            loop {
                let faults = self.happened();
                if start >= faults.len() {
                    break;
                }
                let end = (start + part).min(faults.len());
                let candidate = self.with_faults(faults[..start].iter().chain(&faults[end..]).copied());
                if !self.try_this(&candidate) {
                    start = end;
                }
            }
            part = if part == 1 { 0 } else { part.div_ceil(2) };
        }
    }
}
