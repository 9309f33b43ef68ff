//! What is due to one connection, and who writes it: a pure core, without locks, clocks and sockets.
//!
//! Whoever has queued a frame on which nobody is working yet writes it. Once the socket takes nothing it is the turn of the
//! connection's own task alone, until that has written everything: it waits for the socket, and others only queue. Each
//! step below is taken under one lock together with the write itself, so there is no moment between "it takes nothing" and
//! "the task is told"; `tests/orders.rs` goes through every order of such steps.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind, IoSlice},
};

use crate::wire::frame::Frame;

/// Frames that go in one write.
const GATHERED: usize = 64;
/// Frames for which a connection keeps room while it has none.
const ROOM_KEPT: usize = 8;

/// Frames in their order, and how far the first of them is written.
#[derive(Clone, Debug, Default)]
pub(super) struct Queue {
    /// Its first bytes are written, this number of them. It is finished before all else, whatever happens to the others.
    part: Option<(Frame, usize)>,
    /// Go before the frames, also while these may not be delivered.
    asides: VecDeque<Frame>,
    frames: VecDeque<Frame>,
    /// Of all that is queued; of a frame that is partly written all of it.
    bytes: usize,
    /// The socket took nothing the last time, and the connection's task waits for it.
    blocked: bool,
    /// The socket is broken: nothing is written any more.
    broken: bool,
}

/// What a write came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wrote {
    /// All that may be delivered now.
    All,
    /// The socket takes nothing more.
    Blocked,
    /// The socket is broken.
    Broken,
}

impl Queue {
    /// Of all that is queued.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// How many frames are queued that may have to wait.
    pub(super) fn count(&self) -> usize {
        self.frames.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.part.is_none() && self.asides.is_empty() && self.frames.is_empty()
    }

    pub(super) fn is_blocked(&self) -> bool {
        self.blocked
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// Whether there is something that may be delivered.
    pub(super) fn is_due(&self, may: bool) -> bool {
        self.due(may) > 0
    }

    /// Whether whoever queued this has to see to it that it is written: nothing else was there.
    pub(super) fn push(&mut self, frame: Frame) -> bool {
        let first = self.is_empty();
        self.bytes += frame.len();
        self.frames.push_back(frame);
        first
    }

    /// The same for a frame that goes before the others.
    pub(super) fn push_aside(&mut self, frame: Frame) {
        self.bytes += frame.len();
        self.asides.push_back(frame);
    }

    /// Drops all but what is partly written.
    pub(super) fn clear(&mut self) {
        self.asides.clear();
        self.frames = VecDeque::new();
        self.bytes = self.part.as_ref().map_or(0, |(frame, _)| frame.len());
    }

    /// Drops what may not be delivered.
    pub(super) fn drop_frames(&mut self) {
        self.bytes -= self.frames.iter().map(Frame::len).sum::<usize>();
        self.frames = VecDeque::new();
    }

    /// Writes what may be delivered, until that is all and has left, or the socket takes nothing more.
    pub(super) fn write(
        &mut self,
        may: bool,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
        mut flush: impl FnMut() -> io::Result<()>,
    ) -> Wrote {
        while !self.broken {
            let taken = match self.due(may) {
                0 => flush().map(|()| None),
                1 => self.gather::<1>(may, &mut write).map(Some),
                _ => self.gather::<GATHERED>(may, &mut write).map(Some),
            };
            match taken {
                Ok(None) => {
                    self.blocked = false;
                    self.give_back();
                    return Wrote::All;
                }
                Ok(Some(0)) => self.broken = true,
                Ok(Some(written)) => self.wrote(written),
                Err(error) => match error.kind() {
                    ErrorKind::Interrupted => {}
                    ErrorKind::WouldBlock => {
                        self.blocked = true;
                        return Wrote::Blocked;
                    }
                    _ => self.broken = true,
                },
            }
        }
        self.part = None;
        self.clear();
        Wrote::Broken
    }

    /// How many frames may be delivered.
    fn due(&self, may: bool) -> usize {
        usize::from(self.part.is_some()) + self.asides.len() + if may { self.frames.len() } else { 0 }
    }

    /// Writes the first few frames that may be delivered.
    fn gather<const COUNT: usize>(
        &self,
        may: bool,
        mut write: impl FnMut(&[IoSlice<'_>]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let part = self.part.iter().map(|(frame, written)| &frame.as_bytes()[*written..]);
        let frames = self.frames.iter().take(if may { COUNT } else { 0 });
        let due = part.chain(self.asides.iter().chain(frames).map(Frame::as_bytes));
        let (mut slices, mut count) = ([IoSlice::new(&[]); COUNT], 0);
        for (slice, bytes) in slices.iter_mut().zip(due) {
            *slice = IoSlice::new(bytes);
            count += 1;
        }
        write(&slices[..count])
    }

    /// The socket has taken this number of bytes of what was gathered.
    fn wrote(&mut self, mut written: usize) {
        while written > 0 {
            let (frame, before) = match self.part.take() {
                Some(part) => part,
                None => {
                    let next = self.asides.pop_front().or_else(|| self.frames.pop_front());
                    (next.expect("no more is written than there was"), 0)
                }
            };
            let left = frame.len() - before;
            if written < left {
                self.part = Some((frame, before + written));
                return;
            }
            written -= left;
            self.bytes -= frame.len();
        }
    }

    /// The room that a burst took.
    fn give_back(&mut self) {
        if self.frames.is_empty() && self.frames.capacity() > ROOM_KEPT {
            self.frames = VecDeque::new();
        }
        if self.asides.is_empty() && self.asides.capacity() > 0 {
            self.asides = VecDeque::new();
        }
    }
}
