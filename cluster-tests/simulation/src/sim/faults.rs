//! What goes wrong, each kind at its own rate.

use super::{
    random::Random,
    schedule::Planned,
    world::{DAY_MS, Event, SharedMap, World},
};

/// Between looks whether a node that is to leave has handed over its slots.
const LEAVE_LOOK_MS: u64 = 100;

/// A fault that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fired {
    /// Among those of the seed.
    pub number: usize,
    /// When, in virtual time.
    pub at_ms: u64,
    /// What kind of fault.
    pub kind: String,
    /// In words.
    pub what: String,
}

/// A kind of fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fault {
    Crash,
    Massacre,
    Pause,
    Partition,
    Reset,
    Suspect,
    Drain,
    Steward,
    Outage,
    Bereave,
    Clock,
    Leave,
    Lie,
}

impl Fault {
    pub(super) const ALL: [Self; 13] = [
        Self::Crash,
        Self::Massacre,
        Self::Pause,
        Self::Partition,
        Self::Reset,
        Self::Suspect,
        Self::Drain,
        Self::Steward,
        Self::Outage,
        Self::Bereave,
        Self::Clock,
        Self::Leave,
        Self::Lie,
    ];
}

impl World {
    /// The fault of this number; nothing may come of it.
    pub(super) fn fault(&mut self, number: usize) {
        let Some(Planned { fault, mut random, .. }) = self.faults.get(&number).cloned() else { return };
        if self.resting {
            return;
        }
        let random = &mut random;
        let node = random.index(self.nodes.len());
        let what = match fault {
            Fault::Crash => self.crash(node, random),
            Fault::Massacre => {
                let doomed: Vec<_> = (0..self.nodes.len()).filter(|_| random.permille(700)).collect();
                self.crash_all(doomed, random)
            }
            Fault::Pause => self.pause(node, random),
            Fault::Partition => self.partition(random),
            Fault::Reset => {
                let to = random.index(self.nodes.len());
                self.reset_link(node, to);
                (node != to).then(|| format!("the link from {} to {} is reset", self.name(node), self.name(to)))
            }
            Fault::Suspect => self.slander(node, random),
            Fault::Drain => self.drain(node, random),
            Fault::Steward => {
                self.doom = Some(random.clone());
                Some("whoever proposes the next change of the map dies".to_owned())
            }
            Fault::Outage => self.outage(random),
            Fault::Bereave => self.bereave(random),
            Fault::Clock => self.set_clock(node, random),
            Fault::Leave => self.leave(node, random),
            Fault::Lie => self.lie(node, random),
        };
        if let Some(what) = what {
            self.say(|| format!("fault {number}: {what}"));
            self.fired.push(Fired { number, at_ms: self.now, kind: format!("{fault:?}"), what });
        }
    }

    fn name(&self, node: usize) -> String {
        self.nodes[node].id.to_string()
    }

    fn drain(&mut self, node: usize, random: &mut Random) -> Option<String> {
        self.ledger.count("drains");
        self.nodes[node].draining = true;
        let after = 1_000 + random.below(5_000);
        self.after(after, Event::Undrain(node));
        Some(format!("{} drains for {after} ms", self.name(node)))
    }

    /// As planned: it hands its slots over, closes its links, and ends a while after that.
    fn leave(&mut self, node: usize, random: &mut Random) -> Option<String> {
        let process = self.nodes[node].process.as_ref().filter(|_| !self.nodes[node].draining)?;
        let (member, generation) = (process.member.clone(), process.member.generation);
        self.nodes[node].draining = true;
        let until_ms = self.now + random.between(500, 6_000);
        self.after(LEAVE_LOOK_MS, Event::Leave { node, generation, until_ms });
        Some(format!("{member} is to leave, at {until_ms} ms at the latest"))
    }

    pub(super) fn leave_when_done(&mut self, node: usize, generation: u64, until_ms: u64) {
        let is_there = self.nodes[node].process.as_ref().is_some_and(|process| process.member.generation == generation);
        if self.resting || !is_there {
            return;
        }
        let id = self.nodes[node].id.clone();
        let holds = |map: &SharedMap| map.slots.iter().any(|slot| slot.in_sync.iter().any(|member| member.node == id));
        let known = self.process(node).map.clone();
        if (known.is_none_or(|map| holds(&map)) && self.now < until_ms) || self.nodes[node].paused {
            return self.after(LEAVE_LOOK_MS, Event::Leave { node, generation, until_ms });
        }
        self.ledger.count("nodes that left as planned");
        self.retire(node);
        self.nodes[node].closed = true;
        self.disturbs(node);
        self.reset_links_of(node);
        let lingers_ms = self.random.between(100, 3_000);
        self.after(lingers_ms, Event::Gone { node, generation });
    }

    pub(super) fn gone(&mut self, node: usize, generation: u64) {
        if self.nodes[node].process.as_ref().is_some_and(|process| process.member.generation == generation) {
            self.stop(node);
            let after = 50 + self.random.waiting(2_500);
            self.after(after, Event::Start(node));
        }
    }

    /// A node that has left is there no more.
    pub(super) fn stop(&mut self, node: usize) {
        self.nodes[node].process = None;
        self.nodes[node].inbox.clear();
        (self.nodes[node].paused, self.nodes[node].closed, self.nodes[node].draining) = (false, false, false);
    }

    fn outage(&mut self, random: &mut Random) -> Option<String> {
        self.ledger.count("store outages");
        self.store.down = true;
        let after = random.between(300, 4_000);
        self.after(after, Event::StoreUp);
        Some(format!("the store is down for {after} ms"))
    }

    fn set_clock(&mut self, node: usize, random: &mut Random) -> Option<String> {
        let before = self.nodes[node].skew_ms;
        // Days that it is wrong by stay: a running process does not follow a leap of them either.
        let skew_ms = before / DAY_MS * DAY_MS + random.below(20_000);
        self.ledger.count_if(skew_ms > before, "clocks set forwards");
        self.ledger.count_if(skew_ms < before, "clocks set back");
        self.nodes[node].skew_ms = skew_ms;
        (skew_ms != before)
            .then(|| format!("the clock of {} is set from +{before} ms to +{skew_ms} ms", self.name(node)))
    }

    /// The memory is gone; what was under way may still arrive.
    fn crash(&mut self, node: usize, random: &mut Random) -> Option<String> {
        let process = self.nodes[node].process.take()?;
        self.ledger.count("crashes");
        self.ledger.count_if(process.steward.is_changing(), "stewards died in the middle of a change");
        self.nodes[node].paused = false;
        self.nodes[node].closed = false;
        self.nodes[node].inbox.clear();
        if random.permille(500) {
            self.reset_links_of(node);
        } else {
            self.watch_links_of(node);
        }
        let after = 50 + random.waiting(2_500);
        self.after(after, Event::Start(node));
        Some(format!("{} crashes, and starts again after {after} ms", process.member))
    }

    fn crash_all(&mut self, doomed: Vec<usize>, random: &mut Random) -> Option<String> {
        let what: Vec<_> = doomed.into_iter().filter_map(|node| self.crash(node, random)).collect();
        (!what.is_empty()).then(|| what.join("; "))
    }

    /// The change of the map that a doomed steward has proposed is under way: it dies before it hears what came of it, and
    /// often before the store does anything.
    pub(super) fn doom(&mut self, node: usize) {
        let Some(mut random) = self.doom.take() else { return };
        let after = random.below(12);
        self.after(after, Event::Die(node, random));
    }

    pub(super) fn die(&mut self, node: usize, mut random: Random) {
        if !self.resting
            && let Some(what) = self.crash(node, &mut random)
        {
            self.say(|| what);
        }
    }

    /// Everyone who has a copy of some slot crashes.
    fn bereave(&mut self, random: &mut Random) -> Option<String> {
        let slot = random.index(usize::from(self.profile.slots));
        let holders = self.store.map.clone()?.slots[slot].in_sync.clone();
        let doomed: Vec<_> = holders.iter().filter_map(|member| self.running(member)).collect();
        self.ledger.count_if(!doomed.is_empty(), "all copies crashed");
        self.crash_all(doomed, random)
    }

    fn pause(&mut self, node: usize, random: &mut Random) -> Option<String> {
        if self.nodes[node].process.is_none() || self.nodes[node].paused {
            return None;
        }
        self.ledger.count("pauses");
        self.nodes[node].paused = true;
        self.disturbs(node);
        self.watch_links_of(node);
        let after = 20 + random.waiting(1_500);
        self.after(after, Event::Resume(node));
        Some(format!("{} stands still for {after} ms", self.name(node)))
    }

    pub(super) fn resume(&mut self, node: usize) {
        if !std::mem::take(&mut self.nodes[node].paused) {
            return;
        }
        self.disturbs(node);
        if let Some(process) = &mut self.nodes[node].process {
            process.heard.clear();
        }
        while let Some(input) = self.nodes[node].inbox.pop_front() {
            self.input(node, input);
        }
    }

    fn watch_links_of(&mut self, node: usize) {
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            self.watch_link(node, other);
            self.watch_link(other, node);
        }
    }

    /// Between two sides, or of one pair only; both ways, or one.
    fn partition(&mut self, random: &mut Random) -> Option<String> {
        let count = self.nodes.len();
        let (one_way, pair) = (random.permille(300), random.permille(400));
        let sides: Vec<bool> = (0..count).map(|_| random.permille(500)).collect();
        let first = random.index(count);
        let second = (first + 1 + random.index(count - 1)) % count;
        let apart = |from, to| if pair { (from, to) == (first, second) } else { sides[from] && !sides[to] };
        let all = (0..count).flat_map(|from| (0..count).map(move |to| (from, to)));
        let blocked: Vec<_> = all.filter(|&(from, to)| apart(from, to) || (!one_way && apart(to, from))).collect();
        let kind = match (one_way, pair) {
            _ if blocked.is_empty() => return None,
            (true, _) => "partitions, one-way",
            (false, true) => "partitions, partial",
            (false, false) => "partitions, symmetric",
        };
        self.ledger.count(kind);
        let mut what = Vec::new();
        for &(from, to) in &blocked {
            what.push(format!("{}-{}", self.name(from), self.name(to)));
            self.links[from][to].blocked = true;
            self.disturbs(from);
            self.disturbs(to);
            self.watch_link(from, to);
            self.watch_link(to, from);
        }
        let after = 100 + random.waiting(2_000);
        self.after(after, Event::Heal(blocked));
        Some(format!("nothing gets through {} for {after} ms", what.join(", ")))
    }

    /// A member tells the others by gossip of starts that were never allotted: of others and of itself.
    fn lie(&mut self, liar: usize, random: &mut Random) -> Option<String> {
        let until_ms = self.now + 300 + random.waiting(2_500);
        let mut about = Vec::new();
        for other in 0..self.nodes.len() {
            let generation = 1 << random.between(3, 40);
            if random.permille(700) {
                about.push(format!("{}#{generation}", self.name(other)));
                for to in 0..self.nodes.len() {
                    if to != liar && to != other && self.nodes[to].process.is_some() {
                        self.is_lied_to(to, other, generation, until_ms);
                    }
                }
            }
        }
        let liar = self.name(liar);
        (!about.is_empty()).then(|| format!("{liar} tells of {} until {until_ms} ms", about.join(", ")))
    }

    /// Some believe that the node is dead, and it is not.
    fn slander(&mut self, node: usize, random: &mut Random) -> Option<String> {
        let for_ms = 300 + random.waiting(1_500);
        let mut who = Vec::new();
        for other in 0..self.nodes.len() {
            if random.permille(600) && other != node && self.nodes[other].process.is_some() {
                self.process(other).heard_of[node].slandered_until = self.now + for_ms;
                self.nodes[node].disturbed_ms = self.nodes[node].disturbed_ms.max(self.now + for_ms);
                who.push(self.name(other));
            }
        }
        self.ledger.count_if(!who.is_empty(), "false suspicions");
        (!who.is_empty()).then(|| format!("{} believe {} dead for {for_ms} ms", who.join(", "), self.name(node)))
    }
}
