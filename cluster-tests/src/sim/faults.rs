//! What goes wrong, each kind at its own rate.

use super::world::{Event, World};

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
    Outage,
    Bereave,
    Clock,
}

impl Fault {
    pub(super) const ALL: [Self; 10] = [
        Self::Crash,
        Self::Massacre,
        Self::Pause,
        Self::Partition,
        Self::Reset,
        Self::Suspect,
        Self::Drain,
        Self::Outage,
        Self::Bereave,
        Self::Clock,
    ];
}

impl World {
    pub(super) fn plan_fault(&mut self, fault: Fault) {
        let profile = &self.profile;
        let mean = match fault {
            Fault::Crash => profile.crash,
            Fault::Massacre => profile.massacre,
            Fault::Pause => profile.pause,
            Fault::Partition => profile.partition,
            Fault::Reset => profile.reset,
            Fault::Suspect => profile.suspect,
            Fault::Drain => profile.drain,
            Fault::Outage => profile.outage,
            Fault::Bereave => profile.bereave,
            Fault::Clock => profile.set_clock,
        };
        if let Some(mean) = mean {
            let after = self.random.waiting(mean);
            self.after(after, Event::Fault(fault));
        }
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        if self.resting {
            return;
        }
        self.plan_fault(fault);
        let node = self.random.index(self.nodes.len());
        match fault {
            Fault::Crash => self.crash(node),
            Fault::Massacre => {
                for node in 0..self.nodes.len() {
                    if self.random.permille(700) {
                        self.crash(node);
                    }
                }
            }
            Fault::Pause => self.pause(node),
            Fault::Partition => self.partition(),
            Fault::Reset => {
                let to = self.random.index(self.nodes.len());
                self.reset_link(node, to);
            }
            Fault::Suspect => self.slander(node),
            Fault::Drain => {
                self.ledger.count("drains");
                self.nodes[node].draining = true;
                let after = 1_000 + self.random.below(5_000);
                self.after(after, Event::Undrain(node));
            }
            Fault::Outage => {
                self.ledger.count("store outages");
                self.store.down = true;
                let after = self.random.between(300, 4_000);
                self.after(after, Event::StoreUp);
            }
            Fault::Bereave => self.bereave(),
            Fault::Clock => {
                self.ledger.count("clocks set");
                self.nodes[node].skew_ms = self.random.below(20_000);
            }
        }
    }

    /// The memory is gone; what was under way may still arrive.
    fn crash(&mut self, node: usize) {
        if self.nodes[node].process.take().is_none() {
            return;
        }
        self.ledger.count("crashes");
        self.nodes[node].paused = false;
        self.nodes[node].inbox.clear();
        if self.random.permille(500) {
            self.reset_links_of(node);
        } else {
            self.watch_links_of(node);
        }
        let after = 50 + self.random.waiting(2_500);
        self.after(after, Event::Start(node));
    }

    /// Everyone who has a copy of some slot crashes.
    fn bereave(&mut self) {
        let slot = self.random.below(u64::from(self.profile.slots)) as usize;
        let Some(map) = self.store.map.clone() else { return };
        self.ledger.count("all copies crashed");
        for member in &map.slots[slot].in_sync {
            if let Some(node) = self.running(member) {
                self.crash(node);
            }
        }
    }

    fn pause(&mut self, node: usize) {
        if self.nodes[node].process.is_none() || self.nodes[node].paused {
            return;
        }
        self.ledger.count("pauses");
        self.nodes[node].paused = true;
        self.watch_links_of(node);
        let after = 20 + self.random.waiting(1_500);
        self.after(after, Event::Resume(node));
    }

    pub(super) fn resume(&mut self, node: usize) {
        if !std::mem::take(&mut self.nodes[node].paused) {
            return;
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

    fn partition(&mut self) {
        self.ledger.count("partitions");
        let count = self.nodes.len();
        let one_way = self.random.permille(300);
        let mut blocked = Vec::new();
        if self.random.permille(400) {
            let (from, to) = (self.random.index(count), self.random.index(count));
            blocked.push((from, to));
            if !one_way {
                blocked.push((to, from));
            }
        } else {
            let sides: Vec<bool> = (0..count).map(|_| self.random.permille(500)).collect();
            for from in 0..count {
                for to in 0..count {
                    if sides[from] != sides[to] && (sides[from] || !one_way) {
                        blocked.push((from, to));
                    }
                }
            }
        }
        for &(from, to) in &blocked {
            self.links[from][to].blocked = true;
            self.watch_link(from, to);
            self.watch_link(to, from);
        }
        let after = 100 + self.random.waiting(2_000);
        self.after(after, Event::Heal(blocked));
    }

    /// Some believe that the node is dead, and it is not.
    fn slander(&mut self, node: usize) {
        self.ledger.count("false suspicions");
        let until = self.now + 300 + self.random.waiting(1_500);
        for other in 0..self.nodes.len() {
            if other != node && self.random.permille(600) && self.nodes[other].process.is_some() {
                self.process(other).beliefs[node].slandered_until = until;
            }
        }
    }
}
