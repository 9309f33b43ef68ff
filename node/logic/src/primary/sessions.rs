//! Requests about sessions, and what they make of the store and of gateways.

use std::collections::BTreeMap;

use super::{
    SlotOutput, Ticket,
    reign::{Asked, Displacing, Latest, Reigning, Waiting},
};
use crate::{
    Now,
    entry::{EndReason, SessionEntry, SessionRecord},
    id::{AttachmentNumber, GroupName, Index, Member, SessionId},
    request::{
        Attached, ChangeSession, ConfirmDisplaced, CreateSession, Detach, Done, EndSession, Push, ReadSession,
        RecordJoin, RecordLeave, Renewal, Renewed, SessionPush, SessionRequest, SessionView, SlotAnswer, SlotError,
        Withdraw,
    },
    session::{Session, Stage},
    slot::SessionEffect,
};

/// A gateway that is alive has this much time to cut an earlier attachment off before it is fenced.
const FENCE_AFTER_MS: u64 = 250;
/// A new attachment that waits for longer is left open: whoever still wants it asks again, and waits for the same.
const DISPLACE_MAX_MS: u64 = 10_000;

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
                let result = self.view(session).map(SlotAnswer::Session).ok_or(SlotError::NoSession);
                out.push(SlotOutput::Answer { ticket, result });
            }
            (SessionRequest::ChangeSession(ChangeSession { change }), None) => {
                let most = self.settings.groups_per_session + change.leave.len();
                if known.record.groups.len() + change.join.len() > most {
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
                let groups = &known.record.groups;
                if groups.len() >= self.settings.groups_per_session && !groups.contains(&group) {
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

    /// The later connection of a client wins, not the later attempt: one that has been on its way for long, and whose client
    /// may be gone, does not displace one that came after it. Times are those of this node's own clock; what an earlier
    /// primary's clock said is compared with more care, see [`Session::attach`].
    fn attach(
        &mut self,
        now: Now,
        (ticket, session, token): (Ticket, SessionId, u32),
        (gateway, connection, waited_ms): (Member, u64, u64),
        out: &mut Vec<SlotOutput>,
    ) {
        let since_ms = now.mono_ms.cast_signed().saturating_sub_unsigned(waited_ms);
        if self.later_stays(session, (&gateway, connection), since_ms) {
            return out.push(SlotOutput::Answer { ticket, result: Err(SlotError::Busy) });
        }
        let entry = SessionEntry::Attach {
            gateway: gateway.clone(),
            connection,
            since_ms: now.wall_ms.saturating_sub(waited_ms),
            at_ms: now.wall_ms,
            token,
        };
        if let Some(index) = self.order_session(session, entry, Some(SessionPending::Attach(ticket))) {
            self.sessions.latest.insert(session, Latest { gateway, connection, since_ms, index });
        }
    }

    /// Whether another connection, whose client came later than this, has the session or is about to.
    fn later_stays(&self, session: SessionId, (gateway, connection): (&Member, u64), since_ms: i64) -> bool {
        let Some(latest) = self.sessions.latest.get(&session) else { return false };
        let is_other = latest.gateway != *gateway || latest.connection != connection;
        is_other && since_ms < latest.since_ms && self.is_there(session, latest)
    }

    /// Whether it has the session, or is about to, for all that its gateway has said: one that is believed dead may be alive.
    pub(super) fn is_there(&self, session: SessionId, latest: &Latest) -> bool {
        let known = self.state().and_then(|state| state.session(session)).filter(|known| !known.closed);
        let last = known.and_then(|known| known.last.as_ref());
        self.replica.applied() < latest.index || last.is_some_and(|last| last.is_of(&latest.gateway, latest.connection))
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

    /// A request about a session that is not in memory.
    fn request_unknown(&mut self, session: SessionId, asked: Asked, out: &mut Vec<SlotOutput>) {
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
                if waiting.is_empty() && !self.sessions.renewals.contains_key(&session) {
                    out.push(SlotOutput::Load { session });
                }
                waiting.push(asked);
            }
        }
    }

    /// A gateway says which attachments it has.
    pub(super) fn renew_all(
        &mut self,
        now: Now,
        (ticket, gateway): (Ticket, Member),
        attachments: Vec<Renewal>,
        out: &mut Vec<SlotOutput>,
    ) {
        let mut confirmed = Vec::new();
        for renewal in attachments {
            let session = renewal.session;
            if self.renew(now, gateway.clone(), renewal, out) {
                confirmed.push(session);
            }
        }
        if !confirmed.is_empty() {
            self.sessions.confirmed.insert(gateway, now.mono_ms);
        }
        out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Renewed(Renewed(confirmed))) });
    }

    pub(super) fn loaded(
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
        for (gateway, _) in self.sessions.renewals.remove(&session).unwrap_or_default() {
            let reason = match &error {
                SlotError::SessionEnded(reason) => *reason,
                SlotError::NoSession => EndReason::Ended,
                // The gateway will say it again.
                SlotError::NotPrimary { .. }
                | SlotError::Busy
                | SlotError::Full
                | SlotError::Unavailable
                | SlotError::NotEnoughCopies { .. }
                | SlotError::TooManyGroups
                | SlotError::NotGranted
                | SlotError::OldToken
                | SlotError::TooLong { .. }
                | SlotError::StoreUnavailable(_)
                | SlotError::Unknown => continue,
            };
            self.push_session(&gateway, session, SessionPush::Ended { reason }, out);
        }
        for asked in self.sessions.loading.remove(&session).unwrap_or_default() {
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
        self.sessions.writes.remove(&session);
        if result.is_ok() {
            self.order_once(session, SessionEntry::Saved { index });
        } else {
            self.sessions.save_again_ms = now.mono_ms + 1_000;
        }
        let (view, given_up) = (self.view(session), self.is_given_up(session));
        for (ticket, waiting) in self.sessions.saving.remove(&(session, index)).unwrap_or_default() {
            let result = match (&result, &view) {
                // The write of an earlier attempt failed before this one came through: the session is over.
                (Ok(()), _) if waiting == Waiting::Create && given_up => Err(not_stored()),
                (Ok(()), Some(view)) if waiting != Waiting::End => Ok(SlotAnswer::Session(view.clone())),
                (Ok(()), _) => Ok(SlotAnswer::Done(Done)),
                (Err(reason), _) if waiting == Waiting::Create => {
                    self.sessions.given_up.insert(session);
                    let entry = SessionEntry::End { reason: EndReason::NotStored, at_ms: now.wall_ms };
                    self.order_session(session, entry, Some(SessionPending::GivenUp));
                    Err(SlotError::StoreUnavailable(reason.clone()))
                }
                // It stands in the slot's state and is written as soon as the store answers again.
                (Err(_), _) => Err(SlotError::Unknown),
            };
            out.push(SlotOutput::Answer { ticket, result });
        }
    }

    /// Presences are out of their groups; nothing here where they could not be taken out.
    pub(super) fn departed(&mut self, session: SessionId, groups: Vec<GroupName>) {
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
            // A later connection has it; or it was there when this was asked, and has been forgotten since: the store has it.
            SessionEffect::Overtaken | SessionEffect::Gone(None) => Some(SlotError::Busy),
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
            | SessionEffect::OldToken
            | SessionEffect::Ended { attachment: None }
            | SessionEffect::Gone(_) => {}
        }
    }

    /// The session has been loaded: what waited for that.
    fn handle_waiting(&mut self, now: Now, session: SessionId, out: &mut Vec<SlotOutput>) {
        for (gateway, renewal) in self.sessions.renewals.remove(&session).unwrap_or_default() {
            self.renew(now, gateway, renewal, out);
        }
        for asked in self.sessions.loading.remove(&session).unwrap_or_default() {
            self.session_request(now, session, asked, out);
        }
    }

    /// Earlier attachments are cut off before the new one is answered, or their gateways have to confirm them before they
    /// deliver again, which is then denied (S7).
    fn attached(
        &mut self,
        now: Now,
        (ticket, session): (Ticket, SessionId),
        attachment: AttachmentNumber,
        earlier: BTreeMap<Member, AttachmentNumber>,
        out: &mut Vec<SlotOutput>,
    ) {
        let Some(view) = self.view(session) else {
            return self.leave_open(ticket, out);
        };
        let answer = Attached { record: view.record, attachment };
        let since_ms = now.mono_ms;
        let mut displacing = Displacing { answers: Vec::new(), attachment, earlier, since_ms };
        if let Some(before) = self.sessions.displacing.remove(&session) {
            // Whom this one displaces waits on: its gateway knows that it is displaced before it hears the answer.
            displacing.answers = before.answers;
            if before.attachment == attachment {
                // A repeat waits for what the first one waits for.
                displacing.earlier = before.earlier;
                displacing.since_ms = before.since_ms;
            }
        }
        displacing.answers.push((ticket, answer));
        let waits_ms = now.mono_ms - displacing.since_ms;
        self.sessions.displacing.insert(session, displacing);
        self.fence(session, waits_ms, out);
        self.answer_if_alone(now, session, out);
    }

    fn answer_if_alone(&mut self, now: Now, session: SessionId, out: &mut Vec<SlotOutput>) {
        let Some(displacing) = self.sessions.displacing.get(&session) else { return };
        if displacing.earlier.keys().any(|gateway| !self.is_gone(gateway)) {
            return;
        }
        for (ticket, answer) in self.sessions.displacing.remove(&session).into_iter().flat_map(|there| there.answers) {
            let known = self.state().and_then(|state| state.session(session));
            if let Some(last) = known.and_then(|known| known.last.as_ref()) {
                self.sessions.confirmed.insert(last.gateway.clone(), now.mono_ms);
            }
            out.push(SlotOutput::Answer { ticket, result: Ok(answer.into()) });
        }
    }

    /// Whether the gateway has to confirm all that it was confirmed here, or by an earlier primary.
    fn is_gone(&self, gateway: &Member) -> bool {
        let confirmed_ms = self.confirmed_ms(gateway);
        self.sessions.gone.get(gateway).is_some_and(|gone_ms| confirmed_ms < *gone_ms)
    }

    /// When the gateway was last confirmed something here, or may have been by an earlier primary.
    pub(super) fn confirmed_ms(&self, gateway: &Member) -> u64 {
        self.sessions.confirmed.get(gateway).copied().unwrap_or(self.since_ms)
    }

    /// A gateway that may deliver to a connection of this session that the session remembers.
    pub(super) fn delivering<'s>(&self, session: &'s Session) -> Option<&'s Member> {
        if session.ended().is_some() {
            return None;
        }
        let last = session.last.as_ref().filter(|_| !session.closed);
        let gateways = session.open.keys().chain(last.map(|last| &last.gateway));
        gateways.into_iter().find(|gateway| !self.is_gone(gateway) && !gateway.has_restarted(self.alive.iter()))
    }

    /// Has those fenced that have not said for a while that they have cut the session's earlier attachments.
    fn fence(&self, session: SessionId, waits_ms: u64, out: &mut Vec<SlotOutput>) {
        let Some(displacing) = self.sessions.displacing.get(&session) else { return };
        for gateway in displacing.earlier.keys().filter(|gateway| !self.is_gone(gateway)) {
            let is_silent = !self.alive.is_empty() && !self.alive.contains(gateway);
            if is_silent || FENCE_AFTER_MS <= waits_ms {
                let since_ms = self.confirmed_ms(gateway);
                out.push(SlotOutput::Fence { gateway: gateway.clone(), since_ms });
            }
        }
    }

    /// A gateway has to confirm all that it was confirmed up to this time.
    pub(super) fn gone(&mut self, now: Now, gateway: Member, since_ms: u64, out: &mut Vec<SlotOutput>) {
        let known_ms = self.sessions.gone.entry(gateway).or_default();
        *known_ms = since_ms.max(*known_ms);
        for session in self.sessions.displacing.keys().copied().collect::<Vec<_>>() {
            self.answer_if_alone(now, session, out);
        }
    }

    /// What waits for gateways to cut earlier attachments off.
    pub(super) fn displacing_timers(&mut self, now: Now, out: &mut Vec<SlotOutput>) {
        let waiting = self.sessions.displacing.iter();
        let waiting: Vec<_> = waiting.map(|(session, there)| (*session, now.mono_ms - there.since_ms)).collect();
        for (session, waits_ms) in waiting {
            if waits_ms < DISPLACE_MAX_MS {
                self.fence(session, waits_ms, out);
                continue;
            }
            for (ticket, _) in self.sessions.displacing.remove(&session).into_iter().flat_map(|there| there.answers) {
                self.leave_open(ticket, out);
            }
        }
    }

    /// Of gateways whose node has started anew nothing needs to be known.
    pub(super) fn forget_gateways(&mut self) {
        self.sessions.confirmed.retain(|gateway, _| !gateway.has_restarted(self.alive.iter()));
        self.sessions.gone.retain(|gateway, _| !gateway.has_restarted(self.alive.iter()));
    }

    fn confirm_displaced(
        &mut self,
        now: Now,
        session: SessionId,
        (gateway, attachment): (&Member, AttachmentNumber),
        out: &mut Vec<SlotOutput>,
    ) {
        let Some(displacing) = self.sessions.displacing.get_mut(&session) else {
            return;
        };
        if displacing.earlier.get(gateway).is_some_and(|earlier| *earlier <= attachment) {
            displacing.earlier.remove(gateway);
        }
        self.answer_if_alone(now, session, out);
    }

    /// A gateway says that it still has this attachment: the slot may have lost sight of it, or have given it to another.
    /// Whether it has it indeed.
    fn renew(&mut self, now: Now, gateway: Member, renewal: Renewal, out: &mut Vec<SlotOutput>) -> bool {
        let Renewal { session, attachment, connection, revision } = renewal;
        let Some(known) = self.state().and_then(|state| state.session(session)) else {
            // The slot has lost its memory, or the session is over and the gateway was not told: the store knows.
            if self.sessions.renewals.len() < self.settings.queue {
                let asked =
                    self.sessions.loading.contains_key(&session) || self.sessions.renewals.contains_key(&session);
                self.sessions.renewals.entry(session).or_default().push((gateway, renewal));
                if !asked {
                    out.push(SlotOutput::Load { session });
                }
            }
            return false;
        };
        let push = match (&known.stage, known.last_number()) {
            (Stage::Ended(reason), _) => SessionPush::Ended { reason: *reason },
            (Stage::Attached | Stage::Grace { .. } | Stage::Detached, last) if last > attachment => {
                SessionPush::Displace { attachment }
            }
            // Two lineages of the slot gave the same number: the connection that attached in this one has the session.
            (Stage::Attached | Stage::Grace { .. } | Stage::Detached, last)
                if last == attachment && known.is_of_other_gateway(&gateway) =>
            {
                SessionPush::Displace { attachment }
            }
            (Stage::Attached, last) if last == attachment => {
                // What was told of a change can be lost with a link, or with the primary that told it.
                if revision < known.record.revision {
                    self.tell_change(session, out);
                }
                self.sessions.heard.insert(session, now.mono_ms);
                return true;
            }
            (Stage::Attached | Stage::Grace { .. } | Stage::Detached, _) => {
                let entry = SessionEntry::Restore { gateway, connection, attachment };
                self.order_session(session, entry, None);
                return false;
            }
        };
        self.push_session(&gateway, session, push, out);
        false
    }

    fn tell_change(&self, session: SessionId, out: &mut Vec<SlotOutput>) {
        let Some(known) = self.state().and_then(|state| state.session(session)) else {
            return;
        };
        if let Some(attachment) = known.attachment() {
            let push = SessionPush::Changed { record: known.record.clone() };
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

    /// Answers who asked for the end of a session that is over now, or was: it is over for good only when the store knows.
    fn over(&mut self, index: Index, session: SessionId, ticket: Ticket, out: &mut Vec<SlotOutput>) {
        if self.state().and_then(|state| state.session(session)).is_some_and(Session::is_unsaved) {
            self.save(index, session, Some((ticket, Waiting::End)), out);
        } else {
            out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Done(Done)) });
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
        let Some(known) = known else {
            if let Some((ticket, _)) = waiting {
                self.leave_open(ticket, out);
            }
            return;
        };
        let (record, ended) = (known.record.clone(), known.ended().is_some());
        out.push(SlotOutput::Save { record, ended, term: self.term, index });
        self.sessions.writes.insert(session);
        self.sessions.saving.entry((session, index)).or_default().extend(waiting);
    }

    /// Whether a new session is over because the store did not take it, or will be.
    fn is_given_up(&self, session: SessionId) -> bool {
        let known = self.state().and_then(|state| state.session(session));
        let over = known.is_none_or(|known| known.ended() == Some(EndReason::NotStored));
        over || self.sessions.given_up.contains(&session)
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
