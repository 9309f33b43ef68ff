//! Requests about sessions, and what they make of the store and of gateways.

mod attaches;
mod renewals;
mod stored;

use std::collections::{BTreeMap, BTreeSet};

use super::{
    SlotOutput, Ticket,
    reign::{Asked, Reigning, Waiting},
};
use crate::{
    Now,
    entry::{EndReason, SessionEntry},
    id::{AttachmentNumber, ClientKey, GroupName, Index, Member, SessionId},
    request::{
        ChangeSession, ConfirmDisplaced, CreateSession, Detach, Displaced, Done, EndSession, Push, ReadSession,
        RecordJoin, RecordLeave, SessionPush, SessionRequest, SlotAnswer, SlotError, Withdraw,
    },
    session::{Client, WhenFull},
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
    /// The session came from the store, or the log says whether it is there: what waits for that can be handled now.
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
        let over = known.ended.or_else(|| known.expired(at_ms).filter(|_| self.clock_trusted));
        let Asked { ticket, from, came_ms, request } = asked;
        let ended = |reason| SlotOutput::Answer { ticket, result: Err(SlotError::SessionEnded(reason)) };
        match (request, over) {
            (SessionRequest::CreateSession(create), _) => self.create(ticket, session, create, out),
            (SessionRequest::EndSession(EndSession), _) if known.ended.is_some() => {
                self.over(self.replica.applied(), session, ticket, out);
            }
            (SessionRequest::Detach(Detach { client, attachment }), _) => {
                let grace_until_ms = at_ms + self.settings.resume_grace_ms;
                let closed = true;
                let entry = SessionEntry::Detach { client, gateway: from, attachment, at_ms, grace_until_ms, closed };
                self.order_session(session, entry, Some(SessionPending::Done(ticket)));
            }
            (SessionRequest::Withdraw(Withdraw { client, connection }), _) => {
                let grace_until_ms = at_ms + self.settings.resume_grace_ms;
                let entry = SessionEntry::Withdraw { client, gateway: from, connection, at_ms, grace_until_ms };
                self.order_session(session, entry, Some(SessionPending::Done(ticket)));
            }
            (SessionRequest::ConfirmDisplaced(ConfirmDisplaced { client, attachment }), _) => {
                let there = known.client(client);
                let waits = there.is_some_and(|client| client.waits_for(&from, attachment));
                let live = there.and_then(Client::attachment).map(|live| (live.gateway.clone(), live.number));
                self.confirm_displaced(now, (session, client), (&from, attachment), out);
                if waits {
                    let gateway = from.clone();
                    self.order_session(session, SessionEntry::Closed { client, gateway, attachment }, None);
                }
                // It had to make room, and was given the same attachment once more by a repeat of its attach.
                if let Some((gateway, attachment)) = live.filter(|(of, number)| *of == from && *number <= attachment) {
                    let grace_until_ms = at_ms + self.settings.resume_grace_ms;
                    let closed = true;
                    let entry = SessionEntry::Detach { client, gateway, attachment, at_ms, grace_until_ms, closed };
                    self.order_session(session, entry, None);
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
                out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Session(known.whole_view())) });
            }
            (SessionRequest::ChangeSession(ChangeSession { change }), None) => {
                let most = self.settings.groups_per_session + change.leave.len();
                let new = change.join.iter().filter(|group| !known.record.groups.contains(*group)).count();
                if new > 0 && (known.most_groups() + new > most || known.has_outgrown()) {
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
                let room = known.room(self.settings.room);
                if room.when_full == WhenFull::Refuse && known.is_full(attach.client.key(), room) {
                    return out.push(SlotOutput::Answer { ticket, result: Err(SlotError::TooManyClients) });
                }
                let waited_ms = u64::from(attach.waited_ms) + (now.mono_ms - came_ms);
                let asks = (from, attach.connection, waited_ms);
                self.attach(now, (ticket, session, attach.token), attach.client, asks, out);
            }
            (SessionRequest::RecordJoin(RecordJoin { client, group, needs_grant }), None) => {
                let (count, is_in) = known.groups_of(client, &group);
                if (count >= self.settings.groups_per_session || known.has_outgrown()) && !is_in {
                    return out.push(SlotOutput::Answer { ticket, result: Err(SlotError::TooManyGroups) });
                }
                let entry = SessionEntry::Join { client, group, needs_grant };
                self.order_session(session, entry, Some(SessionPending::Done(ticket)));
            }
            (SessionRequest::RecordLeave(RecordLeave { client, attachment, group }), None) => {
                let entry = SessionEntry::Leave { client, attachment, group, at_ms };
                self.order_session(session, entry, Some(SessionPending::Done(ticket)));
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
    pub(super) fn departed(
        &mut self,
        (session, client): (SessionId, ClientKey),
        groups: BTreeMap<GroupName, AttachmentNumber>,
    ) {
        self.sessions.departing.remove(&(session, client));
        if !groups.is_empty() {
            self.order_once(session, SessionEntry::Departed { client, groups });
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
            SessionEffect::Full => Some(SlotError::TooManyClients),
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
            (Some(SessionPending::Loaded), _) if session.is_ephemeral() && matches!(effect, SessionEffect::Gone(_)) => {
                let error = if let SessionEffect::Gone(Some(reason)) = effect {
                    SlotError::SessionEnded(reason)
                } else {
                    SlotError::NoSession
                };
                self.is_not_there(session, error, out);
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
                let SessionEffect::Attached { client, attachment, displaced, crowded_out: _ } = effect else {
                    unreachable!("an attach has come to {effect:?}");
                };
                self.attached(now, ticket, (session, client), (attachment.number, displaced), out);
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
            SessionEffect::Ended { reason, attachments } => {
                let gateways: BTreeSet<_> = attachments.iter().map(|attachment| &attachment.gateway).collect();
                for gateway in gateways {
                    self.push_session(gateway, session, SessionPush::Ended { reason: *reason }, out);
                }
            }
            SessionEffect::Changed => self.tell_change(session, None, out),
            SessionEffect::Attached { client, displaced, crowded_out, .. } => {
                self.sessions.heard.insert((session, *client), now.mono_ms);
                for (gateway, number) in displaced {
                    self.displace(gateway, session, (*client, *number), Displaced::Elsewhere, out);
                }
                for (client, live) in crowded_out {
                    self.displace(&live.gateway, session, (*client, live.number), Displaced::CrowdedOut, out);
                }
            }
            SessionEffect::Quiet
            | SessionEffect::Overtaken
            | SessionEffect::Full
            | SessionEffect::NotGranted
            | SessionEffect::NoClient
            | SessionEffect::OldToken
            | SessionEffect::Gone(_) => {}
        }
    }

    /// Tells the gateways of its clients, or of this one, what the session is now.
    fn tell_change(&self, session: SessionId, only: Option<ClientKey>, out: &mut Vec<SlotOutput>) {
        let Some(known) = self.state().and_then(|state| state.session(session)) else {
            return;
        };
        for (client, attachment) in known.attachments().filter(|(client, _)| only.is_none_or(|only| *client == only)) {
            let push = SessionPush::Changed { client, view: known.view(client) };
            self.push_session(&attachment.gateway, session, push, out);
        }
    }

    fn displace(
        &self,
        gateway: &Member,
        session: SessionId,
        (client, attachment): (ClientKey, AttachmentNumber),
        why: Displaced,
        out: &mut Vec<SlotOutput>,
    ) {
        self.push_session(gateway, session, SessionPush::Displace { client, why, attachment }, out);
    }

    fn push_session(&self, to: &Member, session: SessionId, push: SessionPush, out: &mut Vec<SlotOutput>) {
        self.push(to, Push::Session(session, push), out);
    }
}

fn not_stored() -> SlotError {
    SlotError::StoreUnavailable("it did not take the session in time".to_owned())
}
