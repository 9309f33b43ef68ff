//! What gateways say that they still have.

use super::super::{SlotOutput, Ticket, reign::Reigning};
use crate::{
    Now,
    entry::SessionEntry,
    id::Member,
    request::{Renewal, Renewed, SessionPush, SlotAnswer},
    session::Stage,
};

impl Reigning<'_> {
    /// A gateway says which attachments it has.
    pub(in super::super) fn renew_all(
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

    /// A gateway says that it still has this attachment: the slot may have lost sight of it, or have given it to another.
    /// Whether it has it indeed.
    pub(super) fn renew(&mut self, now: Now, gateway: Member, renewal: Renewal, out: &mut Vec<SlotOutput>) -> bool {
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
}
