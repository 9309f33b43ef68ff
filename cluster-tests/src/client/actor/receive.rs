//! What the client's task does with each frame that comes.

use std::sync::Arc;

use roost::{
    clock,
    id::{Epoch, Position},
};
use serde_json::{Value, json};

use super::{
    super::{
        NOTICES_MAX, Published,
        frame::{Frame, logged},
    },
    Actor, Bye, PASSING, Pending, REPEAT_AFTER_MS, UNKNOWN_OUTCOME,
};
use crate::history::{Outcome, Seen, Stamped};

impl Actor {
    pub(super) fn received(&mut self, text: &str) {
        let at_us = clock::mono_us();
        let Ok(frame) = serde_json::from_str::<Frame>(text) else {
            return self.notice(json!({"type": "unreadable", "text": text}));
        };
        match &*frame.kind {
            "message" if frame.ephemeral => self.ephemeral(&frame, at_us),
            "message" => self.message(frame, at_us),
            "joined" | "left" | "published" | "history" | "members" => self.answer(frame, text, at_us),
            "error" if frame.id.is_some() => self.answer(frame, text, at_us),
            "heartbeat" => {}
            "gap" | "reset" | "stale" | "live" => self.declared(&frame, text, at_us),
            "displaced" => {
                self.log(at_us, Seen::Displaced);
                self.notice(parsed(text));
            }
            "bye" => {
                self.take_bye(text);
                self.notice(parsed(text));
            }
            _ => self.notice(parsed(text)),
        }
    }

    fn message(&mut self, frame: Frame, at_us: u64) {
        let (Some(group), Some(at), Some(data)) = (&frame.group, frame.position(), &frame.data) else {
            return self.notice(json!({"type": "unreadable", "text": "a message without group, position or data"}));
        };
        let group = self.name(group);
        self.log(at_us, Seen::Message { group: group.clone(), at, payload: logged(data.get()) });
        self.stand_at(&group, at);
        self.update(|state| *state.received.entry(group).or_default() += 1);
    }

    fn ephemeral(&mut self, frame: &Frame, at_us: u64) {
        let (Some(group), None, Some(data)) = (&frame.group, frame.position(), &frame.data) else {
            return self.notice(
                json!({"type": "unreadable", "text": "an ephemeral message with a position, or without group or data"}),
            );
        };
        let group = self.name(group);
        self.log(at_us, Seen::Ephemeral { group: group.clone(), payload: logged(data.get()) });
        self.update(|state| *state.ephemeral.entry(group).or_default() += 1);
    }

    fn declared(&mut self, frame: &Frame, text: &str, at_us: u64) {
        self.notice(parsed(text));
        let Some(group) = frame.group.as_deref().map(|group| self.name(group)) else { return };
        match (&*frame.kind, frame.position()) {
            ("gap", _) => {
                let epoch = frame.epoch.as_deref().and_then(|epoch| Epoch::parse(epoch).ok());
                let from = frame.from.as_ref().and_then(Value::as_u64);
                if let (Some(epoch), Some(from), Some(to)) = (epoch, from, frame.to) {
                    self.log(at_us, Seen::Gap { group: group.clone(), epoch, from, to });
                    self.stand_at(&group, Position { epoch, offset: to });
                }
            }
            ("reset", Some(to)) => {
                self.log(at_us, Seen::Reset { group: group.clone(), to });
                self.stand_at(&group, to);
            }
            ("stale", _) => self.log(at_us, Seen::Stale { group }),
            ("live", Some(at)) => self.log(at_us, Seen::Live { group, at }),
            _ => {}
        }
    }

    fn answer(&mut self, frame: Frame, text: &str, at_us: u64) {
        let pending = frame.id.and_then(|id| self.under_way.remove(&id));
        match pending {
            Some(Pending::Publish(index)) => self.publish_answered(index, &frame, text, at_us),
            Some(Pending::Request(_, answer, since)) => {
                self.note_membership(&frame, since, at_us);
                match answer {
                    Some(answer) => drop(answer.send(parsed(text))),
                    None => self.notice(parsed(text)),
                }
            }
            None => {
                // A restored group: the resume position was in the hello.
                let since = frame.group.as_deref().and_then(|group| self.positions.get(group).copied());
                let since = if &*frame.kind == "joined" { since } else { None };
                self.note_membership(&frame, since, at_us);
                self.notice(parsed(text));
            }
        }
    }

    fn note_membership(&mut self, frame: &Frame, since: Option<Position>, at_us: u64) {
        let Some(group) = frame.group.as_deref().map(|group| self.name(group)) else { return };
        match (&*frame.kind, frame.position()) {
            ("joined", Some(at)) => {
                let recovered = frame.recovered.unwrap_or(false);
                self.log(at_us, Seen::Joined { group: group.clone(), since, at, recovered });
                self.restoring.remove(&group);
                // What follows starts after `since` where it was recovered.
                self.stand_at(&group, since.filter(|_| recovered).unwrap_or(at));
            }
            ("left", _) => {
                self.log(at_us, Seen::Left { group: group.clone() });
                self.positions.remove(&group);
                self.restoring.remove(&group);
                self.update(|state| {
                    state.positions.remove(&group);
                });
            }
            _ => {}
        }
    }

    fn publish_answered(&mut self, index: usize, frame: &Frame, text: &str, at_us: u64) {
        let publish = &mut self.publishes[index];
        let Some(attempt) = publish.attempts.last_mut() else { return };
        attempt.answered_us = at_us;
        let done = if let ("published", Some(at)) = (&*frame.kind, frame.position()) {
            let copies = frame.copies.unwrap_or(0);
            attempt.outcome = Outcome::Acked { at, copies };
            Published::Acked { at, copies }
        } else {
            let code = frame.code.as_deref().unwrap_or_default();
            if code != UNKNOWN_OUTCOME {
                attempt.outcome = Outcome::Refused;
            }
            if code == UNKNOWN_OUTCOME || PASSING.contains(&code) || frame.retry_after_ms.is_some() {
                let after_ms = frame.retry_after_ms.unwrap_or(REPEAT_AFTER_MS);
                let at = self.to_publish.iter().position(|(_, other)| *other > index).unwrap_or(self.to_publish.len());
                self.to_publish.insert(at, (clock::mono_ms() + after_ms, index));
                return;
            }
            Published::Refused(parsed(text))
        };
        if let Some((answer, _room)) = self.answers.remove(&index) {
            // Whoever published may not care to know.
            let _ = answer.send(done);
        }
    }

    pub(super) fn take_bye(&mut self, text: &str) {
        if let Ok(frame) = serde_json::from_str::<Frame>(text) {
            self.bye = Some(Bye {
                reason: text.to_owned(),
                reconnect: frame.reconnect.unwrap_or(false),
                after_ms: frame.after_ms.unwrap_or(0),
            });
        }
    }

    pub(super) fn log(&mut self, at_us: u64, seen: Seen) {
        if let Some(connection) = self.connections.last_mut() {
            connection.events.push(Stamped { at_us, seen });
        }
    }

    fn stand_at(&mut self, group: &Arc<str>, at: Position) {
        self.positions.insert(group.clone(), at);
        self.update(|state| {
            state.positions.insert(group.clone(), at);
        });
    }

    pub(super) fn notice(&mut self, frame: Value) {
        self.update(|state| {
            if state.notices.len() == NOTICES_MAX {
                state.notices.remove(0);
            }
            state.notices.push(frame);
        });
    }

    fn name(&mut self, group: &str) -> Arc<str> {
        if let Some(name) = self.groups.get(group) {
            return name.clone();
        }
        let name: Arc<str> = group.into();
        self.groups.insert(group.into(), name.clone());
        name
    }
}

/// The whole frame, for people.
fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::from(text))
}
