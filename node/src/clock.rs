//! The only place that reads a clock.
#![expect(clippy::disallowed_methods, reason = "this is the place that the others are sent to")]

use std::{
    sync::OnceLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use crate::logic::Now;

/// Both clocks, for a core.
pub fn now() -> Now {
    Now { mono_ms: mono_ms(), wall_ms: wall_ms() }
}

/// Milliseconds since the process first asked; never goes back.
pub fn mono_ms() -> u64 {
    since_start().as_millis() as u64
}

/// Microseconds since the process first asked; never goes back.
pub fn mono_us() -> u64 {
    since_start().as_micros() as u64
}

/// Milliseconds since 1970; 0 on a machine that believes to live before that.
pub fn wall_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// The point in time `after` from now, for tokio's timers.
pub fn deadline(after: Duration) -> tokio::time::Instant {
    tokio::time::Instant::now() + after
}

fn since_start() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}
