//! What carries the steward's core: its requests to the store and to the others. Several stewards at once do no harm; that
//! is what is tested.

use roost_logic::{
    hints::HintInput,
    map::{ClusterMap, MapChange, MapRequest},
    steward::{self, StewardInput, StewardOutput, StewardSettings},
};

use super::{
    network::Frame,
    node::Input,
    store::Operation,
    world::{SharedMap, World},
};

/// A request to the store that never came back is given up.
const PATIENCE_MS: u64 = 1_000;
/// Each process reads the map this often, as the product does: a change that its steward had given up may have come late.
const WATCH_MS: u64 = 5_000;
/// After this number of rounds in which a node heard too few its judge has counted some.
const SURELY_FEW: u32 = 4;
/// Within this number of rounds since a node heard enough its judge has not counted all for which it has to wait.
const SURELY_NOT_ALL: u32 = 12;

/// A process's steward.
#[derive(Debug)]
pub(super) struct Steward {
    core: steward::Steward,
    /// When it is woken next.
    wakes_at_ms: Option<u64>,
    /// The number of what it asked the store last; nothing once that is answered.
    asked: Option<u64>,
    /// The number of the last reading that is none of the steward's; nothing once that is answered.
    watched: Option<u64>,
    /// It was told nothing of the outcome of its last change, and has not read the map since.
    unsure: bool,
    retired: bool,
    /// Rounds in a row in which it heard fewer than half of the others.
    pub(super) few_rounds: u32,
    /// Rounds since it heard at least half of the others for sure.
    pub(super) rounds_since_enough: u32,
}

impl Steward {
    pub(super) fn new(core: steward::Steward) -> Self {
        Self {
            core,
            wakes_at_ms: None,
            asked: None,
            watched: None,
            unsure: false,
            retired: false,
            few_rounds: 0,
            rounds_since_enough: 0,
        }
    }

    /// Whether a change that it has proposed is under way.
    pub(super) fn is_changing(&self) -> bool {
        self.core.is_changing()
    }
}

impl World {
    pub(super) fn steward_settings(&self) -> StewardSettings {
        StewardSettings { slots: self.profile.slots, copies: self.profile.copies, max_moves: 2 }
    }

    /// What a primary wants of the steward goes to everyone who may be it.
    pub(super) fn ask_steward(&mut self, node: usize, request: MapRequest) {
        self.say(|| format!("n{} asks: {request:?}", node + 1));
        let peers: Vec<_> = self.process(node).liveness.shown().peers().collect();
        for peer in peers {
            self.send(node, &peer, Frame::MapRequest(request.clone()));
        }
        let from = self.process(node).member.clone();
        self.steward(node, StewardInput::Requested { from, requests: vec![request] });
    }

    pub(super) fn steward(&mut self, node: usize, input: StewardInput) {
        let now = self.clock(node);
        let mut out = Vec::new();
        self.process(node).steward.core.handle(now, input, &mut out);
        for output in out {
            match output {
                StewardOutput::ReadMap => {
                    let number = self.asks_store(node);
                    self.ask_store(node, Operation::ReadMap { number });
                }
                StewardOutput::ChangeMap { expected, next } => self.propose(node, expected, next),
                StewardOutput::Learned(map) => self.learn_map(node, map),
                StewardOutput::Announce(map) => self.announce(node, &map),
                StewardOutput::Failed { .. } => self.ledger.count("stewards that left the store alone for a while"),
                StewardOutput::Forgotten { .. } | StewardOutput::WrongSlots { .. } => {
                    self.ledger.fail(format!("nobody asked for {output:?}"));
                }
            }
        }
        self.wake_later(node);
    }

    fn wake_later(&mut self, node: usize) {
        let now_ms = self.clock(node).mono_ms;
        let steward = &mut self.process(node).steward;
        let Some(at_ms) = steward.core.wake_at_ms() else { return };
        if steward.wakes_at_ms.is_none_or(|planned| at_ms < planned) {
            steward.wakes_at_ms = Some(at_ms);
            self.input_after(at_ms.saturating_sub(now_ms), node, Input::StewardWake);
        }
    }

    pub(super) fn steward_wakes(&mut self, node: usize) {
        self.process(node).steward.wakes_at_ms = None;
        self.steward(node, StewardInput::Wake);
    }

    pub(super) fn retire(&mut self, node: usize) {
        self.process(node).steward.retired = true;
        self.steward(node, StewardInput::Retire);
    }

    fn asks_store(&mut self, node: usize) -> u64 {
        let number = self.number();
        self.process(node).steward.asked = Some(number);
        self.input_after(PATIENCE_MS, node, Input::StoreSilent(number));
        number
    }

    fn propose(&mut self, node: usize, expected: u64, next: SharedMap) {
        self.check_proposal(node, expected, &next);
        let process = self.process(node);
        let first = process.liveness.shown().alive().first() == Some(&process.member);
        self.ledger.count_if(!first, "stewards out of turn");
        let number = self.asks_store(node);
        self.ask_store(node, Operation::ChangeMap { number, expected, next });
        self.doom(node);
    }

    /// What no node may do, whatever the store makes of it.
    fn check_proposal(&mut self, node: usize, expected: u64, next: &SharedMap) {
        let hears_few = self.hears_few(node);
        let process = self.process(node);
        let (who, steward) = (process.member.clone(), &process.steward);
        let before = process.map.clone().filter(|map| map.version == expected);
        let wrong = [
            (steward.retired, "proposes a map while it leaves"),
            (steward.unsure, "proposes a map before it has read what came of its last one"),
            (
                before.is_some()
                    && hears_few
                    && steward.few_rounds >= SURELY_FEW
                    && steward.rounds_since_enough <= SURELY_NOT_ALL,
                "hears too few, and does not wait for the others",
            ),
        ];
        for (_, what) in wrong.iter().filter(|(is_so, _)| *is_so) {
            self.ledger.fail(format!("{who} {what}"));
        }
        if let Some(before) = before {
            self.check_not_given_up(node, &before, next);
        }
    }

    fn announce(&mut self, node: usize, map: &SharedMap) {
        let peers: Vec<_> = self.process(node).liveness.shown().peers().collect();
        for peer in peers {
            if !self.random.permille(self.profile.map_lost) {
                self.send(node, &peer, Frame::Map(map.clone()));
            }
        }
    }

    /// Whether this is the answer to what was asked last, and that was not given up.
    fn is_answer(&mut self, node: usize, number: u64) -> bool {
        let asked = &mut self.process(node).steward.asked;
        let is_answer = *asked == Some(number);
        if is_answer {
            *asked = None;
        }
        is_answer
    }

    /// Looks whether the store has another map.
    pub(super) fn watch_store(&mut self, node: usize) {
        let number = self.number();
        self.process(node).steward.watched = Some(number);
        self.ask_store(node, Operation::ReadMap { number });
        self.watch_store_later(node);
    }

    pub(super) fn watch_store_later(&mut self, node: usize) {
        self.input_after(WATCH_MS, node, Input::WatchStore);
    }

    pub(super) fn map_read(&mut self, node: usize, number: u64, result: Result<Option<SharedMap>, ()>) {
        if self.is_hint_answered(node, number) {
            return self.hint(node, HintInput::Read(result.ok().flatten()));
        }
        if self.process(node).steward.watched == Some(number) {
            self.process(node).steward.watched = None;
            if let Ok(Some(map)) = result {
                self.learn_map(node, map);
            }
            return;
        }
        if self.is_answer(node, number) {
            self.process(node).steward.unsure &= result.is_err();
            let found = result.map(|map| map.map(|map| ClusterMap::clone(&map))).map_err(|()| "down".to_owned());
            self.steward(node, StewardInput::Read(found));
        }
    }

    pub(super) fn map_changed(&mut self, node: usize, number: u64, change: MapChange) {
        if self.is_answer(node, number) {
            self.process(node).steward.unsure = change == MapChange::Unknown;
            self.steward(node, StewardInput::Changed(Ok(change)));
        }
    }

    pub(super) fn store_is_silent(&mut self, node: usize, number: u64) {
        if self.is_answer(node, number) {
            let silent = || "it did not answer in time".to_owned();
            if self.process(node).steward.is_changing() {
                self.ledger.count("map changes without an answer in time");
                self.process(node).steward.unsure = true;
                self.steward(node, StewardInput::Changed(Err(silent())));
            } else {
                self.steward(node, StewardInput::Read(Err(silent())));
            }
        }
    }
}
