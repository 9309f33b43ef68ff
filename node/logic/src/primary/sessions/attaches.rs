//! An attach, and how it waits for those whose place it takes (S7).

use std::collections::BTreeMap;

use super::{
    super::{
        SlotOutput, Ticket,
        reign::{Displacing, Latest, Reigning},
    },
    SessionPending,
};
use crate::{
    Now,
    entry::SessionEntry,
    id::{AttachmentNumber, ClientId, ClientKey, Member, SessionId},
    request::{Attached, SlotError},
    session::Client,
};

/// A gateway that is alive has this much time to cut an earlier attachment off before it is fenced.
const FENCE_AFTER_MS: u64 = 250;
/// A new attachment that waits for longer is left open: whoever still wants it asks again, and waits for the same.
const DISPLACE_MAX_MS: u64 = 10_000;

impl Reigning<'_> {
    /// The later connection of a client wins, not the later attempt: one that has been on its way for long, and whose client
    /// may be gone, does not displace one that came after it. Times are those of this node's own clock; what an earlier
    /// primary's clock said is compared with more care, see [`Session::attach`].
    pub(super) fn attach(
        &mut self,
        now: Now,
        (ticket, session, token): (Ticket, SessionId, u32),
        client: ClientId,
        (gateway, connection, waited_ms): (Member, u64, u64),
        out: &mut Vec<SlotOutput>,
    ) {
        let key = client.key();
        let since_ms = now.mono_ms.cast_signed().saturating_sub_unsigned(waited_ms);
        if self.later_stays((session, key), (&gateway, connection), since_ms) {
            return out.push(SlotOutput::Answer { ticket, result: Err(SlotError::Busy) });
        }
        let Some(known) = self.state().and_then(|state| state.session(session)) else {
            return out.push(SlotOutput::Answer { ticket, result: Err(SlotError::Busy) });
        };
        let entry = SessionEntry::Attach {
            client,
            gateway: gateway.clone(),
            connection,
            since_ms: now.wall_ms.saturating_sub(waited_ms),
            at_ms: now.wall_ms,
            token,
            room: known.room(self.settings.room),
        };
        if let Some(index) = self.order_session(session, entry, Some(SessionPending::Attach(ticket))) {
            self.sessions.latest.insert((session, key), Latest { gateway, connection, since_ms, index });
        }
    }

    /// Whether another connection of the client, opened later than this, has the session or is about to.
    fn later_stays(&self, whose: (SessionId, ClientKey), (gateway, connection): (&Member, u64), since_ms: i64) -> bool {
        let Some(latest) = self.sessions.latest.get(&whose) else { return false };
        let is_other = latest.gateway != *gateway || latest.connection != connection;
        is_other && since_ms < latest.since_ms && self.is_there(whose, latest)
    }

    /// Whether it has the session, or is about to, for all that its gateway has said: one that is believed dead may be alive.
    pub(in super::super) fn is_there(&self, (session, client): (SessionId, ClientKey), latest: &Latest) -> bool {
        let known = self.state().and_then(|state| state.session(session)?.client(client));
        let last = known.filter(|known| !known.closed).map(|known| &known.last);
        self.replica.applied() < latest.index || last.is_some_and(|last| last.is_of(&latest.gateway, latest.connection))
    }

    /// Earlier attachments are cut off before the new one is answered, or their gateways have to confirm them before they
    /// deliver again, which is then denied (S7).
    pub(super) fn attached(
        &mut self,
        now: Now,
        ticket: Ticket,
        whose: (SessionId, ClientKey),
        (attachment, earlier): (AttachmentNumber, BTreeMap<Member, AttachmentNumber>),
        out: &mut Vec<SlotOutput>,
    ) {
        let since_ms = now.mono_ms;
        let mut displacing = Displacing { answers: Vec::new(), attachment, earlier, since_ms };
        if let Some(before) = self.sessions.displacing.remove(&whose) {
            // Whom this one displaces waits on: its gateway knows that it is displaced before it hears the answer.
            displacing.answers = before.answers;
            if before.attachment == attachment {
                // A repeat waits for what the first one waits for.
                displacing.earlier = before.earlier;
                displacing.since_ms = before.since_ms;
            }
        }
        displacing.answers.push((ticket, attachment));
        let waits_ms = now.mono_ms - displacing.since_ms;
        self.sessions.displacing.insert(whose, displacing);
        self.fence(whose, waits_ms, out);
        self.answer_if_alone(now, whose, out);
    }

    fn answer_if_alone(&mut self, now: Now, whose: (SessionId, ClientKey), out: &mut Vec<SlotOutput>) {
        let Some(displacing) = self.sessions.displacing.get(&whose) else { return };
        if displacing.earlier.keys().any(|gateway| !self.is_gone(gateway)) {
            return;
        }
        let answers = self.sessions.displacing.remove(&whose).into_iter().flat_map(|there| there.answers);
        for (ticket, attachment) in answers {
            let (session, client) = whose;
            let Some(known) = self.state().and_then(|state| state.session(session)) else {
                self.leave_open(ticket, out);
                continue;
            };
            // With what the client has joined by its earlier connection meanwhile.
            let last = known.client(client).map(|client| client.last.gateway.clone());
            let view = known.view(client);
            self.sessions.confirmed.extend(last.map(|gateway| (gateway, now.mono_ms)));
            out.push(SlotOutput::Answer { ticket, result: Ok(Attached { view, attachment }.into()) });
        }
    }

    /// Whether the gateway has to confirm all that it was confirmed here, or by an earlier primary.
    fn is_gone(&self, gateway: &Member) -> bool {
        let confirmed_ms = self.confirmed_ms(gateway);
        self.sessions.gone.get(gateway).is_some_and(|gone_ms| confirmed_ms < *gone_ms)
    }

    /// When the gateway was last confirmed something here, or may have been by an earlier primary.
    pub(in super::super) fn confirmed_ms(&self, gateway: &Member) -> u64 {
        self.sessions.confirmed.get(gateway).copied().unwrap_or(self.since_ms)
    }

    /// A gateway that may deliver to a connection of this client that the session remembers.
    pub(in super::super) fn delivering<'c>(&self, client: &'c Client) -> Option<&'c Member> {
        client.unclosed().find(|gateway| !self.is_gone(gateway) && !gateway.has_restarted(self.alive.iter()))
    }

    /// Has those fenced that have not said for a while that they have cut the client's earlier attachments.
    fn fence(&self, whose: (SessionId, ClientKey), waits_ms: u64, out: &mut Vec<SlotOutput>) {
        let Some(displacing) = self.sessions.displacing.get(&whose) else { return };
        for gateway in displacing.earlier.keys().filter(|gateway| !self.is_gone(gateway)) {
            let is_silent = !self.alive.is_empty() && !self.alive.contains(gateway);
            if is_silent || FENCE_AFTER_MS <= waits_ms {
                let since_ms = self.confirmed_ms(gateway);
                out.push(SlotOutput::Fence { gateway: gateway.clone(), since_ms });
            }
        }
    }

    /// A gateway has to confirm all that it was confirmed up to this time.
    pub(in super::super) fn gone(&mut self, now: Now, gateway: Member, since_ms: u64, out: &mut Vec<SlotOutput>) {
        let known_ms = self.sessions.gone.entry(gateway).or_default();
        *known_ms = since_ms.max(*known_ms);
        for whose in self.sessions.displacing.keys().copied().collect::<Vec<_>>() {
            self.answer_if_alone(now, whose, out);
        }
    }

    /// What waits for gateways to cut earlier attachments off.
    pub(in super::super) fn displacing_timers(&mut self, now: Now, out: &mut Vec<SlotOutput>) {
        let waiting = self.sessions.displacing.iter();
        let waiting: Vec<_> = waiting.map(|(whose, there)| (*whose, now.mono_ms - there.since_ms)).collect();
        for (whose, waits_ms) in waiting {
            if waits_ms < DISPLACE_MAX_MS {
                self.fence(whose, waits_ms, out);
                continue;
            }
            for (ticket, _) in self.sessions.displacing.remove(&whose).into_iter().flat_map(|there| there.answers) {
                self.leave_open(ticket, out);
            }
        }
    }

    /// Of gateways whose node has started anew nothing needs to be known.
    pub(in super::super) fn forget_gateways(&mut self) {
        self.sessions.confirmed.retain(|gateway, _| !gateway.has_restarted(self.alive.iter()));
        self.sessions.gone.retain(|gateway, _| !gateway.has_restarted(self.alive.iter()));
    }

    pub(super) fn confirm_displaced(
        &mut self,
        now: Now,
        whose: (SessionId, ClientKey),
        (gateway, attachment): (&Member, AttachmentNumber),
        out: &mut Vec<SlotOutput>,
    ) {
        let Some(displacing) = self.sessions.displacing.get_mut(&whose) else {
            return;
        };
        if displacing.earlier.get(gateway).is_some_and(|earlier| *earlier <= attachment) {
            displacing.earlier.remove(gateway);
        }
        self.answer_if_alone(now, whose, out);
    }
}
