//! A slot's sessions, and what an entry makes of one.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    entry::{EndReason, SessionEntry},
    id::{AttachmentNumber, Index, Member, SessionId},
    session::{Attachment, NotJoined, Session},
};

/// What an entry of a session came to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SessionEffect {
    /// It is there, as the entry wanted it. Nobody else is told.
    Quiet,
    /// It was changed over HTTP.
    Changed,
    /// A connection has it now, instead of earlier ones.
    Attached {
        /// As it is now.
        attachment: Attachment,
        /// Earlier ones, by gateway, to be cut off.
        displaced: BTreeMap<Member, AttachmentNumber>,
    },
    /// An attach came too late: a later connection has the session.
    Overtaken,
    /// A join that the session's grants do not allow by now.
    NotGranted,
    /// A join or a leave of a client of which the slot has lost sight: its gateway is to say first that it is there.
    NoClient,
    /// An attach with a token that another has taken the place of.
    OldToken,
    /// It is over.
    Ended {
        /// To be told.
        attachment: Option<Attachment>,
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
        if let Some(reason) = session.ended()
            && !outlives_end(&entry)
        {
            return SessionEffect::Gone(Some(reason));
        }
        let forget = matches!(entry, SessionEntry::Forget);
        let session = Arc::make_mut(session);
        let effect = change(session, index, entry);
        // One that could not be stored is remembered for a while: a repeat of its creation would make it again, and the store,
        // where an end is for ever, would not have it.
        let is_over = session.ended().is_some_and(|reason| reason != EndReason::NotStored);
        if session.is_at_rest() && (forget || is_over) {
            assert!(session.joined.is_empty(), "{id} is forgotten before what its client has joined");
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
        SessionEntry::End { reason, .. } => {
            session.mark_changed(index);
            return SessionEffect::Ended { attachment: session.end(reason) };
        }
        SessionEntry::Attach { gateway, connection, token, .. } if session.refuses(token, &gateway, connection) => {
            return SessionEffect::OldToken;
        }
        SessionEntry::Attach { gateway, connection, since_ms, at_ms, token: _ } => {
            let Some(attachment) = session.attach(gateway, connection, since_ms, at_ms) else {
                return SessionEffect::Overtaken;
            };
            if session.should_note(session.record.last_used_ms) {
                session.mark_changed(index);
            }
            return SessionEffect::Attached { attachment, displaced: session.open.clone() };
        }
        SessionEntry::Restore { gateway, connection, attachment, revision, joined } => {
            let Some(attachment) = session.restore(gateway, connection, attachment, (revision, joined)) else {
                return SessionEffect::Overtaken;
            };
            if session.should_note(session.record.last_used_ms) {
                session.mark_changed(index);
            }
            return SessionEffect::Attached { attachment, displaced: session.open.clone() };
        }
        SessionEntry::Detach { gateway, attachment, at_ms, grace_until_ms, closed } => {
            session.detach(&gateway, attachment, at_ms, grace_until_ms, closed)
                && session.should_note(session.record.last_used_ms)
        }
        SessionEntry::Withdraw { gateway, connection, at_ms, grace_until_ms } => {
            session.withdraw(&gateway, connection, at_ms, grace_until_ms)
                && session.should_note(session.record.last_used_ms)
        }
        SessionEntry::Closed { gateway, attachment } => {
            session.close(&gateway, attachment);
            false
        }
        SessionEntry::Join { group, needs_grant } => match session.join_as_client(group, needs_grant) {
            Ok(()) => false,
            Err(NotJoined::Absent) => return SessionEffect::NoClient,
            Err(NotJoined::NotGranted) => return SessionEffect::NotGranted,
        },
        SessionEntry::Leave { .. } if !session.is_present() => return SessionEffect::NoClient,
        SessionEntry::Leave { group } => session.leave(&group),
        SessionEntry::Used { at_ms } => session.used(at_ms),
        SessionEntry::GraceOver { attachment } => session.grace_over(attachment),
        SessionEntry::Departed { groups } => {
            session.departed(&groups);
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
