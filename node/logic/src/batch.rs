//! How many of the messages that one publisher sends to one group leave its gateway together.
//!
//! One request of a publisher to a group is under way at a time, so that its messages are ordered as it sent them (S5). What
//! gathers meanwhile leaves as the next one. Nothing waits for others to gather.

use super::entry::Retention;

/// At most this number of messages in one request.
pub const MESSAGES_MAX: usize = 128;
/// And about this number of bytes of them, unless one alone has more.
pub const BYTES_MAX: usize = 256 << 10;

/// How many of the messages that wait go in the next request, by the bytes of each; one at least.
///
/// A request that is repeated has to find the keys of all of its messages in the group's window, also where others have
/// published meanwhile: hence no more than half of that.
pub fn fitting(waiting: impl IntoIterator<Item = usize>, retention: &Retention) -> usize {
    let most = MESSAGES_MAX.min(retention.window_publishes as usize / 2);
    let mut sum = 0_usize;
    let fits = |bytes: &usize| {
        sum = sum.saturating_add(*bytes);
        sum <= BYTES_MAX
    };
    waiting.into_iter().take(most).take_while(fits).count().max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: Retention = Retention { messages: 9, bytes: 9, age_ms: 9, window_ms: 9, window_publishes: 1_000_000 };

    #[test]
    fn what_waits_goes_together_within_bounds() {
        let check = |waiting: &[usize], window_publishes, wanted| {
            let retention = Retention { window_publishes, ..KEEP };
            assert_eq!(fitting(waiting.iter().copied(), &retention), wanted, "{waiting:?}, {window_publishes}");
        };
        check(&[1], 1_000, 1);
        check(&[1; 5], 1_000, 5);
        check(&[1; 500], 1_000, MESSAGES_MAX);
        check(&[BYTES_MAX * 40, 1], 1_000, 1);
        check(&[1, BYTES_MAX], 1_000, 1);
        check(&[BYTES_MAX / 2, BYTES_MAX / 2, 1], 1_000, 2);
        check(&[usize::MAX, usize::MAX], 1_000, 1);
        check(&[1; 500], 20, 10);
        check(&[1; 500], 1, 1);
        check(&[1; 500], 0, 1);
    }
}
