//! The cluster's reasons as errors of a client's protocol: the one place where they are mapped.

use crate::{
    logic::{entry::EndReason, request::SlotError},
    wire::command::{ClientError, Detail, RequestId},
};

/// An error without a place in the frame.
pub fn error(id: RequestId, code: &'static str, message: impl Into<String>) -> ClientError {
    ClientError { id, code, message: message.into(), detail: Vec::new(), retry_after_ms: None }
}

/// An error of one field.
pub fn field_error(id: RequestId, code: &'static str, field: &str, message: impl Into<String>) -> ClientError {
    let message = message.into();
    let detail = vec![Detail { loc: vec![field.to_owned()], msg: message.clone(), kind: code }];
    ClientError { id, code, message, detail, retry_after_ms: None }
}

/// Why a slot did not do it. Each but `unknown_outcome` means: certainly not done.
pub fn slot_error(id: RequestId, reason: &SlotError) -> ClientError {
    let retry = |code, message: &str, after_ms| ClientError {
        retry_after_ms: Some(after_ms),
        ..error(id.clone(), code, message)
    };
    match reason {
        SlotError::Busy => retry("busy", "too much is waiting for this group: not done, try again", 100),
        SlotError::Unavailable | SlotError::NotPrimary { .. } => {
            retry("unavailable", "no node can serve this part of the cluster now: not done, try again", 1_000)
        }
        SlotError::StoreUnavailable(reason) => retry(
            "store_unavailable",
            &format!("the session store did not take or give the session ({reason}): not done, try again"),
            1_000,
        ),
        SlotError::NotEnoughCopies { copies, min_copies } => retry(
            "not_enough_copies",
            &format!("{copies} nodes would hold the message, {min_copies} are required: not done, try again"),
            1_000,
        ),
        SlotError::Unknown => retry(
            "unknown_outcome",
            "no answer in time: it may or may not have been done. Repeat it; a publish with the same key is never made twice",
            0,
        ),
        SlotError::NoSession => error(id, "no_session", "there is no such session (any more)"),
        SlotError::SessionEnded(reason) => error(id, "session_ended", ended(*reason)),
        SlotError::TooManyGroups => error(id, "too_many_groups", TOO_MANY_GROUPS),
    }
}

/// To a join beyond the bound.
pub const TOO_MANY_GROUPS: &str =
    "the session has as many groups as one may have (limits.groups_per_session): leave some first";

/// How a session ended, for people.
pub fn ended(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Ended => "the session was ended",
        EndReason::Expired => "the session has reached the end of its time to live",
        EndReason::Idle => "the session was idle for too long",
        EndReason::NotStored => "the session was created but could not be stored",
    }
}
