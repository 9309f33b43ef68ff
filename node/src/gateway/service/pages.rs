//! Which messages an answer holds, where not all have room.

use crate::logic::{entry::Message, request::MESSAGE_OVERHEAD_BYTES};

/// How many of these have room together, one at least where there is one.
fn fitting<'a>(messages: impl Iterator<Item = &'a Message>, bytes: usize) -> usize {
    let mut left = bytes;
    let mut first = true;
    let fits = |message: &&Message| {
        let size = message.data.len() + MESSAGE_OVERHEAD_BYTES;
        let fits = std::mem::take(&mut first) || size <= left;
        left = left.saturating_sub(size);
        fits
    };
    messages.take_while(fits).count()
}

/// Keeps the oldest that have room, one at least.
pub fn oldest(messages: &mut Vec<Message>, bytes: usize) {
    messages.truncate(fitting(messages.iter(), bytes));
}

/// Keeps the newest, at most this number and as many as have room, one at least. Whether some had none.
pub fn newest(messages: &mut Vec<Message>, count: usize, bytes: usize) -> bool {
    messages.drain(..messages.len().saturating_sub(count));
    let too_many = messages.len() - fitting(messages.iter().rev(), bytes);
    messages.drain(..too_many);
    too_many > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(sizes: &[usize]) -> Vec<Message> {
        let message = |(at, size): (usize, &usize)| {
            let (offset, data) = (at as u64 + 1, vec![b'1'; *size].into());
            Message { offset, data, from: None, at_ms: 0 }
        };
        sizes.iter().enumerate().map(message).collect()
    }

    fn offsets(messages: &[Message]) -> Vec<u64> {
        messages.iter().map(|message| message.offset).collect()
    }

    #[test]
    fn the_oldest_that_fit_are_kept_and_never_none() {
        let check = |sizes: &[usize], wanted: u64| {
            let mut messages = page(sizes);
            oldest(&mut messages, 1_000);
            assert_eq!(offsets(&messages), (1..=wanted).collect::<Vec<_>>(), "{sizes:?}");
        };
        check(&[], 0);
        check(&[100, 100], 2);
        check(&[70, 70, 70, 70], 3);
        check(&[5_000, 1], 1);
        check(&[1, 5_000, 1], 1);
    }

    #[test]
    fn the_newest_that_fit_are_kept_and_never_none() {
        let check = |sizes: &[usize], count: usize, wanted: &[u64], left_out: bool| {
            let mut messages = page(sizes);
            assert_eq!(newest(&mut messages, count, 1_000), left_out, "{sizes:?}");
            assert_eq!(offsets(&messages), wanted, "{sizes:?}");
        };
        check(&[], 9, &[], false);
        check(&[100, 100], 9, &[1, 2], false);
        check(&[70, 70, 70], 2, &[2, 3], false);
        check(&[70, 70, 70, 70], 9, &[2, 3, 4], true);
        check(&[1, 5_000], 9, &[2], true);
        check(&[5_000], 9, &[1], false);
    }
}
