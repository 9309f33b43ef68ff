//! When a node proposes the next map. Every node has one of these; the one that is steward proposes, and whoever was asked
//! for something that the steward does not do. That two propose at once is no harm: the store lets one win, and the other
//! takes over what it wrote.
//!
//! - One thing at a time is asked of the store. After a change of unknown outcome nothing is proposed before the map was
//!   read; after an error the store is left alone for a while.
//! - Who is there is the judge's word ([`crate::liveness`]). Nothing is proposed on a picture that is too old, by a node that
//!   doubts what it sees, or by one that hears fewer than half of the others and has not waited for them.
//! - What a member asks for a slot counts where it is the slot's primary: a learner that another wants promoted may hold
//!   nothing.
//! - A node that leaves proposes nothing: it would take all others for dead, and their copies out of the map.

mod asked;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use self::asked::Asked;
use crate::{
    Now,
    id::{Generation, Member, NodeId},
    liveness::SharedPicture,
    map::{ClusterMap, MapChange, MapRequest, SharedMap, SlotAssignment},
    plan::{NodeFacts, PlanInput, plan},
};

/// Changes that come within this time are looked at together.
const GATHER_MS: u64 = 20;
/// After an error of the store: this, then twice as long each time, up to [`BACK_OFF_MAX_MS`].
const BACK_OFF_MS: u64 = 100;
const BACK_OFF_MAX_MS: u64 = 3_000;

/// What the configuration says of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StewardSettings {
    /// Slots of the first map; a cluster with another number is refused.
    pub slots: u16,
    /// Copies of each slot.
    pub copies: u8,
    /// See [`PlanInput::max_moves`].
    pub max_moves: usize,
}

/// Names a question, so that its answer finds whoever asked.
pub type Ticket = u64;

/// What happens to it.
#[derive(Clone, Debug)]
pub enum StewardInput {
    /// The judge has looked.
    Picture(SharedPicture),
    /// This node has learned of a map, confirmed as all that travel.
    Map(SharedMap),
    /// What primaries ask for, here or elsewhere. Stale requests do no harm, and whoever is not the slot's primary asks for
    /// nothing.
    Requested {
        /// Who asks.
        from: Member,
        requests: Vec<MapRequest>,
    },
    /// An operator's word: the dead node's copies are lost for good.
    Forget {
        /// For the answer.
        ticket: Ticket,
        node: NodeId,
    },
    /// The answer to [`StewardOutput::ReadMap`]; or why there is none.
    Read(Result<Option<ClusterMap>, String>),
    /// The answer to [`StewardOutput::ChangeMap`]; or why there is none.
    Changed(Result<MapChange, String>),
    /// It is [`Steward::wake_at_ms`].
    Wake,
    /// The node leaves: nothing is proposed from now on.
    Retire,
}

/// What it wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StewardOutput {
    /// To be answered by [`StewardInput::Read`].
    ReadMap,
    /// To be answered by [`StewardInput::Changed`].
    ChangeMap {
        /// The version that the store is to hold; 0 for no map.
        expected: u64,
        /// What takes its place.
        next: SharedMap,
    },
    /// The store has this map; newer than the one that this node knew.
    Learned(SharedMap),
    /// This node has brought this map about: the others are to be told.
    Announce(SharedMap),
    /// Which start of the node counts as lost from now on; or why none does.
    Forgotten {
        /// As it was asked.
        ticket: Ticket,
        result: Result<Member, ForgetError>,
    },
    /// The store did not do what was asked of it.
    Failed {
        /// In words.
        reason: String,
        /// Nothing is asked of it for this long.
        retry_ms: u64,
    },
    /// The cluster was created with another number of slots than this node's configuration says.
    WrongSlots {
        /// How many it has.
        has: u16,
    },
}

/// Why a node cannot be counted as lost.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ForgetError {
    /// This node knows no map.
    NoMap,
    /// No slot names the node.
    HoldsNothing(NodeId),
    /// It is there.
    Alive(NodeId),
    /// Too few looks have missed it.
    NotSure(NodeId),
    /// Another start of it is known.
    CameBack(NodeId, Generation),
}

impl fmt::Display for ForgetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMap => f.write_str("there is no cluster map yet: is the store reachable?"),
            Self::HoldsNothing(node) => write!(f, "{node} holds no slots: there is nothing to forget"),
            Self::Alive(node) => write!(f, "{node} is alive: drain it, or stop it first"),
            Self::NotSure(node) => write!(f, "{node} is not known to be dead yet: try again in a few seconds"),
            Self::CameBack(node, generation) => write!(
                f,
                "{node} was started again (generation {generation}): what it held before counts as lost already"
            ),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Steward {
    me: Member,
    settings: StewardSettings,
    picture: Option<SharedPicture>,
    map: Option<SharedMap>,
    asked: Asked,
    forgotten: BTreeSet<Member>,
    /// From this no next map came, and none will: a plan is made of nothing else.
    settled: Option<Considered>,
    is_retired: bool,
    under_way: Option<UnderWay>,
    /// Nothing is proposed before the map has been read.
    must_read: bool,
    /// This node's last proposal may have been applied.
    outcome_unknown: bool,
    back_off_ms: u64,
    not_before_ms: u64,
    wake_at_ms: Option<u64>,
}

/// What a plan is made from; the rest are settings.
#[derive(PartialEq, Debug)]
struct Considered {
    map: SharedMap,
    nodes: BTreeMap<NodeId, NodeFacts>,
    requests: Vec<MapRequest>,
    forgotten: BTreeSet<Member>,
}

/// What the store was asked and has not answered.
#[derive(Debug)]
enum UnderWay {
    Reading,
    Changing(SharedMap),
}

impl Steward {
    /// Knows nothing yet, and reads the map first.
    pub fn new(me: Member, settings: StewardSettings) -> Self {
        Self {
            me,
            settings,
            picture: None,
            map: None,
            asked: Asked::default(),
            forgotten: BTreeSet::new(),
            settled: None,
            is_retired: false,
            under_way: None,
            must_read: true,
            outcome_unknown: false,
            back_off_ms: 0,
            not_before_ms: 0,
            wake_at_ms: Some(0),
        }
    }

    /// When [`StewardInput::Wake`] is due, by the monotonic clock.
    pub fn wake_at_ms(&self) -> Option<u64> {
        self.wake_at_ms
    }

    /// Whether a change that it has proposed is under way.
    pub fn is_changing(&self) -> bool {
        matches!(self.under_way, Some(UnderWay::Changing(_)))
    }

    /// Takes in what has happened.
    pub fn handle(&mut self, now: Now, input: StewardInput, out: &mut Vec<StewardOutput>) {
        let now_ms = now.mono_ms;
        match input {
            StewardInput::Picture(picture) => self.look(picture, now_ms),
            StewardInput::Map(map) => self.learn(&map, out),
            StewardInput::Requested { from, requests } => {
                if let Some(map) = &self.map {
                    requests.into_iter().for_each(|request| self.asked.add(map, &from, request, now_ms));
                }
            }
            StewardInput::Forget { ticket, node } => {
                let result = self.forget(&node);
                out.push(StewardOutput::Forgotten { ticket, result });
            }
            StewardInput::Read(result) => {
                self.under_way = None;
                self.read(result, now_ms, out);
            }
            StewardInput::Changed(result) => {
                if let Some(UnderWay::Changing(next)) = self.under_way.take() {
                    self.changed(next, result, now_ms, out);
                }
            }
            StewardInput::Wake => {
                if self.wake_at_ms.is_some_and(|at_ms| at_ms <= now_ms) {
                    self.wake_at_ms = None;
                    self.ask_the_store(now_ms, out);
                }
                return;
            }
            StewardInput::Retire => self.is_retired = true,
        }
        self.wake_at_ms.get_or_insert(now_ms + GATHER_MS);
    }

    fn look(&mut self, picture: SharedPicture, now_ms: u64) {
        if let Some(map) = self.map.clone().filter(|_| !picture.doubts) {
            self.asked.prune(&map, now_ms);
            let named = |gone: &Member| map.slots.iter().any(|slot| slot.concerns(gone));
            // One that came back is to be given up by another word, should it die again.
            self.forgotten.retain(|gone| named(gone) && picture.is_dead(gone));
        }
        self.picture = Some(picture);
    }

    fn learn(&mut self, map: &SharedMap, out: &mut Vec<StewardOutput>) {
        if self.map.as_ref().is_some_and(|known| known.version >= map.version) {
            return;
        }
        self.map = Some(map.clone());
        if map.slot_count() != self.settings.slots {
            out.push(StewardOutput::WrongSlots { has: map.slot_count() });
        }
    }

    fn version(&self) -> u64 {
        self.map.as_ref().map_or(0, |map| map.version)
    }

    /// A map that the store has; whether it was news.
    fn found(&mut self, map: &SharedMap, out: &mut Vec<StewardOutput>) -> bool {
        let is_newer = self.version() < map.version;
        if is_newer {
            out.push(StewardOutput::Learned(map.clone()));
            self.learn(map, out);
        }
        is_newer
    }

    /// What there is to ask now, if anything. Where something is not so yet, the next look asks again.
    fn ask_the_store(&mut self, now_ms: u64, out: &mut Vec<StewardOutput>) {
        if self.under_way.is_some() || self.is_retired || now_ms < self.not_before_ms {
            return;
        }
        if self.must_read {
            self.under_way = Some(UnderWay::Reading);
            return out.push(StewardOutput::ReadMap);
        }
        if let Some((expected, next)) = self.proposal(now_ms) {
            let next = Arc::new(next);
            self.under_way = Some(UnderWay::Changing(next.clone()));
            out.push(StewardOutput::ChangeMap { expected, next });
        }
    }

    fn proposal(&mut self, now_ms: u64) -> Option<(u64, ClusterMap)> {
        let picture = self.picture.clone().filter(|picture| picture.is_good(now_ms) && !picture.doubts)?;
        // Whoever cannot reach the steward, and is told by gossip that it lives, would ask in vain.
        let is_due = picture.steward() == Some(&self.me.node) || self.asked.is_overdue(now_ms);
        if !is_due {
            return None;
        }
        let Some(map) = self.map.clone() else {
            return Some((0, ClusterMap::first(&self.me, self.settings.slots)));
        };
        if !picture.may_change(&map, now_ms) {
            return None;
        }
        self.asked.prune(&map, now_ms);
        let (nodes, requests) = (picture.facts(&map), self.asked.list());
        let considered = Considered { map, nodes, requests, forgotten: self.forgotten.clone() };
        if self.settled.as_ref() == Some(&considered) {
            return None;
        }
        let next = plan(&PlanInput {
            map: &considered.map,
            nodes: &considered.nodes,
            requests: &considered.requests,
            forgotten: &considered.forgotten,
            copies: self.settings.copies,
            max_moves: self.settings.max_moves,
        });
        let version = considered.map.version;
        self.settled = next.is_none().then_some(considered);
        Some((version, next?))
    }

    fn read(&mut self, result: Result<Option<ClusterMap>, String>, now_ms: u64, out: &mut Vec<StewardOutput>) {
        let found = match result {
            Ok(found) => found,
            Err(reason) => return self.failed(reason, now_ms, out),
        };
        self.must_read = false;
        let was_unknown = std::mem::take(&mut self.outcome_unknown);
        if !was_unknown {
            self.back_off_ms = 0;
        }
        match found.map(Arc::new) {
            Some(map) => {
                let is_news = self.found(&map, out);
                if was_unknown && is_news {
                    out.push(StewardOutput::Announce(map));
                } else if was_unknown {
                    // It can be read; whether it can be written is not known.
                    self.failed("a change of the cluster map got no answer, and was not made", now_ms, out);
                }
            }
            None if self.version() > 0 => self.failed(CONTENT_GONE, now_ms, out),
            None => {}
        }
    }

    fn changed(
        &mut self,
        next: SharedMap,
        result: Result<MapChange, String>,
        now_ms: u64,
        out: &mut Vec<StewardOutput>,
    ) {
        match result {
            Ok(MapChange::Applied) => {
                self.back_off_ms = 0;
                self.found(&next, out);
                out.push(StewardOutput::Announce(next));
            }
            Ok(MapChange::Conflict(Some(map))) if map.version < self.version() => {
                self.failed("its cluster map is older than the one in use: put its content back", now_ms, out);
            }
            Ok(MapChange::Conflict(Some(map))) => {
                self.back_off_ms = 0;
                self.found(&Arc::new(map), out);
            }
            Ok(MapChange::Conflict(None)) => self.failed(CONTENT_GONE, now_ms, out),
            Ok(MapChange::Unknown) => self.is_unsure(),
            Err(reason) => {
                // A store should say `Unknown` where it was applied perhaps, but nothing is lost by reading.
                self.is_unsure();
                self.failed(reason, now_ms, out);
            }
        }
    }

    fn is_unsure(&mut self) {
        (self.must_read, self.outcome_unknown) = (true, true);
    }

    fn failed(&mut self, reason: impl Into<String>, now_ms: u64, out: &mut Vec<StewardOutput>) {
        self.back_off_ms = (self.back_off_ms * 2).clamp(BACK_OFF_MS, BACK_OFF_MAX_MS);
        self.not_before_ms = now_ms + self.back_off_ms;
        out.push(StewardOutput::Failed { reason: reason.into(), retry_ms: self.back_off_ms });
    }

    fn forget(&mut self, node: &NodeId) -> Result<Member, ForgetError> {
        let map = self.map.clone().ok_or(ForgetError::NoMap)?;
        let named = map.slots.iter().flat_map(SlotAssignment::copies);
        let held = named.filter(|member| member.node == *node).max();
        let member = held.cloned().ok_or_else(|| ForgetError::HoldsNothing(node.clone()))?;
        let picture = self.picture.as_ref();
        let newest = picture.and_then(|picture| picture.generation(node)).max(map.members.get(node).copied());
        if let Some(newest) = newest.filter(|newest| *newest > member.generation) {
            return Err(ForgetError::CameBack(node.clone(), newest));
        }
        if picture.is_some_and(|picture| picture.is_alive(&member)) {
            return Err(ForgetError::Alive(node.clone()));
        }
        if !picture.is_some_and(|picture| picture.is_dead(&member)) {
            return Err(ForgetError::NotSure(node.clone()));
        }
        self.forgotten.insert(member.clone());
        Ok(member)
    }
}

const CONTENT_GONE: &str = "it has no cluster map any more: put its content back";
