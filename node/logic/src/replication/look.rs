//! For whoever looks at a copy, or explores all states of one.

use super::{Mode, Progress, Replica};
use crate::{Now, entry::Entry, id::Index, memory::CopyBytes};

/// A snapshot that comes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Incoming {
    /// The episode and the last entry of it.
    pub of: (u64, Index),
    /// How many pieces are here.
    pub pieces: u64,
    /// What these take, in bytes as frames have them.
    pub bytes: usize,
}

impl Replica {
    /// The snapshot that comes in, where one does and is not whole.
    pub fn incoming(&self) -> Option<Incoming> {
        let receiving = self.receiving.as_ref()?;
        let of = (receiving.origin.sync, receiving.origin.index);
        Some(Incoming { of, pieces: receiving.pieces(), bytes: receiving.bytes })
    }

    /// Whether no time has to pass for anything: what this node orders is committed, and all members know it and say so. The
    /// copy of another primary waits for that one.
    pub fn is_at_rest(&self) -> bool {
        let (Some(primary), Some(held)) = (&self.primary, &self.held) else { return true };
        let rests = |progress: &Progress| {
            progress.mode == Mode::Stream
                && progress.waiting_ms.is_none()
                && progress.acked == held.last()
                && progress.sent == held.last()
                && progress.told_commit == held.applied
        };
        let has_learner = self.assignment.as_ref().is_some_and(|assignment| assignment.learner.is_some());
        !has_learner && held.applied == held.last() && primary.members.values().all(rests)
    }

    /// What this node's copy takes, in bytes, about.
    pub fn held_bytes(&self) -> CopyBytes {
        let incoming = self.incoming().map_or(0, |incoming| incoming.bytes as u64);
        let Some(held) = &self.held else {
            return CopyBytes { incoming, ..CopyBytes::default() };
        };
        let staged = held.staged.iter().flat_map(|staged| &staged.entries).map(|entry| entry.held_bytes());
        let uncommitted = held.uncommitted_bytes + staged.sum::<u64>();
        let retained = held.log_bytes - held.uncommitted_bytes;
        CopyBytes { state: held.state.held_bytes(), uncommitted, retained, incoming }
    }

    /// Whether the running sums of bytes are what a recount gives; for whoever checks that.
    pub fn counts_right(&self) -> bool {
        self.held.as_ref().is_none_or(|held| {
            held.recounted() == (held.log_bytes, held.uncommitted_bytes)
                && held.state.held_bytes() == held.state.recounted()
        })
    }

    /// The entries that it holds and has not applied, in order.
    pub fn uncommitted_entries(&self) -> impl Iterator<Item = &Entry> {
        let applied = self.held.as_ref().map_or(0, |held| (held.applied + 1 - held.log_first) as usize);
        self.held.iter().flat_map(move |held| held.log.iter().skip(applied).map(|entry| &**entry))
    }

    /// Makes all times alike, so that two copies which differ in nothing else are equal. For whoever explores all states:
    /// there any time-out may come at any moment.
    pub fn level_times(&mut self, now: Now) {
        for progress in self.primary.iter_mut().flat_map(|primary| primary.members.values_mut()) {
            progress.waiting_ms = progress.waiting_ms.map(|_| now.mono_ms);
            let has_sent = progress.mode == Mode::Reconcile && progress.sent_ms != 0;
            progress.sent_ms = if has_sent { now.mono_ms.max(1) } else { 0 };
            (progress.asked_ms, progress.back_until_ms) = (0, 0);
            if let Some(sending) = &mut progress.sending {
                sending.level_times();
            }
        }
    }
}
