//! A feed's position, and the registration at the primary that moves it on.

use super::{Attempt, Feed, FeedSettings, Notice, Output, Registration, To, backoff, contiguous_up_to};
use crate::{
    entry::Message,
    id::{Epoch, Position, Term},
    request::{JoinPoint, SlotError},
};

impl Feed {
    pub(super) fn next_renewal(&self, now_ms: u64) -> u64 {
        let FeedSettings { renew_ms, renew_phase_ms, .. } = *self.settings;
        let renew_ms = renew_ms.max(1);
        let into = (now_ms + renew_ms - renew_phase_ms % renew_ms) % renew_ms;
        let next_ms = now_ms + renew_ms - into;
        // Not right after this one.
        if next_ms - now_ms < renew_ms / 2 { next_ms + renew_ms } else { next_ms }
    }

    /// Asks for everything since the position. An answer still under way is void from now on.
    pub(super) fn register(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        let Some(since) = self.position.filter(|_| self.has_subscribers()) else {
            self.registration = Registration::Idle;
            self.register_again = true;
            self.unsettled_since_ms = None;
            // Nobody was told, or nobody is there any more.
            self.stale &= !self.live.is_empty() || self.unreachable_since_ms.is_some();
            return;
        };
        let attempt = self.next_attempt();
        self.registration = Registration::Asked { attempt, since, at_ms: now_ms };
        self.register_again = false;
        self.behind_until_ms = None;
        self.unsettled_since_ms.get_or_insert(now_ms);
        out.push(Output::AskRegister { attempt, since });
    }

    pub(super) fn unregister(&mut self, out: &mut Vec<Output>) {
        let attempt = self.next_attempt();
        let settings = self.settings.clone();
        let departing = std::mem::take(&mut self.departing);
        let unreachable_since_ms = self.unreachable_since_ms;
        *self = Self { unregistering: Some(attempt), departing, unreachable_since_ms, ..Self::new(settings, attempt) };
        out.push(Output::AskUnregister { attempt });
    }

    pub(super) fn pushed(&mut self, now_ms: u64, epoch: Epoch, message: Message, term: Term, out: &mut Vec<Output>) {
        let Some(position) = self.position else {
            if !self.joining.is_empty() {
                self.hold(epoch, message);
            } else if self.is_over() {
                // A registration that an earlier life of this feed left behind.
                self.unregister(out);
            }
            return;
        };
        if epoch == position.epoch {
            self.term = self.term.max(term);
            if message.offset <= position.offset {
                return;
            }
            if message.offset == position.offset + 1 {
                self.deliver(epoch, message, out);
                if !self.held.is_empty() {
                    self.deliver_held(out);
                }
                return;
            }
        } else if term < self.term {
            return;
        }
        self.hold(epoch, message);
        if matches!(self.registration, Registration::Idle) {
            self.register(now_ms, out);
        }
    }

    pub(super) fn hold(&mut self, epoch: Epoch, message: Message) {
        if !self.held.push(epoch, message, self.last_attempt, self.settings.bounds) {
            self.register_again = true;
        }
    }

    /// Moves the position by one message.
    pub(super) fn deliver(&mut self, epoch: Epoch, message: Message, out: &mut Vec<Output>) {
        let offset = message.offset;
        let follows = |position: Position| position.epoch != epoch || position.offset + 1 == offset;
        assert!(self.position.is_none_or(follows), "messages are delivered without a hole");
        self.position = Some(Position { epoch, offset });
        if self.joining.is_empty() {
            self.recent.floor = offset;
        } else {
            self.recent.push(message.clone(), self.settings.bounds);
        }
        let mut except = Vec::new();
        if !self.ahead.is_empty() {
            except.extend(self.ahead.iter().filter(|(_, after)| **after >= offset).map(|(subscriber, _)| *subscriber));
            self.ahead.retain(|_, after| *after > offset);
            if self.ahead.is_empty() {
                self.behind_until_ms = None;
            }
        }
        if self.live.len() > except.len() {
            out.push(Output::Tell { to: To::AllBut(except), notice: Notice::Message { epoch, message } });
        }
    }

    pub(super) fn deliver_held(&mut self, out: &mut Vec<Output>) {
        while let Some(position) = self.position {
            let Some(message) = self.held.take_next(position) else { break };
            self.deliver(position.epoch, message, out);
        }
    }

    /// Declares everything up to and with `to` missing to those who have not had it.
    pub(super) fn declare_gap(&mut self, position: Position, to: u64, out: &mut Vec<Output>) {
        let epoch = position.epoch;
        assert!(position.offset < to, "a gap is of something");
        let ahead = std::mem::take(&mut self.ahead);
        if self.live.len() > ahead.len() {
            let except = ahead.keys().copied().collect();
            out.push(Output::Tell {
                to: To::AllBut(except),
                notice: Notice::Gap { epoch, from: position.offset + 1, to },
            });
        }
        for (subscriber, after) in ahead {
            if after < to {
                out.push(Output::Tell { to: To::One(subscriber), notice: Notice::Gap { epoch, from: after + 1, to } });
            } else if after > to {
                self.ahead.insert(subscriber, after);
            }
        }
        self.position = Some(Position { epoch, offset: to });
        self.recent.restart(to);
    }

    pub(super) fn register_answer(
        &mut self,
        now_ms: u64,
        attempt: Attempt,
        result: Result<JoinPoint, SlotError>,
        out: &mut Vec<Output>,
    ) {
        let (Registration::Asked { attempt: asked, since, .. }, Some(position)) = (&self.registration, self.position)
        else {
            return;
        };
        if *asked != attempt {
            return;
        }
        let since = *since;
        let point = match result {
            Ok(point) if point.epoch == since.epoch && since.epoch == position.epoch && point.head < since.offset => {
                // Behind what was delivered before it was asked: a deposed primary.
                return self.retry(now_ms);
            }
            // It was asked since a position in another log: what follows the position in this one it does not tell.
            Ok(point) if point.epoch == position.epoch && since.epoch != position.epoch => {
                return self.register(now_ms, out);
            }
            Ok(point) => point,
            Err(_) => return self.retry(now_ms),
        };
        // What it does not tell has to be asked for.
        self.register_again |= point.is_partial();
        let present = point.present;
        if point.epoch == position.epoch {
            self.catch_up(attempt, point, out);
        } else {
            let position = Position { epoch: point.epoch, offset: point.up_to };
            self.position = Some(position);
            self.log_known_at = self.last_attempt;
            self.recent.restart(point.up_to);
            self.ahead.clear();
            self.tell_all(Notice::Reset(position), out);
        }
        self.note_present(now_ms, present, out);
        self.settle(now_ms, attempt, out);
    }

    /// Delivers what an answer brought, and declares what it proves to be gone.
    pub(super) fn catch_up(&mut self, attempt: Attempt, point: JoinPoint, out: &mut Vec<Output>) {
        let JoinPoint { epoch, up_to, messages, .. } = point;
        let behind = self.position.map_or(up_to, |position| position.offset);
        for message in contiguous_up_to(up_to, messages, behind) {
            self.held.insert(epoch, message, attempt);
        }
        self.deliver_held(out);
        while let Some(position) = self.position.filter(|position| position.offset < up_to) {
            let next = self.held.first_after(position).map_or(up_to, |offset| (offset - 1).min(up_to));
            self.declare_gap(position, next, out);
            self.deliver_held(out);
        }
    }

    /// After an answer: delivers what can be, and decides whether the feed is whole or has to ask again.
    pub(super) fn settle(&mut self, now_ms: u64, answered: Attempt, out: &mut Vec<Output>) {
        self.deliver_held(out);
        let Some(position) = self.position else { return };
        self.held.forget_old(position, answered);
        if !self.held.is_empty() {
            // Something later is here already: what lies between is on its way or lost.
            if self.failures == 0 {
                self.failures = 1;
                return self.register(now_ms, out);
            }
            return self.retry(now_ms);
        }
        self.failures = 0;
        if self.register_again {
            return self.register(now_ms, out);
        }
        match self.registration {
            // Only the answer to what was asked last, after the last disruption, proves that nothing is missing.
            Registration::Asked { attempt, .. } if attempt != answered => return,
            Registration::Retry { .. } => return,
            Registration::Asked { .. } | Registration::Idle => {}
        }
        self.registration = Registration::Idle;
        self.renew_at_ms = self.next_renewal(now_ms);
        self.unsettled_since_ms = None;
        if self.stale && self.unreachable_since_ms.is_none() {
            self.stale = false;
            self.tell_all(Notice::Live(position), out);
        }
        self.ask_due_joins(now_ms, true, out);
    }

    pub(super) fn retry(&mut self, now_ms: u64) {
        self.registration = Registration::Retry { at_ms: now_ms + backoff(&self.settings, self.failures) };
        self.failures += 1;
    }
}
