//! Publishers of what nobody keeps: they send some messages at once to some group by some gateway, and never again, whatever
//! comes of it.

use std::ops::Range;

use bytes::Bytes;
use roost_logic::request::{Ask, Done, PublishEphemeral, SlotError};

use super::{
    asks::Purpose,
    node::Input,
    world::{Event, World},
};

/// Between two of them, in the mean.
const PAUSE_MS: u64 = 200;
/// Messages that are sent at once, at most.
const BURST_MAX: u64 = 4;

impl World {
    pub(super) fn create_ephemeral(&mut self) {
        for number in 0..self.profile.cursors {
            let after = self.random.below(2_000);
            self.after(after, Event::Ephemeral(number));
        }
    }

    /// Time for the next ones.
    pub(super) fn send_ephemeral(&mut self, number: usize) {
        if self.resting {
            return;
        }
        let after = self.random.waiting(PAUSE_MS);
        self.after(after, Event::Ephemeral(number));
        let Some(node) = self.some_node() else { return };
        let group = self.random.index(self.groups.len());
        let (group, slot) = self.groups[group].clone();
        let count = self.random.between(1, BURST_MAX);
        let data: Vec<_> = (0..count).map(|_| Bytes::from(format!("\"e{}\"", self.number()))).collect();
        let messages = self.seen.sends_ephemeral(self.now, number, &group, &data);
        let publish = PublishEphemeral { data: data.into_iter().collect(), from: None };
        let request = (group, publish).into_request();
        self.input_after(0, node, Input::Client(Purpose::Ephemeral { messages }, slot, request));
    }

    /// A publisher is told what came of these.
    pub(super) fn ephemeral_answered(&mut self, messages: Range<usize>, result: Result<Done, SlotError>) {
        match result {
            Ok(Done) => self.ledger.count("ephemeral messages passed on"),
            Err(SlotError::Unknown) => self.ledger.count("ephemeral messages of unknown outcome"),
            Err(_) => {
                self.ledger.count("ephemeral messages refused");
                self.seen.refused_ephemeral(messages);
            }
        }
    }
}
