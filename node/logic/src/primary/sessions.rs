//! Requests about sessions, and what they make of the store and of gateways.

mod attaches;
mod renewals;
mod stored;

use std::collections::BTreeMap;

use super::{
    SlotOutput, Ticket,
    reign::{Asked, Reigning, Waiting},
};
use crate::{
    Now,
    entry::{EndReason, SessionEntry},
    id::{AttachmentNumber, GroupName, Index, Member, SessionId},
    request::{
        ChangeSession, ConfirmDisplaced, CreateSession, Detach, Done, EndSession, Push, ReadSession, RecordJoin,
        RecordLeave, SessionPush, SessionRequest, SessionView, SlotAnswer, SlotError, Withdraw,
    },
    session::Session,
    slot::SessionEffect,
};

/// What waits for an entry of a session to be committed.
#[derive(Debug)]
pub(super) enum SessionPending {
    /// Answered once the store has it.
    Create(Ticket),
    Change(Ticket),
    End(Ticket),
    Attach(Ticket),
    Done(Ticket),
    /// The store did not take a new session.
    GivenUp,
    /// The session came from the store: what waits for that can be handled now.
    Loaded,
    /// A timer's entry: until it is committed the timer does not order it again.
    Timer,
}

impl SessionPending {
    /// Whom to answer if nothing comes of it.
    pub(super) fn into_ticket(self) -> Option<Ticket> {
        match self {
            Self::Create(ticket)
            | Self::Change(ticket)
            | Self::End(ticket)
            | Self::Attach(ticket)
            | Self::Done(ticket) => Some(ticket),
            Self::Loaded | Self::GivenUp | Self::Timer => None,
        }
    }
}

impl Reigning<'_> {
    pub(super) fn session_request(&mut self, now: Now, session: SessionId, asked: Asked, out: &mut Vec<SlotOutput>) {
        let Some(known) = self.state().and_then(|state| state.session(session)) else {
            return self.request_unknown(session, asked, out);
        };
        let at_ms = now.wall_ms;
        let over = known.ended().or_else(|| known.expired(at_ms).filter(|_| self.clock_trusted));
        let Asked { ticket, from, came_ms, request } = asked;
        let ended = |reason| SlotOutput::Answer { ticket, result: Err(SlotError::SessionEnded(reason)) };
        match (request, over) {
            (SessionRequest::CreateSession(create), _) => self.create(ticket, session, create, out),
            (SessionRequest::EndSession(EndSession), _) if known.ended().is_some() => {
                self.over(self.replica.applied(), session, ticket, out);
            }
            (SessionRequest::Detach(Detach { attachment }), _) => {
                let grace_until_ms = at_ms + self.settings.resume_grace_ms;
                let closed = true;
                let entry = SessionEntry::Detach { gateway: from, attachment, at_ms, grace_until_ms, closed };
                self.order_session(session, entry, Some(SessionPending::Done(ticket)));
            }
            (SessionRequest::Withdraw(Withdraw { connection }), _) => {
                let grace_until_ms = at_ms + self.settings.resume_grace_ms;
                let entry = SessionEntry::Withdraw { gateway: from, connection, at_ms, grace_until_ms };
                self.order_session(session, entry, Some(SessionPending::Done(ticket)));
            }
            (SessionRequest::ConfirmDisplaced(ConfirmDisplaced { attachment }), _) => {
                let open = known.open.get(&from).is_some_and(|open| *open <= attachment);
                self.confirm_displaced(now, session, (&from, attachment), out);
                if open {
                    self.order_session(session, SessionEntry::Closed { gateway: from, attachment }, None);
                }
                out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Done(Done)) });
            }
            (
                SessionRequest::ReadSession(_)
                | SessionRequest::ChangeSession(_)
                | SessionRequest::EndSession(_)
                | SessionRequest::Attach(_)
                | SessionRequest::RecordJoin(_)
                | SessionRequest::RecordLeave(_),
                Some(reason),
            ) => out.push(ended(reason)),
            (SessionRequest::ReadSession(ReadSession), None) => {
                out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Session(view(known))) });
            }
            (SessionRequest::ChangeSession(ChangeSession { change }), None) => {
                let most = self.settings.groups_per_session + change.leave.len();
                if known.record.groups.len() + known.joined.len() + change.join.len() > most {
                    return out.push(SlotOutput::Answer { ticket, result: Err(SlotError::TooManyGroups) });
                }
                let entry = SessionEntry::Change { change, at_ms };
                self.order_session(session, entry, Some(SessionPending::Change(ticket)));
            }
            (SessionRequest::EndSession(EndSession), None) => {
                let entry = SessionEntry::End { reason: EndReason::Ended, at_ms };
                self.order_session(session, entry, Some(SessionPending::End(ticket)));
            }
            (SessionRequest::Attach(attach), None) => {
                if known.refuses(attach.token, &from, attach.connection) {
                    return out.push(SlotOutput::Answer { ticket, result: Err(SlotError::OldToken) });
                }
                let waited_ms = u64::from(attach.waited_ms) + (now.mono_ms - came_ms);
                self.attach(now, (ticket, session, attach.token), (from, attach.connection, waited_ms), out);
            }
            (SessionRequest::RecordJoin(RecordJoin { group, needs_grant }), None) => {
                let count = known.record.groups.len() + known.joined.len();
                if count >= self.settings.groups_per_session && !known.is_in(&group) {
                    return out.push(SlotOutput::Answer { ticket, result: Err(SlotError::TooManyGroups) });
                }
                let entry = SessionEntry::Join { group, needs_grant };
                self.order_session(session, entry, Some(SessionPending::Done(ticket)));
            }
            (SessionRequest::RecordLeave(RecordLeave { group }), None) => {
                self.order_session(session, SessionEntry::Leave { group }, Some(SessionPending::Done(ticket)));
            }
        }
    }

    fn create(
        &mut self,
        ticket: Ticket,
        session: SessionId,
        CreateSession { record }: CreateSession,
        out: &mut Vec<SlotOutput>,
    ) {
        // A peer's mistake: it would be kept under a name that is not its own.
        if record.id != session {
            return out.push(SlotOutput::Answer { ticket, result: Err(SlotError::NoSession) });
        }
        let entry = SessionEntry::Put { record, stored: false };
        self.order_session(session, entry, Some(SessionPending::Create(ticket)));
    }

    /// Presences are out of their groups; nothing here where they could not be taken out.
    pub(super) fn departed(&mut self, session: SessionId, groups: BTreeMap<GroupName, AttachmentNumber>) {
        self.sessions.departing.remove(&session);
        if !groups.is_empty() {
            self.order_once(session, SessionEntry::Departed { groups });
        }
    }

    /// An entry of a session is committed.
    pub(super) fn session_committed(
        &mut self,
        now: Now,
        index: Index,
        (session, effect): (SessionId, SessionEffect),
        pending: Option<SessionPending>,
        out: &mut Vec<SlotOutput>,
    ) {
        self.tell_gateways(now, session, &effect, out);
        let refused = match &effect {
            SessionEffect::Gone(Some(reason)) => Some(SlotError::SessionEnded(*reason)),
            // A later connection has it; or its gateway has to renew it first; or it was there when this was asked, and has been
            // forgotten since: the store has it.
            SessionEffect::Overtaken | SessionEffect::NoClient | SessionEffect::Gone(None) => Some(SlotError::Busy),
            SessionEffect::NotGranted => Some(SlotError::NotGranted),
            SessionEffect::OldToken => Some(SlotError::OldToken),
            SessionEffect::Quiet
            | SessionEffect::Changed
            | SessionEffect::Attached { .. }
            | SessionEffect::Ended { .. } => None,
        };
        let refuse = |ticket, error| SlotOutput::Answer { ticket, result: Err(error) };
        match (pending, refused) {
            (None, _) => {}
            (Some(SessionPending::Timer), _) => {
                self.sessions.timers.remove(&session);
            }
            (Some(SessionPending::GivenUp), _) => {
                self.sessions.given_up.remove(&session);
            }
            (Some(SessionPending::Loaded), _) => self.handle_waiting(now, session, out),
            (Some(SessionPending::Create(ticket)), Some(SlotError::SessionEnded(EndReason::NotStored))) => {
                out.push(refuse(ticket, not_stored()));
            }
            (Some(SessionPending::Create(ticket)), None) => {
                self.save(index, session, Some((ticket, Waiting::Create)), out);
            }
            (Some(SessionPending::Change(ticket)), None) => {
                self.save(index, session, Some((ticket, Waiting::Change)), out);
            }
            (Some(SessionPending::End(ticket)), None | Some(SlotError::SessionEnded(_))) => {
                self.over(index, session, ticket, out);
            }
            (Some(SessionPending::Attach(ticket)), None) => {
                let SessionEffect::Attached { attachment, displaced } = effect else {
                    unreachable!("an attach has come to {effect:?}");
                };
                self.attached(now, (ticket, session), attachment.number, displaced, out);
            }
            (Some(SessionPending::Done(ticket)), None) => {
                out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Done(Done)) });
            }
            (
                Some(
                    SessionPending::Create(ticket)
                    | SessionPending::Change(ticket)
                    | SessionPending::End(ticket)
                    | SessionPending::Attach(ticket)
                    | SessionPending::Done(ticket),
                ),
                Some(error),
            ) => out.push(refuse(ticket, error)),
        }
    }

    /// Gateways are told also of what an earlier primary had ordered.
    fn tell_gateways(&mut self, now: Now, session: SessionId, effect: &SessionEffect, out: &mut Vec<SlotOutput>) {
        match effect {
            SessionEffect::Ended { attachment: Some(attachment) } => self.tell_end(session, &attachment.gateway, out),
            SessionEffect::Changed => self.tell_change(session, out),
            SessionEffect::Attached { displaced, .. } => {
                self.sessions.heard.insert(session, now.mono_ms);
                for (gateway, number) in displaced {
                    self.push_session(gateway, session, SessionPush::Displace { attachment: *number }, out);
                }
            }
            SessionEffect::Quiet
            | SessionEffect::Overtaken
            | SessionEffect::NotGranted
            | SessionEffect::NoClient
            | SessionEffect::OldToken
            | SessionEffect::Ended { attachment: None }
            | SessionEffect::Gone(_) => {}
        }
    }

    fn tell_change(&self, session: SessionId, out: &mut Vec<SlotOutput>) {
        let Some(known) = self.state().and_then(|state| state.session(session)) else {
            return;
        };
        if let Some(attachment) = known.attachment() {
            let push = SessionPush::Changed { view: known.view() };
            self.push_session(&attachment.gateway, session, push, out);
        }
    }

    fn tell_end(&self, session: SessionId, gateway: &Member, out: &mut Vec<SlotOutput>) {
        let reason = self.state().and_then(|state| state.session(session)).and_then(|session| session.ended());
        let push = SessionPush::Ended { reason: reason.unwrap_or(EndReason::Ended) };
        self.push_session(gateway, session, push, out);
    }

    fn push_session(&self, to: &Member, session: SessionId, push: SessionPush, out: &mut Vec<SlotOutput>) {
        self.push(to, Push::Session(session, push), out);
    }
}

fn view(known: &Session) -> SessionView {
    SessionView { client: known.view(), attached: known.attachment().is_some(), present: known.is_present() }
}

fn not_stored() -> SlotError {
    SlotError::StoreUnavailable("it did not take the session in time".to_owned())
}
