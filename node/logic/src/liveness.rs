//! The one judge of who is alive. It is shown what there is of each node (what gossip tells, whether its heartbeat moves,
//! whether there is a link, whether it answers) and says who is alive, who is missing, who is dead, and whether this node
//! hears enough of the others to change the map. All others act upon its [`Picture`] and count nothing themselves.
//!
//! - Life shows at once. Death takes looks in a row: [`GONE_LOOKS`] until a node is not among the living any more, and
//!   [`DEAD_LOOKS`] until others may take over from it. A start that was never found has [`UNHEARD_LOOKS`].
//! - A start of a node counts when the store has allotted it ([`LivenessInput::Generations`], [`LivenessInput::Map`]), and not
//!   before. Whatever gossip tells of later starts proves nothing about the one that counts; they are named as unproven, so
//!   that the store is asked.
//! - A node that itself stood still sees all others silent for a moment. It notices by a look that comes late; then nothing
//!   that it missed counts, and the next [`DOUBTED_LOOKS`] looks find nobody missing.
//! - A node that hears fewer than half of those that the map names is more likely the one that is cut off. Slots that it
//!   took would be out of reach for most, so those that hear each other are to come first: it changes nothing for
//!   [`LOOKS_OF_FEW`] looks. A node that hears nothing, but is heard, knows it 1 to 2 s before the others do.

mod pace;
mod picture;
#[cfg(test)]
pub(crate) mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

pub use self::{
    pace::Pace,
    picture::{Outside, Picture, Says, Seen, SharedPicture, Standing},
};
use crate::{
    Now,
    id::{Generation, Member, NodeId},
    map::{ClusterMap, SharedMap},
    plan::Life,
};

/// Looks in a row without a sign of life before a node is not among the living any more.
pub const GONE_LOOKS: u32 = 2;
/// The same, before it counts as dead.
pub const DEAD_LOOKS: u32 = 3;
/// The same, for a start of a node that was never found: gossip may still be on the way.
pub const UNHEARD_LOOKS: u32 = 25;
/// Looks in a row that must find few before a node that hears fewer than half changes the map.
pub const LOOKS_OF_FEW: u32 = 17;
/// Looks after a late one in which nobody is found missing.
pub const DOUBTED_LOOKS: u32 = 3;
/// A look this many intervals after the one before is late.
const LATE_LOOKS: u64 = 3;
/// A node that gossip still takes for alive is gone when for longer there is no link to or from it and its heartbeat has
/// not moved.
const CUT_OFF_MS: u64 = 1_000;

/// What the configuration says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LivenessSettings {
    /// Between looks, in milliseconds.
    pub look_ms: u64,
    /// A peer from which no answer comes for this many milliseconds is not heard: its link ends only later, and the
    /// primaries here lose patience in between.
    pub quiet_ms: u64,
}

/// What there is of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sign {
    /// A start of it that gossip tells of.
    pub member: Member,
    /// What it says of itself.
    pub says: Says,
    /// Moves while it lives.
    pub heartbeat: u64,
    /// Gossip's failure detector takes it for alive.
    pub live: bool,
    /// There is a link to it or from it.
    pub linked: bool,
    /// Changes with each answer that comes by the link to it, where that is up. A peer that is there answers each keep-alive:
    /// where the number stands still, nothing comes through, there or back.
    pub answers: Option<u64>,
}

/// What it is shown.
#[derive(Clone, Debug)]
pub enum LivenessInput {
    /// At each interval: all that there is. Several starts of a node may be told of.
    Look(Vec<Sign>),
    /// In between, when something has changed: the same. Nobody is found missing by it.
    Glance(Vec<Sign>),
    /// The map that this node knows.
    Map(SharedMap),
    /// The generations that the store has allotted last, of the nodes of which it was asked. Read at SERIAL: it is the only
    /// proof that the memory of an earlier start is gone.
    Generations(BTreeMap<NodeId, Generation>),
}

/// What it says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LivenessOutput {
    /// After each look, and when something has changed.
    Picture(SharedPicture),
    /// Others are alive than before; this process always is.
    Alive(Arc<BTreeSet<Member>>),
    /// This process stood still for this many milliseconds.
    StoodStill(u64),
}

/// See the module.
#[derive(Debug)]
pub struct Liveness {
    me: Member,
    settings: LivenessSettings,
    nodes: BTreeMap<NodeId, Known>,
    /// The nodes that take part, by the map; and the newest start of each node that it names.
    members: BTreeMap<NodeId, Generation>,
    named: BTreeMap<NodeId, Generation>,
    /// As the store has them, where it was asked.
    stored: BTreeMap<NodeId, Generation>,
    /// The newest start of each node that gossip tells of, where neither the map nor the store does.
    unproven: BTreeMap<NodeId, Generation>,
    outside: BTreeMap<NodeId, Outside>,
    pace: Pace,
    doubts: u32,
    few: u32,
    alive: Arc<BTreeSet<Member>>,
    shown: SharedPicture,
}

/// The start of a node that counts: the newest that the map or the store tells of. Where they tell of none, the newest that
/// gossip does.
#[derive(Debug)]
struct Known {
    generation: Generation,
    /// The map or the store tells of it.
    is_proven: bool,
    says: Option<Says>,
    heartbeat: u64,
    heartbeat_ms: u64,
    /// Since when there is no link.
    unlinked_ms: Option<u64>,
    /// What the last answer left, and when it came.
    answers: Option<(u64, u64)>,
    is_alive: bool,
    /// It was, at some time.
    was_found: bool,
    /// Looks in a row without a sign of life.
    missed: u32,
}

impl Liveness {
    /// Has seen nobody yet.
    pub fn new(me: Member, settings: LivenessSettings, now: Now) -> Self {
        let alive = Arc::new(BTreeSet::from([me.clone()]));
        let shown = Arc::new(Picture::before_any(&me));
        Self {
            pace: Pace::new(settings.look_ms * LATE_LOOKS, now.mono_ms),
            me,
            settings,
            nodes: BTreeMap::new(),
            members: BTreeMap::new(),
            named: BTreeMap::new(),
            stored: BTreeMap::new(),
            unproven: BTreeMap::new(),
            outside: BTreeMap::new(),
            doubts: 0,
            few: 0,
            alive,
            shown,
        }
    }

    /// Takes in what is shown.
    pub fn handle(&mut self, now: Now, input: LivenessInput, out: &mut Vec<LivenessOutput>) {
        let now_ms = now.mono_ms;
        match input {
            LivenessInput::Map(map) => return self.map(&map),
            LivenessInput::Generations(stored) => return self.store_has(stored),
            LivenessInput::Glance(signs) => {
                self.take_in(signs, now_ms);
            }
            LivenessInput::Look(signs) => {
                let is_trusted = self.is_trusted(now_ms, out);
                let found = self.take_in(signs, now_ms);
                if is_trusted {
                    self.miss(&found);
                    let hears_few = self.picture(now_ms).hears_few(&self.members, now_ms);
                    self.few = if hears_few { self.few.saturating_add(1) } else { 0 };
                }
                return self.show(now_ms, out);
            }
        }
        let mut picture = self.picture(now_ms);
        picture.good_until_ms = self.shown.good_until_ms;
        if picture != *self.shown {
            self.tell(picture, out);
        }
    }

    /// The last picture.
    pub fn shown(&self) -> &SharedPicture {
        &self.shown
    }

    fn map(&mut self, map: &ClusterMap) {
        self.members.clone_from(&map.members);
        self.named = picture::named(map);
    }

    /// Whether what this look does not find counts. Where this node stood still it doubts itself, and what it missed before
    /// does not count either.
    fn is_trusted(&mut self, now_ms: u64, out: &mut Vec<LivenessOutput>) -> bool {
        if let Some(still_ms) = self.pace.look(now_ms) {
            out.push(LivenessOutput::StoodStill(still_ms));
            self.nodes.values_mut().for_each(|known| known.missed = 0);
            self.few = 0;
            self.doubts = DOUBTED_LOOKS;
            return false;
        }
        let is_trusted = self.doubts == 0;
        self.doubts = self.doubts.saturating_sub(1);
        is_trusted
    }

    /// A generation never goes back.
    fn store_has(&mut self, stored: BTreeMap<NodeId, Generation>) {
        for (node, generation) in stored {
            let known = self.stored.entry(node).or_default();
            *known = generation.max(*known);
        }
    }

    /// The newest start of a node that is known to have been allotted: the map or the store tells of it.
    pub fn proven(&self, node: &NodeId) -> Option<Generation> {
        let mine = (*node == self.me.node).then_some(self.me.generation);
        mine.max(self.named.get(node).copied()).max(self.stored.get(node).copied())
    }

    /// Who lives, has a link with this node and is not about to leave, while the map names no start of it that lives. Where there is
    /// no map, nobody is outside of it.
    fn look_outside(&mut self, signs: &[Sign], now_ms: u64) {
        let is_there = |sign: &&Sign| sign.member == self.me || (sign.live && sign.linked);
        let is_member = |sign: &Sign| self.members.get(&sign.member.node) == Some(&sign.member.generation);
        let mut outside: BTreeMap<NodeId, Outside> = BTreeMap::new();
        let mut settled = BTreeSet::new();
        for sign in signs.iter().filter(is_there) {
            let Member { node, generation } = &sign.member;
            if self.members.is_empty() || is_member(sign) || sign.says.life == Life::Draining {
                settled.insert(node);
            }
            let before = self.outside.get(node).filter(|before| before.generation == *generation);
            let since_ms = before.map_or(now_ms, |before| before.since_ms);
            if outside.get(node).is_none_or(|other| other.generation < *generation) {
                outside.insert(node.clone(), Outside { generation: *generation, since_ms });
            }
        }
        outside.retain(|node, _| !settled.contains(node));
        self.outside = outside;
    }

    /// What the signs tell, and the map; gives the nodes that are there.
    fn take_in(&mut self, signs: Vec<Sign>, now_ms: u64) -> BTreeSet<NodeId> {
        self.look_outside(&signs, now_ms);
        let mut told: BTreeMap<NodeId, Generation> = BTreeMap::new();
        for sign in &signs {
            let newest = told.entry(sign.member.node.clone()).or_default();
            *newest = sign.member.generation.max(*newest);
        }
        self.nodes.retain(|node, _| told.contains_key(node) || self.named.contains_key(node));
        // Of nodes that are gone the store is asked again, should they come back.
        self.stored.retain(|node, _| told.contains_key(node) || self.named.contains_key(node));
        self.unproven.clear();
        for node in told.keys().chain(self.named.keys()) {
            let (proven, heard) = (self.proven(node), told.get(node).copied());
            if let Some(heard) = heard.filter(|heard| proven < Some(*heard)) {
                self.unproven.insert(node.clone(), heard);
            }
            if let Some(counts) = proven.or(heard) {
                start(&mut self.nodes, node, (counts, proven.is_some()), now_ms);
            }
        }
        let mut found = BTreeSet::new();
        for sign in signs {
            let is_me = sign.member == self.me;
            let Some(known) = self.nodes.get_mut(&sign.member.node) else { continue };
            known.hear_answers(sign.answers, now_ms);
            // Another start than the one that counts says nothing about it.
            if known.generation != sign.member.generation {
                continue;
            }
            let node = sign.member.node.clone();
            let is_cut_off = known.hear(sign, now_ms);
            if is_me || !is_cut_off {
                known.is_found();
                found.insert(node);
            }
        }
        found
    }

    /// Counts this look for all that are not there.
    fn miss(&mut self, found: &BTreeSet<NodeId>) {
        for (node, known) in &mut self.nodes {
            if !found.contains(node) {
                known.missed = known.missed.saturating_add(1);
                known.is_alive &= known.missed < GONE_LOOKS;
            }
        }
    }

    fn picture(&self, now_ms: u64) -> Picture {
        Picture {
            me: self.me.clone(),
            nodes: self.nodes.iter().map(|(node, known)| (node.clone(), known.seen())).collect(),
            unproven: self.unproven.clone(),
            outside: self.outside.clone(),
            doubts: self.doubts > 0,
            few: self.few,
            quiet_ms: self.settings.quiet_ms,
            good_until_ms: now_ms + self.settings.look_ms * LATE_LOOKS,
        }
    }

    fn show(&mut self, now_ms: u64, out: &mut Vec<LivenessOutput>) {
        let picture = self.picture(now_ms);
        self.tell(picture, out);
    }

    fn tell(&mut self, picture: Picture, out: &mut Vec<LivenessOutput>) {
        let alive = picture.alive();
        if alive != *self.alive {
            self.alive = Arc::new(alive);
            out.push(LivenessOutput::Alive(self.alive.clone()));
        }
        self.shown = Arc::new(picture);
        out.push(LivenessOutput::Picture(self.shown.clone()));
    }
}

/// The start of a node that counts is this one.
fn start(nodes: &mut BTreeMap<NodeId, Known>, node: &NodeId, (generation, is_proven): (Generation, bool), now_ms: u64) {
    let known = nodes.entry(node.clone()).or_insert_with(|| Known::new(generation, now_ms));
    if known.generation != generation {
        // Nothing of another start counts, but the answers come from the same place.
        *known = Known { answers: known.answers, ..Known::new(generation, now_ms) };
    }
    known.is_proven = is_proven;
}

impl Known {
    fn new(generation: Generation, now_ms: u64) -> Self {
        Self {
            generation,
            is_proven: false,
            says: None,
            heartbeat: 0,
            heartbeat_ms: now_ms,
            unlinked_ms: None,
            answers: None,
            is_alive: false,
            was_found: false,
            missed: 0,
        }
    }

    fn hear_answers(&mut self, answers: Option<u64>, now_ms: u64) {
        if let Some(count) = answers
            && self.answers.is_none_or(|(known, _)| known != count)
        {
            self.answers = Some((count, now_ms));
        }
    }

    /// Takes in a sign; whether it is none of life.
    fn hear(&mut self, sign: Sign, now_ms: u64) -> bool {
        if sign.heartbeat != self.heartbeat || self.says.is_none() {
            (self.heartbeat, self.heartbeat_ms) = (sign.heartbeat, now_ms);
        }
        self.says = Some(sign.says);
        self.unlinked_ms = if sign.linked { None } else { Some(self.unlinked_ms.unwrap_or(now_ms)) };
        let is_over = |since_ms: u64| now_ms.saturating_sub(since_ms) > CUT_OFF_MS;
        !sign.live || (self.unlinked_ms.is_some_and(is_over) && is_over(self.heartbeat_ms))
    }

    fn is_found(&mut self) {
        (self.is_alive, self.was_found, self.missed) = (true, true, 0);
    }

    fn seen(&self) -> Seen {
        let enough = if self.was_found { DEAD_LOOKS } else { UNHEARD_LOOKS };
        let standing = match self.missed {
            _ if self.is_alive => Standing::Alive,
            missed if missed >= enough => Standing::Dead,
            _ => Standing::Missing,
        };
        let answer_ms = self.answers.map(|(_, last_ms)| last_ms);
        Seen {
            generation: self.generation,
            is_proven: self.is_proven,
            is_linked: self.says.is_some() && self.unlinked_ms.is_none(),
            standing,
            says: self.says.clone(),
            answer_ms,
        }
    }
}
