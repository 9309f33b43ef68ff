//! How many are in a group, told instead of who comes and goes: for groups where that would be told to many about many.

use super::{Feed, Notice, Output, To};
use crate::entry::Present;

/// What is known and what was told.
#[derive(Debug, Default)]
pub(super) struct Counts {
    latest: Present,
    told: Option<Present>,
    /// When it was told last.
    told_ms: u64,
    /// When it is to be told next.
    pub(super) due_ms: Option<u64>,
}

impl Counts {
    /// They are others, perhaps: told at once after a quiet time, else with what follows.
    fn note(&mut self, now_ms: u64, present: Present, every_ms: u64) {
        self.latest = present;
        let earliest_ms = if self.told.is_some() { now_ms.max(self.told_ms + every_ms) } else { now_ms };
        let differs = self.told != Some(present);
        self.due_ms = differs.then(|| self.due_ms.unwrap_or(earliest_ms));
    }

    /// What all were told last.
    pub(super) fn told(&self) -> Option<Present> {
        self.told
    }

    fn due(&mut self, now_ms: u64) -> Option<Present> {
        self.due_ms.take_if(|due_ms| *due_ms <= now_ms)?;
        (self.told, self.told_ms) = (Some(self.latest), now_ms);
        Some(self.latest)
    }
}

impl Feed {
    /// Whether it is told how many there are, not who.
    pub(super) fn sums(&mut self, summed: bool) {
        if summed != self.counts.is_some() {
            self.counts = summed.then(Box::default);
        }
    }

    /// A primary says how many there are now.
    pub(super) fn note_present(&mut self, now_ms: u64, present: Present, out: &mut Vec<Output>) {
        if let Some(counts) = &mut self.counts {
            counts.note(now_ms, present, self.settings.counts_ms);
            self.tell_counts(now_ms, out);
        }
    }

    pub(super) fn tell_counts(&mut self, now_ms: u64, out: &mut Vec<Output>) {
        let is_heard = self.has_subscribers();
        if let Some(present) = self.counts.as_mut().filter(|_| is_heard).and_then(|counts| counts.due(now_ms)) {
            out.push(Output::Tell { to: To::AllBut(Vec::new()), notice: Notice::Present(present) });
        }
    }
}
