//! The pure cores: events in, effects out. No clock, no async, no randomness without a passed seed, no logging, no
//! iteration over hash maps. Each has exactly one shell, in the crate `roost`; the simulator is another.

pub mod asking;
pub mod attachments;
pub mod batch;
mod chance;
pub mod clocks;
pub mod encoded;
pub mod entry;
pub mod feed;
pub mod few;
pub mod following;
pub mod hints;
pub mod id;
pub mod lease;
pub mod liveness;
pub mod log;
pub mod map;
pub mod memory;
pub mod plan;
pub mod primary;
pub mod replication;
pub mod request;
pub mod session;
pub mod slot;
pub mod steward;

use serde::{Deserialize, Serialize};

/// The two clocks that a core is told: it never reads one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Now {
    /// Milliseconds of a clock that never goes back; for time-outs.
    pub mono_ms: u64,
    /// Milliseconds since 1970; for expiry and what people read.
    pub wall_ms: u64,
}
