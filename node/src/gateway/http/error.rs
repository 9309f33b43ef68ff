//! Why a call over HTTP was refused: one shape for every error, `{"detail": [{loc, msg, type}]}`.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;

use crate::{gateway::door::reasons::Refused, logic::request::SlotError, store::StoreError, wire::reason::Reason};

/// The longest message that echoes something a client sent, in bytes.
const MESSAGE_MAX_BYTES: usize = 400;

/// At most this many problems are told, and that there are more.
const PROBLEMS_MAX: usize = 64;

/// The body of every error.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[schema(example = json!({"detail": [{"loc": ["body", "user"], "msg": "this field is required", "type": "missing"}]}))]
pub struct ErrorBody {
    /// What is wrong; never empty.
    pub detail: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Problem {
    /// The way to it: `body`, `query`, `path` or `header`, then names and array indexes. Empty where no part of the
    /// request is to blame.
    pub loc: Vec<Loc>,
    /// For people: what is wrong and how to mend it.
    pub msg: String,
    /// For programs.
    #[serde(rename = "type")]
    pub kind: &'static str,
}

/// A step on the way to a value.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Loc {
    /// Of an object.
    Name(String),
    /// Of an array.
    Index(usize),
}

impl From<&str> for Loc {
    fn from(name: &str) -> Self {
        Self::Name(shortened(name, 100))
    }
}

impl From<usize> for Loc {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// The way to a value: `loc!["body", "groups", 3]`.
macro_rules! loc {
    ($($part:expr),* $(,)?) => { vec![$($crate::gateway::http::error::Loc::from($part)),*] };
}
pub(crate) use loc;

impl Problem {
    /// A problem; an overlong message is cut.
    pub fn new(loc: Vec<Loc>, kind: &'static str, msg: impl AsRef<str>) -> Self {
        Self { loc, msg: shortened(msg.as_ref(), MESSAGE_MAX_BYTES), kind }
    }
}

/// Gathers what is wrong with a request, so that one answer names it all.
#[derive(Debug, Default)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Notes a value that is of the right type but not right.
    pub fn value(&mut self, loc: Vec<Loc>, msg: impl AsRef<str>) {
        self.add(Problem::new(loc, "value_error", msg));
    }

    /// Notes a problem. Of very many the first are told, so that the answer is not many times as long as the request.
    pub fn add(&mut self, problem: Problem) {
        match self.0.len() {
            0..PROBLEMS_MAX => self.0.push(problem),
            PROBLEMS_MAX => self.0.push(Problem::new(Vec::new(), problem.kind, "there is more that is wrong")),
            _ => {}
        }
    }

    /// Takes the value, or notes why there is none.
    pub fn take<T>(&mut self, loc: impl FnOnce() -> Vec<Loc>, result: Result<T, String>) -> Option<T> {
        result.map_err(|msg| self.value(loc(), msg)).ok()
    }

    /// Refuses the request if anything was noted: 413 where size is all that is wrong, 422 otherwise.
    pub fn refuse(self) -> Result<(), ApiError> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(ApiError::invalid(self.0))
    }
}

/// An answer that is not a success.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiError {
    /// The status code.
    pub status: StatusCode,
    /// What is wrong; never empty.
    pub detail: Vec<Problem>,
    /// When to come back, in seconds, where that helps.
    pub retry_after_s: Option<u64>,
}

impl ApiError {
    /// An error that no part of the request is to blame for, as the table says it.
    pub fn new(reason: Reason) -> Self {
        Refused::new(reason).into()
    }

    /// The same, in words that fit the occasion.
    pub fn saying(reason: Reason, msg: impl AsRef<str>) -> Self {
        Self::at(reason, Vec::new(), msg)
    }

    /// An error of a part of the request.
    pub fn at(reason: Reason, loc: Vec<Loc>, msg: impl AsRef<str>) -> Self {
        let row = reason.row();
        Self {
            status: status(reason),
            detail: vec![Problem::new(loc, row.code, msg)],
            retry_after_s: row.retry_ms.map(whole_seconds),
        }
    }

    /// What validation found.
    pub fn invalid(detail: Vec<Problem>) -> Self {
        let only_size = detail.iter().all(|problem| problem.kind == Reason::TooLarge.code());
        Self { status: status(if only_size { Reason::TooLarge } else { Reason::Invalid }), detail, retry_after_s: None }
    }

    /// A fault of Roost's own; the log has more.
    pub fn internal() -> Self {
        Self::new(Reason::Internal)
    }
}

/// What is never said over HTTP is a fault of Roost's own there.
fn status(reason: Reason) -> StatusCode {
    let status = reason.row().status.and_then(|status| StatusCode::from_u16(status).ok());
    status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// `Retry-After` counts in seconds, and at once is too soon for it.
fn whole_seconds(ms: u64) -> u64 {
    ms.div_ceil(1_000).max(1)
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let retry_after_s = refused.retry_ms.map(whole_seconds);
        Self { retry_after_s, ..Self::saying(refused.reason, &refused.words) }
    }
}

impl From<SlotError> for ApiError {
    fn from(error: SlotError) -> Self {
        Refused::from(error).into()
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        Refused::from(error).into()
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        ApiError::from(self).into_response()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(ErrorBody { detail: self.detail })).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            let challenge = HeaderValue::from_static("Bearer realm=\"roost\"");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// The first `max_bytes` of a text, cut between characters.
fn shortened(text: &str, max_bytes: usize) -> String {
    if text.len() <= max_bytes {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(max_bytes)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::entry::EndReason;

    #[test]
    fn every_reason_has_a_status_and_a_type() {
        #[track_caller]
        fn check(error: SlotError, status: u16, kind: &str, retry: bool) {
            let error = ApiError::from(error);
            assert_eq!((error.status.as_u16(), error.detail[0].kind), (status, kind));
            assert_eq!(error.retry_after_s.is_some(), retry);
        }
        check(SlotError::Busy, 503, "busy", true);
        check(SlotError::Full, 503, "busy", true);
        check(SlotError::Unavailable, 503, "unavailable", true);
        check(SlotError::NotPrimary { map_version: 3, ordered: false }, 503, "unavailable", true);
        check(SlotError::StoreUnavailable("down".to_owned()), 503, "store_unavailable", true);
        check(SlotError::NotEnoughCopies { copies: 1, min_copies: 2 }, 503, "not_enough_copies", true);
        check(SlotError::Unknown, 504, "unknown_outcome", true);
        check(SlotError::NoSession, 404, "no_session", false);
        check(SlotError::SessionEnded(EndReason::Idle), 410, "session_ended", false);
        check(SlotError::TooManyGroups, 409, "too_many_groups", false);
        check(SlotError::TooLong { done: false }, 413, "too_large", false);
        check(SlotError::TooLong { done: true }, 500, "internal", false);
        check(SlotError::OldToken, 401, "unauthorized", false);
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(shortened("grün", 3), "gr…");
        assert_eq!(shortened("grün", 5), "grün");
        let problem = Problem::new(loc!["body", 3], "value_error", "ü".repeat(10_000));
        assert!(problem.msg.len() <= MESSAGE_MAX_BYTES + '…'.len_utf8());
        assert_eq!(serde_json::to_value(&problem).unwrap()["loc"], serde_json::json!(["body", 3]));
    }
}
