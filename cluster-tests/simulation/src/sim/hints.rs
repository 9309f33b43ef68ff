//! What carries the core of hints: maps that peers tell of, and the store that is asked about them.

use std::collections::BTreeSet;

use roost_logic::{
    hints::{HintInput, HintOutput, Hints},
    id::NodeId,
    liveness::Picture,
};

use super::{network::Frame, node::Input, store::Operation, world::World};

/// A process's hints.
#[derive(Debug, Default)]
pub(super) struct HintsOf {
    core: Hints,
    /// The number of what the store was asked; nothing once that is answered.
    asked: Option<u64>,
    /// When it is woken next.
    wakes_at_ms: Option<u64>,
}

impl World {
    /// After a look: who is there, what they say of maps, and whether the store answers.
    pub(super) fn hints_of_round(&mut self, node: usize, picture: &Picture) {
        let known = self.process(node).map.as_ref().map_or(0, |map| map.version);
        let peers: BTreeSet<NodeId> = picture.linked_peers().cloned().collect();
        self.hint(node, HintInput::StoreIsUp(!self.store.down));
        self.hint(node, HintInput::Peers(peers));
        for (member, version) in picture.know_more(known) {
            self.hint(node, HintInput::Told { by: member.node, version });
        }
    }

    pub(super) fn hint(&mut self, node: usize, input: HintInput) {
        let now_ms = self.clock(node).mono_ms;
        let mut out = Vec::new();
        self.process(node).hints.core.handle(now_ms, input, &mut out);
        for output in out {
            match output {
                HintOutput::ReadMap => {
                    let number = self.number();
                    self.process(node).hints.asked = Some(number);
                    self.ask_store(node, Operation::ReadMap { number });
                }
                HintOutput::FetchMap { from, newer_than } => {
                    let peers: Vec<_> = self.process(node).liveness.shown().peers().collect();
                    if let Some(peer) = peers.iter().find(|peer| peer.node == from) {
                        self.send(node, peer, Frame::FetchMap { newer_than });
                    }
                }
                HintOutput::Take(map) => {
                    let truth = self.store.map.as_ref().map_or(0, |map| map.version);
                    if map.version > truth {
                        self.ledger.fail(format!("a map of version {} is taken, the store has {truth}", map.version));
                    }
                    self.ledger.count_if(self.store.down, "maps taken from peers, the store away");
                    self.learn_map(node, map);
                }
                HintOutput::Lied { by, version, stored, until_ms } => {
                    self.lied(node, &by, until_ms);
                    self.ledger.count("maps told of that were never made");
                    if self.profile.lie.is_none() {
                        self.ledger.fail(format!("{by} is said to lie of map {version}, the store had {stored}"));
                    }
                }
            }
        }
        self.hints_wake_later(node);
    }

    fn hints_wake_later(&mut self, node: usize) {
        let now_ms = self.clock(node).mono_ms;
        let hints = &mut self.process(node).hints;
        let Some(at_ms) = hints.core.wake_at_ms() else { return };
        if hints.wakes_at_ms.is_none_or(|planned| at_ms < planned) {
            hints.wakes_at_ms = Some(at_ms);
            self.input_after(at_ms.saturating_sub(now_ms), node, Input::HintsWake);
        }
    }

    pub(super) fn hints_wake(&mut self, node: usize) {
        self.process(node).hints.wakes_at_ms = None;
        self.hint(node, HintInput::Wake);
    }

    /// Whether this is the answer to what the hints asked last.
    pub(super) fn is_hint_answered(&mut self, node: usize, number: u64) -> bool {
        let asked = &mut self.process(node).hints.asked;
        let is_answer = *asked == Some(number);
        if is_answer {
            *asked = None;
        }
        is_answer
    }
}
