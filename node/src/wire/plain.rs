//! The plain JSON protocol of `/ws`: one JSON object a frame, for clients that have nothing but `new WebSocket(…)`.
//!
//! What a client sends has a `type` and may have an `id` (a number or a string), which the answer echoes unchanged:
//!
//! | type | fields |
//! | --- | --- |
//! | `hello` | `session?` (a token), `resume?` (`{group: {epoch, offset}}`) |
//! | `join` | `group`, `since?` (`{epoch, offset}`) |
//! | `leave` | `group` |
//! | `publish` | `group`, `data` (any JSON), `key?` (repeats with it are one publish) |
//! | `history` | `group`, `since?`, `limit?` (1 to 1000, else 100) |
//! | `members` | `group`, `after?` (a session id), `limit?` (1 to 1000, else 100) |
//! | `heartbeat` | |
//!
//! An optional field may be `null`. A field that is not in the table, is there twice, or has another type is refused, and
//! the `error` names each such place in `detail`. An epoch is a text of 16 hex digits, an offset a whole number.
//!
//! `data` is carried as the JSON text that it came as: checked once, never parsed into values, put into each pushed
//! message as it is. Text that nests deeper than [`DEPTH_MAX`] is refused, since it would kill other people's parsers.
//!
//! A connection that ends is told so by `bye`, then by a close code that says the same (see [`close_code`]).

mod decode;
mod encode;
#[cfg(test)]
mod tests;

use crate::wire::command::ByeCode;

pub use decode::{BAD_JSON, INVALID, decode};
pub use encode::encode;

/// How deep `data` may nest. serde_json, and with it many a client, gives up at 128; a pushed message adds one level.
pub const DEPTH_MAX: usize = 100;

/// The most that one `history` or `members` may ask for.
pub const LIMIT_MAX: u32 = 1_000;

/// What they get without a `limit`.
pub const LIMIT_DEFAULT: u32 = 100;

/// The longest `id` that is echoed, and the longest `key` of a publish, in bytes.
pub const ID_MAX_BYTES: usize = 128;

/// What the decoder bounds beyond the frame's own size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// The largest `data` of a publish, in bytes of JSON text.
    pub message_bytes: usize,
}

/// The `code` of a `bye`.
pub fn bye_name(code: ByeCode) -> &'static str {
    match code {
        ByeCode::Draining => "draining",
        ByeCode::Displaced => "displaced",
        ByeCode::SessionEnded => "session_ended",
        ByeCode::HelloTimeout => "hello_timeout",
        ByeCode::Idle => "idle",
        ByeCode::SlowConsumer => "slow_consumer",
        ByeCode::BadFrame => "bad_frame",
        ByeCode::RateLimited => "rate_limited",
        ByeCode::Unauthorized => "unauthorized",
        ByeCode::Unavailable => "unavailable",
    }
}

/// The WebSocket close code that goes with a `bye`.
///
/// | code | `bye` | |
/// | --- | --- | --- |
/// | 4001 | `draining` | come back, with the same session |
/// | 4002 | `hello_timeout` | " |
/// | 4003 | `idle` | " |
/// | 4004 | `slow_consumer` | " |
/// | 4005 | `rate_limited` | " |
/// | 4006 | `unavailable` | " |
/// | 4100 | `displaced` | coming back as it was would do the same again |
/// | 4101 | `session_ended` | " |
/// | 4102 | `unauthorized` | " |
/// | 4103 | `bad_frame` | " |
///
/// Frames that the WebSocket standard itself has a code for are closed with that one, after the same `bye`: 1009 for one
/// that is too large, 1007 for text that is not UTF-8, 1003 for a binary one, 1002 for what breaks the framing.
pub fn close_code(code: ByeCode) -> u16 {
    match code {
        ByeCode::Draining => 4001,
        ByeCode::HelloTimeout => 4002,
        ByeCode::Idle => 4003,
        ByeCode::SlowConsumer => 4004,
        ByeCode::RateLimited => 4005,
        ByeCode::Unavailable => 4006,
        ByeCode::Displaced => 4100,
        ByeCode::SessionEnded => 4101,
        ByeCode::Unauthorized => 4102,
        ByeCode::BadFrame => 4103,
    }
}
