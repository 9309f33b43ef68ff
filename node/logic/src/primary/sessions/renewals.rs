//! What gateways say that they still have.

use super::super::{SlotOutput, Ticket, reign::Reigning};
use crate::{
    Now,
    entry::SessionEntry,
    id::Member,
    request::{Displaced, Renewal, Renewed, SessionPush, SlotAnswer},
    session::{Attachment, Stage},
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
            let whose = (renewal.session, renewal.client.key());
            match self.renew(now, gateway.clone(), renewal, out) {
                Sight::Confirmed => renewed.confirmed.push(whose),
                Sight::Wanted => renewed.wanted.push(whose),
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
            if renewal.joined.is_none() && !renewal.session.is_ephemeral() {
                return Sight::Wanted;
            }
            // The slot has lost its memory, or the session is over and the gateway was not told: the store knows, or for one that
            // is ephemeral nobody, and so it is over.
            let session = renewal.session;
            if self.sessions.renewals.len() < self.settings.queue {
                let asked =
                    self.sessions.loading.contains_key(&session) || self.sessions.renewals.contains_key(&session);
                self.sessions.renewals.entry(session).or_default().push((gateway, renewal));
                if !asked {
                    self.look_up(session, out);
                }
            }
            return Sight::Told;
        };
        let Renewal { session, client, attachment, connection, revision, joined } = renewal;
        if let Some(reason) = known.ended {
            self.push_session(&gateway, session, SessionPush::Ended { reason }, out);
            return Sight::Told;
        }
        let (key, room) = (client.key(), known.room(self.settings.room));
        let there = known.client(key);
        // Two lineages of the slot gave the same number: the connection that attached in this one has the session.
        let is_later =
            |last: &Attachment| last.number > attachment || (last.number == attachment && last.gateway != gateway);
        if there.is_some_and(|there| is_later(&there.last)) {
            self.displace(&gateway, session, (key, attachment), Displaced::Elsewhere, out);
            return Sight::Told;
        }
        if there.is_some_and(|there| there.stage == Stage::Attached && there.last.number == attachment) {
            // What was told of a change can be lost with a link, or with the primary that told it.
            if revision < known.record.revision {
                self.tell_change(session, Some(key), out);
            }
            self.sessions.heard.insert((session, key), now.mono_ms);
            return Sight::Confirmed;
        }
        if known.is_full(key, room) {
            self.displace(&gateway, session, (key, attachment), Displaced::CrowdedOut, out);
            return Sight::Told;
        }
        if joined.is_none() && !known.knows_client(key, attachment) {
            return Sight::Wanted;
        }
        let joined = joined.unwrap_or_default().into_iter().take(self.settings.groups_per_session).collect();
        let entry = SessionEntry::Restore { client, gateway, connection, attachment, revision, joined, room };
        self.order_session(session, entry, None);
        Sight::Told
    }
}
