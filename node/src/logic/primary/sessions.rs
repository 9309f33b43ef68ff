//! Requests about sessions, and what they make of the store and of gateways.

use super::{Asked, Displacing, Pending, SlotCore, SlotOutput, Ticket};
use crate::{
    id::{AttachmentNumber, Index, Member, SessionId},
    logic::{
        Now,
        entry::{EndReason, Entry, SessionRecord},
        request::{Push, SessionView, SlotAnswer, SlotError, SlotRequest},
        session::Stage,
        slot::Effect,
    },
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
                self.renew(now, &asked.from, session, attachment, connection, out);
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
            if waiting.is_empty() {
                out.push(SlotOutput::Load { session });
            }
            return waiting.push(asked);
        };
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
            SlotRequest::Attach { connection, .. } => {
                self.order(
                    Entry::Attach { session, gateway: from, connection, at_ms },
                    Pending::Attach { ticket, session },
                );
            }
            SlotRequest::Detach { attachment, .. } => {
                let grace_until_ms = at_ms + self.settings.resume_grace_ms;
                self.order(Entry::Detach { session, attachment, at_ms, grace_until_ms }, Pending::Done(ticket));
            }
            SlotRequest::ConfirmDisplaced { attachment, .. } => {
                if self.displacing.get(&session).is_some_and(|displacing| displacing.earlier <= attachment) {
                    self.answer_displacing(session, out);
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
                self.order(Entry::SessionLeave { session, group }, Pending::Done(ticket))
            }
            _ => self.refuse(ticket, out),
        }
    }

    pub(super) fn loaded(
        &mut self,
        now: Now,
        session: SessionId,
        result: Result<Option<SessionRecord>, ()>,
        out: &mut Vec<SlotOutput>,
    ) {
        let Some(waiting) = self.loading.remove(&session) else {
            return;
        };
        let error = match result {
            Ok(Some(record)) if record.expires_ms <= now.wall_ms => SlotError::SessionEnded(EndReason::Expired),
            Ok(Some(record)) if self.replica.serving().is_some() => {
                return self.order(Entry::SessionPut { record, stored: true }, Pending::Loaded(waiting));
            }
            Ok(Some(_)) => SlotError::NotPrimary { map_version: self.map_version },
            Ok(None) => SlotError::NoSession,
            Err(()) => SlotError::StoreUnavailable,
        };
        for asked in waiting {
            out.push(SlotOutput::Answer { ticket: asked.ticket, result: Err(error.clone()) });
        }
    }

    /// The store has answered to a write.
    pub(super) fn saved(&mut self, now: Now, session: SessionId, index: Index, ok: bool, out: &mut Vec<SlotOutput>) {
        self.timers.remove(&session);
        if ok {
            self.order(Entry::Saved { session, index }, Pending::Nobody);
        } else {
            self.save_again_ms = now.mono_ms + 1_000;
        }
        let view = self.view(session);
        for (ticket, creates) in self.saving.remove(&(session, index)).unwrap_or_default() {
            let result = match (ok, &view) {
                (true, Some(view)) => Ok(SlotAnswer::Session(view.clone())),
                (true, None) => Ok(SlotAnswer::Done),
                (false, _) if creates => {
                    self.order(
                        Entry::SessionEnd { session, reason: EndReason::NotStored, at_ms: now.wall_ms },
                        Pending::Nobody,
                    );
                    Err(SlotError::StoreUnavailable)
                }
                // It stands in the slot's state and is written as soon as the store answers again.
                (false, _) => Err(SlotError::Unknown),
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
        match (pending, effect) {
            (Pending::Loaded(waiting), _) => {
                for asked in waiting {
                    self.session_request(now, asked, out);
                }
            }
            (Pending::Create { ticket, session }, Effect::Session) => {
                self.save(index, session, Some((ticket, true)), out)
            }
            (Pending::Change { ticket, session }, Effect::Session) => {
                self.save(index, session, Some((ticket, false)), out);
                self.tell_change(session, out);
            }
            (Pending::End { ticket, session }, Effect::Ended { attachment }) => {
                self.tell_end(session, attachment.map(|attachment| attachment.gateway), out);
                self.save(index, session, Some((ticket, false)), out);
            }
            (Pending::Attach { ticket, session }, Effect::Attached { attachment, displaced }) => {
                self.attached(now, (ticket, session), attachment.number, displaced, out);
            }
            (Pending::Done(ticket), Effect::Session) => {
                out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Done) })
            }
            (Pending::Timer(session), effect) => {
                self.timers.remove(&session);
                if let Effect::Ended { attachment } = effect {
                    self.tell_end(session, attachment.map(|attachment| attachment.gateway), out);
                }
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
                    _ => SlotError::NoSession,
                };
                out.push(SlotOutput::Answer { ticket, result: Err(error) });
            }
            _ => {}
        }
    }

    /// The earlier attachment is cut off before the new one is answered (S7), or its gateway cannot be reached.
    fn attached(
        &mut self,
        now: Now,
        (ticket, session): (Ticket, SessionId),
        attachment: AttachmentNumber,
        displaced: Option<crate::logic::session::Attachment>,
        out: &mut Vec<SlotOutput>,
    ) {
        let Some(view) = self.view(session) else {
            return self.refuse(ticket, out);
        };
        let answer = SlotAnswer::Attached { record: view.record, attachment };
        self.answer_displacing(session, out);
        let Some(earlier) = displaced else {
            return out.push(SlotOutput::Answer { ticket, result: Ok(answer) });
        };
        self.push(&earlier.gateway, Push::Displace { session, attachment: earlier.number }, out);
        if self.alive.is_empty() || self.alive.contains(&earlier.gateway) {
            let until_ms = now.mono_ms + DISPLACE_MS;
            self.displacing.insert(session, Displacing { ticket, earlier: earlier.number, until_ms, answer });
        } else {
            out.push(SlotOutput::Answer { ticket, result: Ok(answer) });
        }
    }

    pub(super) fn answer_displacing(&mut self, session: SessionId, out: &mut Vec<SlotOutput>) {
        if let Some(Displacing { ticket, answer, .. }) = self.displacing.remove(&session) {
            out.push(SlotOutput::Answer { ticket, result: Ok(answer) });
        }
    }

    /// A gateway says that it still has this attachment: the slot may have lost sight of it, or have given it to another.
    fn renew(
        &mut self,
        now: Now,
        from: &Member,
        session: SessionId,
        attachment: AttachmentNumber,
        connection: u64,
        out: &mut Vec<SlotOutput>,
    ) {
        let Some(known) = self.state().and_then(|state| state.session(session)) else {
            return;
        };
        let its_own = known.last.as_ref().is_some_and(|last| last.gateway == *from && last.connection == connection);
        let push = match &known.stage {
            Stage::Ended(reason) => Push::SessionEnded { session, reason: *reason },
            Stage::Attached if its_own => return,
            // A slot that lost its memory gives the connection a new number, which is above the one that it still names.
            _ if its_own || known.last_number() <= attachment => {
                let entry = Entry::Attach { session, gateway: from.clone(), connection, at_ms: now.wall_ms };
                return self.order(entry, Pending::Nobody);
            }
            _ => Push::Displace { session, attachment },
        };
        self.push(from, push, out);
    }

    fn tell_change(&self, session: SessionId, out: &mut Vec<SlotOutput>) {
        let Some(known) = self.state().and_then(|state| state.session(session)) else {
            return;
        };
        if let Some(attachment) = known.attachment() {
            self.push(&attachment.gateway, Push::SessionChanged { record: known.record.clone() }, out);
        }
    }

    fn tell_end(&self, session: SessionId, gateway: Option<Member>, out: &mut Vec<SlotOutput>) {
        let reason = self.state().and_then(|state| state.session(session)).and_then(|session| session.ended());
        if let Some(gateway) = gateway {
            self.push(&gateway, Push::SessionEnded { session, reason: reason.unwrap_or(EndReason::Ended) }, out);
        }
    }

    fn push(&self, to: &Member, push: Push, out: &mut Vec<SlotOutput>) {
        if let Some(term) = self.term {
            out.push(SlotOutput::Push { to: to.clone(), term, push });
        }
    }

    /// Writes the session through; whoever waits is answered when the store has it.
    pub(super) fn save(
        &mut self,
        index: Index,
        session: SessionId,
        waiting: Option<(Ticket, bool)>,
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
        self.timers.insert(session);
        self.saving.entry((session, index)).or_default().extend(waiting);
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
