//! What the store has of sessions: what waits to be loaded, and what waits to be written.

use super::{
    super::{
        SlotOutput, Ticket,
        reign::{Asked, Reigning, Saving, Waiting},
    },
    SessionPending, not_stored,
};
use crate::{
    Now,
    entry::{EndReason, SessionEntry, SessionRecord},
    id::{Index, SessionId},
    request::{Done, SessionPush, SessionRequest, SlotAnswer, SlotError},
    session::Session,
};

impl Reigning<'_> {
    /// A request about a session that is not in memory.
    pub(super) fn request_unknown(&mut self, session: SessionId, asked: Asked, out: &mut Vec<SlotOutput>) {
        match asked.request {
            SessionRequest::CreateSession(create) => self.create(asked.ticket, session, create, out),
            // The session is being loaded for an attach or a renewal, or about to be there. What undoes that comes after it.
            SessionRequest::Detach(_) | SessionRequest::Withdraw(_)
                if self.sessions.loading.contains_key(&session) || self.sessions.renewals.contains_key(&session) =>
            {
                self.sessions.loading.entry(session).or_default().push(asked);
            }
            SessionRequest::Detach(_) | SessionRequest::Withdraw(_) | SessionRequest::ConfirmDisplaced(_) => {
                out.push(SlotOutput::Answer { ticket: asked.ticket, result: Ok(SlotAnswer::Done(Done)) });
            }
            SessionRequest::ReadSession(_)
            | SessionRequest::ChangeSession(_)
            | SessionRequest::EndSession(_)
            | SessionRequest::Attach(_)
            | SessionRequest::RecordJoin(_)
            | SessionRequest::RecordLeave(_) => {
                let waiting = self.sessions.loading.entry(session).or_default();
                let is_first = waiting.is_empty() && !self.sessions.renewals.contains_key(&session);
                waiting.push(asked);
                if is_first {
                    self.look_up(session, out);
                }
            }
        }
    }

    /// Asks the store for a session; for one that is ephemeral the slot's log, since nobody else can say that it is over. A primary
    /// that another one has taken the place of commits nothing, and so says nothing.
    pub(super) fn look_up(&mut self, session: SessionId, out: &mut Vec<SlotOutput>) {
        if session.is_ephemeral() {
            let changes_nothing = SessionEntry::Used { at_ms: 0 };
            self.order_session(session, changes_nothing, Some(SessionPending::Loaded));
        } else {
            out.push(SlotOutput::Load { session });
        }
    }

    pub(in super::super) fn loaded(
        &mut self,
        now: Now,
        session: SessionId,
        result: Result<Option<SessionRecord>, String>,
        out: &mut Vec<SlotOutput>,
    ) {
        if !self.sessions.loading.contains_key(&session) && !self.sessions.renewals.contains_key(&session) {
            return;
        }
        let error = match result {
            Ok(Some(record)) if self.clock_trusted && record.expires_ms <= now.wall_ms => {
                SlotError::SessionEnded(EndReason::Expired)
            }
            Ok(Some(record)) if self.replica.serving().is_some() => {
                let entry = SessionEntry::Put { record, stored: true };
                // What waits goes on waiting, and what comes until that is committed comes after it.
                self.order_session(session, entry, Some(SessionPending::Loaded));
                return;
            }
            Ok(Some(_)) => SlotError::NotPrimary { map_version: self.map_version, ordered: false },
            Ok(None) => SlotError::NoSession,
            Err(reason) => SlotError::StoreUnavailable(reason),
        };
        self.is_not_there(session, error, out);
    }

    /// Answers what waits for a session that is not there.
    pub(super) fn is_not_there(&mut self, session: SessionId, error: SlotError, out: &mut Vec<SlotOutput>) {
        // Where it is not known, the gateways will say it again.
        let renewals = self.sessions.renewals.remove(&session).unwrap_or_default();
        if let Some(reason) = error.session_over() {
            let reason = if session.is_ephemeral() { EndReason::Lapsed } else { reason };
            for (gateway, _) in renewals {
                self.push_session(&gateway, session, SessionPush::Ended { reason }, out);
            }
        }
        for asked in self.sessions.loading.remove(&session).unwrap_or_default() {
            out.push(SlotOutput::Answer { ticket: asked.ticket, result: Err(error.clone()) });
        }
    }

    /// The session has been loaded: what waited for that.
    pub(super) fn handle_waiting(&mut self, now: Now, session: SessionId, out: &mut Vec<SlotOutput>) {
        for (gateway, renewal) in self.sessions.renewals.remove(&session).unwrap_or_default() {
            // Those that wait have said all that can be wanted.
            self.renew(now, gateway, renewal, out);
        }
        for asked in self.sessions.loading.remove(&session).unwrap_or_default() {
            self.session_request(now, session, asked, out);
        }
    }

    /// The store has answered to a write.
    pub(in super::super) fn saved(
        &mut self,
        now: Now,
        (session, index): (SessionId, Index),
        result: Result<(), String>,
        out: &mut Vec<SlotOutput>,
    ) {
        self.sessions.writes.remove(&session);
        if result.is_ok() {
            self.order_once(session, SessionEntry::Saved { index });
        } else {
            self.sessions.save_again_ms = now.mono_ms + 1_000;
        }
        let given_up = self.is_given_up(session);
        for Saving { ticket, waiting, view } in self.sessions.saving.remove(&(session, index)).unwrap_or_default() {
            let result = match (&result, waiting) {
                // The write of an earlier attempt failed before this one came through: the session is over.
                (Ok(()), Waiting::Create) if given_up => Err(not_stored()),
                (Ok(()), waiting) => Ok(waiting.done(view)),
                (Err(reason), Waiting::Create) => {
                    self.sessions.given_up.insert(session);
                    let entry = SessionEntry::End { reason: EndReason::NotStored, at_ms: now.wall_ms };
                    self.order_session(session, entry, Some(SessionPending::GivenUp));
                    Err(SlotError::StoreUnavailable(reason.clone()))
                }
                // It stands in the slot's state and is written as soon as the store answers again.
                (Err(_), Waiting::Change | Waiting::End) => Err(SlotError::Unknown),
            };
            out.push(SlotOutput::Answer { ticket, result });
        }
    }

    /// Answers who asked for the end of a session that is over now, or was: it is over for good only when the store knows.
    pub(super) fn over(&mut self, index: Index, session: SessionId, ticket: Ticket, out: &mut Vec<SlotOutput>) {
        if self.state().and_then(|state| state.session(session)).is_some_and(Session::is_unsaved) {
            self.save(index, session, Some((ticket, Waiting::End)), out);
        } else {
            out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Done(Done)) });
        }
    }

    /// Writes the session through; whoever waits is answered when the store has it, or at once where it is not to have it.
    pub(in super::super) fn save(
        &mut self,
        index: Index,
        session: SessionId,
        waiting: Option<(Ticket, Waiting)>,
        out: &mut Vec<SlotOutput>,
    ) {
        let known = self.state().and_then(|state| state.session(session));
        let Some(known) = known else {
            if let Some((ticket, _)) = waiting {
                self.leave_open(ticket, out);
            }
            return;
        };
        if session.is_ephemeral() {
            let answer = |(ticket, waiting): (Ticket, Waiting)| (ticket, Ok(waiting.done(known.whole_view())));
            out.extend(waiting.map(answer).map(|(ticket, result)| SlotOutput::Answer { ticket, result }));
            return;
        }
        let saving = waiting.map(|(ticket, waiting)| Saving { ticket, waiting, view: known.whole_view() });
        let (record, ended) = (known.record.clone(), known.ended.is_some());
        out.push(SlotOutput::Save { record, ended, term: self.term, index });
        self.sessions.writes.insert(session);
        self.sessions.saving.entry((session, index)).or_default().extend(saving);
    }

    /// Whether a new session is over because the store did not take it, or will be.
    fn is_given_up(&self, session: SessionId) -> bool {
        let known = self.state().and_then(|state| state.session(session));
        let over = known.is_none_or(|known| known.ended == Some(EndReason::NotStored));
        over || self.sessions.given_up.contains(&session)
    }
}
