//! DEFLATE as WebSockets use it (RFC 7692, 7.2): each message by itself, without what every message ends with.
//!
//! What compresses and what inflates is of the thread, not of the connection: about 200 KiB for each that does it.

use std::cell::RefCell;

use flate2::{Compress, Compression, Decompress, DecompressError, FlushCompress, FlushDecompress, Status};

/// The window of what is compressed here: 4 KiB, which clients can ask to be the most, and more than most messages are long.
pub const WINDOW_BITS: u8 = 12;
/// The largest window that a client may compress with.
const WINDOW_BITS_MAX: u8 = 15;
/// Shorter messages are hardly shorter when they are compressed.
pub const LEAST_BYTES: usize = 128;
/// Each message ends with it, so it is not sent.
const TAIL: [u8; 4] = [0, 0, 0xff, 0xff];
/// Room for what is made, at first.
const FIRST_BYTES: usize = 256;

thread_local! {
    static COMPRESS: RefCell<Compress> =
        RefCell::new(Compress::new_with_window_bits(Compression::default(), false, WINDOW_BITS));
    static DECOMPRESS: RefCell<Decompress> = RefCell::new(Decompress::new_with_window_bits(false, WINDOW_BITS_MAX));
}

/// Appends the compressed message. Whether it is shorter; what was appended means nothing otherwise.
pub fn deflate(message: &[u8], to: &mut Vec<u8>) -> bool {
    COMPRESS.with_borrow_mut(|compress| {
        compress.reset();
        let before = to.len();
        // What is longer is of no use, so it may go without room.
        to.reserve_exact(message.len() + TAIL.len());
        let mut done = compress.compress_vec(message, to, FlushCompress::Sync).is_ok_and(|status| status == Status::Ok);
        done &= compress.total_in() == message.len() as u64 && to.len() < before + message.len() + TAIL.len();
        done && to.ends_with(&TAIL) && {
            to.truncate(to.len() - TAIL.len());
            true
        }
    })
}

/// The message that was compressed; nothing where it has more bytes than the limit.
///
/// # Errors
/// It is no such message.
pub fn inflate(compressed: &[u8], limit: usize) -> Result<Option<Vec<u8>>, DecompressError> {
    DECOMPRESS.with_borrow_mut(|decompress| {
        decompress.reset(false);
        let mut message = Vec::with_capacity(FIRST_BYTES.max(2 * compressed.len()).min(limit + 1));
        for (part, flush) in [(compressed, FlushDecompress::None), (&TAIL, FlushDecompress::Sync)] {
            let end = decompress.total_in() + part.len() as u64;
            loop {
                let left = (end - decompress.total_in()) as usize;
                let status = decompress.decompress_vec(&part[part.len() - left..], &mut message, flush)?;
                if message.len() > limit {
                    return Ok(None);
                }
                if status == Status::StreamEnd {
                    return Ok(Some(message));
                }
                if message.len() < message.capacity() {
                    break;
                }
                message.reserve_exact(message.len().min(limit + 1 - message.len()));
            }
        }
        Ok(Some(message))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn both_ways(message: &[u8]) -> Option<Vec<u8>> {
        let mut compressed = b"before".to_vec();
        deflate(message, &mut compressed).then(|| inflate(&compressed[6..], message.len()).unwrap().unwrap())
    }

    proptest! {
        #[test]
        fn what_is_compressed_comes_back(
            words in prop::collection::vec("[a-c]{1,9}", 1..2_000),
            noise in prop::collection::vec(any::<u8>(), 0..2_000),
        ) {
            let words = words.join(" ").into_bytes();
            for message in [&words, &noise, &[&noise[..], &words].concat()] {
                prop_assert!(both_ways(message).is_none_or(|back| back == *message));
            }
            prop_assert!(words.len() < 200 || both_ways(&words).is_some());
        }

        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), limit in 0..5_000_usize) {
            if let Ok(Some(message)) = inflate(&bytes, limit) {
                prop_assert!(message.len() <= limit);
            }
        }
    }

    #[test]
    fn what_grows_above_the_limit_is_not_made() {
        let mut compressed = Vec::new();
        assert!(deflate(&vec![b'x'; 1 << 20], &mut compressed));
        assert!(compressed.len() < 2_000);
        assert!(matches!(inflate(&compressed, (1 << 20) - 1), Ok(None)));
        assert_eq!(inflate(&compressed, 1 << 20).unwrap().unwrap().len(), 1 << 20);
    }

    #[test]
    fn an_example_of_the_standard_is_understood() {
        // RFC 7692, 7.2.3: in one block, without compression, and with a last block.
        let examples: [&[u8]; 3] = [
            &[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00],
            &[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            &[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
        ];
        for example in examples {
            assert_eq!(inflate(example, 100).unwrap().as_deref(), Some(&b"Hello"[..]), "{example:x?}");
        }
        assert!(inflate(&[0xff; 9], 100).is_err());
    }
}
