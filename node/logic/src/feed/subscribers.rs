//! The subscribers of a feed: joining, live, and those whose presence is being taken back.

use std::collections::BTreeMap;

use super::{
    BEYOND_HEAD_REPEATS, Departing, Feed, JoinStage, Joining, Notice, Output, Registration, Subscriber, To, backoff,
    contiguous_up_to,
};
use crate::{
    feed::Attempt,
    id::{Position, Seat},
    request::{JoinPoint, SlotError},
};

impl Feed {
    pub(super) fn subscribe(&mut self, now_ms: u64, subscriber: Subscriber, joining: Joining, out: &mut Vec<Output>) {
        self.empty_since_ms = None;
        self.live.remove(&subscriber);
        self.ahead.remove(&subscriber);
        self.behind.remove(&subscriber);
        let give_up_ms = joining.give_up_ms;
        if let Some(earlier) = self.joining.insert(subscriber, joining).filter(|earlier| !earlier.replay) {
            out.push(Output::JoinFailed { subscriber, request: earlier.request, error: SlotError::Busy });
        }
        self.joins_due_ms = self.joins_due_ms.min(give_up_ms);
        if !self.departing.contains_key(&subscriber) {
            self.ask_join(subscriber, out);
        }
        if self.register_again && matches!(self.registration, Registration::Idle) {
            self.register(now_ms, out);
        }
    }

    pub(super) fn unsubscribe(
        &mut self,
        now_ms: u64,
        subscriber: Subscriber,
        leave: Option<Seat>,
        out: &mut Vec<Output>,
    ) {
        let was_live = self.live.remove(&subscriber);
        self.ahead.remove(&subscriber);
        let was_behind = self.behind.remove(&subscriber).is_some();
        let joining = self.joining.remove(&subscriber);
        if !was_live && !was_behind && joining.is_none() {
            return;
        }
        if let Some(seat) = leave {
            let asked = joining.and_then(|joining| match joining.stage {
                JoinStage::Asked(attempt) => Some(attempt),
                JoinStage::Paused { .. } | JoinStage::AfterLeave => None,
            });
            self.depart(subscriber, seat, asked, out);
        }
        self.joining_changed();
        if !self.has_subscribers() {
            self.empty_since_ms = Some(now_ms);
        }
    }

    /// It had no room for what follows `at`; so nothing more is told to it before [`Feed::room`].
    pub(super) fn lag(&mut self, subscriber: Subscriber, at: Position, out: &mut Vec<Output>) {
        let was_live = self.live.remove(&subscriber);
        self.ahead.remove(&subscriber);
        if let Some(behind) = self.behind.get_mut(&subscriber) {
            // The page after which it was to be behind did not fit whole.
            *behind = at;
        } else if was_live {
            self.behind.insert(subscriber, at);
            out.push(Output::Behind { subscriber });
        }
    }

    /// It has room for a page.
    pub(super) fn room(&mut self, now_ms: u64, subscriber: Subscriber, out: &mut Vec<Output>) {
        let Some(at) = self.behind.remove(&subscriber) else { return };
        let give_up_ms = now_ms + self.settings.join_ms;
        let stage = JoinStage::AfterLeave;
        let joining =
            Joining { request: None, member: None, since: Some(at), replay: true, give_up_ms, repeats: 0, stage };
        self.joining.insert(subscriber, joining);
        self.joins_due_ms = self.joins_due_ms.min(give_up_ms);
        self.ask_join(subscriber, out);
    }

    /// Takes a presence back; after the join that is to enter it, where that one is under way.
    pub(super) fn depart(&mut self, subscriber: Subscriber, seat: Seat, join: Option<Attempt>, out: &mut Vec<Output>) {
        if self.departing.contains_key(&subscriber) {
            // The one under way ends this presence too: no join of it was asked in between.
            return;
        }
        let asked = join.is_none();
        let waits_for = join.unwrap_or_else(|| self.next_attempt());
        self.departing.insert(subscriber, Departing { seat, waits_for, asked });
        if asked {
            out.push(Output::AskLeave { attempt: waits_for, subscriber, seat });
        }
    }

    pub(super) fn depart_after_join(&mut self, attempt: Attempt, subscriber: Subscriber, out: &mut Vec<Output>) {
        let next = self.last_attempt + 1;
        let Some(departing) = self.departing.get_mut(&subscriber) else { return };
        if !departing.asked && departing.waits_for == attempt {
            departing.asked = true;
            departing.waits_for = next;
            self.last_attempt = next;
            out.push(Output::AskLeave { attempt: next, subscriber, seat: departing.seat });
        }
    }

    pub(super) fn leave_answer(&mut self, attempt: Attempt, subscriber: Subscriber, out: &mut Vec<Output>) {
        if self.departing.get(&subscriber).is_none_or(|departing| !departing.asked || departing.waits_for != attempt) {
            return;
        }
        self.departing.remove(&subscriber);
        if self.joining.get(&subscriber).is_some_and(|joining| joining.stage == JoinStage::AfterLeave) {
            self.ask_join(subscriber, out);
        }
    }

    pub(super) fn ask_join(&mut self, subscriber: Subscriber, out: &mut Vec<Output>) {
        let attempt = self.next_attempt();
        let Some(joining) = self.joining.get_mut(&subscriber) else { return };
        joining.stage = JoinStage::Asked(attempt);
        out.push(Output::AskJoin { attempt, subscriber, member: joining.member.clone(), since: joining.since });
    }

    /// Asks the joins whose pause is over, or all that pause, and gives up those that took too long.
    pub(super) fn ask_due_joins(&mut self, now_ms: u64, all: bool, out: &mut Vec<Output>) {
        let mut due = Vec::new();
        let mut late = Vec::new();
        self.joins_due_ms = u64::MAX;
        for (subscriber, joining) in &self.joining {
            let mut next_ms = joining.give_up_ms;
            match joining.stage {
                // The request itself has a deadline, and its answer a reason.
                JoinStage::Asked(_) if joining.give_up_ms + self.settings.answer_ms > now_ms => {
                    next_ms += self.settings.answer_ms;
                }
                _ if joining.give_up_ms <= now_ms => {
                    late.push(*subscriber);
                    continue;
                }
                JoinStage::Paused { until_ms } if all || until_ms <= now_ms => due.push(*subscriber),
                JoinStage::Paused { until_ms } => next_ms = next_ms.min(until_ms),
                JoinStage::Asked(_) | JoinStage::AfterLeave => {}
            }
            self.joins_due_ms = self.joins_due_ms.min(next_ms);
        }
        for subscriber in due {
            self.ask_join(subscriber, out);
        }
        for subscriber in late {
            self.fail_join(now_ms, subscriber, SlotError::Unknown, out);
        }
    }

    pub(super) fn fail_join(&mut self, now_ms: u64, subscriber: Subscriber, error: SlotError, out: &mut Vec<Output>) {
        let Some(joining) = self.joining.remove(&subscriber) else { return };
        if let (true, Some(at)) = (joining.replay, joining.since) {
            self.behind.insert(subscriber, at);
            out.push(Output::ReplayFailed { subscriber, error });
            return self.joining_changed();
        }
        if let (Some(member), SlotError::Unknown) = (&joining.member, &error) {
            let asked = match joining.stage {
                JoinStage::Asked(attempt) => Some(attempt),
                JoinStage::Paused { .. } | JoinStage::AfterLeave => None,
            };
            // Whoever is told that it has not joined is not to be seen by others either.
            let seat = member.seat();
            self.depart(subscriber, seat, asked, out);
        }
        out.push(Output::JoinFailed { subscriber, request: joining.request, error });
        self.joining_changed();
        if !self.has_subscribers() {
            self.empty_since_ms.get_or_insert(now_ms);
        }
    }

    pub(super) fn joining_changed(&mut self) {
        if self.joining.is_empty() {
            // A map that has been emptied keeps its memory, which is more than all else of a group with one subscriber.
            self.joining = BTreeMap::new();
            self.joins_due_ms = u64::MAX;
            self.recent.restart(self.position.map_or(0, |position| position.offset));
        }
    }

    pub(super) fn join_answer(
        &mut self,
        now_ms: u64,
        attempt: Attempt,
        subscriber: Subscriber,
        result: Result<JoinPoint, SlotError>,
        out: &mut Vec<Output>,
    ) {
        let Some(joining) = self.joining.get(&subscriber) else { return };
        if joining.stage != JoinStage::Asked(attempt) {
            return;
        }
        let point = match result {
            Ok(point) => point,
            Err(error) => return self.fail_join(now_ms, subscriber, error, out),
        };
        let beyond = joining.since.is_some_and(|since| since.epoch == point.epoch && since.offset > point.head);
        if beyond && (joining.replay || joining.repeats < BEYOND_HEAD_REPEATS) {
            // The client has seen more than this primary: most likely it is deposed and does not know yet.
            return self.pause_join(now_ms, subscriber, out);
        }
        match self.position {
            // The answer is the later one, and nobody depends on the old log.
            Some(position) if position.epoch != point.epoch && self.live.is_empty() && attempt > self.log_known_at => {
                self.position = None;
            }
            Some(position) if position.epoch != point.epoch => {
                // One of the two is outdated; a registration tells.
                self.pause_join(now_ms, subscriber, out);
                if matches!(self.registration, Registration::Idle) {
                    self.register(now_ms, out);
                }
                return;
            }
            // An answer that does not bring the client on, and cannot have it live either.
            Some(_) if point.up_to < self.recent.floor && point.messages.is_empty() => {
                return self.pause_join(now_ms, subscriber, out);
            }
            Some(_) | None => {}
        }
        let first = self.position.is_none();
        if first && point.is_partial() {
            // The log goes on after it: this is a place for the client, but not for the feed.
            self.complete_join(subscriber, point, None, out);
            return self.joining_changed();
        }
        let position = *self.position.get_or_insert(Position { epoch: point.epoch, offset: point.up_to });
        if first {
            self.log_known_at = self.last_attempt;
            self.recent.restart(point.up_to);
            self.renew_at_ms = self.next_renewal(now_ms);
        } else if point.up_to > position.offset {
            self.behind_until_ms.get_or_insert(now_ms + self.settings.settle_ms);
        }
        self.complete_join(subscriber, point, Some(position), out);
        if first {
            self.settle(now_ms, attempt, out);
        }
        self.joining_changed();
    }

    /// Asks again: at once for the first time (answers were merely late), then with growing pauses.
    pub(super) fn pause_join(&mut self, now_ms: u64, subscriber: Subscriber, out: &mut Vec<Output>) {
        let Some(joining) = self.joining.get_mut(&subscriber) else { return };
        joining.repeats += 1;
        let repeats = joining.repeats;
        if repeats == 1 {
            return self.ask_join(subscriber, out);
        }
        let until_ms = now_ms + backoff(&self.settings, repeats - 2);
        joining.stage = JoinStage::Paused { until_ms };
        self.joins_due_ms = self.joins_due_ms.min(until_ms);
    }

    /// Tells the client what the answer brought. It is live from there, where the feed has a position and what was
    /// delivered recently goes on from the answer; otherwise it is behind.
    pub(super) fn complete_join(
        &mut self,
        subscriber: Subscriber,
        point: JoinPoint,
        position: Option<Position>,
        out: &mut Vec<Output>,
    ) {
        let Some(joining) = self.joining.remove(&subscriber) else { return };
        let JoinPoint { epoch, up_to: head, recovered, messages, present, .. } = point;
        let since = joining.since.filter(|since| since.epoch == epoch && since.offset <= head);
        // Only what is proven by the messages themselves is claimed.
        let kept = contiguous_up_to(head, messages, since.map_or(head, |since| since.offset));
        let first = kept.first().map_or(head + 1, |message| message.offset);
        let whole = since.is_some_and(|since| first == since.offset + 1);
        let recovered = recovered && (joining.since.is_none() || whole);
        let one = |notice| Output::Tell { to: To::One(subscriber), notice };
        if joining.replay {
            out.push(Output::Replay { subscriber });
        } else {
            out.push(Output::Joined { subscriber, request: joining.request, epoch, offset: head, recovered });
            // What all were told last, where that may be later than this answer.
            let present = self.counts.as_ref().map(|counts| counts.told().unwrap_or(present));
            out.extend(present.map(|present| one(Notice::Present(present))));
        }
        if joining.replay && since.is_none() {
            out.push(one(Notice::Reset(Position { epoch, offset: head })));
        }
        if let Some(since) = since {
            if !whole {
                out.push(one(Notice::Gap { epoch, from: since.offset + 1, to: first - 1 }));
            }
            out.extend(kept.into_iter().map(|message| one(Notice::Message { epoch, message })));
        }
        let Some(position) = position.filter(|_| head >= self.recent.floor) else {
            self.behind.insert(subscriber, Position { epoch, offset: head });
            out.push(Output::Behind { subscriber });
            return;
        };
        let was_live = !self.live.insert(subscriber);
        assert!(!was_live && !self.behind.contains_key(&subscriber), "who joins is neither live nor behind");
        out.extend(self.recent.after(head).map(|message| one(Notice::Message { epoch, message: message.clone() })));
        if head > position.offset {
            self.ahead.insert(subscriber, head);
        }
        if self.stale {
            out.push(one(Notice::Stale));
        } else if joining.replay {
            out.push(one(Notice::Live(Position { epoch, offset: head.max(position.offset) })));
        }
    }
}
