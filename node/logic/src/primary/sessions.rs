//! Requests about sessions, and what they make of the store and of gateways.

use std::collections::BTreeMap;

use super::{Asked, Displacing, Pending, Renewal, SlotCore, SlotOutput, Ticket, Waiting};
use crate::{
    Now,
    entry::{EndReason, Entry, SessionRecord},
    id::{AttachmentNumber, Index, Member, SessionId},
    request::{Push, SessionView, SlotAnswer, SlotError, SlotRequest},
    session::{Session, Stage},
    slot::Effect,
};

/// A new attachment waits so long for the earlier one's gateway to cut it off.
const DISPLACE_MS: u64 = 1_000;

impl SlotCore {
    pub(super) fn session_request(&mut self, now: Now, asked: Asked, out: &mut Vec<SlotOutput>) {
        let at_ms = now.wall_ms;
        if let SlotRequest::CreateSession { record } = asked.request {
            let pending = Pending::Create { ticket: asked.ticket, session: record.id };
            return self.order(Entry::SessionPut { record, stored: false }, pending);
        }
        if let SlotRequest::Renew { attachments } = asked.request {
            for (session, attachment, connection) in attachments {
                let gateway = asked.from.clone();
                self.renew(now, session, Renewal { gateway, attachment, connection }, out);
            }
            return out.push(SlotOutput::Answer { ticket: asked.ticket, result: Ok(SlotAnswer::Done) });
        }
        let Some(session) = session_of(&asked.request) else {
            return self.refuse(asked.ticket, out);
        };
        let Some(known) = self.state().and_then(|state| state.session(session)) else {
            if let SlotRequest::Detach { .. } | SlotRequest::ConfirmDisplaced { .. } = asked.request {
                return out.push(SlotOutput::Answer { ticket: asked.ticket, result: Ok(SlotAnswer::Done) });
            }
            let waiting = self.loading.entry(session).or_default();
            if waiting.is_empty() && !self.renewals.contains_key(&session) {
                out.push(SlotOutput::Load { session });
            }
            return waiting.push(asked);
        };
        if matches!(asked.request, SlotRequest::EndSession { .. }) && known.ended().is_some() {
            return self.over(self.replica.applied(), session, asked.ticket, out);
        }
        let over = known.ended().or_else(|| known.expired(at_ms));
        let Asked { ticket, from, request } = asked;
        if let (Some(reason), false) =
            (over, matches!(request, SlotRequest::Detach { .. } | SlotRequest::ConfirmDisplaced { .. }))
        {
            return out.push(SlotOutput::Answer { ticket, result: Err(SlotError::SessionEnded(reason)) });
        }
        let groups = known.record.groups.len();
        let view = self.view(session);
        match request {
            SlotRequest::ReadSession { .. } => {
                let result = view.map(SlotAnswer::Session).ok_or(SlotError::NoSession);
                out.push(SlotOutput::Answer { ticket, result });
            }
            SlotRequest::ChangeSession { change, .. } => {
                if groups + change.join.len() > self.settings.groups_per_session + change.leave.len() {
                    return out.push(SlotOutput::Answer { ticket, result: Err(SlotError::TooManyGroups) });
                }
                self.order(Entry::SessionChange { session, change, at_ms }, Pending::Change { ticket, session });
            }
            SlotRequest::EndSession { .. } => {
                self.order(
                    Entry::SessionEnd { session, reason: EndReason::Ended, at_ms },
                    Pending::End { ticket, session },
                );
            }
            SlotRequest::Attach { connection, waited_ms, .. } => {
                let since_ms = at_ms.saturating_sub(waited_ms.into());
                self.order(
                    Entry::Attach { session, gateway: from, connection, since_ms, at_ms },
                    Pending::Attach { ticket, session },
                );
            }
            SlotRequest::Detach { attachment, .. } => {
                let grace_until_ms = at_ms + self.settings.resume_grace_ms;
                let entry = Entry::Detach { session, attachment, at_ms, grace_until_ms, closed: true };
                self.order(entry, Pending::Done(ticket));
            }
            SlotRequest::ConfirmDisplaced { attachment, .. } => {
                let open = known.open.get(&from).is_some_and(|open| *open <= attachment);
                self.confirm_displaced(session, &from, attachment, out);
                if open {
                    self.order(Entry::Closed { session, gateway: from, attachment }, Pending::Nobody);
                }
                out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Done) });
            }
            SlotRequest::SessionJoin { group, .. } => {
                if groups >= self.settings.groups_per_session && !known_in(view.as_ref(), &group) {
                    return out.push(SlotOutput::Answer { ticket, result: Err(SlotError::TooManyGroups) });
                }
                self.order(Entry::SessionJoin { session, group }, Pending::Done(ticket));
            }
            SlotRequest::SessionLeave { group, .. } => {
                self.order(Entry::SessionLeave { session, group }, Pending::Done(ticket));
            }
            _ => self.refuse(ticket, out),
        }
    }

    pub(super) fn loaded(
        &mut self,
        now: Now,
        session: SessionId,
        result: Result<Option<SessionRecord>, String>,
        out: &mut Vec<SlotOutput>,
    ) {
        if !self.loading.contains_key(&session) && !self.renewals.contains_key(&session) {
            return;
        }
        let waiting = self.loading.remove(&session).unwrap_or_default();
        let error = match result {
            Ok(Some(record)) if record.expires_ms <= now.wall_ms => SlotError::SessionEnded(EndReason::Expired),
            Ok(Some(record)) if self.replica.serving().is_some() => {
                return self.order(Entry::SessionPut { record, stored: true }, Pending::Loaded(session, waiting));
            }
            Ok(Some(_)) => SlotError::NotPrimary { map_version: self.map_version },
            Ok(None) => SlotError::NoSession,
            Err(reason) => SlotError::StoreUnavailable(reason),
        };
        for renewal in self.renewals.remove(&session).unwrap_or_default() {
            let reason = match &error {
                SlotError::SessionEnded(reason) => *reason,
                SlotError::NoSession => EndReason::Ended,
                // The gateway will say it again.
                _ => continue,
            };
            self.push(&renewal.gateway, Push::SessionEnded { session, reason }, out);
        }
        for asked in waiting {
            out.push(SlotOutput::Answer { ticket: asked.ticket, result: Err(error.clone()) });
        }
    }

    /// The store has answered to a write.
    pub(super) fn saved(
        &mut self,
        now: Now,
        (session, index): (SessionId, Index),
        result: Result<(), String>,
        out: &mut Vec<SlotOutput>,
    ) {
        self.writes.remove(&session);
        if result.is_ok() {
            self.order_once(session, Entry::Saved { session, index });
        } else {
            self.save_again_ms = now.mono_ms + 1_000;
        }
        let (view, given_up) = (self.view(session), self.is_given_up(session));
        for (ticket, waiting) in self.saving.remove(&(session, index)).unwrap_or_default() {
            let result = match (&result, &view) {
                // The write of an earlier attempt failed before this one came through: the session is over.
                (Ok(()), _) if waiting == Waiting::Create && given_up => Err(not_stored()),
                (Ok(()), Some(view)) if waiting != Waiting::End => Ok(SlotAnswer::Session(view.clone())),
                (Ok(()), _) => Ok(SlotAnswer::Done),
                (Err(reason), _) if waiting == Waiting::Create => {
                    self.given_up.insert(session);
                    self.order(
                        Entry::SessionEnd { session, reason: EndReason::NotStored, at_ms: now.wall_ms },
                        Pending::GivenUp(session),
                    );
                    Err(SlotError::StoreUnavailable(reason.clone()))
                }
                // It stands in the slot's state and is written as soon as the store answers again.
                (Err(_), _) => Err(SlotError::Unknown),
            };
            out.push(SlotOutput::Answer { ticket, result });
        }
    }

    /// An entry about a session is committed.
    pub(super) fn session_committed(
        &mut self,
        now: Now,
        index: Index,
        pending: Pending,
        effect: Effect,
        out: &mut Vec<SlotOutput>,
    ) {
        // Gateways are told also of what an earlier primary had ordered.
        match &effect {
            Effect::Ended { session, attachment: Some(attachment) } => {
                self.tell_end(*session, &attachment.gateway, out);
            }
            Effect::Changed(session) => self.tell_change(*session, out),
            Effect::Attached { session, displaced, .. } => {
                self.heard.insert(*session, now.mono_ms);
                for (gateway, number) in displaced {
                    self.push(gateway, Push::Displace { session: *session, attachment: *number }, out);
                }
            }
            _ => {}
        }
        match (pending, effect) {
            (Pending::Loaded(session, waiting), _) => {
                for renewal in self.renewals.remove(&session).unwrap_or_default() {
                    self.renew(now, session, renewal, out);
                }
                // And those that have come since the store answered.
                let later = self.loading.remove(&session).unwrap_or_default();
                for asked in waiting.into_iter().chain(later) {
                    self.session_request(now, asked, out);
                }
            }
            (Pending::Create { ticket, session }, Effect::Session) => {
                self.save(index, session, Some((ticket, Waiting::Create)), out);
            }
            (Pending::Change { ticket, session }, Effect::Changed(_)) => {
                self.save(index, session, Some((ticket, Waiting::Change)), out);
            }
            (Pending::End { ticket, session }, Effect::Ended { .. } | Effect::NoSession(Some(_))) => {
                self.over(index, session, ticket, out);
            }
            (Pending::Attach { ticket, session }, Effect::Attached { attachment, displaced, .. }) => {
                self.attached(now, (ticket, session), attachment.number, displaced, out);
            }
            (Pending::Done(ticket), Effect::Session) => {
                out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Done) });
            }
            (Pending::Timer(session), _) => {
                self.timers.remove(&session);
            }
            (Pending::GivenUp(session), _) => {
                self.given_up.remove(&session);
            }
            (Pending::Create { ticket, .. }, Effect::NoSession(Some(EndReason::NotStored))) => {
                out.push(SlotOutput::Answer { ticket, result: Err(not_stored()) });
            }
            (
                Pending::Create { ticket, .. }
                | Pending::Change { ticket, .. }
                | Pending::End { ticket, .. }
                | Pending::Attach { ticket, .. }
                | Pending::Done(ticket),
                effect,
            ) => {
                let error = match effect {
                    Effect::NoSession(Some(reason)) => SlotError::SessionEnded(reason),
                    // It was there when this was asked, and has been forgotten since: the store has it.
                    _ => SlotError::Busy,
                };
                out.push(SlotOutput::Answer { ticket, result: Err(error) });
            }
            _ => {}
        }
    }

    /// Earlier attachments are cut off before the new one is answered (S7), or their gateways cannot be reached.
    fn attached(
        &mut self,
        now: Now,
        (ticket, session): (Ticket, SessionId),
        attachment: AttachmentNumber,
        earlier: BTreeMap<Member, AttachmentNumber>,
        out: &mut Vec<SlotOutput>,
    ) {
        let Some(view) = self.view(session) else {
            return self.refuse(ticket, out);
        };
        let answer = SlotAnswer::Attached { record: view.record, attachment };
        let until_ms = now.mono_ms + DISPLACE_MS;
        let mut displacing = Displacing { answers: Vec::new(), attachment, earlier, until_ms };
        if let Some(before) = self.displacing.remove(&session) {
            // Whom this one displaces waits on: its gateway knows that it is displaced before it hears the answer.
            displacing.answers = before.answers;
            if before.attachment == attachment {
                // A repeat waits for what the first one waits for.
                displacing.earlier = before.earlier;
                displacing.until_ms = before.until_ms;
            }
        }
        displacing.answers.push((ticket, answer));
        self.displacing.insert(session, displacing);
        self.answer_if_alone(session, out);
    }

    /// Who cannot be reached is not waited for; looked at each time, since the wrongly suspected come back.
    fn answer_if_alone(&mut self, session: SessionId, out: &mut Vec<SlotOutput>) {
        let reachable = |gateway| self.alive.is_empty() || self.alive.contains(gateway);
        let waits = self.displacing.get(&session).is_some_and(|displacing| displacing.earlier.keys().any(reachable));
        if !waits {
            self.answer_displacing(session, out);
        }
    }

    fn confirm_displaced(
        &mut self,
        session: SessionId,
        gateway: &Member,
        attachment: AttachmentNumber,
        out: &mut Vec<SlotOutput>,
    ) {
        let Some(displacing) = self.displacing.get_mut(&session) else {
            return;
        };
        if displacing.earlier.get(gateway).is_some_and(|earlier| *earlier <= attachment) {
            displacing.earlier.remove(gateway);
        }
        self.answer_if_alone(session, out);
    }

    pub(super) fn answer_displacing(&mut self, session: SessionId, out: &mut Vec<SlotOutput>) {
        if let Some(displacing) = self.displacing.remove(&session) {
            let answers = displacing.answers.into_iter();
            out.extend(answers.map(|(ticket, answer)| SlotOutput::Answer { ticket, result: Ok(answer) }));
        }
    }

    /// A gateway says that it still has this attachment: the slot may have lost sight of it, or have given it to another.
    fn renew(&mut self, now: Now, session: SessionId, renewal: Renewal, out: &mut Vec<SlotOutput>) {
        let Renewal { gateway, attachment, connection } = renewal;
        let Some(known) = self.state().and_then(|state| state.session(session)) else {
            // The slot has lost its memory, or the session is over and the gateway was not told: the store knows.
            if self.renewals.len() < self.settings.queue {
                let asked = self.loading.contains_key(&session) || self.renewals.contains_key(&session);
                self.renewals.entry(session).or_default().push(Renewal { gateway, attachment, connection });
                if !asked {
                    out.push(SlotOutput::Load { session });
                }
            }
            return;
        };
        let push = match (&known.stage, known.last_number()) {
            (Stage::Ended(reason), _) => Push::SessionEnded { session, reason: *reason },
            (_, last) if last > attachment => Push::Displace { session, attachment },
            (Stage::Attached, last) if last == attachment => {
                self.heard.insert(session, now.mono_ms);
                return;
            }
            _ => {
                // Its number is the time of the attach or later, so this gives it the number that it has.
                let (since_ms, at_ms) = (attachment, attachment);
                let entry = Entry::Attach { session, gateway, connection, since_ms, at_ms };
                return self.order(entry, Pending::Nobody);
            }
        };
        self.push(&gateway, push, out);
    }

    fn tell_change(&self, session: SessionId, out: &mut Vec<SlotOutput>) {
        let Some(known) = self.state().and_then(|state| state.session(session)) else {
            return;
        };
        if let Some(attachment) = known.attachment() {
            self.push(&attachment.gateway, Push::SessionChanged { record: known.record.clone() }, out);
        }
    }

    fn tell_end(&self, session: SessionId, gateway: &Member, out: &mut Vec<SlotOutput>) {
        let reason = self.state().and_then(|state| state.session(session)).and_then(|session| session.ended());
        self.push(gateway, Push::SessionEnded { session, reason: reason.unwrap_or(EndReason::Ended) }, out);
    }

    fn push(&self, to: &Member, push: Push, out: &mut Vec<SlotOutput>) {
        if let Some(term) = self.term {
            out.push(SlotOutput::Push { to: to.clone(), term, push });
        }
    }

    /// Answers who asked for the end of a session that is over now, or was: it is over for good only when the store knows.
    fn over(&mut self, index: Index, session: SessionId, ticket: Ticket, out: &mut Vec<SlotOutput>) {
        if self.state().and_then(|state| state.session(session)).is_some_and(Session::is_unsaved) {
            self.save(index, session, Some((ticket, Waiting::End)), out);
        } else {
            out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Done) });
        }
    }

    /// Writes the session through; whoever waits is answered when the store has it.
    pub(super) fn save(
        &mut self,
        index: Index,
        session: SessionId,
        waiting: Option<(Ticket, Waiting)>,
        out: &mut Vec<SlotOutput>,
    ) {
        let known = self.state().and_then(|state| state.session(session));
        let (Some(known), Some(term)) = (known, self.term) else {
            if let Some((ticket, _)) = waiting {
                self.refuse(ticket, out);
            }
            return;
        };
        let (record, ended) = (known.record.clone(), known.ended().is_some());
        out.push(SlotOutput::Save { record, ended, term, index });
        self.writes.insert(session);
        self.saving.entry((session, index)).or_default().extend(waiting);
    }

    /// Whether a new session is over because the store did not take it, or will be.
    fn is_given_up(&self, session: SessionId) -> bool {
        let known = self.state().and_then(|state| state.session(session));
        let over = known.is_none_or(|known| known.ended() == Some(EndReason::NotStored));
        over || self.given_up.contains(&session)
    }

    fn view(&self, session: SessionId) -> Option<SessionView> {
        let known = self.state()?.session(session)?;
        Some(SessionView {
            record: known.record.clone(),
            attached: known.attachment().is_some(),
            present: known.is_present(),
        })
    }
}

fn not_stored() -> SlotError {
    SlotError::StoreUnavailable("it did not take the session in time".to_owned())
}

fn known_in(view: Option<&SessionView>, group: &crate::id::GroupName) -> bool {
    view.is_some_and(|view| view.record.groups.contains(group))
}

fn session_of(request: &SlotRequest) -> Option<SessionId> {
    match request {
        SlotRequest::ReadSession { session }
        | SlotRequest::ChangeSession { session, .. }
        | SlotRequest::EndSession { session }
        | SlotRequest::Attach { session, .. }
        | SlotRequest::Detach { session, .. }
        | SlotRequest::ConfirmDisplaced { session, .. }
        | SlotRequest::SessionJoin { session, .. }
        | SlotRequest::SessionLeave { session, .. } => Some(*session),
        _ => None,
    }
}
