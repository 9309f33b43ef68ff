//! What slots have yet to hear of this gateway: said until they answer. A slot that does not answer keeps none of the others
//! waiting.

use std::collections::{BTreeMap, VecDeque};

use super::{Goodbye, Output};
use crate::{id::SlotId, request::SlotError};

/// Under way at once for each slot.
const AT_ONCE: usize = 32;
/// For all slots. Past it a goodbye is not said: the slot lets go of an attachment that nobody renews, after 20 s.
const MOST: usize = 65_536;
/// After one that was not heard, the slot is left alone for this long; twice as long each time, up to the longest.
const PAUSE_MS: u64 = 250;
const PAUSE_MAX_MS: u64 = 4_000;

#[derive(Debug, Default)]
pub(super) struct Goodbyes {
    last: u64,
    slots: BTreeMap<SlotId, Queue>,
    under_way: BTreeMap<u64, (SlotId, Goodbye)>,
    waiting: usize,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Goodbye>,
    under_way: usize,
    pause_ms: u64,
    not_before_ms: u64,
}

impl Goodbyes {
    pub(super) fn add(&mut self, slot: SlotId, goodbye: Goodbye) {
        if self.waiting < MOST {
            self.waiting += 1;
            self.slots.entry(slot).or_default().waiting.push_back(goodbye);
        }
    }

    /// Says what may be said now.
    pub(super) fn flush(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        if self.waiting == 0 {
            return;
        }
        for (slot, queue) in &mut self.slots {
            while queue.not_before_ms <= now_ms
                && queue.under_way < AT_ONCE
                && let Some(goodbye) = queue.waiting.pop_front()
            {
                self.last += 1;
                queue.under_way += 1;
                self.waiting -= 1;
                self.under_way.insert(self.last, (*slot, goodbye));
                out.push(Output::Say { number: self.last, slot: *slot, goodbye });
            }
        }
    }

    /// A slot has answered, or did not.
    pub(super) fn said(&mut self, now_ms: u64, number: u64, result: &Result<(), SlotError>) {
        let Some((slot, goodbye)) = self.under_way.remove(&number) else { return };
        let queue = self.slots.entry(slot).or_default();
        queue.under_way -= 1;
        if is_heard(result) {
            queue.pause_ms = 0;
        } else {
            // Those that were under way together fail together, and count once.
            if queue.not_before_ms <= now_ms {
                queue.pause_ms = (queue.pause_ms * 2).clamp(PAUSE_MS, PAUSE_MAX_MS);
                queue.not_before_ms = now_ms + queue.pause_ms;
            }
            queue.waiting.push_front(goodbye);
            self.waiting += 1;
        }
        if queue.under_way == 0 && queue.waiting.is_empty() {
            self.slots.remove(&slot);
        }
    }
}

/// Whether the slot knows now, or has nothing to know of.
fn is_heard(result: &Result<(), SlotError>) -> bool {
    result.as_ref().map_or_else(|error| error.session_over().is_some(), |()| true)
}
