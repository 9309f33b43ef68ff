//! A slot's sessions, and what an entry makes of one.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    entry::{EndReason, SessionEntry},
    id::{AttachmentNumber, ClientKey, Index, Member, SessionId},
    session::{Asking, Attachment, Given, NotAttached, NotJoined, Session},
};

/// What an entry of a session came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionEffect {
    /// It is there, as the entry wanted it. Nobody else is told.
    Quiet,
    /// It was changed over HTTP, or by a client that left a group for all.
    Changed,
    /// A connection of this client has it now, instead of earlier ones.
    Attached {
        client: ClientKey,
        /// As it is now.
        attachment: Attachment,
        /// Earlier ones of the client, by gateway, to be cut off.
        displaced: BTreeMap<Member, AttachmentNumber>,
        /// Those of other clients that had to go for it.
        crowded_out: Vec<(ClientKey, Attachment)>,
    },
    /// An attach came too late: a later connection of its client has the session.
    Overtaken,
    /// There are as many clients as there may be.
    Full,
    /// A join that the session's grants do not allow by now.
    NotGranted,
    /// A join or a leave of a client of which the slot has lost sight: its gateway is to say first that it is there.
    NoClient,
    /// An attach with a token that another has taken the place of.
    OldToken,
    /// It is over, and may not be here any more.
    Ended {
        reason: EndReason,
        /// To be told.
        attachments: Vec<Attachment>,
    },
    /// It is not here, or was over already.
    Gone(Option<EndReason>),
}

/// By id.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Sessions(pub(super) BTreeMap<SessionId, Arc<Session>>);

impl Sessions {
    /// What this session takes, in bytes, about.
    pub(super) fn held_bytes(&self, id: SessionId) -> u64 {
        self.0.get(&id).map_or(0, |session| session.held_bytes())
    }

    pub(super) fn apply(&mut self, id: SessionId, index: Index, entry: SessionEntry) -> SessionEffect {
        let Some(session) = self.0.get_mut(&id) else {
            let SessionEntry::Put { record, stored } = entry else {
                return SessionEffect::Gone(None);
            };
            self.0.insert(id, Arc::new(Session::new(record, index, stored)));
            return SessionEffect::Quiet;
        };
        if let Some(reason) = session.ended
            && !outlives_end(&entry)
        {
            return SessionEffect::Gone(Some(reason));
        }
        let forget = matches!(entry, SessionEntry::Forget);
        let session = Arc::make_mut(session);
        let effect = change(session, index, entry);
        session.tidy();
        // One that could not be stored is remembered for a while: a repeat of its creation would make it again, and the store,
        // where an end is for ever, would not have it.
        let is_over = session.ended.is_some_and(|reason| reason != EndReason::NotStored);
        if session.is_at_rest() && (forget || is_over) {
            assert!(!session.is_present(), "{id} is forgotten before its clients are gone");
            self.0.remove(&id);
        }
        effect
    }
}

/// Whether the entry is still of use when the session is over.
fn outlives_end(entry: &SessionEntry) -> bool {
    match entry {
        SessionEntry::Departed { .. }
        | SessionEntry::Closed { .. }
        | SessionEntry::Saved { .. }
        | SessionEntry::ForgetClient { .. }
        | SessionEntry::Forget => true,
        SessionEntry::Put { .. }
        | SessionEntry::Change { .. }
        | SessionEntry::End { .. }
        | SessionEntry::Attach { .. }
        | SessionEntry::Restore { .. }
        | SessionEntry::Detach { .. }
        | SessionEntry::Withdraw { .. }
        | SessionEntry::GraceOver { .. }
        | SessionEntry::Join { .. }
        | SessionEntry::Leave { .. }
        | SessionEntry::Used { .. } => false,
    }
}

/// An entry of a session that is here.
fn change(session: &mut Session, index: Index, entry: SessionEntry) -> SessionEffect {
    let changed = match entry {
        SessionEntry::Change { change, at_ms } => {
            session.change(change, at_ms);
            session.mark_changed(index);
            return SessionEffect::Changed;
        }
        // One of several repeats of a creation failed; another has put the session into the store.
        SessionEntry::End { reason: EndReason::NotStored, .. } if session.saved > 0 => false,
        SessionEntry::End { reason, at_ms } => {
            session.mark_changed(index);
            return SessionEffect::Ended { reason, attachments: session.end(reason, at_ms) };
        }
        SessionEntry::Attach { gateway, connection, token, .. } if session.refuses(token, &gateway, connection) => {
            return SessionEffect::OldToken;
        }
        SessionEntry::Attach { client, gateway, connection, since_ms, at_ms, token: _, room } => {
            let key = client.key();
            let given = session.attach(Asking { client, gateway, connection, since_ms }, at_ms, room);
            return attached(session, index, key, given);
        }
        SessionEntry::Restore { client, gateway, connection, attachment, revision, joined, room } => {
            let key = client.key();
            let asking = Asking { client, gateway, connection, since_ms: attachment };
            let given = session.restore(asking, attachment, (revision, joined), room);
            return attached(session, index, key, given);
        }
        SessionEntry::Detach { client, gateway, attachment, at_ms, grace_until_ms, closed } => {
            session.detach(client, (&gateway, attachment), at_ms, grace_until_ms, closed)
                && session.should_note(session.record.last_used_ms)
        }
        SessionEntry::Withdraw { client, gateway, connection, at_ms, grace_until_ms } => {
            session.withdraw(client, (&gateway, connection), at_ms, grace_until_ms)
                && session.should_note(session.record.last_used_ms)
        }
        SessionEntry::Closed { client, gateway, attachment } => {
            session.close(client, &gateway, attachment);
            false
        }
        SessionEntry::Join { client, group, needs_grant } => {
            if let Err(why) = session.join_as_client(client, group, needs_grant) {
                return not_joined(why);
            }
            false
        }
        SessionEntry::Leave { client, attachment, group, at_ms } => {
            match session.leave_as_client((client, attachment), &group, at_ms) {
                Ok(true) => {
                    session.mark_changed(index);
                    return SessionEffect::Changed;
                }
                Ok(false) => false,
                Err(why) => return not_joined(why),
            }
        }
        SessionEntry::Used { at_ms } => session.used(at_ms),
        SessionEntry::GraceOver { client, attachment } => session.grace_over(client, attachment),
        SessionEntry::Departed { client, groups } => {
            session.departed(client, &groups);
            false
        }
        SessionEntry::ForgetClient { client, attachment } => {
            session.forget_client(client, attachment);
            false
        }
        SessionEntry::Saved { index } => {
            session.saved = session.saved.max(index);
            false
        }
        // The record that is here wins over one that is put again or loaded. Whether it is forgotten, its stage says.
        SessionEntry::Put { .. } | SessionEntry::Forget => false,
    };
    if changed {
        session.mark_changed(index);
    }
    SessionEffect::Quiet
}

/// What came of an attach.
fn attached(
    session: &mut Session,
    index: Index,
    client: ClientKey,
    given: Result<Given, NotAttached>,
) -> SessionEffect {
    match given {
        Ok(Given { attachment, crowded_out }) => {
            if session.should_note(session.record.last_used_ms) {
                session.mark_changed(index);
            }
            let displaced = session.client(client).map(|client| client.open.clone()).unwrap_or_default();
            SessionEffect::Attached { client, attachment, displaced, crowded_out }
        }
        Err(NotAttached::Overtaken) => SessionEffect::Overtaken,
        Err(NotAttached::Full) => SessionEffect::Full,
    }
}

fn not_joined(why: NotJoined) -> SessionEffect {
    match why {
        NotJoined::Absent => SessionEffect::NoClient,
        NotJoined::NotGranted => SessionEffect::NotGranted,
    }
}
