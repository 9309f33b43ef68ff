//! The only place that reads a clock: one for both ends of a message, since all clients are in this process.
#![expect(clippy::disallowed_methods, reason = "this is the place that the others are sent to")]

use std::{sync::OnceLock, time::Instant};

/// Microseconds since the process first asked.
pub fn now_us() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_micros() as u64
}
