//! What a node holds, beside what it may hold. In runs with little memory publishers want more than fits.

use roost_logic::{id::Member, memory::Level, primary::SlotInput};

use super::{network::Frame, world::World};

impl World {
    /// The node's slots know at once how pressed it is, as the product's do after each batch.
    pub(super) fn weigh(&mut self, node: usize) {
        let Some(budget) = self.profile.memory_of(node) else { return };
        let process = self.process(node);
        let held = process.cores.iter().map(|core| core.replica().held_bytes().total()).sum();
        let level = Level::of(held, budget);
        let (me, before) = (process.member.clone(), std::mem::replace(&mut process.pressed, level));
        if before != level {
            self.ledger.count_if(level == Level::Full, "memories full");
            for slot in 0..self.profile.slots {
                // What an earlier slot commits when it is told may have changed it.
                let level = self.process(node).pressed;
                self.slot_input(node, slot, SlotInput::Memory { of: me.clone(), level });
            }
        }
    }

    /// Who holds more than it may, when nothing keeps the others from sparing it. Before that it may be so for a while: a
    /// copy comes whole to a node that may hold less than those that have it.
    pub(super) fn overfull(&self) -> Option<String> {
        let mut processes = self.nodes.iter().filter_map(|node| node.process.as_ref());
        let full = processes.find(|process| process.pressed == Level::Full)?;
        let copies: Vec<_> = full.cores.iter().map(|core| core.replica().held_bytes()).collect();
        Some(format!("L3: {} holds more than it may: {copies:?}", full.member))
    }

    /// The others are told of it.
    pub(super) fn tell_memory(&mut self, node: usize) {
        if self.profile.memory.is_none() {
            return;
        }
        let now = self.now;
        let process = self.process(node);
        let Some(level) = process.teller.look(now, process.pressed) else { return };
        let me = process.member.clone();
        let others = self.nodes.iter().filter_map(|other| other.process.as_ref()).map(|other| other.member.clone());
        let others: Vec<Member> = others.filter(|other| *other != me).collect();
        for other in others {
            self.send(node, &other, Frame::Memory(level));
        }
    }
}
