//! Counts the fragments of messages as their bytes come in: the WebSocket library puts messages together by itself and says
//! nothing of their parts, and one that never ends, of millions of empty parts, would cost its sender nothing.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, ReadBuf};

/// What is read under a WebSocket. It reads nothing while there are fragments that nobody has counted yet.
#[derive(Debug)]
pub(super) struct Fragments<S> {
    pub(super) stream: S,
    place: Place,
    uncounted: u32,
}

/// Where in a frame the next byte stands (RFC 6455, section 5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// The frame's first byte.
    First,
    /// The second.
    Second,
    /// The length, of which these bytes are missing, and what there is of it. `masked`: a mask follows.
    Length { missing: u8, so_far: u64, masked: bool },
    /// This number of bytes of the mask and the payload is passed over.
    Rest(u64),
}

const FINAL: u8 = 0x80;
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;
const MASK_BYTES: u64 = 4;

impl<S> Fragments<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, place: Place::First, uncounted: 0 }
    }

    /// How many there were since this was last asked. The last part of a message is none: the message itself is counted.
    pub(super) fn take(&mut self) -> u32 {
        std::mem::take(&mut self.uncounted)
    }

    pub(super) fn look(&mut self, mut bytes: &[u8]) {
        while let Some((byte, rest)) = bytes.split_first() {
            self.place = match self.place {
                Place::Rest(left) => {
                    let passed = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes = &bytes[passed..];
                    self.place = rest_of(left - passed as u64);
                    continue;
                }
                Place::First => {
                    self.uncounted += u32::from(byte & FINAL == 0);
                    Place::Second
                }
                Place::Second => {
                    let masked = byte & MASKED != 0;
                    match byte & LENGTH {
                        126 => Place::Length { missing: 2, so_far: 0, masked },
                        127 => Place::Length { missing: 8, so_far: 0, masked },
                        length => after_length(u64::from(length), masked),
                    }
                }
                Place::Length { missing, so_far, masked } => {
                    let so_far = (so_far << 8) | u64::from(*byte);
                    if missing > 1 {
                        Place::Length { missing: missing - 1, so_far, masked }
                    } else {
                        after_length(so_far, masked)
                    }
                }
            };
            bytes = rest;
        }
    }
}

fn after_length(length: u64, masked: bool) -> Place {
    rest_of(length.saturating_add(if masked { MASK_BYTES } else { 0 }))
}

fn rest_of(left: u64) -> Place {
    if left == 0 { Place::First } else { Place::Rest(left) }
}

impl<S: AsyncRead + Unpin> AsyncRead for Fragments<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.uncounted > 0 {
            // Whoever reads gets to count first: the library would go on reading for as long as something comes.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        self.look(&buf.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame as a client sends it.
    fn frame(is_final: bool, length: usize, masked: bool) -> Vec<u8> {
        let mut bytes = vec![if is_final { 0x81 } else { 0x01 }];
        let mask = if masked { MASKED } else { 0 };
        match length {
            0..=125 => bytes.push(mask | length as u8),
            126..=0xffff => {
                bytes.push(mask | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(mask | 127);
                bytes.extend((length as u64).to_be_bytes());
            }
        }
        if masked {
            bytes.extend([0, 0, 0, 0]);
        }
        // What looks like the head of a fragment, and is none.
        bytes.extend(std::iter::repeat_n(0, length));
        bytes
    }

    proptest! {
        #[test]
        fn each_fragment_is_counted_wherever_the_bytes_are_cut(
            frames in prop::collection::vec((any::<bool>(), prop_oneof![0..3_usize, 120..130_usize, 65_530..65_540_usize], any::<bool>()), 0..8),
            cuts in prop::collection::vec(1..5_000_usize, 1..9),
        ) {
            let bytes: Vec<u8> =
                frames.iter().flat_map(|(is_final, length, masked)| frame(*is_final, *length, *masked)).collect();
            let (mut fragments, mut left) = (Fragments::new(()), &bytes[..]);
            for cut in cuts.iter().cycle() {
                let (part, rest) = left.split_at((*cut).min(left.len()));
                fragments.look(part);
                left = rest;
                if left.is_empty() {
                    break;
                }
            }
            let expected = frames.iter().filter(|(is_final, ..)| !is_final).count();
            prop_assert_eq!(fragments.take() as usize, expected);
            prop_assert_eq!(fragments.place, Place::First);
        }

        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut fragments = Fragments::new(());
            fragments.look(&bytes);
            prop_assert!(fragments.take() as usize <= bytes.len());
        }
    }
}
