//! The plain JSON protocol of `/ws`: one JSON object a frame, for clients that have nothing but `new WebSocket(…)`.
//!
//! What a client sends has a `type` and may have an `id` (a number or a string), which the answer echoes unchanged:
//!
//! | type | fields |
//! | --- | --- |
//! | `hello` | `session?` (a token: the session's, or a JWT), `resume?` (`{group: {epoch, offset}}`) |
//! | `join` | `group`, `since?` (`{epoch, offset}`) |
//! | `leave` | `group` |
//! | `publish` | `group`, `data` (any JSON), `key?` (repeats with it are one publish), `ephemeral?` (kept nowhere, without a key) |
//! | `history` | `group`, `since?`, `limit?` (1 to 1000, else 100) |
//! | `members` | `group`, `after?` (a session id), `limit?` (1 to 1000, else 100) |
//! | `heartbeat` | |
//! | `refresh` | `token` (a JWT) |
//!
//! An optional field may be `null`. A field that is not in the table, is there twice, or has another type is refused, and
//! the `error` names each such place in `detail`. An epoch is a text of 16 hex digits, an offset a whole number.
//!
//! `data` is carried as the JSON text that it came as: checked once, never parsed into values, put into each pushed
//! message as it is. Text that nests deeper than [`DEPTH_MAX`] is refused, since it would kill other people's parsers.
//!
//! A connection that ends is told so by `bye`, then by a close code that says the same (see [`crate::wire::reason::Reason`]).

mod decode;
mod encode;
#[cfg(test)]
mod tests;

pub use decode::decode;
pub use encode::encode;
pub(in crate::wire) use encode::{json, size_hint};

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
