//! The only place that reads a clock.
#![expect(clippy::disallowed_methods, reason = "this is the place that the others are sent to")]

use std::{
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::time::{ClockId, clock_gettime};

use crate::logic::Now;

/// Both clocks, for a core.
pub fn now() -> Now {
    Now { mono_ms: mono_ms(), wall_ms: wall_ms() }
}

/// Milliseconds since the process first asked, those for which the machine was suspended among them; never goes back.
pub fn mono_ms() -> u64 {
    since_start().as_millis() as u64
}

/// Microseconds since the process first asked, as [`mono_ms`]; never goes back.
pub fn mono_us() -> u64 {
    since_start().as_micros() as u64
}

/// Milliseconds since 1970; 0 on a machine that believes to live before that. Never goes back and never leaps, but where
/// other clocks say that it is to ([`correct_wall`]): when the machine's clock is set, this one follows it a tenth faster or
/// slower, so that nobody's hour is over at once.
pub fn wall_ms() -> u64 {
    let (uncorrected, correction_ms) = look(|_, _| ());
    uncorrected.followed_ms.saturating_add_signed(correction_ms)
}

/// The same without a correction, in milliseconds since 1970, for comparison with other clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Uncorrected {
    /// What the machine's clock shows, without its leaps.
    pub followed_ms: u64,
    /// What it shows.
    pub machine_ms: u64,
}

/// What is shown before it is corrected.
pub fn uncorrected_wall() -> Uncorrected {
    look(|_, _| ()).0
}

/// From now on this is added to what the machine's clock shows. `at_once`: a leap of that clock is not followed slowly.
pub fn correct_wall(by_ms: i64, at_once: bool) {
    look(|wall, right| {
        wall.correction_ms = by_ms;
        if at_once {
            wall.follower = right;
        }
    });
}

/// `correct` is given the clock, and a follower that shows what the machine does.
fn look(correct: impl FnOnce(&mut Wall, Follower)) -> (Uncorrected, i64) {
    let (mono_ms, machine_ms) = (mono_ms(), machine_ms());
    let right = Follower { mono_ms, shown_ms: machine_ms };
    let mut clock = WALL.lock().unwrap_or_else(PoisonError::into_inner);
    let wall = clock.get_or_insert(Wall { follower: right, correction_ms: 0 });
    let followed_ms = wall.follower.at(mono_ms, machine_ms);
    correct(wall, right);
    (Uncorrected { followed_ms, machine_ms }, wall.correction_ms)
}

static WALL: Mutex<Option<Wall>> = Mutex::new(None);

struct Wall {
    follower: Follower,
    correction_ms: i64,
}

fn machine_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// A clock that follows another one without its leaps.
#[derive(Clone, Copy)]
struct Follower {
    mono_ms: u64,
    shown_ms: u64,
}

impl Follower {
    /// The clock may be off by one part in this number, of the time since the last look.
    const SLEW: u64 = 10;
    /// What it makes up for at once: timers and threads are no more exact.
    const SLACK_MS: u64 = 5;

    fn at(&mut self, mono_ms: u64, machine_ms: u64) -> u64 {
        // Looks of several threads may come in any order.
        let passed_ms = mono_ms.saturating_sub(self.mono_ms);
        let slew_ms = passed_ms / Self::SLEW;
        let expected_ms = self.shown_ms + passed_ms;
        if machine_ms.abs_diff(expected_ms) <= Self::SLACK_MS {
            self.shown_ms = self.shown_ms.max(machine_ms);
            self.mono_ms = self.mono_ms.max(mono_ms);
        } else if slew_ms > 0 {
            self.shown_ms = machine_ms.clamp(expected_ms - slew_ms, expected_ms + slew_ms);
            self.mono_ms = mono_ms;
        } else {
            // Too short a time to share out: it counts with the next look.
            return expected_ms;
        }
        self.shown_ms
    }
}

/// The point in time `after` from now, for tokio's timers.
pub fn deadline(after: Duration) -> tokio::time::Instant {
    tokio::time::Instant::now() + after
}

fn since_start() -> Duration {
    static START: OnceLock<Duration> = OnceLock::new();
    let now = since_boot();
    now.saturating_sub(*START.get_or_init(|| now))
}

/// By a clock that does not stand still while the machine is suspended: a lease that ran out meanwhile is not to seem good.
fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_right_is_shown() {
        let mut clock = Follower { mono_ms: 100, shown_ms: 5_000 };
        for passed in [0, 1, 2, 30, 31, 1_000, 1_003] {
            assert_eq!(clock.at(100 + passed, 5_000 + passed), 5_000 + passed);
        }
    }

    #[test]
    fn a_leap_is_made_up_for_slowly() {
        const HOUR: u64 = 3_600_000;
        for (leap, faster) in [(HOUR, true), (0, false)] {
            let (start, mut mono, mut last) = (HOUR, 0, HOUR);
            let mut clock = Follower { mono_ms: 0, shown_ms: start };
            // An hour ahead, or an hour behind; looked at often or seldom.
            for step in [1, 3, 9, 10, 250, 7].into_iter().cycle().take(30_000) {
                mono += step;
                let machine = if faster { start + leap + mono } else { leap + mono };
                let shown = clock.at(mono, machine);
                assert!(shown >= last, "{shown} after {last}");
                assert!(shown.abs_diff(last) <= step + step / 10 + 30, "from {last} to {shown} in {step}");
                last = shown;
            }
            let off = last.abs_diff(start + mono);
            assert!(off > mono / 20 && off <= mono / 10, "off by {off} after {mono}");
        }
    }

    #[test]
    fn in_the_end_it_is_right_again() {
        let mut clock = Follower { mono_ms: 0, shown_ms: 10_000 };
        let shown: Vec<u64> = (1..200).map(|second| clock.at(second * 1_000, 20_000 + second * 1_000)).collect();
        assert!(shown.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(shown.last(), Some(&(20_000 + 199_000)));
    }
}
