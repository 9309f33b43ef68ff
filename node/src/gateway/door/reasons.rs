//! What somebody is told who is refused something: a reason of the table, with what the occasion adds to it. Here it
//! becomes an `error` frame; `http/error.rs` makes an answer of it.

use std::borrow::Cow;

use super::access::Denied;
use crate::{
    logic::{entry::EndReason, request::SlotError},
    seldom::Seldom,
    store::StoreError,
    wire::{
        command::{ClientError, Detail, RequestId},
        reason::Reason,
    },
};

/// What clients and backends are told when memory is short, and when to try again.
const NO_MEMORY: &str =
    "the nodes of this part of the cluster have no memory left for more (limits.memory_bytes): not done, try again";
const NO_MEMORY_MS: u64 = 1_000;

/// A refusal. Each but `UnknownOutcome` means: certainly not done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    pub reason: Reason,
    /// For people.
    pub words: Cow<'static, str>,
    /// After how many milliseconds a retry makes sense, if it does.
    pub retry_ms: Option<u64>,
    /// The field of the request that is to blame, if one is.
    pub field: Option<&'static str>,
}

impl Refused {
    /// As the table says it.
    pub fn new(reason: Reason) -> Self {
        let row = reason.row();
        Self { reason, words: row.words.into(), retry_ms: row.retry_ms, field: None }
    }

    /// In words that fit the occasion.
    pub fn saying(reason: Reason, words: impl Into<Cow<'static, str>>) -> Self {
        Self { words: words.into(), ..Self::new(reason) }
    }

    /// A field is to blame.
    #[must_use]
    pub fn at(self, field: &'static str) -> Self {
        Self { field: Some(field), ..self }
    }

    /// A retry makes sense after this time.
    #[must_use]
    pub fn after(self, retry_ms: u64) -> Self {
        Self { retry_ms: Some(retry_ms), ..self }
    }

    /// Whether the session is not there any more.
    pub fn is_session_over(&self) -> bool {
        matches!(self.reason, Reason::NoSession | Reason::SessionEnded)
    }

    /// As the answer to a client's request.
    pub fn frame(self, id: RequestId) -> ClientError {
        let Self { reason, words, retry_ms, field } = self;
        let message = words.into_owned();
        let detail =
            field.map(|field| Detail { loc: vec![field.to_owned()], msg: message.clone(), kind: reason.code() });
        ClientError { id, reason, message, detail: detail.into_iter().collect(), retry_after_ms: retry_ms }
    }
}

impl From<SlotError> for Refused {
    fn from(error: SlotError) -> Self {
        match error {
            SlotError::Busy => Self::new(Reason::Busy),
            SlotError::Full => Self::saying(Reason::Busy, NO_MEMORY).after(NO_MEMORY_MS),
            SlotError::Unavailable | SlotError::NotPrimary { .. } => Self::new(Reason::Unavailable),
            SlotError::StoreUnavailable(reason) => {
                // What the store or the way to it said has addresses and names: that is for the log.
                static COMPLAIN: Seldom = Seldom::new();
                if let Some(left_out) = COMPLAIN.now() {
                    tracing::warn!(reason, left_out, "the session store did not take or give a session");
                }
                Self::new(Reason::StoreUnavailable)
            }
            SlotError::NotEnoughCopies { copies, min_copies } => Self::saying(
                Reason::NotEnoughCopies,
                format!("{copies} nodes would hold the message, {min_copies} are required: not done, try again"),
            ),
            SlotError::Unknown => Self::new(Reason::UnknownOutcome),
            SlotError::NoSession => Self::new(Reason::NoSession),
            SlotError::SessionEnded(reason) => Self::saying(Reason::SessionEnded, ended(reason)),
            SlotError::TooManyGroups => Self::new(Reason::TooManyGroups),
            SlotError::TooManyClients => Self::new(Reason::TooManyClients),
            SlotError::NotGranted => Denied::NotGranted.into(),
            SlotError::TooLong { done: false } => Self::new(Reason::TooLarge),
            SlotError::TooLong { done: true } => Self::new(Reason::Internal),
            SlotError::OldToken => Self::saying(Reason::Unauthorized, "another token has taken the place of this one"),
        }
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable(reason) | StoreError::Refused(reason) => SlotError::StoreUnavailable(reason).into(),
            StoreError::Corrupt(reason) => {
                static COMPLAIN: Seldom = Seldom::new();
                if let Some(left_out) = COMPLAIN.now() {
                    tracing::error!(reason, left_out, "the store gave something that cannot be read");
                }
                Self::new(Reason::Internal)
            }
        }
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        Self::saying(Reason::Forbidden, denied.to_string()).at("group")
    }
}

/// How a session ended, for people.
pub fn ended(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Ended => "the session was ended",
        EndReason::Expired => "the session has reached the end of its time to live",
        EndReason::Idle => "the session was idle for too long",
        EndReason::NotStored => "the session was created but could not be stored",
        EndReason::Lapsed => "the session was ephemeral, and its client, or all nodes that held it, were gone",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_is_to_blame_is_named_and_what_the_store_said_is_not() {
        let frame = Refused::from(Denied::Nobody).frame(Some("7".into()));
        assert_eq!((frame.reason, frame.detail[0].loc.as_slice()), (Reason::Forbidden, &["group".to_owned()][..]));
        assert_eq!(frame.detail[0].kind, "forbidden");
        let frame = Refused::from(SlotError::Busy).frame(None);
        assert_eq!((frame.reason, frame.detail.len(), frame.retry_after_ms), (Reason::Busy, 0, Some(100)));
        let leaky = "node 10.1.2.3:9042 of keyspace roost: password of role `r` is wrong".to_owned();
        for refused in [
            Refused::from(SlotError::StoreUnavailable(leaky.clone())),
            Refused::from(StoreError::Unavailable(leaky.clone())),
            Refused::from(StoreError::Refused(leaky.clone())),
            Refused::from(StoreError::Corrupt(leaky)),
        ] {
            assert_eq!(refused.words, refused.reason.row().words, "what the store said is for the log");
        }
        let frame = Refused::new(Reason::RateLimited).after(7).frame(None);
        assert_eq!(frame.retry_after_ms, Some(7));
    }
}
