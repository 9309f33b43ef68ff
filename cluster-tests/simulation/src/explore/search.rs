//! Breadth first through all states, with the shortest way to each.

use std::{
    collections::{VecDeque, hash_map::Entry},
    fmt,
};

use super::{
    Scope, starts,
    table::Numbers,
    trace,
    world::{Action, State, World},
};

/// What was explored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Different states.
    pub states: usize,
    /// Steps from one state to another, or to the same by another way.
    pub steps: u64,
    /// The longest of the shortest ways.
    pub depth: usize,
    /// Different states of one member's copy, over all states.
    pub copies: usize,
    /// Different frames.
    pub frames: usize,
    /// Steps that the code made. All other steps repeat one of these.
    pub code_steps: usize,
    /// Whether there is no state beyond these in the scope.
    pub complete: bool,
    /// What is wrong, if anything is.
    pub found: Option<Found>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { states, steps, depth, copies, code_steps, .. } = self;
        write!(
            f,
            "{states} states, {steps} steps, depth {depth}; {copies} states of a copy, {code_steps} steps of the code"
        )?;
        match &self.found {
            Some(found) => write!(f, "; after {} steps: {found}", found.trace.len()),
            None if self.complete => f.write_str("; all of it holds"),
            None => f.write_str("; NOT COMPLETE, what was seen holds"),
        }
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.violation)?;
        self.trace.iter().enumerate().try_for_each(|(at, line)| write!(f, "\n{:>6}. {line}", at + 1))
    }
}

/// A violation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// What does not hold.
    pub violation: String,
    /// The shortest way there, a line for each step.
    pub trace: Vec<String>,
}

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Progress {
    /// Different states.
    pub states: usize,
    /// Those whose next states are not known yet.
    pub waiting: usize,
    /// How many steps away the last one is.
    pub depth: usize,
}

/// Between two calls of `progress`.
const STATES_A_PROGRESS: usize = 100_000;

struct Search {
    world: World,
    /// Each state's number.
    numbers: Numbers<State, u32>,
    /// The state from which it was reached first, by its number. The first one's is its own.
    parents: Vec<u32>,
    waiting: VecDeque<(State, u32, usize)>,
    steps: u64,
    depth: usize,
}

/// Explores a scope to its end, or to the first violation. `progress` is called now and then.
pub fn explore(scope: Scope, mut progress: impl FnMut(Progress)) -> Report {
    let mut world = World::new(scope);
    let start = starts::start(&mut world);
    let mut search = Search {
        world,
        numbers: Numbers::default(),
        parents: Vec::new(),
        waiting: VecDeque::new(),
        steps: 0,
        depth: 0,
    };
    let start = match start {
        Ok(start) => start,
        Err(violation) => return search.report(Some(Found { violation, trace: Vec::new() })),
    };
    search.reached(start.clone(), 0, 0);
    let mut successors = Vec::new();
    while let Some((state, number, depth)) = search.waiting.pop_front() {
        if search.parents.len() >= scope.states {
            search.waiting.push_front((state, number, depth));
            break;
        }
        search.depth = depth;
        search.world.successors(&state, &mut successors);
        for (action, next) in successors.drain(..) {
            search.steps += 1;
            match next {
                Ok(next) => search.reached(next, number, depth + 1),
                Err(violation) => {
                    let trace = search.trace(&start, number, action);
                    return search.report(Some(Found { violation, trace }));
                }
            }
        }
        if number as usize % STATES_A_PROGRESS == STATES_A_PROGRESS - 1 {
            progress(Progress { states: search.parents.len(), waiting: search.waiting.len(), depth });
        }
    }
    search.report(None)
}

impl Search {
    fn reached(&mut self, state: State, parent: u32, depth: usize) {
        let number = self.parents.len() as u32;
        if let Entry::Vacant(entry) = self.numbers.entry(state) {
            self.waiting.push_back((entry.key().clone(), number, depth));
            entry.insert(number);
            self.parents.push(parent);
        }
    }

    fn report(&self, found: Option<Found>) -> Report {
        let (copies, frames, code_steps) = self.world.copies.counts();
        let (states, complete) = (self.parents.len(), found.is_none() && self.waiting.is_empty());
        Report { states, steps: self.steps, depth: self.depth, copies, frames, code_steps, complete, found }
    }

    /// The way to a state and the action that followed. Only numbers are kept: the actions are found again.
    fn trace(&mut self, start: &State, last: u32, action: Action) -> Vec<String> {
        let mut way = vec![last];
        while let Some(number) = way.last().copied().filter(|number| *number != 0) {
            way.push(self.parents[number as usize]);
        }
        let (mut state, mut lines) = (start.clone(), Vec::new());
        for number in way.into_iter().rev().skip(1) {
            let mut successors = Vec::new();
            self.world.successors(&state, &mut successors);
            let step = successors.into_iter().find_map(|(action, next)| {
                let next = next.ok()?;
                (self.numbers.get(&next) == Some(&number)).then_some((action, next))
            });
            let (action, next) = step.expect("the way that was found");
            lines.push(trace::line(&self.world, action));
            state = next;
        }
        lines.push(trace::line(&self.world, action));
        lines
    }
}
