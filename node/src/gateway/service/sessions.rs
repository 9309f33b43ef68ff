//! Sessions: made, read, changed, ended; those of a user.

use tokio_util::sync::CancellationToken;

use super::{Service, in_order};
use crate::{
    gateway::door::reasons::Refused,
    id::{GroupName, Seat, SessionId},
    logic::{
        entry::{SessionChange, SessionRecord},
        request::{
            ChangeSession, CreateSession, Done, EndSession, ReadSession, RecordJoin, RecordLeave, SessionView,
            SlotError,
        },
    },
    wire::reason::Reason,
};

/// How many sessions of a user are asked for at once.
const AT_ONCE: usize = 32;
/// How many sessions of a user are ended in one round.
const END_PAGE: usize = 200;

/// A page of a user's sessions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SessionsOfUser {
    /// By id.
    pub sessions: Vec<SessionView>,
    /// Those that could not be read now.
    pub unavailable: Vec<SessionId>,
    /// Where the next page begins; nothing at the end.
    pub next: Option<SessionId>,
}

impl Service {
    /// Creates a session, and stores it unless it is ephemeral. Once `over` is cancelled nothing is tried again.
    pub async fn create(
        &self,
        record: SessionRecord,
        over: Option<&CancellationToken>,
    ) -> Result<SessionView, Refused> {
        let id = record.id;
        let created = self.ask.of_session(id, CreateSession { record }, over).await;
        let created = created.map_err(|error| match error {
            // Perhaps it was made, but nobody has its token: it ends by itself, and another may be made.
            SlotError::Unknown if id.is_ephemeral() => SlotError::Unavailable,
            SlotError::Unknown => SlotError::StoreUnavailable(format!(
                "it was not known to be stored within {} ms (limits.request_ms)",
                self.config.limits.request_ms
            )),
            error => error,
        });
        Ok(created?)
    }

    /// Reads a session.
    pub async fn session(&self, session: SessionId) -> Result<SessionView, Refused> {
        Ok(self.ask.of_session(session, ReadSession, None).await?)
    }

    /// Changes a session; stored before the answer.
    pub async fn change(&self, session: SessionId, change: SessionChange) -> Result<SessionView, Refused> {
        Ok(self.ask.of_session(session, ChangeSession { change }, None).await?)
    }

    /// Gives a session's token the next number: those from before are refused as soon as this is answered. What is attached
    /// stays so.
    pub async fn renew_token(&self, session: SessionId) -> Result<SessionView, Refused> {
        self.change(session, SessionChange { new_token: true, ..SessionChange::default() }).await
    }

    /// Ends a session. Whether it was this call that ended it; one that had ended before is no error.
    pub async fn end(&self, session: SessionId) -> Result<bool, Refused> {
        match self.ask.of_session(session, EndSession, None).await {
            Ok(Done) => Ok(true),
            Err(SlotError::SessionEnded(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells a session's slot that a client of it is in a group, unless its grants do not allow it by now.
    pub async fn enter(
        &self,
        Seat { session, client, .. }: Seat,
        group: GroupName,
        needs_grant: bool,
    ) -> Result<(), Refused> {
        self.ask.of_session(session, RecordJoin { client, group, needs_grant }, None).await?;
        Ok(())
    }

    /// Tells a session's slot that a client of it is not in a group any more.
    pub async fn leave(&self, by: Seat, group: GroupName) -> Result<(), Refused> {
        let Seat { session, client, attachment } = by;
        self.ask.of_session(session, RecordLeave { client, attachment, group }, None).await?;
        Ok(())
    }

    /// Reads the sessions of a user, by id, at most `limit` of them; those that the store has, so none that is ephemeral.
    pub async fn of_user(&self, user: &str, after: Option<SessionId>, limit: usize) -> Result<SessionsOfUser, Refused> {
        let mut ids = self.store.sessions_of_user(user, after, limit + 1).await?;
        let more = ids.len() > limit;
        ids.truncate(limit);
        let mut page = SessionsOfUser { next: ids.last().copied().filter(|_| more), ..SessionsOfUser::default() };
        let reads = ids.iter().copied().map(|id| self.session(id));
        for (id, read) in ids.iter().zip(in_order(AT_ONCE, reads).await) {
            match read {
                Ok(session) => page.sessions.push(session),
                // It ended since the store was asked, or the store has not been told yet.
                Err(refused) if refused.is_session_over() => {}
                Err(_) => page.unavailable.push(*id),
            }
        }
        Ok(page)
    }

    /// Ends all stored sessions of a user; how many this call ended. `Unavailable` where some could not be ended.
    pub async fn end_of_user(&self, user: &str) -> Result<u64, Refused> {
        let (mut ended, mut failed, mut after) = (0, 0, None);
        loop {
            let ids = self.store.sessions_of_user(user, after, END_PAGE).await?;
            for result in in_order(AT_ONCE, ids.iter().copied().map(|id| self.end(id))).await {
                match result {
                    Ok(by_this_call) => ended += u64::from(by_this_call),
                    Err(refused) if refused.is_session_over() => {}
                    Err(_) => failed += 1,
                }
            }
            // One page of failures is enough to know that now is not the time.
            if ids.len() < END_PAGE || failed > 0 {
                break;
            }
            after = ids.last().copied();
        }
        if failed == 0 {
            return Ok(ended);
        }
        let words = format!("{ended} sessions of the user were ended, at least {failed} could not be: repeat the call");
        Err(Refused::saying(Reason::Unavailable, words))
    }
}
