//! All that there is at one moment, and what can happen next.

use std::rc::Rc;

use roost_logic::{
    id::Term,
    map::{MapRequest, SlotAssignment},
};

use super::{
    Scope,
    checks::check,
    copies::{Copies, Input, NODES, PROCESSES, Step},
    proposals::{Proposals, asked_under, request_bit},
    table::{Lists, Numbers},
};

/// In the place of a copy: the process crashed.
pub(super) const CRASHED: u32 = u32::MAX;
/// In the place of a copy: the process has not started.
const ABSENT: u32 = u32::MAX - 1;

/// One moment. The numbers are those of the [`World`]'s tables.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct State {
    /// What each process has.
    pub(super) copies: [u32; PROCESSES],
    /// All frames that were ever sent to each.
    pub(super) inboxes: [u32; PROCESSES],
    /// The maps that somebody may still learn of. The last one is the one in the store.
    pub(super) maps: u32,
    /// What primaries asked for under that one.
    pub(super) asked: u32,
    /// Lineage, term and message of every entry that was ever committed.
    pub(super) committed: u32,
    pub(super) published: u8,
    pub(super) crashes: u8,
}

/// What can happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Action {
    /// Something happens to a process.
    Input(usize, Input),
    /// The store takes this map.
    Propose(u32),
    Crash(usize),
    /// A node that crashed starts again, as this process.
    Restart(usize),
}

/// What is common to all states.
#[derive(Debug)]
pub(super) struct World {
    pub(super) scope: Scope,
    pub(super) copies: Copies,
    pub(super) lists: Lists,
    proposals: Proposals,
    /// By copy and inbox: the frames that do something, and what.
    arrivals: Numbers<(u32, u32), Rc<Arrivals>>,
    /// The version of the map at the start.
    pub(super) first_version: u64,
}

type Arrivals = Vec<(u32, Rc<Step>)>;

/// What comes next: the state, or what is wrong.
pub(super) type Next = Result<State, String>;

impl World {
    pub(super) fn new(scope: Scope) -> Self {
        let (copies, proposals) = (Copies::new(), Proposals::default());
        Self { scope, copies, lists: Lists::new(), proposals, arrivals: Numbers::default(), first_version: 0 }
    }

    /// Three nodes that have just started, and this map.
    pub(super) fn started(&mut self, map: &SlotAssignment) -> State {
        let map = self.copies.map_number(map);
        let mut copies = [ABSENT; PROCESSES];
        for (node, copy) in copies.iter_mut().enumerate().take(NODES) {
            *copy = self.copies.started(node);
        }
        let maps = self.lists.number(&[map]);
        State { copies, inboxes: [0; PROCESSES], maps, asked: 0, committed: 0, published: 0, crashes: 0 }
    }

    /// The number of the map in the store.
    pub(super) fn stored(&self, state: &State) -> u32 {
        *self.lists.get(state.maps).last().expect("there is a map")
    }

    /// All that can happen next, with what comes of it. What changes nothing is left out.
    pub(super) fn successors(&mut self, state: &State, out: &mut Vec<(Action, Next)>) {
        for process in (0..PROCESSES).filter(|process| state.is_alive(*process)) {
            let copy = self.copies.copy(state.copies[process]).clone();
            for (frame, step) in self.arrivals(state, process).iter() {
                let input = Input::Frame(*frame);
                let next = self.after(state, process, input, step);
                out.extend(next.map(|next| (Action::Input(process, input), next)));
            }
            for map in self.lists.get(state.maps).clone().iter() {
                if self.copies.map(*map).changed_at > copy.version() {
                    self.input(state, process, Input::Map(*map), out);
                }
            }
            if copy.serving.is_some() && state.published < self.scope.messages {
                self.input(state, process, Input::Publish(state.published + 1), out);
            }
            if copy.known.as_ref().is_some_and(|known| known.learner.is_some()) {
                for peer in 0..PROCESSES {
                    self.input(state, process, Input::Reset(peer), out);
                }
            }
            if state.crashes < self.scope.crashes {
                let next = self.crashed(state, process);
                out.push((Action::Crash(process), Ok(next)));
            }
        }
        for process in NODES..PROCESSES {
            if self.scope.restarts && state.copies[process] == ABSENT && state.copies[process - NODES] == CRASHED {
                let mut next = state.clone();
                next.copies[process] = self.copies.started(process);
                out.push((Action::Restart(process), check(self, next)));
            }
        }
        let stored = self.stored(state);
        if self.copies.map(stored).changed_at < self.first_version + u64::from(self.scope.changes) {
            for (map, is_wrong) in self.proposed(state).iter() {
                let next = match is_wrong {
                    true => Err("rule 6: a member is chosen of which a later start is known".to_owned()),
                    false => self.changed(state, *map),
                };
                out.push((Action::Propose(*map), next));
            }
        }
    }

    /// The maps that may follow the stored one.
    pub(super) fn proposed(&mut self, state: &State) -> Rc<Vec<(u32, bool)>> {
        let restarted = (NODES..PROCESSES).filter(|process| state.copies[*process] != ABSENT);
        let restarted = restarted.map(|process| 1 << (process - NODES)).sum();
        let stored = self.stored(state);
        self.proposals.of(&mut self.copies, stored, state.asked, restarted)
    }

    fn arrivals(&mut self, state: &State, process: usize) -> Rc<Arrivals> {
        let (copy, inbox) = (state.copies[process], state.inboxes[process]);
        if let Some(known) = self.arrivals.get(&(copy, inbox)) {
            return known.clone();
        }
        let frames = self.lists.get(inbox).clone();
        let steps = frames.iter().map(|frame| (*frame, self.copies.step(process, copy, Input::Frame(*frame))));
        let arrivals: Rc<Arrivals> = Rc::new(steps.filter(|(_, step)| !step.is_idle(copy)).collect());
        self.arrivals.insert((copy, inbox), arrivals.clone());
        arrivals
    }

    fn input(&mut self, state: &State, process: usize, input: Input, out: &mut Vec<(Action, Next)>) {
        if let Some(next) = self.stepped(state, process, input) {
            out.push((Action::Input(process, input), next));
        }
    }

    /// Nothing where the input changes nothing.
    pub(super) fn stepped(&mut self, state: &State, process: usize, input: Input) -> Option<Next> {
        let step = self.copies.step(process, state.copies[process], input);
        self.after(state, process, input, &step)
    }

    fn after(&mut self, state: &State, process: usize, input: Input, step: &Step) -> Option<Next> {
        if step.panicked {
            return Some(Err("the code panicked".to_owned()));
        }
        let mut next = state.clone();
        next.copies[process] = step.copy;
        for (to, frame) in &step.sends {
            if next.is_alive(*to) && !self.is_over(&next, *to, *frame) {
                next.inboxes[*to] = self.lists.inserted(next.inboxes[*to], *frame);
            }
        }
        self.ask(&mut next, &step.asks);
        match input {
            Input::Publish(message) => next.published = message,
            Input::Map(_) => {
                self.forget_maps(&mut next);
                self.forget_frames(&mut next, process);
            }
            Input::Frame(_) | Input::Reset(_) => {}
        }
        if let Err(what) = self.commit(&mut next, step) {
            return Some(Err(what));
        }
        (next != *state).then(|| check(self, next))
    }

    fn ask(&self, state: &mut State, asks: &[MapRequest]) {
        let version = self.copies.map(self.stored(state)).changed_at;
        for request in asks.iter().filter(|request| asked_under(request) == version) {
            state.asked |= request_bit(&self.copies, request);
        }
    }

    /// Agreement: what is committed at an index was not committed otherwise before.
    fn commit(&mut self, state: &mut State, step: &Step) -> Result<(), String> {
        let lineage = self.copies.copy(step.copy).lineage;
        for (index, message, term) in &step.committed {
            let there = self.committed(state, lineage).count();
            let earlier = self.committed(state, lineage).nth(*index as usize - 1);
            match earlier {
                Some((_, earlier)) if earlier == *message => {}
                Some((_, earlier)) => {
                    return Err(format!("S1: index {index} has message {earlier}, and now message {message}"));
                }
                None if *index as usize == there + 1 => {
                    let entry = (lineage as u32) << 24 | (*term as u32) << 8 | u32::from(*message);
                    state.committed = self.lists.pushed(state.committed, entry);
                }
                None => return Err(format!("index {index} is committed, and {there} entries before it")),
            }
        }
        Ok(())
    }

    /// Term and message of all that was committed in a lineage.
    pub(super) fn committed(&self, state: &State, lineage: u64) -> impl Iterator<Item = (Term, u8)> {
        let list = self.lists.get(state.committed).iter().filter(move |entry| u64::from(**entry >> 24) == lineage);
        list.map(|entry| (Term::from(entry >> 8 & 0xffff), (entry & 0xff) as u8))
    }

    fn crashed(&mut self, state: &State, process: usize) -> State {
        let mut next = state.clone();
        (next.copies[process], next.inboxes[process]) = (CRASHED, 0);
        next.crashes += 1;
        self.forget_maps(&mut next);
        next
    }

    /// The store takes a map.
    pub(super) fn changed(&mut self, state: &State, map: u32) -> Next {
        let (before, after) = (self.copies.map(self.stored(state)), self.copies.map(map));
        let alive = |member| state.is_alive(self.copies.process(member));
        if before.lineage != after.lineage
            && let Some(alive) = before.in_sync.iter().find(|member| alive(member))
        {
            return Err(format!("rule 4: the slot starts again with nothing, and {alive} holds all of it"));
        }
        let mut next = state.clone();
        next.asked = 0;
        next.maps = self.lists.pushed(state.maps, map);
        check(self, next)
    }

    /// Forgets the maps that every process has left behind, but the one in the store.
    fn forget_maps(&mut self, state: &mut State) {
        let alive = (0..PROCESSES).filter(|process| state.is_alive(*process));
        let version = alive.map(|process| self.copies.copy(state.copies[process]).version()).min().unwrap_or(u64::MAX);
        let stored = self.stored(state);
        let maps = self.lists.get(state.maps).iter().copied();
        let kept: Vec<u32> = maps.filter(|map| *map == stored || self.copies.map(*map).changed_at > version).collect();
        state.maps = self.lists.number(&kept);
    }
}

impl World {
    /// Forgets the frames that can do nothing any more.
    fn forget_frames(&mut self, state: &mut State, process: usize) {
        let frames = self.lists.get(state.inboxes[process]).clone();
        let kept: Vec<u32> = frames.iter().copied().filter(|frame| !self.is_over(state, process, *frame)).collect();
        state.inboxes[process] = self.lists.number(&kept);
    }

    /// Whether a frame does nothing, and never will: what a member refuses because its term is over it refuses for ever,
    /// since terms only grow.
    fn is_over(&mut self, state: &State, process: usize, frame: u32) -> bool {
        let copy = state.copies[process];
        let term = self.copies.copy(copy).known.as_ref().map_or(0, |known| known.term);
        self.copies.frame(frame).message.term() < term
            && self.copies.step(process, copy, Input::Frame(frame)).is_idle(copy)
    }
}

impl State {
    pub(super) fn is_alive(&self, process: usize) -> bool {
        self.copies[process] < ABSENT
    }
}
