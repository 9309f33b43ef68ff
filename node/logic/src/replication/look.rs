//! For whoever explores all states of a copy.

use super::{Mode, Replica};
use crate::{Now, entry::Entry};

impl Replica {
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
            (progress.probed_ms, progress.asked_ms) = (0, 0);
        }
    }
}
