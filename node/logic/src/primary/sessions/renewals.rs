//! What gateways say that they still have.

use super::super::{SlotOutput, Ticket, reign::Reigning};
use crate::{
    Now,
    entry::{EndReason, SessionEntry},
    id::Member,
    request::{Renewal, Renewed, SessionPush, SlotAnswer},
    session::Stage,
};

/// What a slot says at once of an attachment that a gateway has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Sight {
    /// It has it too.
    Confirmed,
    /// It has lost sight of it, and has to be told what the client has joined to bring it back.
    Wanted,
    /// It has it elsewhere, or over, and says so by a push; or it brings it back, or asks the store.
    Told,
}

impl Reigning<'_> {
    /// A gateway says which attachments it has.
    pub(in super::super) fn renew_all(
        &mut self,
        now: Now,
        (ticket, gateway): (Ticket, Member),
        attachments: Vec<Renewal>,
        out: &mut Vec<SlotOutput>,
    ) {
        let mut renewed = Renewed::default();
        for renewal in attachments {
            let session = renewal.session;
            match self.renew(now, gateway.clone(), renewal, out) {
                Sight::Confirmed => renewed.confirmed.push(session),
                Sight::Wanted => renewed.wanted.push(session),
                Sight::Told => {}
            }
        }
        if !renewed.confirmed.is_empty() {
            self.sessions.confirmed.insert(gateway, now.mono_ms);
        }
        out.push(SlotOutput::Answer { ticket, result: Ok(SlotAnswer::Renewed(renewed)) });
    }

    /// A gateway says that it still has this attachment: the slot may have lost sight of it, or have given it to another.
    pub(super) fn renew(&mut self, now: Now, gateway: Member, renewal: Renewal, out: &mut Vec<SlotOutput>) -> Sight {
        let Some(known) = self.state().and_then(|state| state.session(renewal.session)) else {
            if renewal.session.is_ephemeral() {
                // It is over and the gateway was not told, or the slot has lost its memory, and nobody else can say whether it
                // was over before.
                let push = SessionPush::Ended { reason: EndReason::Lapsed };
                self.push_session(&gateway, renewal.session, push, out);
                return Sight::Told;
            }
            if renewal.joined.is_none() {
                return Sight::Wanted;
            }
            // The slot has lost its memory, or the session is over and the gateway was not told: the store knows.
            let session = renewal.session;
            if self.sessions.renewals.len() < self.settings.queue {
                let asked =
                    self.sessions.loading.contains_key(&session) || self.sessions.renewals.contains_key(&session);
                self.sessions.renewals.entry(session).or_default().push((gateway, renewal));
                if !asked {
                    out.push(SlotOutput::Load { session });
                }
            }
            return Sight::Told;
        };
        let Renewal { session, attachment, connection, revision, joined } = renewal;
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
                return Sight::Confirmed;
            }
            (Stage::Attached | Stage::Grace { .. } | Stage::Detached, _) => {
                if joined.is_none() && !known.knows_client(attachment) {
                    return Sight::Wanted;
                }
                let joined = joined.unwrap_or_default().into_iter().take(self.settings.groups_per_session).collect();
                let entry = SessionEntry::Restore { gateway, connection, attachment, revision, joined };
                self.order_session(session, entry, None);
                return Sight::Told;
            }
        };
        self.push_session(&gateway, session, push, out);
        Sight::Told
    }
}
