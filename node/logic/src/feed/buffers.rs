//! The two bounded buffers of a feed: what came too early, and what was delivered while clients are joining.

use std::collections::{BTreeMap, VecDeque};

use crate::{
    entry::{Message, Publisher},
    id::{Epoch, Position},
};

use super::Attempt;

/// Messages that cannot be delivered yet, because one before them is missing or the log is not known.
#[derive(Debug, Default)]
pub(super) struct Held {
    messages: BTreeMap<(Epoch, u64), Arrived>,
    bytes: usize,
}

#[derive(Debug)]
struct Arrived {
    message: Message,
    /// The last request that had been made by then.
    after: Attempt,
}

impl Held {
    /// Keeps a message that was pushed; false where there is no room.
    pub(super) fn push(&mut self, epoch: Epoch, message: Message, after: Attempt, bounds: Bounds) -> bool {
        let size = size_of(&message);
        if self.messages.len() >= bounds.messages || self.bytes + size > bounds.bytes {
            return self.messages.contains_key(&(epoch, message.offset));
        }
        self.insert(epoch, message, after);
        true
    }

    /// Keeps a message of an answer; the answer's own bound is enough.
    pub(super) fn insert(&mut self, epoch: Epoch, message: Message, after: Attempt) {
        self.bytes += size_of(&message);
        if let Some(same) = self.messages.insert((epoch, message.offset), Arrived { message, after }) {
            self.bytes -= size_of(&same.message);
        }
    }

    /// Takes the message that comes next after this position, if it is here.
    pub(super) fn take_next(&mut self, position: Position) -> Option<Message> {
        let arrived = self.messages.remove(&(position.epoch, position.offset + 1))?;
        self.bytes -= size_of(&arrived.message);
        Some(arrived.message)
    }

    /// The offset of the first message after this position, in the same log.
    pub(super) fn first_after(&self, position: Position) -> Option<u64> {
        let later = (position.epoch, position.offset + 1)..=(position.epoch, u64::MAX);
        self.messages.range(later).next().map(|((_, offset), _)| *offset)
    }

    /// Drops what lies behind the position, and what is of another log and came before the request with this number was
    /// made: its answer is later and says that the log is this one.
    pub(super) fn forget_old(&mut self, position: Position, answered: Attempt) {
        self.messages.retain(|(epoch, offset), arrived| {
            if *epoch == position.epoch { *offset > position.offset } else { arrived.after >= answered }
        });
        self.bytes = self.messages.values().map(|arrived| size_of(&arrived.message)).sum();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

/// The messages delivered last, for clients whose join point lies before them. Holds all of `(floor, position]`.
#[derive(Debug, Default)]
pub(super) struct Recent {
    pub(super) floor: u64,
    messages: VecDeque<Message>,
    bytes: usize,
}

impl Recent {
    /// Begins anew after this offset, with nothing.
    pub(super) fn restart(&mut self, floor: u64) {
        *self = Self { floor, ..Self::default() };
    }

    /// Keeps the next message; past the bounds the oldest go and the floor rises.
    pub(super) fn push(&mut self, message: Message, bounds: Bounds) {
        self.bytes += size_of(&message);
        self.messages.push_back(message);
        while self.messages.len() > bounds.messages || self.bytes > bounds.bytes {
            let Some(oldest) = self.messages.pop_front() else { break };
            self.bytes -= size_of(&oldest);
            self.floor = oldest.offset;
        }
    }

    /// What was delivered after this offset, which is not below the floor.
    pub(super) fn after(&self, offset: u64) -> impl Iterator<Item = &Message> {
        self.messages.iter().skip_while(move |message| message.offset <= offset)
    }
}

/// How much a buffer may hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// At most this number of messages.
    pub messages: usize,
    /// At most about this number of bytes.
    pub bytes: usize,
}

fn size_of(message: &Message) -> usize {
    let from = message.from.as_ref().map_or(0, |Publisher { user, .. }| user.len());
    message.data.len() + from + std::mem::size_of::<Message>()
}
