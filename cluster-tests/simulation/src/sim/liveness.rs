//! What a process is shown of the others, late and wrong as it may be: its judge of liveness decides what that means.

use std::sync::Arc;

use roost_logic::{
    following,
    id::{Generation, Member, NodeId},
    liveness::{LivenessInput, LivenessOutput, LivenessSettings, Says, Sign},
    map::{ClusterMap, SlotAssignment},
    plan::Life,
    primary::SlotInput,
    steward::StewardInput,
};

use super::{
    node::Input,
    world::{SharedMap, World},
};

/// A peer from which nothing has come for this long is not heard; at least.
const QUIET_MIN_MS: u64 = 600;
/// Rounds in a row that gossip takes to be sure of a silence.
const SILENT_ROUNDS: u32 = 2;

/// What a process has heard of another node, by gossip and over the link to it.
#[derive(Clone, Debug, Default)]
pub(super) struct Heard {
    /// The newest start that has gossiped.
    generation: Generation,
    /// The start that counted for its judge at the last look.
    counted: Generation,
    /// A start that a liar tells of, and until when.
    lied: Option<(Generation, u64)>,
    says: Option<Says>,
    heartbeat: u64,
    heard_ms: u64,
    silent_rounds: u32,
    answers: u64,
    /// The number of them that the judge was shown last.
    shown: Option<u64>,
    /// When it was shown another number than before: the first one it takes for a beginning.
    answer_ms: Option<u64>,
    /// The start of it of which the judge was shown a number of answers: without a link it is shown none.
    answers_of: Generation,
    /// Wrongly believed dead until then.
    pub(super) slandered_until: u64,
}

impl Heard {
    /// Whether nothing that a judge may go by tells that the node is there.
    fn is_unheard(&self, now: u64, quiet_ms: u64) -> bool {
        let is_counted = self.answers_of == self.generation;
        self.silent_rounds >= SILENT_ROUNDS || (is_counted && self.is_quiet(now, quiet_ms))
    }

    /// Whether all that a judge may go by tells that this start of the node is there, or a newer one.
    fn is_heard(&self, generation: Generation, now: u64, quiet_ms: u64) -> bool {
        let newest = self.generation >= generation && self.generation == self.counted;
        newest && self.silent_rounds == 0 && !self.is_quiet(now, quiet_ms)
    }

    fn is_quiet(&self, now: u64, quiet_ms: u64) -> bool {
        self.answer_ms.is_some_and(|last_ms| last_ms + quiet_ms < now)
    }
}

impl World {
    pub(super) fn liveness_settings(&self) -> LivenessSettings {
        // The profile has four keep-alives, as long as a connection lives without.
        let quiet_ms = (self.profile.keep_alive_ms / 2).max(QUIET_MIN_MS);
        LivenessSettings { look_ms: self.profile.round_ms, quiet_ms }
    }

    /// What a node says of itself.
    fn says(&self, node: usize) -> Says {
        let there = &self.nodes[node];
        let version = there.process.as_ref().and_then(|process| process.map.as_ref()).map_or(0, |map| map.version);
        let life = match version {
            _ if there.draining => Life::Draining,
            0 => Life::Starting,
            _ => Life::Serving,
        };
        Says { life, zone: String::new(), store_up: !self.store.down, map_version: version }
    }

    pub(super) fn gossip(&mut self, node: usize, from: &Member, says: Says) {
        let (number, now) = (self.node_number(from), self.now);
        let heard = &mut self.process(node).heard_of[number];
        if from.generation >= heard.generation {
            heard.generation = from.generation;
            heard.heard_ms = now;
            heard.heartbeat += 1;
            heard.says = Some(says);
        }
    }

    /// Says that it is there, and looks who else is.
    pub(super) fn round(&mut self, node: usize) {
        self.say_hello(node);
        let signs = self.signs(node);
        self.count_few(node);
        self.judge(node, LivenessInput::Look(signs));
        let process = self.process(node);
        let picture = process.liveness.shown().clone();
        if picture.doubts {
            (process.steward.few_rounds, process.steward.rounds_since_enough) = (0, 0);
        }
        self.hints_of_round(node, &picture);
    }

    /// What the store has of the nodes of which the judge knows too little.
    fn ask_generations(&mut self, node: usize) {
        let picture = self.process(node).liveness.shown().clone();
        let allotted = |node: &NodeId| Some((node.clone(), *self.store.generations.get(node)?));
        let stored = picture.to_ask().filter_map(allotted).collect();
        self.judge(node, LivenessInput::Generations(stored));
    }

    fn say_hello(&mut self, node: usize) {
        let (from, says) = (self.process(node).member.clone(), self.says(node));
        for other in (0..self.nodes.len()).filter(|other| *other != node) {
            if !self.links[node][other].blocked && !self.nodes[node].closed && !self.nodes[other].closed {
                let after = self.random.waiting(self.profile.delay_ms);
                self.input_after(after, other, Input::Gossip { from: from.clone(), says: says.clone() });
            }
        }
    }

    /// All that there is to see of the others and of itself.
    fn signs(&mut self, node: usize) -> Vec<Sign> {
        // The store is late sometimes.
        if self.random.permille(500) && !self.store.down {
            self.ask_generations(node);
        }
        // Whoever takes itself for the steward is told that the store answers nobody else.
        let usurps = self.random.permille(self.profile.usurp);
        let (now, silent_ms) = (self.now, self.profile.silent_ms);
        let mut signs = Vec::new();
        for other in 0..self.nodes.len() {
            if other == node {
                let (member, says) = (self.process(node).member.clone(), self.says(node));
                signs.push(Sign { member, says, heartbeat: now, live: true, linked: true, answers: None });
                continue;
            }
            let comes_through = self.comes_through(node, other);
            let linked = self.links[node][other].up || self.links[other][node].up;
            let sends = self.links[node][other].up;
            let id = self.nodes[other].id.clone();
            let process = self.process(node);
            let counts = process.liveness.proven(&id);
            let heard = &mut process.heard_of[other];
            heard.answers += u64::from(comes_through);
            let live = heard.generation > 0 && heard.heard_ms + silent_ms >= now && heard.slandered_until <= now;
            heard.silent_rounds = if live { 0 } else { heard.silent_rounds.saturating_add(1) };
            let nothing = Says { life: Life::Starting, zone: String::new(), store_up: false, map_version: 0 };
            let mut says = heard.says.clone().unwrap_or(nothing);
            says.store_up &= !usurps;
            let generation = heard.generation;
            heard.counted = counts.unwrap_or(generation);
            if generation > 0 {
                heard.answers_of = if sends { generation } else { heard.answers_of };
                let answers = sends.then_some(heard.answers);
                if sends && heard.shown != answers {
                    (heard.shown, heard.answer_ms) = (answers, Some(now));
                }
                let member = Member { node: id.clone(), generation };
                let heartbeat = heard.heartbeat;
                signs.push(Sign { member, says: says.clone(), heartbeat, live, linked, answers });
            }
            if let Some((generation, _)) = heard.lied.filter(|(_, until_ms)| now < *until_ms) {
                // It looks as well as can be, and is said to know a map that nobody made.
                let says = Says { life: Life::Serving, store_up: true, map_version: u64::MAX / 2, ..says };
                let member = Member { node: id, generation };
                signs.push(Sign { member, says, heartbeat: now, live: true, linked: true, answers: None });
                self.ledger.count("starts gossiped that never were");
            }
        }
        signs
    }

    /// Whether keep-alives of this node are answered by the other.
    fn comes_through(&self, node: usize, other: usize) -> bool {
        let there = &self.nodes[other];
        self.links[node][other].up
            && !self.links[node][other].blocked
            && !self.links[other][node].blocked
            && there.process.is_some()
            && !there.paused
    }

    /// Counts the rounds in which too few of the others were there, and those since enough were there for sure.
    fn count_few(&mut self, node: usize) {
        let (hears_few, hears_enough) = (self.hears_few(node), self.surely_hears_enough(node));
        let steward = &mut self.process(node).steward;
        steward.few_rounds = if hears_few { steward.few_rounds + 1 } else { 0 };
        steward.rounds_since_enough = if hears_enough { 0 } else { steward.rounds_since_enough + 1 };
    }

    /// Whether at least half of those in the map that the node knows are there, in every way a judge may tell.
    fn surely_hears_enough(&self, node: usize) -> bool {
        let quiet_ms = self.liveness_settings().quiet_ms;
        let Some(process) = &self.nodes[node].process else { return false };
        let Some(map) = &process.map else { return true };
        let copies = || map.slots.iter().flat_map(SlotAssignment::copies);
        let heard = |(member, generation): &(&NodeId, &Generation)| {
            let newest = copies().filter(|copy| copy.node == **member).map(|copy| copy.generation).max();
            let newest = newest.unwrap_or(0).max(**generation);
            let other = self.nodes.iter().position(|node| node.id == **member);
            other.is_some_and(|other| other == node || process.heard_of[other].is_heard(newest, self.now, quiet_ms))
        };
        map.members.iter().filter(heard).count() * 2 >= map.members.len()
    }

    /// Whether fewer than half of those in the map that the node knows are there, in whatever way a judge may tell.
    pub(super) fn hears_few(&self, node: usize) -> bool {
        let quiet_ms = self.liveness_settings().quiet_ms + 2 * self.profile.round_ms;
        let Some(process) = &self.nodes[node].process else { return false };
        let Some(map) = &process.map else { return false };
        let heard = |member: &&NodeId| {
            let other = self.nodes.iter().position(|node| node.id == **member);
            other.is_some_and(|other| other == node || !process.heard_of[other].is_unheard(self.now, quiet_ms))
        };
        map.members.keys().filter(heard).count() * 2 < map.members.len()
    }

    /// Shows it to the judge, and does what that makes of it.
    pub(super) fn judge(&mut self, node: usize, input: LivenessInput) {
        let now = self.clock(node);
        let mut out = Vec::new();
        self.process(node).liveness.handle(now, input, &mut out);
        for output in out {
            match output {
                LivenessOutput::Alive(alive) => {
                    self.process(node).alive = alive.clone();
                    self.all_slots(node, |_| SlotInput::Alive(alive.clone()));
                    self.follow(node, following::Input::Alive(alive));
                }
                LivenessOutput::Picture(picture) => self.steward(node, StewardInput::Picture(picture)),
                LivenessOutput::StoodStill(_) => self.ledger.count("nodes that noticed that they stood still"),
            }
        }
    }

    /// A node that runs, that nothing has kept from being heard for a while, and that nobody was told lies about, is not
    /// taken for dead.
    pub(super) fn check_not_given_up(&mut self, node: usize, before: &ClusterMap, next: &SharedMap) {
        let heard_within_ms = 2_500;
        let slots = before.slots.iter().zip(&next.slots);
        let given_up = slots.filter(|(old, new)| new.term > old.term && !new.in_sync.contains(&old.primary));
        let undisturbed = |member: &&Member| {
            self.running(member).is_some_and(|number| {
                let there = &self.nodes[number];
                let blocked = (0..self.nodes.len())
                    .any(|other| self.links[number][other].blocked || self.links[other][number].blocked);
                !there.paused && !there.closed && !blocked && there.disturbed_ms + heard_within_ms < self.now
            })
        };
        if let Some(wronged) = given_up.map(|(old, _)| &old.primary).find(undisturbed) {
            let by = &self.nodes[node].id;
            let what =
                format!("{by} takes over from {wronged}, which was there all the time, by version {}", next.version);
            self.ledger.fail(what);
        }
    }

    /// Something keeps the node from being heard, or did until now.
    pub(super) fn disturbs(&mut self, node: usize) {
        let there = &mut self.nodes[node];
        there.disturbed_ms = there.disturbed_ms.max(self.now);
    }

    /// A liar tells this process of a later start of another node than there is.
    pub(super) fn is_lied_to(&mut self, node: usize, about: usize, generation: Generation, until_ms: u64) {
        self.process(node).heard_of[about].lied = Some((generation, until_ms));
    }

    /// At rest nobody is slandered any more.
    pub(super) fn trust_all(&mut self, node: usize) {
        for heard in &mut self.process(node).heard_of {
            heard.slandered_until = 0;
        }
    }

    /// What the judge knows of the map.
    pub(super) fn judge_map(&mut self, node: usize, map: &SharedMap) {
        self.judge(node, LivenessInput::Map(Arc::clone(map)));
    }
}
